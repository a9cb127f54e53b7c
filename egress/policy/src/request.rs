//! What is asked for: a destination, and for HTTP the request on it.
//!
//! **Invariant:** a [`Request`] has nothing in it that could end a line of HTTP early. What
//! programs read differently in other ways is kept, in doubt.

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;

use crate::host::{Host, HostError};
use crate::path::{RequestPath, escape};

/// Headers beyond these are not looked at, and the request is refused.
const HEADERS_MAX: usize = 256;
const HEADER_VALUE_BYTES_MAX: usize = 64 << 10;
const METHOD_BYTES_MAX: usize = 32;
/// A query with more is in doubt.
const PARAMETERS_MAX: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    Https,
    Http,
    /// A connection whose bytes are not looked at.
    Tcp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
}

/// One HTTP request; a WebSocket's is the one that opens it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub(crate) destination: Destination,
    pub(crate) method: &'a str,
    pub(crate) path: RequestPath<'a>,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: Vec<(&'a str, &'a [u8])>,
    method_is_overridden: bool,
    /// Read when the first rule asks.
    parameters: OnceLock<Option<Parameters>>,
}

/// Decoded names and values.
type Parameters = Vec<(String, String)>;

/// Why a request is refused before any rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the host carries a user or a password")]
    UserInfo,
    #[error("the port is not a number from 1 to 65535")]
    Port,
    #[error("the method is not a word of HTTP")]
    Method,
    #[error("the request's target has a character that HTTP does not allow")]
    Target,
    #[error("a header's name is not a word of HTTP")]
    HeaderName,
    #[error("a header's value has a line break or a control character")]
    HeaderValue,
    #[error("the request has too many or too long headers")]
    TooLarge,
    #[error("a `Host` header names another place than the request goes to")]
    OtherHost,
    #[error("the headers disagree about where the body ends")]
    Framing,
    #[error("a raw connection has no HTTP request")]
    NotHttp,
}

impl Scheme {
    pub const ALL: [Scheme; 3] = [Scheme::Https, Scheme::Http, Scheme::Tcp];

    pub fn name(self) -> &'static str {
        match self {
            Scheme::Https => "https",
            Scheme::Http => "http",
            Scheme::Tcp => "tcp",
        }
    }

    pub fn default_port(self) -> Option<u16> {
        match self {
            Scheme::Https => Some(443),
            Scheme::Http => Some(80),
            Scheme::Tcp => None,
        }
    }

    /// A WebSocket is the HTTP request that opens it.
    pub fn parse(text: &str) -> Option<Scheme> {
        match text.to_ascii_lowercase().as_str() {
            "https" | "wss" => Some(Scheme::Https),
            "http" | "ws" => Some(Scheme::Http),
            "tcp" => Some(Scheme::Tcp),
            _ => None,
        }
    }
}

impl Destination {
    pub fn new(scheme: Scheme, host: &str, port: u16) -> Result<Destination, Malformed> {
        let host = Host::parse(host).map_err(Malformed::Host)?;
        match port {
            0 => Err(Malformed::Port),
            port => Ok(Destination { scheme, host, port }),
        }
    }

    /// Reads `host`, `host:port` or `[v6]:port`, as in a `Host` header, `:authority` or `CONNECT`.
    pub fn of_authority(scheme: Scheme, authority: &str) -> Result<Destination, Malformed> {
        if authority.contains('@') {
            return Err(Malformed::UserInfo);
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        // Without brackets nobody can tell which colon is the last of the address.
        if host.contains(':') && !host.starts_with('[') {
            return Err(Malformed::Host(HostError::Character(':')));
        }
        let port = match port {
            Some(port) => number(port).ok_or(Malformed::Port)?,
            None => scheme.default_port().ok_or(Malformed::Port)?,
        };
        Destination::new(scheme, host, port)
    }
}

/// Digits only: no sign, no space, no leading zero.
fn number(port: &str) -> Option<u16> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0');
    digits.then(|| port.parse().ok()).flatten()
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Destination { scheme, host, port } = self;
        match scheme.default_port() == Some(*port) {
            true => write!(f, "{}://{host}", scheme.name()),
            false => write!(f, "{}://{host}:{port}", scheme.name()),
        }
    }
}

impl<'a> Request<'a> {
    /// `target` is the path with its query.
    pub fn new(
        destination: Destination,
        method: &'a str,
        target: &'a str,
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Request<'a>, Malformed> {
        if destination.scheme == Scheme::Tcp {
            return Err(Malformed::NotHttp);
        }
        if method.len() > METHOD_BYTES_MAX || !is_token(method) {
            return Err(Malformed::Method);
        }
        if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#') {
            return Err(Malformed::Target);
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let headers = checked(headers)?;
        check_host(&destination, &headers)?;
        check_framing(&headers)?;
        let path = RequestPath::parse(path);
        let method_is_overridden = overrides_method(&headers);
        let parameters = OnceLock::new();
        Ok(Request { destination, method, path, query, headers, method_is_overridden, parameters })
    }

    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    pub fn method(&self) -> &str {
        self.method
    }

    pub fn path(&self) -> &RequestPath<'a> {
        &self.path
    }

    /// What a framework may take for the method instead: the real one is in doubt then.
    pub(crate) fn method_is_overridden(&self) -> bool {
        self.method_is_overridden
    }

    /// The decoded parameters; `None` when programs would read them differently.
    pub(crate) fn parameters(&self) -> Option<&Parameters> {
        self.parameters.get_or_init(|| parameters(self.query.unwrap_or_default())).as_ref()
    }
}

fn overrides_method(headers: &[(&str, &[u8])]) -> bool {
    const OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
    headers.iter().any(|(name, _)| OVERRIDES.iter().any(|over| folds_to(name, over)))
}

fn parameters(query: &str) -> Option<Parameters> {
    if query.contains(';') || !query.is_ascii() {
        return None;
    }
    let mut parameters = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        if parameters.len() == PARAMETERS_MAX {
            return None;
        }
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        parameters.push((decode(name)?.into_owned(), decode(value)?.into_owned()));
    }
    Some(parameters)
}

/// Whether it is that header, also for a program that takes `_` for `-`.
pub(crate) fn folds_to(name: &str, wanted: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == wanted.len() && name.bytes().zip(wanted.bytes()).all(|(a, b)| fold(a) == fold(b))
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'%' => {
                decoded.push(escape(bytes.get(at + 1..at + 3))?);
                at += 3;
            }
            b'+' => {
                decoded.push(b' ');
                at += 1;
            }
            byte => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn checked<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<(&'a str, &'a [u8])>, Malformed> {
    let mut kept = Vec::new();
    for (name, value) in headers {
        if kept.len() == HEADERS_MAX || value.len() > HEADER_VALUE_BYTES_MAX {
            return Err(Malformed::TooLarge);
        }
        // HTTP/2's own fields are said by destination, method and target.
        if !is_token(name) {
            return Err(Malformed::HeaderName);
        }
        if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Err(Malformed::HeaderValue);
        }
        kept.push((name, value));
    }
    Ok(kept)
}

/// There is one `Host`, and it is the destination: else a server, or a cache before it, answers for
/// a place that was not asked about.
fn check_host(destination: &Destination, headers: &[(&str, &[u8])]) -> Result<(), Malformed> {
    let mut hosts = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host"));
    let (Some((_, host)), second) = (hosts.next(), hosts.next()) else { return Ok(()) };
    let host = std::str::from_utf8(host).map_err(|_| Malformed::OtherHost)?;
    match Destination::of_authority(destination.scheme, host) {
        Ok(named) if named == *destination && second.is_none() => Ok(()),
        _ => Err(Malformed::OtherHost),
    }
}

/// One length, or chunks, said in one way.
fn check_framing(headers: &[(&str, &[u8])]) -> Result<(), Malformed> {
    let mut length: Option<&[u8]> = None;
    let mut chunked = false;
    for (name, value) in headers {
        let is_length = folds_to(name, "content-length");
        if !is_length && !folds_to(name, "transfer-encoding") {
            continue;
        }
        let right = match is_length {
            true => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let same = length.is_none_or(|other| other == *value);
                length = Some(value);
                digits && same
            }
            false => {
                let first = !chunked;
                chunked = true;
                first && value.eq_ignore_ascii_case(b"chunked")
            }
        };
        if !right || name.contains('_') || (length.is_some() && chunked) {
            return Err(Malformed::Framing);
        }
    }
    Ok(())
}

pub(crate) fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}
