//! Who holds an image's lock, as far as the kernel tells.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use crate::unpack::error::shown;

/// More than this many are counted, not named.
const NAMED_MAX: usize = 4;

/// Processes that run sandboxes from an image. Empty where the kernel does not name them: in a
/// process namespace of their own, or on a file system with numbers of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users(Vec<User>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub pid: u32,
    /// Empty where it cannot be read.
    pub command: String,
}

// === impl Users ===

impl Users {
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.0.iter()
    }

    pub(crate) fn of(locked: &File) -> Self {
        let Ok(inode) = locked.metadata().map(|metadata| metadata.ino()) else {
            return Self::default();
        };
        let table = fs::read_to_string("/proc/locks").unwrap_or_default();
        let mut pids: Vec<u32> = holders(&table, inode).collect();
        pids.sort_unstable();
        pids.dedup();
        Self(pids.into_iter().map(|pid| User { pid, command: command(pid) }).collect())
    }
}

/// Lines are `1: FLOCK  ADVISORY  READ 1234 08:01:5678 0 EOF`. The device is not compared: some
/// file systems show another one there than to those who look at the file.
fn holders(table: &str, inode: u64) -> impl Iterator<Item = u32> {
    table.lines().filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_ours = fields.next() == Some("FLOCK");
        let pid = fields.nth(2)?.parse().ok()?;
        let found: u64 = fields.next()?.rsplit(':').next()?.parse().ok()?;
        (is_ours && found == inode).then_some(pid)
    })
}

fn command(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = words.split(|b| *b == 0).map(shown).collect();
    words.join(" ").trim().to_owned()
}

/// ` by process 1234 (sinew launcher --data /var/lib/sinew)`; nothing where there is no one to name.
impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, user) in self.0.iter().take(NAMED_MAX).enumerate() {
            let word = if number == 0 { " by process" } else { "," };
            write!(f, "{word} {} ({})", user.pid, user.command)?;
        }
        match self.0.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holders_of_one_file_are_found() {
        let table = "1: FLOCK  ADVISORY  READ 77 fe:00:1234 0 EOF\n\
            2: POSIX  ADVISORY  WRITE 78 fe:00:1234 0 EOF\n\
            3: FLOCK  ADVISORY  READ 79 fe:00:9999 0 EOF\nnonsense\n";
        assert_eq!(holders(table, 1234).collect::<Vec<_>>(), [77]);
        let user = |pid| User { pid, command: "launcher".to_owned() };
        let users = Users((1..7).map(user).collect());
        let text = users.to_string();
        assert!(text.starts_with(" by process 1 (launcher), 2 (") && text.ends_with("and 2 more"));
        assert_eq!(Users::default().to_string(), "");
    }
}
