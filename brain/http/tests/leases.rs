//! A lease survives lost answers, and is never taken from somebody else.

mod support;

use std::time::Duration;

use brain_api::{Brain, BrainError, BrainErrorKind, ExpectedBeat, Heartbeat};
use brain_http::HttpBrain;
use support::{Reply, ScriptedBrain, answer};

fn beaten(last: &str, ttl_seconds: &str) -> Reply {
    answer(
        200,
        &format!(
            r#"{{"last_heartbeat":"{last}","lease_extended":true,"state":"active","ttl_seconds":{ttl_seconds}}}"#
        ),
    )
}

fn conflict(last: &str, state: &str) -> Reply {
    answer(
        412,
        &format!(
            r#"{{"error":{{"type":"invalid_request_error","details":{{"current_state":
            {{"state":"{state}","last_heartbeat":{last},"ttl_seconds":60}}}}}}}}"#
        ),
    )
}

/// Applied or not: no answer.
fn lost() -> Reply {
    Reply::Raw(vec![])
}

async fn beat(client: &HttpBrain, expected: &str) -> Result<Heartbeat, BrainError> {
    let expected = match expected {
        "" => ExpectedBeat::None,
        last => ExpectedBeat::Last(last.to_owned()),
    };
    client.heartbeat(&"work_1".into(), None, &expected).await
}

/// What each heartbeat of the test expected.
fn expectations(brain: &ScriptedBrain) -> Vec<String> {
    let beats = brain.seen().into_iter().filter_map(|seen| {
        let expected = seen.target.split_once("expected_last_heartbeat=")?.1.to_owned();
        Some(expected)
    });
    beats.collect()
}

#[tokio::test]
async fn a_beat_that_arrived_without_an_answer_is_gone_on_from() {
    let brain = ScriptedBrain::start([
        answer(200, "{}"),
        lost(),
        conflict(r#""b1""#, "active"),
        beaten("b2", "60"),
        lost(),
        conflict(r#""b3""#, "active"),
        beaten("b4", "60"),
        answer(200, "not a heartbeat"),
        conflict(r#""b5""#, "active"),
        beaten("b6", "60"),
    ])
    .await;
    let client = brain.client();
    client.ack(&"work_1".into()).await.unwrap();
    assert_eq!(beat(&client, "").await.unwrap().last, "b2");
    assert_eq!(beat(&client, "b2").await.unwrap().last, "b4");
    assert!(beat(&client, "b4").await.unwrap_err().is_transient());
    assert_eq!(beat(&client, "b4").await.unwrap().last, "b6");
    assert_eq!(
        expectations(&brain),
        ["NO_HEARTBEAT", "NO_HEARTBEAT", "b1", "b2", "b2", "b3", "b4", "b4", "b5"]
    );
}

#[tokio::test]
async fn a_beat_that_nobody_waited_for_is_in_doubt_too() {
    let brain = ScriptedBrain::start([
        beaten("b1", "60"),
        Reply::hang(),
        conflict(r#""b2""#, "active"),
        beaten("b3", "60"),
    ])
    .await;
    let client = brain.client();
    beat(&client, "").await.unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(100), beat(&client, "b1")).await;
    assert!(given_up.is_err());
    assert_eq!(beat(&client, "b1").await.unwrap().last, "b3");
}

#[track_caller]
fn assert_lost(result: Result<Heartbeat, BrainError>) {
    assert_eq!(result.unwrap_err().kind, BrainErrorKind::LeaseLost);
}

#[tokio::test]
async fn a_conflict_without_a_lost_answer_is_a_lost_lease() {
    let theirs = || conflict(r#""theirs""#, "active");
    let brain = ScriptedBrain::start([beaten("b1", "60"), theirs(), lost(), theirs()]).await;
    let client = brain.client();
    beat(&client, "").await.unwrap();
    assert_lost(beat(&client, "b1").await);
    // It is forgotten: a lost answer afterwards changes nothing.
    assert_lost(beat(&client, "b1").await);
    assert_eq!(brain.seen().len(), 4);
}

#[tokio::test]
async fn a_lease_that_ran_out_may_be_somebody_elses() {
    let theirs = conflict(r#""theirs""#, "active");
    let brain = ScriptedBrain::start([beaten("b1", "0.001"), lost(), theirs]).await;
    let client = brain.client();
    beat(&client, "").await.unwrap();
    assert_lost(beat(&client, "b1").await);
}

#[tokio::test]
async fn a_lease_of_before_a_restart_is_not_known_to_be_ours() {
    let brain = ScriptedBrain::start([lost(), conflict(r#""b2""#, "active")]).await;
    assert_lost(beat(&brain.client(), "b1").await);
    assert_eq!(expectations(&brain), ["b1", "b1"]);
}

#[tokio::test]
async fn a_lease_that_nobody_holds_is_lost() {
    for nobody in [conflict("null", "active"), conflict(r#""b2""#, "queued"), answer(412, "{}")] {
        let brain = ScriptedBrain::start([beaten("b1", "60"), lost(), nobody]).await;
        let client = brain.client();
        beat(&client, "").await.unwrap();
        assert_lost(beat(&client, "b1").await);
        assert_eq!(brain.seen().len(), 3);
    }
}
