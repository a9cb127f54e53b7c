//! A guest agent in memory: speaks the guest protocol over a pipe and runs two commands, "hang"
//! and anything else, which ends at once with itself as its output. It counts how often each call
//! was begun.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use sandbox_api::guest::frame::{put_message, take_message};
use sandbox_api::guest::wire::{Error, ErrorCode, Request, RequestBody, Response, ResponseBody};
use sandbox_api::guest::{
    Block, CallSpec, CallState, Exit, FRAME_BYTES_MAX, Outcome, REQUEST_BYTES_MAX, ShellSpec, Work,
    version, wire,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

#[derive(Clone)]
pub struct Agent {
    pub epoch: u64,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// Set when the sandbox is stopped: connections end.
    dead: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    calls: HashMap<String, Option<Outcome>>,
    begun: Vec<String>,
    acked: Vec<String>,
    killed: usize,
    /// Answers nothing, pings included.
    mute: bool,
}

impl Agent {
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            state: Arc::default(),
            changed: watch::Sender::new(0),
            dead: watch::Sender::new(false),
        }
    }

    /// The commands that were begun, in order.
    pub fn begun(&self) -> Vec<String> {
        self.state.lock().unwrap().begun.clone()
    }

    pub fn acked(&self) -> usize {
        self.state.lock().unwrap().acked.len()
    }

    /// Calls that were killed while they ran.
    pub fn killed(&self) -> usize {
        self.state.lock().unwrap().killed
    }

    pub fn mute(&self) {
        self.state.lock().unwrap().mute = true;
    }

    pub fn die(&self) {
        self.dead.send_replace(true);
    }

    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    pub async fn died(&self) {
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// Ends every hanging call with this output.
    pub fn finish_all(&self, output: &str) {
        for outcome in self.state.lock().unwrap().calls.values_mut() {
            if outcome.is_none() {
                *outcome = Some(outcome_of(Exit::Code(0), output));
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }

    pub async fn serve(self, stream: DuplexStream) {
        let mut dead = self.dead.subscribe();
        tokio::select! {
            () = self.converse(stream) => {}
            _ = dead.wait_for(|dead| *dead) => {}
        }
    }

    async fn converse(&self, stream: DuplexStream) {
        let (mut reader, writer) = tokio::io::split(stream);
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let mut inbox = BytesMut::new();
        loop {
            match take_message::<Request>(&mut inbox, REQUEST_BYTES_MAX) {
                Ok(Some(request)) => {
                    let (agent, writer) = (self.clone(), writer.clone());
                    tokio::spawn(async move {
                        let Some(body) = agent.answer(request.body.unwrap()).await else { return };
                        let response = Response { id: request.id, body: Some(body) };
                        let mut frame = BytesMut::new();
                        put_message(&mut frame, &response, FRAME_BYTES_MAX).unwrap();
                        let _ = writer.lock().await.write_all(&frame).await;
                    });
                }
                Ok(None) => {
                    if reader.read_buf(&mut inbox).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                Err(error) => panic!("the host sent nonsense: {error}"),
            }
        }
    }

    async fn answer(&self, body: RequestBody) -> Option<ResponseBody> {
        if self.state.lock().unwrap().mute {
            return None;
        }
        Some(match body {
            RequestBody::Hello(_) => ResponseBody::Hello(version::hello("test", self.epoch)),
            RequestBody::Ping(_) => ResponseBody::Done(wire::Empty {}),
            RequestBody::Start(start) => {
                let id = start.call_id.clone();
                self.start(&id, CallSpec::try_from(start).unwrap());
                self.state_of(&id)
            }
            RequestBody::Query(call) => self.state_of(&call.call_id),
            RequestBody::Wait(wait) => {
                let mut changed = self.changed.subscribe();
                loop {
                    changed.borrow_and_update();
                    let running =
                        matches!(self.state.lock().unwrap().calls.get(&wait.call_id), Some(None));
                    if !running {
                        return Some(self.state_of(&wait.call_id));
                    }
                    changed.changed().await.ok()?;
                }
            }
            RequestBody::Kill(kill) => {
                let mut state = self.state.lock().unwrap();
                if let Some(outcome @ None) = state.calls.get_mut(&kill.call_id) {
                    *outcome = Some(outcome_of(Exit::Killed, ""));
                    state.killed += 1;
                }
                drop(state);
                self.changed.send_modify(|count| *count += 1);
                self.state_of(&kill.call_id)
            }
            RequestBody::Ack(call) => {
                self.state.lock().unwrap().acked.push(call.call_id);
                ResponseBody::Done(wire::Empty {})
            }
            _ => ResponseBody::Error(Error {
                code: ErrorCode::BadRequest.into(),
                text: "not in this agent".into(),
            }),
        })
    }

    fn start(&self, id: &str, spec: CallSpec) {
        let Work::Shell(ShellSpec::Command(command)) = spec.work else { panic!("not a command") };
        let mut state = self.state.lock().unwrap();
        if state.calls.contains_key(id) {
            return;
        }
        state.begun.push(command.clone());
        let outcome = (!command.starts_with("hang")).then(|| outcome_of(Exit::Code(0), &command));
        state.calls.insert(id.to_owned(), outcome);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    fn state_of(&self, id: &str) -> ResponseBody {
        let state = match self.state.lock().unwrap().calls.get(id) {
            None => CallState::Unknown,
            Some(None) => CallState::Running { started_at_ms: 1, total_bytes: 0 },
            Some(Some(outcome)) => CallState::Finished(Box::new(outcome.clone())),
        };
        ResponseBody::State(state.into())
    }
}

fn outcome_of(exit: Exit, output: &str) -> Outcome {
    Outcome {
        exit,
        total_bytes: output.len() as u64,
        head: output.as_bytes().to_vec(),
        tail: Vec::new(),
        output_path: None,
        notes: Vec::new(),
        block: Block::Text,
        started_at_ms: 1,
        ended_at_ms: 2,
    }
}
