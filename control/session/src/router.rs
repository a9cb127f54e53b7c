//! Decides, from a session's events alone, which tool calls are ours to run and when.
//!
//! Pure: no clock, no I/O. Events come as whole histories (at every connect) and one by one
//! (live), overlapping and repeated; each call is routed once, whatever the order of arrival.
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
    Held(ToolUse),
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
    answered: HashSet<ToolUseId>,
    verdicts: HashMap<ToolUseId, Verdict>,
    terminated: HashSet<ThreadId>,
    interrupts: HashSet<EventId>,
    turn_over: bool,
}

// === impl Router ===

impl Router {
    /// `tools` are the names of the built-in tools that this worker implements.
    pub fn new(tools: impl IntoIterator<Item = String>) -> Self {
        Self {
            tools: tools.into_iter().collect(),
            calls: HashMap::new(),
            answered: HashSet::new(),
            verdicts: HashMap::new(),
            terminated: HashSet::new(),
            interrupts: HashSet::new(),
            turn_over: false,
        }
    }

    /// A whole history, as listed at a connect.
    pub fn on_history(&mut self, history: &[Event]) -> Vec<Step> {
        let mut steps = Vec::new();
        // What decides about a call may stand behind it, so everything is learnt first.
        for event in history {
            self.learn(event);
        }
        for event in history {
            self.route(event, &mut steps);
        }
        self.release_held(&mut steps);
        steps
    }

    /// One event of the live stream.
    pub fn on_live(&mut self, event: &Event) -> Vec<Step> {
        let mut steps = Vec::new();
        self.learn(event);
        self.route(event, &mut steps);
        self.release_held(&mut steps);
        steps
    }

    /// The turn is over and no call waits for a confirmation. Whether anything is still running or
    /// unposted is the actor's to know.
    pub fn is_quiet(&self) -> bool {
        self.turn_over && self.held() == 0
    }

    pub fn held(&self) -> usize {
        self.calls.values().filter(|standing| matches!(standing, Standing::Held(_))).count()
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
        match &event.kind {
            EventKind::StatusIdle(StopReason::TurnOver { .. }) => self.turn_over = true,
            // An answer can come late, after an interrupt has ended the turn: it begins no new one.
            EventKind::Confirmation(_)
            | EventKind::ThreadTerminated(_)
            | EventKind::Answered(_) => {}
            _ => self.turn_over = false,
        }
    }

    fn route(&mut self, event: &Event, steps: &mut Vec<Step>) {
        match &event.kind {
            EventKind::ToolUse(call) => self.route_call(call, steps),
            EventKind::UserInterrupt { thread } => {
                self.interrupt(event.id.as_ref(), thread.as_ref(), steps);
            }
            EventKind::Answered(call) => {
                if matches!(self.calls.get(call), Some(Standing::Routed { .. })) {
                    steps.push(Step::Answered(call.clone()));
                }
            }
            EventKind::SessionUpdated => steps.push(Step::Refresh),
            EventKind::StatusTerminated => steps.push(Step::Ended { reason: "terminated" }),
            EventKind::SessionDeleted => steps.push(Step::Ended { reason: "deleted" }),
            _ => {}
        }
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
            Judgement::Hold => (Standing::Held(call.clone()), Step::Hold(call.clone())),
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
        let held: Vec<ToolUse> = self
            .calls
            .values()
            .filter_map(|standing| match standing {
                Standing::Held(call) => Some(call.clone()),
                _ => None,
            })
            .collect();
        for call in held {
            if self.answered.contains(&call.id) {
                self.calls.insert(call.id, Standing::Left);
                continue;
            }
            match self.judge(&call) {
                Judgement::Hold => {}
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

    /// Cancels what was routed before the interrupt and has no answer. An interrupt is delivered
    /// more than once, so its id is remembered: a repetition must not hit later calls.
    fn interrupt(
        &mut self,
        id: Option<&EventId>,
        thread: Option<&ThreadId>,
        steps: &mut Vec<Step>,
    ) {
        if let Some(id) = id
            && !self.interrupts.insert(id.clone())
        {
            return;
        }
        let mut cancelled: Vec<ToolUseId> = self
            .calls
            .iter()
            .filter_map(|(id, standing)| match standing {
                Standing::Routed { thread: of } if thread.is_none() || of.as_ref() == thread => {
                    Some(id.clone())
                }
                _ => None,
            })
            .filter(|id| !self.answered.contains(id))
            .collect();
        cancelled.sort();
        steps.extend(cancelled.into_iter().map(Step::Cancel));
    }
}

enum Judgement {
    Answer,
    Hold,
    Leave(LeaveReason),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(id: &str, kind: EventKind) -> Event {
        Event { id: Some(EventId::from(id)), name: String::new(), kind }
    }

    fn call(id: &str, permission: Permission) -> Event {
        named_call(id, "bash", permission, None)
    }

    fn named_call(id: &str, name: &str, permission: Permission, thread: Option<&str>) -> Event {
        let call = ToolUse {
            id: ToolUseId::from(id),
            kind: ToolUseKind::Builtin,
            name: name.to_owned(),
            input: serde_json::json!({}),
            permission,
            thread: thread.map(ThreadId::from),
        };
        event(id, EventKind::ToolUse(call))
    }

    fn confirm(id: &str, allowed: bool) -> Event {
        let call = ToolUseId::from(id);
        event(
            &format!("c-{id}-{allowed}"),
            EventKind::Confirmation(brain_api::Confirmation { call, allowed }),
        )
    }

    fn answered(id: &str) -> Event {
        event(&format!("a-{id}"), EventKind::Answered(ToolUseId::from(id)))
    }

    fn idle() -> Event {
        let reason = StopReason::TurnOver { reason: "end_turn".into() };
        event("idle", EventKind::StatusIdle(reason))
    }

    fn router() -> Router {
        Router::new(["bash".to_owned()])
    }

    /// The steps in short: `run a`, `hold b`, `leave c (denied)`, …
    fn short(steps: &[Step]) -> Vec<String> {
        steps
            .iter()
            .map(|step| match step {
                Step::Answer(call) => format!("run {}", call.id),
                Step::Hold(call) => format!("hold {}", call.id),
                Step::Leave { call, why } => format!("leave {} ({})", call.id, why.text()),
                Step::Cancel(id) => format!("cancel {id}"),
                Step::Answered(id) => format!("answered {id}"),
                Step::Refresh => "refresh".into(),
                Step::Ended { reason } => format!("ended {reason}"),
            })
            .collect()
    }

    #[test]
    fn a_history_routes_what_is_open_in_order_and_once() {
        let mut router = router();
        let history = [
            call("a", Permission::Allow),
            call("b", Permission::Allow),
            answered("a"),
            call("c", Permission::Allow),
        ];
        assert_eq!(short(&router.on_history(&history)), ["run b", "run c"]);
        assert_eq!(short(&router.on_history(&history)), Vec::<String>::new());
        assert!(short(&router.on_live(&history[1])).is_empty());
    }

    #[test]
    fn permissions_fail_closed() {
        let mut router = router();
        assert_eq!(short(&router.on_live(&call("d", Permission::Deny))), ["leave d (denied)"]);
        assert_eq!(short(&router.on_live(&call("k", Permission::Ask))), ["hold k"]);
        assert!(!router.is_quiet());
        assert_eq!(short(&router.on_live(&confirm("k", true))), ["run k"]);

        // A confirmation may stand before its call; a denial beats an allowance in either order.
        for verdicts in [[false, true], [true, false]] {
            let mut router = Router::new(["bash".to_owned()]);
            let [first, second] = verdicts.map(|allowed| confirm("x", allowed));
            let history = [first, second, call("x", Permission::Ask)];
            assert_eq!(short(&router.on_history(&history)), ["leave x (denied)"]);
        }
        // A denial of the server beats a confirmation.
        let history = [confirm("y", true), call("y", Permission::Deny)];
        assert_eq!(short(&router.on_history(&history)), ["leave y (denied)"]);
    }

    #[test]
    fn a_held_call_is_let_go_when_its_thread_ends_or_somebody_answers() {
        let mut router = router();
        router.on_live(&named_call("t", "bash", Permission::Ask, Some("th")));
        let end = event("e", EventKind::ThreadTerminated(ThreadId::from("th")));
        assert_eq!(short(&router.on_live(&end)), ["leave t (its thread was terminated)"]);
        router.on_live(&call("u", Permission::Ask));
        assert!(router.on_live(&answered("u")).is_empty());
        assert_eq!(router.held(), 0);
        assert!(router.on_live(&confirm("u", true)).is_empty());
    }

    #[test]
    fn other_tools_are_left_alone() {
        let mut router = router();
        let live = named_call("w", "web_search", Permission::Allow, None);
        assert_eq!(short(&router.on_live(&live)), ["leave w (not a tool of this worker)"]);
    }

    #[test]
    fn an_interrupt_cancels_what_came_before_it_once() {
        let mut router = router();
        router.on_live(&call("a", Permission::Allow));
        router.on_live(&call("b", Permission::Allow));
        router.on_live(&answered("a"));
        let interrupt = event("i1", EventKind::UserInterrupt { thread: None });
        assert_eq!(short(&router.on_live(&interrupt)), ["cancel b"]);
        router.on_live(&call("c", Permission::Allow));
        assert!(router.on_live(&interrupt).is_empty(), "the same interrupt again");

        // In a history the interrupt cancels the open call before it, not the one behind it.
        let mut router = Router::new(["bash".to_owned()]);
        let history = [call("a", Permission::Allow), interrupt, call("b", Permission::Allow)];
        assert_eq!(short(&router.on_history(&history)), ["run a", "cancel a", "run b"]);
    }

    #[test]
    fn a_turn_is_over_until_anything_but_a_confirmation_comes() {
        let mut router = router();
        assert!(!router.is_quiet());
        router.on_live(&idle());
        assert!(router.is_quiet());
        router.on_live(&confirm("z", true));
        router.on_live(&answered("late"));
        assert!(router.is_quiet());
        router.on_live(&event("m", EventKind::UserMessage));
        assert!(!router.is_quiet());
        let action = StopReason::RequiresAction { calls: vec![] };
        router.on_live(&event("r", EventKind::StatusIdle(action)));
        assert!(!router.is_quiet());
    }

    #[test]
    fn the_end_is_seen() {
        let mut router = router();
        let end = event("t", EventKind::StatusTerminated);
        assert_eq!(short(&router.on_live(&end)), ["ended terminated"]);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Call(u8, Permission),
        Confirm(u8, bool),
        Answer(u8),
        Replay,
    }

    fn op() -> impl Strategy<Value = Op> {
        let permission =
            prop_oneof![Just(Permission::Allow), Just(Permission::Deny), Just(Permission::Ask)];
        prop_oneof![
            (0u8..6, permission).prop_map(|(id, permission)| Op::Call(id, permission)),
            (0u8..6, any::<bool>()).prop_map(|(id, allowed)| Op::Confirm(id, allowed)),
            (0u8..6).prop_map(Op::Answer),
            Just(Op::Replay),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order, with the history replayed at any point: no call is
        /// routed twice, none runs after a denial was known, none without an allowance.
        #[test]
        fn each_call_is_routed_at_most_once_and_only_when_allowed(
            ops in prop::collection::vec(op(), 0..40),
        ) {
            let mut router = router();
            let mut history: Vec<Event> = Vec::new();
            let mut permissions: HashMap<String, Permission> = HashMap::new();
            let mut ran: HashSet<String> = HashSet::new();
            for op in ops {
                let steps = match op {
                    Op::Replay => router.on_history(&history),
                    Op::Call(id, permission) => {
                        let id = format!("t{id}");
                        // An id never changes its permission.
                        let permission = *permissions.entry(id.clone()).or_insert(permission);
                        let event = call(&id, permission);
                        history.push(event.clone());
                        router.on_live(&event)
                    }
                    Op::Confirm(id, allowed) => {
                        let event = confirm(&format!("t{id}"), allowed);
                        history.push(event.clone());
                        router.on_live(&event)
                    }
                    Op::Answer(id) => {
                        let event = answered(&format!("t{id}"));
                        history.push(event.clone());
                        router.on_live(&event)
                    }
                };
                for step in steps {
                    let Step::Answer(call) = step else { continue };
                    let id = call.id.as_str().to_owned();
                    prop_assert!(ran.insert(id.clone()), "{id} was routed twice");
                    let confirmations = history.iter().filter_map(|event| match &event.kind {
                        EventKind::Confirmation(c) if c.call == call.id => Some(c.allowed),
                        _ => None,
                    });
                    let (mut allowed, mut denied) = (false, false);
                    for confirmation in confirmations {
                        allowed |= confirmation;
                        denied |= !confirmation;
                    }
                    prop_assert!(!denied, "{id} ran though it was denied");
                    prop_assert!(call.permission == Permission::Allow || allowed);
                }
            }
        }
    }
}
