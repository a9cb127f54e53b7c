//! Between the wire and the words. A value that the words cannot carry is refused here.

use std::time::Duration;

use crate::call::{AgentInfo, EntrypointEnd, EntrypointInfo, Work};
use crate::version::printable;
use crate::wire;
use crate::{
    Block, CallId, CallSpec, CallState, ENTRYPOINT_TAIL_BYTES_MAX, Epoch, ExecSpec, Exit,
    FRAME_BYTES_MAX, FileOp, FileSpec, KillScope, Note, OUTCOME_BYTES_MAX, Outcome, OutputChunk,
    OutputLimits, PtySize, Root, RunAs, ShellSpec,
};

/// A message that decodes but says something impossible.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} has an impossible value")]
    Impossible(&'static str),
}

/// Notes of one outcome; an honest agent has at most one of each kind.
const NOTES_MAX: usize = 16;
/// Texts in an outcome: a reason, a path, a media type.
const TEXT_BYTES_MAX: usize = 8192;
/// Of an entrypoint's command line.
const COMMAND_CHARS_MAX: usize = 200;
/// Calls an agent may claim to run.
const RUNNING_MAX: usize = 1024;

pub fn call_id(text: &str) -> Result<CallId, Malformed> {
    CallId::parse(text).ok_or(Malformed::Impossible("call id"))
}

fn short(text: String) -> Result<String, Malformed> {
    if text.len() <= TEXT_BYTES_MAX { Ok(text) } else { Err(Malformed::Impossible("text")) }
}

/// A text of the other end as it may stand in a log.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(COMMAND_CHARS_MAX).collect()
}

// === calls ===

impl CallSpec {
    pub fn to_wire(&self, id: &CallId) -> wire::Start {
        wire::Start {
            call_id: id.as_str().to_owned(),
            timeout_ms: self.timeout.as_millis().try_into().unwrap_or(u64::MAX),
            limits: Some(wire::OutputLimits {
                spool_bytes: self.limits.spool_bytes,
                head_bytes: self.limits.head_bytes.into(),
                tail_bytes: self.limits.tail_bytes.into(),
            }),
            spec: Some(match &self.work {
                Work::Shell(spec) => wire::Spec::Shell(spec.clone().into()),
                Work::Exec(spec) => wire::Spec::Exec(spec.clone().into()),
                Work::File(spec) => wire::Spec::File(spec.clone().into()),
            }),
        }
    }
}

impl TryFrom<wire::Start> for CallSpec {
    type Error = Malformed;

    fn try_from(start: wire::Start) -> Result<Self, Malformed> {
        if start.timeout_ms == 0 {
            return Err(Malformed::Impossible("timeout"));
        }
        let limits = start.limits.ok_or(Malformed::Missing("output limits"))?;
        let kept = limits.head_bytes.saturating_add(limits.tail_bytes);
        if kept > OUTCOME_BYTES_MAX as u64 {
            return Err(Malformed::Impossible("head and tail bytes"));
        }
        Ok(CallSpec {
            timeout: Duration::from_millis(start.timeout_ms),
            limits: OutputLimits {
                spool_bytes: limits.spool_bytes,
                head_bytes: limits.head_bytes as u32,
                tail_bytes: limits.tail_bytes as u32,
            },
            work: match start.spec.ok_or(Malformed::Missing("what to run"))? {
                wire::Spec::Shell(shell) => Work::Shell(shell.try_into()?),
                wire::Spec::Exec(exec) => Work::Exec(exec.try_into()?),
                wire::Spec::File(file) => Work::File(file.try_into()?),
            },
        })
    }
}

impl From<ShellSpec> for wire::Shell {
    fn from(spec: ShellSpec) -> Self {
        match spec {
            ShellSpec::Command(command) => Self { command: Some(command), restart: false },
            ShellSpec::Restart(command) => Self { command, restart: true },
        }
    }
}

impl TryFrom<wire::Shell> for ShellSpec {
    type Error = Malformed;

    fn try_from(shell: wire::Shell) -> Result<Self, Malformed> {
        match (shell.restart, shell.command) {
            (true, command) => Ok(ShellSpec::Restart(command)),
            (false, Some(command)) => Ok(ShellSpec::Command(command)),
            (false, None) => Err(Malformed::Missing("command")),
        }
    }
}

impl From<ExecSpec> for wire::Exec {
    fn from(spec: ExecSpec) -> Self {
        Self {
            argv: spec.argv,
            env: spec.env.into_iter().map(|(name, value)| wire::EnvVar { name, value }).collect(),
            cwd: spec.cwd,
            as_root: spec.run_as == RunAs::Root,
            stdin: spec.stdin,
            pty: spec.pty.map(Into::into),
        }
    }
}

impl TryFrom<wire::Exec> for ExecSpec {
    type Error = Malformed;

    fn try_from(exec: wire::Exec) -> Result<Self, Malformed> {
        if exec.argv.first().is_none_or(String::is_empty) {
            return Err(Malformed::Missing("program"));
        }
        Ok(ExecSpec {
            argv: exec.argv,
            env: exec.env.into_iter().map(|var| (var.name, var.value)).collect(),
            cwd: exec.cwd,
            run_as: if exec.as_root { RunAs::Root } else { RunAs::Tool },
            stdin: exec.stdin,
            pty: exec.pty.map(PtySize::try_from).transpose()?,
        })
    }
}

impl From<PtySize> for wire::PtySize {
    fn from(size: PtySize) -> Self {
        Self { rows: size.rows.into(), columns: size.columns.into() }
    }
}

impl TryFrom<wire::PtySize> for PtySize {
    type Error = Malformed;

    fn try_from(size: wire::PtySize) -> Result<Self, Malformed> {
        let side = |n: u32| u16::try_from(n).map_err(|_| Malformed::Impossible("terminal size"));
        Ok(PtySize { rows: side(size.rows)?, columns: side(size.columns)? })
    }
}

impl From<FileSpec> for wire::File {
    fn from(spec: FileSpec) -> Self {
        let root = |root: Root| wire::Root { path: root.path, writable: root.writable };
        Self {
            roots: spec.roots.into_iter().map(root).collect(),
            in_workdir: spec.in_workdir,
            op: Some(match spec.op {
                FileOp::Read { path, lines } => wire::FileOp::Read(wire::Read {
                    path,
                    lines: lines.map(|(start, end)| wire::LineRange { start, end }),
                }),
                FileOp::Write { path, content } => {
                    wire::FileOp::Write(wire::Write { path, content })
                }
                FileOp::Edit { path, old, new, replace_all } => {
                    wire::FileOp::Edit(wire::Edit { path, old, new, replace_all })
                }
                FileOp::Glob { pattern, path } => {
                    wire::FileOp::Glob(wire::Search { pattern, path })
                }
                FileOp::Grep { pattern, path } => {
                    wire::FileOp::Grep(wire::Search { pattern, path })
                }
            }),
        }
    }
}

impl TryFrom<wire::File> for FileSpec {
    type Error = Malformed;

    fn try_from(file: wire::File) -> Result<Self, Malformed> {
        if file.roots.is_empty() {
            return Err(Malformed::Missing("root"));
        }
        if file.roots.iter().any(|root| !root.path.starts_with('/')) {
            return Err(Malformed::Impossible("root"));
        }
        let root = |root: wire::Root| Root { path: root.path, writable: root.writable };
        Ok(FileSpec {
            in_workdir: file.in_workdir,
            roots: file.roots.into_iter().map(root).collect(),
            op: match file.op.ok_or(Malformed::Missing("file operation"))? {
                wire::FileOp::Read(read) => FileOp::Read {
                    path: read.path,
                    lines: read.lines.map(|lines| (lines.start, lines.end)),
                },
                wire::FileOp::Write(write) => {
                    FileOp::Write { path: write.path, content: write.content }
                }
                wire::FileOp::Edit(edit) => FileOp::Edit {
                    path: edit.path,
                    old: edit.old,
                    new: edit.new,
                    replace_all: edit.replace_all,
                },
                wire::FileOp::Glob(search) => {
                    FileOp::Glob { pattern: search.pattern, path: search.path }
                }
                wire::FileOp::Grep(search) => {
                    FileOp::Grep { pattern: search.pattern, path: search.path }
                }
            },
        })
    }
}

impl From<KillScope> for wire::KillScope {
    fn from(scope: KillScope) -> Self {
        match scope {
            KillScope::Tree => wire::KillScope::Tree,
            KillScope::Foreground => wire::KillScope::Foreground,
        }
    }
}

impl From<wire::KillScope> for KillScope {
    fn from(scope: wire::KillScope) -> Self {
        match scope {
            wire::KillScope::Tree => KillScope::Tree,
            wire::KillScope::Foreground => KillScope::Foreground,
        }
    }
}

// === states ===

impl From<CallState> for wire::State {
    fn from(state: CallState) -> Self {
        let body = match state {
            CallState::Unknown => wire::StateBody::Unknown(wire::Empty {}),
            CallState::Running { started_at_ms, total_bytes } => {
                wire::StateBody::Running(wire::Running { started_at_ms, total_bytes })
            }
            CallState::Finished(outcome) => wire::StateBody::Finished((*outcome).into()),
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<wire::State> for CallState {
    type Error = Malformed;

    fn try_from(state: wire::State) -> Result<Self, Malformed> {
        Ok(match state.body.ok_or(Malformed::Missing("state"))? {
            wire::StateBody::Unknown(_) => CallState::Unknown,
            wire::StateBody::Running(running) => CallState::Running {
                started_at_ms: running.started_at_ms,
                total_bytes: running.total_bytes,
            },
            wire::StateBody::Finished(outcome) => {
                CallState::Finished(Box::new(outcome.try_into()?))
            }
        })
    }
}

impl From<Outcome> for wire::Outcome {
    fn from(outcome: Outcome) -> Self {
        let (block, media_type) = match outcome.block {
            Block::Text => (wire::BlockKind::Text, String::new()),
            Block::Image { media_type } => (wire::BlockKind::Image, media_type),
            Block::Document { media_type } => (wire::BlockKind::Document, media_type),
        };
        Self {
            exit: Some(outcome.exit.into()),
            total_bytes: outcome.total_bytes,
            head: outcome.head,
            tail: outcome.tail,
            output_path: outcome.output_path,
            notes: outcome.notes.into_iter().map(Into::into).collect(),
            block: block.into(),
            media_type,
            started_at_ms: outcome.started_at_ms,
            ended_at_ms: outcome.ended_at_ms,
        }
    }
}

impl TryFrom<wire::Outcome> for Outcome {
    type Error = Malformed;

    fn try_from(outcome: wire::Outcome) -> Result<Self, Malformed> {
        let kept = (outcome.head.len() + outcome.tail.len()) as u64;
        if kept > FRAME_BYTES_MAX as u64 || kept > outcome.total_bytes {
            return Err(Malformed::Impossible("output size"));
        }
        let media_type = short(outcome.media_type)?;
        let block = match wire::BlockKind::try_from(outcome.block) {
            Ok(wire::BlockKind::Text) => Block::Text,
            Ok(wire::BlockKind::Image) => Block::Image { media_type },
            Ok(wire::BlockKind::Document) => Block::Document { media_type },
            Err(_) => return Err(Malformed::Impossible("kind of output")),
        };
        let notes = outcome.notes.into_iter().take(NOTES_MAX);
        Ok(Outcome {
            exit: outcome.exit.ok_or(Malformed::Missing("exit"))?.try_into()?,
            total_bytes: outcome.total_bytes,
            head: outcome.head,
            tail: outcome.tail,
            output_path: outcome.output_path.map(short).transpose()?,
            notes: notes
                .filter_map(|note| Note::from_wire(note).transpose())
                .collect::<Result<_, _>>()?,
            block,
            started_at_ms: outcome.started_at_ms,
            ended_at_ms: outcome.ended_at_ms,
        })
    }
}

impl From<Exit> for wire::Exit {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => wire::Exit::Code(code),
            Exit::Signal(signal) => wire::Exit::Signal(signal),
            Exit::TimedOut => wire::Exit::TimedOut(wire::Empty {}),
            Exit::Killed => wire::Exit::Killed(wire::Empty {}),
            Exit::ShellDied(reason) => wire::Exit::ShellDied(reason),
            Exit::FailedToStart(reason) => wire::Exit::FailedToStart(reason),
        }
    }
}

impl TryFrom<wire::Exit> for Exit {
    type Error = Malformed;

    fn try_from(exit: wire::Exit) -> Result<Self, Malformed> {
        Ok(match exit {
            wire::Exit::Code(code) => Exit::Code(code),
            wire::Exit::Signal(signal) => Exit::Signal(signal),
            wire::Exit::TimedOut(_) => Exit::TimedOut,
            wire::Exit::Killed(_) => Exit::Killed,
            wire::Exit::ShellDied(reason) => Exit::ShellDied(short(reason)?),
            wire::Exit::FailedToStart(reason) => Exit::FailedToStart(short(reason)?),
        })
    }
}

impl From<Note> for wire::Note {
    fn from(note: Note) -> Self {
        let (kind, text, number) = match note {
            Note::ShellRestarted => (wire::NoteKind::ShellRestarted, String::new(), 0),
            Note::ShellEnded => (wire::NoteKind::ShellEnded, String::new(), 0),
            Note::JobsKilled => (wire::NoteKind::JobsKilled, String::new(), 0),
            Note::SpoolLimit { kept_bytes } => {
                (wire::NoteKind::SpoolLimit, String::new(), kept_bytes)
            }
            Note::SpoolError(reason) => (wire::NoteKind::SpoolError, reason, 0),
            Note::BackgroundOutput => (wire::NoteKind::BackgroundOutput, String::new(), 0),
            Note::Unkillable { processes } => {
                (wire::NoteKind::Unkillable, String::new(), processes)
            }
            Note::NoBash => (wire::NoteKind::NoBash, String::new(), 0),
        };
        Self { kind: kind.into(), text, number }
    }
}

impl Note {
    /// `None`: a kind that a newer agent knows and we do not.
    fn from_wire(note: wire::Note) -> Result<Option<Note>, Malformed> {
        let Ok(kind) = wire::NoteKind::try_from(note.kind) else {
            return Ok(None);
        };
        Ok(Some(match kind {
            wire::NoteKind::Unspecified => return Ok(None),
            wire::NoteKind::ShellRestarted => Note::ShellRestarted,
            wire::NoteKind::ShellEnded => Note::ShellEnded,
            wire::NoteKind::JobsKilled => Note::JobsKilled,
            wire::NoteKind::SpoolLimit => Note::SpoolLimit { kept_bytes: note.number },
            wire::NoteKind::SpoolError => Note::SpoolError(short(note.text)?),
            wire::NoteKind::BackgroundOutput => Note::BackgroundOutput,
            wire::NoteKind::Unkillable => Note::Unkillable { processes: note.number },
            wire::NoteKind::NoBash => Note::NoBash,
        }))
    }
}

// === answers ===

impl OutputChunk {
    /// Takes an answer to a read of `max_bytes` at `offset`; anything else is refused.
    pub fn accept(output: wire::Output, offset: u64, max_bytes: u64) -> Result<Self, Malformed> {
        let bytes = output.data.len() as u64;
        if output.offset != offset || bytes > max_bytes {
            return Err(Malformed::Impossible("place of output"));
        }
        Ok(OutputChunk {
            offset,
            data: output.data,
            spooled_bytes: output.spooled_bytes,
            finished: output.finished,
        })
    }
}

impl From<AgentInfo> for wire::Info {
    fn from(info: AgentInfo) -> Self {
        Self {
            epoch: info.epoch.0,
            build: info.build,
            shell_alive: info.shell_alive,
            running: info.running.into_iter().map(CallId::into_string).collect(),
            finished: info.finished,
            uptime_ms: info.uptime.as_millis() as u64,
            kept_outputs: info.kept_outputs,
            entrypoint: info.entrypoint.map(Into::into),
        }
    }
}

impl TryFrom<wire::Info> for AgentInfo {
    type Error = Malformed;

    fn try_from(info: wire::Info) -> Result<Self, Malformed> {
        if info.running.len() > RUNNING_MAX {
            return Err(Malformed::Impossible("number of calls"));
        }
        Ok(AgentInfo {
            epoch: Epoch(info.epoch),
            build: printable(&info.build),
            shell_alive: info.shell_alive,
            running: info.running.iter().map(|id| call_id(id)).collect::<Result<_, _>>()?,
            finished: info.finished,
            uptime: Duration::from_millis(info.uptime_ms),
            kept_outputs: info.kept_outputs,
            entrypoint: info.entrypoint.map(EntrypointInfo::try_from).transpose()?,
        })
    }
}

impl From<EntrypointInfo> for wire::Entrypoint {
    fn from(info: EntrypointInfo) -> Self {
        let end = |end: EntrypointEnd| wire::EntrypointEnd {
            exit: Some(end.exit.into()),
            at_ms: end.at_ms,
        };
        Self {
            command: info.command,
            started_at_ms: info.started_at_ms,
            end: info.end.map(end),
            output_bytes: info.output_bytes,
            tail: info.tail,
        }
    }
}

impl TryFrom<wire::Entrypoint> for EntrypointInfo {
    type Error = Malformed;

    fn try_from(info: wire::Entrypoint) -> Result<Self, Malformed> {
        if info.tail.len() > ENTRYPOINT_TAIL_BYTES_MAX {
            return Err(Malformed::Impossible("output size"));
        }
        let end = |end: wire::EntrypointEnd| {
            let exit = end.exit.ok_or(Malformed::Missing("exit"))?.try_into()?;
            Ok(EntrypointEnd { exit, at_ms: end.at_ms })
        };
        Ok(EntrypointInfo {
            command: one_line(&info.command),
            started_at_ms: info.started_at_ms,
            end: info.end.map(end).transpose()?,
            output_bytes: info.output_bytes,
            tail: info.tail,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(work: Work) -> CallSpec {
        CallSpec { timeout: Duration::from_secs(5), limits: OutputLimits::default(), work }
    }

    #[test]
    fn every_kind_of_work_round_trips() {
        let file = |op| {
            let root = Root { path: "/workspace".into(), writable: true };
            Work::File(FileSpec { in_workdir: true, roots: vec![root], op })
        };
        let exec = ExecSpec {
            argv: vec!["ls".into(), String::new()],
            env: vec![("A".into(), "b".into())],
            cwd: Some("/".into()),
            run_as: RunAs::Root,
            stdin: true,
            pty: Some(PtySize { rows: 24, columns: 80 }),
        };
        let path = || "a".to_owned();
        for work in [
            Work::Shell(ShellSpec::Command("ls".into())),
            Work::Shell(ShellSpec::Restart(None)),
            Work::Shell(ShellSpec::Restart(Some(String::new()))),
            Work::Exec(exec),
            file(FileOp::Read { path: path(), lines: Some((1, -1)) }),
            file(FileOp::Write { path: path(), content: vec![0, 255] }),
            file(FileOp::Edit { path: path(), old: path(), new: path(), replace_all: true }),
            file(FileOp::Glob { pattern: "**".into(), path: None }),
            file(FileOp::Grep { pattern: "x".into(), path: Some(path()) }),
        ] {
            let before = spec(work);
            let wire = before.to_wire(&CallId::generate());
            assert_eq!(CallSpec::try_from(wire).unwrap(), before);
        }
    }

    #[test]
    fn outcomes_round_trip_and_impossible_ones_are_refused() {
        let outcome = Outcome {
            exit: Exit::ShellDied("signal 9".into()),
            total_bytes: 900,
            head: b"head".to_vec(),
            tail: b"tail".to_vec(),
            output_path: Some("/run/sinew/output/call_x.out".into()),
            notes: vec![
                Note::ShellRestarted,
                Note::ShellEnded,
                Note::JobsKilled,
                Note::SpoolLimit { kept_bytes: 3 },
                Note::SpoolError("disk quota exceeded".into()),
                Note::BackgroundOutput,
                Note::Unkillable { processes: 2 },
                Note::NoBash,
            ],
            block: Block::Image { media_type: "image/png".into() },
            started_at_ms: 1,
            ended_at_ms: 2,
        };
        let state = CallState::Finished(Box::new(outcome.clone()));
        assert_eq!(CallState::try_from(wire::State::from(state.clone())), Ok(state));

        let mut lying = wire::Outcome::from(outcome.clone());
        lying.total_bytes = 7;
        assert_eq!(Outcome::try_from(lying), Err(Malformed::Impossible("output size")));
        let info = AgentInfo {
            epoch: Epoch(3),
            build: "b".into(),
            shell_alive: true,
            running: vec![CallId::generate()],
            finished: 1,
            uptime: Duration::from_millis(5),
            kept_outputs: 2,
            entrypoint: Some(EntrypointInfo {
                command: "nginx -g".into(),
                started_at_ms: 1,
                end: Some(EntrypointEnd { exit: Exit::Code(2), at_ms: 9 }),
                output_bytes: 4,
                tail: b"tail".to_vec(),
            }),
        };
        assert_eq!(AgentInfo::try_from(wire::Info::from(info.clone())), Ok(info.clone()));
        let lying = |change: fn(&mut wire::Entrypoint)| {
            let mut wire = wire::Info::from(info.clone());
            change(wire.entrypoint.as_mut().unwrap());
            AgentInfo::try_from(wire)
        };
        let long = lying(|lie| lie.tail = vec![0; ENTRYPOINT_TAIL_BYTES_MAX + 1]);
        assert_eq!(long, Err(Malformed::Impossible("output size")));
        let odd = lying(|lie| lie.command = "a\n\x1b[31m".repeat(999)).unwrap();
        assert_eq!(odd.entrypoint.unwrap().command.chars().count(), COMMAND_CHARS_MAX);

        let mut newer = wire::Outcome::from(outcome);
        newer.notes = vec![wire::Note { kind: 99, text: String::new(), number: 0 }];
        assert_eq!(Outcome::try_from(newer).unwrap().notes, vec![]);
    }
}
