//! Terminals of a session's sandbox: the request to attach to one, and what is told of them.
//!
//! `POST …/terminals/{name}` carries a [`TerminalRequest`] and asks to upgrade to
//! [`TERMINAL_PROTOCOL`]; the terminal is opened if there is none of this name. After `101` the
//! frames of `exec` follow: [`super::Frame::Attached`], what was shown before, then
//! [`super::Frame::Live`]. A client that closes the connection leaves the shell running.

use base_types::{Epoch, Timestamp};
use serde::{Deserialize, Serialize};

use super::TerminalSize;

pub const TERMINAL_PROTOCOL: &str = "sinew-terminal/1";

/// All but `size` is for a terminal that is opened; one that is there stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalRequest {
    /// As root of the sandbox's own user namespace, instead of the tools' user.
    #[serde(default)]
    pub root: bool,
    /// What the login shell runs, instead of asking for commands.
    #[serde(default)]
    pub command: Option<String>,
    #[serde(default)]
    pub env: Vec<(String, String)>,
    #[serde(default)]
    pub size: TerminalSize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalAttached {
    pub name: String,
    /// Tells it from others that had or will have this name, in this epoch.
    pub id: u64,
    pub root: bool,
    /// It was not there before.
    pub created: bool,
    /// By the sandbox's clock.
    pub started_at: Timestamp,
    /// This one included.
    pub viewers: u32,
    pub epoch: Epoch,
}

/// Output that is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputGap {
    pub skipped_bytes: u64,
    /// Bits of the modes that everything before left on.
    pub modes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalList {
    /// Oldest first. Empty while the sandbox does not run.
    pub terminals: Vec<TerminalView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalView {
    pub name: String,
    pub id: u64,
    pub root: bool,
    /// `running` or `ended`.
    pub state: String,
    pub exit_code: Option<i32>,
    /// By the sandbox's clock.
    pub started_at: Timestamp,
    pub rows: u16,
    pub columns: u16,
    /// Everything it ever showed.
    pub output_bytes: u64,
    /// Who is attached now.
    pub viewers: u32,
    pub epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalClosed {
    pub name: String,
    pub id: u64,
    pub closed: bool,
}
