//! Decides, from a session's events alone, which tool calls are ours to run and when.
//!
//! Pure: no clock, no I/O. Events come as whole histories (page by page, at every connect) and one
//! by one (live), overlapping and repeated; each call is routed once, whatever the order of
//! arrival. A history is not kept: of each page only what is still open stays.
//!
//! **Invariant:** fail closed. A call runs only when its permission is "allow", or "ask" with a
//! recorded allowance and no recorded denial.

use std::collections::{HashMap, HashSet};

use base_types::{EventId, ThreadId, ToolUseId};
use brain_api::{Event, EventKind, Permission, StopReason, ToolUse, ToolUseKind};

/// What the actor does about an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Answer this call: run it, or take its result from the journal.
    Answer(ToolUse),
    /// The call waits for a confirmation.
    Hold(ToolUse),
    /// The call is not answered by us.
    Leave { call: ToolUse, why: LeaveReason },
    /// The user interrupted: end this call, or answer it without running.
    Cancel(ToolUseId),
    /// The user interrupted while the call waited for a confirmation: answer it without running.
    CancelHeld(ToolUse),
    /// Its thread was terminated: nobody takes its result any more.
    Void(ToolUseId),
    /// The brain knows an answer to this call.
    Answered(ToolUseId),
    /// The session's description changed.
    Refresh,
    /// The session is over for good.
    Ended { reason: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    Denied,
    ThreadTerminated,
    /// A tool of the brain, or of somebody else's.
    NotOurs,
}

impl LeaveReason {
    pub fn text(self) -> &'static str {
        match self {
            LeaveReason::Denied => "denied",
            LeaveReason::ThreadTerminated => "its thread was terminated",
            LeaveReason::NotOurs => "not a tool of this worker",
        }
    }
}

/// Where one call stands.
#[derive(Clone, Debug, PartialEq)]
enum Standing {
    Held,
    Routed { thread: Option<ThreadId> },
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// Beats every allowance, whatever comes first.
    Denied,
}

/// The brain's side of a session, as far as its events tell.
#[derive(Debug)]
pub struct Router {
    tools: HashSet<String>,
    calls: HashMap<ToolUseId, Standing>,
    /// Calls that wait for a confirmation, in the order in which they came.
    held: Vec<ToolUse>,
    answered: HashSet<ToolUseId>,
    verdicts: HashMap<ToolUseId, Verdict>,
    terminated: HashSet<ThreadId>,
    interrupts: HashSet<EventId>,
    turn_over: bool,
    reading: Option<Reading>,
}

/// Calls and the like that one reading of a history keeps. What is beyond waits for the next
/// reading, which finds the first ones answered.
const OPEN_MAX: usize = 16_384;

/// A history that is being read.
#[derive(Debug, Default)]
struct Reading {
    open: Vec<Open>,
    /// The session's description changed, however often.
    refresh: bool,
    turn_over: bool,
}

/// What is left of a history's event when its page is gone.
#[derive(Debug)]
enum Open {
    Call(ToolUse),
    /// A call that was routed or held before, at its place.
    Known(ToolUseId),
    Interrupt {
        id: Option<EventId>,
        thread: Option<ThreadId>,
    },
    Step(Step),
}

/// What the events say about a call that the journal has as open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The brain has an answer.
    Answered,
    /// It is denied, or its thread is over: no answer is taken.
    Void,
    Open,
}

// === impl Router ===

impl Router {
    /// `tools` are the names of the built-in tools that this worker implements.
    pub fn new(tools: impl IntoIterator<Item = String>) -> Self {
        Self {
            tools: tools.into_iter().collect(),
            calls: HashMap::new(),
            held: Vec::new(),
            answered: HashSet::new(),
            verdicts: HashMap::new(),
            terminated: HashSet::new(),
            interrupts: HashSet::new(),
            turn_over: false,
            reading: None,
        }
    }

    /// A page of the history, oldest first. The `first` begins a new reading: one that was broken
    /// off is forgotten.
    pub fn on_page(&mut self, page: Vec<Event>, first: bool) {
        let mut reading = match self.reading.take() {
            Some(reading) if !first => reading,
            _ => Reading { turn_over: self.turn_over, ..Reading::default() },
        };
        for event in page {
            // What decides about a call may stand behind it, so everything is learnt first.
            self.learn(&event);
            reading.turn_over = turn_over_after(&event, reading.turn_over);
            reading.refresh |= event.kind == EventKind::SessionUpdated;
            if reading.open.len() < OPEN_MAX
                && let Some(open) = self.open_of(event)
            {
                reading.open.push(open);
            }
        }
        let answered = &self.answered;
        let mut done = Vec::new();
        reading.open.retain(|open| match open {
            Open::Call(call) if answered.contains(&call.id) => {
                done.push(call.id.clone());
                false
            }
            _ => true,
        });
        for call in done {
            self.calls.entry(call).or_insert(Standing::Left);
        }
        self.reading = Some(reading);
    }

    /// The last page was read.
    pub fn end_history(&mut self) -> Vec<Step> {
        let Some(reading) = self.reading.take() else { return Vec::new() };
        self.turn_over = reading.turn_over;
        let mut steps = Vec::new();
        steps.extend(reading.refresh.then_some(Step::Refresh));
        // An interrupt ends what stands before it, and no call that came later and is known already.
        let mut before = HashSet::new();
        for open in reading.open {
            match open {
                Open::Call(call) => {
                    before.insert(call.id.clone());
                    self.route_call(&call, &mut steps);
                }
                Open::Known(call) => {
                    before.insert(call);
                }
                Open::Interrupt { id, thread } => {
                    let is_before = |call: &ToolUseId| before.contains(call);
                    self.interrupt(id.as_ref(), thread.as_ref(), is_before, &mut steps);
                }
                Open::Step(step) => steps.push(step),
            }
        }
        self.void_terminated(&mut steps);
        self.release_held(&mut steps);
        steps
    }

    /// What must be kept of an event of a history until the last page.
    fn open_of(&self, event: Event) -> Option<Open> {
        Some(match event.kind {
            EventKind::ToolUse(call) => match self.calls.get(&call.id) {
                None => Open::Call(call),
                Some(Standing::Left) => return None,
                Some(_) => Open::Known(call.id),
            },
            EventKind::UserInterrupt { thread } => Open::Interrupt { id: event.id, thread },
            EventKind::SessionUpdated => return None,
            kind => Open::Step(self.step_of(&kind)?),
        })
    }

    /// One event of the live stream.
    pub fn on_live(&mut self, event: &Event) -> Vec<Step> {
        let mut steps = Vec::new();
        self.learn(event);
        self.turn_over = turn_over_after(event, self.turn_over);
        match &event.kind {
            EventKind::ToolUse(call) => self.route_call(call, &mut steps),
            EventKind::UserInterrupt { thread } => {
                self.interrupt(event.id.as_ref(), thread.as_ref(), |_| true, &mut steps);
            }
            EventKind::ThreadTerminated(_) => self.void_terminated(&mut steps),
            kind => steps.extend(self.step_of(kind)),
        }
        self.release_held(&mut steps);
        steps
    }

    /// What the events say about a call that was once received.
    pub fn fate(&self, call: &ToolUseId) -> Fate {
        match self.calls.get(call) {
            _ if self.answered.contains(call) => Fate::Answered,
            Some(Standing::Left) => Fate::Void,
            _ => Fate::Open,
        }
    }

    /// The turn is over and no call waits for a confirmation. Whether anything is still running or
    /// unposted is the actor's to know.
    pub fn is_quiet(&self) -> bool {
        self.turn_over && self.held.is_empty()
    }

    /// Takes in what an event says about calls, without acting on it.
    fn learn(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Answered(call) => {
                self.answered.insert(call.clone());
            }
            EventKind::Confirmation(confirmation) => {
                let verdict =
                    self.verdicts.entry(confirmation.call.clone()).or_insert(Verdict::Allowed);
                if !confirmation.allowed {
                    *verdict = Verdict::Denied;
                }
            }
            EventKind::ThreadTerminated(thread) => {
                self.terminated.insert(thread.clone());
            }
            _ => {}
        }
    }

    /// The step of an event that concerns no call, or one that is answered.
    fn step_of(&self, kind: &EventKind) -> Option<Step> {
        Some(match kind {
            EventKind::Answered(call) => match self.calls.get(call) {
                Some(Standing::Routed { .. }) => Step::Answered(call.clone()),
                _ => return None,
            },
            EventKind::SessionUpdated => Step::Refresh,
            EventKind::StatusTerminated => Step::Ended { reason: "terminated" },
            EventKind::SessionDeleted => Step::Ended { reason: "deleted" },
            _ => return None,
        })
    }

    fn route_call(&mut self, call: &ToolUse, steps: &mut Vec<Step>) {
        if self.calls.contains_key(&call.id) {
            return;
        }
        if self.answered.contains(&call.id) {
            self.calls.insert(call.id.clone(), Standing::Left);
            return;
        }
        let (standing, step) = match self.judge(call) {
            Judgement::Answer => {
                (Standing::Routed { thread: call.thread.clone() }, Step::Answer(call.clone()))
            }
            Judgement::Hold => {
                self.held.push(call.clone());
                (Standing::Held, Step::Hold(call.clone()))
            }
            Judgement::Leave(why) => (Standing::Left, Step::Leave { call: call.clone(), why }),
        };
        self.calls.insert(call.id.clone(), standing);
        steps.push(step);
    }

    fn judge(&self, call: &ToolUse) -> Judgement {
        let ours = call.kind == ToolUseKind::Builtin && self.tools.contains(&call.name);
        if !ours {
            return Judgement::Leave(LeaveReason::NotOurs);
        }
        if call.thread.as_ref().is_some_and(|thread| self.terminated.contains(thread)) {
            return Judgement::Leave(LeaveReason::ThreadTerminated);
        }
        match (call.permission, self.verdicts.get(&call.id)) {
            (Permission::Deny, _) | (_, Some(Verdict::Denied)) => {
                Judgement::Leave(LeaveReason::Denied)
            }
            (Permission::Allow, _) | (Permission::Ask, Some(Verdict::Allowed)) => Judgement::Answer,
            (Permission::Ask, None) => Judgement::Hold,
        }
    }

    /// Judges held calls again: a confirmation, an answer or the end of a thread may have come.
    fn release_held(&mut self, steps: &mut Vec<Step>) {
        for call in std::mem::take(&mut self.held) {
            if self.answered.contains(&call.id) {
                self.calls.insert(call.id, Standing::Left);
                continue;
            }
            match self.judge(&call) {
                Judgement::Hold => self.held.push(call),
                Judgement::Answer => {
                    let standing = Standing::Routed { thread: call.thread.clone() };
                    self.calls.insert(call.id.clone(), standing);
                    steps.push(Step::Answer(call));
                }
                Judgement::Leave(why) => {
                    self.calls.insert(call.id.clone(), Standing::Left);
                    steps.push(Step::Leave { call, why });
                }
            }
        }
    }

    /// Nobody takes the result of a call whose thread is over, whether it runs or waits.
    fn void_terminated(&mut self, steps: &mut Vec<Step>) {
        if self.terminated.is_empty() {
            return;
        }
        let over = |thread: &Option<ThreadId>| {
            thread.as_ref().is_some_and(|thread| self.terminated.contains(thread))
        };
        let mut void: Vec<ToolUseId> = self
            .calls
            .iter()
            .filter(|(id, standing)| match standing {
                Standing::Routed { thread } => over(thread) && !self.answered.contains(id),
                Standing::Held | Standing::Left => false,
            })
            .map(|(id, _)| id.clone())
            .collect();
        void.sort();
        for call in void {
            self.calls.insert(call.clone(), Standing::Left);
            steps.push(Step::Void(call));
        }
    }

    /// Cancels what came before the interrupt and has no answer, whether it runs, waits for its
    /// turn or for a confirmation. An interrupt is delivered more than once, so its id is
    /// remembered: a repetition must not hit later calls.
    fn interrupt(
        &mut self,
        id: Option<&EventId>,
        thread: Option<&ThreadId>,
        is_before: impl Fn(&ToolUseId) -> bool,
        steps: &mut Vec<Step>,
    ) {
        if let Some(id) = id
            && !self.interrupts.insert(id.clone())
        {
            return;
        }
        let meant = |of: &Option<ThreadId>| thread.is_none() || of.as_ref() == thread;
        let mut cancelled: Vec<ToolUseId> = self
            .calls
            .iter()
            .filter(|(id, standing)| match standing {
                Standing::Routed { thread } => {
                    meant(thread) && is_before(id) && !self.answered.contains(id)
                }
                Standing::Held | Standing::Left => false,
            })
            .map(|(id, _)| id.clone())
            .collect();
        cancelled.sort();
        steps.extend(cancelled.into_iter().map(Step::Cancel));
        for call in std::mem::take(&mut self.held) {
            if !meant(&call.thread) || !is_before(&call.id) || self.answered.contains(&call.id) {
                self.held.push(call);
                continue;
            }
            // A confirmation that comes later finds it answered, and does not run it.
            let standing = Standing::Routed { thread: call.thread.clone() };
            self.calls.insert(call.id.clone(), standing);
            steps.push(Step::CancelHeld(call));
        }
    }
}

enum Judgement {
    Answer,
    Hold,
    Leave(LeaveReason),
}

/// Whether the turn is over after an event. An answer can come late, after an interrupt has ended
/// the turn: it begins no new one.
fn turn_over_after(event: &Event, before: bool) -> bool {
    match &event.kind {
        EventKind::StatusIdle(StopReason::TurnOver { .. }) => true,
        EventKind::Confirmation(_) | EventKind::ThreadTerminated(_) | EventKind::Answered(_) => {
            before
        }
        _ => false,
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
