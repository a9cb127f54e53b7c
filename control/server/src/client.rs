//! Speaks the API over its unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base_types::SessionId;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use store_api::LogEntry;
use tokio::net::UnixStream;

use crate::api::{
    CallPage, CallQuery, ExecRequest, Fault, FaultBody, LogPage, LogQuery, SessionList,
    SessionQuery, SessionView, StatusAnswer, StopAnswer, StopRequest, TERMINAL_PROTOCOL,
    TerminalClosed, TerminalList, TerminalRequest, UPGRADE_PROTOCOL,
};

/// The longest answer read into memory: a page of a thousand calls with large inputs.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// The longest line of a followed log; one entry is far shorter.
const LINE_BYTES_MAX: usize = 1 << 20;
/// The server answers at once, except where it stops a session or wakes a sandbox.
const ANSWER_WAIT: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("`sinew serve` is not running for {data}: start it with `sinew serve --data {data}`")]
    NotRunning { data: String },
    #[error(
        "no permission to use {socket}: run as its owner or as root, or let serve open the \
         socket to a group of yours with `--socket-group`"
    )]
    Forbidden { socket: PathBuf },
    #[error("speak to `sinew serve`")]
    Io(#[source] io::Error),
    #[error("speak to `sinew serve`")]
    Http(#[source] hyper::Error),
    #[error("`sinew serve` did not answer within {} s", ANSWER_WAIT.as_secs())]
    Silent,
    #[error("{} ({})", .0.message, .0.hint)]
    Refused(Fault),
    #[error("`sinew serve` answered {status} with something that is not its API's: {text}")]
    Garbled { status: StatusCode, text: String },
}

/// Finds its server by the data directory. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct ApiClient {
    socket: PathBuf,
}

/// An upgraded connection that carries [`crate::api::Frame`]s.
pub type ExecConnection = TokioIo<Upgraded>;

impl ApiClient {
    pub fn new(data: &Path) -> Self {
        Self { socket: data.join(crate::SOCKET_FILE) }
    }

    pub async fn status(&self) -> Result<StatusAnswer, ApiError> {
        self.get("/api/v1/status", &()).await
    }

    pub async fn sessions(&self, query: &SessionQuery) -> Result<SessionList, ApiError> {
        self.get("/api/v1/sessions", query).await
    }

    pub async fn session(&self, session: &SessionId) -> Result<SessionView, ApiError> {
        self.get(&session_path(session, ""), &()).await
    }

    pub async fn calls(
        &self,
        session: &SessionId,
        query: &CallQuery,
    ) -> Result<CallPage, ApiError> {
        self.get(&session_path(session, "/calls"), query).await
    }

    pub async fn log(&self, session: &SessionId, query: &LogQuery) -> Result<LogPage, ApiError> {
        self.get(&session_path(session, "/log"), query).await
    }

    pub async fn stop(
        &self,
        session: &SessionId,
        request: &StopRequest,
    ) -> Result<StopAnswer, ApiError> {
        let path = session_path(session, "/stop");
        let answer = self.send(json_request(Method::POST, &path, request)?).await?;
        read_json(answer).await
    }

    /// Entries as they happen, until the server stops.
    pub async fn follow(
        &self,
        session: &SessionId,
        query: &LogQuery,
    ) -> Result<impl Stream<Item = Result<LogEntry, ApiError>> + Send + use<>, ApiError> {
        let query = LogQuery { follow: true, ..query.clone() };
        let path = with_query(&session_path(session, "/log"), &query)?;
        let answer = self.send(plain_request(&path)?).await?;
        let body = refuse_if_not_ok(answer).await?.into_body();
        Ok(lines(body))
    }

    pub async fn exec(
        &self,
        session: &SessionId,
        request: &ExecRequest,
    ) -> Result<ExecConnection, ApiError> {
        self.upgraded(&session_path(session, "/exec"), request, UPGRADE_PROTOCOL).await
    }

    /// The terminals of a running sandbox.
    pub async fn terminals(&self, session: &SessionId) -> Result<TerminalList, ApiError> {
        self.get(&session_path(session, "/terminals"), &()).await
    }

    /// `name` is a terminal's name, which needs no escaping.
    pub async fn terminal(
        &self,
        session: &SessionId,
        name: &str,
        request: &TerminalRequest,
    ) -> Result<ExecConnection, ApiError> {
        let path = session_path(session, &format!("/terminals/{name}"));
        self.upgraded(&path, request, TERMINAL_PROTOCOL).await
    }

    pub async fn close_terminal(
        &self,
        session: &SessionId,
        name: &str,
    ) -> Result<TerminalClosed, ApiError> {
        let path = session_path(session, &format!("/terminals/{name}"));
        let request = build(Request::builder().method(Method::DELETE).uri(path), Bytes::new())?;
        read_json(self.send(request).await?).await
    }

    async fn upgraded<B: Serialize>(
        &self,
        path: &str,
        request: &B,
        protocol: &'static str,
    ) -> Result<ExecConnection, ApiError> {
        let mut http = json_request(Method::POST, path, request)?;
        let headers = http.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static(protocol));
        let answer = self.send(http).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            refuse_if_not_ok(answer).await?;
            return Err(ApiError::Garbled { status, text: "no upgrade".to_owned() });
        }
        hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(ApiError::Http)
    }

    async fn get<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        query: &Q,
    ) -> Result<A, ApiError> {
        let answer = self.send(plain_request(&with_query(path, query)?)?).await?;
        read_json(answer).await
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ApiError::Http)?;
        base_tasks::spawn(base_tasks::TaskKind::ApiConnection, async move {
            // Its failure reaches the request that waits on it.
            let _ = connection.with_upgrades().await;
        });
        let answer = tokio::time::timeout(ANSWER_WAIT, sender.send_request(request)).await;
        answer.map_err(|_| ApiError::Silent)?.map_err(ApiError::Http)
    }

    fn unreachable(&self, error: io::Error) -> ApiError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                let data = self.socket.parent().unwrap_or(&self.socket);
                ApiError::NotRunning { data: data.display().to_string() }
            }
            io::ErrorKind::PermissionDenied => ApiError::Forbidden { socket: self.socket.clone() },
            _ => ApiError::Io(error),
        }
    }
}

/// Session ids come from the brain: whatever is in one, it stays one segment of the path.
fn session_path(session: &SessionId, rest: &str) -> String {
    let mut path = "/api/v1/sessions/".to_owned();
    for byte in session.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path + rest
}

/// Queries hold numbers and booleans only, so nothing in them needs escaping.
fn with_query<Q: Serialize>(path: &str, query: &Q) -> Result<String, ApiError> {
    let value = serde_json::to_value(query).map_err(|e| ApiError::Io(e.into()))?;
    let pairs: Vec<String> = match value {
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={value}")).collect()
        }
        _ => Vec::new(),
    };
    Ok(if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) })
}

fn plain_request(path: &str) -> Result<Request<Full<Bytes>>, ApiError> {
    build(Request::get(path), Bytes::new())
}

fn json_request<B: Serialize>(
    method: Method,
    path: &str,
    body: &B,
) -> Result<Request<Full<Bytes>>, ApiError> {
    let body = serde_json::to_vec(body).map_err(|e| ApiError::Io(e.into()))?;
    let builder = Request::builder().method(method).uri(path);
    build(builder.header(header::CONTENT_TYPE, "application/json"), body.into())
}

fn build(builder: http::request::Builder, body: Bytes) -> Result<Request<Full<Bytes>>, ApiError> {
    let request = builder.header(header::HOST, "sinew").body(Full::new(body));
    request.map_err(|e| ApiError::Io(io::Error::new(io::ErrorKind::InvalidInput, e)))
}

async fn read_json<A: DeserializeOwned>(answer: http::Response<Incoming>) -> Result<A, ApiError> {
    let answer = refuse_if_not_ok(answer).await?;
    let status = answer.status();
    let bytes = read_body(answer.into_body()).await?;
    serde_json::from_slice(&bytes).map_err(|_| garbled(status, &bytes))
}

async fn refuse_if_not_ok(
    answer: http::Response<Incoming>,
) -> Result<http::Response<Incoming>, ApiError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let bytes = read_body(answer.into_body()).await?;
    match serde_json::from_slice::<FaultBody>(&bytes) {
        Ok(body) => Err(ApiError::Refused(body.error)),
        Err(_) => Err(garbled(status, &bytes)),
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, ApiError> {
    let collected = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let collected = collected.map_err(|error| ApiError::Io(io::Error::other(error)))?;
    Ok(collected.to_bytes())
}

fn garbled(status: StatusCode, bytes: &[u8]) -> ApiError {
    let text = String::from_utf8_lossy(bytes).chars().take(200).collect();
    ApiError::Garbled { status, text }
}

/// One entry a line; empty lines are signs of life.
fn lines(body: Incoming) -> impl Stream<Item = Result<LogEntry, ApiError>> + Send {
    futures::stream::unfold(Some((body, BytesMut::new())), |state| async move {
        let (mut body, mut buffer) = state?;
        loop {
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                let line = &line[..end];
                if line.is_empty() {
                    continue;
                }
                let entry = serde_json::from_slice(line);
                let entry = entry.map_err(|_| garbled(StatusCode::OK, line));
                let next = entry.is_ok().then_some((body, buffer));
                return Some((entry, next));
            }
            if buffer.len() > LINE_BYTES_MAX {
                return Some((Err(garbled(StatusCode::OK, b"a line without end")), None));
            }
            match body.frame().await {
                None => return None,
                Some(Err(error)) => return Some((Err(ApiError::Http(error)), None)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    })
}
