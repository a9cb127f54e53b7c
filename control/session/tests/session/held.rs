//! Calls that wait for a person: whatever happens meanwhile, they run once, when they may, or
//! never.

use std::time::Duration;

use brain_api::{BrainErrorKind, EventKind, Permission};
use store_api::LogEvent;

use crate::support::brain::{
    bash, confirm, deny, end_turn, event, interrupt, of_thread, thread_ends, tool,
};
use crate::support::{Server, World, wait_for};

async fn held(world: &World) -> Server {
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(tool("h1", "careful", Permission::Ask));
    is_held(world, 1).await;
    server
}

/// The log says that a call is held, this many times by now.
async fn is_held(world: &World, times: usize) {
    wait_for("a held call in the log", async || {
        let session = world.brain.session_id();
        let log = world.store.log(&session, None, 1_000).await.unwrap();
        let held = |entry: &&store_api::LogEntry| matches!(entry.event, LogEvent::CallHeld { .. });
        match log.iter().filter(held).count() {
            seen if seen >= times => Ok(()),
            seen => Err(format!("{seen}")),
        }
    })
    .await;
}

/// A call after it shows that it has been decided about and passed over.
async fn next_answer_is(world: &World, id: &str) {
    let before = world.brain.posts().len();
    world.brain.emit(bash(id, id));
    let posts = world.posts_are(before + 1).await;
    assert_eq!(posts.len(), before + 1, "{posts:?}");
    assert!(posts[before].contains(&format!(r#""call":"{id}""#)), "{posts:?}");
}

#[tokio::test]
async fn a_confirmation_while_nobody_served_runs_the_call_once() {
    let world = World::new().await;
    let server = held(&world).await;
    server.crash();
    world.brain.emit(confirm("h1"));
    let server = world.serve();
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("careful"), "{posts:?}");
    world.brain.emit_again(confirm("h1"));
    next_answer_is(&world, "t2").await;
    assert_eq!(world.begun(2).await, ["careful", "t2"]);
    drop(server);
}

#[tokio::test]
async fn a_denial_while_nobody_served_is_final() {
    let world = World::new().await;
    let server = held(&world).await;
    server.crash();
    world.brain.emit(deny("h1"));
    let server = world.serve();
    next_answer_is(&world, "t2").await;
    world.brain.emit(confirm("h1"));
    next_answer_is(&world, "t3").await;
    assert_eq!(world.begun(2).await, ["t2", "t3"]);
    drop(server);
}

#[tokio::test]
async fn a_held_call_waits_through_restarts_without_running() {
    let world = World::new().await;
    let server = held(&world).await;
    server.crash();
    let server = world.serve();
    is_held(&world, 2).await;
    server.shut_down().await;
    assert_eq!(world.brain.logged("stop"), 0, "an item with a held call is not stopped");
    let server = world.serve();
    is_held(&world, 3).await;
    assert!(world.brain.posts().is_empty());
    world.brain.emit(confirm("h1"));
    world.posts_are(1).await;
    assert_eq!(world.begun(1).await, ["careful"]);
    drop(server);
}

/// The turn is over: the call is answered without having run, a later confirmation changes nothing,
/// and the item is not kept for it.
#[tokio::test]
async fn an_interrupt_answers_a_held_call_and_the_session_goes_idle() {
    for restart in [false, true] {
        let mut world = World::new().await;
        world.timeouts.idle = Duration::from_millis(200);
        let mut server = Some(held(&world).await);
        if restart {
            server.take().unwrap().crash();
        }
        world.brain.emit(interrupt("i1"));
        world.brain.emit(end_turn());
        let server = server.unwrap_or_else(|| world.serve());
        let posts = world.posts_are(1).await;
        assert!(posts[0].contains("cancelled by interrupt"), "{posts:?}");
        world.brain.emit(confirm("h1"));
        world.logged("stop work_1", 1).await;
        let begun = world.driver.agent().map(|agent| agent.begun()).unwrap_or_default();
        assert!(begun.is_empty(), "{begun:?}");
        drop(server);
    }
}

#[tokio::test]
async fn a_held_call_goes_with_its_thread() {
    let world = World::new().await;
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(of_thread(tool("h1", "careful", Permission::Ask), "a"));
    is_held(&world, 1).await;
    server.crash();
    world.brain.emit(thread_ends("a"));
    world.brain.emit(confirm("h1"));
    let server = world.serve();
    next_answer_is(&world, "t2").await;
    assert_eq!(world.begun(1).await, ["t2"]);
    drop(server);
}

/// The lease is lost while a person thinks: whoever serves the session next holds the call again,
/// and runs it when it may.
#[tokio::test]
async fn a_held_call_outlives_its_lease() {
    let world = World::new().await;
    world.brain.with(|state| state.ttl = Duration::from_secs(2));
    let server = held(&world).await;
    world.brain.with(|state| state.beat_answers = [Err(BrainErrorKind::LeaseLost)].into());
    world.phase_is("sleeping").await;
    assert_eq!(world.brain.logged("stop"), 0);
    world.brain.emit(confirm("h1"));
    world.brain.offer("work_2");
    let posts = world.posts_are(1).await;
    assert!(posts[0].contains("careful"), "{posts:?}");
    assert_eq!(world.begun(1).await, ["careful"]);
    drop(server);
}

#[tokio::test]
async fn a_session_that_ends_with_a_held_call_leaves_nothing() {
    let world = World::new().await;
    let server = held(&world).await;
    world.brain.emit(event("end", EventKind::StatusTerminated));
    world.phase_is("ended").await;
    world.brain.emit(confirm("h1"));
    wait_for("rest", async || match server.handle.serving().len() {
        0 => Ok(()),
        _ => Err("an actor".into()),
    })
    .await;
    assert!(world.brain.posts().is_empty());
    assert_eq!(world.driver.count(), 0);
    drop(server);
}
