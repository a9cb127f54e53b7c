//! Sends requests: headers, credentials, time-outs, bounded bodies, and the repeats that no
//! caller sees.
//!
//! Each connection carries one request at a time (HTTP/1.1 only): on a shared HTTP/2 connection
//! the streams of many sessions would use up its allowance, and heartbeats would wait behind
//! them.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base_types::{Clock, Secret, SystemClock};
use brain_api::{BrainError, BrainErrorKind, ItemToken};
use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap,
};
use http::{HeaderValue, Method, StatusCode};
use reqwest::{Certificate, Response, Url};

use crate::answer::{self, kind_of};
use crate::config::{
    HttpBrainConfig, ID_BYTES_MAX, NewHttpBrainError, Timeouts, bearer, check_environment,
    parse_base_url,
};

const API_VERSION: HeaderValue = HeaderValue::from_static("2026-10-21");
const BETA: HeaderValue = HeaderValue::from_static("managed-agents-2026-04-01");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const USER_AGENT: &str = concat!("sinew/", env!("CARGO_PKG_VERSION"));

/// Three attempts: what the official clients make of one request.
const ATTEMPTS_MAX: u32 = 3;
/// Longest pause of our own choosing between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// A longer wait asked for by the brain is the caller's to keep, who can do something else.
const PAUSE_ASKED_MAX: Duration = Duration::from_secs(60);
/// Between attempts of one beat: the lease does not wait.
const BEAT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// An error body is for one line of a log.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// Idle connections kept; each is a descriptor here and at the brain.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Below the idle limit of common load balancers (60 s), so that they seldom close a connection
/// just as we write to it.
const IDLE_CONNECTION: Duration = Duration::from_secs(50);
/// Finds a peer that vanished while a stream is silent.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: RwLock<HeaderValue>,
    pub worker_id: HeaderValue,
    pub reclaim: Option<Duration>,
    pub timeouts: Timeouts,
}

/// One request.
pub(crate) struct Call<'a> {
    /// A verb phrase for errors.
    pub request: &'static str,
    pub method: Method,
    pub url: Url,
    pub credential: HeaderValue,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub rules: Rules,
    /// Set when an attempt may have arrived without our getting to know.
    pub unanswered: Option<&'a AtomicBool>,
}

/// How a request may be treated.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub attempts: u32,
    pub attempt_timeout: Duration,
    pub pause_asked_max: Duration,
    /// The answer's body may have this many bytes.
    pub body_bytes_max: usize,
    /// A lost answer leaves open whether it happened, and the caller must know.
    pub once: bool,
    /// A refusal that means "it is so already".
    pub settled: Option<StatusCode>,
}

/// An attempt that gave nothing.
struct Failure {
    error: BrainError,
    repeat: bool,
}

/// The answer's body is larger than we take.
#[derive(Debug, thiserror::Error)]
#[error("the answer is larger than {bytes_max} bytes")]
pub(crate) struct OversizedBody {
    bytes_max: usize,
}

impl Client {
    pub fn new(config: HttpBrainConfig) -> Result<Self, NewHttpBrainError> {
        let base = parse_base_url(&config.base_url, config.allow_plain_http)?;
        check_environment(&config.environment)?;
        let key = bearer(&config.key).ok_or(NewHttpBrainError::Key)?;
        let worker_id = HeaderValue::from_str(&config.worker_id)
            .ok()
            .filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX)
            .ok_or(NewHttpBrainError::WorkerId)?;
        let http = connector(&base, &config)?;
        let (key, reclaim) = (RwLock::new(key), config.reclaim);
        Ok(Self { http, base, key, worker_id, reclaim, timeouts: config.timeouts })
    }

    /// The environment key as it is now.
    pub fn key(&self) -> HeaderValue {
        // A header value is replaced whole: a panic while it was leaves a good one.
        self.key.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Uses another key from here on. Says whether it is another one.
    pub fn replace_key(&self, key: &Secret) -> Result<bool, NewHttpBrainError> {
        let key = bearer(key).ok_or(NewHttpBrainError::Key)?;
        let mut known = self.key.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let is_new = *known != key;
        *known = key;
        Ok(is_new)
    }

    /// The item's token as a credential, else the key.
    pub fn credential(&self, token: Option<&ItemToken>) -> HeaderValue {
        token.and_then(|token| bearer(&token.0)).unwrap_or_else(|| self.key())
    }

    /// The base URL and these segments, escaped.
    pub fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Only a URL that cannot be a base has no segments, and `parse_base_url` took an http one.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// What holds for most requests.
    pub fn rules(&self, body_bytes_max: usize) -> Rules {
        Rules {
            attempts: ATTEMPTS_MAX,
            attempt_timeout: self.timeouts.request,
            pause_asked_max: PAUSE_ASKED_MAX,
            body_bytes_max,
            once: false,
            settled: None,
        }
    }

    pub fn beat_rules(&self, body_bytes_max: usize) -> Rules {
        Rules {
            attempt_timeout: self.timeouts.beat_attempt,
            pause_asked_max: BEAT_PAUSE_MAX,
            ..self.rules(body_bytes_max)
        }
    }

    /// The body of a successful answer.
    pub async fn call(&self, call: Call<'_>) -> Result<Vec<u8>, BrainError> {
        let mut failed = 0;
        loop {
            let failure = match self.attempt(&call).await {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            failed += 1;
            self.pause_or_give_up(&call, failure, failed).await?;
        }
    }

    /// A successful answer whose body is still to come, without limit in size or time.
    pub async fn open(&self, call: Call<'_>) -> Result<Response, BrainError> {
        let mut failed = 0;
        loop {
            let opening = tokio::time::timeout(call.rules.attempt_timeout, self.send(&call));
            let failure = match opening.await {
                Ok(Ok(Some(response))) => return Ok(response),
                Ok(Ok(None)) => return Err(answer::garbage(call.request, "no answer to read")),
                Ok(Err(failure)) => failure,
                Err(_) => timed_out(&call),
            };
            failed += 1;
            self.pause_or_give_up(&call, failure, failed).await?;
        }
    }

    async fn attempt(&self, call: &Call<'_>) -> Result<Vec<u8>, Failure> {
        let exchange = async {
            match self.send(call).await? {
                Some(response) => self.read_success(call, response).await,
                None => Ok(Vec::new()),
            }
        };
        match tokio::time::timeout(call.rules.attempt_timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(timed_out(call)),
        }
    }

    /// `None` is a refusal that counts as done.
    async fn send(&self, call: &Call<'_>) -> Result<Option<Response>, Failure> {
        let mut request = self
            .http
            .request(call.method.clone(), call.url.clone())
            .headers(call.headers.clone())
            .header(AUTHORIZATION, call.credential.clone())
            .header("anthropic-version", API_VERSION)
            .header("anthropic-beta", BETA)
            .header(ACCEPT, JSON);
        if call.method == Method::POST {
            request = request.header(CONTENT_TYPE, JSON).body(call.body.clone());
            if call.body.is_empty() {
                // Left out by itself, and some proxies answer 411 to a POST without a length.
                request = request.header(CONTENT_LENGTH, "0");
            }
        }
        let response = request.send().await.map_err(|error| not_answered(call, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(Some(response));
        }
        if Some(status) == call.rules.settled {
            return Ok(None);
        }
        Err(refused(call, response).await)
    }

    async fn read_success(&self, call: &Call<'_>, response: Response) -> Result<Vec<u8>, Failure> {
        if call.rules.once {
            // The status said that it happened. What follows is read for the connection's sake.
            let _echo = read_body(response, call.rules.body_bytes_max).await;
            return Ok(Vec::new());
        }
        let request_id = answer::request_id(response.headers());
        if let Some(detail) = encoded(response.headers()) {
            call.note_unanswered();
            return Err(Failure { error: answer::garbage(call.request, detail), repeat: false });
        }
        read_body(response, call.rules.body_bytes_max).await.map_err(|error| {
            call.note_unanswered();
            let (detail, repeat) = match error {
                ReadBodyError::Oversized(_) => ("the answer is too large", false),
                ReadBodyError::Broken(_) => ("the answer broke off", true),
            };
            let source = Some(error.into_source());
            let error = BrainError { source, request_id, ..answer::garbage(call.request, detail) };
            Failure { error, repeat }
        })
    }

    /// Waits before the next attempt, or returns the error when there is none.
    async fn pause_or_give_up(
        &self,
        call: &Call<'_>,
        failure: Failure,
        failed: u32,
    ) -> Result<(), BrainError> {
        if !failure.repeat || failed >= call.rules.attempts {
            return Err(failure.error);
        }
        let pause = match failure.error.retry_after() {
            Some(asked) if asked > call.rules.pause_asked_max => return Err(failure.error),
            Some(asked) => asked,
            None => {
                let pause = self.timeouts.retry_pause.saturating_mul(1 << (failed - 1).min(8));
                let pause = pause.min(PAUSE_MAX).min(call.rules.pause_asked_max);
                pause.mul_f64(1.0 - 0.25 * rand::random::<f64>())
            }
        };
        tracing::debug!(error = %failure.error, ?pause, "repeating a request to the brain");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

fn connector(base: &Url, config: &HttpBrainConfig) -> Result<reqwest::Client, NewHttpBrainError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .connect_timeout(config.timeouts.connect)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .pool_idle_timeout(IDLE_CONNECTION)
        .tcp_keepalive(TCP_KEEPALIVE)
        .tcp_nodelay(true);
    if base.scheme() == "http" {
        // No roots: a machine without any must be able to use a brain on loopback.
        builder = builder.no_proxy().tls_certs_only([]);
    } else {
        builder = builder.https_only(true);
        if let Some(pem) = &config.extra_ca_pem {
            let extra = Certificate::from_pem_bundle(pem).map_err(NewHttpBrainError::ExtraCa)?;
            if extra.is_empty() {
                return Err(NewHttpBrainError::NoExtraCa);
            }
            builder = builder.tls_certs_merge(extra);
        }
    }
    builder.build().map_err(NewHttpBrainError::Tls)
}

impl Call<'_> {
    fn note_unanswered(&self) {
        if let Some(flag) = self.unanswered {
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// The attempt may have arrived: what the caller is told of it.
    fn lost(&self) -> BrainErrorKind {
        self.note_unanswered();
        match self.rules.once {
            true => BrainErrorKind::Ambiguous,
            false => BrainErrorKind::Transient { retry_after: None },
        }
    }
}

/// No status came back.
fn not_answered(call: &Call<'_>, error: reqwest::Error) -> Failure {
    let never_left = error.is_connect() || error.is_builder();
    let detail = if error.is_connect() { "no connection" } else { "the connection broke" };
    let kind = match never_left {
        true => BrainErrorKind::Transient { retry_after: None },
        false => call.lost(),
    };
    let source = Some(error.without_url().into());
    let error = BrainError { kind, source, ..answer::garbage(call.request, detail) };
    Failure { error, repeat: true }
}

fn timed_out(call: &Call<'_>) -> Failure {
    let kind = call.lost();
    let detail = format!("no answer within {:?}", call.rules.attempt_timeout);
    Failure { error: BrainError { kind, ..answer::garbage(call.request, detail) }, repeat: true }
}

async fn refused(call: &Call<'_>, response: Response) -> Failure {
    let status = response.status();
    let asked = answer::retry_after(response.headers(), SystemClock.now());
    let repeat = answer::worth_repeating(status, response.headers());
    let from_header = answer::request_id(response.headers());
    let is_redirect = status.is_redirection();
    let body = read_body(response, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let refusal = answer::read_refusal(&body);
    let detail = match (is_redirect, refusal.text.is_empty()) {
        (true, _) => format!("{status}: a redirect is not followed, check the base URL"),
        (false, true) => status.to_string(),
        (false, false) => format!("{status}: {}", refusal.text),
    };
    let lost = answer::may_have_happened(status).then(|| call.lost());
    let kind = match lost {
        Some(ambiguous @ BrainErrorKind::Ambiguous) => ambiguous,
        _ => kind_of(status, asked),
    };
    let conflict = (status == StatusCode::PRECONDITION_FAILED)
        .then(|| answer::read_lease_conflict(&body))
        .flatten();
    let source = conflict.map(|conflict| conflict.into());
    let request_id = from_header.or(refusal.request_id);
    let request = call.request;
    Failure { error: BrainError { kind, request, detail, request_id, source }, repeat }
}

/// We ask for no content coding; a body in one cannot be read.
fn encoded(headers: &HeaderMap) -> Option<String> {
    let coding = headers.get(CONTENT_ENCODING).filter(|coding| *coding != "identity")?;
    let coding = answer::printable(&String::from_utf8_lossy(coding.as_bytes()), 40);
    Some(format!("the answer is {coding}-encoded, which was not asked for"))
}

#[derive(Debug)]
enum ReadBodyError {
    Oversized(OversizedBody),
    Broken(reqwest::Error),
}

impl ReadBodyError {
    fn into_source(self) -> Box<dyn std::error::Error + Send + Sync> {
        match self {
            ReadBodyError::Oversized(error) => error.into(),
            ReadBodyError::Broken(error) => error.without_url().into(),
        }
    }
}

async fn read_body(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, ReadBodyError> {
    let oversized = || ReadBodyError::Oversized(OversizedBody { bytes_max });
    if response.content_length().is_some_and(|length| length > bytes_max as u64) {
        return Err(oversized());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(ReadBodyError::Broken)? {
        if body.len() + chunk.len() > bytes_max {
            return Err(oversized());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Whether a call failed only because its answer was larger than we take.
pub(crate) fn is_oversized(error: &BrainError) -> bool {
    error.source.as_ref().is_some_and(|source| source.is::<OversizedBody>())
}
