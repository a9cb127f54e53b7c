//! A profile whose image is not there.

use store_api::LogEvent;

use crate::support::brain::bash;
use crate::support::{World, wait_for};

async fn warnings(world: &World) -> Vec<String> {
    let session = world.brain.session_id();
    let log = world.store.log(&session, None, 1_000).await.unwrap();
    let text = |entry: store_api::LogEntry| match entry.event {
        LogEvent::Warning { text } => Some(text),
        _ => None,
    };
    log.into_iter().filter_map(text).collect()
}

#[tokio::test]
async fn a_missing_image_is_told_to_the_model_and_once_it_is_there_the_session_goes_on() {
    let mut world = World::new().await;
    world.image = "odd".into();
    world.brain.offer("work_1");
    let server = world.serve();
    world.brain.emit(bash("t1", "first"));
    let posts = world.posts_are(1).await;
    for expected in [r#""call":"t1""#, "was not run", "no image `odd`", "sinew image import"] {
        assert!(posts[0].contains(expected), "{expected}: {posts:?}");
    }
    wait_for("a warning in the log", async || match warnings(&world).await {
        told if told.iter().any(|text| text.contains("no image `odd`")) => Ok(()),
        told => Err(format!("{told:?}")),
    })
    .await;
    let session = world.session().await;
    assert!(!session.phase.is_final(), "{:?}", session.phase);
    assert_eq!(world.driver.count(), 0);

    // Asked again and again while the turn lasts, and told of once.
    world.brain.emit(bash("t2", "second"));
    let posts = world.posts_are(2).await;
    assert!(posts[1].contains("no image `odd`"), "{posts:?}");
    assert_eq!(warnings(&world).await.len(), 1, "{:?}", warnings(&world).await);

    world.driver.add_image("odd");
    world.brain.emit(bash("t3", "third"));
    let posts = world.posts_are(3).await;
    assert!(posts[2].contains("third"), "{posts:?}");
    assert_eq!(world.begun(1).await, ["third"], "what was refused is never run");
    drop(server);
}
