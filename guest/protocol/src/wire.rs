//! The messages as they are encoded. Tags are never reused; fields are only added.
//!
//! Both ends convert these to the types of [`crate::call`] at once, which is where a wrong value
//! is noticed.

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "RequestBody", tags = "2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20")]
    pub body: Option<RequestBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum RequestBody {
    #[prost(message, tag = "2")]
    Hello(Hello),
    #[prost(message, tag = "3")]
    Start(Start),
    #[prost(message, tag = "4")]
    Query(CallRef),
    #[prost(message, tag = "5")]
    Wait(Wait),
    #[prost(message, tag = "6")]
    Kill(Kill),
    #[prost(message, tag = "7")]
    Ack(CallRef),
    #[prost(message, tag = "8")]
    Output(ReadOutput),
    #[prost(message, tag = "9")]
    Stdin(Stdin),
    #[prost(message, tag = "10")]
    Resize(Resize),
    #[prost(message, tag = "11")]
    Signal(Signal),
    #[prost(message, tag = "12")]
    Ping(Empty),
    #[prost(message, tag = "13")]
    Info(Empty),
    #[prost(message, tag = "14")]
    Shutdown(Empty),
    // Since version 2:
    #[prost(message, tag = "15")]
    OpenTerminal(OpenTerminal),
    #[prost(message, tag = "16")]
    Terminals(Empty),
    #[prost(message, tag = "17")]
    ReadTerminal(ReadTerminal),
    #[prost(message, tag = "18")]
    TypeTerminal(TypeTerminal),
    #[prost(message, tag = "19")]
    ResizeTerminal(ResizeTerminal),
    #[prost(message, tag = "20")]
    EndTerminal(EndTerminal),
}

#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "ResponseBody", tags = "2,3,4,5,6,7,8,9,10")]
    pub body: Option<ResponseBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum ResponseBody {
    #[prost(message, tag = "2")]
    Hello(Hello),
    #[prost(message, tag = "3")]
    Error(Error),
    #[prost(message, tag = "4")]
    State(State),
    #[prost(message, tag = "5")]
    Output(Output),
    #[prost(message, tag = "6")]
    Done(Empty),
    #[prost(message, tag = "7")]
    Info(Info),
    // Since version 2:
    #[prost(message, tag = "8")]
    OpenedTerminal(OpenedTerminal),
    #[prost(message, tag = "9")]
    Terminals(TerminalList),
    #[prost(message, tag = "10")]
    TerminalOutput(TerminalOutput),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub version_min: u32,
    #[prost(uint32, tag = "2")]
    pub version_max: u32,
    #[prost(string, tag = "3")]
    pub build: String,
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct CallRef {
    #[prost(string, tag = "1")]
    pub call_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Wait {
    #[prost(string, tag = "1")]
    pub call_id: String,
    /// The agent answers with the state it has when this has passed.
    #[prost(uint64, tag = "2")]
    pub wait_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Kill {
    #[prost(string, tag = "1")]
    pub call_id: String,
    #[prost(enumeration = "KillScope", tag = "2")]
    pub scope: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum KillScope {
    Tree = 0,
    Foreground = 1,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReadOutput {
    #[prost(string, tag = "1")]
    pub call_id: String,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(uint64, tag = "3")]
    pub max_bytes: u64,
    /// How long to wait for bytes beyond `offset`, or for the end of the call; 0: not at all.
    #[prost(uint64, tag = "4")]
    pub wait_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Stdin {
    #[prost(string, tag = "1")]
    pub call_id: String,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
    #[prost(bool, tag = "3")]
    pub eof: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resize {
    #[prost(string, tag = "1")]
    pub call_id: String,
    #[prost(message, optional, tag = "2")]
    pub size: Option<PtySize>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct PtySize {
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    #[prost(uint32, tag = "2")]
    pub columns: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Signal {
    #[prost(string, tag = "1")]
    pub call_id: String,
    #[prost(int32, tag = "2")]
    pub signal: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Start {
    #[prost(string, tag = "1")]
    pub call_id: String,
    #[prost(uint64, tag = "2")]
    pub timeout_ms: u64,
    #[prost(message, optional, tag = "3")]
    pub limits: Option<OutputLimits>,
    #[prost(oneof = "Spec", tags = "4,5,6")]
    pub spec: Option<Spec>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Spec {
    #[prost(message, tag = "4")]
    Shell(Shell),
    #[prost(message, tag = "5")]
    Exec(Exec),
    #[prost(message, tag = "6")]
    File(File),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct OutputLimits {
    #[prost(uint64, tag = "1")]
    pub spool_bytes: u64,
    #[prost(uint64, tag = "2")]
    pub head_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub tail_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Shell {
    #[prost(string, optional, tag = "1")]
    pub command: Option<String>,
    #[prost(bool, tag = "2")]
    pub restart: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Exec {
    #[prost(string, repeated, tag = "1")]
    pub argv: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    pub env: Vec<EnvVar>,
    #[prost(string, optional, tag = "3")]
    pub cwd: Option<String>,
    #[prost(bool, tag = "4")]
    pub as_root: bool,
    #[prost(bool, tag = "5")]
    pub stdin: bool,
    #[prost(message, optional, tag = "6")]
    pub pty: Option<PtySize>,
}

#[derive(Clone, PartialEq, Message)]
pub struct EnvVar {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct File {
    #[prost(message, repeated, tag = "1")]
    pub roots: Vec<Root>,
    #[prost(oneof = "FileOp", tags = "2,3,4,5,6")]
    pub op: Option<FileOp>,
    #[prost(bool, tag = "7")]
    pub in_workdir: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Root {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(bool, tag = "2")]
    pub writable: bool,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum FileOp {
    #[prost(message, tag = "2")]
    Read(Read),
    #[prost(message, tag = "3")]
    Write(Write),
    #[prost(message, tag = "4")]
    Edit(Edit),
    #[prost(message, tag = "5")]
    Glob(Search),
    #[prost(message, tag = "6")]
    Grep(Search),
}

#[derive(Clone, PartialEq, Message)]
pub struct Read {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(message, optional, tag = "2")]
    pub lines: Option<LineRange>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct LineRange {
    #[prost(int64, tag = "1")]
    pub start: i64,
    #[prost(int64, tag = "2")]
    pub end: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Write {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(bytes = "vec", tag = "2")]
    pub content: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Edit {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(string, tag = "2")]
    pub old: String,
    #[prost(string, tag = "3")]
    pub new: String,
    #[prost(bool, tag = "4")]
    pub replace_all: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Search {
    #[prost(string, tag = "1")]
    pub pattern: String,
    #[prost(string, optional, tag = "2")]
    pub path: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Error {
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum ErrorCode {
    Unspecified = 0,
    /// The agent holds no call of this id.
    UnknownCall = 1,
    /// The call ran, was acknowledged and forgotten: it is not run again.
    AlreadyAcked = 2,
    /// The persistent shell runs another call.
    ShellBusy = 3,
    /// Or terminals, or requests that wait.
    TooManyCalls = 4,
    BadRequest = 5,
    /// The call takes no input, or has no terminal.
    NotInteractive = 6,
    UnsupportedVersion = 7,
    Internal = 8,
}

#[derive(Clone, PartialEq, Message)]
pub struct State {
    #[prost(oneof = "StateBody", tags = "1,2,3")]
    pub body: Option<StateBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum StateBody {
    #[prost(message, tag = "1")]
    Unknown(Empty),
    #[prost(message, tag = "2")]
    Running(Running),
    #[prost(message, tag = "3")]
    Finished(Outcome),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Running {
    #[prost(uint64, tag = "1")]
    pub started_at_ms: u64,
    #[prost(uint64, tag = "2")]
    pub total_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Outcome {
    #[prost(oneof = "Exit", tags = "1,2,3,4,5,6")]
    pub exit: Option<Exit>,
    #[prost(uint64, tag = "7")]
    pub total_bytes: u64,
    #[prost(bytes = "vec", tag = "8")]
    pub head: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    pub tail: Vec<u8>,
    #[prost(string, optional, tag = "10")]
    pub output_path: Option<String>,
    #[prost(message, repeated, tag = "11")]
    pub notes: Vec<Note>,
    #[prost(enumeration = "BlockKind", tag = "12")]
    pub block: i32,
    #[prost(string, tag = "13")]
    pub media_type: String,
    #[prost(uint64, tag = "14")]
    pub started_at_ms: u64,
    #[prost(uint64, tag = "15")]
    pub ended_at_ms: u64,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Exit {
    #[prost(int32, tag = "1")]
    Code(i32),
    #[prost(int32, tag = "2")]
    Signal(i32),
    #[prost(message, tag = "3")]
    TimedOut(Empty),
    #[prost(message, tag = "4")]
    Killed(Empty),
    #[prost(string, tag = "5")]
    ShellDied(String),
    #[prost(string, tag = "6")]
    FailedToStart(String),
}

#[derive(Clone, PartialEq, Message)]
pub struct Note {
    #[prost(enumeration = "NoteKind", tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub text: String,
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum NoteKind {
    Unspecified = 0,
    ShellRestarted = 1,
    ShellEnded = 2,
    JobsKilled = 3,
    SpoolLimit = 4,
    SpoolError = 5,
    BackgroundOutput = 6,
    Unkillable = 7,
    NoBash = 8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum BlockKind {
    Text = 0,
    Image = 1,
    Document = 2,
}

#[derive(Clone, PartialEq, Message)]
pub struct Output {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
    /// Bytes the spool holds so far; what was dropped beyond its limit is not in it.
    #[prost(uint64, tag = "3")]
    pub spooled_bytes: u64,
    #[prost(bool, tag = "4")]
    pub finished: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Info {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    #[prost(string, tag = "2")]
    pub build: String,
    #[prost(bool, tag = "3")]
    pub shell_alive: bool,
    #[prost(string, repeated, tag = "4")]
    pub running: Vec<String>,
    #[prost(uint64, tag = "5")]
    pub finished: u64,
    #[prost(uint64, tag = "6")]
    pub uptime_ms: u64,
    #[prost(uint64, tag = "7")]
    pub kept_outputs: u64,
    #[prost(message, optional, tag = "8")]
    pub entrypoint: Option<Entrypoint>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Entrypoint {
    #[prost(string, tag = "1")]
    pub command: String,
    #[prost(uint64, tag = "2")]
    pub started_at_ms: u64,
    #[prost(message, optional, tag = "3")]
    pub end: Option<EntrypointEnd>,
    #[prost(uint64, tag = "4")]
    pub output_bytes: u64,
    #[prost(bytes = "vec", tag = "5")]
    pub tail: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct EntrypointEnd {
    #[prost(oneof = "Exit", tags = "1,2,3,4,5,6")]
    pub exit: Option<Exit>,
    #[prost(uint64, tag = "7")]
    pub at_ms: u64,
}

// === terminals ===

#[derive(Clone, PartialEq, Message)]
pub struct OpenTerminal {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub argv: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub env: Vec<EnvVar>,
    #[prost(string, optional, tag = "4")]
    pub cwd: Option<String>,
    #[prost(bool, tag = "5")]
    pub as_root: bool,
    #[prost(message, optional, tag = "6")]
    pub size: Option<PtySize>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Terminal {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bool, tag = "3")]
    pub as_root: bool,
    #[prost(message, optional, tag = "4")]
    pub size: Option<PtySize>,
    #[prost(uint64, tag = "5")]
    pub started_at_ms: u64,
    #[prost(uint64, tag = "6")]
    pub total_bytes: u64,
    #[prost(message, optional, tag = "7")]
    pub end: Option<TerminalEnd>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TerminalEnd {
    #[prost(oneof = "Exit", tags = "1,2,3,4,5,6")]
    pub exit: Option<Exit>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OpenedTerminal {
    #[prost(message, optional, tag = "1")]
    pub terminal: Option<Terminal>,
    #[prost(bool, tag = "2")]
    pub created: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct TerminalList {
    #[prost(message, repeated, tag = "1")]
    pub terminals: Vec<Terminal>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ReadTerminal {
    #[prost(uint64, tag = "1")]
    pub terminal: u64,
    /// Tells the readers on one connection apart.
    #[prost(uint64, tag = "2")]
    pub viewer: u64,
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    #[prost(uint64, tag = "4")]
    pub max_bytes: u64,
    /// How long to wait for bytes beyond `offset`, or for the end.
    #[prost(uint64, tag = "5")]
    pub wait_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct TerminalOutput {
    /// Beyond what was asked for, if that is not kept any more.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
    /// Bits of `vt::Modes`: what was left on before `offset`; set only where output is missing.
    #[prost(uint64, tag = "3")]
    pub modes: u64,
    #[prost(uint64, tag = "4")]
    pub total_bytes: u64,
    /// Set when `data` is the last there will be.
    #[prost(message, optional, tag = "5")]
    pub end: Option<TerminalEnd>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TypeTerminal {
    #[prost(uint64, tag = "1")]
    pub terminal: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ResizeTerminal {
    #[prost(uint64, tag = "1")]
    pub terminal: u64,
    #[prost(message, optional, tag = "2")]
    pub size: Option<PtySize>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct EndTerminal {
    #[prost(uint64, tag = "1")]
    pub terminal: u64,
}
