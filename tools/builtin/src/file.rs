//! `read write edit glob grep`: the agent does the work inside the sandbox, confined to the
//! roots named here; its texts are for the model as they are.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use brain_api::Block;
use guest_protocol::{
    self as guest, CallSpec, Exit, FileOp, FileSpec, OUTPUT_PATH, Outcome, OutputLimits, Root, Work,
};
use serde_json::Value;
use tools_api::{Idempotency, Tool, ToolAnswer, ToolContext, ToolError};

use crate::call::{self, NoOutcome, REASON_CHARS_MAX, failed_later};
use crate::input::{self, Field, Input, Kind};
use crate::text::{NO_OUTPUT, line};

/// Where agents are told that they work. It is a root also where the profile or the image chose
/// another directory to start in.
const WORKSPACE: &str = "/workspace";
/// All of a file tool's text fits: `read` answers with at most 256 KiB, `grep` with 100 KiB,
/// `glob` with 200 paths.
const HEAD_BYTES: u32 = 600 << 10;
/// A picture of 5 MiB in base64, which is what the brain takes.
const IMAGE_BYTES_MAX: u64 = 3_932_160;
const DOCUMENT_BYTES_MAX: u64 = 20 << 20;
const IMAGE_TYPES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const DOCUMENT_TYPE: &str = "application/pdf";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileTool {
    Read,
    Write,
    Edit,
    Glob,
    Grep,
}

const FILE_PATH: Field = Field { name: "file_path", kind: Kind::Name, required: true };
const PATTERN: Field = Field { name: "pattern", kind: Kind::Name, required: true };
const PATH: Field = Field { name: "path", kind: Kind::Name, required: false };

#[async_trait]
impl Tool for FileTool {
    fn name(&self) -> &'static str {
        match self {
            FileTool::Read => "read",
            FileTool::Write => "write",
            FileTool::Edit => "edit",
            FileTool::Glob => "glob",
            FileTool::Grep => "grep",
        }
    }

    fn idempotency(&self) -> Idempotency {
        Idempotency::Keyed
    }

    fn check(&self, input: &Value) -> Result<(), ToolAnswer> {
        self.parse(input).map(drop)
    }

    async fn run(&self, context: &ToolContext<'_>, input: &Value) -> Result<ToolAnswer, ToolError> {
        call::conclude(self.answer(context, input).await, context.notice.as_deref())
    }
}

impl FileTool {
    pub const ALL: [FileTool; 5] =
        [FileTool::Read, FileTool::Write, FileTool::Edit, FileTool::Glob, FileTool::Grep];

    fn fields(self) -> Vec<Field> {
        let text = |name| Field { name, kind: Kind::Text, required: true };
        match self {
            FileTool::Read => {
                let range = Field { name: "view_range", kind: Kind::LineRange, required: false };
                vec![FILE_PATH, range]
            }
            FileTool::Write => vec![FILE_PATH, text("content")],
            FileTool::Edit => {
                let all = Field { name: "replace_all", kind: Kind::Boolean, required: false };
                vec![FILE_PATH, text("old_string"), text("new_string"), all]
            }
            FileTool::Glob | FileTool::Grep => vec![PATTERN, PATH],
        }
    }

    fn parse(self, input: &Value) -> Result<FileOp, ToolAnswer> {
        let input = input::parse(self.name(), &self.fields(), input)?;
        Ok(self.operation(&input))
    }

    fn operation(self, input: &Input<'_>) -> FileOp {
        match self {
            FileTool::Read => FileOp::Read {
                path: input.required("file_path"),
                lines: input.line_range("view_range"),
            },
            FileTool::Write => FileOp::Write {
                path: input.required("file_path"),
                content: input.required("content").into_bytes(),
            },
            FileTool::Edit => FileOp::Edit {
                path: input.required("file_path"),
                old: input.required("old_string"),
                new: input.required("new_string"),
                replace_all: input.boolean("replace_all"),
            },
            FileTool::Glob => {
                FileOp::Glob { pattern: input.required("pattern"), path: input.text("path") }
            }
            FileTool::Grep => {
                FileOp::Grep { pattern: input.required("pattern"), path: input.text("path") }
            }
        }
    }

    async fn answer(
        self,
        context: &ToolContext<'_>,
        input: &Value,
    ) -> Result<ToolAnswer, NoOutcome> {
        let op = self.parse(input).map_err(|answer| NoOutcome::Answer(Box::new(answer)))?;
        let spec = CallSpec {
            timeout: context.limits.other,
            limits: OutputLimits { head_bytes: HEAD_BYTES, tail_bytes: 0, ..Default::default() },
            work: Work::File(FileSpec { in_workdir: true, roots: roots(), op }),
        };
        let outcome = call::run(self.name(), context, &spec).await?;
        if let Err(answer) = self.check_end(&outcome.exit, context) {
            return Ok(*answer);
        }
        let failed = outcome.exit != Exit::Code(0);
        match &outcome.block {
            guest::Block::Image { media_type } | guest::Block::Document { media_type }
                if !failed =>
            {
                self.fetch(context, &outcome, media_type).await
            }
            _ => Ok(self.render(&outcome, failed)),
        }
    }

    /// A file tool ends by itself with 0, or with 1 and a reason; anything else is the sandbox's.
    fn check_end(self, exit: &Exit, context: &ToolContext<'_>) -> Result<(), Box<ToolAnswer>> {
        let name = self.name();
        let why = match exit {
            Exit::Code(0 | 1) => return Ok(()),
            Exit::Code(code) => format!("{name}: ended with code {code}"),
            Exit::Signal(signal) => format!("{name}: killed by signal {signal}"),
            Exit::TimedOut => {
                format!("{name}: timed out after {}s", context.limits.other.as_secs())
            }
            Exit::Killed => format!("{name}: killed"),
            Exit::ShellDied(why) | Exit::FailedToStart(why) => {
                format!("{name}: not started: {}", line(why, REASON_CHARS_MAX))
            }
        };
        Err(Box::new(ToolAnswer::error(why)))
    }

    fn render(self, outcome: &Outcome, failed: bool) -> ToolAnswer {
        let mut text = String::from_utf8_lossy(&outcome.head).into_owned();
        if outcome.truncated() {
            let omitted = outcome.total_bytes - outcome.head.len() as u64;
            text.push_str(&format!("\n[… {omitted} bytes omitted …]"));
        }
        if text.is_empty() {
            text = NO_OUTPUT.to_owned();
        }
        // What a file holds is not for the operator's log; what was done, or refused, is.
        let says_what_was_done = matches!(self, FileTool::Write | FileTool::Edit);
        let summary = match failed || says_what_was_done {
            true => line(text.lines().next().unwrap_or_default(), 200),
            false => format!("{} bytes", outcome.total_bytes),
        };
        let content = vec![Block::text(text)];
        ToolAnswer { content, is_error: failed, summary, exit_code: None }
    }

    /// A picture or a document, in pieces: it does not fit the outcome.
    async fn fetch(
        self,
        context: &ToolContext<'_>,
        outcome: &Outcome,
        media_type: &str,
    ) -> Result<ToolAnswer, NoOutcome> {
        let size = outcome.total_bytes;
        let is_image = IMAGE_TYPES.contains(&media_type);
        let size_max = if is_image { IMAGE_BYTES_MAX } else { DOCUMENT_BYTES_MAX };
        if !is_image && media_type != DOCUMENT_TYPE {
            return Ok(ToolAnswer::error(format!("{}: not a kind of file to show", self.name())));
        }
        if size > size_max {
            return Ok(ToolAnswer::error(format!(
                "{}: the file is {size} bytes, exceeds {size_max}-byte limit for image/PDF files.",
                self.name()
            )));
        }
        let bytes = context.guest.read_all(context.call, size_max as usize + 1).await;
        let bytes = bytes.map_err(|error| failed_later(self.name(), error))?;
        if bytes.len() as u64 != size {
            return Ok(ToolAnswer::error(format!(
                "{}: only {} of the file's {size} bytes could be fetched; try again",
                self.name(),
                bytes.len()
            )));
        }
        let (media_type, data) = (media_type.to_owned(), BASE64.encode(&bytes));
        let summary = format!("{media_type}, {size} bytes");
        let block = match is_image {
            true => Block::Image { media_type, data },
            false => Block::Document { media_type, data },
        };
        Ok(ToolAnswer { content: vec![block], is_error: false, summary, exit_code: None })
    }
}

fn roots() -> Vec<Root> {
    vec![
        Root { path: WORKSPACE.to_owned(), writable: true },
        Root { path: OUTPUT_PATH.to_owned(), writable: false },
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn inputs_become_the_agents_operations() {
        for (tool, input, expected) in [
            (
                FileTool::Read,
                json!({"file_path": "a", "view_range": [2, -1]}),
                FileOp::Read { path: "a".into(), lines: Some((2, -1)) },
            ),
            (
                FileTool::Write,
                json!({"file_path": "a", "content": ""}),
                FileOp::Write { path: "a".into(), content: vec![] },
            ),
            (
                FileTool::Edit,
                json!({"file_path": "a", "old_string": "$1\0", "new_string": "", "replace_all": true}),
                FileOp::Edit {
                    path: "a".into(),
                    old: "$1\0".into(),
                    new: String::new(),
                    replace_all: true,
                },
            ),
            (
                FileTool::Glob,
                json!({"pattern": "**/*.{rs,toml}", "path": null}),
                FileOp::Glob { pattern: "**/*.{rs,toml}".into(), path: None },
            ),
            (
                FileTool::Grep,
                json!({"pattern": "x", "path": "src"}),
                FileOp::Grep { pattern: "x".into(), path: Some("src".into()) },
            ),
        ] {
            assert_eq!(tool.parse(&input).unwrap(), expected);
        }
    }

    #[test]
    fn a_wrong_input_is_told_what_the_tool_takes() {
        for (tool, input, expected) in [
            (
                FileTool::Read,
                json!({}),
                "read: file_path is required. read takes {file_path: string, view_range?: [start_line, end_line]}",
            ),
            (FileTool::Read, json!({"file_path": ""}), "read: file_path must not be empty"),
            (FileTool::Read, json!({"file_path": "a\u{0}"}), "read: file_path contains a NUL byte"),
            (
                FileTool::Read,
                json!({"file_path": "a", "view_range": [1]}),
                "read: view_range must be [start_line, end_line]",
            ),
            (
                FileTool::Read,
                json!({"file_path": "a", "view_range": "1-2"}),
                "read: view_range must be",
            ),
            (FileTool::Write, json!({"file_path": "a"}), "write: content is required"),
            (
                FileTool::Write,
                json!({"file_path": "a", "content": 5}),
                "write: content must be a string, not a number",
            ),
            (
                FileTool::Edit,
                json!({"file_path": "a", "old_string": "x", "new_string": "y", "replace_all": "yes"}),
                "edit: replace_all must be a boolean",
            ),
            (FileTool::Glob, json!({"pattern": "*", "dir": "x"}), "glob: unknown field \"dir\""),
            (FileTool::Grep, json!([]), "grep: the input must be a JSON object, not an array"),
        ] {
            let answer = tool.parse(&input).unwrap_err();
            let [Block::Text { text }] = answer.content.as_slice() else { panic!("{answer:?}") };
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn no_input_makes_a_check_panic() {
        let odd = [
            json!(null),
            json!(1e308),
            json!([[[]]]),
            json!({"": {}}),
            json!({"x".repeat(999): 1}),
        ];
        for tool in FileTool::ALL {
            for input in &odd {
                assert!(tool.check(input).is_err());
            }
        }
    }
}
