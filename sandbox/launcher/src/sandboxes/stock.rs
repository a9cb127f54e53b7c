//! The stock: parts made ahead of the starts that will use them.
//!
//! A part is taken out for one start and never comes back. Where the stock is empty, a start makes
//! what it needs by the same calls, so nothing but time depends on it. A start never waits for a
//! part in the making, and the last range of user ids or the last memory is never in the stock.
//!
//! One thread fills it, while no start is under way. It has the priority of any other: with a lower
//! one it would keep the locks of the whole kernel for longer (of cgroups, of network namespaces)
//! whenever guests keep the machine busy, and starts would wait for those.
//!
//! Parts do not outlive the launcher. Most go with its descriptors; cgroups, unfinished volumes and
//! ranges of ids that a killed one leaves are swept by the next.

use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use base_types::SandboxId;

use super::Sandboxes;
use crate::lock;
use crate::parts::{PartError, PreparedContainer, PreparedVolume};
use crate::ranges::TakeRangeError;
use crate::table::IdRange;
use crate::wire::Refusal;

/// Nothing is made for this long after a start: the next one may be on its way.
const REST_AFTER_START: Duration = Duration::from_millis(20);
/// Between two parts, so that filling an empty stock is never half of what a CPU does.
const REST_AFTER_PART: Duration = Duration::from_millis(10);
/// What failed is not tried again at once: a full disk does not empty itself.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(10);
/// How often a full stock looks whether the machine can afford it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// With less than this for everybody there is no stock, and none is made.
const AVAILABLE_MEMORY_MIN_KIB: u64 = 256 << 10;
/// More than this are not held, whatever the configuration says: each costs the kernel some 300 KiB.
const STOCK_MAX: usize = 256;
/// A part takes milliseconds; whoever closes the stock waits for the last one no longer than this.
const LAST_PART_WAIT: Duration = Duration::from_secs(10);

/// In the place of a record, where a range is held by none.
const HOLDER: &str = "ahead";

pub struct Stock {
    wanted: usize,
    shelf: Mutex<Shelf>,
    changed: Condvar,
}

#[derive(Default)]
struct Shelf {
    containers: Vec<ReadyContainer>,
    volumes: Vec<Box<dyn PreparedVolume>>,
    /// Starts under way.
    starting: usize,
    /// Before this moment nothing is made.
    rest_until: Option<Instant>,
    is_making: bool,
    is_closed: bool,
}

pub struct ReadyContainer {
    range: IdRange,
    container: Box<dyn PreparedContainer>,
}

/// While it lives, nothing is made.
pub struct Starting<'a>(&'a Stock);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A part is missing and may be made now. Ends with [`Stock::made`].
    Part,
    /// Nothing; a while has passed.
    Look,
    Closed,
}

#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error("take a range of user ids")]
    Range(#[from] TakeRangeError),
    #[error(transparent)]
    Part(#[from] PartError),
}

// === impl Stock ===

impl Stock {
    pub fn new(wanted: usize) -> Self {
        Self { wanted: wanted.min(STOCK_MAX), shelf: Mutex::default(), changed: Condvar::new() }
    }

    pub fn starting(&self) -> Starting<'_> {
        lock(&self.shelf).starting += 1;
        Starting(self)
    }

    pub fn volume(&self) -> Option<Box<dyn PreparedVolume>> {
        lock(&self.shelf).volumes.pop()
    }

    /// How many of each kind there are.
    #[cfg(test)]
    pub fn len(&self) -> (usize, usize) {
        let shelf = lock(&self.shelf);
        (shelf.containers.len(), shelf.volumes.len())
    }

    /// Until something is to be done.
    pub(super) fn wait(&self) -> Need {
        let mut shelf = lock(&self.shelf);
        let look_at = Instant::now() + LOOK_EVERY;
        loop {
            let now = Instant::now();
            let is_short = shelf.is_short(self.wanted);
            let rests_until = shelf.rest_until.filter(|until| *until > now);
            if shelf.is_closed {
                return Need::Closed;
            }
            if is_short && shelf.starting == 0 && rests_until.is_none() {
                shelf.is_making = true;
                return Need::Part;
            }
            if now >= look_at {
                return Need::Look;
            }
            let until = rests_until.filter(|_| is_short).map_or(look_at, |rest| rest.min(look_at));
            let waited = self.changed.wait_timeout(shelf, until - now);
            shelf = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn made(&self, rest: Duration) {
        let mut shelf = lock(&self.shelf);
        shelf.is_making = false;
        shelf.rest_until = Some(Instant::now() + rest);
        self.changed.notify_all();
    }

    fn take_all(&self) -> (Vec<ReadyContainer>, Vec<Box<dyn PreparedVolume>>) {
        let mut shelf = lock(&self.shelf);
        (std::mem::take(&mut shelf.containers), std::mem::take(&mut shelf.volumes))
    }

    /// Nothing is made from here on; returns when nothing is.
    fn close(&self) {
        let mut shelf = lock(&self.shelf);
        shelf.is_closed = true;
        self.changed.notify_all();
        let making = |shelf: &mut Shelf| shelf.is_making;
        drop(self.changed.wait_timeout_while(shelf, LAST_PART_WAIT, making));
    }
}

impl Shelf {
    fn is_short(&self, wanted: usize) -> bool {
        self.containers.len() < wanted || self.volumes.len() < wanted
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let mut shelf = lock(&self.0.shelf);
        shelf.starting -= 1;
        shelf.rest_until = shelf.rest_until.max(Some(Instant::now() + REST_AFTER_START));
        self.0.changed.notify_all();
    }
}

/// Starts the thread that fills the stock, for as long as there are sandboxes.
pub(super) fn start(stock: Arc<Stock>, sandboxes: Weak<Sandboxes>) -> io::Result<()> {
    if stock.wanted == 0 {
        return Ok(());
    }
    let run = move || {
        let mut ails = false;
        loop {
            let need = stock.wait();
            let Some(sandboxes) = sandboxes.upgrade() else { return };
            match need {
                Need::Closed => return,
                Need::Look if memory_is_short() => sandboxes.empty_stock(),
                Need::Look => {}
                Need::Part => ails = sandboxes.prepare_one(ails),
            }
        }
    };
    std::thread::Builder::new().name("stock".into()).spawn(run)?;
    Ok(())
}

impl Sandboxes {
    /// The range of a new epoch, with what was prepared for it, where anything was.
    pub(super) fn ready_container(
        &self,
        sandbox: &SandboxId,
    ) -> Result<(IdRange, Option<Box<dyn PreparedContainer>>), Refusal> {
        let ready = lock(&self.stock.shelf).containers.pop();
        if let Some(ReadyContainer { range, container }) = ready {
            let given =
                self.ranges.give(range, &self.table.place(HOLDER), &self.table.path(sandbox));
            match given {
                Ok(()) => return Ok((range, Some(container))),
                Err(error) => tracing::warn!(%error, "a prepared range of user ids is lost"),
            }
        }
        let range = self.take_range(sandbox).or_else(|refusal| match refusal {
            Refusal::NoRoom { .. } => {
                self.empty_stock();
                self.take_range(sandbox)
            }
            other => Err(other),
        });
        Ok((range?, None))
    }

    /// Gives everything back that no start has taken.
    pub(super) fn empty_stock(&self) {
        let (containers, volumes) = self.stock.take_all();
        drop(volumes);
        for ReadyContainer { range, container } in containers {
            drop(container);
            self.release_ahead(range);
        }
    }

    /// Empties the stock for good.
    pub fn close_stock(&self) {
        self.stock.close();
        self.empty_stock();
    }

    /// Makes one part, unless the machine cannot afford it. Says once when it begins to fail.
    fn prepare_one(&self, failed_before: bool) -> bool {
        if memory_is_short() {
            self.empty_stock();
            self.stock.made(LOOK_EVERY);
            return failed_before;
        }
        match self.make_one() {
            Ok(()) => {
                self.stock.made(REST_AFTER_PART);
                false
            }
            Err(error) => {
                if !failed_before {
                    let error = base_types::Chain(&error);
                    tracing::warn!(%error, "nothing can be prepared ahead of starts");
                }
                // What there is takes room that is short now.
                self.empty_stock();
                self.stock.made(REST_AFTER_FAILURE);
                true
            }
        }
    }

    fn make_one(&self) -> Result<(), MakeError> {
        let of_volumes = lock(&self.stock.shelf).volumes.len();
        if of_volumes < self.stock.wanted {
            let volume = self.parts.volumes.prepare()?;
            lock(&self.stock.shelf).volumes.push(volume);
        }
        let of_containers = lock(&self.stock.shelf).containers.len();
        if of_containers < self.stock.wanted {
            let hint = std::process::id().wrapping_mul(0x9E37);
            let range = self.ranges.take(&self.table.place(HOLDER), hint)?;
            match self.parts.containers.prepare(range.base()) {
                Ok(container) => {
                    let ready = ReadyContainer { range, container };
                    lock(&self.stock.shelf).containers.push(ready);
                }
                Err(error) => {
                    self.release_ahead(range);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn release_ahead(&self, range: IdRange) {
        if let Err(error) = self.ranges.release(range, &self.table.place(HOLDER)) {
            tracing::warn!(%error, "cannot give a prepared range of user ids back");
        }
    }
}

/// Of all memory, not only ours: the stock is the first to go.
fn memory_is_short() -> bool {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    // A kernel that does not say it is not out of memory for all that.
    kib.is_some_and(|kib| kib < AVAILABLE_MEMORY_MIN_KIB)
}
