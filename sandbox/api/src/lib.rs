//! What a sandbox is to the rest of the system, whatever tier it has, and the suite that every
//! tier's driver passes.
//!
//! A driver is asked by id only: sandbox, volume, image and profile are names that the privileged
//! side looks up in its own configuration. Nothing here is a host path, a uid or an option.

#![forbid(unsafe_code)]

pub mod contract;
mod error;
mod spec;

use async_trait::async_trait;
use base_types::{Epoch, SandboxId, VolumeId};
pub use guest_protocol as guest;
use guest_protocol::client::GuestClient;

pub use error::{ConnectError, CreateError, DestroyError, DriverError, StopError};
pub use spec::{
    Image, Limits, RestoredFrom, Sandbox, SandboxSpec, SandboxStatus, SandboxUse, Tier, Vitality,
};

/// One way to run sandboxes. A driver may be called for many sandboxes at once; for one sandbox
/// its owner calls it one call at a time.
#[async_trait]
pub trait SandboxDriver: Send + Sync + 'static {
    fn tier(&self) -> Tier;

    /// The image that a profile's image name stands for now.
    async fn image(&self, name: &str) -> Result<Image, DriverError>;

    /// Starts the epoch that `spec` names, on the volume that it names. Creates the volume where it
    /// does not exist yet, and says so in [`Sandbox::restored_from`]: a volume that should have been
    /// there and is not must never pass for an old one.
    ///
    /// Idempotent per sandbox and epoch: a second call answers with the running sandbox. An older
    /// epoch that still runs is stopped first; a newer one refuses the call.
    async fn create(&self, spec: &SandboxSpec) -> Result<Sandbox, CreateError>;

    /// Opens a connection to the guest agent of this epoch. Many may be open at once.
    async fn connect(&self, sandbox: &SandboxId, epoch: Epoch)
    -> Result<GuestClient, ConnectError>;

    /// Ends every process of the sandbox; the volume stays. Succeeds when nothing runs.
    async fn stop(&self, sandbox: &SandboxId) -> Result<(), StopError>;

    /// Ends every process and removes the volume. Succeeds when the sandbox is unknown: the sweep
    /// calls it blindly.
    async fn destroy(&self, sandbox: &SandboxId, volume: &VolumeId) -> Result<(), DestroyError>;

    /// `None` when the driver knows nothing of it.
    async fn status(&self, sandbox: &SandboxId) -> Result<Option<SandboxStatus>, DriverError>;

    /// Everything this installation has, running or not, volumes without processes included.
    async fn list(&self) -> Result<Vec<SandboxStatus>, DriverError>;

    /// Returns when no process of this epoch is left, with what is known of the end.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only watches.
    async fn ended(&self, sandbox: &SandboxId, epoch: Epoch) -> Result<Vitality, DriverError>;
}
