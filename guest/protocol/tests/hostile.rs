//! Any bytes from the other end: an error or nothing, never a panic, never more memory than said.

use bytes::BytesMut;
use guest_protocol::wire::{self, ResponseBody};
use guest_protocol::{
    CallId, CallState, ClientError, ConnectError, FRAME_BYTES_MAX, GuestClient, frame, fuzz,
    version,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        fuzz::fuzz_frame(&bytes);
        fuzz::fuzz_request(&bytes);
        fuzz::fuzz_response(&bytes);
    }

    /// Framed, so that the decoders behind the length are reached.
    #[test]
    fn arbitrary_messages_never_panic(body in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let mut framed = (body.len() as u32).to_le_bytes().to_vec();
        framed.extend(body);
        fuzz::fuzz_request(&framed);
        fuzz::fuzz_response(&framed);
    }

    #[test]
    fn a_client_survives_any_agent(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (client, mut agent) = connected().await;
            let call = tokio::spawn(async move { client.query(&CallId::generate()).await });
            read_one(&mut agent).await;
            let _ = agent.write_all(&bytes).await;
            drop(agent);
            // Only an answer of the right kind with the right id is a state; random bytes hold none.
            assert!(call.await.unwrap().is_err());
        });
    }
}

async fn read_one(agent: &mut DuplexStream) -> wire::Request {
    let mut inbox = BytesMut::new();
    loop {
        if let Some(request) = frame::take_message(&mut inbox, usize::MAX).unwrap() {
            return request;
        }
        assert_ne!(agent.read_buf(&mut inbox).await.unwrap(), 0);
    }
}

async fn answer(agent: &mut DuplexStream, id: u64, body: ResponseBody) {
    let mut out = BytesMut::new();
    let response = wire::Response { id, body: Some(body) };
    frame::put_message(&mut out, &response, FRAME_BYTES_MAX).unwrap();
    agent.write_all(&out).await.unwrap();
}

async fn connected() -> (GuestClient, DuplexStream) {
    let (host, mut agent) = tokio::io::duplex(1 << 16);
    let greet = async {
        read_one(&mut agent).await;
        answer(&mut agent, 0, ResponseBody::Hello(version::hello("test", 7))).await;
    };
    let (connected, ()) = tokio::join!(GuestClient::connect(host, "host"), greet);
    let (client, driver) = connected.unwrap();
    tokio::spawn(driver);
    (client, agent)
}

#[tokio::test]
async fn the_hello_tells_version_build_and_epoch() {
    let (client, _agent) = connected().await;
    assert_eq!(client.peer().version, version::VERSION_MAX);
    assert_eq!(client.peer().build, "test");
    assert_eq!(client.peer().epoch.0, 7);
}

#[tokio::test]
async fn an_agent_that_is_too_new_is_refused_with_both_versions() {
    let (host, mut agent) = tokio::io::duplex(1 << 16);
    let greet = async {
        let hello = wire::Hello { version_min: 90, version_max: 91, ..version::hello("x", 1) };
        answer(&mut agent, 0, ResponseBody::Hello(hello)).await;
    };
    let (refused, ()) = tokio::join!(GuestClient::connect(host, "host"), greet);
    let Err(ConnectError::Version(error)) = refused.map(|_| ()) else { panic!("connected") };
    assert!(error.to_string().contains("needs version 90"), "{error}");
}

#[tokio::test]
async fn a_huge_length_ends_the_connection_and_every_request_on_it() {
    let (client, mut agent) = connected().await;
    let (id, other) = (CallId::generate(), CallId::generate());
    let cut = async {
        read_one(&mut agent).await;
        agent.write_all(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes()).await.unwrap();
    };
    let (first, second, ()) = tokio::join!(client.query(&id), client.query(&other), cut);
    for ended in [first, second] {
        let Err(ClientError::Closed(reason)) = ended else { panic!("{ended:?}") };
        assert!(reason.contains("longer than the limit"), "{reason}");
    }
}

#[tokio::test]
async fn answers_find_their_request_in_any_order_and_strangers_are_ignored() {
    let (client, mut agent) = connected().await;
    let (a, b) = (CallId::generate(), CallId::generate());
    let serve = async {
        let mut inbox = BytesMut::new();
        let mut requests = Vec::new();
        while requests.len() < 2 {
            while let Some(request) =
                frame::take_message::<wire::Request>(&mut inbox, usize::MAX).unwrap()
            {
                requests.push(request);
            }
            if requests.len() < 2 {
                agent.read_buf(&mut inbox).await.unwrap();
            }
        }
        answer(&mut agent, 999, ResponseBody::Done(wire::Empty {})).await;
        let running = |total_bytes| {
            let running = wire::Running { started_at_ms: 0, total_bytes };
            ResponseBody::State(wire::State { body: Some(wire::StateBody::Running(running)) })
        };
        answer(&mut agent, requests[1].id, running(2)).await;
        answer(&mut agent, requests[0].id, running(1)).await;
    };
    let (first, second, ()) = tokio::join!(client.query(&a), client.query(&b), serve);
    assert_eq!(first.unwrap(), CallState::Running { started_at_ms: 0, total_bytes: 1 });
    assert_eq!(second.unwrap(), CallState::Running { started_at_ms: 0, total_bytes: 2 });
}

#[tokio::test]
async fn an_answer_of_the_wrong_kind_is_an_error_of_that_request_only() {
    let (client, mut agent) = connected().await;
    let id = CallId::generate();
    let wrong = async {
        let request = read_one(&mut agent).await;
        answer(&mut agent, request.id, ResponseBody::Done(wire::Empty {})).await;
        let request = read_one(&mut agent).await;
        let empty = wire::State { body: None };
        answer(&mut agent, request.id, ResponseBody::State(empty)).await;
        let request = read_one(&mut agent).await;
        let shifted = wire::Output { offset: 5, ..Default::default() };
        answer(&mut agent, request.id, ResponseBody::Output(shifted)).await;
        let request = read_one(&mut agent).await;
        answer(&mut agent, request.id, ResponseBody::Done(wire::Empty {})).await;
    };
    let ask = async {
        let wrong = client.query(&id).await;
        assert!(matches!(wrong, Err(ClientError::WrongAnswer { request: "query" })), "{wrong:?}");
        assert!(matches!(client.query(&id).await, Err(ClientError::Malformed { .. })));
        assert!(matches!(client.output(&id, 0, 10).await, Err(ClientError::Malformed { .. })));
        client.ping().await.unwrap();
    };
    tokio::join!(ask, wrong);
}
