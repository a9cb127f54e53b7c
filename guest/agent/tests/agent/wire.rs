//! What holds across connections: idempotence, acks, hellos, and a host that misbehaves.

use std::time::Duration;

use bytes::BytesMut;
use guest_protocol::wire::{ErrorCode, Hello, Request, RequestBody, Response, ResponseBody};
use guest_protocol::{
    CallId, CallState, Exit, FRAME_BYTES_MAX, GuestClient, KillScope, REQUEST_BYTES_MAX, frame,
    version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::harness::*;

#[tokio::test]
async fn a_call_runs_once_however_often_it_is_started() {
    let test = "a_call_runs_once_however_often_it_is_started";
    let Some(sandbox) = sandbox(test).await else { return };
    let (client, id) = (&sandbox.client, CallId::generate());
    let spec = shell("echo x >> ran; sleep 0.1");
    assert_eq!(client.query(&id).await.unwrap(), CallState::Unknown);
    for _ in 0..3 {
        assert!(matches!(client.start(&id, &spec).await.unwrap(), CallState::Running { .. }));
    }
    let waits = futures::future::join_all((0..5).map(|_| client.wait(&id))).await;
    let first = waits[0].as_ref().unwrap();
    assert!(waits.iter().all(|waited| waited.as_ref().unwrap() == first));
    // Another text under the same id changes nothing.
    let again = client.start(&id, &shell("echo y >> ran")).await.unwrap();
    assert_eq!(again, CallState::Finished(Box::new(first.clone())));
    assert!(matches!(client.kill(&id, KillScope::Tree).await.unwrap(), CallState::Finished(_)));
    client.ack(&id).await.unwrap();
    client.ack(&id).await.unwrap();
    assert_eq!(client.query(&id).await.unwrap(), CallState::Unknown);
    let late = client.start(&id, &spec).await.unwrap_err();
    assert_eq!(late.refusal(), Some(ErrorCode::AlreadyAcked));
    assert_eq!(std::fs::read_to_string(sandbox.work("ran")).unwrap(), "x\n");
}

#[tokio::test]
async fn a_call_survives_the_loss_of_its_connection() {
    let Some(sandbox) = sandbox("a_call_survives_the_loss_of_its_connection").await else { return };
    let id = CallId::generate();
    let first = sandbox.reconnect().await;
    let spec = shell("echo before; until test -e go; do sleep 0.01; done; echo after");
    first.start(&id, &spec).await.unwrap();
    drop(first);
    let second = sandbox.reconnect().await;
    assert_eq!(second.peer().epoch.0, 5);
    assert_eq!(second.info().await.unwrap().running, std::slice::from_ref(&id));
    assert!(matches!(second.start(&id, &spec).await.unwrap(), CallState::Running { .. }));
    let refused = second.ack(&id).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(ErrorCode::BadRequest));
    std::fs::write(sandbox.work("go"), "").unwrap();
    assert_ok(&second.wait(&id).await.unwrap(), "before\nafter\n");
    // The first sandbox client is alive all the while.
    sandbox.client.ping().await.unwrap();
}

#[tokio::test]
async fn many_calls_are_in_flight_at_once_and_no_more_than_the_limit() {
    let test = "many_calls_are_in_flight_at_once_and_no_more_than_the_limit";
    let Some(sandbox) = sandbox(test).await else { return };
    let mut ids = Vec::new();
    let refused = loop {
        let id = CallId::generate();
        match sandbox.client.start(&id, &exec(&["sh", "-c", "sleep 0.2; echo done"])).await {
            Ok(_) => ids.push(id),
            Err(error) => break error,
        }
        assert!(ids.len() <= 1000);
    };
    assert_eq!(refused.refusal(), Some(ErrorCode::TooManyCalls));
    assert!(ids.len() >= 32);
    for outcome in futures::future::join_all(ids.iter().map(|id| sandbox.client.wait(id))).await {
        assert_ok(&outcome.unwrap(), "done\n");
    }
    for id in &ids {
        sandbox.client.ack(id).await.unwrap();
    }
    assert_ok(&sandbox.bash("echo free").await, "free\n");
}

#[tokio::test]
async fn shutdown_ends_the_sandbox() {
    let Some(sandbox) = sandbox("shutdown_ends_the_sandbox").await else { return };
    let id = sandbox.start(&exec(&["sleep", "300"])).await;
    sandbox.client.shutdown().await.unwrap();
    assert!(sandbox.client.wait(&id).await.is_err());
    eventually("closed", async || sandbox.client.is_closed()).await;
}

async fn raw(sandbox: &Sandbox) -> UnixStream {
    UnixStream::connect(sandbox.path("agent.sock")).await.unwrap()
}

/// Sends `bytes` and answers what came back until the agent closed the connection.
async fn exchange(mut stream: UnixStream, bytes: &[u8]) -> Vec<Response> {
    let _ = stream.write_all(bytes).await;
    let mut inbox = BytesMut::new();
    while let Ok(Ok(1..)) =
        tokio::time::timeout(Duration::from_secs(5), stream.read_buf(&mut inbox)).await
    {}
    let mut responses = Vec::new();
    while let Some(response) = frame::take_message(&mut inbox, FRAME_BYTES_MAX).unwrap() {
        responses.push(response);
    }
    responses
}

fn framed(body: RequestBody) -> Vec<u8> {
    let mut out = BytesMut::new();
    let request = Request { id: 1, body: Some(body) };
    frame::put_message(&mut out, &request, REQUEST_BYTES_MAX).unwrap();
    out.to_vec()
}

fn error_code(responses: &[Response]) -> Option<ErrorCode> {
    match responses.last()?.body.as_ref()? {
        ResponseBody::Error(error) => ErrorCode::try_from(error.code).ok(),
        _ => None,
    }
}

#[tokio::test]
async fn a_host_that_does_not_speak_the_protocol_is_refused_alone() {
    let test = "a_host_that_does_not_speak_the_protocol_is_refused_alone";
    let Some(sandbox) = sandbox(test).await else { return };
    let old = Hello { version_min: 9, version_max: 9, ..version::hello("future", 0) };
    for (bytes, want) in [
        (framed(RequestBody::Ping(Default::default())), ErrorCode::BadRequest),
        (framed(RequestBody::Hello(old)), ErrorCode::UnsupportedVersion),
        (u32::MAX.to_le_bytes().to_vec(), ErrorCode::BadRequest),
        ([&4u32.to_le_bytes()[..], b"\xff\xff\xff\xff"].concat(), ErrorCode::BadRequest),
    ] {
        let responses = exchange(raw(&sandbox).await, &bytes).await;
        assert_eq!(error_code(&responses), Some(want), "{bytes:?}");
    }
    sandbox.client.ping().await.unwrap();
}

/// What the first release's host said, byte for byte of its schema, to the agent of this one.
#[tokio::test]
async fn a_host_of_the_first_version_is_served() {
    let Some(sandbox) = sandbox("a_host_of_the_first_version_is_served").await else { return };
    let call = CallId::generate();
    let id = call.as_str().to_owned();
    let mut stream = raw(&sandbox).await;
    let ask = async |stream: &mut UnixStream, body| {
        stream.write_all(&framed(body)).await.unwrap();
        let mut inbox = BytesMut::new();
        loop {
            let taken = frame::take_message::<Response>(&mut inbox, FRAME_BYTES_MAX).unwrap();
            if let Some(response) = taken {
                return response.body.unwrap();
            }
            assert_ne!(stream.read_buf(&mut inbox).await.unwrap(), 0, "it hung up");
        }
    };
    let first = Hello { version_min: 1, version_max: 1, build: "sinew 0.1.0".into(), epoch: 0 };
    let hello = ask(&mut stream, RequestBody::Hello(first)).await;
    let ResponseBody::Hello(hello) = hello else { panic!("{hello:?}") };
    assert!(hello.version_min <= 1 && hello.version_max >= 1, "{hello:?}");
    let spec = shell("echo from the first").to_wire(&call);
    let started = ask(&mut stream, RequestBody::Start(spec)).await;
    assert!(matches!(started, ResponseBody::State(_)), "{started:?}");
    let wait = guest_protocol::wire::Wait { call_id: id.clone(), wait_ms: 20_000 };
    let ResponseBody::State(state) = ask(&mut stream, RequestBody::Wait(wait)).await else {
        panic!("no state");
    };
    let CallState::Finished(outcome) = CallState::try_from(state).unwrap() else {
        panic!("it has not ended");
    };
    assert_ok(&outcome, "from the first\n");
    let ack = guest_protocol::wire::CallRef { call_id: id };
    assert!(matches!(ask(&mut stream, RequestBody::Ack(ack)).await, ResponseBody::Done(_)));
}

#[tokio::test]
async fn a_flood_of_connections_and_unread_answers_leaves_the_agent_responsive() {
    let test = "a_flood_of_connections_and_unread_answers_leaves_the_agent_responsive";
    let Some(sandbox) = sandbox(test).await else { return };
    let mut idle = Vec::new();
    for _ in 0..12 {
        idle.push(raw(&sandbox).await);
    }
    // One that asks without ever reading.
    let mut deaf = raw(&sandbox).await;
    deaf.write_all(&framed(RequestBody::Hello(version::hello("deaf", 0)))).await.unwrap();
    let info = framed(RequestBody::Info(Default::default())).repeat(1000);
    for _ in 0..200 {
        let sent = tokio::time::timeout(Duration::from_millis(20), deaf.write_all(&info)).await;
        if sent.is_err() {
            break;
        }
    }
    sandbox.client.ping().await.unwrap();
    assert_ok(&sandbox.bash("echo here").await, "here\n");
    drop((idle, deaf));
    let late: GuestClient = sandbox.reconnect().await;
    late.ping().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_costs_the_file_and_not_the_call() {
    let Some(sandbox) = sandbox("a_full_disk_costs_the_file_and_not_the_call").await else {
        return;
    };
    // In the way of the output's file: what the agent meets is an error of the disk either way.
    let id = CallId::generate();
    std::fs::write(sandbox.path("out").join(format!("{id}.out")), "").unwrap();
    sandbox.client.start(&id, &shell("seq 1 100000")).await.unwrap();
    let outcome = sandbox.client.wait(&id).await.unwrap();
    assert_eq!(outcome.exit, Exit::Code(0));
    assert!(outcome.tail.ends_with(b"100000\n"));
    assert!(has_note(&outcome, |note| matches!(note, guest_protocol::Note::SpoolError(_))));
    assert_eq!(outcome.output_path, None);
}
