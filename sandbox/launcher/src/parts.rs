//! What the launcher is composed of: who keeps images, volumes and profiles, and who starts
//! containers. The binary puts the real ones in; this crate names none of them.
//!
//! All of it blocks and runs on the launcher's worker threads. Everything that removes must
//! succeed when there is nothing left to remove: it is called again after a crash.

use std::any::Any;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use base_types::{ByteSize, Epoch, ImageId, ProfileName, SandboxId, VolumeId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_api::{Image, Limits, SandboxUse, Tier};
use serde::{Deserialize, Serialize};

pub use crate::guest::{Guest, ImageWords, User};

/// Why a part could not do it, with its causes spelled out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// A limit of this machine or of its configuration, not a defect.
    #[error("{0}")]
    NoRoom(String),
    #[error("{0}")]
    Failed(String),
}

pub struct Parts {
    /// How many starts are prepared ahead.
    pub ahead: usize,
    pub images: Box<dyn Images>,
    pub volumes: Box<dyn Volumes>,
    pub containers: Box<dyn Containers>,
    pub profiles: Box<dyn Profiles>,
}

pub trait Profiles: Send + Sync {
    /// The shape of this profile as the root-owned configuration has it now.
    fn shape(&self, name: &ProfileName) -> Result<Option<Shape>, PartError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub tier: Tier,
    pub limits: Limits,
    /// `None`: as the image says.
    pub tools_as: Option<ToolsAs>,
    /// `None`: as the image says.
    pub workdir: Option<String>,
    pub entrypoint: Entrypoint,
    /// Variables of the guest's environment, over the image's. Placeholders at most; never a
    /// secret.
    pub env: Vec<(String, String)>,
}

/// What the guest agent runs once, beside the tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrypoint {
    None,
    OfImage,
    Command(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolsAs {
    User,
    /// Root of the sandbox's own user namespace.
    Root,
}

pub trait Images: Send + Sync {
    /// The image that this name stands for now.
    fn named(&self, name: &str) -> Result<Option<Image>, PartError>;

    /// Opens an image and marks it as in use until the result is dropped.
    fn open(&self, id: &ImageId) -> Result<Option<OpenImage>, PartError>;
}

pub struct OpenImage {
    pub rootfs: PathBuf,
    /// Nothing, where the image was built here.
    pub words: ImageWords,
    /// Held for as long as the sandbox runs.
    pub in_use: Box<dyn Any + Send>,
}

pub trait Volumes: Send + Sync {
    fn exists(&self, volume: &VolumeId) -> Result<bool, PartError>;

    /// Makes what every new volume needs, ahead of the one that will.
    fn prepare(&self) -> Result<Box<dyn PreparedVolume>, PartError>;

    /// Readies an existing volume for its next epoch, under this quota. The directory is what
    /// [`PreparedContainer::start`] takes.
    fn open(&self, volume: &VolumeId, quota: ByteSize) -> Result<PathBuf, PartError>;

    /// The epoch has begun: what `open` allowed beyond the quota, so that a full volume can be
    /// used again, is taken back.
    fn opened(&self, volume: &VolumeId, quota: ByteSize) -> Result<(), PartError>;

    fn destroy(&self, volume: &VolumeId) -> Result<(), PartError>;

    fn used(&self, volume: &VolumeId) -> Result<Option<u64>, PartError>;

    /// Every volume of this installation.
    fn list(&self) -> Result<Vec<VolumeId>, PartError>;

    /// Whose the volume is, where that can be read.
    fn owner(&self, volume: &VolumeId) -> Option<SandboxId>;

    /// Called several times a second: makes room before guests need it. `thorough` now and then.
    fn tend(&self, thorough: bool) -> Result<(), PartError>;

    /// Lets go of the devices behind the volumes. Nothing runs any more.
    fn close(&self) -> Result<(), PartError>;
}

/// An empty volume that is nobody's. Dropped, it is gone.
pub trait PreparedVolume: Send {
    /// Makes it this volume, which must not exist, and writes down whose it is.
    fn give(
        self: Box<Self>,
        volume: &VolumeId,
        owner: &SandboxId,
        quota: ByteSize,
    ) -> Result<(), PartError>;
}

pub trait Containers: Send + Sync {
    /// Makes what every start needs, ahead of the one that will, for the ids from `id_base` on.
    fn prepare(&self, id_base: u32) -> Result<Box<dyn PreparedContainer>, PartError>;

    /// Finds what must be watched of a container that an earlier launcher started.
    fn attach(&self, sandbox: &SandboxId, limits: &Limits) -> Result<Option<OomWatch>, PartError>;

    /// Ends every process of the sandbox and removes what `start` made. `init` is its first
    /// process, where that is known; a child of ours is reaped.
    fn end(&self, sandbox: &SandboxId, init: Option<BorrowedFd<'_>>) -> Result<(), PartError>;

    fn used(&self, sandbox: &SandboxId) -> SandboxUse;

    /// Removes what belongs to this installation and to none of `keep`; says what it was.
    fn sweep(&self, keep: &[SandboxId]) -> Result<Vec<String>, PartError>;

    /// Removes what all sandboxes share. None is left.
    fn close(&self) -> Result<(), PartError>;
}

/// What a container needs that depends on no sandbox. Dropped, it is gone.
pub trait PreparedContainer: Send {
    /// Starts the one container that it is for. After an error nothing of it is left.
    fn start(self: Box<Self>, start: StartContainer<'_>) -> Result<Started, PartError>;
}

pub struct StartContainer<'a> {
    pub sandbox: &'a SandboxId,
    pub epoch: Epoch,
    pub image: PathBuf,
    pub volume: PathBuf,
    pub shape: &'a Shape,
    pub guest: &'a Guest,
    /// The guest agent accepts here. It alone keeps it: with a copy in the launcher, a connection
    /// to a sandbox whose agent is gone would be taken by the kernel and answered by nobody.
    pub listener: UnixListener,
}

pub struct Started {
    pub init: Init,
    pub pidfd: OwnedFd,
    pub oom: Option<OomWatch>,
}

/// The first process of a sandbox, so that another process with its number is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    pub pid: u32,
    /// Clock ticks between the machine's start and the process's.
    pub start_time: u64,
}

/// Becomes ready when the sandbox may have run out of memory.
pub struct OomWatch {
    pub ready: File,
    pub how: OomReady,
    /// Whether it really has; called when `ready` is.
    pub happened: Box<dyn Fn(&File) -> bool + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomReady {
    /// An eventfd or an inotify descriptor.
    Readable,
    /// A kernel file that announces a change as urgent data.
    Priority,
}

// === impl OomWatch ===

impl OomWatch {
    /// Whether `ready` is, at this moment.
    pub fn is_ready(&self) -> bool {
        let wanted = match self.how {
            OomReady::Readable => PollFlags::IN,
            OomReady::Priority => PollFlags::PRI,
        };
        let mut poll_for = [PollFd::new(&self.ready, wanted)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut poll_for, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}
