//! Threads of a multi-agent session, and calls that wait for a person, on whole installations.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Brain, Installation, Options, can_run_sandboxes};

use crate::SCENE;

/// Two threads and the primary one call in turns, in one sandbox; then a thread ends while its call
/// runs and another of its calls waits.
const THREADS: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
thread = "reviewer"
input = { command = "echo reviewer >> turns; sleep 0.3; export FROM=reviewer" }
expect = { is_error = false }
[[step.call]]
tool = "bash"
thread = "tester"
input = { command = "echo tester >> turns; echo $FROM" }
expect = { is_error = false, equals = "reviewer" }
[[step.call]]
tool = "bash"
input = { command = "echo primary >> turns" }
expect = { is_error = false }
[[step.call]]
tool = "read"
thread = "reviewer"
input = { file_path = "turns" }
expect = { is_error = false, equals = "reviewer\ntester\nprimary\n" }

[[step]]
[[step.call]]
tool = "bash"
thread = "reviewer"
awaited = false
input = { command = "touch began; sleep 3600; touch ended" }
[[step.call]]
tool = "bash"
thread = "reviewer"
awaited = false
input = { command = "touch waited" }
[[step.call]]
tool = "bash"
thread = "reviewer"
permission = "ask"
awaited = false
input = { command = "touch held" }

[[step]]
wait_ms = 2000

[[step]]
end_thread = "reviewer"

[[step]]
[[step.call]]
tool = "bash"
thread = "tester"
input = { command = "ls -1 began ended waited held 2>/dev/null; grep -sqx sleep /proc/[0-9]*/comm && echo sleeps || echo nothing sleeps" }
expect = { is_error = false, contains = "began\nnothing sleeps" }

[[step]]
end_turn = "end_turn"
"#;

const CAREFUL: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo ready" }

[[step]]
[[step.call]]
tool = "bash"
permission = "ask"
input = { command = "echo careful >> log; wc -l < log" }
expect = { is_error = false, equals = "1" }

[[step]]
[[step.call]]
tool = "bash"
permission = "ask"
input = { command = "echo denied >> log" }
expect = { is_error = true }

[[step]]
[[step.call]]
tool = "bash"
input = { command = "cat log" }
expect = { is_error = false, equals = "careful" }

[[step]]
end_turn = "end_turn"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn threads_interleave_and_end() {
    let name = "threads_interleave_and_end";
    let Some(images) = can_run_sandboxes(name) else { return };
    let options =
        Options { scenarios: vec![("threads", THREADS.to_owned())], ..Options::default() };
    let installation = Installation::start(&images, options);
    let brain = &installation.brain;
    let session = brain.start_session("threads", "Work together").await;
    let played = brain.wait_played(&session, 1, SCENE).await;
    assert!(played.passed, "{played:#?}");
    assert_eq!(played.results.len(), 5, "nothing of the ended thread is posted: {played:#?}");

    // Results name their call and never a thread; nothing was refused or posted twice.
    for request in brain.requests(0).await {
        let body = request["body"].to_string();
        assert!(!body.contains("session_thread_id"), "{request}");
    }
    let counters = brain.get("/dev/counters").await;
    assert_eq!(counters["refused_results"], 0, "{counters}");
    let shown = installation.json(&["session", "show", "--json", session.as_str()]);
    assert_eq!(shown["calls"]["open"], 0, "{shown:#}");
    let log = installation.sinew(&["session", "log", session.as_str()]);
    let log = String::from_utf8(log.stdout).unwrap();
    assert!(log.contains("its thread was terminated"), "{log}");
}

/// Waits for the call that waits for a person, and says which it is.
async fn waiting(brain: &Brain, session: &base_types::SessionId, results: usize) -> String {
    let what = "a call waits for a confirmation";
    let open = move |played: &testkit::Played| {
        played.results.len() == results && played.verdict.open_calls == 1
    };
    brain.wait_until(session, SCENE, what, open).await;
    let events = brain.events(session).await;
    let asked = |event: &&Value| event["evaluated_permission"] == "ask";
    events.iter().rfind(asked).unwrap()["id"].as_str().unwrap().to_owned()
}

fn confirmation(id: &str, result: &str) -> Value {
    json!({ "type": "user.tool_confirmation", "tool_use_id": id, "result": result })
}

/// `serve` is killed while a call waits for a person, who decides before it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_is_decided_while_serve_is_down() {
    let name = "a_held_call_is_decided_while_serve_is_down";
    let Some(images) = can_run_sandboxes(name) else { return };
    let options =
        Options { scenarios: vec![("careful", CAREFUL.to_owned())], ..Options::default() };
    let mut installation = Installation::start(&images, options);
    let brain = installation.brain.clone();
    let session = brain.start_session("careful", "Be careful").await;

    let id = waiting(&brain, &session, 1).await;
    is_logged(&installation, &session, 1).await;
    installation.kill_serve();
    brain.send(&session, confirmation(&id, "allow")).await;
    installation.start_serve();

    let id = waiting(&brain, &session, 2).await;
    is_logged(&installation, &session, 2).await;
    installation.kill_serve();
    brain.send(&session, confirmation(&id, "deny")).await;
    installation.start_serve();

    let played = brain.wait_played(&session, 1, SCENE).await;
    assert!(played.passed, "{played:#?}");
    assert!(played.results.iter().all(|result| result.conflicts == 0), "{played:#?}");
}

/// The held call has been seen here, so that the kill comes while it is held.
async fn is_logged(installation: &Installation, session: &base_types::SessionId, times: usize) {
    let until = std::time::Instant::now() + SCENE;
    loop {
        let log = installation.sinew(&["session", "log", session.as_str()]);
        let log = String::from_utf8(log.stdout).unwrap();
        if log.matches("waits for a confirmation").count() >= times {
            return;
        }
        assert!(std::time::Instant::now() < until, "{log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
