//! Several environments in one process: what happens to one of them costs the others nothing, and
//! is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base_types::SessionId;
use brain_api::BrainErrorKind;
use control_session::{HandsError, KeySource};
use store_api::{Phase, SandboxState, WorkPhase};

use crate::support::brain::{Queue, TestBrain, bash, end_turn, transient};
use crate::support::{Other, Server, World, wait_for};

/// What an operator put into the key file, and the brain that takes it.
struct NewKey {
    is_there: AtomicBool,
    brain: TestBrain,
}

impl KeySource for NewKey {
    fn renew(&self) -> Result<bool, String> {
        let new = self.is_there.swap(false, Ordering::SeqCst);
        if new {
            self.brain.with(|state| state.queue = Queue::Works);
        }
        Ok(new)
    }
}

const REFUSED: Queue = Queue::Fails(BrainErrorKind::Unauthorized { status: 401 });

async fn trouble(server: &Server, environment: &str) -> String {
    let mut seen = String::new();
    wait_for(&format!("trouble of {environment}"), async || {
        match server.environment(environment).trouble {
            Some(trouble) => {
                seen = trouble;
                Ok(())
            }
            None => Err("none".into()),
        }
    })
    .await;
    seen
}

/// The slowest of some calls, from the event to the post.
async fn slowest(world: &World, prefix: &str, calls: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for n in 0..calls {
        let before = world.brain.posts().len();
        let began = Instant::now();
        world.brain.emit(bash(&format!("{prefix}{n}"), "quick"));
        while world.brain.posts().len() == before {
            assert!(began.elapsed() < Duration::from_secs(20), "call {prefix}{n} has no answer");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        slowest = slowest.max(began.elapsed());
    }
    slowest
}

/// One brain is down, one hangs, one refuses the key, one floods us with offers and one is at its
/// limit; the sixth is served as if it were alone.
#[tokio::test]
async fn an_environment_in_trouble_costs_the_others_nothing() {
    const CALLS: usize = 30;
    /// Other tests run at the same time: far above a commit, far below any wait of a poller.
    const BOUND: Duration = Duration::from_millis(700);
    let mut world = World::new().await;
    let brains = ["down", "hangs", "refused", "floods", "full"].map(|name| {
        let brain = TestBrain::of(&format!("env_{name}"), &format!("sesn_{name}"));
        world.others.push(Other { concurrency_max: 1, ..Other::of(brain.clone()) });
        brain
    });
    let [down, hangs, refused, floods, full] = &brains;
    down.with(|state| state.queue = Queue::Fails(transient()));
    refused.with(|state| state.queue = REFUSED);
    // It hangs while a session of it is served: its lease, its feed and its posts stand still.
    hangs.offer("work_hangs");
    full.offer("work_full");
    full.emit(bash("f1", "hang"));
    world.brain.offer("work_1");
    let server = world.serve();
    world.phase_is("serving").await;
    wait_for("the session that will hang", async || match hangs.logged("stream") {
        0 => Err(format!("{:?}", hangs.log())),
        _ => Ok(()),
    })
    .await;
    hangs.with(|state| state.queue = Queue::Hangs);
    hangs.emit(bash("h1", "posted to nobody"));
    full.offer("work_waits");
    floods.with(|state| state.queue = Queue::Floods);
    wait_for("a flood", async || match floods.with(|state| state.polls) {
        polls if polls >= 10 => Ok(()),
        polls => Err(format!("{polls}")),
    })
    .await;
    let began = Instant::now();
    let before = floods.with(|state| state.polls);

    assert!(slowest(&world, "t", CALLS).await < BOUND);
    assert_eq!(server.environment("env_1").trouble, None);
    assert_eq!(trouble(&server, "env_down").await, "test: Transient { retry_after: None }");
    assert!(trouble(&server, "env_refused").await.contains("401"));
    assert!(server.environment("env_refused").refused);
    let full = server.environment("env_full");
    assert_eq!((full.serving, full.concurrency_max, full.trouble), (1, 1, None));
    // The flood came in at our pace, not at the brain's.
    let (polls, time) = (floods.with(|state| state.polls) - before, began.elapsed());
    assert!(polls as u128 <= 2 + time.as_millis() / 20, "{polls} offers in {time:?}");
    drop(server);
}

/// The operator puts a new key where the configuration says; nobody restarts anything.
#[tokio::test]
async fn a_refused_key_is_replaced_without_a_restart() {
    let mut world = World::new().await;
    let brain = TestBrain::of("env_2", "sesn_2");
    brain.with(|state| state.queue = REFUSED);
    let key = Arc::new(NewKey { is_there: AtomicBool::new(false), brain: brain.clone() });
    world.others.push(Other { key: Some(key.clone()), ..Other::of(brain.clone()) });
    // The file is looked at more often than the same key is tried.
    world.timeouts.refused_retry = Duration::from_secs(6);
    let server = world.serve();
    assert!(trouble(&server, "env_2").await.contains("401"));
    let polls = brain.with(|state| state.polls);
    key.is_there.store(true, Ordering::SeqCst);
    brain.offer("work_2");
    brain.emit(bash("t1", "with the new key"));
    wait_for("a post", async || match brain.posts().len() {
        0 => Err(format!("{:?}", server.environment("env_2"))),
        _ => Ok(()),
    })
    .await;
    assert_eq!(polls, 1, "the refused key was not used over and over");
    let status = server.environment("env_2");
    assert_eq!((status.trouble, status.refused), (None, false));
    drop(server);
}

/// Without a place to read another key from, the same one is tried again from time to time.
#[tokio::test]
async fn a_refused_key_is_tried_again() {
    let mut world = World::new().await;
    world.timeouts.refused_retry = Duration::from_millis(300);
    let brain = TestBrain::of("env_2", "sesn_2");
    brain.with(|state| state.queue = REFUSED);
    world.others.push(Other::of(brain.clone()));
    let server = world.serve();
    wait_for("three tries", async || match brain.with(|state| state.polls) {
        polls if polls >= 3 => Ok(()),
        polls => Err(format!("{polls}")),
    })
    .await;
    assert!(server.environment("env_2").refused);
    brain.with(|state| state.queue = Queue::Works);
    wait_for("health", async || match server.environment("env_2").trouble {
        None => Ok(()),
        Some(trouble) => Err(trouble),
    })
    .await;
    drop(server);
}

#[tokio::test]
async fn when_every_key_is_refused_serving_ends_with_each_reason() {
    let mut world = World::new().await;
    world.brain.with(|state| state.queue = REFUSED);
    let brain = TestBrain::of("env_2", "sesn_2");
    brain.with(|state| state.queue = Queue::Fails(transient()));
    world.others.push(Other::of(brain.clone()));
    let mut server = world.serve();
    trouble(&server, "env_1").await;
    trouble(&server, "env_2").await;
    // One that is merely down may come back.
    let early = tokio::time::timeout(Duration::from_millis(1_500), server.ended()).await;
    assert!(early.is_err(), "{early:?}");
    brain.with(|state| state.queue = Queue::Fails(BrainErrorKind::NotFound));
    let ended = tokio::time::timeout(Duration::from_secs(15), server.ended()).await.unwrap();
    let Err(HandsError::AllRefused(why)) = ended else { panic!("{ended:?}") };
    assert!(why.contains("env_1: ") && why.contains("env_2: "), "{why}");
}

/// An offer that cannot be taken is left for a while: it costs neither the brain a storm of
/// requests nor the other items their turn.
#[tokio::test]
async fn an_offer_that_cannot_be_taken_does_not_spin_and_starves_nobody() {
    let world = World::new().await;
    world.brain.with(|state| {
        state.reclaim = Some(Duration::ZERO);
        state.ack_answers = (0..1_000).map(|_| transient()).collect();
    });
    world.brain.offer("work_stuck");
    let server = world.serve();
    world.logged("ack work_stuck", 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let acks = world.brain.logged("ack work_stuck");
    assert!(acks <= 2, "{acks} acknowledgements in a second");
    assert_eq!(server.environment("env_1").left_alone, 1);
    world.brain.with(|state| state.ack_answers.clear());
    world.phase_is("serving").await;
    assert_eq!(server.environment("env_1").left_alone, 0);
    drop(server);
}

/// It is taken out of the configuration while a call of a session runs: the item is let go, the
/// processes end, the files are kept, and the operator is told. Put back, the session goes on.
#[tokio::test]
async fn a_removed_environment_leaves_nothing_behind_but_its_files() {
    let mut world = World::new().await;
    world.keep_running = Duration::from_millis(100);
    world.timeouts.idle = Duration::from_millis(100);
    let removed = TestBrain::of("env_2", "sesn_2");
    world.others.push(Other::of(removed.clone()));
    removed.offer("work_2");
    removed.emit(bash("t1", "hang"));
    let server = world.serve();
    wait_for("the call", async || match world.driver.agent() {
        Some(agent) if agent.begun() == ["hang"] => Ok(()),
        _ => Err("not begun".into()),
    })
    .await;
    server.crash();

    let session = SessionId::from("sesn_2");
    let others = std::mem::take(&mut world.others);
    let server = world.serve();
    let record = || async { world.store.session(&session).await.unwrap().unwrap() };
    wait_for("the end of the processes", async || match record().await.sandbox.unwrap().state {
        SandboxState::Stopped => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(record().await.phase, Phase::Sleeping);
    let work = world.store.work(&"work_2".into()).await.unwrap().unwrap();
    assert!(matches!(work.phase, WorkPhase::Ended { .. }), "{work:?}");
    let log = world.store.log(&session, None, 100).await.unwrap();
    assert!(format!("{log:?}").contains("not in the configuration any more"), "{log:?}");
    let status = server.environment("env_2");
    assert!(!status.configured);
    assert!(status.trouble.unwrap().contains("files of 1 of its sessions"));
    server.shut_down().await;

    world.others = others;
    let server = world.serve();
    removed.offer("work_3");
    wait_for("the answer", async || match removed.posts().first() {
        Some(post) if post.contains("outcome unknown") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    removed.emit(bash("t2", "again"));
    wait_for("the next answer", async || match removed.posts().get(1) {
        Some(post) if post.contains("Files are as they were") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(server.environment("env_2").configured);
    removed.emit(end_turn());
    drop(server);
}
