//! What a build says of itself while it runs, read from what apt and dpkg print.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Another build of the same cache is running.
    Waiting,
    Downloading,
    Installing,
    /// An archive's content is being read and checked.
    Unpacking,
    Finishing,
    Checksum,
    Done,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Waiting => "waiting for another build",
            Stage::Unpacking => "unpacking",
            Stage::Downloading => "downloading packages",
            Stage::Installing => "installing packages",
            Stage::Finishing => "finishing the tree",
            Stage::Checksum => "computing the checksum",
            Stage::Done => "done",
        })
    }
}

/// One step forward. `percent` never goes back within a build (a stage may: packages
/// come in two rounds, each downloaded and then installed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub percent: u8,
    /// What is being worked on, for a person; empty where there is nothing to say.
    pub detail: String,
}

/// What the bootstrap's part of the bar is; the rest is ours.
const BOOTSTRAP_FROM: u8 = 1;
const BOOTSTRAP_TO: u8 = 92;

/// Turns the output of apt and dpkg into [`Progress`].
pub(crate) struct LineReader {
    lines_expected: usize,
    lines_seen: usize,
    last: Progress,
}

impl LineReader {
    /// `lines_expected` is an estimate: at its end the bar stands still, and says what is going on.
    pub(crate) fn new(lines_expected: usize) -> Self {
        let last =
            Progress { stage: Stage::Downloading, percent: BOOTSTRAP_FROM, detail: String::new() };
        Self { lines_expected: lines_expected.max(1), lines_seen: 0, last }
    }

    pub(crate) fn start(&self) -> Progress {
        self.last.clone()
    }

    /// `None` where the line moves nothing.
    pub(crate) fn read(&mut self, line: &str) -> Option<Progress> {
        let (verb, rest) = line.split_once(' ')?;
        let stage = match verb {
            "Selecting" | "Preparing" | "Unpacking" | "Setting" => Stage::Installing,
            _ if verb.starts_with("Get:") => Stage::Downloading,
            _ => return None,
        };
        self.lines_seen = (self.lines_seen + 1).min(self.lines_expected);
        let span = usize::from(BOOTSTRAP_TO - BOOTSTRAP_FROM);
        let done = self.lines_seen * span / self.lines_expected;
        let next = Progress {
            stage,
            percent: BOOTSTRAP_FROM + u8::try_from(done).unwrap_or(0),
            detail: package_of(verb, rest).to_owned(),
        };
        (next != self.last).then(|| {
            self.last = next.clone();
            next
        })
    }
}

fn package_of<'a>(verb: &str, rest: &'a str) -> &'a str {
    let mut words = rest.split(' ').filter(|word| !word.is_empty());
    let skip = match verb {
        "Selecting" => 3,
        "Preparing" => 2,
        "Setting" => 1,
        _ if verb.starts_with("Get:") => 3,
        _ => 0,
    };
    words.nth(skip).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_moves_forward_only() {
        let mut reader = LineReader::new(4);
        let lines = [
            "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
            "Get:1 http://mirror/debian bookworm/main amd64 gcc amd64 4:12 [5,216 B]",
            "Preparing to unpack .../gcc_12.deb ...",
            "Unpacking gcc (4:12) ...",
            "garbage \u{1b}[0m",
            "Setting up gcc (4:12) ...",
            "Setting up more than was expected ...",
        ];
        let seen: Vec<_> = lines.iter().filter_map(|line| reader.read(line)).collect();
        assert_eq!(seen.len(), 5, "{seen:?}");
        assert!(seen.windows(2).all(|pair| pair[0].percent <= pair[1].percent), "{seen:?}");
        assert_eq!((seen[3].stage, seen[3].detail.as_str()), (Stage::Installing, "gcc"));
        assert_eq!((seen[0].stage, seen[0].detail.as_str()), (Stage::Downloading, "gcc"));
        assert_eq!(seen[4].percent, BOOTSTRAP_TO);
    }
}
