//! Reads one session's events: opens the live stream, lists the history, and goes on with the
//! stream; again whenever it breaks. The order is the protocol's (§2.6): the stream has no replay,
//! so a list made before it opened could miss what happened in between.

use std::sync::Arc;
use std::time::Duration;

use brain_api::{BrainError, BrainSession, Event, StreamItem};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::Instant;

use crate::message::{FeedMessage, Inside, Outbox, Stopped, line};

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A history longer than this ends the listing; it would be a loop of the brain's.
const PAGES_MAX: usize = 10_000;

pub struct Feed {
    pub session: Arc<dyn BrainSession>,
    pub outbox: Outbox,
}

type Stream = BoxStream<'static, Result<StreamItem, BrainError>>;

impl Feed {
    /// Runs until the brain refuses the session for good or the scope stops.
    pub async fn run(self) {
        let _ = self.read().await;
    }

    async fn read(&self) -> Result<(), Stopped> {
        let mut backoff = BACKOFF_MIN;
        loop {
            let opened = tokio::select! {
                opened = self.session.stream() => opened,
                () = self.outbox.stopping().cancelled() => return Err(Stopped),
            };
            match opened {
                Ok(stream) => {
                    if self.follow(stream).await? {
                        backoff = BACKOFF_MIN;
                    }
                }
                Err(error) if error.is_transient() => self.trouble(&error).await?,
                Err(error) => return self.tell(FeedMessage::Refused(error)).await,
            }
            self.outbox.pause(backoff).await?;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Delivers the history and then the stream until it breaks. Says whether anything came.
    async fn follow(&self, mut stream: Stream) -> Result<bool, Stopped> {
        let mut came = false;
        let mut relist = BACKOFF_MIN;
        let mut list_at = Some(Instant::now());
        loop {
            // A failed list is tried again by itself while the stream goes on.
            if list_at.is_some_and(|at| at <= Instant::now()) {
                list_at = match self.list().await? {
                    Ok(history) => {
                        came |= !history.is_empty();
                        self.tell(FeedMessage::History(history)).await?;
                        None
                    }
                    Err(error) if error.is_transient() => {
                        self.trouble(&error).await?;
                        let at = Instant::now() + relist;
                        relist = (relist * 2).min(BACKOFF_MAX);
                        Some(at)
                    }
                    Err(error) => {
                        self.tell(FeedMessage::Refused(error)).await?;
                        return Err(Stopped);
                    }
                };
                continue;
            }
            let item = tokio::select! {
                item = stream.next() => item,
                () = sleep_until(list_at) => continue,
                () = self.outbox.stopping().cancelled() => return Err(Stopped),
            };
            match item {
                Some(Ok(StreamItem::Event(event))) => {
                    came = true;
                    self.tell(FeedMessage::Live(event)).await?;
                }
                Some(Ok(StreamItem::Ping)) => {}
                Some(Err(error)) => {
                    self.trouble(&error).await?;
                    return Ok(came);
                }
                None => return Ok(came),
            }
        }
    }

    async fn list(&self) -> Result<Result<Vec<Event>, BrainError>, Stopped> {
        tokio::select! {
            history = list_history(&*self.session) => Ok(history),
            () = self.outbox.stopping().cancelled() => Err(Stopped),
        }
    }

    async fn trouble(&self, error: &BrainError) -> Result<(), Stopped> {
        self.tell(FeedMessage::Trouble(line(error))).await
    }

    async fn tell(&self, message: FeedMessage) -> Result<(), Stopped> {
        self.outbox.tell(Inside::Feed(message)).await
    }
}

/// The whole history, oldest first.
pub async fn list_history(session: &dyn BrainSession) -> Result<Vec<Event>, BrainError> {
    let mut history = Vec::new();
    let mut cursor: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let page = session.events(cursor.as_deref()).await?;
        history.extend(page.events);
        match page.next {
            Some(next) if !next.is_empty() && cursor.as_deref() != Some(&next) => {
                cursor = Some(next);
            }
            _ => return Ok(history),
        }
    }
    Ok(history)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
