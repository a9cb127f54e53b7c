//! The path of a request in the one form that rules are compared with.
//!
//! Servers disagree about `..`, `//`, `;` and encoded slashes. Such a path is not repaired: it is
//! *in doubt*, and doubt never opens a rule and always closes one (`crate::matcher`). A rule that
//! does not look at the path does not mind.
//!
//! **Invariant:** reading the canonical form gives the same path again.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Longer paths are in doubt: no pattern is run over them.
const PATH_BYTES_MAX: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestPath<'a> {
    /// Decoded, beginning with `/`.
    Clear(Cow<'a, str>),
    Doubtful(PathDoubt),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathDoubt {
    #[error("the path does not begin with `/`")]
    NoSlash,
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    #[error("the path has an empty segment (`//`)")]
    EmptySegment,
    #[error("the path has an encoded slash")]
    EncodedSlash,
    #[error("the path has a backslash")]
    Backslash,
    #[error("the path has a `;` parameter")]
    Parameter,
    #[error("the path is encoded twice")]
    EncodedTwice,
    #[error("the path has a wrong percent escape")]
    Escape,
    #[error("the path has an encoded control character")]
    Control,
    #[error("the path has bytes that are not percent-encoded UTF-8")]
    NotUtf8,
    #[error("the path is longer than 16 KiB")]
    TooLong,
}

impl<'a> RequestPath<'a> {
    /// `raw` is what stands in the request, up to the `?`.
    pub fn parse(raw: &'a str) -> RequestPath<'a> {
        match normalise(raw) {
            Ok(path) => RequestPath::Clear(path),
            Err(doubt) => RequestPath::Doubtful(doubt),
        }
    }

    /// As it can be sent: what must be encoded is, the rest is not.
    pub fn canonical(&self) -> Option<String> {
        let RequestPath::Clear(path) = self else { return None };
        let mut text = String::with_capacity(path.len());
        for byte in path.bytes() {
            match byte {
                b'/' => text.push('/'),
                byte if is_plain(byte) => text.push(char::from(byte)),
                // Writing to a `String` cannot fail.
                byte => {
                    let _ = write!(text, "%{byte:02X}");
                }
            }
        }
        Some(text)
    }
}

impl fmt::Display for RequestPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestPath::Clear(path) => f.write_str(path),
            RequestPath::Doubtful(_) => f.write_str("(in doubt)"),
        }
    }
}

/// What a segment may hold unencoded.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte)
}

fn normalise(raw: &str) -> Result<Cow<'_, str>, PathDoubt> {
    if raw.len() > PATH_BYTES_MAX {
        return Err(PathDoubt::TooLong);
    }
    if raw.is_empty() {
        return Ok(Cow::Borrowed("/"));
    }
    if !raw.starts_with('/') {
        return Err(PathDoubt::NoSlash);
    }
    if raw.bytes().any(|byte| !byte.is_ascii()) {
        return Err(PathDoubt::NotUtf8);
    }
    let path = decode(raw)?;
    if path.contains(';') {
        return Err(PathDoubt::Parameter);
    }
    if path.contains('\\') {
        return Err(PathDoubt::Backslash);
    }
    if path.chars().any(char::is_control) {
        return Err(PathDoubt::Control);
    }
    if path.contains("//") {
        return Err(PathDoubt::EmptySegment);
    }
    match path.split('/').any(|segment| matches!(segment, "." | "..")) {
        true => Err(PathDoubt::DotSegment),
        false => Ok(path),
    }
}

fn decode(raw: &str) -> Result<Cow<'_, str>, PathDoubt> {
    if !raw.contains('%') {
        return Ok(Cow::Borrowed(raw));
    }
    let bytes = raw.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte != b'%' {
            decoded.push(*byte);
            at += 1;
            continue;
        }
        let byte = escape(bytes.get(at + 1..at + 3)).ok_or(PathDoubt::Escape)?;
        match byte {
            b'/' => return Err(PathDoubt::EncodedSlash),
            b'%' if escape(bytes.get(at + 3..at + 5)).is_some() => {
                return Err(PathDoubt::EncodedTwice);
            }
            _ => decoded.push(byte),
        }
        at += 3;
    }
    let text = String::from_utf8(decoded).map_err(|_| PathDoubt::NotUtf8)?;
    // `%%32%35`: what is left reads as an escape once more.
    match decoded_again(&text) {
        true => Err(PathDoubt::EncodedTwice),
        false => Ok(Cow::Owned(text)),
    }
}

fn decoded_again(text: &str) -> bool {
    let bytes = text.as_bytes();
    let escapes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    escapes.into_iter().any(|(at, _)| escape(bytes.get(at + 1..at + 3)).is_some())
}

/// The byte of two hexadecimal digits.
pub(crate) fn escape(digits: Option<&[u8]>) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    match digits? {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    }
}
