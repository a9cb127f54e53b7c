//! What a container is started from, and what is known of one that runs.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use base_types::{Epoch, SandboxId};
use guest_protocol::boot::ToolsAs;
use rustix::process::Pid;
use sandbox_api::Limits;

/// Ids of one sandbox: 0–65,535 inside, `id_base` onwards outside.
pub const ID_RANGE: u32 = 65_536;

/// The agent's descriptor table; the rest follows from here.
pub const LISTEN_FD: RawFd = 3;
pub const OUTPUT_FD: RawFd = 4;
pub(crate) const ENV_FD: RawFd = 5;
pub(crate) const PAYLOAD_FD: RawFd = 6;

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
    /// First of the [`ID_RANGE`] host ids that are this sandbox's alone.
    pub id_base: u32,
    pub limits: Limits,
    pub hostname: String,
    /// Made by [`crate::sealed_agent`]; shared by all containers.
    pub agent: BorrowedFd<'a>,
    /// A listening unix socket; the host connects to its path from outside.
    pub listener: BorrowedFd<'a>,
    /// From [`crate::loopback_only`].
    pub network: BorrowedFd<'a>,
    pub tools_as: ToolsAs,
    /// The profile's environment of tools.
    pub env: Vec<(String, String)>,
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
        if self.id_base < ID_RANGE || self.id_base.checked_add(ID_RANGE).is_none() {
            return Err(format!("{} is not the base of an id range", self.id_base));
        }
        if SandboxId::parse(self.sandbox.as_str()).is_none() {
            return Err(format!("`{}` is not a sandbox id", self.sandbox));
        }
        let bad = |(name, value): &&(String, String)| {
            name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
        };
        match self.env.iter().find(bad) {
            Some((name, _)) => Err(format!("environment variable `{name}` cannot be passed")),
            None => Ok(()),
        }
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
