//! The words of a call: what to run, in which state it is, how it ended.

use std::time::Duration;

/// What a call does. Its [`crate::CallId`] makes starting it idempotent.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSpec {
    /// After this the whole process tree of the call is killed.
    pub timeout: Duration,
    pub limits: OutputLimits,
    pub work: Work,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A command in the sandbox's one persistent shell.
    Shell(ShellSpec),
    /// A program of its own, beside the shell: what an operator runs.
    Exec(ExecSpec),
    /// A file tool, confined to its roots.
    File(FileSpec),
}

/// How much output is kept, and where. What is beyond is counted and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLimits {
    /// In the file of the call, inside the sandbox's disk quota.
    pub spool_bytes: u64,
    /// In the outcome, from the beginning.
    pub head_bytes: u32,
    /// In the outcome, from the end. Head and tail together hold at most
    /// [`crate::OUTCOME_BYTES_MAX`].
    pub tail_bytes: u32,
}

impl Default for OutputLimits {
    fn default() -> Self {
        Self { spool_bytes: 64 << 20, head_bytes: 51_200, tail_bytes: 51_200 }
    }
}

/// At least one of the two is asked for: a command, or a fresh shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellSpec {
    Command(String),
    /// Ends the shell and everything it started, then runs the command, if there is one.
    Restart(Option<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSpec {
    /// Never empty. A name without a slash is looked for in `PATH`.
    pub argv: Vec<String>,
    /// Added to the profile's environment, replacing what has the same name.
    pub env: Vec<(String, String)>,
    /// `None`: the work directory.
    pub cwd: Option<String>,
    pub run_as: RunAs,
    /// Whether input will be sent; otherwise the program reads end of file.
    pub stdin: bool,
    pub pty: Option<PtySize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// Whatever the profile says tools run as.
    Tool,
    /// Root of the sandbox's own user namespace.
    Root,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtySize {
    pub rows: u16,
    pub columns: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// The work directory that the agent was started with is a writable root before these. An
    /// agent that does not know this (before version 2) was started with the first of them.
    pub in_workdir: bool,
    /// Relative paths start in the work directory, or without it in the first root. Never empty.
    pub roots: Vec<Root>,
    pub op: FileOp,
}

/// A directory that file tools may use, with everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Absolute.
    pub path: String,
    pub writable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileOp {
    /// `lines` is 1-based and inclusive; an end of 0 or less means to the end of the file.
    Read {
        path: String,
        lines: Option<(i64, i64)>,
    },
    Write {
        path: String,
        content: Vec<u8>,
    },
    Edit {
        path: String,
        old: String,
        new: String,
        replace_all: bool,
    },
    Glob {
        pattern: String,
        path: Option<String>,
    },
    Grep {
        pattern: String,
        path: Option<String>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum CallState {
    /// This agent never started the call, or has forgotten it after an ack.
    Unknown,
    Running {
        started_at_ms: u64,
        total_bytes: u64,
    },
    Finished(Box<Outcome>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub exit: Exit,
    /// Everything the call wrote, kept or not.
    pub total_bytes: u64,
    /// The beginning of the output; all of it if `tail` is empty and nothing was dropped.
    pub head: Vec<u8>,
    /// The end of the output, if it did not fit into `head`.
    pub tail: Vec<u8>,
    /// Where the guest can read the output, when there is more than `head` and `tail` hold.
    pub output_path: Option<String>,
    pub notes: Vec<Note>,
    /// What the output is. An image or a document is fetched with `GuestClient::read_all`.
    pub block: Block,
    /// By the guest's clock, in milliseconds since 1970.
    pub started_at_ms: u64,
    pub ended_at_ms: u64,
}

impl Outcome {
    /// Whether bytes are missing between `head` and `tail`.
    pub fn truncated(&self) -> bool {
        self.total_bytes > (self.head.len() + self.tail.len()) as u64
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A file tool that refuses ends with code 1 and the reason as its output.
    Code(i32),
    Signal(i32),
    TimedOut,
    /// By [`crate::GuestClient::kill`].
    Killed,
    /// The persistent shell was killed under the command; what it did is not known.
    ShellDied(String),
    FailedToStart(String),
}

/// What the model should be told beyond the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The command ran in a new shell: variables, functions and jobs of the old one are gone.
    ShellRestarted,
    /// The shell ended with this call; the next one starts a new one.
    ShellEnded,
    /// Background jobs of earlier calls were killed with the shell.
    JobsKilled,
    /// The file of the output stops after this many bytes.
    SpoolLimit { kept_bytes: u64 },
    /// The file of the output could not be written, say because the disk is full.
    SpoolError(String),
    /// A background job still writes; its output goes on into `output_path`.
    BackgroundOutput,
    /// Processes were still there when the time for killing them was over.
    Unkillable { processes: u64 },
    /// The command was not started, because the image has no bash.
    NoBash,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    Text,
    Image { media_type: String },
    Document { media_type: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillScope {
    /// The call and all it started; with a shell call also the jobs of earlier calls.
    Tree,
    /// A shell call, and with it the shell, which could only go on with the rest of its command.
    /// Jobs of earlier calls stay, if this takes but a moment; otherwise as `Tree`, and the outcome
    /// says so. Any other call as `Tree`.
    Foreground,
}

/// A piece of a call's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputChunk {
    pub offset: u64,
    pub data: Vec<u8>,
    /// How much there is to read by now.
    pub spooled_bytes: u64,
    /// The call has ended. With `data` empty: there is no more.
    pub finished: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StdinData {
    Bytes(Vec<u8>),
    Eof,
}

/// What the agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    pub epoch: crate::Epoch,
    pub build: String,
    pub shell_alive: bool,
    pub running: Vec<crate::CallId>,
    /// Finished and not yet acknowledged.
    pub finished: u64,
    pub uptime: Duration,
    pub kept_outputs: u64,
    /// What runs, or ran, beside the tools; `None` where nothing was asked for.
    pub entrypoint: Option<EntrypointInfo>,
}

/// How the entrypoint fares. It is started once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrypointInfo {
    /// One line, cut where it is long.
    pub command: String,
    /// By the guest's clock, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// `None`: it runs.
    pub end: Option<EntrypointEnd>,
    /// Everything that it and its descendants wrote.
    pub output_bytes: u64,
    /// The last of it.
    pub tail: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrypointEnd {
    pub exit: Exit,
    pub at_ms: u64,
}
