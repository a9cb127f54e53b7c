//! One connection to the launcher, shared by all of its client's requests.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use base_types::{Epoch, SandboxId};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::lock;
use crate::wire::{ANSWER_BYTES_MAX, Answer, Ask, Request, Response, decode, encode};

/// Requests handed over and not yet written; callers wait beyond it.
const QUEUE_MAX: usize = 64;

/// The connection is gone; whether the request was served is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection to the launcher is lost")]
pub struct Lost;

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> Self {
        io::Error::new(io::ErrorKind::ConnectionReset, lost)
    }
}

#[derive(Clone)]
pub struct Link {
    requests: mpsc::Sender<Bytes>,
    pending: Arc<Mutex<Pending>>,
    closed: watch::Receiver<()>,
}

/// An answer that may have come, for any number of tasks that wait for it.
type Wait = watch::Receiver<Option<Answer>>;

#[derive(Default)]
struct Pending {
    /// The driver has ended: a wait that begins now would never end.
    is_closed: bool,
    next: u64,
    waits: HashMap<u64, watch::Sender<Option<Answer>>>,
    /// Waits for an end are long, given up and begun again: all for one epoch share a request.
    ends: HashMap<(SandboxId, Epoch), (u64, Wait)>,
}

// === impl Link ===

impl Link {
    /// The caller spawns the second value, which moves the bytes until either side is gone.
    pub fn over(stream: UnixStream) -> (Link, impl Future<Output = ()> + Send + use<>) {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let (open, closed) = watch::channel(());
        let pending = Arc::<Mutex<Pending>>::default();
        let link = Link { requests, pending: pending.clone(), closed };
        let run = async move {
            if let Err(error) = drive(stream, queue, &pending).await {
                tracing::debug!(%error, "the connection to the launcher broke");
            }
            // Whoever waits sees its sender go.
            let mut pending = lock(&pending);
            pending.is_closed = true;
            pending.waits.clear();
            pending.ends.clear();
            drop(open);
        };
        (link, run)
    }

    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Returns when the other side is gone.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        while closed.changed().await.is_ok() {}
    }

    pub async fn ask(&self, ask: Ask) -> Result<Answer, Lost> {
        let permit = self.requests.reserve().await.map_err(|_| Lost)?;
        let (id, wait) = lock(&self.pending).wait();
        let _forget = Forget { link: self, id };
        permit.send(encoded(id, ask));
        answer(wait).await
    }

    /// Waits for the end of an epoch together with whoever else does.
    pub async fn ask_shared(&self, sandbox: &SandboxId, epoch: Epoch) -> Result<Answer, Lost> {
        // Room in the queue comes first: the request goes out with the entry that others find,
        // whenever this future is dropped.
        let permit = self.requests.reserve().await.map_err(|_| Lost)?;
        let wait = {
            let mut pending = lock(&self.pending);
            let key = (sandbox.clone(), epoch);
            match pending.ends.get(&key) {
                Some((_, wait)) => wait.clone(),
                None => {
                    let (id, wait) = pending.wait();
                    pending.ends.insert(key, (id, wait.clone()));
                    permit.send(encoded(id, Ask::WatchEnded { sandbox: sandbox.clone(), epoch }));
                    wait
                }
            }
        };
        answer(wait).await
    }
}

fn encoded(id: u64, ask: Ask) -> Bytes {
    encode(&Request { id, ask }).into()
}

/// Takes a request that was given up out of the list.
struct Forget<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.link.pending).waits.remove(&self.id);
    }
}

// === impl Pending ===

impl Pending {
    fn wait(&mut self) -> (u64, Wait) {
        self.next += 1;
        let (tell, wait) = watch::channel(None);
        if !self.is_closed {
            self.waits.insert(self.next, tell);
        }
        (self.next, wait)
    }

    fn answered(&mut self, Response { id, answer }: Response) {
        // An answer to a request that was given up is not an error.
        if let Some(tell) = self.waits.remove(&id) {
            tell.send_replace(Some(answer));
            self.ends.retain(|_, (number, _)| *number != id);
        }
    }
}

async fn answer(mut wait: Wait) -> Result<Answer, Lost> {
    loop {
        if let Some(answer) = wait.borrow_and_update().clone() {
            return Ok(answer);
        }
        // The value is looked at once more: the sender may have gone right after it answered.
        if wait.changed().await.is_err() {
            return wait.borrow().clone().ok_or(Lost);
        }
    }
}

async fn drive(
    stream: UnixStream,
    mut queue: mpsc::Receiver<Bytes>,
    pending: &Mutex<Pending>,
) -> io::Result<()> {
    let codec = LengthDelimitedCodec::builder()
        .little_endian()
        .max_frame_length(ANSWER_BYTES_MAX)
        .new_codec();
    let (mut sink, mut frames) = Framed::new(stream, codec).split();
    let write = async {
        while let Some(request) = queue.recv().await {
            sink.send(request).await?;
        }
        Ok(())
    };
    let read = async {
        while let Some(frame) = frames.next().await {
            let response = decode::<Response>(&frame?)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            lock(pending).answered(response);
        }
        Ok(())
    };
    tokio::select! {
        result = write => result,
        result = read => result,
    }
}
