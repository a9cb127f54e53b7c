//! A brain on a bad day: nothing is lost, nothing is done twice, and the operator is told.

use serde_json::json;
use testkit::{Installation, Options, can_run_sandboxes};

use crate::SCENE;

const APPEND: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo one >> log; wc -l < log" }
expect = { is_error = false, equals = "1" }

[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo two >> log; wc -l < log" }
expect = { is_error = false, equals = "2" }

[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo three >> log; wc -l < log" }
expect = { is_error = false, equals = "3" }

[[step]]
end_turn = "end_turn"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_refusals_garbage_and_cut_streams_lose_and_repeat_nothing() {
    let name = "lost_answers_refusals_garbage_and_cut_streams_lose_and_repeat_nothing";
    let Some(images) = can_run_sandboxes(name) else { return };
    let options = Options { scenarios: vec![("append", APPEND.to_owned())], ..Options::default() };
    let installation = Installation::start(&images, options);
    let brain = &installation.brain;
    let status = |route: &str, status: u16| {
        let fault = json!({ "kind": "status", "status": status, "retry_after": "0" });
        json!({ "route": route, "times": 2, "fault": fault })
    };
    let stream = |stream: serde_json::Value| json!({ "route": "event_stream", "fault": { "kind": "stream", "stream": stream } });
    brain
        .inject(json!([
            status("work_poll", 429),
            { "route": "work_poll", "fault": { "kind": "garbage" } },
            status("work_ack", 503),
            status("session_get", 500),
            stream(json!({ "kind": "cut", "after_bytes": 100 })),
            stream(json!({ "kind": "duplicate" })),
            // After the message: one result arrives and its answer is lost, the next is refused twice.
            { "route": "event_send", "skip": 1, "fault": { "kind": "drop_answer" } },
            { "route": "event_send", "times": 2, "fault": { "kind": "status", "status": 503 } },
        ]))
        .await;
    let session = brain.start_session("append", "Append").await;
    let played = brain.wait_played(&session, 1, SCENE).await;
    assert!(played.passed, "{played:#?}");
    assert_eq!(played.results.len(), 3);
    assert!(played.results.iter().all(|result| result.conflicts == 0), "{played:#?}");
    let results = brain.events(&session).await;
    let results = results.iter().filter(|event| event["type"] == "user.tool_result").count();
    assert_eq!(results, 3, "each call has one result in the history");
}
