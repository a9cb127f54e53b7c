//! Tests of the router: rules one by one, and any order of everything.

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

/// A whole history, in pages of two.
fn read(router: &mut Router, history: &[Event]) -> Vec<Step> {
    router.on_page(Vec::new(), true);
    for page in history.chunks(2) {
        router.on_page(page.to_vec(), false);
    }
    router.end_history()
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
            Step::CancelHeld(call) => format!("cancel held {}", call.id),
            Step::Void(id) => format!("void {id}"),
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
    assert_eq!(short(&read(&mut router, &history)), ["run b", "run c"]);
    assert_eq!(short(&read(&mut router, &history)), Vec::<String>::new());
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
        assert_eq!(short(&read(&mut router, &history)), ["leave x (denied)"]);
    }
    // A denial of the server beats a confirmation.
    let history = [confirm("y", true), call("y", Permission::Deny)];
    assert_eq!(short(&read(&mut router, &history)), ["leave y (denied)"]);
}

#[test]
fn a_held_call_is_let_go_when_its_thread_ends_or_somebody_answers() {
    let mut router = router();
    router.on_live(&named_call("t", "bash", Permission::Ask, Some("th")));
    let end = event("e", EventKind::ThreadTerminated(ThreadId::from("th")));
    assert_eq!(short(&router.on_live(&end)), ["leave t (its thread was terminated)"]);
    router.on_live(&call("u", Permission::Ask));
    assert!(router.on_live(&answered("u")).is_empty());
    assert_eq!(router.held.len(), 0);
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
    assert_eq!(short(&read(&mut router, &history)), ["run a", "cancel a", "run b"]);
}

/// Interrupts may come without an id, so a reading of the history shows old ones as new: they end
/// what stands before them only.
#[test]
fn an_old_interrupt_without_an_id_does_not_end_later_calls() {
    let mut router = router();
    let interrupt =
        Event { id: None, name: String::new(), kind: EventKind::UserInterrupt { thread: None } };
    router.on_live(&call("a", Permission::Allow));
    assert_eq!(short(&router.on_live(&interrupt)), ["cancel a"]);
    router.on_live(&call("b", Permission::Allow));
    router.on_live(&call("c", Permission::Ask));
    let history = [
        call("a", Permission::Allow),
        interrupt.clone(),
        answered("a"),
        call("b", Permission::Allow),
        call("c", Permission::Ask),
    ];
    assert_eq!(short(&read(&mut router, &history)), ["answered a"]);
    assert_eq!(short(&router.on_live(&interrupt)), ["cancel b", "cancel held c"]);
}

#[test]
fn an_interrupt_answers_a_held_call_and_a_late_confirmation_does_not_run_it() {
    let mut router = router();
    router.on_live(&call("h", Permission::Ask));
    let of_thread = named_call("t", "bash", Permission::Ask, Some("th"));
    router.on_live(&of_thread);
    let interrupt = |id: &str, thread: Option<&str>| {
        event(id, EventKind::UserInterrupt { thread: thread.map(ThreadId::from) })
    };
    assert_eq!(short(&router.on_live(&interrupt("i1", Some("th")))), ["cancel held t"]);
    assert_eq!(short(&router.on_live(&interrupt("i2", None))), ["cancel t", "cancel held h"]);
    assert!(router.on_live(&confirm("h", true)).is_empty());
    assert!(router.held.is_empty());

    // The same from a history, after a restart.
    let mut router = Router::new(["bash".to_owned()]);
    let history = [call("h", Permission::Ask), interrupt("i3", None), idle()];
    assert_eq!(short(&read(&mut router, &history)), ["hold h", "cancel held h"]);
    assert!(router.is_quiet(), "nothing waits for a confirmation any more");
}

#[test]
fn a_thread_that_ends_takes_its_calls_along_and_no_others() {
    let mut router = router();
    for (id, permission, thread) in [
        ("a", Permission::Allow, Some("t1")),
        ("b", Permission::Allow, Some("t2")),
        ("c", Permission::Ask, Some("t1")),
        ("d", Permission::Allow, None),
        ("e", Permission::Allow, Some("t1")),
    ] {
        router.on_live(&named_call(id, "bash", permission, thread));
    }
    router.on_live(&answered("e"));
    let end = event("end", EventKind::ThreadTerminated(ThreadId::from("t1")));
    let steps = router.on_live(&end);
    assert_eq!(short(&steps), ["void a", "leave c (its thread was terminated)"]);
    assert!(router.on_live(&end).is_empty(), "it is told twice");
    assert!(router.on_live(&confirm("c", true)).is_empty());
    assert_eq!(router.fate(&ToolUseId::from("a")), Fate::Void);
    assert_eq!(router.fate(&ToolUseId::from("e")), Fate::Answered);
    assert_eq!(router.fate(&ToolUseId::from("b")), Fate::Open);
    // One that comes after the end of its thread is not run.
    let late = named_call("f", "bash", Permission::Allow, Some("t1"));
    assert_eq!(short(&router.on_live(&late)), ["leave f (its thread was terminated)"]);
}

#[test]
fn a_reading_keeps_nothing_of_answered_calls_and_a_broken_one_does_not_count() {
    let mut router = router();
    let mut page = vec![call("a", Permission::Allow), answered("a"), idle()];
    router.on_page(page.clone(), true);
    assert!(router.reading.as_ref().unwrap().open.is_empty());
    assert!(!router.is_quiet(), "the rest of the history is not known yet");
    // It breaks off, and the next one begins anew.
    page.push(call("b", Permission::Allow));
    router.on_page(page, true);
    assert_eq!(router.reading.as_ref().unwrap().open.len(), 1);
    assert_eq!(short(&router.end_history()), ["run b"]);
    assert!(!router.is_quiet());
    assert!(router.end_history().is_empty(), "there is no reading");
}

#[test]
fn held_calls_run_in_the_order_in_which_they_came() {
    let mut router = router();
    for id in ["z", "y", "x", "w"] {
        router.on_live(&named_call(id, "bash", Permission::Ask, None));
    }
    let confirmed: Vec<Event> = ["w", "x", "y", "z"].map(|id| confirm(id, true)).into();
    assert_eq!(short(&read(&mut router, &confirmed)), ["run z", "run y", "run x", "run w"]);
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
                Op::Replay => read(&mut router, &history),
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
