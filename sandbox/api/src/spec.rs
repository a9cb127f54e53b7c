//! The nouns of the driver contract.

use std::fmt;
use std::str::FromStr;

use base_types::{ByteSize, Epoch, ImageId, ProfileName, SandboxId, SessionId, TenantId, VolumeId};
use serde::{Deserialize, Serialize};

/// How strong the wall is, and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Microvm,
    /// Shares the host's kernel: the weaker wall.
    Container,
    Isolate,
}

/// One epoch of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub sandbox: SandboxId,
    pub epoch: Epoch,
    pub volume: VolumeId,
    /// Whether the volume must exist already: true from the second epoch on.
    pub volume_exists: bool,
    pub image: ImageId,
    /// Shape and limits are read from the privileged side's own copy of this profile.
    pub profile: ProfileName,
    /// For the record and for labels; decide nothing.
    pub session: SessionId,
    pub tenant: TenantId,
}

/// A sandbox that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    pub sandbox: SandboxId,
    pub epoch: Epoch,
    pub restored_from: RestoredFrom,
}

/// What the sandbox's files come from (design invariant 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoredFrom {
    /// A new volume: nothing but the image.
    Nothing,
    /// The volume as the epoch before left it.
    SameVolume,
    /// This epoch ran already; the call found it.
    StillRunning,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    pub sandbox: SandboxId,
    pub volume: VolumeId,
    pub session: Option<SessionId>,
    pub vitality: Vitality,
    pub usage: SandboxUse,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Vitality {
    Running {
        epoch: Epoch,
    },
    /// No process is left; the volume is there.
    Stopped {
        epoch: Epoch,
        /// Why, where it is known: "out of memory (limit 1GiB)", "stopped", "agent exited".
        why: Option<String>,
    },
    /// There is a volume and no record of a sandbox on it.
    VolumeOnly,
}

/// What a sandbox uses at the moment; `None` where it cannot be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxUse {
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub cpu_usec: Option<u64>,
}

/// The named limits of a sandbox's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    pub memory: ByteSize,
    pub pids: u32,
    pub disk: ByteSize,
}

/// A root filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub id: ImageId,
    pub name: String,
}

// === impl Tier ===

impl Tier {
    pub const ALL: [Tier; 3] = [Tier::Microvm, Tier::Container, Tier::Isolate];

    pub fn name(self) -> &'static str {
        match self {
            Tier::Microvm => "microvm",
            Tier::Container => "container",
            Tier::Isolate => "isolate",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a tier: microvm, container or isolate")]
pub struct ParseTierError(String);

impl FromStr for Tier {
    type Err = ParseTierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Tier::ALL
            .into_iter()
            .find(|tier| tier.name() == text)
            .ok_or_else(|| ParseTierError(text.to_owned()))
    }
}
