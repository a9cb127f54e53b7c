//! Process trees, by what `/proc` shows: who descends from whom, and killing all of them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A fork bomb shows new children in each pass; after this many passes killing begins anyway,
/// and goes on until a pass finds none.
const STOP_PASSES_MAX: u32 = 32;
/// Between two looks at whether the killed are gone.
pub const KILL_PAUSE: Duration = Duration::from_millis(1);
/// Processes looked at in one pass; above any `pid_max` of a sandbox.
const PROCESSES_MAX: usize = 65_536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub zombie: bool,
    /// In clock ticks since the machine started.
    pub started_ticks: u64,
}

/// Every process this namespace shows. One that ends meanwhile is left out.
pub fn processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let stat = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name();
        let pid: i32 = name.to_str()?.parse().ok()?;
        parse_stat(pid, &std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    };
    entries.filter_map(stat).take(PROCESSES_MAX).collect()
}

/// The name stands in parentheses and is the guest's choice; what follows the last one is not.
fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let after = memchr::memrchr(b')', stat)? + 1;
    let text = std::str::from_utf8(stat.get(after..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    // Field 22 of the line; state is field 3.
    let started_ticks = fields.nth(17)?.parse().ok()?;
    Some(Process { pid, parent, zombie: matches!(state, "Z" | "X"), started_ticks })
}

/// Who descends from `root`, without `root` itself and without the subtrees of `spared`.
pub fn descendants(root: i32, spared: &[i32], all: &[Process]) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if !spared.contains(&child.pid) && seen.insert(child.pid) {
                found.push(**child);
                open.push(child.pid);
            }
        }
    }
    found
}

fn live(root: i32, spared: &[i32]) -> Vec<i32> {
    let found = descendants(root, spared, &processes());
    found.iter().filter(|process| !process.zombie).map(|process| process.pid).collect()
}

/// Kills everything below `root`: first all are stopped, so that none forks away while the others
/// die, then all are killed, again and again until none is left. `reap` collects the dead between
/// two looks. Answers how many were left when `time` was over.
pub fn kill_below(root: i32, spared: &[i32], time: Duration, mut reap: impl FnMut()) -> usize {
    let deadline = Instant::now() + time;
    let mut stopped = HashSet::new();
    for _ in 0..STOP_PASSES_MAX {
        let new: Vec<i32> =
            live(root, spared).into_iter().filter(|pid| stopped.insert(*pid)).collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            signal(pid, Signal::SIGSTOP);
        }
    }
    loop {
        let left = live(root, spared);
        for pid in &left {
            signal(*pid, Signal::SIGKILL);
        }
        reap();
        if left.is_empty() || Instant::now() >= deadline {
            return left.len();
        }
        std::thread::sleep(KILL_PAUSE);
    }
}

/// A process that has just ended is what was wanted.
pub fn signal(pid: i32, signal: Signal) {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => crate::process::log(&format!("signal {signal} to {pid}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn arbitrary_names_never_panic(name: Vec<u8>) {
            let line = [b"42 (", &name[..], b") S 7 1"].concat();
            let _ = (parse_stat(42, &line), parse_stat(42, &name));
        }
    }

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, zombie: false, started_ticks: 0 }
    }

    #[test]
    fn a_name_chosen_to_confuse_is_read_over() {
        let mut line = b"42 (a) R 1 ) Z (x) S 7 42 42 0 -1 4194560".to_vec();
        line.extend_from_slice(b" 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3\n");
        let want = Process { pid: 42, parent: 7, zombie: false, started_ticks: 98_765 };
        assert_eq!(parse_stat(42, &line), Some(want));
        for broken in [&b""[..], b"42 (x", b"42 (x)", b"42 (x) S", b"42 (x) S \xff"] {
            assert_eq!(parse_stat(42, broken), None);
        }
    }

    #[test]
    fn descendants_leave_out_strangers_and_the_spared() {
        let all = [process(2, 1), process(3, 2), process(4, 3), process(5, 1), process(6, 5)];
        let mut pids: Vec<i32> = descendants(1, &[5], &all).iter().map(|p| p.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [2, 3, 4]);
        // A loop cannot happen, and does not hang if it is claimed.
        assert_eq!(descendants(8, &[], &[process(8, 9), process(9, 8)]).len(), 2);
    }
}
