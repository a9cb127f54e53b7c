//! What an operator says about a brain, checked before anything is sent.

use std::time::Duration;

use base_types::{EnvironmentId, Secret};
use http::HeaderValue;
use reqwest::Url;
use zeroize::Zeroizing;

/// The hosted service.
pub const DEFAULT_BASE_URL: &str = "https://api.anthropic.com";

#[derive(Clone, Debug)]
pub struct HttpBrainConfig {
    pub environment: EnvironmentId,
    /// The environment key.
    pub key: Secret,
    /// May carry a path prefix; the routes are appended to it.
    pub base_url: String,
    /// Unique among the workers of the environment; the brain counts workers by it.
    pub worker_id: String,
    /// Allows `http://` to a host that is not loopback. The key then travels readable.
    pub allow_plain_http: bool,
    /// PEM certificates trusted besides the system's own.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// How soon an item that a worker was offered and did not take is offered again; `None` leaves
    /// it to the brain.
    pub reclaim: Option<Duration>,
    pub timeouts: Timeouts,
}

/// How long each kind of request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// One attempt of any request without a limit of its own, body included.
    pub request: Duration,
    /// One attempt to poll. The brain holds a poll for about a second; an answer that is this
    /// late will not come, and waiting for it claims nothing.
    pub poll_attempt: Duration,
    /// One attempt to beat: short, so that a lost one is repeated well before the lease ends.
    pub beat_attempt: Duration,
    /// The stream says nothing at all, not even a ping.
    pub stream_silence: Duration,
    /// The pause before the first repeat; it doubles.
    pub retry_pause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(600),
            poll_attempt: Duration::from_secs(30),
            beat_attempt: Duration::from_secs(5),
            stream_silence: Duration::from_secs(600),
            retry_pause: Duration::from_millis(500),
        }
    }
}

impl HttpBrainConfig {
    /// The defaults for everything that has one.
    pub fn new(environment: EnvironmentId, key: Secret, worker_id: impl Into<String>) -> Self {
        Self {
            environment,
            key,
            base_url: DEFAULT_BASE_URL.to_owned(),
            worker_id: worker_id.into(),
            allow_plain_http: false,
            extra_ca_pem: None,
            reclaim: None,
            timeouts: Timeouts::default(),
        }
    }
}

/// Why a configuration cannot be used. No variant carries the base URL or the key: either may
/// hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum NewHttpBrainError {
    #[error("the brain's base URL is not a URL")]
    BaseUrl(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the brain's base URL must begin with https:// or http://, not {scheme}:")]
    Scheme { scheme: String },
    #[error(
        "the brain's base URL must be a host and perhaps a path, without user, query or fragment"
    )]
    Decorated,
    #[error(
        "the brain at {host} would be sent the environment key over plain http: use https, or \
         allow it with allow_plain_http"
    )]
    PlainHttp { host: String },
    #[error("the environment id `{environment}` cannot stand in a URL")]
    Environment { environment: EnvironmentId },
    #[error("the environment key is empty, too long or has a character no header may hold")]
    Key,
    #[error("the worker id is empty, too long or has a character no header may hold")]
    WorkerId,
    #[error("the extra CA certificates cannot be read")]
    ExtraCa(#[source] reqwest::Error),
    #[error("the extra CA certificates hold no certificate in PEM form")]
    NoExtraCa,
    #[error("set up TLS for the brain")]
    Tls(#[source] reqwest::Error),
}

/// A credential longer than this would not fit the header buffers of common servers.
const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// The header that carries a credential, or `None` for a text that no header may hold.
pub(crate) fn bearer(credential: &Secret) -> Option<HeaderValue> {
    let text = credential.expose();
    // Spaces at an end would be cut on the way, and the brain would see another credential.
    if text.is_empty() || text.len() > CREDENTIAL_BYTES_MAX || text.trim() != text {
        return None;
    }
    let mut value = HeaderValue::from_str(&Zeroizing::new(format!("Bearer {text}"))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether an id of the brain can stand as one segment of a path: URL parsers drop the two dot
/// segments however they are escaped.
pub(crate) fn fits_a_path(id: &str) -> bool {
    !id.is_empty() && id != "." && id != ".." && id.len() <= ID_BYTES_MAX
}

pub(crate) fn check_environment(environment: &EnvironmentId) -> Result<(), NewHttpBrainError> {
    match fits_a_path(environment.as_str()) {
        true => Ok(()),
        false => Err(NewHttpBrainError::Environment { environment: environment.clone() }),
    }
}

/// Ids seen are under 40 bytes; they are stored, indexed and logged.
pub(crate) const ID_BYTES_MAX: usize = 512;

pub(crate) fn parse_base_url(text: &str, allow_plain_http: bool) -> Result<Url, NewHttpBrainError> {
    let url = Url::parse(text.trim()).map_err(|e| NewHttpBrainError::BaseUrl(Box::new(e)))?;
    let plain = match url.scheme() {
        "https" => false,
        "http" => true,
        other => return Err(NewHttpBrainError::Scheme { scheme: other.to_owned() }),
    };
    let decorated = !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some();
    if decorated {
        return Err(NewHttpBrainError::Decorated);
    }
    if plain && !allow_plain_http && !is_loopback(&url) {
        return Err(NewHttpBrainError::PlainHttp { host: url.host_str().unwrap_or("").to_owned() });
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_that_would_leak_or_lose_something_is_refused() {
        for good in [
            "https://api.example.com",
            "https://proxy.example.com/prefix/",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "http://localhost:1",
        ] {
            assert!(parse_base_url(good, false).is_ok(), "{good}");
        }
        for bad in [
            "",
            "api.example.com",
            "ftp://example.com",
            "https://user:secret@example.com",
            "https://example.com/?key=secret",
            "https://example.com/#x",
            "http://example.com",
            "http://10.0.0.1",
            "http://127.0.0.1.example.com",
        ] {
            let error = parse_base_url(bad, false).expect_err(bad);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(parse_base_url("http://brain.internal:8080", true).is_ok());
    }

    #[test]
    fn a_credential_that_no_header_may_hold_is_refused_and_a_good_one_is_not_printable() {
        for bad in ["", " key", "key\n", "k\0y", &"x".repeat(CREDENTIAL_BYTES_MAX + 1)] {
            assert!(bearer(&Secret::new(bad)).is_none());
        }
        let header = bearer(&Secret::new("sk-visible")).unwrap();
        assert!(!format!("{header:?}").contains("sk-visible"));
    }
}
