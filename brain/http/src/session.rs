//! One session at the brain: its data, its history, its stream, and what we add to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use base_types::SessionId;
use brain_api::{
    BrainError, BrainSession, ItemToken, Page, SendCredential, SessionInfo, StreamItem, ToolResult,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use http::{HeaderMap, Method};
use reqwest::Url;

use crate::client::{Call, Client, Rules, is_oversized};
use crate::event::{self, LIST, RETRIEVE};
use crate::{encode, live};

/// What the official workers ask for, and the brain's default.
const EVENTS_PER_PAGE: usize = 1000;
/// Held in memory while it is decoded, by every session that reads its history at the moment. It
/// must hold one event of the largest size that a request can carry (32 MiB) and its escapes.
const PAGE_BYTES_MAX: usize = 40 * 1024 * 1024;
/// An agent has up to 256 tools with schemas, and a prompt of 100,000 characters.
const SESSION_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The echo of what was sent; beyond this it is not read.
const ECHO_BYTES_MAX: usize = 1024 * 1024;

pub(crate) struct HttpSession {
    client: Arc<Client>,
    id: SessionId,
    token: Option<ItemToken>,
    /// Shrinks when a page of this many events was larger than we take, and stays so.
    events_per_page: AtomicUsize,
}

impl HttpSession {
    pub fn new(client: Arc<Client>, id: SessionId, token: Option<ItemToken>) -> Self {
        Self { client, id, token, events_per_page: AtomicUsize::new(EVENTS_PER_PAGE) }
    }

    fn url(&self, rest: &[&str]) -> Url {
        self.client.url(&[&["v1", "sessions", self.id.as_str()], rest].concat())
    }

    fn get(&self, request: &'static str, url: Url, body_bytes_max: usize) -> Call<'_> {
        Call {
            request,
            method: Method::GET,
            url,
            credential: self.client.credential(self.token.as_ref()),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            rules: self.client.rules(body_bytes_max),
            unanswered: None,
        }
    }
}

#[async_trait]
impl BrainSession for HttpSession {
    async fn retrieve(&self) -> Result<SessionInfo, BrainError> {
        let call = self.get(RETRIEVE, self.url(&[]), SESSION_BYTES_MAX);
        event::decode_session(&self.client.call(call).await?, &self.id)
    }

    async fn events(&self, page: Option<&str>) -> Result<Page, BrainError> {
        loop {
            let limit = self.events_per_page.load(Ordering::Relaxed);
            let mut url = self.url(&["events"]);
            url.query_pairs_mut().append_pair("limit", &limit.to_string());
            if let Some(page) = page {
                url.query_pairs_mut().append_pair("page", page);
            }
            match self.client.call(self.get(LIST, url, PAGE_BYTES_MAX)).await {
                Ok(body) => return event::decode_page(&body),
                Err(error) if is_oversized(&error) && limit > 1 => {
                    self.events_per_page.store(limit / 10, Ordering::Relaxed);
                    tracing::debug!(session = %self.id, limit, "a page was too large: asking for less");
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn stream(
        &self,
    ) -> Result<BoxStream<'static, Result<StreamItem, BrainError>>, BrainError> {
        let call = self.get(live::STREAM, self.url(&["events", "stream"]), 0);
        let response = self.client.open(call).await?;
        live::check(&response)?;
        Ok(live::items(response, self.client.timeouts.stream_silence))
    }

    fn encode(&self, result: &ToolResult) -> Vec<u8> {
        encode::encode(result)
    }

    async fn send(&self, body: &[u8], credential: SendCredential) -> Result<(), BrainError> {
        let call = Call {
            method: Method::POST,
            credential: match credential {
                SendCredential::Item => self.client.credential(self.token.as_ref()),
                SendCredential::EnvironmentKey => self.client.key(),
            },
            body: Bytes::copy_from_slice(body),
            rules: Rules { attempts: 1, once: true, ..self.client.rules(ECHO_BYTES_MAX) },
            ..self.get("send a result", self.url(&["events"]), ECHO_BYTES_MAX)
        };
        self.client.call(call).await.map(drop)
    }
}
