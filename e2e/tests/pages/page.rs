//! A page of `docs/user` as a test reads it: the commands of its `console` blocks, in order, and
//! what the page says they print.
//!
//! ```text
//! $ a command; lines that end with a backslash go on
//! a line that it prints, in this order; … stands for anything
//! ```
//!
//! A block `console not-run: REASON` is for the reader only. A here-document belongs to its command.

/// One command, and the lines that must be among what it prints.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// In the page, counted from one.
    pub line: usize,
    pub command: String,
    pub expected: Vec<String>,
}

const FENCE: &str = "```";
const CONSOLE: &str = "console";
const NOT_RUN: &str = "console not-run: ";
const PROMPT: &str = "$ ";

/// # Panics
/// When a block cannot be understood: the page has a mistake.
pub fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = page.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.strip_prefix(FENCE) else { continue };
        let block: Vec<_> = lines.by_ref().take_while(|(_, line)| *line != FENCE).collect();
        if kind == CONSOLE {
            read_block(&block, &mut steps);
        } else if kind.starts_with(CONSOLE) {
            let reason = format!("line {number}: write `{FENCE}{NOT_RUN}REASON`");
            assert!(kind.strip_prefix(NOT_RUN).is_some_and(|why| !why.is_empty()), "{reason}");
        }
    }
    steps
}

fn read_block(block: &[(usize, &str)], steps: &mut Vec<Step>) {
    let mut lines = block.iter();
    let mut here = Vec::new();
    while let Some((number, line)) = lines.next() {
        let Some(first) = line.strip_prefix(PROMPT) else {
            let step = here.last_mut();
            let step: &mut Step =
                step.unwrap_or_else(|| panic!("line {number}: no `$ ` before it"));
            step.expected.push((*line).to_owned());
            continue;
        };
        let mut command = first.to_owned();
        while command.ends_with('\\') {
            let (_, more) = lines.next().unwrap_or_else(|| panic!("line {number}: goes nowhere"));
            command = format!("{command}\n{more}");
        }
        if let Some(end) = here_document(first) {
            loop {
                let next = lines.next();
                let (_, more) = next.unwrap_or_else(|| panic!("line {number}: no `{end}` follows"));
                command = format!("{command}\n{more}");
                if *more == end {
                    break;
                }
            }
        }
        here.push(Step { line: *number, command, expected: Vec::new() });
    }
    steps.append(&mut here);
}

/// The word that ends the here-document which this line begins.
fn here_document(line: &str) -> Option<&str> {
    let (_, after) = line.split_once("<<")?;
    let word = after.trim_start_matches(['\'', '"', '-']);
    let end = word.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(word.len());
    (end > 0).then(|| &word[..end])
}

/// The first expected line that is not in `output` after those before it.
pub fn missing<'a>(expected: &'a [String], output: &str) -> Option<&'a str> {
    let mut lines = output.lines();
    expected.iter().map(String::as_str).find(|pattern| !lines.any(|line| matches(pattern, line)))
}

/// Whether a line is what the page shows, where `…` stands for anything.
fn matches(pattern: &str, line: &str) -> bool {
    let mut pieces = pattern.trim().split('…');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = line.trim().strip_prefix(first) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

#[test]
fn commands_output_and_here_documents_are_told_apart() {
    let page = "text\n```console\n$ cat >a <<'END'\n$ not a command\nEND\n$ cat \\\n  a\n$ not a command\n\
        ```\n```console not-run: takes an hour\n$ sleep 3600\n```\n```text\n$ neither\n```\n";
    let commands: Vec<_> = steps(page).into_iter().map(|step| (step.line, step.command)).collect();
    let expected = [
        (3, "cat >a <<'END'\n$ not a command\nEND".to_owned()),
        (6, "cat \\\n  a".to_owned()),
        (8, "not a command".to_owned()),
    ];
    assert_eq!(commands, expected);
}

#[test]
fn what_is_printed_must_be_there_in_order() {
    let expected = ["image … built".to_owned(), "ok".to_owned()];
    assert_eq!(missing(&expected, "image a built\nmore\n  ok\n"), None);
    assert_eq!(missing(&expected, "ok\nimage a built\n"), Some("ok"));
    assert_eq!(missing(&expected, "image a built twice\nok"), Some("image … built"));
    assert!(matches("…", "") && matches("a…", "abc") && matches("…c", "abc"));
    assert!(!matches("a…b…c", "ab") && !matches("abc", "abcd"));
}
