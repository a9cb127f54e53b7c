//! What this process knows of the leases it holds, so that one lost answer does not cost one.
//!
//! A beat whose answer is lost may have arrived. The brain then knows a heartbeat that we do not,
//! refuses the repeat of ours with 412, and says which one it has. Within the time of the lease
//! that we know to hold nobody else can have beaten, so that heartbeat is ours: we go on from it.
//! Outside of these conditions a 412 is a lost lease, as it is after a restart.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base_types::WorkId;
use brain_api::{BrainError, BrainErrorKind, ExpectedBeat, Heartbeat};

use crate::answer::LeaseConflict;
use crate::client::Client;
use crate::queue::{self, Item};

/// Beyond this many, leases that have run out are forgotten. A node serves far fewer at once.
const KNOWN_MAX: usize = 4096;

#[derive(Default)]
pub(crate) struct Leases(Mutex<HashMap<WorkId, Known>>);

struct Known {
    /// What the next beat expects.
    expected: ExpectedBeat,
    /// When the request left that this knowledge comes from: the lease is at least as young.
    since: Instant,
    /// `None` before the first beat was answered.
    ttl: Option<Duration>,
    /// A beat left and its answer is not known.
    in_doubt: bool,
}

/// One beat, and a second one where the first shows that an earlier one had arrived.
pub(crate) async fn beat(
    client: &Client,
    leases: &Leases,
    item: Item<'_>,
    expected: &ExpectedBeat,
) -> Result<Heartbeat, BrainError> {
    let since = Instant::now();
    let doubted = leases.doubt(item.work, expected);
    let attempts = queue::heartbeat(client, item, expected).await;
    let mut result = attempts.result;
    if !attempts.unanswered && !doubted {
        leases.trust(item.work);
    }
    if let Some(ours) = result.as_ref().err().and_then(|e| leases.ours(item.work, expected, e)) {
        tracing::info!(work = %item.work, "a heartbeat whose answer was lost had arrived");
        result = queue::heartbeat(client, item, &ExpectedBeat::Last(ours)).await.result;
    }
    match &result {
        Ok(beat) => leases.beaten(item.work, since, beat),
        Err(error) if error.kind == BrainErrorKind::LeaseLost => leases.forget(item.work),
        Err(_) => {}
    }
    result
}

impl Leases {
    /// The item was acknowledged by a request that left at `since`: the first beat is ours.
    pub fn acked(&self, work: &WorkId, since: Instant) {
        self.insert(
            work,
            Known { expected: ExpectedBeat::None, since, ttl: None, in_doubt: false },
        );
    }

    pub fn forget(&self, work: &WorkId) {
        self.lock().remove(work);
    }

    fn beaten(&self, work: &WorkId, since: Instant, beat: &Heartbeat) {
        let expected = ExpectedBeat::Last(beat.last.clone());
        // A lease without a time is not known to last.
        let ttl = Some(beat.ttl.unwrap_or_default());
        self.insert(work, Known { expected, since, ttl, in_doubt: false });
    }

    fn insert(&self, work: &WorkId, known: Known) {
        let mut all = self.lock();
        if all.len() >= KNOWN_MAX {
            all.retain(|_, known| known.ttl.is_none_or(|ttl| known.since.elapsed() < ttl));
        }
        // Full of leases that still run, knowing one less is safe: its 412 is then a lost lease.
        if all.len() < KNOWN_MAX || all.contains_key(work) {
            all.insert(work.clone(), known);
        }
    }

    /// A beat is about to leave; until its answer is known it is in doubt, also if nobody waits
    /// for it any more. Returns whether one was in doubt already.
    fn doubt(&self, work: &WorkId, expected: &ExpectedBeat) -> bool {
        match self.lock().get_mut(work) {
            Some(known) if known.expected == *expected => {
                std::mem::replace(&mut known.in_doubt, true)
            }
            _ => false,
        }
    }

    fn trust(&self, work: &WorkId) {
        if let Some(known) = self.lock().get_mut(work) {
            known.in_doubt = false;
        }
    }

    /// The heartbeat that the brain has, if only we can have made it.
    fn ours(&self, work: &WorkId, expected: &ExpectedBeat, error: &BrainError) -> Option<String> {
        let conflict = error.source.as_ref()?.downcast_ref::<LeaseConflict>()?;
        let all = self.lock();
        let known = all.get(work)?;
        let holds = known.since.elapsed() < known.ttl.or(conflict.ttl)?;
        let ours = error.kind == BrainErrorKind::LeaseLost
            && known.in_doubt
            && known.expected == *expected
            && holds
            && conflict.is_live;
        ours.then(|| conflict.last.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkId, Known>> {
        // Every change is one assignment: a panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
