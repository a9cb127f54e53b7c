//! Starting, living in, and coming back to a container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use crate::support::{ID_BASE, LIMITS, Machine};
use sandbox_container::{StartError, settle};

#[test]
fn root_and_the_tools_user_find_an_ordinary_system() {
    let Some(machine) = Machine::new("an_ordinary_system") else { return };
    let mut sandbox = machine.start();
    assert_eq!(sandbox.root("id -u; hostname; cat /etc/hostname").ok(), "0\nbox\nbox\n");
    assert_eq!(sandbox.user("id -u; cd /workspace; echo x > f; cat f").ok(), "1000\nx\n");
    sandbox.user("touch /home/agent/a /tmp/b").ok();
    assert_eq!(
        sandbox.root("stat -c '%u %a' /workspace /home/agent /tmp").ok(),
        "1000 755\n1000 755\n0 1777\n"
    );
    assert_eq!(sandbox.root("ls -A /sys").ok(), "");
    let devices = sandbox.root("ls /dev").ok();
    assert_eq!(
        devices.split_whitespace().collect::<Vec<_>>(),
        [
            "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
            "tty", "urandom", "zero"
        ]
    );
    sandbox.user("echo x > /dev/null; head -c 3 /dev/urandom > /tmp/r; echo y > /dev/shm/y").ok();
    assert!(sandbox.root("cat /etc/hosts").ok().contains("127.0.1.1 box"));
    assert_eq!(sandbox.root("ls /sys/class/net 2>/dev/null; grep -c : /proc/net/dev").ok(), "1\n");
    // What the agent's arguments name, and `ls` itself; nothing of the launcher's.
    let descriptors = sandbox.user("ls /proc/self/fd").ok();
    let numbers = descriptors.lines().map(|line| line.parse::<u32>().unwrap());
    assert!(numbers.max() <= Some(8), "{descriptors}");
    machine.kill(&mut sandbox);
}

#[test]
fn compilers_threads_users_and_low_ports_work() {
    let Some(machine) = Machine::new("compilers_threads_users") else { return };
    let mut sandbox = machine.start();
    sandbox
        .user(
            "cd /workspace && printf '#include <stdio.h>\\nint main(){puts(\"built\");}' > a.c \
             && gcc a.c -o a && ./a | grep -q built",
        )
        .ok();
    sandbox
        .user(
            "python3 -c 'import _thread, time\nn = []\nfor i in range(8): \
             _thread.start_new_thread(n.append, (i,))\nwhile len(n) < 8: time.sleep(0.01)'",
        )
        .ok();
    sandbox.root("useradd -m bob && su bob -c 'id -un' | grep -qx bob").ok();
    sandbox.root("touch /tmp/f && chown bob /tmp/f && chmod u+s /tmp/f && chmod 600 /tmp/f").ok();
    sandbox.user("perl -e 'use Socket; socket(S,PF_INET,SOCK_STREAM,0) or die; bind(S, sockaddr_in(80, INADDR_ANY)) or die $!'").ok();
    // What overlays without `redirect_dir` refuse.
    sandbox.root("mv /usr/share/doc /usr/share/doc2 && test -d /usr/share/doc2").ok();
    sandbox.root("mkfifo /tmp/p && ln /tmp/f /tmp/g && rm -r /usr/share/doc2 && sync").ok();
    machine.kill(&mut sandbox);
}

#[test]
fn files_outlive_the_epoch_and_fit_another_id_range() {
    let Some(machine) = Machine::new("files_outlive_the_epoch") else { return };
    let mut sandbox = machine.start();
    sandbox.user("echo kept > /workspace/f").ok();
    sandbox.root("echo mine > /etc/hosts; rm /etc/resolv.conf; echo r > /root/r").ok();
    machine.kill(&mut sandbox);
    // Stored with canonical ids, whatever the range was.
    assert_eq!(fs::metadata(sandbox.volume.upper().join("workspace/f")).unwrap().uid(), 1000);

    let base = ID_BASE + 7 * 65_536;
    let prepared = machine.containers.prepare(base).unwrap();
    let started = machine.try_start_from(prepared, &sandbox, |_| ());
    sandbox.started = Some(started.unwrap());
    let init = sandbox.started.as_ref().unwrap().init.as_raw_nonzero();
    assert_eq!(fs::metadata(format!("/proc/{init}")).unwrap().uid(), base);
    assert_eq!(sandbox.user("cat /workspace/f; stat -c %u /workspace/f").ok(), "kept\n1000\n");
    assert_eq!(
        sandbox
            .root("cat /etc/hosts /root/r; ls /etc/resolv.conf")
            .output
            .lines()
            .take(2)
            .collect::<Vec<_>>(),
        ["mine", "r"]
    );
    machine.kill(&mut sandbox);
}

#[test]
fn a_volume_that_a_crash_of_the_machine_caught_is_not_mounted_in_silence() {
    let Some(machine) = Machine::new("a_crash_of_the_machine") else { return };
    let mut sandbox = machine.start();
    machine.kill(&mut sandbox);
    let boot = sandbox.volume.path().join("boot");
    fs::write(&boot, "another boot").unwrap();
    let refused = machine.try_start(&sandbox, |_| ());
    assert!(matches!(refused, Err(StartError::NotSynced(_))), "{refused:?}");

    // One that was settled before is safe.
    settle(sandbox.volume.path()).unwrap();
    machine.restart(&mut sandbox);
    machine.kill(&mut sandbox);
}

#[test]
fn a_guest_that_was_at_its_quota_starts_again() {
    let Some(machine) = Machine::new("a_guest_at_its_quota") else { return };
    let mut sandbox = machine.start();
    let full = sandbox.user("head -c 200000000 /dev/zero > /workspace/big; echo $?");
    assert!(full.output.contains("quota"), "{}", full.output);
    machine.kill(&mut sandbox);
    machine.pool().sync().unwrap();
    machine.pool().make_room(&sandbox.volume.id, LIMITS.disk).unwrap();
    machine.restart(&mut sandbox);
    machine.pool().set_quota(&sandbox.volume.id, LIMITS.disk).unwrap();
    sandbox.user("rm /workspace/big && echo fine > /workspace/f").ok();
    machine.kill(&mut sandbox);
}

#[test]
fn a_launcher_that_restarted_finds_its_container_again() {
    let Some(machine) = Machine::new("a_launcher_that_restarted") else { return };
    let mut sandbox = machine.start();
    let started = sandbox.started.take().unwrap();
    let (init, start_time) = (started.init, started.start_time);
    drop(started);
    assert!(machine.containers.adopt(init, start_time + 1).is_none());
    let pidfd = machine.containers.adopt(init, start_time).unwrap();
    assert_eq!(machine.containers.cgroups().list().unwrap(), std::slice::from_ref(&sandbox.id));
    sandbox.user("true").ok();
    use std::os::fd::AsFd;
    machine.containers.kill(&sandbox.id, Some(pidfd.as_fd())).unwrap();
    assert!(machine.containers.adopt(init, start_time).is_none());
}

/// Printed for the record; the bound only catches a start that has become something else.
#[test]
fn a_hundred_starts_are_quick() {
    const RUNS: usize = 100;
    let Some(machine) = Machine::new("a_hundred_starts") else { return };
    let mut sandbox = machine.prepare(LIMITS);
    let (mut starts, mut kills) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let begun = Instant::now();
        machine.restart(&mut sandbox);
        sandbox.user("true").ok();
        starts.push(begun.elapsed());
        let begun = Instant::now();
        machine.kill(&mut sandbox);
        kills.push(begun.elapsed());
    }
    for (name, times) in [("start to first command", &mut starts), ("kill", &mut kills)] {
        times.sort();
        println!("{name}: p50 {:?} p99 {:?}", times[RUNS / 2], times[RUNS * 99 / 100]);
    }
    assert!(starts[RUNS / 2].as_millis() < 500, "{starts:?}");
}
