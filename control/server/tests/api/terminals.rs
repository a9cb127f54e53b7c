//! Terminals whose agent is old, or lies. An honest one is in the end-to-end tests.

use base_types::Epoch;
use bytes::BytesMut;
use control_server::api::{FaultCode, Frame, TerminalRequest, read_frame};
use control_server::client::ApiError;
use sandbox_api::guest::wire::{self, Request, RequestBody, Response, ResponseBody};
use sandbox_api::guest::{FRAME_BYTES_MAX, GuestClient, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::{Api, SESSION, WAIT};

/// A client whose agent answers as it is told.
async fn agent(
    version: u32,
    answer: impl Fn(RequestBody) -> ResponseBody + Send + 'static,
) -> GuestClient {
    let (host, guest) = tokio::io::duplex(1 << 16);
    tokio::spawn(converse(guest, version, answer));
    let (client, driver) = GuestClient::connect(host, "host").await.unwrap();
    tokio::spawn(driver);
    client
}

async fn converse(
    mut guest: DuplexStream,
    version: u32,
    answer: impl Fn(RequestBody) -> ResponseBody,
) {
    let hello = wire::Hello { version_min: 1, version_max: version, build: "x".into(), epoch: 1 };
    let (mut inbox, mut outbox) = (BytesMut::new(), BytesMut::new());
    loop {
        while let Some(request) =
            frame::take_message::<Request>(&mut inbox, FRAME_BYTES_MAX).unwrap()
        {
            let body = match request.body.unwrap() {
                RequestBody::Hello(_) => ResponseBody::Hello(hello.clone()),
                other => answer(other),
            };
            let response = Response { id: request.id, body: Some(body) };
            frame::put_message(&mut outbox, &response, FRAME_BYTES_MAX).unwrap();
        }
        if guest.write_all_buf(&mut outbox).await.is_err()
            || guest.read_buf(&mut inbox).await.is_ok_and(|count| count == 0)
        {
            return;
        }
    }
}

async fn refused(api: &Api, name: &str) -> FaultCode {
    let attached = api.client().terminal(&SESSION.into(), name, &TerminalRequest::default()).await;
    match attached.map(drop) {
        Err(ApiError::Refused(fault)) => fault.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_agent_without_terminals_is_named_with_the_way_to_a_new_one() {
    let api = Api::start().await;
    api.session(0).await;
    assert_eq!(refused(&api, "main").await, FaultCode::NoSandbox);
    assert_eq!(refused(&api, "no%20name").await, FaultCode::BadRequest);
    api.lend(agent(1, |_| panic!("an old agent is not asked")).await);
    assert_eq!(refused(&api, "main").await, FaultCode::AgentTooOld);
    assert!(FaultCode::AgentTooOld.hint().contains("sinew session stop"));
}

#[tokio::test]
async fn an_agent_that_opens_another_terminal_than_asked_for_is_not_believed() {
    let api = Api::start().await;
    api.session(0).await;
    api.lend(agent(2, |_| opened("other", 0)).await);
    assert_eq!(refused(&api, "main").await, FaultCode::SandboxUnavailable);
    api.lend(agent(2, |_| opened("\u{1b}]0;x\u{7}", 0)).await);
    assert_eq!(refused(&api, "main").await, FaultCode::SandboxUnavailable);
}

#[tokio::test]
async fn an_agent_that_promises_output_without_end_does_not_keep_a_viewer_from_typing() {
    let api = Api::start().await;
    api.session(0).await;
    let lies = |request| match request {
        RequestBody::OpenTerminal(_) => opened("main", u64::MAX),
        RequestBody::ReadTerminal(read) => ResponseBody::TerminalOutput(wire::TerminalOutput {
            offset: read.offset,
            data: Vec::new(),
            modes: u64::MAX,
            total_bytes: u64::MAX,
            end: None,
        }),
        _ => ResponseBody::Done(wire::Empty {}),
    };
    api.lend(agent(2, lies).await);
    let client = api.client();
    let attached = client.terminal(&SESSION.into(), "main", &TerminalRequest::default()).await;
    let mut connection = attached.unwrap();
    let until_live = async {
        let mut idle = 0;
        loop {
            match read_frame(&mut connection).await.unwrap().unwrap() {
                Frame::Live => return idle,
                Frame::Idle => idle += 1,
                Frame::Attached(attached) => assert_eq!(attached.epoch, Epoch(1)),
                other => panic!("{other:?}"),
            }
        }
    };
    let idle = tokio::time::timeout(WAIT, until_live).await.expect("it gets live");
    assert_eq!(idle, 1);
}

fn opened(name: &str, total_bytes: u64) -> ResponseBody {
    ResponseBody::OpenedTerminal(wire::OpenedTerminal {
        terminal: Some(wire::Terminal {
            id: 1,
            name: name.to_owned(),
            as_root: false,
            size: Some(wire::PtySize { rows: 24, columns: 80 }),
            started_at_ms: u64::MAX,
            total_bytes,
            end: None,
        }),
        created: false,
    })
}
