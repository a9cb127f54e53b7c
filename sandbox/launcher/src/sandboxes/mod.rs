//! The sandboxes of one installation: what exists, what runs, what was asked of it.
//!
//! Each sandbox has a slot with two locks. `work` is held while something is done to the sandbox,
//! so that one thing at a time is done to it; `view` is held for moments and says what is known, so
//! that a question about a sandbox never waits for its start or its end. `work` is taken before
//! `view`, and neither is held while the map of slots is.

mod create;
mod end;
mod recover;
mod stock;
#[cfg(test)]
mod stock_tests;
mod tend;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use base_types::{Chain, Epoch, SandboxId, VolumeId};
use sandbox_api::{SandboxStatus, SandboxUse, Vitality};

use crate::jobs::Jobs;
use crate::layout::Layout;
use crate::lock;
use crate::parts::{OomWatch, PartError, Parts};
use crate::ranges::Ranges;
use crate::table::{Phase, Record, Table};
use crate::watch::{Seen, WatchNumber, Watcher};
use crate::wire::{LIST_PAGE_MAX, Refusal};

use stock::Stock;

pub use create::{check_sandbox, check_volume};
#[cfg(test)]
pub use recover::start_time;
pub use recover::{RecoverError, Recovered};

/// Sandboxes that run at once. Their processes share `pid_max`, which may be 32,768.
const RUNNING_MAX: usize = 4_000;

/// Sandboxes with a record, running or not.
const RECORDS_MAX: usize = 100_000;

/// Connections that wait for the end of one sandbox: `serve` needs one.
const WAITERS_MAX: usize = 16;

pub struct Sandboxes {
    layout: Layout,
    serve_gid: u32,
    parts: Parts,
    table: Table,
    ranges: Ranges,
    boot: String,
    watcher: Watcher,
    stock: Arc<Stock>,
    slots: Mutex<BTreeMap<SandboxId, Arc<Slot>>>,
    /// How many sandboxes have a [`Live`].
    running: AtomicUsize,
    /// Which sandbox has which volume: no two ever share one.
    owners: Mutex<HashMap<VolumeId, SandboxId>>,
}

/// What a launcher is told when it starts.
pub struct Settings {
    pub layout: Layout,
    pub serve_gid: u32,
    pub ranges: Ranges,
    pub parts: Parts,
}

/// Somebody who wants to know of an end.
pub trait Waiter: Send {
    /// Nobody is there any more to be told.
    fn is_gone(&self) -> bool;

    fn tell(self: Box<Self>, vitality: Vitality);
}

#[derive(Default)]
struct Slot {
    work: Mutex<Work>,
    view: Mutex<View>,
}

#[derive(Default)]
struct Work {
    live: Option<Live>,
    /// Set when the sandbox was destroyed: whoever waited for the lock must look again.
    removed: bool,
}

#[derive(Default)]
struct View {
    record: Option<Record>,
    waiters: Vec<(Epoch, Box<dyn Waiter>)>,
}

/// What is held for a sandbox that runs.
struct Live {
    pidfd: Arc<OwnedFd>,
    oom: Option<Arc<OomWatch>>,
    watch: WatchNumber,
    /// Keeps the image from being removed.
    #[allow(dead_code, reason = "held, not read")]
    image_in_use: Box<dyn Any + Send>,
}

// === impl Sandboxes ===

impl Sandboxes {
    /// Takes up what an earlier launcher left, then watches it.
    pub fn open(settings: Settings, jobs: Jobs) -> Result<(Arc<Self>, Recovered), RecoverError> {
        let boot = boot_id().map_err(RecoverError::BootId)?;
        let (watcher, seen) = watcher(jobs).map_err(RecoverError::Watch)?;
        let sandboxes = Arc::new(Self {
            table: Table::new(settings.layout.sandboxes()),
            layout: settings.layout,
            stock: Arc::new(Stock::new(settings.parts.ahead)),
            serve_gid: settings.serve_gid,
            parts: settings.parts,
            ranges: settings.ranges,
            boot,
            watcher,
            slots: Mutex::default(),
            owners: Mutex::default(),
            running: AtomicUsize::new(0),
        });
        let recovered = sandboxes.recover()?;
        // From here on what the watcher saw is acted upon, what it saw meanwhile included.
        seen.act_on(Arc::downgrade(&sandboxes));
        tend::start(Arc::downgrade(&sandboxes)).map_err(RecoverError::Watch)?;
        let (stock, weak) = (sandboxes.stock.clone(), Arc::downgrade(&sandboxes));
        stock::start(stock, weak).map_err(RecoverError::Watch)?;
        Ok((sandboxes, recovered))
    }

    pub fn image(&self, name: &str) -> Result<sandbox_api::Image, Refusal> {
        self.parts.images.named(name)?.ok_or(Refusal::NoSuchImage)
    }

    pub fn status(&self, sandbox: &SandboxId) -> Option<SandboxStatus> {
        let slot = lock(&self.slots).get(sandbox).cloned()?;
        let record = lock(&slot.view).record.clone()?;
        Some(self.describe(&record))
    }

    /// One page of everything there is, and whether there is more.
    pub fn list(&self, after: Option<&SandboxId>) -> Result<(Vec<SandboxStatus>, bool), Refusal> {
        let mut all: BTreeMap<SandboxId, Option<VolumeId>> = self
            .ownerless_volumes()?
            .into_iter()
            .map(|(sandbox, volume)| (sandbox, Some(volume)))
            .collect();
        all.extend(lock(&self.slots).keys().map(|sandbox| (sandbox.clone(), None)));
        let mut rest = all.into_iter().filter(|(sandbox, _)| after.is_none_or(|id| sandbox > id));
        let mut page = Vec::new();
        for (sandbox, volume) in rest.by_ref().take(LIST_PAGE_MAX) {
            match volume {
                Some(volume) => page.push(self.describe_volume(sandbox, volume)),
                // A sandbox that was destroyed in between is simply not there any more.
                None => page.extend(self.status(&sandbox)),
            }
        }
        Ok((page, rest.next().is_some()))
    }

    /// Tells `waiter` when no process of this epoch is left; at once if that is so now.
    pub fn when_ended(
        &self,
        sandbox: &SandboxId,
        epoch: Epoch,
        waiter: Box<dyn Waiter>,
    ) -> Result<(), Refusal> {
        let slot = lock(&self.slots).get(sandbox).cloned();
        let Some(slot) = slot else {
            let why = Some("there is no such sandbox".to_owned());
            waiter.tell(Vitality::Stopped { epoch, why });
            return Ok(());
        };
        let mut view = lock(&slot.view);
        match &view.record {
            Some(record) if record.epoch <= epoch && record.may_have_processes() => {
                view.waiters.retain(|(_, waiter)| !waiter.is_gone());
                if view.waiters.len() >= WAITERS_MAX {
                    let why = format!("{WAITERS_MAX} others wait for the end of {sandbox}");
                    return Err(Refusal::Bad { why });
                }
                view.waiters.push((epoch, waiter));
            }
            Some(record) if record.epoch == epoch => waiter.tell(record.vitality()),
            _ => waiter.tell(Vitality::Stopped { epoch, why: None }),
        }
        Ok(())
    }

    fn all(&self) -> Vec<SandboxId> {
        lock(&self.slots).keys().cloned().collect()
    }

    fn describe(&self, record: &Record) -> SandboxStatus {
        let running = matches!(record.phase, Phase::Running { .. });
        let usage =
            if running { self.parts.containers.used(&record.sandbox) } else { Default::default() };
        SandboxStatus {
            sandbox: record.sandbox.clone(),
            volume: record.volume.clone(),
            session: Some(record.session.clone()),
            vitality: record.vitality(),
            usage: SandboxUse { disk_bytes: self.disk_used(&record.volume), ..usage },
        }
    }

    fn describe_volume(&self, sandbox: SandboxId, volume: VolumeId) -> SandboxStatus {
        let usage = SandboxUse { disk_bytes: self.disk_used(&volume), ..Default::default() };
        SandboxStatus { sandbox, volume, session: None, vitality: Vitality::VolumeOnly, usage }
    }

    fn disk_used(&self, volume: &VolumeId) -> Option<u64> {
        self.parts.volumes.used(volume).unwrap_or_else(|error| {
            tracing::debug!(%volume, error = %Chain(&error), "cannot tell what a volume uses");
            None
        })
    }

    /// Volumes that no record speaks of. One that does not say whose it was cannot be listed.
    fn ownerless_volumes(&self) -> Result<Vec<(SandboxId, VolumeId)>, Refusal> {
        let mut found = Vec::new();
        for volume in self.without_record(self.parts.volumes.list()?) {
            match self.parts.volumes.owner(&volume) {
                Some(sandbox) => found.push((sandbox, volume)),
                None => tracing::warn!(%volume, "a volume does not say whose it is"),
            }
        }
        Ok(found)
    }

    fn without_record(&self, mut volumes: Vec<VolumeId>) -> Vec<VolumeId> {
        let owners = lock(&self.owners);
        volumes.retain(|volume| !owners.contains_key(volume));
        volumes
    }

    /// The sandbox's slot, with its work lock. Makes one where there is none.
    fn with_slot<T>(
        &self,
        sandbox: &SandboxId,
        act: impl FnOnce(&Slot, MutexGuard<'_, Work>) -> T,
    ) -> Result<T, Refusal> {
        loop {
            let slot = {
                let mut slots = lock(&self.slots);
                if slots.len() >= RECORDS_MAX && !slots.contains_key(sandbox) {
                    let why = format!("{RECORDS_MAX} sandboxes exist on this machine");
                    return Err(Refusal::NoRoom { why });
                }
                slots.entry(sandbox.clone()).or_default().clone()
            };
            let work = lock(&slot.work);
            if !work.removed {
                return Ok(act(&slot, work));
            }
        }
    }

    /// The slot of a sandbox that exists, with its work lock.
    fn with_existing<T>(
        &self,
        sandbox: &SandboxId,
        act: impl FnOnce(&Slot, MutexGuard<'_, Work>) -> T,
    ) -> Option<T> {
        loop {
            let slot = lock(&self.slots).get(sandbox).cloned()?;
            let work = lock(&slot.work);
            if !work.removed {
                return Some(act(&slot, work));
            }
        }
    }

    /// Forgets a sandbox of which nothing is left. Called with its work lock.
    fn forget(&self, sandbox: &SandboxId, work: &mut Work) {
        work.removed = true;
        lock(&self.slots).remove(sandbox);
    }

    fn goes_live(&self, work: &mut Work, live: Live) {
        work.live = Some(live);
        self.running.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes a record down and shows it.
    fn record(&self, slot: &Slot, record: Record) -> Result<(), Refusal> {
        self.table.write(&record).map_err(|error| Refusal::Failed {
            why: format!("write the record of {}: {error}", record.sandbox),
        })?;
        lock(&slot.view).record = Some(record);
        Ok(())
    }
}

// === impl Slot ===

impl Slot {
    fn snapshot(&self) -> Option<Record> {
        lock(&self.view).record.clone()
    }
}

// === impl Record ===

impl Record {
    fn may_have_processes(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Running { .. })
    }

    fn vitality(&self) -> Vitality {
        let epoch = self.epoch;
        match &self.phase {
            Phase::Running { .. } => Vitality::Running { epoch },
            Phase::Starting { .. } => {
                Vitality::Stopped { epoch, why: Some("it is being started".to_owned()) }
            }
            Phase::Failed { why } => {
                Vitality::Stopped { epoch, why: Some(format!("it did not start: {why}")) }
            }
            Phase::Stopped { why } => Vitality::Stopped { epoch, why: Some(why.clone()) },
        }
    }
}

// === impl Refusal ===

impl From<PartError> for Refusal {
    fn from(error: PartError) -> Self {
        match error {
            PartError::NoRoom(why) => Refusal::NoRoom { why },
            PartError::Failed(why) => Refusal::Failed { why },
        }
    }
}

/// Holds what the watcher sees until there is somebody to act on it.
struct SeenQueue {
    jobs: Jobs,
    seen: std::sync::mpsc::Receiver<Seen>,
}

fn watcher(jobs: Jobs) -> io::Result<(Watcher, SeenQueue)> {
    // Each watched sandbox is reported at most twice, so the channel is bounded by their number.
    let (report, seen) = std::sync::mpsc::channel();
    let watcher = Watcher::start(move |what| {
        // Nobody listens any more: the launcher ends.
        let _ = report.send(what);
    })?;
    Ok((watcher, SeenQueue { jobs, seen }))
}

// === impl SeenQueue ===

impl SeenQueue {
    fn act_on(self, sandboxes: std::sync::Weak<Sandboxes>) {
        let run = move || {
            while let Ok(seen) = self.seen.recv() {
                let sandboxes = sandboxes.clone();
                self.jobs.run(move || {
                    if let Some(sandboxes) = sandboxes.upgrade() {
                        sandboxes.saw(&seen);
                    }
                });
            }
        };
        if let Err(error) = std::thread::Builder::new().name("ends".into()).spawn(run) {
            tracing::error!(%error, "ends of sandboxes are not acted upon");
        }
    }
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
