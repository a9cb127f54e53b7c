//! The host end of a connection: many requests in flight, one driver.
//!
//! [`GuestClient::connect`] says hello and returns the client with its driver, a future that the
//! caller spawns and that owns the stream. The driver ends when the stream does or when the last
//! client is dropped; whatever is still in flight then fails with [`ClientError::Closed`].
//!
//! The agent is hostile: an answer nobody asked for, of the wrong kind, or too long ends the
//! request or the connection, and nothing it sends makes this side hold more than the constants
//! below. Silence is not noticed here: callers bound [`GuestClient::ping`] by time.

mod terminal;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base_types::{CallId, Chain, Epoch};
use bytes::BytesMut;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use crate::call::AgentInfo;
use crate::frame::{self, FrameError};
use crate::version::{self, VersionError, printable};
use crate::wire::{self, ErrorCode, RequestBody, ResponseBody};
use crate::{
    CHUNK_BYTES_MAX, CallSpec, CallState, FRAME_BYTES_MAX, KillScope, Malformed, Outcome,
    OutputChunk, PtySize, REQUEST_BYTES_MAX, StdinData,
};

/// Requests without an answer on one connection; a leak of waiters shows instead of growing.
const IN_FLIGHT_MAX: usize = 1024;
/// Requests handed to the driver and not yet taken; callers wait beyond it.
const QUEUE_MAX: usize = 16;
/// Bytes to send that the driver holds before it takes another request.
const UNSENT_BYTES_MAX: usize = 1 << 20;
/// Asked of the kernel in one read.
const READ_BYTES: usize = 16 << 10;
/// A live agent answers hello within a millisecond; this is for a stopped one.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// How long the agent holds one `wait`; then the client asks again. It bounds how long a waiter
/// whose caller has gone stays in the agent.
const WAIT_SLICE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("speak to the guest agent")]
    Io(#[source] std::io::Error),
    #[error("the guest agent closed the connection before its hello")]
    Closed,
    #[error("the guest agent did not say hello within {} s", HELLO_WAIT.as_secs())]
    Silent,
    #[error("the guest agent's hello")]
    Frame(#[source] FrameError),
    #[error("the guest agent began with something else than hello")]
    NoHello,
    #[error("the guest agent refused the connection: {0}")]
    Refused(String),
    #[error("agree on a version with the guest agent")]
    Version(#[source] VersionError),
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the connection to the guest agent is closed: {0}")]
    Closed(String),
    #[error("the guest agent has {IN_FLIGHT_MAX} requests unanswered")]
    TooManyInFlight,
    #[error("the request for the guest agent")]
    Request(#[source] FrameError),
    #[error("the guest agent answered {request} with something else")]
    WrongAnswer { request: &'static str },
    #[error("the guest agent's answer to {request}")]
    Malformed { request: &'static str, source: Malformed },
    #[error("the guest agent refused {request} ({code:?}): {text}")]
    Refused { request: &'static str, code: ErrorCode, text: String },
    #[error(
        "{request}: this sandbox runs an older guest agent (it speaks version {spoken}, this needs \
         {needed}), which is replaced when the sandbox starts anew"
    )]
    AgentTooOld { request: &'static str, spoken: u32, needed: u32 },
}

impl ClientError {
    /// What the agent refused with, if it was the agent that refused.
    pub fn refusal(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Why [`GuestClient::run`] has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("start the call")]
    Start(#[source] ClientError),
    /// It may be running.
    #[error("wait for the call")]
    Wait(#[source] ClientError),
}

/// What the agent said of itself in its hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub version: u32,
    pub build: String,
    pub epoch: Epoch,
}

/// A connection to one agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GuestClient {
    submissions: mpsc::Sender<Submission>,
    peer: Arc<Peer>,
    closed: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct Submission {
    body: RequestBody,
    answer: oneshot::Sender<Result<ResponseBody, ClientError>>,
}

// === impl GuestClient ===

impl GuestClient {
    /// Says hello over `stream`. The caller spawns the returned driver; without it nothing moves.
    pub async fn connect<S>(
        stream: S,
        build: &str,
    ) -> Result<(GuestClient, impl Future<Output = ()> + Send + use<S>), ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut stream = stream;
        let mut inbox = BytesMut::new();
        let hello = exchange_hello(&mut stream, &mut inbox, build);
        let hello = tokio::time::timeout(HELLO_WAIT, hello).await;
        let hello = hello.map_err(|_| ConnectError::Silent)??;
        let version = version::agree(&hello).map_err(ConnectError::Version)?;
        let peer = Peer { version, build: printable(&hello.build), epoch: Epoch(hello.epoch) };
        let (submissions, queue) = mpsc::channel(QUEUE_MAX);
        let closed = Arc::new(OnceLock::new());
        let driver = Driver {
            queue,
            inbox,
            outbox: BytesMut::new(),
            in_flight: HashMap::new(),
            next_id: 1,
            closed: closed.clone(),
        };
        let client = GuestClient { submissions, peer: Arc::new(peer), closed };
        Ok((client, driver.run(stream)))
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether the driver has ended: every request would fail.
    pub fn is_closed(&self) -> bool {
        self.submissions.is_closed()
    }

    /// Starts the call, once: a call of this id that the agent already has is not run again, and
    /// its state is the answer.
    pub async fn start(&self, id: &CallId, spec: &CallSpec) -> Result<CallState, ClientError> {
        self.state("start", RequestBody::Start(spec.to_wire(id))).await
    }

    pub async fn query(&self, id: &CallId) -> Result<CallState, ClientError> {
        self.state("query", RequestBody::Query(call_ref(id))).await
    }

    /// Resolves when the call has ended. Any number of tasks may wait. Cancel-safe.
    pub async fn wait(&self, id: &CallId) -> Result<Outcome, ClientError> {
        loop {
            match self.wait_for(id, WAIT_SLICE).await? {
                CallState::Finished(outcome) => return Ok(*outcome),
                CallState::Running { .. } => {}
                CallState::Unknown => {
                    return Err(ClientError::Refused {
                        request: "wait",
                        code: ErrorCode::UnknownCall,
                        text: format!("call {id} is not known"),
                    });
                }
            }
        }
    }

    /// [`Self::start`] and [`Self::wait`], asked for in one go: the answer to the first costs no
    /// time of its own. A start that the agent refused is not waited for.
    pub async fn run(&self, id: &CallId, spec: &CallSpec) -> Result<Outcome, RunError> {
        // Polled in this order, and the agent takes requests in the order they were sent.
        let (started, ended) = futures::join!(self.start(id, spec), self.wait(id));
        started.map_err(RunError::Start)?;
        ended.map_err(RunError::Wait)
    }

    /// The state of the call when it has ended or `time` has passed.
    pub async fn wait_for(&self, id: &CallId, time: Duration) -> Result<CallState, ClientError> {
        let wait = wire::Wait {
            call_id: id.as_str().to_owned(),
            wait_ms: time.as_millis().try_into().unwrap_or(u64::MAX),
        };
        self.state("wait", RequestBody::Wait(wait)).await
    }

    /// Begins to kill the call; [`Self::wait`] tells when it is dead. An ended call stays as it is.
    pub async fn kill(&self, id: &CallId, scope: KillScope) -> Result<CallState, ClientError> {
        let scope = wire::KillScope::from(scope).into();
        let kill = wire::Kill { call_id: id.as_str().to_owned(), scope };
        self.state("kill", RequestBody::Kill(kill)).await
    }

    /// The agent may forget the outcome. Harmless when repeated; refused while the call runs.
    pub async fn ack(&self, id: &CallId) -> Result<(), ClientError> {
        self.done("ack", RequestBody::Ack(call_ref(id))).await
    }

    /// Up to `max_bytes` of output from `offset`, at once.
    pub async fn output(
        &self,
        id: &CallId,
        offset: u64,
        max_bytes: usize,
    ) -> Result<OutputChunk, ClientError> {
        self.read_output(id, offset, max_bytes, Duration::ZERO).await
    }

    /// The output as it comes, from `offset` to the end of the call. Each piece is asked for when
    /// the one before was taken, so a slow reader costs no memory, and a new connection goes on
    /// from the offset reached.
    pub fn attach(
        &self,
        id: &CallId,
        offset: u64,
    ) -> impl Stream<Item = Result<OutputChunk, ClientError>> + Send + use<> {
        let start = Some((self.clone(), id.clone(), offset));
        futures::stream::unfold(start, |state| async move {
            let (client, id, offset) = state?;
            loop {
                match client.read_output(&id, offset, CHUNK_BYTES_MAX, WAIT_SLICE).await {
                    Ok(chunk) if chunk.data.is_empty() && chunk.finished => return None,
                    Ok(chunk) if chunk.data.is_empty() => {}
                    Ok(chunk) => {
                        let next = offset + chunk.data.len() as u64;
                        return Some((Ok(chunk), Some((client, id, next))));
                    }
                    Err(error) => return Some((Err(error), None)),
                }
            }
        })
    }

    /// The whole spooled output of an ended call, cut at `limit` bytes.
    pub async fn read_all(&self, id: &CallId, limit: usize) -> Result<Vec<u8>, ClientError> {
        let mut whole = Vec::new();
        while whole.len() < limit {
            let want = CHUNK_BYTES_MAX.min(limit - whole.len());
            let chunk = self.output(id, whole.len() as u64, want).await?;
            if chunk.data.is_empty() {
                break;
            }
            whole.extend_from_slice(&chunk.data);
        }
        Ok(whole)
    }

    /// Input for an `Exec` that asked for it. The answer comes when the agent has taken it, which
    /// it does as fast as the program reads.
    pub async fn stdin(&self, id: &CallId, data: StdinData) -> Result<(), ClientError> {
        let (data, eof) = match data {
            StdinData::Bytes(data) => (data, false),
            StdinData::Eof => (Vec::new(), true),
        };
        let stdin = wire::Stdin { call_id: id.as_str().to_owned(), data, eof };
        self.done("stdin", RequestBody::Stdin(stdin)).await
    }

    pub async fn resize(&self, id: &CallId, size: PtySize) -> Result<(), ClientError> {
        let resize = wire::Resize { call_id: id.as_str().to_owned(), size: Some(size.into()) };
        self.done("resize", RequestBody::Resize(resize)).await
    }

    /// Sends a signal to the program of an `Exec`, and to its process group.
    pub async fn signal(&self, id: &CallId, signal: i32) -> Result<(), ClientError> {
        let signal = wire::Signal { call_id: id.as_str().to_owned(), signal };
        self.done("signal", RequestBody::Signal(signal)).await
    }

    pub async fn ping(&self) -> Result<(), ClientError> {
        self.done("ping", RequestBody::Ping(wire::Empty {})).await
    }

    pub async fn info(&self) -> Result<AgentInfo, ClientError> {
        match self.request("info", RequestBody::Info(wire::Empty {})).await? {
            ResponseBody::Info(info) => AgentInfo::try_from(info)
                .map_err(|source| ClientError::Malformed { request: "info", source }),
            _ => Err(ClientError::WrongAnswer { request: "info" }),
        }
    }

    /// Everything in the sandbox is killed and the agent ends.
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.done("shutdown", RequestBody::Shutdown(wire::Empty {})).await
    }

    async fn read_output(
        &self,
        id: &CallId,
        offset: u64,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<OutputChunk, ClientError> {
        let max_bytes = max_bytes.min(CHUNK_BYTES_MAX) as u64;
        let read = wire::ReadOutput {
            call_id: id.as_str().to_owned(),
            offset,
            max_bytes,
            wait_ms: wait.as_millis() as u64,
        };
        match self.request("output", RequestBody::Output(read)).await? {
            ResponseBody::Output(output) => OutputChunk::accept(output, offset, max_bytes)
                .map_err(|source| ClientError::Malformed { request: "output", source }),
            _ => Err(ClientError::WrongAnswer { request: "output" }),
        }
    }

    async fn state(
        &self,
        request: &'static str,
        body: RequestBody,
    ) -> Result<CallState, ClientError> {
        match self.request(request, body).await? {
            ResponseBody::State(state) => CallState::try_from(state)
                .map_err(|source| ClientError::Malformed { request, source }),
            _ => Err(ClientError::WrongAnswer { request }),
        }
    }

    async fn done(&self, request: &'static str, body: RequestBody) -> Result<(), ClientError> {
        match self.request(request, body).await? {
            ResponseBody::Done(_) => Ok(()),
            _ => Err(ClientError::WrongAnswer { request }),
        }
    }

    async fn request(
        &self,
        request: &'static str,
        body: RequestBody,
    ) -> Result<ResponseBody, ClientError> {
        let (answer, answered) = oneshot::channel();
        let submitted = self.submissions.send(Submission { body, answer }).await;
        submitted.map_err(|_| self.closed_error())?;
        match answered.await.map_err(|_| self.closed_error())?? {
            ResponseBody::Error(error) => Err(ClientError::Refused {
                request,
                code: ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Unspecified),
                text: refusal_text(&error.text),
            }),
            body => Ok(body),
        }
    }

    fn closed_error(&self) -> ClientError {
        let reason = self.closed.get().cloned();
        ClientError::Closed(reason.unwrap_or_else(|| "its driver has ended".to_owned()))
    }
}

fn call_ref(id: &CallId) -> wire::CallRef {
    wire::CallRef { call_id: id.as_str().to_owned() }
}

/// A reason given by the agent, as one line of bounded length.
fn refusal_text(text: &str) -> String {
    const REFUSAL_CHARS_MAX: usize = 512;
    text.chars().filter(|c| !c.is_control()).take(REFUSAL_CHARS_MAX).collect()
}

async fn exchange_hello<S>(
    stream: &mut S,
    inbox: &mut BytesMut,
    build: &str,
) -> Result<wire::Hello, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = RequestBody::Hello(version::hello(build, 0));
    let request = wire::Request { id: 0, body: Some(hello) };
    let mut outbox = BytesMut::new();
    frame::put_message(&mut outbox, &request, REQUEST_BYTES_MAX).map_err(ConnectError::Frame)?;
    stream.write_all(&outbox).await.map_err(ConnectError::Io)?;
    loop {
        let response = frame::take_message::<wire::Response>(inbox, FRAME_BYTES_MAX);
        if let Some(response) = response.map_err(ConnectError::Frame)? {
            return match response.body {
                Some(ResponseBody::Hello(hello)) => Ok(hello),
                Some(ResponseBody::Error(error)) => {
                    Err(ConnectError::Refused(refusal_text(&error.text)))
                }
                _ => Err(ConnectError::NoHello),
            };
        }
        if stream.read_buf(inbox).await.map_err(ConnectError::Io)? == 0 {
            return Err(ConnectError::Closed);
        }
    }
}

// === the driver ===

type Answer = oneshot::Sender<Result<ResponseBody, ClientError>>;

struct Driver {
    queue: mpsc::Receiver<Submission>,
    inbox: BytesMut,
    outbox: BytesMut,
    in_flight: HashMap<u64, Answer>,
    next_id: u64,
    closed: Arc<OnceLock<String>>,
}

impl Driver {
    async fn run<S>(mut self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let reason = self.exchange(stream).await;
        // First the reason, then the answers that will never come: whoever is told finds it.
        let _ = self.closed.set(reason);
        self.queue.close();
    }

    /// Moves frames until one side is done; answers why it ended.
    async fn exchange<S>(&mut self, stream: S) -> String
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        loop {
            if let Err(error) = self.take_answers() {
                return format!("unreadable answer: {}", Chain(&error));
            }
            self.inbox.reserve(READ_BYTES);
            tokio::select! {
                submission = self.queue.recv(), if self.outbox.len() < UNSENT_BYTES_MAX => {
                    match submission {
                        Some(submission) => self.submit(submission),
                        None => return "the last client was dropped".to_owned(),
                    }
                }
                sent = writer.write_buf(&mut self.outbox), if !self.outbox.is_empty() => {
                    if let Err(error) = sent {
                        return format!("write: {error}");
                    }
                }
                read = reader.read_buf(&mut self.inbox) => match read {
                    Ok(0) => return "the agent closed it".to_owned(),
                    Ok(_) => {}
                    Err(error) => return format!("read: {error}"),
                }
            }
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { body, answer } = submission;
        if answer.is_closed() {
            return; // Its caller gave up before anything was sent.
        }
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            self.in_flight.retain(|_, answer| !answer.is_closed());
        }
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            let _ = answer.send(Err(ClientError::TooManyInFlight));
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        let request = wire::Request { id, body: Some(body) };
        match frame::put_message(&mut self.outbox, &request, REQUEST_BYTES_MAX) {
            Ok(()) => drop(self.in_flight.insert(id, answer)),
            Err(error) => drop(answer.send(Err(ClientError::Request(error)))),
        }
    }

    fn take_answers(&mut self) -> Result<(), FrameError> {
        while let Some(response) =
            frame::take_message::<wire::Response>(&mut self.inbox, FRAME_BYTES_MAX)?
        {
            // An answer nobody waits for: its caller gave up, or the agent made it up.
            let Some(answer) = self.in_flight.remove(&response.id) else { continue };
            let body = response.body.ok_or(ClientError::WrongAnswer { request: "a request" });
            let _ = answer.send(body);
        }
        Ok(())
    }
}
