//! A brain in memory, behind the contract: one environment, one session, and whatever trouble a
//! test asks for.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base_types::{EnvironmentId, EventId, SessionId, ToolUseId, WorkId};
use brain_api::{
    Brain, BrainError, BrainErrorKind, BrainSession, Confirmation, Event, EventKind, ExpectedBeat,
    Heartbeat, ItemToken, Page, Permission, SendCredential, SessionInfo, SessionStatus, StopReason,
    StreamItem, ToolResult, ToolUse, ToolUseKind, WorkItem, WorkState,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use super::store::Cut;

pub const ENVIRONMENT: &str = "env_1";
pub const SESSION: &str = "sesn_1";

#[derive(Clone)]
pub struct TestBrain {
    environment: EnvironmentId,
    state: Arc<Mutex<State>>,
}

/// How the queue answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    Works,
    /// Fails like this.
    Fails(BrainErrorKind),
    /// Never answers, and nothing else of the brain does.
    Hangs,
    /// Offers one new item after another, each of a session that the brain does not know.
    Floods,
}

pub struct State {
    pub items: VecDeque<WorkItem>,
    pub queue: Queue,
    /// An item that is not acknowledged is offered again after this long; without it, never.
    pub reclaim: Option<Duration>,
    polled: HashMap<WorkId, Instant>,
    pub polls: u64,
    pub history: Vec<Event>,
    streams: Vec<mpsc::UnboundedSender<Result<StreamItem, BrainError>>>,
    pub info: SessionInfo,
    /// What was asked, in order: `ack`, `beat NO_HEARTBEAT`, `stop`, `retrieve`, `stream`, `list`,
    /// `send <body>`.
    pub log: Vec<String>,
    pub posts: Vec<String>,
    pub beats: u64,
    /// Answers of the next heartbeats, instead of a good one.
    pub beat_answers: VecDeque<Result<Heartbeat, BrainErrorKind>>,
    /// Answers of the next sends; with `true` the post arrives all the same.
    pub send_answers: VecDeque<(BrainErrorKind, bool)>,
    pub list_answers: VecDeque<BrainErrorKind>,
    pub ack_answers: VecDeque<BrainErrorKind>,
    /// Cut when a result arrives.
    cut: Option<Cut>,
    pub ttl: Duration,
}

pub fn error(kind: BrainErrorKind) -> BrainError {
    BrainError {
        kind,
        request: "test",
        detail: format!("{kind:?}"),
        request_id: None,
        source: None,
    }
}

pub fn transient() -> BrainErrorKind {
    BrainErrorKind::Transient { retry_after: None }
}

pub fn event(id: &str, kind: EventKind) -> Event {
    Event { id: Some(EventId::from(id)), name: "test".into(), kind }
}

pub fn bash(id: &str, command: &str) -> Event {
    tool(id, command, Permission::Allow)
}

pub fn tool(id: &str, command: &str, permission: Permission) -> Event {
    let call = ToolUse {
        id: ToolUseId::from(id),
        kind: ToolUseKind::Builtin,
        name: "bash".into(),
        input: serde_json::json!({ "command": command }),
        permission,
        thread: None,
    };
    event(id, EventKind::ToolUse(call))
}

/// The same of a thread.
pub fn of_thread(mut event: Event, thread: &str) -> Event {
    if let EventKind::ToolUse(call) = &mut event.kind {
        call.thread = Some(thread.into());
    }
    event
}

pub fn thread_ends(thread: &str) -> Event {
    event(&format!("end-{thread}"), EventKind::ThreadTerminated(thread.into()))
}

pub fn interrupt(id: &str) -> Event {
    event(id, EventKind::UserInterrupt { thread: None })
}

pub fn confirm(id: &str) -> Event {
    confirmation(id, true)
}

pub fn deny(id: &str) -> Event {
    confirmation(id, false)
}

fn confirmation(id: &str, allowed: bool) -> Event {
    let confirmation = Confirmation { call: ToolUseId::from(id), allowed };
    event(&format!("confirm-{id}-{allowed}"), EventKind::Confirmation(confirmation))
}

pub fn end_turn() -> Event {
    let reason = StopReason::TurnOver { reason: "end_turn".into() };
    event("idle", EventKind::StatusIdle(reason))
}

impl TestBrain {
    pub fn new() -> Self {
        Self::of(ENVIRONMENT, SESSION)
    }

    /// A brain of another environment, with its own session.
    pub fn of(environment: &str, session: &str) -> Self {
        let info = SessionInfo {
            id: SessionId::from(session),
            status: SessionStatus::Running,
            agent: None,
            agent_version: None,
            agent_name: None,
            title: None,
            metadata: Default::default(),
            unserved: vec![],
        };
        let state = State {
            items: VecDeque::new(),
            queue: Queue::Works,
            reclaim: None,
            polled: HashMap::new(),
            polls: 0,
            history: Vec::new(),
            streams: Vec::new(),
            info,
            log: Vec::new(),
            posts: Vec::new(),
            beats: 0,
            beat_answers: VecDeque::new(),
            send_answers: VecDeque::new(),
            list_answers: VecDeque::new(),
            ack_answers: VecDeque::new(),
            cut: None,
            ttl: Duration::from_secs(60),
        };
        let environment = EnvironmentId::from(environment);
        Self { environment, state: Arc::new(Mutex::new(state)) }
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// The line to the store is cut in the moment in which the next result arrives.
    pub fn cut_at_send(&self, cut: Cut) {
        self.with(|state| state.cut = Some(cut));
    }

    pub fn session_id(&self) -> SessionId {
        self.with(|state| state.info.id.clone())
    }

    pub fn offer(&self, work: &str) {
        let item = self.item(work, self.session_id());
        self.with(|state| state.items.push_back(item));
    }

    fn item(&self, work: &str, session: SessionId) -> WorkItem {
        WorkItem {
            id: WorkId::from(work),
            environment: self.environment.clone(),
            session: Some(session),
            data_type: "session".into(),
            token: Some(ItemToken(base_types::Secret::new("token"))),
        }
    }

    /// A brain that hangs answers nothing.
    async fn hang(&self) {
        if self.with(|state| state.queue == Queue::Hangs) {
            std::future::pending::<()>().await;
        }
    }

    /// Adds to the history and to every open stream.
    pub fn emit(&self, event: Event) {
        self.with(|state| {
            state.history.push(event.clone());
            state
                .streams
                .retain(|stream| stream.send(Ok(StreamItem::Event(event.clone()))).is_ok());
        });
    }

    /// On the stream only.
    pub fn emit_again(&self, event: Event) {
        self.with(|state| {
            for stream in &state.streams {
                let _ = stream.send(Ok(StreamItem::Event(event.clone())));
            }
        });
    }

    pub fn cut_streams(&self) {
        self.with(|state| state.streams.clear());
    }

    pub fn posts(&self) -> Vec<String> {
        self.with(|state| state.posts.clone())
    }

    pub fn log(&self) -> Vec<String> {
        self.with(|state| state.log.clone())
    }

    pub fn logged(&self, what: &str) -> usize {
        self.log().iter().filter(|line| line.starts_with(what)).count()
    }
}

#[async_trait]
impl Brain for TestBrain {
    fn environment(&self) -> &EnvironmentId {
        &self.environment
    }

    async fn poll(&self) -> Result<Option<WorkItem>, BrainError> {
        self.hang().await;
        self.with(|state| {
            state.polls += 1;
            match state.queue {
                Queue::Fails(kind) => return Err(error(kind)),
                Queue::Floods => {
                    let work = format!("flood_{}", state.polls);
                    return Ok(Some(self.item(&work, SessionId::from(format!("sesn_{work}")))));
                }
                Queue::Works | Queue::Hangs => {}
            }
            let Some(reclaim) = state.reclaim else { return Ok(state.items.pop_front()) };
            let polled = &state.polled;
            let claimable =
                |item: &&WorkItem| polled.get(&item.id).is_none_or(|at| at.elapsed() >= reclaim);
            let item = state.items.iter().find(claimable).cloned();
            if let Some(item) = &item {
                state.polled.insert(item.id.clone(), Instant::now());
            }
            Ok(item)
        })
    }

    async fn ack(&self, work: &WorkId) -> Result<(), BrainError> {
        self.hang().await;
        self.with(|state| {
            state.log.push(format!("ack {work}"));
            if let Some(kind) = state.ack_answers.pop_front() {
                return Err(error(kind));
            }
            state.items.retain(|item| item.id != *work);
            Ok(())
        })
    }

    async fn heartbeat(
        &self,
        _: &WorkId,
        _: Option<&ItemToken>,
        expected: &ExpectedBeat,
    ) -> Result<Heartbeat, BrainError> {
        self.hang().await;
        self.with(|state| {
            let expected = match expected {
                ExpectedBeat::None => "NO_HEARTBEAT",
                ExpectedBeat::Last(last) => last,
            };
            state.log.push(format!("beat {expected}"));
            state.beats += 1;
            let good = Heartbeat {
                last: format!("beat-{}", state.beats),
                extended: true,
                state: WorkState::Active,
                ttl: Some(state.ttl),
            };
            state.beat_answers.pop_front().unwrap_or(Ok(good)).map_err(error)
        })
    }

    async fn stop(&self, work: &WorkId, _: Option<&ItemToken>) -> Result<(), BrainError> {
        self.hang().await;
        self.with(|state| state.log.push(format!("stop {work}")));
        Ok(())
    }

    fn session(&self, session: &SessionId, _: Option<ItemToken>) -> Box<dyn BrainSession> {
        match *session == self.session_id() {
            true => Box::new(self.clone()),
            false => Box::new(NoSuchSession(self.clone())),
        }
    }
}

#[async_trait]
impl BrainSession for TestBrain {
    async fn retrieve(&self) -> Result<SessionInfo, BrainError> {
        self.hang().await;
        Ok(self.with(|state| {
            state.log.push("retrieve".into());
            state.info.clone()
        }))
    }

    async fn events(&self, page: Option<&str>) -> Result<Page, BrainError> {
        // Three to a page, so that every list of a test pages.
        const PAGE: usize = 3;
        self.hang().await;
        self.with(|state| {
            state.log.push("list".into());
            if let Some(kind) = state.list_answers.pop_front() {
                return Err(error(kind));
            }
            let start: usize = page.map_or(0, |page| page.parse().unwrap());
            let end = (start + PAGE).min(state.history.len());
            let next = (end < state.history.len()).then(|| end.to_string());
            Ok(Page { events: state.history[start..end].to_vec(), next })
        })
    }

    async fn stream(
        &self,
    ) -> Result<BoxStream<'static, Result<StreamItem, BrainError>>, BrainError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.with(|state| {
            state.log.push("stream".into());
            state.streams.push(sender);
        });
        Ok(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver).boxed())
    }

    fn encode(&self, result: &ToolResult) -> Vec<u8> {
        serde_json::to_vec(result).unwrap()
    }

    async fn send(&self, body: &[u8], _: SendCredential) -> Result<(), BrainError> {
        self.hang().await;
        let text = String::from_utf8(body.to_vec()).unwrap();
        let answer = self.with(|state| {
            state.log.push(format!("send {text}"));
            state.send_answers.pop_front()
        });
        if answer.is_none_or(|(_, arrives)| arrives) {
            let result: ToolResult = serde_json::from_slice(body).unwrap();
            if let Some(cut) = self.with(|state| state.cut.take()) {
                cut.set(true);
            }
            self.with(|state| state.posts.push(text));
            let id = format!("answer-{}", result.call);
            self.emit(event(&id, EventKind::Answered(result.call)));
        }
        answer.map_or(Ok(()), |(kind, _)| Err(error(kind)))
    }
}

/// A session that the brain offers and does not know.
struct NoSuchSession(TestBrain);

#[async_trait]
impl BrainSession for NoSuchSession {
    async fn retrieve(&self) -> Result<SessionInfo, BrainError> {
        Err(error(BrainErrorKind::NotFound))
    }

    async fn events(&self, _: Option<&str>) -> Result<Page, BrainError> {
        Err(error(BrainErrorKind::NotFound))
    }

    async fn stream(
        &self,
    ) -> Result<BoxStream<'static, Result<StreamItem, BrainError>>, BrainError> {
        Err(error(BrainErrorKind::NotFound))
    }

    fn encode(&self, result: &ToolResult) -> Vec<u8> {
        self.0.encode(result)
    }

    async fn send(&self, _: &[u8], _: SendCredential) -> Result<(), BrainError> {
        Err(error(BrainErrorKind::NotFound))
    }
}
