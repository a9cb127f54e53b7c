//! A session is served: order, permissions, recovery, and what happens when things go wrong.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::brain::{SESSION, bash, confirm, end_turn, event, tool, transient};
use crate::support::{World, wait_for};
use base_types::SessionId;
use brain_api::{BrainErrorKind, EventKind, Heartbeat, Permission, SessionStatus, WorkState};
use store_api::{CallState, Phase, SandboxState, Untold, WorkPhase};

/// The whole way: claim, ack, beat, retrieve, stream, list, run, post, idle, stop, in this order.
#[tokio::test]
async fn a_session_is_served_from_claim_to_stop() {
    let mut world = World::new().await;
    world.timeouts.idle = Duration::from_millis(300);
    world.brain.offer("work_1");
    world.brain.with(|state| state.history.push(bash("t1", "echo")));
    let server = world.serve();
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains(r#""call":"t1""#) && posts[0].contains("echo"), "{posts:?}");
    world.brain.emit(end_turn());
    world.logged("stop work_1", 1).await;
    world.phase_is("sleeping").await;

    let log = world.brain.log();
    let at = |what: &str| log.iter().position(|line| line.starts_with(what)).expect(what);
    assert_eq!(at("ack"), 0);
    assert!(at("beat NO_HEARTBEAT") < at("list"), "the first beat is right after the ack: {log:?}");
    assert!(at("retrieve") < at("stream") && at("stream") < at("list") && at("list") < at("send"));
    assert_eq!(log.last().unwrap(), "stop work_1");
    let calls = world.calls().await;
    assert!(matches!(calls[0].state, CallState::Settled { refused: None, .. }));
    wait_for("the ack to the agent", async || match world.driver.agent().unwrap().acked() {
        1 => Ok(()),
        acked => Err(format!("{acked}")),
    })
    .await;
    drop(server);
}

#[tokio::test]
async fn calls_of_one_session_run_in_order_and_held_ones_wait() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.phase_is("serving").await;
    world.brain.emit(bash("t1", "hang"));
    world.brain.emit(bash("t2", "two"));
    world.brain.emit(tool("t3", "three", Permission::Ask));
    world.brain.emit(tool("t4", "four", Permission::Deny));
    world.brain.emit(bash("t5", "five"));
    assert_eq!(world.begun(1).await, ["hang"]);
    world.driver.agent().unwrap().finish_all("done");
    world.posts_are(3).await;
    assert_eq!(world.begun(3).await, ["hang", "two", "five"], "ask and deny have not run");
    world.brain.emit(confirm("t3"));
    world.posts_are(4).await;
    assert_eq!(world.begun(4).await, ["hang", "two", "five", "three"]);
    let order: Vec<String> =
        world.calls().await.into_iter().map(|call| call.call.tool_use.into_string()).collect();
    assert_eq!(order, ["t1", "t2", "t5", "t3"]);
    drop(server);
}

#[tokio::test]
async fn a_wrong_input_is_answered_without_running() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    let mut wrong = bash("t1", "");
    if let EventKind::ToolUse(call) = &mut wrong.kind {
        call.input = serde_json::json!("not an object");
    }
    world.brain.emit(wrong);
    world.brain.emit(bash("t2", "right"));
    let posts = world.posts_are(2).await;
    assert!(posts[0].contains("command is required") && posts[0].contains(r#""is_error":true"#));
    assert_eq!(world.begun(1).await, ["right"]);
    drop(server);
}

#[tokio::test]
async fn an_event_that_comes_three_times_runs_once() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.phase_is("serving").await;
    world.brain.emit(bash("t1", "once"));
    world.brain.emit_again(bash("t1", "once"));
    world.brain.cut_streams();
    world.logged("stream", 2).await;
    world.brain.emit_again(bash("t1", "once"));
    world.brain.emit(bash("t2", "after"));
    world.posts_are(2).await;
    assert_eq!(world.begun(2).await, ["once", "after"]);
    drop(server);
}

#[tokio::test]
async fn a_call_that_came_while_the_stream_was_down_is_found_and_a_failed_list_is_repeated() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.phase_is("serving").await;
    world.brain.with(|state| state.list_answers = [transient(), transient()].into());
    world.brain.cut_streams();
    world.brain.with(|state| state.history.push(bash("gap", "gap")));
    world.posts_are(1).await;
    assert_eq!(world.begun(1).await, ["gap"]);
    drop(server);
}

#[tokio::test]
async fn an_ambiguous_send_is_looked_up_before_it_is_repeated() {
    let world = World::new().await;
    world.brain.offer("work_1");
    // The first answer is lost after the post arrived, the second post never arrives.
    world.brain.with(|state| {
        state.send_answers =
            [(BrainErrorKind::Ambiguous, true), (BrainErrorKind::Ambiguous, false)].into();
    });
    let server = world.serve();
    world.brain.emit(bash("t1", "one"));
    world.brain.emit(bash("t2", "two"));
    let posts = world.posts_are(2).await;
    assert!(posts[0].contains("t1") && posts[1].contains("t2"));
    wait_for("both settled", async || {
        let calls = world.calls().await;
        let settled =
            |call: &store_api::CallRecord| matches!(call.state, CallState::Settled { .. });
        if calls.len() == 2 && calls.iter().all(settled) {
            Ok(())
        } else {
            Err(format!("{calls:?}"))
        }
    })
    .await;
    assert_eq!(world.brain.logged("send"), 3, "t1 once, t2 twice");
    let sends: Vec<_> =
        world.brain.log().into_iter().filter(|line| line.starts_with("send")).collect();
    assert_eq!(sends[1], sends[2], "byte for byte");
    drop(server);
}

#[tokio::test]
async fn a_refused_result_is_not_computed_again() {
    let world = World::new().await;
    world.brain.offer("work_1");
    world.brain.with(|state| {
        state.send_answers = [(BrainErrorKind::Fatal { status: 400 }, false)].into();
    });
    let server = world.serve();
    world.brain.emit(bash("t1", "one"));
    world.brain.emit(bash("t2", "two"));
    world.posts_are(1).await;
    world.brain.cut_streams();
    world.logged("stream", 2).await;
    world.brain.emit(bash("t3", "three"));
    world.posts_are(2).await;
    assert_eq!(world.begun(3).await, ["one", "two", "three"]);
    let first = world.calls().await.remove(0);
    assert!(matches!(first.state, CallState::Settled { refused: Some(400), .. }));
    drop(server);
}

#[tokio::test]
async fn a_result_that_is_too_large_is_posted_shortened_once() {
    let world = World::new().await;
    world.brain.offer("work_1");
    world.brain.with(|state| state.send_answers = [(BrainErrorKind::TooLarge, false)].into());
    let server = world.serve();
    world.brain.emit(bash("t1", "long"));
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("too large to deliver"), "{posts:?}");
    drop(server);
}

#[tokio::test]
async fn a_lost_lease_kills_and_says_nothing_and_the_outcome_is_kept() {
    let world = World::new().await;
    world.brain.with(|state| state.ttl = Duration::from_secs(2));
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    world.brain.with(|state| state.beat_answers = [Err(BrainErrorKind::LeaseLost)].into());
    world.phase_is("sleeping").await;
    assert_eq!(world.brain.logged("stop"), 0);
    assert!(world.brain.posts().is_empty());
    let call = world.calls().await.remove(0);
    assert!(matches!(&call.state, CallState::Finished { end, .. } if end.is_error), "{call:?}");

    // The item comes back: the call is answered from the journal and not run again.
    world.brain.offer("work_2");
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("outcome unknown"), "{posts:?}");
    assert_eq!(world.begun(1).await, ["hang"]);
    drop(server);
}

#[tokio::test]
async fn a_stop_kills_what_runs_and_stops_the_item() {
    let world = World::new().await;
    world.brain.with(|state| state.ttl = Duration::from_secs(2));
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    let stopping = Heartbeat {
        last: "x".into(),
        extended: true,
        state: WorkState::Stopping,
        ttl: Some(Duration::from_secs(2)),
    };
    world.brain.with(|state| state.beat_answers = [Ok(stopping)].into());
    world.logged("stop work_1", 1).await;
    assert!(world.brain.posts().is_empty());
    world.phase_is("sleeping").await;
    drop(server);
}

#[tokio::test]
async fn beats_that_fail_for_a_while_do_not_cost_the_lease() {
    let world = World::new().await;
    world.brain.with(|state| {
        state.ttl = Duration::from_secs(2);
        state.beat_answers = (0..3).map(|_| Err(transient())).collect();
    });
    world.brain.offer("work_1");
    let server = world.serve();
    world.logged("beat beat-", 2).await;
    world.brain.emit(bash("t1", "still here"));
    world.posts_are(1).await;
    assert_eq!(world.brain.logged("stop"), 0);
    drop(server);
}

#[tokio::test]
async fn an_interrupt_ends_the_running_call_and_answers_the_waiting_one() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.brain.emit(bash("t2", "never"));
    world.begun(1).await;
    world.brain.emit(event("i1", EventKind::UserInterrupt { thread: None }));
    let posts = world.posts_are(2).await;
    assert!(posts.iter().all(|post| post.contains("cancelled by interrupt")), "{posts:?}");
    world.brain.emit_again(event("i1", EventKind::UserInterrupt { thread: None }));
    world.brain.emit(bash("t3", "after"));
    let posts = world.posts_are(3).await;
    assert!(posts[2].contains("after"));
    assert_eq!(world.begun(2).await, ["hang", "after"]);
    drop(server);
}

/// The interrupt came while no process of ours was there: the call is joined and killed.
#[tokio::test]
async fn an_interrupt_during_a_restart_ends_the_call_that_runs() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    world.logged("beat", 1).await;
    server.crash();
    world.brain.emit(event("i1", EventKind::UserInterrupt { thread: None }));
    let server = world.serve();
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("cancelled by interrupt"), "{posts:?}");
    assert_eq!(world.begun(1).await, ["hang"]);
    drop(server);
}

/// A sandbox that is still being made when its session ends does not outlive it.
#[tokio::test]
async fn a_session_that_ends_while_its_sandbox_is_made_leaves_nothing() {
    let world = World::new().await;
    world.driver.hold.store(true, Ordering::SeqCst);
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "never"));
    wait_for("a creation", async || match world.driver.created.lock().unwrap().len() {
        0 => Err("none".into()),
        _ => Ok(()),
    })
    .await;
    world.brain.emit(event("end", EventKind::StatusTerminated));
    world.logged("stop work_1", 1).await;
    world.driver.hold.store(false, Ordering::SeqCst);
    world.phase_is("ended").await;
    wait_for("rest", async || match server.handle.serving().len() {
        0 => Ok(()),
        _ => Err("an actor".into()),
    })
    .await;
    assert_eq!(world.driver.count(), 0);
    assert_eq!(world.session().await.sandbox.unwrap().state, SandboxState::Gone);
    let open = world.store.open_calls(&SessionId::from(SESSION)).await.unwrap();
    assert!(open.is_empty(), "its rows can be forgotten: {open:?}");
    drop(server);
}

/// A sandbox that comes up while its item is being ended is not lost sight of: it is stopped.
#[tokio::test]
async fn a_sandbox_that_comes_up_during_an_end_is_stopped_with_it() {
    let world = World::new().await;
    world.driver.hold.store(true, Ordering::SeqCst);
    world.brain.with(|state| {
        state.send_answers = (0..50).map(|_| (transient(), false)).collect();
    });
    world.brain.offer("work_1");
    let server = world.serve();
    // Answered without a sandbox, and undelivered: the end waits for its delivery.
    let mut wrong = bash("t1", "");
    if let EventKind::ToolUse(call) = &mut wrong.kind {
        call.input = serde_json::json!(1);
    }
    world.brain.emit(wrong);
    world.logged("send", 1).await;
    wait_for("a creation", async || match world.driver.created.lock().unwrap().len() {
        0 => Err("none".into()),
        _ => Ok(()),
    })
    .await;
    let handle = server.handle.clone();
    let stop =
        tokio::spawn(async move { handle.stop_session(&SessionId::from(SESSION), false).await });
    world.logged("send", 2).await;
    world.driver.hold.store(false, Ordering::SeqCst);
    let stopped = tokio::time::timeout(Duration::from_secs(40), stop).await;
    stopped.expect("the stop does not wait for news that has come").unwrap().unwrap();
    assert!(world.driver.agent().unwrap().is_dead());
    assert_eq!(world.session().await.sandbox.unwrap().state, SandboxState::Stopped);
    drop(server);
}

#[tokio::test]
async fn a_terminated_session_runs_nothing_and_its_files_go() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    world.brain.emit(event("end", EventKind::StatusTerminated));
    world.phase_is("ended").await;
    world.logged("stop work_1", 1).await;
    assert!(world.brain.posts().is_empty());
    assert_eq!(world.driver.count(), 0);
    drop(server);

    let world = World::new().await;
    world.brain.with(|state| state.info.status = SessionStatus::Terminated);
    world.brain.with(|state| state.history.push(bash("t1", "no")));
    world.brain.offer("work_1");
    let server = world.serve();
    world.logged("stop work_1", 1).await;
    assert_eq!(world.brain.logged("stream"), 0);
    assert_eq!(world.driver.count(), 0);
    drop(server);
}

/// SIGKILL in the middle of a call: the agent has it, so the next process joins it.
#[tokio::test]
async fn a_restart_joins_the_call_that_runs() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    world.logged("beat", 1).await;
    server.crash();

    let server = world.serve();
    world.logged("beat beat-1", 1).await;
    world.logged("list", 2).await;
    world.driver.agent().unwrap().finish_all("survived");
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("survived"), "{posts:?}");
    assert_eq!(world.begun(1).await, ["hang"], "it ran once");
    assert_eq!(world.brain.logged("ack"), 1, "the lease went on");
    drop(server);
}

/// The sandbox died while no process of ours was there: the outcome is unknown, and said so.
#[tokio::test]
async fn a_restart_without_the_sandbox_answers_outcome_unknown() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    server.crash();
    world.driver.agent().unwrap().die();

    let server = world.serve();
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("outcome unknown"), "{posts:?}");
    world.brain.emit(bash("t2", "next"));
    let posts = world.posts_are(2).await;
    assert!(posts[1].contains("this is a new shell"), "{posts:?}");
    world.brain.emit(bash("t3", "later"));
    let posts = world.posts_are(3).await;
    assert!(!posts[2].contains("this is a new shell"), "it is said once: {posts:?}");
    assert_eq!(world.session().await.sandbox.unwrap().epoch.0, 2);
    drop(server);
}

/// A result that was finished and not delivered before a crash is delivered after it, byte for
/// byte, without running the call again.
#[tokio::test]
async fn a_finished_result_outlives_a_crash() {
    let world = World::new().await;
    world.brain.offer("work_1");
    world.brain.with(|state| {
        state.send_answers = (0..50).map(|_| (transient(), false)).collect();
    });
    let server = world.serve();
    world.brain.emit(bash("t1", "precious"));
    world.logged("send", 1).await;
    server.crash();
    let first = world.brain.log().into_iter().find(|line| line.starts_with("send")).unwrap();
    world.brain.with(|state| state.send_answers.clear());

    let server = world.serve();
    let posts = world.posts_are(1).await;
    assert_eq!(format!("send {}", posts[0]), first);
    assert_eq!(world.begun(1).await, ["precious"]);
    drop(server);
}

#[tokio::test]
async fn a_sandbox_that_dies_under_a_call_is_replaced_and_the_model_told_why() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    world.driver.agent().unwrap().die();
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("outcome unknown"), "{posts:?}");
    world.brain.emit(bash("t2", "again"));
    let posts = world.posts_are(2).await;
    assert!(posts[1].contains("this is a new shell"), "{posts:?}");
    drop(server);
}

#[tokio::test]
async fn a_silent_agent_ends_its_epoch() {
    let mut world = World::new().await;
    world.timeouts.agent_silent = Duration::from_millis(300);
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    world.driver.agent().unwrap().mute();
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("outcome unknown"), "{posts:?}");
    drop(server);
}

/// The issue's own sentence: idle, then a new message after both `keep_running` and a restart.
#[tokio::test]
async fn a_session_that_slept_finds_its_files_and_is_told_about_its_processes() {
    let mut world = World::new().await;
    world.timeouts.idle = Duration::from_millis(100);
    world.keep_running = Duration::from_millis(200);
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "one"));
    world.posts_are(1).await;
    let volume = world.session().await.sandbox.unwrap().volume;
    world.brain.emit(end_turn());
    wait_for("the sandbox to be stopped", async || {
        match world.session().await.sandbox.unwrap().state {
            SandboxState::Stopped => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    server.shut_down().await;

    let server = world.serve();
    world.brain.offer("work_2");
    world.brain.emit(event("m", EventKind::UserMessage));
    world.brain.emit(bash("t2", "two"));
    let posts = world.posts_are(2).await;
    assert!(
        posts[1].contains("this is a new shell") && posts[1].contains("Files are as they were")
    );
    let sandbox = world.session().await.sandbox.unwrap();
    assert_eq!((sandbox.volume, sandbox.epoch.0), (volume, 2));
    drop(server);
}

#[tokio::test]
async fn a_volume_that_is_gone_fails_the_session_and_is_not_replaced() {
    let mut world = World::new().await;
    world.timeouts.idle = Duration::from_millis(50);
    world.keep_running = Duration::from_millis(50);
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "one"));
    world.posts_are(1).await;
    world.brain.emit(end_turn());
    world.phase_is("sleeping").await;
    let sandbox = world.session().await.sandbox.unwrap();
    sandbox_api::SandboxDriver::destroy(&*world.driver, &sandbox.id, &sandbox.volume)
        .await
        .unwrap();
    world.brain.offer("work_2");
    world.brain.emit(bash("t2", "two"));
    world.phase_is("failed").await;
    let Phase::Failed { reason } = world.session().await.phase else { panic!() };
    assert!(reason.contains("is gone"), "{reason}");
    assert_eq!(world.driver.count(), 0, "no empty sandbox took its place");
    world.logged("stop work_2", 1).await;
    drop(server);
}

#[tokio::test]
async fn a_sandbox_that_does_not_start_is_tried_again_and_the_call_waits() {
    let world = World::new().await;
    *world.driver.refuse.lock().unwrap() = Some("no space".into());
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "patient"));
    wait_for("a failed start", async || match world.driver.created.lock().unwrap().len() {
        0 => Err("none".into()),
        _ => Ok(()),
    })
    .await;
    assert!(world.brain.posts().is_empty());
    *world.driver.refuse.lock().unwrap() = None;
    world.posts_are(1).await;
    assert_eq!(world.session().await.sandbox.unwrap().untold, None::<Untold>);
    drop(server);
}

#[tokio::test]
async fn a_refused_acknowledgement_stops_the_item_and_polling_goes_on() {
    let world = World::new().await;
    world.brain.with(|state| state.ack_answers = [BrainErrorKind::NotFound].into());
    world.brain.offer("work_1");
    let server = world.serve();
    world.logged("stop work_1", 1).await;
    world.brain.offer("work_2");
    world.logged("beat NO_HEARTBEAT", 1).await;
    let work = world.store.work(&"work_1".into()).await.unwrap().unwrap();
    assert!(matches!(work.phase, WorkPhase::Ended { .. }));
    drop(server);
}

#[tokio::test]
async fn a_shutdown_waits_for_the_call_and_leaves_the_item_open() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "hang"));
    world.begun(1).await;
    let agent = world.driver.agent().unwrap();
    let finish = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        agent.finish_all("in time");
    });
    server.shut_down().await;
    finish.await.unwrap();
    assert!(world.posts_are(1).await[0].contains("in time"));
    assert_eq!(world.brain.logged("stop"), 0, "the turn goes on, so the item is not stopped");
    assert!(!world.driver.agent().unwrap().is_dead());
    let open = world.store.open_work(&"node-1".into()).await.unwrap();
    assert_eq!(open.len(), 1, "a restart goes on with it");
}

#[tokio::test]
async fn an_operator_borrows_the_sandbox_and_stops_the_session() {
    let mut world = World::new().await;
    world.timeouts.idle = Duration::from_millis(50);
    world.keep_running = Duration::from_millis(50);
    world.brain.offer("work_1");
    let server = world.serve();
    let session = SessionId::from(SESSION);
    world.phase_is("serving").await;
    world.brain.emit(end_turn());
    wait_for("rest", async || match server.handle.serving().len() {
        0 => Ok(()),
        _ => Err("an actor".into()),
    })
    .await;
    // It sleeps without processes: borrowing wakes it, and keeps it awake.
    let lease = server.handle.guest(&session).await.unwrap();
    assert_eq!(lease.epoch.0, 2);
    tokio::time::sleep(Duration::from_millis(200)).await;
    lease.client.ping().await.expect("still awake");
    drop(lease);
    server.handle.stop_session(&session, true).await.unwrap();
    world.phase_is("ended").await;
    assert_eq!(world.driver.count(), 0);
    assert!(server.handle.guest(&session).await.is_err());
    drop(server);
}

/// The post arrived, and the crash came before the journal knew: the history says so, the result is
/// not posted again, and nothing stays open.
#[tokio::test]
async fn a_result_posted_before_a_crash_is_settled_by_the_history() {
    let mut world = World::new().await;
    let cut = world.cut_from_the_store();
    world.brain.offer("work_1");
    let server = world.serve();
    world.phase_is("serving").await;
    world.brain.cut_at_send(cut.clone());
    world.brain.emit(bash("t1", "once"));
    world.posts_are(1).await;
    server.crash();
    cut.set(false);
    let open = world.store.open_calls(&SessionId::from(SESSION)).await.unwrap();
    assert!(matches!(open[0].state, CallState::Finished { .. }), "{open:?}");

    let server = world.serve();
    wait_for("the call to be settled", async || {
        match world.store.open_calls(&SessionId::from(SESSION)).await.unwrap() {
            open if open.is_empty() => Ok(()),
            open => Err(format!("{open:?}")),
        }
    })
    .await;
    assert_eq!(world.brain.logged("send"), 1);
    let call = world.calls().await.remove(0);
    assert!(matches!(call.state, CallState::Settled { refused: None, .. }), "{call:?}");
    assert_eq!(world.begun(1).await, ["once"]);
    drop(server);
}
