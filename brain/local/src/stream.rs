//! The event stream of a session: frames, pings, and the faults a test puts on the line.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use base_tasks::CancellationToken;
use bytes::Bytes;
use futures::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::fault::StreamFault;
use crate::history::Event;

/// One open stream.
pub(crate) struct EventStream {
    pub events: broadcast::Receiver<Event>,
    /// Only events of this thread, when set.
    pub thread: Option<String>,
    pub ping: Duration,
    pub fault: Option<StreamFault>,
    pub stop: CancellationToken,
    /// Its place among the streams that may be open.
    pub _permit: OwnedSemaphorePermit,
}

struct Line {
    stream: EventStream,
    ping: Interval,
    /// What goes out next. Never longer than the frames of one event.
    ready: VecDeque<Bytes>,
    events_out: u32,
    bytes_out: usize,
    end: Option<End>,
}

enum End {
    /// The body ends.
    Clean,
    /// The connection breaks.
    Broken,
}

impl EventStream {
    pub(crate) fn into_body(self) -> impl Stream<Item = Result<Bytes, io::Error>> + Send {
        // The first tick is at once; a ping at the start tells a client that the line works.
        let mut ping = interval(self.ping.max(Duration::from_millis(1)));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let line = Line {
            stream: self,
            ping,
            ready: VecDeque::new(),
            events_out: 0,
            bytes_out: 0,
            end: None,
        };
        stream::unfold(line, |mut line| async move { Some((line.next().await?, line)) })
    }
}

impl Line {
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(Ok(self.count(bytes)));
            }
            match self.end {
                Some(End::Clean) => return None,
                Some(End::Broken) => {
                    self.end = Some(End::Clean);
                    // The connection writes out what it has when it finds nothing ready, and
                    // throws it away when it finds an error.
                    tokio::task::yield_now().await;
                    return Some(Err(io::Error::other("cut by a fault rule")));
                }
                None => {}
            }
            self.wait().await;
        }
    }

    /// Cuts off what a byte limit forbids.
    fn count(&mut self, mut bytes: Bytes) -> Bytes {
        if let Some(StreamFault::Cut { after_bytes }) = self.stream.fault {
            let left = after_bytes.saturating_sub(self.bytes_out);
            if bytes.len() >= left {
                bytes.truncate(left);
                self.ready.clear();
                self.end = Some(End::Broken);
            }
        }
        self.bytes_out += bytes.len();
        bytes
    }

    async fn wait(&mut self) {
        tokio::select! {
            () = self.stream.stop.cancelled() => self.end = Some(End::Clean),
            _ = self.ping.tick() => {
                self.ready.push_back(Bytes::from_static(b"event: ping\ndata: {\"type\": \"ping\"}\n\n"));
            }
            received = self.stream.events.recv() => match received {
                Ok(event) => self.event(&event).await,
                // The reader fell too far behind: it lists again after it reconnects.
                Err(broadcast::error::RecvError::Lagged(_)) => self.end = Some(End::Broken),
                Err(broadcast::error::RecvError::Closed) => self.end = Some(End::Clean),
            },
        }
    }

    async fn event(&mut self, event: &Event) {
        if let Some(thread) = &self.stream.thread
            && event["session_thread_id"] != thread.as_str()
        {
            return;
        }
        self.before_event(event);
        if self.end.is_some() {
            return;
        }
        let kind = event["type"].as_str().unwrap_or_default();
        let name = match &self.stream.fault {
            Some(StreamFault::NoName) => None,
            Some(StreamFault::Name { name }) => Some(name.as_str()),
            _ => Some(kind),
        };
        let frame = frame(name, &event.to_string());
        self.events_out += 1;
        self.ready.push_back(frame.clone());
        match &self.stream.fault {
            Some(StreamFault::Duplicate) => self.ready.push_back(frame),
            Some(StreamFault::Slow { pause_ms }) => {
                tokio::time::sleep(Duration::from_millis(*pause_ms)).await;
            }
            _ => {}
        }
        if kind == "session.deleted" {
            self.end = Some(End::Clean);
        }
    }

    /// What a fault puts in the place of an event, or in front of it.
    fn before_event(&mut self, event: &Event) {
        let out = self.events_out;
        match self.stream.fault.clone() {
            Some(StreamFault::End { after_events }) if out >= after_events => {
                self.end = Some(End::Clean);
            }
            Some(StreamFault::HalfFrame { after_events }) if out >= after_events => {
                let mut half = frame(event["type"].as_str(), &event.to_string());
                half.truncate(half.len() / 2);
                self.ready.push_back(half);
                self.end = Some(End::Broken);
            }
            Some(StreamFault::ErrorFrame { after_events }) if out >= after_events => {
                let body = "{\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"injected by a fault rule\"}}";
                self.ready.push_back(frame(Some("error"), body));
                self.stream.fault = None;
            }
            Some(StreamFault::GarbageFrame { after_events }) if out >= after_events => {
                self.ready.push_back(frame(Some("agent.message"), "{not json"));
                self.stream.fault = None;
            }
            _ => {}
        }
    }
}

fn frame(name: Option<&str>, data: &str) -> Bytes {
    let name = name.map(|name| format!("event: {name}\n")).unwrap_or_default();
    Bytes::from(format!("{name}data: {data}\n\n"))
}
