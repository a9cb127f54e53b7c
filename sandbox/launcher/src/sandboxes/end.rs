//! Ending an epoch: asked for, seen, or because memory ran out.

use std::os::fd::AsFd;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use base_types::{SandboxId, VolumeId};
use sandbox_api::Vitality;

use super::{Live, Sandboxes, Slot, Work};
use crate::lock;
use crate::table::{IdRange, Phase, Record};
use crate::watch::Seen;
use crate::wire::Refusal;

impl Sandboxes {
    pub fn stop(&self, sandbox: &SandboxId) -> Result<(), Refusal> {
        self.with_existing(sandbox, |slot, mut work| self.end_in(slot, &mut work, "stopped"))
            .unwrap_or(Ok(()))
    }

    pub fn destroy(&self, sandbox: &SandboxId, volume: &VolumeId) -> Result<(), Refusal> {
        if let Some(owner) = lock(&self.owners).get(volume)
            && owner != sandbox
        {
            return Err(Refusal::Volume { why: "it belongs to another sandbox".to_owned() });
        }
        self.with_existing(sandbox, |slot, work| self.destroy_in(slot, work, sandbox, volume))
            .unwrap_or_else(|| self.remove_volume(volume))
    }

    /// Ends everything that runs; says what did not end.
    pub fn stop_all(&self) -> Vec<String> {
        let failed = |sandbox: SandboxId| {
            let refusal = self.stop(&sandbox).err()?;
            Some(format!("{sandbox}: {refusal}"))
        };
        self.all().into_iter().filter_map(failed).collect()
    }

    /// Removes everything there is; says what was not removed.
    pub fn destroy_all(&self) -> Vec<String> {
        let mut failed = Vec::new();
        for sandbox in self.all() {
            let volume = lock(&self.slots).get(&sandbox).and_then(|slot| slot.snapshot());
            let Some(volume) = volume.map(|record| record.volume) else { continue };
            if let Err(refusal) = self.destroy(&sandbox, &volume) {
                failed.push(format!("{sandbox}: {refusal}"));
            }
        }
        match self.parts.volumes.list() {
            Ok(volumes) => {
                for volume in volumes {
                    if let Err(refusal) = self.remove_volume(&volume) {
                        failed.push(format!("{volume}: {refusal}"));
                    }
                }
            }
            Err(error) => failed.push(error.to_string()),
        }
        failed
    }

    /// Lets go of what all sandboxes share; none may run.
    pub fn close(&self) -> Result<(), Refusal> {
        self.parts.volumes.close()?;
        Ok(self.parts.containers.close()?)
    }

    /// Acts on what the watcher reported.
    pub(super) fn saw(&self, seen: &Seen) {
        let (Seen::Ended { sandbox, epoch } | Seen::OutOfMemory { sandbox, epoch }) = seen;
        let is_shortage = matches!(seen, Seen::OutOfMemory { .. });
        let ended = self.with_existing(sandbox, |slot, mut work| {
            let record = slot.snapshot().filter(|record| record.epoch == *epoch);
            let Some(record) = record.filter(|record| record.range().is_some()) else {
                return Ok(());
            };
            let out_of_memory = is_shortage || work.live.as_ref().is_some_and(Live::ran_out);
            let why = if out_of_memory { record.out_of_memory() } else { AGENT_EXITED.to_owned() };
            self.end_in(slot, &mut work, &why)
        });
        if let Some(Err(refusal)) = ended {
            tracing::error!(%sandbox, %epoch, %refusal, "an ended sandbox cannot be cleaned up");
        }
    }

    /// Ends the epoch that runs, if one does, and removes everything of it but the volume.
    pub(super) fn end_in(&self, slot: &Slot, work: &mut Work, why: &str) -> Result<(), Refusal> {
        let Some(record) = slot.snapshot() else { return Ok(()) };
        let Some(range) = record.range() else { return Ok(()) };
        let sandbox = record.sandbox.clone();
        let init = work.live.as_ref().map(|live| live.pidfd.as_fd());
        self.parts
            .containers
            .end(&sandbox, init)
            .map_err(|error| Refusal::Stuck { why: error.to_string() })?;
        if let Some(live) = work.live.take() {
            self.watcher.remove(live.watch);
            self.running.fetch_sub(1, Ordering::Relaxed);
        }
        if let Err(error) = self.layout.unlink_agent(&sandbox) {
            tracing::warn!(%sandbox, %error, "cannot remove the agent's socket");
        }
        tracing::info!(%sandbox, epoch = %record.epoch, why, "ended");
        let phase = Phase::Stopped { why: why.to_owned() };
        let written = self.record(slot, Record { phase, ..record });
        // The processes are gone whether or not that could be written down.
        self.release(&sandbox, range);
        end_waiters(slot, &sandbox);
        written
    }

    pub(super) fn release(&self, sandbox: &SandboxId, range: IdRange) {
        if let Err(error) = self.ranges.release(range, &self.table.path(sandbox)) {
            tracing::warn!(%sandbox, %error, "cannot give a range of user ids back");
        }
    }

    /// Forgets a slot that a failed first start made.
    pub(super) fn forget_if_empty(&self, sandbox: &SandboxId) {
        self.with_existing(sandbox, |slot, mut work| {
            if slot.snapshot().is_none() {
                self.forget(sandbox, &mut work);
            }
        });
    }

    fn destroy_in(
        &self,
        slot: &Slot,
        mut work: MutexGuard<'_, Work>,
        sandbox: &SandboxId,
        volume: &VolumeId,
    ) -> Result<(), Refusal> {
        let own = slot.snapshot().map(|record| record.volume);
        if own.as_ref().is_some_and(|own| own != volume) {
            return Err(Refusal::Volume { why: format!("sandbox {sandbox} has another") });
        }
        self.end_in(slot, &mut work, "destroyed")?;
        self.remove_volume(volume)?;
        self.table.remove(sandbox).map_err(|error| Refusal::Failed {
            why: format!("remove the record of {sandbox}: {error}"),
        })?;
        lock(&self.owners).remove(volume);
        self.forget(sandbox, &mut work);
        Ok(())
    }

    fn remove_volume(&self, volume: &VolumeId) -> Result<(), Refusal> {
        self.parts
            .volumes
            .destroy(volume)
            .map_err(|error| Refusal::Volume { why: error.to_string() })
    }
}

pub(super) const AGENT_EXITED: &str = "agent exited";

// === impl Live ===

impl Live {
    /// Whether memory ran out, where the agent's end was seen before the shortage was.
    fn ran_out(&self) -> bool {
        self.oom.as_ref().is_some_and(|oom| oom.is_ready() && (oom.happened)(&oom.ready))
    }
}

// === impl Record ===

impl Record {
    fn out_of_memory(&self) -> String {
        format!("out of memory (limit {})", self.limits.memory)
    }
}

/// Answers everybody who waits for an end that has come.
pub(super) fn end_waiters(slot: &Slot, sandbox: &SandboxId) {
    let mut view = lock(&slot.view);
    let current = view.record.as_ref().map(|record| (record.epoch, record.vitality()));
    let waiters = std::mem::take(&mut view.waiters);
    drop(view);
    for (epoch, waiter) in waiters {
        let vitality = match &current {
            Some((reached, vitality)) if *reached == epoch => vitality.clone(),
            _ => Vitality::Stopped { epoch, why: None },
        };
        tracing::debug!(%sandbox, %epoch, "told one who waited for the end");
        waiter.tell(vitality);
    }
}
