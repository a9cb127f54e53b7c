//! Reads one session's events: opens the live stream, lists the history, and goes on with the
//! stream; again whenever it breaks. The order is the protocol's (§2.6): the stream has no replay,
//! so a list made before it opened could miss what happened in between.

use std::sync::Arc;
use std::time::Duration;

use brain_api::{BrainError, BrainSession, Page, StreamItem};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::message::{FeedMessage, Inside, Outbox, Stopped, line};

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A history longer than this ends the listing; it would be a loop of the brain's.
const PAGES_MAX: usize = 10_000;
/// Pages of a history that wait for the actor: one is read while another is looked through.
const PAGES_WAITING_MAX: usize = 1;

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
                    Ok(any) => {
                        came |= any;
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

    /// Delivers the history page by page; it counts with its last page. Says whether it has events.
    async fn list(&self) -> Result<Result<bool, BrainError>, Stopped> {
        let waiting = Arc::new(Semaphore::new(PAGES_WAITING_MAX));
        let mut pages = Pages::of(&*self.session);
        let (mut first, mut any) = (true, false);
        loop {
            let page = tokio::select! {
                page = pages.next() => page,
                () = self.outbox.stopping().cancelled() => return Err(Stopped),
            };
            let page = match page {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            let last = page.is_none();
            let events = page.unwrap_or_default().events;
            any |= !events.is_empty();
            // Never closed while we hold it.
            let slot = waiting.clone().acquire_owned().await.map_err(|_| Stopped)?;
            self.tell(FeedMessage::Page { events, first, last, _slot: slot }).await?;
            first = false;
            if last {
                return Ok(Ok(any));
            }
        }
    }

    async fn trouble(&self, error: &BrainError) -> Result<(), Stopped> {
        self.tell(FeedMessage::Trouble(line(error))).await
    }

    async fn tell(&self, message: FeedMessage) -> Result<(), Stopped> {
        self.outbox.tell(Inside::Feed(message)).await
    }
}

/// A history page by page, oldest first.
pub struct Pages<'a> {
    session: &'a dyn BrainSession,
    cursor: Option<String>,
    read: usize,
    over: bool,
}

impl<'a> Pages<'a> {
    pub fn of(session: &'a dyn BrainSession) -> Self {
        Self { session, cursor: None, read: 0, over: false }
    }

    /// `None` after the last page.
    pub async fn next(&mut self) -> Result<Option<Page>, BrainError> {
        if self.over || self.read >= PAGES_MAX {
            return Ok(None);
        }
        let page = self.session.events(self.cursor.as_deref()).await?;
        self.read += 1;
        match &page.next {
            Some(next) if !next.is_empty() && self.cursor.as_deref() != Some(next) => {
                self.cursor = Some(next.clone());
            }
            _ => self.over = true,
        }
        Ok(Some(page))
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
