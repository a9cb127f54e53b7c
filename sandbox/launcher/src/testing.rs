//! Stand-ins for the parts: volumes are names in a list, containers are `sleep` processes. What is
//! tested with them is what the launcher itself decides; the real parts are tested through the
//! real binary by the driver's contract.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base_types::{ByteSize, Epoch, ImageId, ProfileName, SandboxId, VolumeId};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox_api::{Image, Limits, SandboxSpec, SandboxUse, Tier};

use crate::jobs::Jobs;
use crate::layout::Layout;
use crate::lock;
use crate::parts::*;
use crate::ranges::{RANGE_FIRST, Ranges};
use crate::sandboxes::{RecoverError, Recovered, Sandboxes, Settings, start_time};

pub const SERVE_UID: u32 = 64_500;

/// What outlives a launcher: disks and processes.
#[derive(Default)]
pub struct World {
    pub volumes: Mutex<BTreeMap<VolumeId, Option<SandboxId>>>,
    pub processes: Mutex<BTreeMap<SandboxId, Child>>,
    /// Answers the next start, if it is to fail.
    pub next_start: Mutex<Option<PartError>>,
    /// Answers what comes right after the next start, if it is to fail.
    pub next_opened: Mutex<Option<PartError>>,
    /// Answers the next end, if it is to fail.
    pub next_end: Mutex<Option<PartError>>,
    /// Answers the next preparation of a container, if it is to fail.
    pub next_prepare: Mutex<Option<PartError>>,
    /// What is prepared and nobody's at this moment, and what ever was.
    pub prepared: AtomicUsize,
    pub ever_prepared: AtomicUsize,
    /// Written to by a test: the sandbox runs out of memory.
    pub shortages: Mutex<BTreeMap<SandboxId, std::io::PipeWriter>>,
}

/// A data directory, and worlds to run launchers in.
pub struct Installation {
    pub dir: tempfile::TempDir,
    pub world: Arc<World>,
    /// How many starts its launchers prepare ahead.
    pub ahead: usize,
}

impl Installation {
    /// `None` where there is no root to be.
    pub fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP {test}: not root");
            return None;
        }
        Some(Self { dir: tempfile::tempdir().unwrap(), world: Arc::default(), ahead: 0 })
    }

    pub fn layout(&self) -> Layout {
        Layout::open(&self.dir.path().join("data"), SERVE_UID).unwrap()
    }

    /// A launcher; a second one is what comes after the first was killed.
    pub fn launch(&self) -> Result<(Arc<Sandboxes>, Recovered, Jobs), RecoverError> {
        let jobs = Jobs::start().unwrap();
        let ranges = Ranges::open(&self.dir.path().join("idmap"), RANGE_FIRST, 8).unwrap();
        let part = || Part(self.world.clone());
        let settings = Settings {
            layout: self.layout(),
            serve_gid: SERVE_UID,
            ranges,
            parts: Parts {
                ahead: self.ahead,
                images: Box::new(part()),
                volumes: Box::new(part()),
                containers: Box::new(part()),
                profiles: Box::new(part()),
            },
        };
        let (sandboxes, recovered) = Sandboxes::open(settings, jobs.clone())?;
        Ok((sandboxes, recovered, jobs))
    }

    /// Ranges of user ids in use.
    pub fn ranges(&self) -> usize {
        let entries = std::fs::read_dir(self.dir.path().join("idmap")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().file_name() != "lock").count()
    }

    pub fn sockets(&self) -> usize {
        std::fs::read_dir(self.layout().agents()).unwrap().count()
    }
}

// Not of the world: the threads of its launchers hold that for as long as the process lives.
impl Drop for Installation {
    fn drop(&mut self) {
        for child in lock(&self.world.processes).values_mut() {
            child.kill().and_then(|()| child.wait()).unwrap();
        }
    }
}

pub fn first() -> SandboxSpec {
    SandboxSpec {
        sandbox: SandboxId::generate(),
        epoch: Epoch::FIRST,
        volume: VolumeId::generate(),
        volume_exists: false,
        image: "image".into(),
        profile: "default".into(),
        session: "session".into(),
        tenant: "tenant".into(),
    }
}

pub fn next(spec: &SandboxSpec) -> SandboxSpec {
    SandboxSpec { epoch: spec.epoch.next(), volume_exists: true, ..spec.clone() }
}

struct Part(Arc<World>);

impl Images for Part {
    fn named(&self, name: &str) -> Result<Option<Image>, PartError> {
        Ok((name == "default").then(|| Image { id: "image".into(), name: name.to_owned() }))
    }

    fn open(&self, id: &ImageId) -> Result<Option<OpenImage>, PartError> {
        let words = ImageWords::default();
        let image = OpenImage { rootfs: PathBuf::from("/"), words, in_use: Box::new(()) };
        Ok((id.as_str() == "image").then_some(image))
    }
}

impl Profiles for Part {
    fn shape(&self, name: &ProfileName) -> Result<Option<Shape>, PartError> {
        Ok((name.as_str() == "default").then(|| Shape {
            tier: Tier::Container,
            limits: Limits {
                cpu_millis: 1000,
                memory: ByteSize::mib(64),
                pids: 64,
                disk: ByteSize::mib(64),
            },
            tools_as: None,
            workdir: None,
            entrypoint: Entrypoint::None,
            env: Vec::new(),
        }))
    }
}

impl Volumes for Part {
    fn exists(&self, volume: &VolumeId) -> Result<bool, PartError> {
        Ok(lock(&self.0.volumes).contains_key(volume))
    }

    fn prepare(&self) -> Result<Box<dyn PreparedVolume>, PartError> {
        Ok(Box::new(StandIn::new(&self.0)))
    }

    fn open(&self, _volume: &VolumeId, _quota: ByteSize) -> Result<PathBuf, PartError> {
        Ok(PathBuf::from("/nowhere"))
    }

    fn opened(&self, _volume: &VolumeId, _quota: ByteSize) -> Result<(), PartError> {
        lock(&self.0.next_opened).take().map_or(Ok(()), Err)
    }

    fn destroy(&self, volume: &VolumeId) -> Result<(), PartError> {
        lock(&self.0.volumes).remove(volume);
        Ok(())
    }

    fn used(&self, _volume: &VolumeId) -> Result<Option<u64>, PartError> {
        Ok(Some(4096))
    }

    fn list(&self) -> Result<Vec<VolumeId>, PartError> {
        Ok(lock(&self.0.volumes).keys().cloned().collect())
    }

    fn owner(&self, volume: &VolumeId) -> Option<SandboxId> {
        lock(&self.0.volumes).get(volume).cloned().flatten()
    }

    fn tend(&self, _thorough: bool) -> Result<(), PartError> {
        Ok(())
    }

    fn close(&self) -> Result<(), PartError> {
        Ok(())
    }
}

/// Something prepared, which is counted for as long as it is nobody's.
struct StandIn(Arc<World>);

impl StandIn {
    fn new(world: &Arc<World>) -> Self {
        world.prepared.fetch_add(1, Ordering::Relaxed);
        world.ever_prepared.fetch_add(1, Ordering::Relaxed);
        Self(world.clone())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.0.prepared.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PreparedVolume for StandIn {
    fn give(
        self: Box<Self>,
        volume: &VolumeId,
        owner: &SandboxId,
        _quota: ByteSize,
    ) -> Result<(), PartError> {
        lock(&self.0.volumes).insert(volume.clone(), Some(owner.clone()));
        Ok(())
    }
}

impl PreparedContainer for StandIn {
    fn start(self: Box<Self>, start: StartContainer<'_>) -> Result<Started, PartError> {
        if let Some(error) = lock(&self.0.next_start).take() {
            return Err(error);
        }
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        let pidfd = open_pidfd(pid);
        lock(&self.0.processes).insert(start.sandbox.clone(), child);
        let init = Init { pid, start_time: start_time(pid).unwrap() };
        let oom = Part(self.0.clone()).attach(start.sandbox, &start.shape.limits)?;
        Ok(Started { init, pidfd, oom })
    }
}

impl Containers for Part {
    fn prepare(&self, _id_base: u32) -> Result<Box<dyn PreparedContainer>, PartError> {
        match lock(&self.0.next_prepare).take() {
            Some(error) => Err(error),
            None => Ok(Box::new(StandIn::new(&self.0))),
        }
    }

    fn attach(&self, sandbox: &SandboxId, _limits: &Limits) -> Result<Option<OomWatch>, PartError> {
        let (ready, announce) = std::io::pipe().unwrap();
        lock(&self.0.shortages).insert(sandbox.clone(), announce);
        Ok(Some(OomWatch {
            ready: File::from(OwnedFd::from(ready)),
            how: OomReady::Readable,
            happened: Box::new(|mut ready| {
                std::io::Read::read(&mut ready, &mut [0]).is_ok_and(|length| length == 1)
            }),
        }))
    }

    fn end(&self, sandbox: &SandboxId, init: Option<BorrowedFd<'_>>) -> Result<(), PartError> {
        if let Some(error) = lock(&self.0.next_end).take() {
            return Err(error);
        }
        if let Some(init) = init {
            pidfd_send_signal(init, Signal::KILL).unwrap_or_default();
        }
        if let Some(mut child) = lock(&self.0.processes).remove(sandbox) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        Ok(())
    }

    fn used(&self, _sandbox: &SandboxId) -> SandboxUse {
        SandboxUse { pids: Some(1), ..Default::default() }
    }

    fn sweep(&self, keep: &[SandboxId]) -> Result<Vec<String>, PartError> {
        let keep: BTreeSet<_> = keep.iter().collect();
        let all: Vec<_> = lock(&self.0.processes).keys().cloned().collect();
        let orphans: Vec<_> = all.into_iter().filter(|id| !keep.contains(id)).collect();
        for orphan in &orphans {
            self.end(orphan, None)?;
        }
        Ok(orphans.into_iter().map(SandboxId::into_string).collect())
    }

    fn close(&self) -> Result<(), PartError> {
        Ok(())
    }
}

impl World {
    /// The agent ends by itself.
    pub fn end(&self, sandbox: &SandboxId) {
        let pid = lock(&self.processes).get(sandbox).unwrap().id();
        pidfd_send_signal(open_pidfd(pid).as_fd(), Signal::KILL).unwrap();
    }
}

fn open_pidfd(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap()
}
