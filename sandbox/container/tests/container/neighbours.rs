//! What the kernel counts for a whole machine or a whole user: one sandbox takes all it can get,
//! and neighbour and host do not notice.

#![cfg(target_arch = "x86_64")]

use rustix::fs::inotify;

use crate::support::{ID_BASE, LIMITS, Machine, wait_for};

#[test]
fn one_sandbox_does_not_use_up_what_is_counted_for_each_user() {
    let Some(machine) = Machine::new("counted_for_each_user") else { return };
    let mut attacker = machine.start();
    let mut neighbour = machine.prepare(LIMITS);
    let prepared = machine.containers.prepare(2 * ID_BASE).unwrap();
    let started = machine.try_start_from(prepared, &neighbour, |_| ());
    neighbour.started = Some(started.unwrap());

    // Every inotify instance that it gets, held.
    let hoard = "perl -e '$n++ while syscall(294, 0) >= 0; print $n; close STDOUT; sleep 600'";
    attacker.user(&format!("ulimit -Sn 1000; {hoard} > /tmp/taken 2>&1 &")).ok();
    wait_for("the hoard", || !attacker.user("cat /tmp/taken").ok().is_empty());
    let taken: u32 = attacker.user("cat /tmp/taken").ok().parse().unwrap();
    assert!(taken > 1, "{taken}");

    neighbour.user("perl -e 'exit(syscall(294, 0) < 0)'").ok();
    inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    machine.kill(&mut attacker);
    machine.kill(&mut neighbour);
}

/// Its cost would be paid by threads of the kernel, beyond the guest's CPU limit.
#[test]
fn nothing_is_compressed_on_a_guests_demand() {
    let Some(machine) = Machine::new("compressed_on_demand") else { return };
    let mut sandbox = machine.start();
    let demand = r#"188, "/workspace/f", "btrfs.compression", "zstd", 4, 0"#;
    let demand = format!("perl -e '@a = ({demand}); print syscall(shift @a, @a) < 0 ? $!+0 : 0'");
    let refused = sandbox.user(&format!("touch /workspace/f; {demand}")).ok();
    assert_eq!(refused, libc::EINVAL.to_string());
    machine.kill(&mut sandbox);
}
