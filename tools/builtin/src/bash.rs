//! `bash`: a command in the sandbox's persistent shell.

use std::time::Duration;

use async_trait::async_trait;
use brain_api::Block;
use guest_protocol::{CallSpec, Exit, Note, OUTPUT_PATH, Outcome, OutputLimits, ShellSpec, Work};
use serde_json::Value;
use tools_api::{Idempotency, Tool, ToolAnswer, ToolContext, ToolError, ToolLimits};

use crate::call::{self, NoOutcome, REASON_CHARS_MAX};
use crate::input::{self, Field, Kind};
use crate::text::{Excerpt, NO_OUTPUT, line};

const NAME: &str = "bash";
const FIELDS: [Field; 3] = [
    Field { name: "command", kind: Kind::Text, required: false },
    Field { name: "restart", kind: Kind::Boolean, required: false },
    Field { name: "timeout_ms", kind: Kind::Integer, required: false },
];
/// What helps where there is no bash. The model cannot; it passes on what the operator can do.
const NO_BASH: &str = "bash: there is no bash in this sandbox's image, so this tool cannot run \
                       commands here; read, write, edit, glob and grep work. Who operates the \
                       sandbox can put bash into the image (`apk add bash`, `apt-get install \
                       bash`) and import it again, or name another image in the profile.";
/// A path that the agent names; the real ones are under 100 characters.
const OUTPUT_PATH_CHARS_MAX: usize = 200;

pub struct Bash;

/// What the model asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    shell: ShellSpec,
    timeout_ms: Option<u64>,
}

#[async_trait]
impl Tool for Bash {
    fn name(&self) -> &'static str {
        NAME
    }

    fn idempotency(&self) -> Idempotency {
        Idempotency::Keyed
    }

    fn check(&self, input: &Value) -> Result<(), ToolAnswer> {
        parse(input).map(drop)
    }

    async fn run(&self, context: &ToolContext<'_>, input: &Value) -> Result<ToolAnswer, ToolError> {
        call::conclude(answer(context, input).await, context.notice.as_deref())
    }
}

async fn answer(context: &ToolContext<'_>, input: &Value) -> Result<ToolAnswer, NoOutcome> {
    let refuse = |answer| NoOutcome::Answer(Box::new(answer));
    let request = parse(input).map_err(refuse)?;
    let timeout = request.timeout(context.limits).map_err(refuse)?;
    let restart = matches!(request.shell, ShellSpec::Restart(_));
    let spec =
        CallSpec { timeout, limits: OutputLimits::default(), work: Work::Shell(request.shell) };
    let outcome = call::run(NAME, context, &spec).await?;
    Ok(render(&outcome, restart, timeout))
}

fn parse(input: &Value) -> Result<Request, ToolAnswer> {
    let input = input::parse(NAME, &FIELDS, input)?;
    let command = input.text("command");
    if command.as_ref().is_some_and(|command| command.contains('\0')) {
        return Err(ToolAnswer::error("bash: command contains a NUL byte"));
    }
    let timeout_ms = match input.integer("timeout_ms") {
        None | Some(0) => None,
        Some(ms) if ms < 0 => {
            return Err(ToolAnswer::error("bash: timeout_ms must be 0 (the default) or more"));
        }
        Some(ms) => Some(ms.unsigned_abs()),
    };
    let shell = match (input.boolean("restart"), command) {
        (true, command) => ShellSpec::Restart(command),
        (false, Some(command)) => ShellSpec::Command(command),
        (false, None) => return Err(ToolAnswer::error("bash: command is required")),
    };
    Ok(Request { shell, timeout_ms })
}

impl Request {
    fn timeout(&self, limits: ToolLimits) -> Result<Duration, ToolAnswer> {
        let Some(ms) = self.timeout_ms else { return Ok(limits.bash) };
        let asked = Duration::from_millis(ms);
        if asked > limits.bash_max {
            return Err(ToolAnswer::error(format!(
                "bash: timeout_ms is {ms}, the most is {}. Start what takes longer in the \
                 background, with its output in a file, and look at it in later calls",
                limits.bash_max.as_millis()
            )));
        }
        Ok(asked)
    }
}

fn render(outcome: &Outcome, restart: bool, timeout: Duration) -> ToolAnswer {
    let mut lines: Vec<String> = Vec::new();
    let no_bash = outcome.notes.contains(&Note::NoBash);
    if restart && !no_bash {
        lines.push("bash session restarted".to_owned());
    } else if outcome.notes.contains(&Note::ShellRestarted) {
        lines.push(
            "[notice: this is a new shell: working directory, variables and functions of before \
             are gone]"
                .to_owned(),
        );
    }
    let output_path = outcome.output_path.as_deref().filter(|path| is_output_path(path));
    let kept = (outcome.head.len() + outcome.tail.len()) as u64;
    let output = Excerpt {
        head: &outcome.head,
        tail: &outcome.tail,
        omitted_bytes: outcome.total_bytes.saturating_sub(kept),
        whole_at: output_path,
    }
    .render();
    let says_nothing = output.is_empty();
    if !says_nothing {
        lines.push(output);
    }
    let end = match no_bash {
        true => End::Failed { text: NO_BASH.to_owned(), summary: "no bash".to_owned() },
        false => end_of(&outcome.exit, timeout),
    };
    if says_nothing && !restart && !matches!(end, End::Failed { .. }) {
        lines.push(NO_OUTPUT.to_owned());
    }
    let (is_error, summary, exit_code) = match end {
        End::Code(0) => (false, "exit code 0".to_owned(), Some(0)),
        End::Code(code) => {
            lines.push(format!("exit code: {code}{}", signal_hint(code)));
            (true, format!("exit code {code}"), Some(code))
        }
        End::Failed { text, summary } => {
            lines.push(text);
            (true, summary, None)
        }
    };
    lines.extend(outcome.notes.iter().filter_map(|note| note_line(note, outcome, output_path)));
    let summary = format!("{summary}, {} bytes of output", outcome.total_bytes);
    ToolAnswer { content: vec![Block::text(lines.join("\n"))], is_error, summary, exit_code }
}

enum End {
    Code(i32),
    /// Something else than the command ended it.
    Failed {
        text: String,
        summary: String,
    },
}

fn end_of(exit: &Exit, timeout: Duration) -> End {
    let failed = |text: String, summary: &str| End::Failed { text, summary: summary.to_owned() };
    match exit {
        Exit::Code(code) => End::Code(*code),
        Exit::Signal(signal) => {
            let name = signal_name(*signal).unwrap_or("unknown signal");
            failed(format!("killed by signal {signal} ({name})"), &format!("killed by {name}"))
        }
        Exit::TimedOut => {
            let seconds = timeout.as_millis() as f64 / 1000.0;
            failed(
                format!(
                    "bash: command timed out after {seconds}s; everything it started was killed, \
                     and the shell with it: working directory, variables and functions are gone, \
                     the next command gets a new shell"
                ),
                &format!("timed out after {seconds}s"),
            )
        }
        Exit::Killed => failed("bash: the command was killed".to_owned(), "killed"),
        Exit::ShellDied(why) => failed(
            format!(
                "bash: the shell died under the command ({}); what the command did is not known, \
                 the next command gets a new shell",
                line(why, REASON_CHARS_MAX)
            ),
            "the shell died",
        ),
        Exit::FailedToStart(why) => failed(
            format!("bash: the command was not started: {}", line(why, REASON_CHARS_MAX)),
            "not started",
        ),
    }
}

fn note_line(note: &Note, outcome: &Outcome, output_path: Option<&str>) -> Option<String> {
    let shell_is_gone = matches!(outcome.exit, Exit::TimedOut | Exit::ShellDied(_));
    Some(match note {
        Note::ShellRestarted | Note::NoBash => return None,
        Note::ShellEnded if shell_is_gone => return None,
        Note::ShellEnded => {
            "[the shell ended with this command; the next one gets a new shell]".to_owned()
        }
        Note::JobsKilled => "[background jobs of earlier calls were killed too]".to_owned(),
        Note::SpoolLimit { kept_bytes } => {
            format!("[only the first {kept_bytes} bytes of the output were kept]")
        }
        Note::SpoolError(why) => {
            format!("[not all of the output was kept: {}]", line(why, REASON_CHARS_MAX))
        }
        Note::BackgroundOutput => match output_path {
            Some(path) => format!("[a background job goes on; its output continues in {path}]"),
            None => "[a background job goes on]".to_owned(),
        },
        Note::Unkillable { processes } => {
            format!("[{processes} processes were not dead when the time for killing was over]")
        }
    })
}

/// The agent names a place; only one where outputs are is repeated to the model.
fn is_output_path(path: &str) -> bool {
    let inside = path.strip_prefix(OUTPUT_PATH).is_some_and(|rest| rest.starts_with('/'));
    inside && path.len() <= OUTPUT_PATH_CHARS_MAX && !path.contains(char::is_control)
}

/// Bash reports a command that a signal ended as 128 and its number.
fn signal_hint(code: i32) -> String {
    match code.checked_sub(128).and_then(signal_name) {
        Some("SIGKILL") => " (as after SIGKILL; perhaps out of memory)".to_owned(),
        Some(name) => format!(" (as after {name})"),
        None => String::new(),
    }
}

/// Linux's numbers on the machines we run on.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIMITS: ToolLimits = ToolLimits {
        bash: Duration::from_secs(120),
        bash_max: Duration::from_secs(1800),
        other: Duration::from_secs(150),
    };

    fn outcome(exit: Exit, output: &str, notes: Vec<Note>) -> Outcome {
        Outcome {
            exit,
            total_bytes: output.len() as u64,
            head: output.as_bytes().to_vec(),
            tail: vec![],
            output_path: None,
            notes,
            block: guest_protocol::Block::Text,
            started_at_ms: 0,
            ended_at_ms: 0,
        }
    }

    fn text(answer: &ToolAnswer) -> &str {
        let [Block::Text { text }] = answer.content.as_slice() else { panic!("{answer:?}") };
        text
    }

    #[track_caller]
    fn check(exit: Exit, output: &str, notes: Vec<Note>, expected: (&str, bool)) {
        let answer = render(&outcome(exit, output, notes), false, Duration::from_millis(1500));
        assert_eq!((text(&answer), answer.is_error), expected);
    }

    #[test]
    fn outcomes_read_as_the_model_needs_them() {
        check(Exit::Code(0), "\nhello\n\n", vec![], ("\nhello", false));
        check(Exit::Code(0), "\n", vec![], ("(no output)", false));
        check(Exit::Code(0), "\x1b[31mred\x1b[0m", vec![], ("red", false));
        check(Exit::Code(1), "no\n", vec![], ("no\nexit code: 1", true));
        check(Exit::Code(2), "", vec![], ("(no output)\nexit code: 2", true));
        check(
            Exit::Code(139),
            "",
            vec![],
            ("(no output)\nexit code: 139 (as after SIGSEGV)", true),
        );
        check(Exit::Signal(9), "x", vec![], ("x\nkilled by signal 9 (SIGKILL)", true));
        check(Exit::Killed, "", vec![], ("bash: the command was killed", true));
        check(
            Exit::TimedOut,
            "part\n",
            vec![Note::ShellEnded, Note::JobsKilled],
            (
                "part\nbash: command timed out after 1.5s; everything it started was killed, and \
                 the shell with it: working directory, variables and functions are gone, the next \
                 command gets a new shell\n[background jobs of earlier calls were killed too]",
                true,
            ),
        );
        check(
            Exit::Code(3),
            "",
            vec![Note::ShellRestarted, Note::ShellEnded],
            (
                "[notice: this is a new shell: working directory, variables and functions of before \
                 are gone]\n(no output)\nexit code: 3\n[the shell ended with this command; the next \
                 one gets a new shell]",
                true,
            ),
        );
        check(
            Exit::FailedToStart("no\n/bin/bash".into()),
            "",
            vec![],
            ("bash: the command was not started: no /bin/bash", true),
        );
        let missing = Exit::FailedToStart("bash: no such file or directory".into());
        check(missing, "", vec![Note::NoBash], (NO_BASH, true));
    }

    #[test]
    fn a_long_output_keeps_both_ends_and_names_the_file_only_where_outputs_are() {
        let mut long = outcome(Exit::Code(0), "head", vec![]);
        long.tail = b"tail\n".to_vec();
        long.total_bytes = 1009;
        for (path, named) in [
            (Some("/run/sinew/output/call_1.out"), true),
            (Some("/run/sinew/outputs/x"), false),
            (Some("/etc/passwd"), false),
            (Some("/run/sinew/output/a\nb"), false),
            (None, false),
        ] {
            long.output_path = path.map(str::to_owned);
            let answer = render(&long, false, Duration::from_secs(1));
            let text = text(&answer);
            assert!(text.starts_with("head\n[… 1000 bytes omitted"), "{text}");
            assert!(text.ends_with("…]\ntail"), "{text}");
            assert_eq!(text.contains("the whole output is in"), named, "{text}");
        }
    }

    #[test]
    fn a_restart_says_so_with_and_without_a_command() {
        let silent = render(&outcome(Exit::Code(0), "", vec![]), true, Duration::from_secs(1));
        assert_eq!(text(&silent), "bash session restarted");
        let spoken = render(&outcome(Exit::Code(0), "hi\n", vec![]), true, Duration::from_secs(1));
        assert_eq!(text(&spoken), "bash session restarted\nhi");
    }

    #[test]
    fn inputs_are_taken_strictly() {
        let command = |text: &str| ShellSpec::Command(text.to_owned());
        for (input, shell, timeout_ms) in [
            (json!({"command": "ls"}), command("ls"), None),
            (json!({"command": "ls", "restart": false, "timeout_ms": 0}), command("ls"), None),
            (
                json!({"command": "ls", "restart": null, "timeout_ms": 500.0}),
                command("ls"),
                Some(500),
            ),
            (json!({"command": ""}), command(""), None),
            (json!({"restart": true}), ShellSpec::Restart(None), None),
            (
                json!({"restart": true, "command": "ls"}),
                ShellSpec::Restart(Some("ls".to_owned())),
                None,
            ),
        ] {
            assert_eq!(parse(&input).unwrap(), Request { shell, timeout_ms }, "{input}");
        }
        for (input, expected) in [
            (json!({}), "bash: command is required"),
            (json!({"restart": false}), "bash: command is required"),
            (
                json!("ls"),
                "bash: the input must be a JSON object, not a string. bash takes {command?: string, restart?: boolean, timeout_ms?: integer}",
            ),
            (json!(null), "bash: the input must be a JSON object, not null"),
            (json!({"command": ["ls"]}), "bash: command must be a string, not an array"),
            (json!({"cmd": "ls"}), "bash: unknown field \"cmd\""),
            (json!({"command": "a\u{0}b"}), "bash: command contains a NUL byte"),
            (
                json!({"command": "ls", "timeout_ms": "5"}),
                "bash: timeout_ms must be a whole number, not a string",
            ),
            (
                json!({"command": "ls", "timeout_ms": 0.5}),
                "bash: timeout_ms must be a whole number",
            ),
            (json!({"command": "ls", "timeout_ms": -1}), "bash: timeout_ms must be 0"),
            (json!({"command": "x".repeat(9 << 20)}), "bash: the input is 9437184 bytes, exceeds"),
        ] {
            let answer = parse(&input).unwrap_err();
            assert!(text(&answer).starts_with(expected), "{}", text(&answer));
            assert!(answer.is_error);
        }
    }

    #[test]
    fn a_timeout_is_the_calls_own_up_to_the_profiles_maximum() {
        let request = |timeout_ms| Request { shell: ShellSpec::Restart(None), timeout_ms };
        assert_eq!(request(None).timeout(LIMITS).unwrap(), LIMITS.bash);
        assert_eq!(request(Some(1_800_000)).timeout(LIMITS).unwrap(), LIMITS.bash_max);
        let refused = request(Some(1_800_001)).timeout(LIMITS).unwrap_err();
        assert!(text(&refused).contains("the most is 1800000"), "{refused:?}");
    }
}
