//! Threads of multi-agent sessions: their calls share one sandbox and one order, and end with them.

use std::time::Duration;

use store_api::CallState;

use crate::support::brain::{bash, confirm, end_turn, interrupt, of_thread, thread_ends, tool};
use crate::support::{World, wait_for};
use brain_api::{EventKind, Permission};

async fn settled(world: &World, tool_use: &str) -> store_api::CallRecord {
    let mut found = None;
    wait_for(&format!("{tool_use} settled"), async || {
        let calls = world.calls().await;
        found = calls.iter().find(|call| call.call.tool_use.as_str() == tool_use).cloned();
        match &found {
            Some(call) if matches!(call.state, CallState::Settled { .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    found.unwrap()
}

/// One at a time, in the order of their events, whatever their threads (protocol §2.8); a result
/// names its call and never a thread (§2.3).
#[tokio::test]
async fn calls_of_several_threads_run_in_the_order_of_their_events() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(of_thread(bash("a1", "hang a1"), "a"));
    world.begun(1).await;
    world.brain.emit(of_thread(bash("b1", "b1"), "b"));
    world.brain.emit(bash("p1", "p1"));
    world.brain.emit(of_thread(bash("a2", "a2"), "a"));
    world.brain.emit(of_thread(tool("b2", "b2", Permission::Ask), "b"));
    world.brain.emit(of_thread(bash("b3", "b3"), "b"));
    world.driver.agent().unwrap().finish_all("done");
    let posts = world.posts_are(5).await;
    assert_eq!(world.begun(5).await, ["hang a1", "b1", "p1", "a2", "b3"]);
    world.brain.emit(confirm("b2"));
    world.posts_are(6).await;
    assert!(posts.iter().all(|post| !post.contains("thread")), "{posts:?}");
    let threads: Vec<Option<String>> = world
        .calls()
        .await
        .into_iter()
        .map(|call| call.call.thread.map(|thread| thread.to_string()))
        .collect();
    let expected = ["a", "b", "-", "a", "b", "b"].map(|t| (t != "-").then(|| t.to_owned()));
    assert_eq!(threads, expected);
    drop(server);
}

/// The running call of a thread that ends is killed, the waiting ones are dropped, nothing of them
/// is posted, and the other threads go on at once.
#[tokio::test]
async fn a_thread_that_ends_frees_the_sandbox_for_the_others() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(of_thread(bash("a1", "hang for ever"), "a"));
    world.begun(1).await;
    world.brain.emit(of_thread(bash("a2", "never"), "a"));
    world.brain.emit(of_thread(tool("a3", "never", Permission::Ask), "a"));
    world.brain.emit(of_thread(bash("b1", "b1"), "b"));
    world.brain.emit(thread_ends("a"));
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains(r#""call":"b1""#), "{posts:?}");
    world.brain.emit(confirm("a3"));
    world.brain.emit(of_thread(bash("b2", "b2"), "b"));
    assert_eq!(world.posts_are(2).await.len(), 2);
    assert_eq!(world.begun(3).await, ["hang for ever", "b1", "b2"]);
    for call in ["a1", "a2"] {
        let call = settled(&world, call).await;
        let CallState::Settled { end, refused, .. } = &call.state else { unreachable!() };
        assert_eq!((end.summary.as_str(), *refused), ("its thread was terminated", Some(404)));
    }
    assert!(world.calls().await.iter().all(|call| call.call.tool_use.as_str() != "a3"));
    drop(server);
}

/// The same while no process of ours was there: the call is joined, killed and not posted.
#[tokio::test]
async fn a_thread_that_ends_during_a_restart_ends_its_running_call() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(of_thread(bash("a1", "hang"), "a"));
    world.begun(1).await;
    world.logged("beat", 1).await;
    server.crash();
    world.brain.emit(thread_ends("a"));
    world.brain.emit(bash("p1", "p1"));
    let server = world.serve();
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains(r#""call":"p1""#), "{posts:?}");
    settled(&world, "a1").await;
    assert_eq!(world.begun(2).await, ["hang", "p1"]);
    drop(server);
}

/// An interrupt of one thread leaves the calls of the others alone.
#[tokio::test]
async fn an_interrupt_of_one_thread_ends_its_calls_only() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(of_thread(bash("a1", "hang"), "a"));
    world.begun(1).await;
    world.brain.emit(of_thread(bash("b1", "b1"), "b"));
    world.brain.emit(of_thread(bash("a2", "never"), "a"));
    let mut of_a = interrupt("i1");
    of_a.kind = EventKind::UserInterrupt { thread: Some("a".into()) };
    world.brain.emit(of_a);
    let posts = world.posts_are(3).await;
    let cancelled = |post: &&String| post.contains("cancelled by interrupt");
    assert_eq!(posts.iter().filter(cancelled).count(), 2, "{posts:?}");
    assert!(posts.iter().any(|post| post.contains(r#""call":"b1""#) && !cancelled(&post)));
    assert_eq!(world.begun(2).await, ["hang", "b1"]);
    drop(server);
}

/// A finished result of a thread that ended meanwhile is the brain's to refuse; the session goes
/// idle all the same.
#[tokio::test]
async fn a_session_whose_threads_have_ended_goes_idle() {
    let mut world = World::new().await;
    world.timeouts.idle = Duration::from_millis(200);
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(of_thread(tool("a1", "never", Permission::Ask), "a"));
    world.brain.emit(of_thread(bash("a2", "done"), "a"));
    world.posts_are(1).await;
    world.brain.emit(thread_ends("a"));
    world.brain.emit(end_turn());
    world.logged("stop work_1", 1).await;
    world.phase_is("sleeping").await;
    drop(server);
}
