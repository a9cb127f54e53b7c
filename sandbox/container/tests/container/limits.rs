//! Each limit, reached from inside, with the agent still answering afterwards.

use std::os::fd::AsFd;
use std::time::Instant;

use base_types::ByteSize;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_api::Limits;
use sandbox_container::cgroup::{MemoryNotice, NoticeBy};

use crate::support::{LIMITS, Machine, wait_for};

#[test]
fn memory() {
    let Some(machine) = Machine::new("limits::memory") else { return };
    let mut sandbox = machine.start_with(Limits { memory: ByteSize::mib(64), ..LIMITS });
    let cgroups = machine.containers.cgroups();
    let notice = MemoryNotice::of(cgroups, &sandbox.id).unwrap();
    sandbox.user("perl -e '$x = \"a\" x 20e6'").ok();
    assert_eq!(cgroups.usage(&sandbox.id).oom_kills, Some(0));

    let bomb = sandbox.user("exec perl -e '$x = \"a\" x 500e6; print length $x'");
    assert_eq!(bomb.status, -9, "{}", bomb.output);
    let usage = cgroups.usage(&sandbox.id);
    assert!(usage.oom_kills >= Some(1), "{usage:?}");
    assert!(usage.memory_bytes < Some(130 << 20), "{usage:?}");
    let ready = match notice.how {
        NoticeBy::Counter => PollFlags::IN,
        NoticeBy::Change => PollFlags::PRI,
    };
    let mut fds = [PollFd::from_borrowed_fd(notice.ready.as_fd(), ready)];
    let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1);
    assert!(MemoryNotice::happened(&notice.ready, notice.how));
    // A file system in memory counts, too.
    let full = sandbox.user("head -c 100000000 /dev/zero > /dev/shm/x; ls -s /dev/shm/x");
    assert!(!full.output.contains("100000"), "{}", full.output);
    sandbox.user("rm -f /dev/shm/x").ok();
    machine.kill(&mut sandbox);
}

#[test]
fn processes() {
    let Some(machine) = Machine::new("limits::processes") else { return };
    let mut sandbox = machine.start();
    let bomb = sandbox.user(
        "perl -e '$n = 0; while ($n < 500) { $p = fork; last unless defined $p; \
         unless ($p) { close STDOUT; close STDERR; sleep 600; exit } $n++ } print $n'",
    );
    let started: u64 = bomb.output.trim().parse().unwrap();
    assert!((50..64).contains(&started), "{started}");
    let pids = machine.containers.cgroups().usage(&sandbox.id).pids.unwrap();
    assert!(pids >= started && pids <= 64 + 64, "{pids}");
    // The payload's leaf is full; the agent is not in it and can still start a process.
    let refused = sandbox.user("s() { sleep 60 > /dev/null 2>&1 & }; s; s; s; /bin/true");
    assert!(refused.output.contains("fork"), "{started}: {} {}", refused.status, refused.output);
    let mut cleaner = machine.start();
    cleaner.user("true").ok();
    machine.kill(&mut cleaner);
    machine.kill(&mut sandbox);
    machine.restart(&mut sandbox);
    sandbox.user("true").ok();
    machine.kill(&mut sandbox);
}

#[test]
fn cpu() {
    let Some(machine) = Machine::new("limits::cpu") else { return };
    let mut sandbox = machine.start_with(Limits { cpu_millis: 200, ..LIMITS });
    let used = || machine.containers.cgroups().usage(&sandbox.id).cpu_usec.unwrap();
    let (before, begun) = (used(), Instant::now());
    // Two busy processes for two seconds of the clock.
    let busy = "perl -e '$e = time + 2; 1 while time <= $e'";
    sandbox.user(&format!("{busy} & {busy}; wait")).ok();
    let share = (used() - before) as f64 / begun.elapsed().as_micros() as f64;
    assert!((0.05..0.30).contains(&share), "{share}");
    machine.kill(&mut sandbox);
}

#[test]
fn disk_holds_against_root_through_the_overlay() {
    let Some(machine) = Machine::new("limits::disk") else { return };
    let mut sandbox = machine.start_with(Limits { disk: ByteSize::mib(30), ..LIMITS });
    for (user, file) in [(1000, "/workspace/a"), (0, "/var/b")] {
        let full = sandbox.run(user, &format!("head -c 90000000 /dev/zero > {file}"));
        assert!(full.status != 0 && full.output.contains("quota exceeded"), "{}", full.output);
    }
    machine.pool().sync().unwrap();
    let used = machine.pool().volume_usage(&sandbox.volume.id).unwrap();
    assert!(used.used_bytes <= 30 << 20, "{used:?}");
    // Copying up a file of the image is a write like any other.
    let copy_up = sandbox
        .root("for f in /usr/lib/x86_64-linux-gnu/*.so*; do touch -c $f; done 2>&1 | tail -1");
    assert!(copy_up.output.is_empty() || copy_up.output.contains("quota"), "{}", copy_up.output);
    sandbox.root("rm -f /workspace/a /var/b && echo x > /var/c").ok();
    machine.kill(&mut sandbox);
}

#[test]
fn terminals() {
    let Some(machine) = Machine::new("terminals") else { return };
    let mut sandbox = machine.start();
    let script = "import os\nopened = []\ntry:\n  while True: opened.append(os.openpty())\n\
                  except OSError as error: print(len(opened), error.strerror)";
    let said = sandbox.user(&format!("python3 -c '{script}'")).ok();
    assert!(said.starts_with("64 ") || said.starts_with("63 "), "{said}");
    // They come back with who had them.
    let again = sandbox.user(&format!("python3 -c '{script}'")).ok();
    assert_eq!(again, said);
    machine.kill(&mut sandbox);
}

#[test]
fn open_files_and_cores() {
    let Some(machine) = Machine::new("limits::open_files") else { return };
    let mut sandbox = machine.start();
    let limits = sandbox.user("ulimit -Sn; ulimit -Hc").ok();
    assert_eq!(limits, "1024\n0\n");
    let hard: u64 = sandbox.user("ulimit -Hn").ok().trim().parse().unwrap();
    assert!(hard <= 20_000, "{hard}");
    // A lower limit would have the host's crash handler run: on the oldest kernel there is one.
    assert_eq!(sandbox.user("ulimit -c 0; kill -SEGV $$").status, -libc::SIGSEGV);
    assert_eq!(sandbox.user("kill -SEGV $$").status, -libc::SIGSEGV);
    let limit = sandbox.user("ulimit -c 0; grep core /proc/self/limits | tr -s ' '").ok();
    assert_eq!(limit.trim(), "Max core file size 1 1 bytes");
    machine.kill(&mut sandbox);
}

#[test]
fn a_frozen_container_is_still_killed() {
    let Some(machine) = Machine::new("limits::frozen") else { return };
    let mut sandbox = machine.start();
    let cgroups = machine.containers.cgroups();
    let init = sandbox.started.as_ref().unwrap().init.as_raw_nonzero();
    let stat = || std::fs::read_to_string(format!("/proc/{init}/status")).unwrap_or_default();
    sandbox.user("sleep 600 > /dev/null 2>&1 &").ok();
    cgroups.freeze(&sandbox.id).unwrap();
    let frozen =
        || stat().lines().any(|l| l.starts_with("State:") && (l.contains('D') || l.contains('S')));
    wait_for("the freeze", frozen);
    machine.kill(&mut sandbox);
    assert_eq!(stat(), "");
}
