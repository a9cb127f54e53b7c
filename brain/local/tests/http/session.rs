//! What a session does with calls, results, confirmations, interrupts, messages and threads.

use std::time::Duration;

use crate::support::{Client, LIMIT, brain, brain_with, idles, start, tool_uses};
use brain_local::{BrainConfig, Switches};
use serde_json::{Value, json};

const TWO_CALLS: &str = r#"
    [[step]]
    say = "two at once"
    [[step]]
    [[step.call]]
    tool = "bash"
    input = { command = "one" }
    expect = { contains = "1" }
    [[step.call]]
    tool = "read"
    input = { file_path = "two" }
    [[step]]
    end_turn = "end_turn"
"#;

#[tokio::test]
async fn partial_answers_are_asked_for_again_and_the_turn_goes_on_when_all_are_in() {
    let brain = brain_with(TWO_CALLS).await;
    let session = start(&brain, Some("go"));
    let worker = Client::worker(&brain);
    let ids = tool_uses(&brain, &session);
    assert_eq!(ids.len(), 2);
    assert_eq!(idles(&brain, &session), [("requires_action".to_owned(), 2)]);
    assert_eq!(worker.result(&session, &ids[1], "2").await.0, 200);
    assert_eq!(idles(&brain, &session)[1], ("requires_action".to_owned(), 1));
    assert!(!brain.verdict(&session).passed());
    let (status, echo) = worker.result(&session, &ids[0], "1").await;
    assert_eq!((status, &echo["data"][0]["tool_use_id"]), (200, &json!(ids[0])));
    assert!(echo["data"][0]["processed_at"].is_string());
    assert_eq!(idles(&brain, &session)[2], ("end_turn".to_owned(), 0));
    assert!(brain.verdict(&session).passed());
}

#[tokio::test]
async fn a_result_is_taken_once_its_copy_is_counted_and_another_content_is_refused() {
    let brain = brain_with(TWO_CALLS).await;
    let session = start(&brain, Some("go"));
    let worker = Client::worker(&brain);
    let ids = tool_uses(&brain, &session);
    let first = worker.result(&session, &ids[0], "1").await;
    let again = worker.result(&session, &ids[0], "1").await;
    assert_eq!(first, again);
    assert_eq!(worker.result(&session, &ids[0], "other").await.0, 400);
    let results = brain.results(&session);
    assert_eq!((results.len(), results[0].repeats, results[0].conflicts), (1, 1, 1));
    let counters = brain.counters();
    assert_eq!((counters.results, counters.identical_results), (1, 1));
    assert_eq!(counters.conflicting_results, 1);
    brain.set_switches(|switches| switches.refuse_identical_result = true);
    assert_eq!(worker.result(&session, &ids[0], "1").await.0, 400);
}

#[tokio::test]
async fn results_that_do_not_belong_are_refused() {
    let brain = brain_with(TWO_CALLS).await;
    let session = start(&brain, Some("go"));
    let worker = Client::worker(&brain);
    let id = &tool_uses(&brain, &session)[0];
    assert_eq!(worker.result(&session, "sevt_none", "x").await.0, 400);
    let wrong = [
        json!({"type": "user.custom_tool_result", "custom_tool_use_id": id}),
        json!({"type": "user.tool_result"}),
        json!({"type": "user.tool_result", "tool_use_id": id, "is_error": "no"}),
        json!({"type": "user.tool_result", "tool_use_id": id, "content": "text"}),
        json!({"type": "user.tool_result", "tool_use_id": id,
            "content": [{"type": "text", "text": ""}]}),
        json!({"type": "user.tool_result", "tool_use_id": id, "content": [{"type": "video"}]}),
        json!({"type": "user.tool_result", "tool_use_id": id, "is_error": true,
            "content": [{"type": "image", "source": {}}]}),
        json!({"type": "agent.message", "content": []}),
        json!("text"),
    ];
    for event in wrong {
        let (status, body) = worker.send(&session, event.clone()).await;
        assert_eq!(
            (status, &body["error"]["type"]),
            (400, &json!("invalid_request_error")),
            "{event}"
        );
    }
    assert!(brain.results(&session).is_empty());
    // One bad event keeps the good ones beside it out.
    let good = json!({"type": "user.tool_result", "tool_use_id": id});
    let body = json!({"events": [good, {"type": "nonsense"}]});
    let path = format!("/v1/sessions/{session}/events");
    assert_eq!(worker.post(&path, &body).await.0, 400);
    assert!(brain.results(&session).is_empty());
}

#[tokio::test]
async fn a_wrong_result_ends_the_turn_and_fails_the_verdict() {
    let brain = brain_with(TWO_CALLS).await;
    let session = start(&brain, Some("go"));
    let ids = tool_uses(&brain, &session);
    let (status, _) = Client::worker(&brain).result(&session, &ids[0], "nothing").await;
    assert_eq!(status, 200);
    let verdict = brain.verdict(&session);
    assert!(verdict.failed() && !verdict.passed());
    assert!(verdict.failures[0].contains("bash"), "{verdict:?}");
    assert!(brain.history(&session).iter().any(|event| event["type"] == "session.error"));
    assert_eq!(idles(&brain, &session).last().unwrap().0, "retries_exhausted");
    let (_, body) = Client::api(&brain).get(&format!("/dev/sessions/{session}")).await;
    assert_eq!(body["passed"], false);
    assert_eq!(body["results"][0]["text"], "nothing");
}

const PERMISSIONS: &str = r#"
    [[step]]
    [[step.call]]
    tool = "bash"
    permission = "allow"
    [[step.call]]
    tool = "bash"
    permission = "ask"
    [[step.call]]
    tool = "bash"
    permission = "deny"
    [[step.call]]
    tool = "bash"
    permission = "perhaps"
    [[step.call]]
    tool = "lookup"
    custom = true
"#;

#[tokio::test]
async fn permissions_hold_calls_until_they_are_confirmed() {
    let brain = brain_with(PERMISSIONS).await;
    let session = start(&brain, Some("go"));
    let (worker, api) = (Client::worker(&brain), Client::api(&brain));
    let ids = tool_uses(&brain, &session);
    // The denied one is answered by the brain itself.
    assert_eq!(idles(&brain, &session), [("requires_action".to_owned(), 4)]);
    let denied = |id: &str| {
        let history = brain.history(&session);
        history.iter().any(|e| e["type"] == "agent.tool_result" && e["tool_use_id"] == id)
    };
    assert!(denied(&ids[2]));
    assert_eq!(worker.result(&session, &ids[2], "x").await.0, 400);
    assert_eq!(worker.result(&session, &ids[1], "x").await.0, 400, "not confirmed yet");

    let confirm = |id: &str, result: &str| json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": result});
    assert_eq!(api.send(&session, confirm(&ids[1], "allow")).await.0, 200);
    assert_eq!(worker.result(&session, &ids[1], "x").await.0, 200);
    assert_eq!(api.send(&session, confirm(&ids[3], "deny")).await.0, 200);
    assert!(denied(&ids[3]));
    assert_eq!(worker.result(&session, &ids[3], "x").await.0, 400);
    assert_eq!(api.send(&session, confirm("sevt_none", "deny")).await.0, 400);
    assert_eq!(api.send(&session, confirm(&ids[0], "maybe")).await.0, 400);

    assert_eq!(worker.result(&session, &ids[0], "x").await.0, 200);
    let custom = json!({"type": "user.custom_tool_result", "custom_tool_use_id": ids[4]});
    assert_eq!(api.send(&session, custom).await.0, 200);
    assert_eq!(idles(&brain, &session).last().unwrap().0, "end_turn");
}

#[tokio::test]
async fn the_agents_policy_decides_when_the_script_does_not() {
    let scenario = "[[step]]\n[[step.call]]\ntool = \"bash\"\n[[step.call]]\ntool = \"read\"\n";
    let brain = brain_with(scenario).await;
    let api = Client::api(&brain);
    let tools = json!([{"type": "agent_toolset_20260401",
        "configs": [{"name": "bash", "permission_policy": {"type": "always_ask"}}]}]);
    let agent = json!({"name": "a", "model": "script/test", "tools": tools});
    let (_, agent) = api.post("/v1/agents", &agent).await;
    let message = json!({"type": "user.message", "content": [{"type": "text", "text": "go"}]});
    let body = json!({"agent": agent["id"], "environment_id": brain.environment_id(),
        "initial_events": [message]});
    let (status, session) = api.post("/v1/sessions", &body).await;
    assert_eq!((status, &session["status"]), (200, &json!("idle")));
    let path =
        format!("/v1/sessions/{}/events?types[]=agent.tool_use", session["id"].as_str().unwrap());
    let (_, uses) = api.get(&path).await;
    assert_eq!(uses["data"][0]["evaluated_permission"], "ask");
    assert_eq!(uses["data"][1]["evaluated_permission"], "allow");
}

#[tokio::test]
async fn an_interrupt_ends_the_turn_and_a_late_result_is_still_taken() {
    let brain = brain_with(TWO_CALLS).await;
    let session = start(&brain, Some("go"));
    let ids = tool_uses(&brain, &session);
    brain.interrupt(&session).unwrap();
    assert_eq!(idles(&brain, &session).last().unwrap().0, "end_turn");
    assert_eq!(brain.verdict(&session).open_calls, 2);
    assert_eq!(Client::worker(&brain).result(&session, &ids[0], "1").await.0, 200);
    assert!(brain.results(&session)[0].late);
    assert_eq!(brain.counters().late_results, 1);
    // The next message starts the script over: it has no further turn.
    brain.say(&session, "again").unwrap();
    assert_eq!(tool_uses(&brain, &session).len(), 4);
}

#[tokio::test]
async fn a_script_can_expect_the_interrupt() {
    let scenario = r#"
        [[step]]
        [[step.call]]
        tool = "bash"
        [[step]]
        expect_interrupt = true
        [[step]]
        say = "interrupted"
        [[step]]
        expect_interrupt = true
        [[step]]
        wait_for_user = true
        [[step]]
        say = "over"
    "#;
    let brain = brain_with(scenario).await;
    let session = start(&brain, Some("go"));
    let said = |text: &str| {
        brain.history(&session).iter().any(|event| event["content"][0]["text"] == text)
    };
    brain.interrupt(&session).unwrap();
    assert!(said("interrupted") && !said("over"));
    brain.interrupt(&session).unwrap();
    assert_eq!(brain.status(&session), "running");
    brain.say(&session, "steer").unwrap();
    assert!(said("over"));
    assert_eq!(brain.verdict(&session).completed, 1);
}

#[tokio::test]
async fn messages_wait_for_the_turn_and_are_shown_again_when_they_are_processed() {
    let brain = brain_with(TWO_CALLS).await;
    let session = start(&brain, Some("go"));
    let worker = Client::worker(&brain);
    let mut stream = worker.stream(&session).await;
    let echo = brain.say(&session, "second").unwrap();
    assert_eq!(echo["data"][0]["processed_at"], Value::Null);
    assert_eq!(stream.until("user.message").await["processed_at"], Value::Null);
    for (id, text) in tool_uses(&brain, &session).iter().zip(["1", "2"]) {
        worker.result(&session, id, text).await;
    }
    let processed = stream.until("user.message").await;
    assert_eq!(processed["id"], echo["data"][0]["id"]);
    assert!(processed["processed_at"].is_string());
    assert_eq!(tool_uses(&brain, &session).len(), 4);
    let messages = brain.history(&session);
    assert_eq!(messages.iter().filter(|event| event["type"] == "user.message").count(), 2);
}

#[tokio::test]
async fn calls_of_a_thread_are_marked_and_end_with_it() {
    let scenario = r#"
        [[step]]
        [[step.call]]
        tool = "bash"
        thread = "helper"
        [[step]]
        expect_interrupt = true
        [[step]]
        end_thread = "helper"
    "#;
    let brain = brain_with(scenario).await;
    let session = start(&brain, Some("go"));
    let (worker, api) = (Client::worker(&brain), Client::api(&brain));
    let history = brain.history(&session);
    let created = history.iter().find(|e| e["type"] == "session.thread_created").unwrap();
    let thread = created["session_thread_id"].as_str().unwrap().to_owned();
    let used = history.iter().find(|e| e["type"] == "agent.tool_use").unwrap();
    assert_eq!(used["session_thread_id"], thread.as_str());
    let (_, threads) = api.get(&format!("/v1/sessions/{session}/threads")).await;
    assert_eq!(threads["data"][0]["id"], thread.as_str());
    let (_, events) = api.get(&format!("/v1/sessions/{session}/threads/{thread}/events")).await;
    assert_eq!(events["data"].as_array().unwrap().len(), 3);
    brain.interrupt(&session).unwrap();
    let id = used["id"].as_str().unwrap();
    let (status, body) = worker.result(&session, id, "late").await;
    assert_eq!(status, 400, "{body}");
    let (_, found) = api.get(&format!("/v1/sessions/{session}/threads/{thread}")).await;
    assert_eq!(found["status"], "terminated");
}

#[tokio::test]
async fn waits_emitted_events_and_the_end_come_in_order() {
    let scenario = r#"
        [[step]]
        think = true
        [[step]]
        wait_ms = 50
        [[step]]
        emit = '{"type": "agent.news", "value": 1}'
        [[step]]
        terminate = true
    "#;
    let brain = brain_with(scenario).await;
    let session = start(&brain, Some("go"));
    assert_eq!(brain.status(&session), "running");
    brain.wait_until(LIMIT, |brain| brain.status(&session) == "terminated").await.unwrap();
    let history = brain.history(&session);
    let types: Vec<&str> = history.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let expected = [
        "user.message",
        "session.status_running",
        "agent.thinking",
        "agent.news",
        "session.status_terminated",
    ];
    assert_eq!(types, expected);
    assert!(brain.say(&session, "more").is_err());
    assert!(brain.verdict(&session).passed());
}

#[tokio::test]
async fn a_session_has_one_work_item_and_gets_another_with_its_next_run() {
    let brain = brain_with("[[step]]\n[[step.call]]\ntool = \"bash\"\n").await;
    let session = start(&brain, Some("go"));
    let items = brain.items_of(&session);
    assert_eq!(items.len(), 1);
    // Stopped with a call open: stranded, until somebody interrupts it.
    brain.stop_item(&items[0], true).unwrap();
    brain.say(&session, "hello?").unwrap();
    let live = |state: &str| brain.items_of(&session).iter().filter(|i| i.state == state).count();
    assert_eq!((live("queued"), live("stopped")), (0, 1));
    brain.interrupt(&session).unwrap();
    assert_eq!((live("queued"), live("stopped")), (1, 1));
}

#[tokio::test]
async fn an_agent_without_a_script_says_so() {
    let brain =
        brain(BrainConfig { switches: Switches::default(), ..BrainConfig::default() }).await;
    let api = Client::api(&brain);
    let (_, agent) = api.post("/v1/agents", &json!({"name": "a", "model": "claude-x"})).await;
    let message = json!({"type": "user.message", "content": [{"type": "text", "text": "hi"}]});
    let body = json!({"agent": agent["id"], "environment_id": brain.environment_id(),
        "initial_events": [message]});
    let (status, session) = api.post("/v1/sessions", &body).await;
    assert_eq!(status, 200, "{session}");
    let session = session["id"].as_str().unwrap().into();
    let history = brain.history(&session);
    let text = history.iter().find(|e| e["type"] == "agent.message").unwrap();
    assert!(text["content"][0]["text"].as_str().unwrap().contains("script/NAME"));
    brain.wait_until(Duration::ZERO, |brain| brain.status(&session) == "idle").await.unwrap();
}
