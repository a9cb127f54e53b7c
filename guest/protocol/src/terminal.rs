//! The words of terminals: shells that people open in a sandbox, leave, and come back to.
//!
//! A terminal is no call. It has no time-out, its output has no end, and nobody waits for its
//! outcome: the agent keeps the last part of what it showed, by absolute offsets, and a reader
//! who is too late is told how much it has missed. Known since version
//! [`crate::version::TERMINALS_SINCE`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::call::{Exit, PtySize, RunAs};
use crate::convert::Malformed;
use crate::vt::Modes;
use crate::wire;

/// Terminals alive in one sandbox; a person has a handful.
pub const TERMINALS_MAX: usize = 16;
/// Terminals that have ended and are still told of, so that each viewer learns how.
pub const TERMINALS_ENDED_MAX: usize = 8;
/// Output of one terminal that the agent keeps: some thousand lines.
pub const SCROLLBACK_BYTES: usize = 256 << 10;
/// Longest piece of a terminal's output in one answer.
pub const TERMINAL_CHUNK_BYTES_MAX: usize = 64 << 10;
const NAME_BYTES_MAX: usize = 32;

/// What people call a terminal: a short word that is safe in a path, a table and a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TerminalName(String);

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a terminal's name has 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, and begins \
     with a letter or digit"
)]
pub struct NoTerminalName;

/// What to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TerminalSpec {
    pub name: TerminalName,
    /// Never empty. A name without a slash is looked for in `PATH`.
    pub argv: Vec<String>,
    /// Added to the profile's environment, replacing what has the same name.
    pub env: Vec<(String, String)>,
    /// `None`: the work directory.
    pub cwd: Option<String>,
    pub run_as: RunAs,
    pub size: PtySize,
}

/// Which terminal, among all that this agent has opened. A name comes back, an id does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TerminalId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    pub id: TerminalId,
    pub name: TerminalName,
    pub run_as: RunAs,
    pub size: PtySize,
    /// By the guest's clock, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// Everything it wrote, kept or not.
    pub total_bytes: u64,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedTerminal {
    pub terminal: Terminal,
    /// It was not there before.
    pub created: bool,
}

/// A piece of a terminal's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TerminalChunk {
    /// Where it begins; beyond what was asked for if that is not kept any more.
    pub offset: u64,
    pub data: Vec<u8>,
    /// The modes that everything before `offset` left on. Only known where output is missing.
    pub modes: Modes,
    pub total_bytes: u64,
    /// The terminal has ended like this, and `data` is the last of it.
    pub exit: Option<Exit>,
}

/// A request for output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalRead {
    pub terminal: TerminalId,
    /// Tells the readers on one connection apart. One who keeps up is waited for, for a moment.
    pub viewer: u64,
    pub offset: u64,
    /// How long to wait for bytes beyond `offset`, or for the end.
    pub wait: Duration,
}

// === impl TerminalName ===

impl TerminalName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TerminalName {
    type Err = NoTerminalName;

    fn from_str(text: &str) -> Result<Self, NoTerminalName> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        let begins = text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if begins && text.len() <= NAME_BYTES_MAX && text.bytes().all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(NoTerminalName)
    }
}

impl fmt::Display for TerminalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn name(text: &str) -> Result<TerminalName, Malformed> {
    text.parse().map_err(|_| Malformed::Impossible("terminal name"))
}

fn run_as(as_root: bool) -> RunAs {
    if as_root { RunAs::Root } else { RunAs::Tool }
}

// === the wire ===

impl From<TerminalSpec> for wire::OpenTerminal {
    fn from(spec: TerminalSpec) -> Self {
        Self {
            name: spec.name.0,
            argv: spec.argv,
            env: spec.env.into_iter().map(|(name, value)| wire::EnvVar { name, value }).collect(),
            cwd: spec.cwd,
            as_root: spec.run_as == RunAs::Root,
            size: Some(spec.size.into()),
        }
    }
}

impl TryFrom<wire::OpenTerminal> for TerminalSpec {
    type Error = Malformed;

    fn try_from(open: wire::OpenTerminal) -> Result<Self, Malformed> {
        if open.argv.first().is_none_or(String::is_empty) {
            return Err(Malformed::Missing("program"));
        }
        Ok(TerminalSpec {
            name: name(&open.name)?,
            argv: open.argv,
            env: open.env.into_iter().map(|var| (var.name, var.value)).collect(),
            cwd: open.cwd,
            run_as: run_as(open.as_root),
            size: open.size.ok_or(Malformed::Missing("terminal size"))?.try_into()?,
        })
    }
}

impl From<Terminal> for wire::Terminal {
    fn from(terminal: Terminal) -> Self {
        Self {
            id: terminal.id.0,
            name: terminal.name.0,
            as_root: terminal.run_as == RunAs::Root,
            size: Some(terminal.size.into()),
            started_at_ms: terminal.started_at_ms,
            total_bytes: terminal.total_bytes,
            end: terminal.exit.map(end_to_wire),
        }
    }
}

impl TryFrom<wire::Terminal> for Terminal {
    type Error = Malformed;

    fn try_from(terminal: wire::Terminal) -> Result<Self, Malformed> {
        Ok(Terminal {
            id: TerminalId(terminal.id),
            name: name(&terminal.name)?,
            run_as: run_as(terminal.as_root),
            size: terminal.size.ok_or(Malformed::Missing("terminal size"))?.try_into()?,
            started_at_ms: terminal.started_at_ms,
            total_bytes: terminal.total_bytes,
            exit: terminal.end.map(end_from_wire).transpose()?,
        })
    }
}

impl From<OpenedTerminal> for wire::OpenedTerminal {
    fn from(opened: OpenedTerminal) -> Self {
        Self { terminal: Some(opened.terminal.into()), created: opened.created }
    }
}

impl TryFrom<wire::OpenedTerminal> for OpenedTerminal {
    type Error = Malformed;

    fn try_from(opened: wire::OpenedTerminal) -> Result<Self, Malformed> {
        let terminal = opened.terminal.ok_or(Malformed::Missing("terminal"))?;
        Ok(OpenedTerminal { terminal: terminal.try_into()?, created: opened.created })
    }
}

/// What the agent lists, if an honest one could.
pub fn accept_list(list: wire::TerminalList) -> Result<Vec<Terminal>, Malformed> {
    if list.terminals.len() > TERMINALS_MAX + TERMINALS_ENDED_MAX {
        return Err(Malformed::Impossible("number of terminals"));
    }
    list.terminals.into_iter().map(Terminal::try_from).collect()
}

impl From<TerminalChunk> for wire::TerminalOutput {
    fn from(chunk: TerminalChunk) -> Self {
        Self {
            offset: chunk.offset,
            data: chunk.data,
            modes: chunk.modes.bits(),
            total_bytes: chunk.total_bytes,
            end: chunk.exit.map(end_to_wire),
        }
    }
}

impl TerminalChunk {
    /// Takes an answer to a read at `offset`; one that goes back, or counts wrongly, is refused.
    pub fn accept(output: wire::TerminalOutput, offset: u64) -> Result<Self, Malformed> {
        let bytes = output.data.len();
        let after = output.offset.checked_add(bytes as u64);
        let after = after.ok_or(Malformed::Impossible("place of output"))?;
        if output.offset < offset || after > output.total_bytes {
            return Err(Malformed::Impossible("place of output"));
        }
        if bytes > TERMINAL_CHUNK_BYTES_MAX {
            return Err(Malformed::Impossible("size of output"));
        }
        Ok(TerminalChunk {
            offset: output.offset,
            data: output.data,
            modes: Modes::from_bits(output.modes),
            total_bytes: output.total_bytes,
            exit: output.end.map(end_from_wire).transpose()?,
        })
    }
}

fn end_to_wire(exit: Exit) -> wire::TerminalEnd {
    wire::TerminalEnd { exit: Some(exit.into()) }
}

fn end_from_wire(end: wire::TerminalEnd) -> Result<Exit, Malformed> {
    end.exit.ok_or(Malformed::Missing("exit"))?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal(name: &str) -> Terminal {
        Terminal {
            id: TerminalId(3),
            name: name.parse().unwrap(),
            run_as: RunAs::Root,
            size: PtySize { rows: 24, columns: 80 },
            started_at_ms: 1,
            total_bytes: 2,
            exit: Some(Exit::Signal(9)),
        }
    }

    #[test]
    fn a_name_is_one_plain_word() {
        for good in ["main", "a", "Build-2.log_x", &"x".repeat(32)] {
            assert_eq!(good.parse::<TerminalName>().unwrap().as_str(), good);
        }
        for bad in
            ["", ".", "..", "-x", "a/b", "a b", "a\u{1b}[0m", "ä", "a\n", "a\0", &"x".repeat(33)]
        {
            assert_eq!(bad.parse::<TerminalName>(), Err(NoTerminalName), "{bad:?}");
        }
    }

    #[test]
    fn specifications_and_lists_round_trip() {
        let spec = TerminalSpec {
            name: "main".parse().unwrap(),
            argv: vec!["bash".into(), "-l".into()],
            env: vec![("TERM".into(), "xterm".into())],
            cwd: Some("/".into()),
            run_as: RunAs::Tool,
            size: PtySize { rows: 1, columns: 2 },
        };
        assert_eq!(TerminalSpec::try_from(wire::OpenTerminal::from(spec.clone())), Ok(spec));
        let opened = OpenedTerminal { terminal: terminal("a"), created: true };
        let wired = wire::OpenedTerminal::from(opened.clone());
        assert_eq!(OpenedTerminal::try_from(wired), Ok(opened));
        let list =
            |count: usize| wire::TerminalList { terminals: vec![terminal("a").into(); count] };
        assert_eq!(accept_list(list(24)).unwrap(), vec![terminal("a"); 24]);
        assert_eq!(accept_list(list(25)), Err(Malformed::Impossible("number of terminals")));
        let mut lying = list(1);
        lying.terminals[0].name = "\u{1b}]0;x\u{7}".into();
        assert_eq!(accept_list(lying), Err(Malformed::Impossible("terminal name")));
    }

    #[test]
    fn output_at_an_impossible_place_is_refused() {
        let output = |offset, bytes: usize, total_bytes| wire::TerminalOutput {
            offset,
            data: vec![0; bytes],
            modes: 0,
            total_bytes,
            end: None,
        };
        assert!(TerminalChunk::accept(output(5, 3, 8), 5).is_ok());
        assert!(TerminalChunk::accept(output(9, 3, 12), 5).is_ok(), "some of it is not kept");
        for wrong in [output(4, 3, 8), output(5, 4, 8), output(u64::MAX, 1, u64::MAX)] {
            assert!(TerminalChunk::accept(wrong, 5).is_err());
        }
        let long = output(5, TERMINAL_CHUNK_BYTES_MAX + 1, 1 << 30);
        assert!(TerminalChunk::accept(long, 5).is_err());
    }
}
