//! What came in: every request with its time, its credential's kind and its body as it was.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::route::{CredentialKind, Route};

/// Requests kept, the oldest forgotten first.
const MAX_REQUESTS: usize = 50_000;
/// Bytes of their bodies kept.
const MAX_BODY_BYTES: usize = 128 << 20;

/// One request. Its credential is not kept, only what kind it was.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Counts from 1 over all requests.
    pub number: u64,
    pub at: String,
    pub method: String,
    pub path: String,
    pub query: String,
    pub route: Option<Route>,
    pub credential: CredentialKind,
    pub worker: Option<String>,
    pub body: Bytes,
    /// `None` until it is answered, and for good when a fault kept the answer back.
    pub status: Option<u16>,
}

impl Recorded {
    pub(crate) fn body_json(&self) -> Value {
        json!({
            "number": self.number,
            "at": self.at,
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "route": self.route,
            "credential": self.credential,
            "worker": self.worker,
            "body": String::from_utf8_lossy(&self.body),
            "status": self.status,
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Recorder {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    requests: VecDeque<Recorded>,
    last: u64,
    bytes: usize,
}

impl Recorder {
    pub(crate) fn add(&self, mut request: Recorded) -> u64 {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        request.number = ring.last;
        ring.bytes += request.body.len();
        ring.requests.push_back(request);
        while ring.requests.len() > MAX_REQUESTS || ring.bytes > MAX_BODY_BYTES {
            let Some(oldest) = ring.requests.pop_front() else { break };
            ring.bytes -= oldest.body.len();
        }
        ring.last
    }

    pub(crate) fn answered(&self, number: u64, status: u16) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let from_end = ring.last.saturating_sub(number) as usize;
        let index = ring.requests.len().checked_sub(from_end + 1);
        if let Some(request) = index.and_then(|index| ring.requests.get_mut(index)) {
            request.status = Some(status);
        }
    }

    /// The requests after `number`.
    pub(crate) fn since(&self, number: u64) -> Vec<Recorded> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.requests.iter().filter(|request| request.number > number).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &'static [u8]) -> Recorded {
        Recorded {
            number: 0,
            at: String::new(),
            method: "POST".into(),
            path: "/".into(),
            query: String::new(),
            route: None,
            credential: CredentialKind::None,
            worker: None,
            body: Bytes::from_static(body),
            status: None,
        }
    }

    #[test]
    fn the_ring_forgets_the_oldest_and_statuses_find_their_request() {
        let recorder = Recorder::default();
        for _ in 0..MAX_REQUESTS + 10 {
            recorder.add(request(b"x"));
        }
        assert_eq!(recorder.since(0).len(), MAX_REQUESTS);
        let last = (MAX_REQUESTS + 10) as u64;
        recorder.answered(last - 3, 200);
        recorder.answered(1, 200);
        let kept = recorder.since(last - 4);
        assert_eq!(kept[0].status, Some(200));
        assert!(kept[1..].iter().all(|request| request.status.is_none()));
    }
}
