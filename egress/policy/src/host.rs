//! Hosts: one value for every way to write the same one, and the patterns of rules.
//!
//! **Invariant:** two texts that a client would connect to the same place for read as the same
//! [`Host`], or one of them is refused. What is refused is what programs disagree about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

/// Longer than any name, also one written with the longest forms of its letters.
const HOST_BYTES_MAX: usize = 1024;

/// A name or an address, in its one form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    Name(Name),
    Address(IpAddr),
}

/// A domain name: lower case, ASCII, without the dot of the root.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("the host is longer than a name can be")]
    TooLong,
    #[error("the host has a character that no host has: {0:?}")]
    Character(char),
    #[error("the host is not a valid international name")]
    Idna,
    #[error("the host has an empty or overlong part")]
    Label,
    #[error("the host looks like an IPv4 address and is none")]
    Number,
    #[error("the host is not an IPv6 address")]
    Ipv6,
    #[error("the host has an IPv6 zone, which means something on one machine only")]
    Zone,
}

impl Host {
    /// Reads what stands in a URL, a `Host` header, a server name or a DNS question.
    pub fn parse(text: &str) -> Result<Host, HostError> {
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.len() > HOST_BYTES_MAX {
            return Err(HostError::TooLong);
        }
        if let Some(rest) = text.strip_prefix('[') {
            return ipv6(rest.strip_suffix(']').ok_or(HostError::Ipv6)?);
        }
        if text.bytes().filter(|byte| *byte == b':').count() > 1 {
            return ipv6(text);
        }
        let ascii = to_ascii(text)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        match name.rsplit('.').next() {
            Some(last) if is_number(last) => Ok(Host::Address(ipv4(name)?.into())),
            _ => Ok(Host::Name(Name(name.into()))),
        }
    }

    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Host::Address(address) => Some(*address),
            Host::Name(_) => None,
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Host {
        Host::Address(address.to_canonical())
    }
}

fn ipv6(text: &str) -> Result<Host, HostError> {
    if text.contains('%') {
        return Err(HostError::Zone);
    }
    let address = text.parse::<Ipv6Addr>().map_err(|_| HostError::Ipv6)?;
    Ok(IpAddr::V6(address).into())
}

/// Case, full-width letters, dots of other scripts, and other scripts altogether.
fn to_ascii(text: &str) -> Result<String, HostError> {
    let is_wrong = |c: &char| {
        let wrong_ascii = !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | '_');
        c.is_control() || c.is_whitespace() || (c.is_ascii() && wrong_ascii)
    };
    if let Some(wrong) = text.chars().find(is_wrong) {
        return Err(HostError::Character(wrong));
    }
    if text.starts_with('.') || text.contains("..") {
        return Err(HostError::Label);
    }
    let length = DnsLength::VerifyAllowRootDot;
    let ascii = Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::URL, Hyphens::Allow, length)
        .map_err(|_| match text.is_ascii() {
            true => HostError::Label,
            false => HostError::Idna,
        })?;
    // Letters that fold to ASCII may fold to what no host has.
    match ascii.chars().find(is_wrong) {
        Some(wrong) => Err(HostError::Character(wrong)),
        None if ascii.trim_end_matches('.').is_empty() => Err(HostError::Empty),
        None => Ok(ascii.into_owned()),
    }
}

/// Whether clients take a name with this last part for an IPv4 address.
fn is_number(label: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    !label.is_empty() && (digits(label) || label.strip_prefix("0x").is_some_and(hex))
}

/// As `inet_aton` reads it: one to four numbers, decimal, octal or hexadecimal, of which the last
/// fills what is left.
fn ipv4(text: &str) -> Result<Ipv4Addr, HostError> {
    let mut parts = Vec::with_capacity(4);
    for part in text.split('.') {
        if parts.len() == 4 {
            return Err(HostError::Number);
        }
        parts.push(number(part).ok_or(HostError::Number)?);
    }
    let (last, first) = parts.split_last().ok_or(HostError::Number)?;
    let room = 32 - 8 * first.len() as u32;
    if first.iter().any(|part| *part > 255) || u64::from(*last) >= 1 << room {
        return Err(HostError::Number);
    }
    let high = first.iter().fold(0_u64, |high, part| (high << 8) | u64::from(*part));
    let all = (high << room) | u64::from(*last);
    u32::try_from(all).map(Ipv4Addr::from_bits).map_err(|_| HostError::Number)
}

fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some("") => return Some(0),
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    let only_digits = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    only_digits.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names above this one, nearest first.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('.').map(|(at, _)| &self.0[at + 1..])
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(&name.0),
            Host::Address(IpAddr::V4(address)) => address.fmt(f),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which hosts a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// `**`: every name. An address is named by itself or by its range.
    EveryName,
    Exact(Host),
    /// `*.x`: one label more.
    OneBelow {
        parent: Name,
        apex: bool,
    },
    /// `**.x`: any number of labels more.
    Below {
        parent: Name,
        apex: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("`{0}`: `*` stands for whole labels and only at the front")]
    Wildcard(String),
    #[error("`*` alone is no host: `**` is every name")]
    OneLabel,
    #[error("`{0}`: an address has no names below it")]
    BelowAddress(String),
    #[error("`{text}`")]
    Host { text: String, source: HostError },
}

impl HostPattern {
    /// `apex`: a pattern for what is below a name also holds for that name.
    pub fn parse(text: &str, apex: bool) -> Result<HostPattern, PatternError> {
        let host = |rest: &str| match rest.contains('*') {
            true => Err(PatternError::Wildcard(text.to_owned())),
            false => Host::parse(rest)
                .map_err(|source| PatternError::Host { text: text.to_owned(), source }),
        };
        let name = |rest: &str| match host(rest)? {
            Host::Name(name) => Ok(name),
            Host::Address(_) => Err(PatternError::BelowAddress(text.to_owned())),
        };
        match text {
            "*" => return Err(PatternError::OneLabel),
            "**" => return Ok(HostPattern::EveryName),
            _ => {}
        }
        if let Some(rest) = text.strip_prefix("**.") {
            return Ok(HostPattern::Below { parent: name(rest)?, apex });
        }
        if let Some(rest) = text.strip_prefix("*.") {
            return Ok(HostPattern::OneBelow { parent: name(rest)?, apex });
        }
        Ok(HostPattern::Exact(host(text)?))
    }

    pub fn matches(&self, host: &Host) -> bool {
        let (parent, apex) = match self {
            HostPattern::EveryName => return matches!(host, Host::Name(_)),
            HostPattern::Exact(exact) => return exact == host,
            HostPattern::OneBelow { parent, apex } | HostPattern::Below { parent, apex } => {
                (parent, apex)
            }
        };
        let Host::Name(name) = host else { return false };
        if name == parent {
            return *apex;
        }
        let above = name.0.strip_suffix(&*parent.0).and_then(|above| above.strip_suffix('.'));
        match self {
            HostPattern::OneBelow { .. } => above.is_some_and(|above| !above.contains('.')),
            _ => above.is_some(),
        }
    }

    /// Whether it holds for every host that the other one holds for.
    pub fn covers(&self, other: &HostPattern) -> bool {
        use HostPattern::{Below, EveryName, Exact, OneBelow};
        match (self, other) {
            (EveryName, Exact(host)) => matches!(host, Host::Name(_)),
            (EveryName, _) => true,
            (_, EveryName) => false,
            (pattern, Exact(host)) => pattern.matches(host),
            (Exact(_), _) => false,
            (OneBelow { parent, apex }, OneBelow { parent: other, apex: other_apex }) => {
                parent == other && (*apex || !*other_apex)
            }
            (OneBelow { .. }, Below { .. }) => false,
            (Below { parent, apex }, OneBelow { parent: other, apex: other_apex })
            | (Below { parent, apex }, Below { parent: other, apex: other_apex }) => {
                let below = self.matches(&Host::Name(other.clone()));
                below || (parent == other && (*apex || !*other_apex))
            }
        }
    }

    /// Whether there is a host that both hold for.
    pub fn overlaps(&self, other: &HostPattern) -> bool {
        use HostPattern::{Below, EveryName, Exact, OneBelow};
        match (self, other) {
            (EveryName, Exact(host)) | (Exact(host), EveryName) => matches!(host, Host::Name(_)),
            (EveryName, _) | (_, EveryName) => true,
            (Exact(host), pattern) | (pattern, Exact(host)) => pattern.matches(host),
            (OneBelow { parent, apex }, OneBelow { parent: other, apex: other_apex }) => {
                parent == other
                    || (*apex && is_one_below(parent, other))
                    || (*other_apex && is_one_below(other, parent))
            }
            (
                Below { parent: wide, apex },
                narrow @ (OneBelow { parent, .. } | Below { parent, .. }),
            )
            | (narrow @ OneBelow { parent, .. }, Below { parent: wide, apex }) => {
                is_same_or_below(parent, wide)
                    || (is_same_or_below(wide, parent) && matches!(narrow, Below { .. }))
                    || (*apex && narrow.matches(&Host::Name(wide.clone())))
            }
        }
    }

    /// The name whose lower names it holds for.
    pub(crate) fn parent(&self) -> Option<&Name> {
        match self {
            HostPattern::OneBelow { parent, .. } | HostPattern::Below { parent, .. } => {
                Some(parent)
            }
            HostPattern::EveryName | HostPattern::Exact(_) => None,
        }
    }
}

fn is_one_below(name: &Name, parent: &Name) -> bool {
    HostPattern::OneBelow { parent: parent.clone(), apex: false }.matches(&Host::Name(name.clone()))
}

fn is_same_or_below(name: &Name, above: &Name) -> bool {
    HostPattern::Below { parent: above.clone(), apex: true }.matches(&Host::Name(name.clone()))
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::EveryName => f.write_str("**"),
            HostPattern::Exact(host) => host.fmt(f),
            HostPattern::OneBelow { parent, .. } => write!(f, "*.{}", parent.0),
            HostPattern::Below { parent, .. } => write!(f, "**.{}", parent.0),
        }
    }
}
