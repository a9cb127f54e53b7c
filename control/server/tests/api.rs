//! The API over its real socket, with a real journal. Only the session driver is a double: it is
//! another crate's, and this one asks it through a trait.

#![forbid(unsafe_code)]

#[path = "api/terminals.rs"]
mod terminals;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base_types::{CallId, Epoch, NodeId, SandboxId, SessionId, Timestamp, VolumeId};
use control_server::api::{
    CallQuery, ExecRequest, FaultCode, LogQuery, ROUTES, SessionQuery, StopRequest,
};
use control_server::client::{ApiClient, ApiError};
use control_server::{
    ApiSocket, ControlError, GuestHold, SOCKET_FILE, Server, ServerParts, SessionControl,
};
use futures::StreamExt;
use sandbox_api::guest::GuestClient;
use sandbox_api::{
    ConnectError, CreateError, DestroyError, DriverError, Image, Sandbox, SandboxDriver,
    SandboxSpec, SandboxStatus, StopError, Tier, Vitality,
};
use store_api::{Change, LogEvent, NewCall, NewWork, Phase, Store};
use store_sql::SqlStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

const SESSION: &str = "sesn_1";
const WAIT: Duration = Duration::from_secs(10);

/// Answers as a driver without any sandbox does.
struct NoSandboxes;

#[async_trait]
impl SandboxDriver for NoSandboxes {
    fn tier(&self) -> Tier {
        Tier::Container
    }

    async fn image(&self, name: &str) -> Result<Image, DriverError> {
        Err(DriverError::NoSuchImage(name.to_owned()))
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Sandbox, CreateError> {
        Err(CreateError::NoSuchImage(spec.image.clone()))
    }

    async fn connect(&self, id: &SandboxId, epoch: Epoch) -> Result<GuestClient, ConnectError> {
        Err(ConnectError::NotRunning { sandbox: id.clone(), epoch })
    }

    async fn stop(&self, _sandbox: &SandboxId) -> Result<(), StopError> {
        Ok(())
    }

    async fn destroy(&self, _: &SandboxId, _: &VolumeId) -> Result<(), DestroyError> {
        Ok(())
    }

    async fn status(&self, _sandbox: &SandboxId) -> Result<Option<SandboxStatus>, DriverError> {
        Ok(None)
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, DriverError> {
        Ok(Vec::new())
    }

    async fn ended(&self, _: &SandboxId, epoch: Epoch) -> Result<Vitality, DriverError> {
        Ok(Vitality::Stopped { epoch, why: None })
    }
}

/// Remembers what it was told to stop.
#[derive(Default)]
struct Driver {
    stopped: Mutex<Vec<(SessionId, bool)>>,
    /// What it lends, if it has one.
    guest: Mutex<Option<GuestClient>>,
}

#[async_trait]
impl SessionControl for Driver {
    fn environments(&self) -> Vec<control_server::api::EnvironmentView> {
        Vec::new()
    }

    fn serving(&self) -> Vec<SessionId> {
        vec![SESSION.into()]
    }

    async fn guest(&self, session: &SessionId) -> Result<GuestHold, ControlError> {
        let client = self.guest.lock().unwrap().clone();
        let client = client.ok_or_else(|| ControlError::NoSandbox(session.clone()))?;
        Ok(GuestHold { client, epoch: Epoch(1), lease: Box::new(()) })
    }

    async fn stop(&self, session: &SessionId, forget: bool) -> Result<(), ControlError> {
        self.stopped.lock().unwrap().push((session.clone(), forget));
        Ok(())
    }

    async fn note(&self, session: &SessionId, _event: LogEvent) -> Result<(), ControlError> {
        Err(ControlError::NoSuchSession(session.clone()))
    }
}

struct Api {
    dir: tempfile::TempDir,
    store: SqlStore,
    driver: Arc<Driver>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Api {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqlStore::open_sqlite(&dir.path().join("journal.sqlite")).await.unwrap();
        let driver = Arc::new(Driver::default());
        let socket = ApiSocket::bind(&dir.path().join(SOCKET_FILE), None).unwrap();
        let parts = ServerParts {
            version: "test".into(),
            node: NodeId::from("node_1"),
            started_at: Timestamp(0),
            store: Arc::new(store.clone()),
            control: driver.clone(),
            driver: Arc::new(NoSandboxes),
        };
        let stop = CancellationToken::new();
        let server = tokio::spawn(Server::new(parts, socket, stop.clone()).run());
        Self { dir, store, driver, stop, server }
    }

    /// From now on the session has a sandbox, and this speaks for its agent.
    fn lend(&self, client: GuestClient) {
        *self.driver.guest.lock().unwrap() = Some(client);
    }

    fn client(&self) -> ApiClient {
        ApiClient::new(self.dir.path())
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A session with as many received calls.
    async fn session(&self, calls: usize) -> (SessionId, base_types::Generation) {
        let session = SessionId::from(SESSION);
        let node = NodeId::from("node_1");
        let work = NewWork {
            id: "work_1".into(),
            environment: "env_1".into(),
            session: session.clone(),
            node: node.clone(),
            token: None,
        };
        self.store.claim_work(&work).await.unwrap();
        let generation = self.store.take_session(&session, &node).await.unwrap();
        for number in 0..calls {
            let call = NewCall {
                id: CallId::generate(),
                tool_use: format!("toolu_{number}").into(),
                tool: "bash".into(),
                custom: false,
                thread: None,
                input: serde_json::json!({ "command": "true" }),
            };
            let change = Change::CallReceived(Box::new(call));
            self.store.apply(&session, generation, &[change]).await.unwrap();
        }
        (session, generation)
    }

    /// Sends bytes as they are and reads the answer to its end.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.path().join(SOCKET_FILE)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(WAIT, read).await.expect("an answer").unwrap();
        answer
    }
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(answer: Result<T, ApiError>) -> FaultCode {
    match answer {
        Err(ApiError::Refused(fault)) => fault.code,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[tokio::test]
async fn sessions_are_listed_shown_and_counted() {
    let api = Api::start().await;
    assert!(api.client().sessions(&SessionQuery::default()).await.unwrap().sessions.is_empty());
    let (session, _) = api.session(3).await;
    let list = api.client().sessions(&SessionQuery { open: true, limit: Some(5) }).await.unwrap();
    assert_eq!(list.sessions.len(), 1);
    assert_eq!((&list.sessions[0].id, list.sessions[0].served_here), (&session, true));
    let shown = api.client().session(&session).await.unwrap();
    let calls = shown.calls.unwrap();
    assert_eq!((calls.total, calls.open, calls.failed), (3, 3, 0));
    assert_eq!(refusal(api.client().session(&"sesn_2".into()).await), FaultCode::NoSuchSession);
}

#[tokio::test]
async fn an_id_that_looks_like_a_path_stays_an_id() {
    let api = Api::start().await;
    for id in ["../status", "a/b", "a?limit=1", "%2e%2e", "ä ö"] {
        let answer = api.client().session(&id.into()).await;
        let Err(ApiError::Refused(fault)) = answer else { panic!("{answer:?}") };
        assert_eq!(
            (fault.code, fault.message),
            (FaultCode::NoSuchSession, format!("no session {id}"))
        );
    }
}

#[tokio::test]
async fn calls_come_in_pages() {
    let api = Api::start().await;
    let (session, _) = api.session(5).await;
    let mut query = CallQuery { after: None, limit: Some(2) };
    let mut seen = Vec::new();
    loop {
        let page = api.client().calls(&session, &query).await.unwrap();
        seen.extend(page.calls.iter().map(|call| call.tool_use.to_string()));
        match page.next_after {
            Some(after) => query.after = Some(after),
            None => break,
        }
    }
    assert_eq!(seen, ["toolu_0", "toolu_1", "toolu_2", "toolu_3", "toolu_4"]);
}

#[tokio::test]
async fn a_log_is_read_in_pages_from_a_time_on_and_followed() {
    let api = Api::start().await;
    let (session, generation) = api.session(2).await;
    let all = api.client().log(&session, &LogQuery::default()).await.unwrap();
    assert!(all.entries.len() >= 2 && all.next_after.is_none(), "{all:?}");
    let later = Timestamp(all.entries.last().unwrap().at.0 + 1);
    let since = LogQuery { since: Some(later), limit: Some(1), ..LogQuery::default() };
    assert!(api.client().log(&session, &since).await.unwrap().entries.is_empty());

    let query = LogQuery { limit: Some(1), ..LogQuery::default() };
    let mut followed = Box::pin(api.client().follow(&session, &query).await.unwrap());
    for expected in &all.entries {
        let entry = tokio::time::timeout(WAIT, followed.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(entry, *expected);
    }
    api.store.apply(&session, generation, &[Change::Phase(Phase::Preparing)]).await.unwrap();
    let entry = tokio::time::timeout(WAIT, followed.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(entry.event, LogEvent::Phase(Phase::Preparing));

    api.stop.cancel();
    let end = tokio::time::timeout(WAIT, followed.next()).await.expect("the stream ends");
    assert!(end.is_none(), "{end:?}");
    tokio::time::timeout(WAIT, api.server).await.expect("the server ends").unwrap().unwrap();
}

#[tokio::test]
async fn stop_reaches_the_driver_with_its_wish() {
    let api = Api::start().await;
    let (session, _) = api.session(0).await;
    let answer = api.client().stop(&session, &StopRequest { forget: true }).await.unwrap();
    assert!(answer.stopped && answer.forgotten);
    assert_eq!(*api.driver.stopped.lock().unwrap(), [(session, true)]);
    let unknown = api.client().stop(&"sesn_2".into(), &StopRequest::default()).await;
    assert_eq!(refusal(unknown), FaultCode::NoSuchSession);
}

#[tokio::test]
async fn exec_is_refused_with_the_reason() {
    let api = Api::start().await;
    let (session, _) = api.session(0).await;
    let request = |argv: &[&str]| ExecRequest {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        ..ExecRequest::default()
    };
    let code = |answer| match answer {
        Err(ApiError::Refused(fault)) => fault.code,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it runs"),
    };
    let client = api.client();
    assert_eq!(code(client.exec(&session, &request(&[])).await), FaultCode::BadRequest);
    assert_eq!(code(client.exec(&session, &request(&["a\0b"])).await), FaultCode::BadRequest);
    assert_eq!(code(client.exec(&session, &request(&["ls"])).await), FaultCode::NoSandbox);
    let unknown = client.exec(&"sesn_2".into(), &request(&["ls"])).await;
    assert_eq!(code(unknown), FaultCode::NoSuchSession);

    let body = r#"{"argv":["ls"]}"#;
    let answer = api
        .raw(&format!(
            "POST /api/v1/sessions/{SESSION}/exec HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
}

#[tokio::test]
async fn wrong_requests_are_answered_in_our_words() {
    let api = Api::start().await;
    api.session(0).await;
    let cases = [
        ("GET /api/v1/nothing", "", 404, "no_such_route"),
        ("POST /api/v1/status", "", 405, "wrong_method"),
        ("GET /api/v1/sessions?limit=many", "", 400, "bad_request"),
        ("GET /api/v1/sessions?colour=red", "", 400, "bad_request"),
        ("POST /api/v1/sessions/sesn_1/stop", "{\"forget\": 1}", 400, "bad_request"),
        ("POST /api/v1/sessions/sesn_1/stop", "{", 400, "bad_request"),
    ];
    for (line, body, status, code) in cases {
        let answer = api
            .raw(&format!(
                "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let fault: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(fault["error"]["code"], code, "{line}");
        assert!(!fault["error"]["hint"].as_str().unwrap().is_empty(), "{line}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_before_it_is_sent() {
    let api = Api::start().await;
    let answer = api
        .raw(&format!(
            "POST /api/v1/sessions/{SESSION}/exec HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n",
            2 << 20
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("request_too_large"), "{answer}");
}

/// A route that is in the table and not in the router, or the other way, is found here.
#[tokio::test]
async fn every_route_of_the_table_is_served() {
    let api = Api::start().await;
    api.session(0).await;
    for (method, path, _) in ROUTES {
        let path = path.replace("{id}", SESSION).replace("{name}", "main");
        let answer = api
            .raw(&format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"))
            .await;
        assert!(!answer.starts_with("HTTP/1.1 404"), "{method} {path}: {answer}");
        assert!(!answer.starts_with("HTTP/1.1 405"), "{method} {path}: {answer}");
    }
    let status = api.client().status().await.unwrap();
    assert!(status.store.ok && status.driver.health.ok);
    assert_eq!(status.version, "test");
}

#[tokio::test]
async fn without_a_server_the_client_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = ApiClient::new(dir.path()).status().await.unwrap_err();
    let data = dir.path().display().to_string();
    let text = error.to_string();
    assert!(matches!(error, ApiError::NotRunning { .. }));
    assert!(text.contains(&format!("start it with `sinew serve --data {data}`")), "{text}");

    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET_FILE)).unwrap());
    let error = ApiClient::new(dir.path()).status().await.unwrap_err();
    assert!(matches!(error, ApiError::NotRunning { .. }), "{error}");
}
