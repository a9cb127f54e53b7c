//! What a container is started from, and what is known of one that runs.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use base_types::{Epoch, SandboxId};
use guest_protocol::boot::{self, ToolsAs};
use rustix::process::Pid;
use sandbox_api::Limits;

/// Ids of one sandbox: 0–65,535 inside, `id_base` onwards outside.
pub const ID_RANGE: u32 = 65_536;

/// The agent's descriptor table; the rest follows from here.
pub const LISTEN_FD: RawFd = 3;
pub const OUTPUT_FD: RawFd = 4;
pub(crate) const ENV_FD: RawFd = 5;
pub(crate) const PAYLOAD_FD: RawFd = 6;

/// Directories deep; a path of the kernel's longest has hardly more.
const WORKDIR_DEPTH_MAX: usize = 64;
/// The kernel takes no longer path.
const PATH_BYTES_MAX: usize = 4095;
const NAME_BYTES_MAX: usize = 255;

/// Longer ones do not fit the kernel's field.
const HOSTNAME_BYTES_MAX: usize = 63;

/// One epoch of one sandbox. The launcher has validated every path.
pub struct ContainerSpec<'a> {
    pub sandbox: SandboxId,
    pub epoch: Epoch,
    /// The image's root directory; ids in it are canonical.
    pub image_root: PathBuf,
    /// The volume's directory, holding `u`, `w` and `o`; ids in it are canonical.
    pub volume: PathBuf,
    pub limits: Limits,
    pub hostname: String,
    /// Made by [`crate::sealed_agent`]; shared by all containers.
    pub agent: BorrowedFd<'a>,
    /// A listening unix socket; the host connects to its path from outside.
    pub listener: BorrowedFd<'a>,
    /// Whether tools have the ids of `tool`, or are root.
    pub tools_as: ToolsAs,
    pub tool: ToolUser,
    /// Absolute. Made for `tool` where it is missing.
    pub workdir: String,
    /// The environment of tools.
    pub env: Vec<(String, String)>,
    /// What the agent runs once beside the tools. Without a word it was asked for and there is
    /// none.
    pub entrypoint: Option<Vec<String>>,
}

/// The user whom work directories belong to, by canonical ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolUser {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub name: String,
    pub home: String,
}

impl ToolUser {
    /// The user of images that name none.
    pub fn agent() -> Self {
        Self {
            uid: 1000,
            gid: 1000,
            groups: Vec::new(),
            name: "agent".to_owned(),
            home: "/home/agent".to_owned(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let ids = [self.uid, self.gid];
        if let Some(id) = ids.iter().chain(&self.groups).find(|id| **id >= ID_RANGE) {
            return Err(format!("id {id} is outside of a sandbox's range"));
        }
        if self.groups.len() > boot::TOOL_GROUPS_MAX {
            return Err(format!("{} groups are too many for a user", self.groups.len()));
        }
        if self.name.contains(char::is_control) || self.name.len() > NAME_BYTES_MAX {
            return Err("the user's name cannot be passed".to_owned());
        }
        match is_path(&self.home) {
            true => Ok(()),
            false => Err(format!("`{}` is not a home directory", self.home.escape_debug())),
        }
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= PATH_BYTES_MAX && !text.contains('\0')
}

/// The names of a path, if it is one that leads only downwards.
fn names_of(path: &str) -> Option<Vec<&str>> {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    let names: Vec<&str> = names.collect();
    let plain = |name: &&str| *name != ".." && name.len() <= NAME_BYTES_MAX;
    let fits = is_path(path) && names.len() <= WORKDIR_DEPTH_MAX && names.iter().all(plain);
    fits.then_some(names)
}

/// A container whose agent has been executed.
#[derive(Debug)]
pub struct Started {
    /// The agent's pid on the host. With `start_time` it names the process for good.
    pub init: Pid,
    /// Readable when the container has ended.
    pub pidfd: OwnedFd,
    /// Clock ticks since boot, from `/proc/PID/stat`.
    pub start_time: u64,
}

impl ContainerSpec<'_> {
    pub(crate) fn check(&self) -> Result<(), String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let name = self.hostname.as_bytes();
        if name.is_empty() || name.len() > HOSTNAME_BYTES_MAX || !name.iter().all(|b| allowed(*b)) {
            return Err(format!("`{}` is not a host name", self.hostname));
        }
        if SandboxId::parse(self.sandbox.as_str()).is_none() {
            return Err(format!("`{}` is not a sandbox id", self.sandbox));
        }
        self.tool.check()?;
        if names_of(&self.workdir).is_none() {
            let text = self.workdir.escape_debug();
            return Err(format!("`{text}` is not a work directory: an absolute path without `..`"));
        }
        let words = self.entrypoint.as_deref().unwrap_or_default();
        if !boot::entrypoint_fits(words) || words.iter().any(|word| word.contains('\0')) {
            return Err("the entrypoint is too long, or cannot be passed".to_owned());
        }
        let bad = |(name, value): &&(String, String)| {
            name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
        };
        match self.env.iter().find(bad) {
            Some((name, _)) => Err(format!("environment variable `{name}` cannot be passed")),
            None => Ok(()),
        }
    }

    /// The names on the way to the work directory. Empty where the path is none, which
    /// [`Self::check`] has refused.
    pub(crate) fn workdir_names(&self) -> Vec<&str> {
        names_of(&self.workdir).unwrap_or_default()
    }

    pub(crate) fn env_block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in &self.env {
            block.extend_from_slice(name.as_bytes());
            block.push(b'=');
            block.extend_from_slice(value.as_bytes());
            block.push(0);
        }
        block
    }
}
