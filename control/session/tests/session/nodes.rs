//! Two nodes on one store: they share environments and never a session.

use std::time::Duration;

use base_types::SessionId;
use control_session::{GuestError, StopSessionError};
use store_api::{Phase, SandboxState, WorkPhase};

use crate::support::brain::{SESSION, bash, end_turn};
use crate::support::{Server, World, wait_for};

const TTL: Duration = Duration::from_secs(3);

/// A session that has run something on the first node and sleeps there with its files.
async fn asleep_on_the_first() -> (World, World, Server) {
    let mut first = World::new().await;
    first.timeouts.node_ttl = TTL;
    first.timeouts.idle = Duration::from_millis(100);
    first.keep_running = Duration::from_millis(100);
    first.brain.with(|state| state.reclaim = Some(Duration::from_millis(100)));
    let second = first.beside("node-2");
    first.brain.offer("work_1");
    let server = first.serve();
    first.brain.emit(bash("t1", "one"));
    first.posts_are(1).await;
    first.brain.emit(end_turn());
    sandbox_is(&first, SandboxState::Stopped).await;
    (first, second, server)
}

async fn sandbox_is(world: &World, state: SandboxState) {
    wait_for(&format!("a sandbox that is {state:?}"), async || {
        match world.session().await.sandbox {
            Some(sandbox) if sandbox.state == state => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn left_alone(server: &Server, count: usize) {
    wait_for(&format!("{count} offers left alone"), async || match server.environment("env_1") {
        status if status.left_alone == count => Ok(()),
        status => Err(format!("{status:?}")),
    })
    .await;
}

/// "An item whose session has its volume at the other process is not acked but left to be offered
/// again while that process is alive."
#[tokio::test]
async fn an_item_is_left_to_the_node_that_has_the_files() {
    let (first, second, server) = asleep_on_the_first().await;
    // Alive, and for a moment not looking: it is restarted.
    server.crash();
    let other = second.serve();
    first.brain.emit(bash("t2", "two"));
    first.brain.offer("work_2");
    left_alone(&other, 1).await;
    assert_eq!(first.brain.logged("ack"), 1, "{:?}", first.brain.log());
    assert_eq!(first.brain.posts().len(), 1);

    let server = first.serve();
    let posts = first.posts_are(2).await;
    assert!(posts[1].contains("Files are as they were"), "{posts:?}");
    assert_eq!(first.session().await.owner.unwrap().as_str(), "node-1");
    assert_eq!(second.driver.count(), 0);
    drop((server, other));
}

/// "Once it is gone, the session gets an empty volume under a new epoch and the first result says
/// so." And when it comes back, what it has of the session is removed there.
#[tokio::test]
async fn a_node_that_is_gone_loses_its_sessions_and_is_told_when_it_comes_back() {
    let (first, second, server) = asleep_on_the_first().await;
    let before = first.session().await.sandbox.unwrap();
    server.crash();
    let other = second.serve();
    first.brain.emit(bash("t2", "two"));
    first.brain.offer("work_2");
    let posts = first.posts_are(2).await;
    assert!(posts[1].contains("the workspace is new and empty"), "{posts:?}");
    assert!(posts[1].contains("node-1, which had the files of the session, is gone"), "{posts:?}");
    let session = first.session().await;
    let after = session.sandbox.unwrap();
    assert_eq!(session.owner.unwrap().as_str(), "node-2");
    assert_eq!(after.node.unwrap().as_str(), "node-2");
    assert!(after.epoch > before.epoch && after.volume != before.volume && after.id != before.id);
    first.brain.emit(bash("t3", "three"));
    let posts = first.posts_are(3).await;
    assert!(!posts[2].contains("new and empty"), "it is said once: {posts:?}");

    assert_eq!(first.driver.count(), 1, "the old node's sandbox is still where it was");
    let server = first.serve();
    wait_for("the old node to remove it", async || match first.driver.count() {
        0 => Ok(()),
        count => Err(format!("{count}")),
    })
    .await;
    assert_eq!(second.driver.count(), 1);
    first.brain.emit(bash("t4", "four"));
    first.posts_are(4).await;
    drop((server, other));
}

/// What the lost node had begun is answered and not run again; what it had finished is posted.
#[tokio::test]
async fn calls_of_a_node_that_is_gone_are_answered_from_the_journal() {
    let mut first = World::new().await;
    first.timeouts.node_ttl = TTL;
    first.brain.with(|state| {
        state.ttl = Duration::from_secs(2);
        state.reclaim = Some(Duration::from_millis(100));
        state.send_answers =
            (0..1_000).map(|_| (crate::support::brain::transient(), false)).collect();
    });
    let second = first.beside("node-2");
    first.brain.offer("work_1");
    let server = first.serve();
    first.brain.emit(bash("t1", "finished"));
    first.logged("send", 1).await;
    first.brain.emit(bash("t2", "hang"));
    first.begun(2).await;
    server.crash();
    first.brain.with(|state| state.send_answers.clear());
    let other = second.serve();
    first.brain.offer("work_2");
    let posts = first.posts_are(2).await;
    assert!(posts[0].contains(r#""call":"t1""#) && posts[0].contains("finished"), "{posts:?}");
    assert!(posts[1].contains("outcome unknown") && posts[1].contains("node-1"), "{posts:?}");
    let begun = second.driver.agent().map(|agent| agent.begun()).unwrap_or_default();
    assert!(begun.is_empty(), "nothing runs again: {begun:?}");
    let work = first.store.work(&"work_1".into()).await.unwrap().unwrap();
    assert!(matches!(work.phase, WorkPhase::Ended { .. }), "{work:?}");
    drop(other);
}

/// The store is out of reach of one node only: it lets go before the other may begin, and when it
/// is back it knows that the session is not its own.
#[tokio::test]
async fn a_node_cut_off_from_the_store_lets_go_in_time() {
    let mut first = World::new().await;
    first.timeouts.node_ttl = TTL;
    first.brain.with(|state| state.reclaim = Some(Duration::from_millis(100)));
    let second = first.beside("node-2");
    let cut = first.cut_from_the_store();
    first.brain.offer("work_1");
    let server = first.serve();
    first.brain.emit(bash("t1", "hang"));
    first.begun(1).await;
    let agent = first.driver.agent().unwrap();
    cut.set(true);
    // The running call is killed here before anybody else may have the session.
    wait_for("the call to be killed", async || match agent.killed() {
        0 => Err("it runs".into()),
        _ => Ok(()),
    })
    .await;
    let owner = second.store.owner(&SessionId::from(SESSION)).await.unwrap().unwrap();
    assert!(owner.alive && owner.node.as_str() == "node-1", "{owner:?}");

    let other = second.serve();
    first.brain.offer("work_2");
    let posts = first.posts_are(1).await;
    assert!(posts[0].contains("outcome unknown"), "{posts:?}");
    cut.set(false);
    wait_for("the old node to remove its sandbox", async || match first.driver.count() {
        0 => Ok(()),
        count => Err(format!("{count}: {:?}", server.handle.serving())),
    })
    .await;
    assert_eq!(second.session().await.owner.unwrap().as_str(), "node-2");
    drop((server, other));
}

/// A process that stood still (stopped, swapped out, its machine paused) loses its session meanwhile,
/// and does not know. The brain offers the same item to the next owner: its idle time, which is over
/// when it goes on, must not stop that owner's item.
#[tokio::test]
async fn a_node_that_stood_still_does_not_stop_the_item_of_the_next_owner() {
    let mut first = World::new().await;
    first.timeouts.idle = Duration::from_secs(1);
    first.brain.offer("work_1");
    let server = first.serve();
    first.brain.emit(bash("t1", "one"));
    first.posts_are(1).await;
    first.brain.emit(end_turn());
    wait_for("the session to be idle", async || match first.session().await.phase {
        Phase::Idle => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    first.store.retire_node(&"node-1".into()).await.unwrap();
    first.store.take_session(&SESSION.into(), &"node-2".into()).await.unwrap();
    wait_for("the old owner to let go", async || match server.handle.serving().is_empty() {
        true => Ok(()),
        false => Err(format!("{:?}", first.brain.log())),
    })
    .await;
    assert_eq!(first.brain.logged("stop"), 0, "{:?}", first.brain.log());
    drop(server);
}

/// A sleeping session with processes has an actor, which may have lost the session without a word.
/// The next item is not acknowledged under the lost ownership: nobody would serve it then, ever.
#[tokio::test]
async fn an_actor_that_lost_its_session_asleep_takes_no_item_for_it() {
    let mut first = World::new().await;
    first.timeouts.node_ttl = TTL;
    first.timeouts.idle = Duration::from_millis(100);
    first.brain.with(|state| state.reclaim = Some(Duration::from_millis(100)));
    first.brain.offer("work_1");
    let server = first.serve();
    first.brain.emit(bash("t1", "one"));
    first.posts_are(1).await;
    first.brain.emit(end_turn());
    first.logged("stop", 1).await;
    wait_for("the session to sleep", async || match first.session().await.phase {
        Phase::Sleeping => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(server.handle.serving().len(), 1, "its processes run on");
    // Another node had it for a while, and is gone.
    wait_for("the other node to take it", async || {
        first.store.retire_node(&"node-1".into()).await.unwrap();
        let taken = first.store.take_session(&SESSION.into(), &"node-2".into()).await;
        taken.map(drop).map_err(|error| error.to_string())
    })
    .await;
    first.brain.emit(bash("t2", "two"));
    first.brain.offer("work_2");
    first.posts_are(2).await;
    assert_eq!(first.brain.logged("ack"), 2, "each item once: {:?}", first.brain.log());
    drop(server);
}

/// The store was away from everybody for longer than a sign of life lasts. Whoever is back first
/// does not take the others, who are about to speak, for gone: their files would be lost for nothing.
#[tokio::test]
async fn after_an_outage_for_all_the_first_node_back_takes_nothing_from_the_others() {
    let mut first = World::new().await;
    first.timeouts.node_ttl = TTL;
    first.timeouts.idle = Duration::from_millis(100);
    first.keep_running = Duration::from_millis(100);
    first.brain.with(|state| state.reclaim = Some(Duration::from_millis(100)));
    let mut second = first.beside("node-2");
    let cuts = [first.cut_from_the_store(), second.cut_from_the_store()];
    first.brain.offer("work_1");
    let server = first.serve();
    first.brain.emit(bash("t1", "one"));
    first.posts_are(1).await;
    first.brain.emit(end_turn());
    sandbox_is(&first, SandboxState::Stopped).await;
    let other = second.serve();
    wait_for("the second node's poll", async || match other.environment("env_1").last_poll_at {
        Some(_) => Ok(()),
        None => Err("none yet".into()),
    })
    .await;
    cuts.iter().for_each(|cut| cut.set(true));
    for server in [&server, &other] {
        wait_for("the node to lapse", async || match server.environment("env_1").trouble {
            Some(what) if what.contains("out of reach") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    first.brain.emit(bash("t2", "two"));
    first.brain.offer("work_2");
    cuts[1].set(false);
    wait_for("the first node to count as gone", async || {
        match second.store.owner(&SESSION.into()).await.unwrap() {
            Some(owner) if !owner.alive => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    wait_for("an offer to be left or taken", async || {
        match other.environment("env_1").left_alone + first.brain.logged("ack") - 1 {
            0 => Err(format!("{:?}", first.brain.log())),
            _ => Ok(()),
        }
    })
    .await;
    cuts[0].set(false);
    let posts = first.posts_are(2).await;
    assert!(!posts[1].contains("new and empty"), "{posts:?}");
    assert_eq!(first.session().await.owner.unwrap().as_str(), "node-1");
    drop((server, other));
}

#[tokio::test]
async fn the_wrong_node_refuses_and_names_the_right_one() {
    let (_first, second, server) = asleep_on_the_first().await;
    let other = second.serve();
    let session = SessionId::from(SESSION);
    let Err(GuestError::Elsewhere { node, .. }) = other.handle.guest(&session).await else {
        panic!("lent")
    };
    assert_eq!(node.as_str(), "node-1");
    let stopped = other.handle.stop_session(&session, true).await;
    assert!(matches!(stopped, Err(StopSessionError::Elsewhere { .. })), "{stopped:?}");
    server.crash();
    // Gone for good: its files cannot be looked at, and the session can be forgotten here.
    wait_for("the node to be gone", async || match other.handle.guest(&session).await {
        Err(GuestError::FilesLost { .. }) => Ok(()),
        Err(other) => Err(other.to_string()),
        Ok(_) => Err("lent".into()),
    })
    .await;
    other.handle.stop_session(&session, true).await.unwrap();
    sandbox_is(&second, SandboxState::Gone).await;
    drop(other);
}

/// Many sessions offered to both nodes at once: each is served by one of them, to its end.
#[tokio::test]
async fn a_burst_of_offers_is_shared_and_no_session_is_served_twice() {
    let first = World::new().await;
    let second = first.beside("node-2");
    let brains: Vec<_> = (0..4).map(|n| first.another_session(n)).collect();
    let (one, two) = (first.serve_all(&brains), second.serve_all(&brains));
    for (n, brain) in brains.iter().enumerate() {
        brain.with(|state| state.reclaim = Some(Duration::from_millis(1)));
        brain.emit(bash(&format!("t{n}"), &format!("call {n}")));
        brain.offer(&format!("work_{n}"));
    }
    for brain in &brains {
        wait_for("a post", async || match brain.posts().len() {
            0 => Err(format!("{:?}", brain.log())),
            _ => Ok(()),
        })
        .await;
        assert_eq!(brain.posts().len(), 1);
    }
    let mut begun: Vec<String> =
        [&first, &second].into_iter().flat_map(|world| world.driver.all_begun()).collect();
    begun.sort();
    assert_eq!(begun, ["call 0", "call 1", "call 2", "call 3"]);
    drop((one, two));
}
