//! Which version two ends speak: the lower of the two highest, if both still know it.

use crate::wire::Hello;

/// The newest version this build speaks.
pub const VERSION_MAX: u32 = 2;
/// The oldest version this build still speaks.
pub const VERSION_MIN: u32 = 1;
/// The version that brought terminals.
pub const TERMINALS_SINCE: u32 = 2;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VersionError {
    #[error("the other end ({build}) speaks version {max} at most; this one needs {ours_min}")]
    PeerTooOld { build: String, max: u32, ours_min: u32 },
    #[error("the other end ({build}) needs version {min}; this one speaks {ours_max} at most")]
    PeerTooNew { build: String, min: u32, ours_max: u32 },
    #[error("the other end ({build}) announced versions {min} to {max}, which is no range")]
    NoRange { build: String, min: u32, max: u32 },
}

/// Longest build text kept from the other end, for messages and logs.
const BUILD_CHARS_MAX: usize = 64;

/// What this end says first.
pub fn hello(build: &str, epoch: u64) -> Hello {
    Hello { version_min: VERSION_MIN, version_max: VERSION_MAX, build: build.to_owned(), epoch }
}

/// The version both ends speak from now on.
pub fn agree(peer: &Hello) -> Result<u32, VersionError> {
    agree_within(VERSION_MIN, VERSION_MAX, peer)
}

fn agree_within(ours_min: u32, ours_max: u32, peer: &Hello) -> Result<u32, VersionError> {
    let (min, max) = (peer.version_min, peer.version_max);
    let build = || printable(&peer.build);
    if min > max || max == 0 {
        return Err(VersionError::NoRange { build: build(), min, max });
    }
    if max < ours_min {
        return Err(VersionError::PeerTooOld { build: build(), max, ours_min });
    }
    if min > ours_max {
        return Err(VersionError::PeerTooNew { build: build(), min, ours_max });
    }
    Ok(max.min(ours_max))
}

/// A text of the other end as it may stand in a log: one line, short.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(BUILD_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(version_min: u32, version_max: u32) -> Hello {
        Hello { version_min, version_max, build: "b".into(), epoch: 1 }
    }

    #[test]
    fn the_lower_maximum_is_spoken_or_the_reason_is_given() {
        let build = || "b".to_owned();
        let cases = [
            (peer(1, 1), Ok(1)),
            (peer(1, 9), Ok(4)),
            (peer(3, 3), Ok(3)),
            (peer(1, 2), Ok(2)),
            (peer(1, 1), Ok(1)),
            (peer(5, 9), Err(VersionError::PeerTooNew { build: build(), min: 5, ours_max: 4 })),
            (peer(3, 2), Err(VersionError::NoRange { build: build(), min: 3, max: 2 })),
            (peer(0, 0), Err(VersionError::NoRange { build: build(), min: 0, max: 0 })),
        ];
        for (hello, want) in cases {
            assert_eq!(agree_within(1, 4, &hello), want, "{hello:?}");
        }
        let old = Err(VersionError::PeerTooOld { build: build(), max: 1, ours_min: 2 });
        assert_eq!(agree_within(2, 4, &peer(1, 1)), old);
    }

    #[test]
    fn a_hostile_build_text_stays_one_short_line() {
        assert_eq!(printable("a\nb\u{1b}[0m"), "ab[0m");
        assert_eq!(printable(&"x".repeat(9999)).len(), BUILD_CHARS_MAX);
    }
}
