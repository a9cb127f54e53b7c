//! The pages of `docs/user` that a person follows: their commands, run in order on a machine that
//! has nothing of ours but the binary, print what the pages say.

#![forbid(unsafe_code)]

mod page;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use page::Step;
use testkit::Machine;

/// Precedes each line of the shell's that is not a command's output.
const MARK: char = '\u{1e}';
/// More than any page prints; what is beyond it says nothing new.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

#[test]
fn install() {
    follow("install", "install.md");
}

#[test]
fn bring_your_own_image() {
    follow("bring_your_own_image", "images.md");
}

#[test]
fn several_environments() {
    follow("several_environments", "environments.md");
}

fn follow(test: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/user").join(page);
    let text = std::fs::read_to_string(&path).expect("the page");
    let steps = page::steps(&text);
    assert!(!steps.is_empty(), "{page} has no command");
    let Some(machine) = Machine::boot(test) else { return };
    let mut command = machine.command("bash");
    command.arg("-c").arg(script(&steps)).stdout(Stdio::piped());
    let mut shell = command.spawn().expect("run a shell in the machine");
    let output = shell.stdout.take().expect("its output").take(OUTPUT_BYTES_MAX);
    let mut output = BufReader::new(output);
    for step in &steps {
        let (printed, status) = step_output(&mut output);
        let place = format!("{page}, line {}: `{}`", step.line, step.command);
        let fail = |why: &str| panic!("{place}: {why}\n{printed}\n{}", machine.logs());
        match status {
            Some(0) => {}
            Some(code) => fail(&format!("ended with code {code}")),
            None => fail("the shell ended"),
        }
        if let Some(line) = page::missing(&step.expected, &printed) {
            fail(&format!("does not print `{line}`"));
        }
    }
    // What the page started in the background ends with the machine.
    let _ = shell.kill();
    let _ = shell.wait();
}

/// One shell for all steps, so that variables and background jobs stay; it ends at the first
/// command that fails.
fn script(steps: &[Step]) -> String {
    let mut script = String::from("set -o pipefail; exec 2>&1\n");
    for step in steps {
        script.push_str(&format!(
            "{{ {}\n}}; code=$?; printf '\\n\\x1e%d\\n' $code; [ $code = 0 ] || exit\n",
            step.command
        ));
    }
    script
}

/// What the next command prints, and its exit code, if it was reached and ended.
fn step_output(output: &mut impl BufRead) -> (String, Option<i32>) {
    let mut printed = String::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if output.read_until(b'\n', &mut line).expect("read") == 0 {
            return (printed, None);
        }
        let text = String::from_utf8_lossy(&line);
        match text.strip_prefix(MARK) {
            Some(code) => return (printed, code.trim().parse().ok()),
            None => printed.push_str(&text),
        }
    }
}
