//! Just enough of Rust's grammar to tell code from comments and text, and to find functions.

/// The source with every comment, string and character replaced by blanks of the same length:
/// what is left is code, on the same lines.
pub fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let length = opaque_length(bytes, at);
        if length == 0 {
            out.push(byte);
            at += 1;
            continue;
        }
        let end = (at + length).min(bytes.len());
        let hidden = bytes.get(at..end).unwrap_or_default();
        out.extend(hidden.iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
        at = end;
    }
    // Blanks replaced whole tokens, so what is left is still UTF-8.
    String::from_utf8(out).unwrap_or_default()
}

/// How many bytes from `at` are a comment or a literal; none if it is code.
fn opaque_length(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    let after_word = at > 0 && bytes.get(at - 1).copied().is_some_and(is_word);
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => quoted(rest, 1),
        [b'b' | b'c', b'"', ..] if !after_word => quoted(rest, 2),
        [b'r', b'"' | b'#', ..] if !after_word => raw(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !after_word => raw(rest, 2),
        [b'\'', ..] => character(rest),
        _ => 0,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match rest.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted(rest: &[u8], start: usize) -> usize {
    let mut at = start;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Zero for what only looks like one, such as `r#type`.
fn raw(rest: &[u8], start: usize) -> usize {
    let hashes = rest.iter().skip(start).take_while(|b| **b == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return 0;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let body = start + hashes + 1;
    let found = rest.get(body..).unwrap_or_default().windows(end.len()).position(|w| w == end);
    found.map_or(rest.len(), |at| body + at + end.len())
}

/// Zero for a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        let close = rest.iter().skip(3).position(|b| *b == b'\'');
        return close.map_or(0, |at| at + 4);
    }
    let text = String::from_utf8_lossy(rest.get(1..rest.len().min(6)).unwrap_or_default());
    let Some(first) = text.chars().next() else { return 0 };
    let end = 1 + first.len_utf8();
    if rest.get(end) == Some(&b'\'') { end + 1 } else { 0 }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// Counts from 1.
    pub line: usize,
    /// From the signature's first line to the closing brace.
    pub lines: usize,
}

/// Every function with a body.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("fn ") {
        let before = code.as_bytes().get(start.wrapping_sub(1)).copied();
        if start > 0 && before.is_some_and(is_word) {
            continue;
        }
        let rest = code.get(start + 3..).unwrap_or_default();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(length) = body_end(rest).filter(|_| !name.is_empty()) else { continue };
        let newlines = |text: Option<&str>| text.unwrap_or_default().matches('\n').count();
        found.push(Function {
            name,
            line: newlines(code.get(..start)) + 1,
            lines: newlines(rest.get(..length)) + 1,
        });
    }
    found
}

/// The offset just behind the brace that closes the body; `None` where there is no body.
fn body_end(rest: &str) -> Option<usize> {
    let (mut brackets, mut braces) = (0_usize, 0_usize);
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets = brackets.saturating_sub(1),
            b';' if braces == 0 && brackets == 0 => return None,
            b'{' => braces += 1,
            b'}' => {
                braces = braces.checked_sub(1)?;
                if braces == 0 && brackets == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The code before the file's unit tests; all of it in a file that has none.
pub fn without_unit_tests(code: &str) -> &str {
    let tests = code.match_indices("#[cfg(test)]").find(|(at, marker)| {
        let rest = code.get(at + marker.len()..).unwrap_or_default().trim_start();
        rest.starts_with("mod ") && rest.lines().next().is_some_and(|line| line.ends_with('{'))
    });
    tests.map_or(code, |(at, _)| code.get(..at).unwrap_or(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_text_are_not_code() {
        let source = concat!(
            "let a = \"fn x() {\"; // fn y() {\n/* a /* nested */ { */ let b = '{';\n",
            "let c = r#\"}\" \"#; let d: &'static str = b\"\\\"{\"; let e = '\\''; 'label: loop {}\n",
        );
        let code = code_only(source);
        assert_eq!(code.len(), source.len());
        assert_eq!(code.matches('{').count(), 1, "{code}");
        assert_eq!(code.matches('\n').count(), source.matches('\n').count());
        assert!(code.contains("'static str") && code.contains("'label: loop {}"), "{code}");
        assert!(!code.contains("fn "), "{code}");
    }

    #[test]
    fn functions_are_found_with_their_lengths() {
        let code = "trait T {\n fn no_body(&self) -> [u8; 4];\n}\nfn one() -> u8 { 1 }\n\
                    pub async fn three(\n a: [u8; 2],\n) {\n if a { b }\n}\n";
        let functions = functions(code);
        assert_eq!(
            functions.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect::<Vec<_>>(),
            [("one", 4, 1), ("three", 5, 5)]
        );
    }

    #[test]
    fn what_no_compiler_would_take_does_no_harm() {
        for source in ["/*", "\"", "'", "r#\"", "fn ", "fn x", "fn x() {", "}", "'\\", "b\"\\"] {
            functions(&code_only(source));
        }
    }

    #[test]
    fn unit_tests_are_cut_off() {
        let code = "a\n#[cfg(test)]\nmod tests {\n b\n}\n";
        assert_eq!(without_unit_tests(code), "a\n");
        let declared = "#[cfg(test)]\nmod tests;\nfn x() {}\n";
        assert_eq!(without_unit_tests(declared), declared);
    }
}
