//! The brain over HTTP: the only crate that knows the wire format.
//!
//! One [`HttpBrain`] is one environment's side of a brain. It turns the contract of `brain-api`
//! into requests, and answers into its types. What it guards:
//!
//! - **Credentials go to the configured host only.** Redirects are not followed, plain HTTP is
//!   for loopback unless the operator says otherwise, and neither key nor token is in an error,
//!   a log line or a URL.
//! - **A send leaves at most once per call.** Everything else is repeated below the caller, a
//!   bounded number of times.
//! - **Bytes of the brain never panic, and none is unbounded**: each body, frame, field and wait
//!   has a named limit here.
//!
//! A proxy is taken from `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` for an `https` brain, where it
//! sees a tunnel only; never for a plain `http` one, where it would see the credential.

#![forbid(unsafe_code)]

mod answer;
mod client;
mod config;
mod encode;
mod event;
mod fields;
mod lease;
mod live;
mod queue;
mod session;
mod sse;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use base_types::{EnvironmentId, Secret, SessionId, WorkId};
use brain_api::{Brain, BrainError, BrainSession, ExpectedBeat, Heartbeat, ItemToken, WorkItem};

use client::Client;
pub use config::{DEFAULT_BASE_URL, HttpBrainConfig, NewHttpBrainError, Timeouts};
use lease::Leases;
pub use queue::QueueStats;
use session::HttpSession;

/// One environment of a brain that is reached over HTTP.
pub struct HttpBrain {
    client: Arc<Client>,
    environment: EnvironmentId,
    leases: Leases,
}

impl HttpBrain {
    /// Checks the configuration; nothing is sent.
    pub fn new(config: HttpBrainConfig) -> Result<Self, NewHttpBrainError> {
        let environment = config.environment.clone();
        Ok(Self { client: Arc::new(Client::new(config)?), environment, leases: Leases::default() })
    }

    /// Uses another environment key from here on, for sessions without a token of their own too.
    /// Says whether it is another one.
    pub fn replace_key(&self, key: &Secret) -> Result<bool, NewHttpBrainError> {
        self.client.replace_key(key)
    }

    /// Asks with the environment key and claims nothing: tells whether brain, environment and key
    /// fit together.
    pub async fn queue_stats(&self) -> Result<QueueStats, BrainError> {
        queue::stats(&self.client, &self.environment).await
    }
}

#[async_trait]
impl Brain for HttpBrain {
    fn environment(&self) -> &EnvironmentId {
        &self.environment
    }

    async fn poll(&self) -> Result<Option<WorkItem>, BrainError> {
        queue::poll(&self.client, &self.environment).await
    }

    async fn ack(&self, work: &WorkId) -> Result<(), BrainError> {
        let since = Instant::now();
        queue::ack(&self.client, &self.environment, work).await?;
        self.leases.acked(work, since);
        Ok(())
    }

    async fn heartbeat(
        &self,
        work: &WorkId,
        token: Option<&ItemToken>,
        expected: &ExpectedBeat,
    ) -> Result<Heartbeat, BrainError> {
        let item = queue::Item { environment: &self.environment, work, token };
        lease::beat(&self.client, &self.leases, item, expected).await
    }

    async fn stop(&self, work: &WorkId, token: Option<&ItemToken>) -> Result<(), BrainError> {
        let item = queue::Item { environment: &self.environment, work, token };
        queue::stop(&self.client, item).await?;
        self.leases.forget(work);
        Ok(())
    }

    fn session(&self, session: &SessionId, token: Option<ItemToken>) -> Box<dyn BrainSession> {
        Box::new(HttpSession::new(Arc::clone(&self.client), session.clone(), token))
    }
}

/// Entry of the fuzzers: cuts `bytes` into chunks, reads them as a stream and decodes every
/// frame. It must return, whatever the bytes are.
pub fn fuzz_sse(bytes: &[u8]) {
    let Some((cut, rest)) = bytes.split_first() else { return };
    let mut reader = sse::FrameReader::new();
    for chunk in rest.chunks(usize::from(*cut).max(1)) {
        if reader.push(chunk).is_err() {
            return;
        }
        while let Some(frame) = reader.next_frame() {
            let _decoded = live::decode_frame(frame);
        }
    }
}

/// Entry of the fuzzers: reads `bytes` as the body of every answer that has one.
pub fn fuzz_bodies(bytes: &[u8]) {
    let _page = event::decode_page(bytes);
    let _session = event::decode_session(bytes, &SessionId::new("sesn_fuzz"));
    let _work = queue::decode_work(bytes, &EnvironmentId::new("env_fuzz"));
    let _beat = queue::decode_heartbeat(bytes);
    let _refusal = answer::read_refusal(bytes);
    let _conflict = answer::read_lease_conflict(bytes);
}
