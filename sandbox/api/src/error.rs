//! Why a driver could not do what it was asked.

use base_types::{Epoch, ImageId, ProfileName, SandboxId, VolumeId};
use guest_protocol::client::ConnectError as HelloError;

/// The driver itself is out of order; says nothing about the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("the launcher does not answer")]
    Unreachable(#[source] std::io::Error),
    #[error("the launcher serves another `sinew serve` (generation {theirs})")]
    Superseded { theirs: u64 },
    #[error(
        "the launcher speaks protocol {theirs}, this program {ours}: restart the older of them"
    )]
    Version { theirs: u32, ours: u32 },
    #[error(
        "there is no image `{0}`: `sinew image ls` shows what there is, `sinew image build` and \
         `sinew image import` make one"
    )]
    NoSuchImage(String),
    /// The launcher's own words, with their causes.
    #[error("{0}")]
    Launcher(String),
}

#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(
        "image {0}, which the session began with, is not in the image cache any more: import or \
         build the same one again (`sinew image import`, `sinew image build`)"
    )]
    NoSuchImage(ImageId),
    #[error(
        "profile `{0}` is not in the launcher's configuration: restart the launcher after changing it"
    )]
    NoSuchProfile(ProfileName),
    /// Restore or fail: a lost volume must not be replaced by an empty one in silence.
    #[error("volume {0} is gone")]
    VolumeGone(VolumeId),
    #[error("sandbox {sandbox} already runs in epoch {running}, later than {asked}")]
    OlderEpoch { sandbox: SandboxId, running: Epoch, asked: Epoch },
    #[error("no room for another sandbox: {0}")]
    NoRoom(String),
    #[error("start sandbox {sandbox}: {why}")]
    Start { sandbox: SandboxId, why: String },
    #[error(transparent)]
    Driver(#[from] DriverError),
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("sandbox {sandbox} does not run in epoch {epoch}")]
    NotRunning { sandbox: SandboxId, epoch: Epoch },
    #[error("connect to the agent of sandbox {sandbox}")]
    Agent {
        sandbox: SandboxId,
        #[source]
        source: HelloError,
    },
    #[error(transparent)]
    Driver(#[from] DriverError),
}

#[derive(Debug, thiserror::Error)]
pub enum StopError {
    #[error("processes of sandbox {sandbox} do not end: {why}")]
    Stuck { sandbox: SandboxId, why: String },
    #[error(transparent)]
    Driver(#[from] DriverError),
}

#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    #[error("processes of sandbox {sandbox} do not end: {why}")]
    Stuck { sandbox: SandboxId, why: String },
    #[error("remove volume {volume}: {why}")]
    Volume { volume: VolumeId, why: String },
    #[error(transparent)]
    Driver(#[from] DriverError),
}
