//! Starting an epoch. Each step has its undo; after a failure nothing of the attempt is left, but
//! for a record that says why when there was a sandbox before.

use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use base_types::{Epoch, SandboxId, VolumeId};
use sandbox_api::{RestoredFrom, Sandbox, SandboxSpec, Tier};

use super::end::end_waiters;
use super::{Live, RUNNING_MAX, Sandboxes, Slot, Work};
use crate::lock;
use crate::parts::{Guest, OomWatch, OpenImage, PreparedContainer, Shape, StartContainer};
use crate::ranges::TakeRangeError;
use crate::table::{IdRange, Phase, Record};
use crate::wire::Refusal;

/// The longest text that is only recorded: ids the brain chose, names from the configuration.
const LABEL_BYTES_MAX: usize = 256;

/// What happened to the volume on the way, for the undo.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Volume {
    MadeNow,
    WasThere,
}

/// From what one container is started.
struct Start<'a> {
    shape: &'a Shape,
    image: OpenImage,
    /// `None`: it is made now.
    prepared: Option<Box<dyn PreparedContainer>>,
}

impl Sandboxes {
    pub fn create(&self, spec: &SandboxSpec) -> Result<Sandbox, Refusal> {
        check_ids(spec)?;
        let _nothing_is_prepared_meanwhile = self.stock.starting();
        let shape = self.parts.profiles.shape(&spec.profile)?.ok_or(Refusal::NoSuchProfile)?;
        if shape.tier != Tier::Container {
            let why = format!("profile `{}` is for the {} tier", spec.profile, shape.tier);
            return Err(Refusal::Failed { why });
        }
        let image = self.parts.images.open(&spec.image)?.ok_or(Refusal::NoSuchImage)?;
        self.with_slot(&spec.sandbox, |slot, work| {
            let before = slot.snapshot();
            let result = self.create_in(slot, work, spec, &shape, image);
            if result.is_err() && before.is_none() {
                self.forget_if_empty(&spec.sandbox);
            }
            result
        })?
    }

    fn create_in(
        &self,
        slot: &Slot,
        mut work: MutexGuard<'_, Work>,
        spec: &SandboxSpec,
        shape: &Shape,
        image: OpenImage,
    ) -> Result<Sandbox, Refusal> {
        let before = slot.snapshot();
        if let Some(record) = &before {
            if let Some(running) = already(record, spec)? {
                return Ok(running);
            }
            self.end_in(slot, &mut work, "a later epoch was started")?;
        }
        if self.running.load(Ordering::Relaxed) >= RUNNING_MAX {
            let why = format!("{RUNNING_MAX} sandboxes run on this machine");
            return Err(Refusal::NoRoom { why });
        }
        self.own_volume(&spec.volume, &spec.sandbox)?;
        let started = self.begin(slot, spec, shape, image, before.as_ref());
        match started {
            Ok((live, restored_from)) => {
                self.goes_live(&mut work, live);
                Ok(Sandbox { sandbox: spec.sandbox.clone(), epoch: spec.epoch, restored_from })
            }
            Err(refusal) => {
                if before.is_none() {
                    lock(&self.owners).remove(&spec.volume);
                }
                Err(refusal)
            }
        }
    }

    /// From "nothing of this epoch exists" to "it runs and is watched".
    fn begin(
        &self,
        slot: &Slot,
        spec: &SandboxSpec,
        shape: &Shape,
        image: OpenImage,
        before: Option<&Record>,
    ) -> Result<(Live, RestoredFrom), Refusal> {
        let (range, prepared) = self.ready_container(&spec.sandbox)?;
        let ever_ran = before.is_some_and(|record| record.ever_ran);
        let record = new_record(spec, shape, range, ever_ran);
        let mut volume = Volume::WasThere;
        let result = self
            .record(slot, record.clone())
            .and_then(|()| self.ready_volume(spec, shape, before, &mut volume))
            .and_then(|restored_from| {
                let live = self.start_container(slot, &record, Start { shape, image, prepared });
                live.map(|live| (live, restored_from))
            });
        if let Err(refusal) = &result {
            tracing::warn!(sandbox = %spec.sandbox, epoch = %spec.epoch, %refusal, "did not start");
            self.undo(slot, record, range, volume, before.is_some(), refusal);
        }
        result
    }

    /// Makes the volume or finds it, and says which. A volume that should be there and is not is
    /// never replaced by an empty one.
    fn ready_volume(
        &self,
        spec: &SandboxSpec,
        shape: &Shape,
        before: Option<&Record>,
        volume: &mut Volume,
    ) -> Result<RestoredFrom, Refusal> {
        if self.parts.volumes.exists(&spec.volume)? {
            // Left from a start of this sandbox that failed. Without a record nobody knows what
            // is in it, so it never passes for new.
            let is_new = before.is_some_and(|record| !record.ever_ran);
            return Ok(if is_new { RestoredFrom::Nothing } else { RestoredFrom::SameVolume });
        }
        if spec.volume_exists || before.is_some_and(|record| record.ever_ran) {
            return Err(Refusal::VolumeGone);
        }
        let prepared = match self.stock.volume() {
            Some(prepared) => prepared,
            None => self.parts.volumes.prepare()?,
        };
        prepared.give(&spec.volume, &spec.sandbox, shape.limits.disk)?;
        *volume = Volume::MadeNow;
        Ok(RestoredFrom::Nothing)
    }

    fn start_container(
        &self,
        slot: &Slot,
        record: &Record,
        Start { shape, image, prepared }: Start<'_>,
    ) -> Result<Live, Refusal> {
        let volume = self.parts.volumes.open(&record.volume, shape.limits.disk)?;
        let listener =
            self.layout.bind_agent(&record.sandbox, self.serve_gid).map_err(|error| {
                Refusal::Failed { why: format!("open the agent's socket: {error}") }
            })?;
        let Phase::Starting { range } = record.phase else {
            return Err(Refusal::Failed { why: "the record is not of a start".to_owned() });
        };
        let guest = Guest::of(shape, &image.words);
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => self.parts.containers.prepare(range.base())?,
        };
        let started = prepared.start(StartContainer {
            sandbox: &record.sandbox,
            epoch: record.epoch,
            image: image.rootfs,
            volume,
            shape,
            guest: &guest,
            listener,
        })?;
        let init = Arc::new(started.pidfd);
        let oom = started.oom.map(Arc::new);
        let phase = Phase::Running { range, init: started.init, boot: self.boot.clone() };
        let quota = self.parts.volumes.opened(&record.volume, shape.limits.disk);
        let live = quota
            .map_err(Refusal::from)
            .and_then(|()| self.record(slot, Record { phase, ever_ran: true, ..record.clone() }))
            .and_then(|()| self.watched(record, init.clone(), oom, image.in_use));
        live.map_err(|refusal| {
            match self.parts.containers.end(&record.sandbox, Some(init.as_fd())) {
                Ok(()) => refusal,
                Err(error) => Refusal::Stuck { why: format!("{refusal}; cannot undo it: {error}") },
            }
        })
    }

    pub(super) fn watched(
        &self,
        record: &Record,
        pidfd: Arc<OwnedFd>,
        oom: Option<Arc<OomWatch>>,
        image_in_use: Box<dyn Any + Send>,
    ) -> Result<Live, Refusal> {
        let watch = self
            .watcher
            .add(&record.sandbox, record.epoch, pidfd.clone(), oom.clone())
            .map_err(|error| Refusal::Failed { why: format!("watch the sandbox: {error}") })?;
        Ok(Live { pidfd, oom, watch, image_in_use })
    }

    fn undo(
        &self,
        slot: &Slot,
        record: Record,
        range: IdRange,
        volume: Volume,
        existed: bool,
        refusal: &Refusal,
    ) {
        let sandbox = record.sandbox.clone();
        if let Err(error) = self.layout.unlink_agent(&sandbox) {
            tracing::warn!(%sandbox, %error, "cannot remove the agent's socket");
        }
        if volume == Volume::MadeNow
            && let Err(error) = self.parts.volumes.destroy(&record.volume)
        {
            tracing::warn!(%sandbox, %error, "cannot remove the volume of a failed start");
        }
        let written = if existed {
            let phase = Phase::Failed { why: refusal.to_string() };
            self.record(slot, Record { phase, ..record }).map_err(|refusal| refusal.to_string())
        } else {
            lock(&slot.view).record = None;
            self.table.remove(&sandbox).map_err(|error| error.to_string())
        };
        if let Err(error) = written {
            tracing::warn!(%sandbox, error, "cannot write down that a start failed");
        }
        // Processes with these ids may be left. The next launcher ends them before it frees the range.
        if !matches!(refusal, Refusal::Stuck { .. }) {
            self.release(&sandbox, range);
        }
        end_waiters(slot, &sandbox);
    }

    pub(super) fn take_range(&self, sandbox: &SandboxId) -> Result<IdRange, Refusal> {
        // The id is random, so a piece of it spreads the search.
        let hint = sandbox.as_str().get(4..12).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        self.ranges.take(&self.table.path(sandbox), hint.unwrap_or_default()).map_err(|error| {
            match error {
                TakeRangeError::Full(_) => Refusal::NoRoom { why: error.to_string() },
                TakeRangeError::Io { .. } => {
                    Refusal::Failed { why: base_types::Chain(&error).to_string() }
                }
            }
        })
    }

    fn own_volume(&self, volume: &VolumeId, sandbox: &SandboxId) -> Result<(), Refusal> {
        let mut owners = lock(&self.owners);
        match owners.get(volume) {
            Some(owner) if owner != sandbox => {
                let why = format!("volume {volume} belongs to another sandbox");
                Err(Refusal::Failed { why })
            }
            _ => {
                owners.insert(volume.clone(), sandbox.clone());
                Ok(())
            }
        }
    }
}

fn new_record(spec: &SandboxSpec, shape: &Shape, range: IdRange, ever_ran: bool) -> Record {
    Record {
        sandbox: spec.sandbox.clone(),
        epoch: spec.epoch,
        volume: spec.volume.clone(),
        image: spec.image.clone(),
        profile: spec.profile.clone(),
        session: spec.session.clone(),
        tenant: spec.tenant.clone(),
        limits: shape.limits,
        ever_ran,
        phase: Phase::Starting { range },
    }
}

/// Whether this epoch runs already; refuses what must not start.
fn already(record: &Record, spec: &SandboxSpec) -> Result<Option<Sandbox>, Refusal> {
    if record.epoch > spec.epoch {
        return Err(Refusal::OlderEpoch { reached: record.epoch });
    }
    if record.volume != spec.volume {
        let why = format!("sandbox {} has another volume, {}", record.sandbox, record.volume);
        return Err(Refusal::Failed { why });
    }
    match (&record.phase, record.epoch == spec.epoch) {
        (Phase::Running { .. }, true) => Ok(Some(Sandbox {
            sandbox: record.sandbox.clone(),
            epoch: record.epoch,
            restored_from: RestoredFrom::StillRunning,
        })),
        (Phase::Stopped { why }, true) => Err(Refusal::Failed {
            why: format!(
                "epoch {} has ended ({why}): the next start is epoch {}",
                record.epoch,
                record.epoch.next()
            ),
        }),
        _ => Ok(None),
    }
}

/// Refuses what `SandboxId::generate` and its like did not make: ids become file names.
fn check_ids(spec: &SandboxSpec) -> Result<(), Refusal> {
    let bad = |what: &str| Err(Refusal::Bad { why: format!("the {what} is not one") });
    check_sandbox(&spec.sandbox)?;
    check_volume(&spec.volume)?;
    if spec.epoch < Epoch::FIRST {
        return bad("epoch");
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let image = spec.image.as_str();
    if image.is_empty() || image.len() > LABEL_BYTES_MAX || !image.bytes().all(plain) {
        return bad("image id");
    }
    let labels = [spec.session.as_str(), spec.tenant.as_str(), spec.profile.as_str()];
    if labels.iter().any(|label| label.len() > LABEL_BYTES_MAX) {
        return bad("session, tenant or profile name");
    }
    Ok(())
}

pub fn check_sandbox(sandbox: &SandboxId) -> Result<(), Refusal> {
    match SandboxId::parse(sandbox.as_str()) {
        Some(_) => Ok(()),
        None => Err(Refusal::Bad { why: "the sandbox id is not one".to_owned() }),
    }
}

pub fn check_volume(volume: &VolumeId) -> Result<(), Refusal> {
    match VolumeId::parse(volume.as_str()) {
        Some(_) => Ok(()),
        None => Err(Refusal::Bad { why: "the volume id is not one".to_owned() }),
    }
}
