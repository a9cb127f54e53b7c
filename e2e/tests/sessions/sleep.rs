//! A sandbox outlives its work item; its files outlive its processes.

use std::time::{Duration, Instant};

use testkit::{Installation, Options, can_run_sandboxes};

use crate::SCENE;

const LEAVE_AND_COME_BACK: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo kept > kept.txt; memory=lost; sleep 1000 & echo left" }
expect = { is_error = false, contains = "left" }

[[step]]
end_turn = "end_turn"

[[step]]
[[step.call]]
tool = "bash"
input = { command = "cat kept.txt; echo memory=$memory." }
expect = { is_error = false, contains = ["kept", "memory=.", "shell"] }

[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo again" }
expect = { is_error = false, equals = "again" }

[[step]]
end_turn = "end_turn"
"#;

const CONFIG: &str = r#"
[limits]
idle = "200ms"

[[profile]]
name = "default"
keep_running = "500ms"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn after_keep_running_and_a_restart_files_are_there_and_the_loss_of_processes_is_told() {
    let name = "after_keep_running_and_a_restart_files_are_there_and_the_loss_of_processes_is_told";
    let Some(images) = can_run_sandboxes(name) else { return };
    let options = Options {
        config: CONFIG.to_owned(),
        scenarios: vec![("come-back", LEAVE_AND_COME_BACK.to_owned())],
    };
    let mut installation = Installation::start(&images, options);
    let brain = installation.brain.clone();
    let session = brain.start_session("come-back", "Leave something").await;
    brain
        .wait_until(&session, SCENE, "the first turn is over", |played| {
            played.results.len() == 1 && played.session["status"] == "idle"
        })
        .await;

    // The item is given back, then the processes end; the journal says so.
    let shown = |installation: &Installation| {
        installation.json(&["session", "show", "--json", session.as_str()])
    };
    let until = Instant::now() + SCENE;
    while shown(&installation)["sandbox"]["state"] != "stopped" {
        assert!(Instant::now() < until, "its processes do not end: {:#}", shown(&installation));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let items = brain.played(&session).await.items;
    assert!(items.iter().all(|item| item["state"] == "stopped"), "{items:#?}");
    assert!(installation.stop_serve());
    installation.start_serve();

    brain.say(&session, "And now?").await;
    let played = brain
        .wait_until(&session, SCENE, "the second turn is over", |played| {
            played.results.len() == 3 && played.session["status"] == "idle"
        })
        .await;
    assert!(played.results[1].text.contains("kept"), "{played:#?}");
    let shown = shown(&installation);
    assert_eq!(shown["sandbox"]["epoch"], 2);
    assert_eq!(shown["sandbox"]["restored_from"], "same_volume");
    assert_eq!(shown["sandbox"]["untold"], serde_json::Value::Null);
}
