//! Taking up what an earlier launcher left: what runs goes on and is watched again, what was half
//! done is undone, what belongs to nobody is removed. Volumes are never removed here.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use base_types::{Chain, SandboxId};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Live, Sandboxes, Slot};
use crate::lock;
use crate::parts::{Init, OpenImage, PartError};
use crate::table::{IdRange, Phase, Record};

/// What was found, for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub running: usize,
    /// Sandboxes that ended, or were being started, while nobody watched.
    pub ended: usize,
    pub stopped: usize,
    /// Left-overs that were removed.
    pub swept: Vec<String>,
    /// What a person should look at.
    pub warnings: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("read the machine's boot id")]
    BootId(#[source] io::Error),
    #[error("watch for the ends of sandboxes")]
    Watch(#[source] io::Error),
    #[error("read the table of sandboxes")]
    Table(#[source] io::Error),
    #[error("remove what earlier sandboxes left")]
    Sweep(#[source] PartError),
    #[error("give ranges of user ids back")]
    Ranges(#[source] io::Error),
    #[error("remove the sockets of earlier sandboxes")]
    Sockets(#[source] io::Error),
}

impl Sandboxes {
    pub(super) fn recover(&self) -> Result<Recovered, RecoverError> {
        let mut found = Recovered::default();
        let loaded = self.table.load().map_err(RecoverError::Table)?;
        found.warnings.extend(loaded.damaged.into_iter().map(|d| format!("damaged record {d}")));
        let mut running = Vec::new();
        let mut ranges = Vec::new();
        for record in loaded.records {
            if let Some(range) = self.take_up(record.clone(), &mut found) {
                running.push(record.sandbox);
                ranges.push(range);
            }
        }
        found.running = running.len();
        found.swept = self.parts.containers.sweep(&running).map_err(RecoverError::Sweep)?;
        self.ranges.sweep(&self.layout.sandboxes(), &ranges).map_err(RecoverError::Ranges)?;
        self.sweep_sockets(&running).map_err(RecoverError::Sockets)?;
        self.report_ownerless(&mut found);
        Ok(found)
    }

    /// Makes the slot of one record. Returns the range it still holds if it runs.
    fn take_up(&self, record: Record, found: &mut Recovered) -> Option<IdRange> {
        let slot = Arc::new(Slot::default());
        let sandbox = record.sandbox.clone();
        lock(&self.owners).insert(record.volume.clone(), sandbox.clone());
        lock(&self.slots).insert(sandbox.clone(), slot.clone());
        lock(&slot.view).record = Some(record.clone());
        let range = record.range();
        let ended = match self.still_runs(&record) {
            Ok(live) => {
                self.goes_live(&mut lock(&slot.work), live);
                return range;
            }
            Err(phase) => phase,
        };
        let Some(phase) = ended else {
            found.stopped += 1;
            return None;
        };
        found.ended += 1;
        if let Err(error) = self.parts.containers.end(&sandbox, None) {
            found.warnings.push(format!("clean up after {sandbox}: {error}"));
        }
        if let Err(refusal) = self.record(&slot, Record { phase, ..record }) {
            found.warnings.push(refusal.to_string());
        }
        None
    }

    /// What is held for a sandbox that runs; for one that no longer does, the phase it is in now,
    /// where that is not the one the record has.
    fn still_runs(&self, record: &Record) -> Result<Live, Option<Phase>> {
        let stopped = |why: &str| Err(Some(Phase::Stopped { why: why.to_owned() }));
        match &record.phase {
            Phase::Failed { .. } | Phase::Stopped { .. } => Err(None),
            Phase::Starting { .. } => {
                let why = "the launcher was restarted during the start".to_owned();
                Err(Some(Phase::Failed { why }))
            }
            Phase::Running { boot, .. } if *boot != self.boot => {
                stopped("the machine was restarted")
            }
            Phase::Running { init, .. } => match self.watch_again(record, init) {
                Ok(Some(live)) => Ok(live),
                Ok(None) => stopped("ended while no launcher was running"),
                // A sandbox that cannot be watched must not run on unseen.
                Err(why) => stopped(&format!("the launcher could not watch it again: {why}")),
            },
        }
    }

    fn watch_again(&self, record: &Record, init: &Init) -> Result<Option<Live>, String> {
        let Some(pidfd) = find(init).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let pidfd = Arc::new(pidfd);
        let oom = self
            .parts
            .containers
            .attach(&record.sandbox, &record.limits)
            .map_err(|error| error.to_string())?
            .map(Arc::new);
        let image_in_use: Box<dyn std::any::Any + Send> =
            match self.parts.images.open(&record.image) {
                Ok(Some(OpenImage { in_use, .. })) => in_use,
                missing => {
                    // It runs from what is mounted; only a removal of the image is not held off.
                    let why =
                        missing.err().map_or("it is gone".to_owned(), |e| Chain(&e).to_string());
                    tracing::warn!(image = %record.image, why, "cannot mark an image as in use");
                    Box::new(())
                }
            };
        let live = self.watched(record, pidfd, oom, image_in_use);
        live.map(Some).map_err(|refusal| refusal.to_string())
    }

    fn sweep_sockets(&self, running: &[SandboxId]) -> io::Result<()> {
        for entry in fs::read_dir(self.layout.agents())? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if !running.iter().any(|sandbox| sandbox.as_str() == stem) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn report_ownerless(&self, found: &mut Recovered) {
        match self.parts.volumes.list() {
            Ok(volumes) => {
                let kept = |volume| format!("volume {volume} has no record; kept");
                found.warnings.extend(self.without_record(volumes).into_iter().map(kept));
            }
            Err(error) => found.warnings.push(format!("list the volumes: {error}")),
        }
    }
}

/// The process, if it is still the one that was started. It is looked at again after the
/// descriptor was opened: what the descriptor stands for can no longer change.
fn find(init: &Init) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(init.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok((start_time(init.pid) == Some(init.start_time)).then_some(pidfd))
}

/// When a process started, in clock ticks after the machine did; `None` for one that has ended.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, a closing parenthesis too.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(start_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_number_and_start_time_and_no_other_is() {
        let pid = std::process::id();
        let start_time = start_time(pid).unwrap();
        assert!(find(&Init { pid, start_time }).unwrap().is_some());
        assert!(find(&Init { pid, start_time: start_time + 1 }).unwrap().is_none());

        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = Init { pid: child.id(), start_time };
        child.wait().unwrap();
        assert!(find(&ended).unwrap().is_none());
    }
}
