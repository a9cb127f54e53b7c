//! One connection: reads requests, writes answers.
//!
//! The invariant: a client that sends garbage, sends nothing or reads nothing costs a bounded
//! amount of memory and of a worker's time.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;

use crate::lock;
use crate::wire::{
    ANSWER_BYTES_MAX, Answer, REQUEST_BYTES_MAX, ReadFrameError, Refusal, Request, Response,
    decode, encode, framed, read_frame,
};

/// How long a new client may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer waits for a client that does not read; a local one reads at once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Connection {
    stream: UnixStream,
    /// One answer at a time.
    writer: Mutex<()>,
    standing: Mutex<Standing>,
    closed: AtomicBool,
}

/// What the client has said it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Unknown,
    Observer,
    Serve { generation: u64 },
}

// === impl Connection ===

impl Connection {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self {
            stream,
            writer: Mutex::default(),
            standing: Mutex::new(Standing::Unknown),
            closed: AtomicBool::new(false),
        })
    }

    pub fn standing(&self) -> Standing {
        *lock(&self.standing)
    }

    pub fn stand(&self, standing: Standing) {
        *lock(&self.standing) = standing;
        if let Err(error) = self.stream.set_read_timeout(None) {
            tracing::debug!(%error, "a connection keeps its time-out");
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Ends the connection from any thread; its reader notices.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // Fails when the other side closed it first.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Hands every request to `take` until the connection ends; says why it did.
    pub fn read_requests(&self, mut take: impl FnMut(Request)) -> ReadFrameError {
        let mut stream = &self.stream;
        loop {
            let body = match read_frame(&mut stream, REQUEST_BYTES_MAX) {
                Ok(body) => body,
                Err(error) => return error,
            };
            match decode::<Request>(&body) {
                Ok(request) => take(request),
                Err(error) => {
                    // Without a number there is nothing to answer under.
                    let Ok(Numbered { id }) = decode(&body) else {
                        let source = io::Error::new(io::ErrorKind::InvalidData, error);
                        return ReadFrameError::Io(source);
                    };
                    let refusal = Refusal::Bad { why: error.to_string() };
                    self.answer(id, Answer::Refused { refusal });
                }
            }
        }
    }

    pub fn answer(&self, id: u64, answer: Answer) {
        let mut body = encode(&Response { id, answer });
        if body.len() > ANSWER_BYTES_MAX {
            let refusal = Refusal::Failed { why: "the answer is too long".to_owned() };
            body = encode(&Response { id, answer: Answer::Refused { refusal } });
        }
        let Ok(frame) = framed(&body) else { return };
        let _one_at_a_time = lock(&self.writer);
        if self.is_closed() {
            return;
        }
        if let Err(error) = (&self.stream).write_all(&frame) {
            // Half an answer may be out, so nothing after it would be understood.
            tracing::debug!(%error, "a client does not take its answers");
            self.close();
        }
    }
}

/// What can be read of a request that is not understood.
#[derive(Deserialize)]
struct Numbered {
    id: u64,
}
