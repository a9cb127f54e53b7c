//! Attempts from inside, as guest root, each with the exact answer it must get; and beside them
//! what must go on working.

use std::fs;

use crate::support::{Machine, Sandbox};

/// Makes one system call by number and prints its error number, or `ok`.
fn call(sandbox: &Sandbox, user: u32, arguments: &str) -> String {
    // Through an array, because perl hands the kernel no constants.
    let script =
        format!("perl -e '@a = ({arguments}); print syscall(shift @a, @a) < 0 ? $!+0 : \"ok\"'");
    sandbox.run(user, &script).ok()
}

const EPERM: &str = "1";
const ENOSYS: &str = "38";
const EPROTONOSUPPORT: &str = "93";
const EAFNOSUPPORT: &str = "97";

/// By number and arguments, as the shell's `syscall` takes them, with the error that must come.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("mount tmpfs", r#"165, "none", "/mnt", "tmpfs", 0, 0"#, EPERM),
    ("umount /proc", r#"166, "/proc", 2"#, EPERM),
    ("pivot_root", r#"155, "/", "/""#, EPERM),
    ("unshare user", "272, 0x10000000", EPERM),
    ("unshare net", "272, 0x40000000", EPERM),
    ("setns", "308, 0, 0", EPERM),
    ("clone into a user namespace", "56, 0x10000011, 0, 0, 0, 0", EPERM),
    ("clone3", r#"435, "x" x 88, 88"#, ENOSYS),
    ("bpf", r#"321, 0, "x" x 64, 64"#, EPERM),
    ("keyctl", "250, 0, 0, 0, 0, 0", EPERM),
    ("add_key", r#"248, "user", "k", "v", 1, -1"#, EPERM),
    ("request_key", r#"249, "user", "k", 0, -1"#, EPERM),
    ("userfaultfd", "323, 0", EPERM),
    ("perf_event_open", r#"298, "x" x 112, 0, -1, -1, 0"#, EPERM),
    ("io_uring_setup", r#"425, 8, "x" x 120"#, EPERM),
    ("open_by_handle_at", r#"304, 0, "x" x 64, 0"#, EPERM),
    ("fsopen", r#"430, "tmpfs", 0"#, EPERM),
    ("open_tree", r#"428, -100, "/", 1"#, EPERM),
    ("move_mount", r#"429, 0, "", 0, "", 4"#, EPERM),
    ("mount_setattr", r#"442, -100, "/", 0, "x" x 32, 32"#, EPERM),
    ("init_module", r#"175, "x", 1, """#, EPERM),
    ("kexec_load", "246, 0, 0, 0, 0", EPERM),
    ("reboot", "169, 0, 0, 0, 0", EPERM),
    ("fanotify_init", "300, 0, 0", EPERM),
    ("swapon", r#"167, "/x", 0"#, EPERM),
    ("settimeofday", "164, 0, 0", EPERM),
    ("syslog", "103, 3, 0, 0", EPERM),
    ("sethostname", r#"170, "x", 1"#, EPERM),
    ("iopl", "172, 3", EPERM),
    ("personality", "135, 0x0100000", EPERM),
    ("type into a terminal", r#"16, 0, 0x5412, "x""#, EPERM),
    ("another line discipline", r#"16, 0, 0x5423, "x" x 4"#, EPERM),
    ("io_setup", r#"206, 1, "\0" x 8"#, ENOSYS),
    ("memfd_secret", "447, 0", ENOSYS),
    ("a call of the x32 interface", "0x40000000 + 39", ENOSYS),
    ("a call that does not exist", "9999", ENOSYS),
    ("mknod of a device", r#"133, "/tmp/mem", 0020600, 0x101"#, EPERM),
    ("a vsock socket", "41, 40, 1, 0", EAFNOSUPPORT),
    ("an AF_ALG socket", "41, 38, 5, 0", EAFNOSUPPORT),
    ("a packet socket", "41, 17, 3, 0", EAFNOSUPPORT),
    ("an XDP socket", "41, 44, 3, 0", EAFNOSUPPORT),
    ("an audit socket", "41, 16, 3, 9", EPROTONOSUPPORT),
    ("a netfilter socket", "41, 16, 3, 12", EPROTONOSUPPORT),
    ("an MPTCP socket", "41, 2, 1, 262", EPROTONOSUPPORT),
    ("a raw socket", "41, 2, 3, 1", EPERM),
    ("a packet socket by its old name", "41, 2, 10, 0", EPERM),
];

/// Their neighbours, which must work: the walls are not simply everything.
#[cfg(target_arch = "x86_64")]
const ALLOWED: &[(&str, &str)] = &[
    ("a unix socket", "41, 1, 1, 0"),
    ("a TCP socket", "41, 2, 1, 0"),
    ("a UDP socket for IPv6", "41, 10, 2, 17"),
    ("a ping socket", "41, 2, 2, 1"),
    ("a route socket", "41, 16, 3, 0"),
    ("asking for the personality", "135, 0xffffffff"),
    ("sync", "162"),
    ("fsync, which is not carried out", "74, -1"),
    ("fdatasync, which is not carried out", "75, -1"),
    ("a FIFO", r#"133, "/tmp/fifo" . $$, 0010600, 0"#),
    ("inotify", "294, 0"),
    ("memfd", r#"319, "x", 0"#),
];

#[test]
#[cfg(target_arch = "x86_64")]
fn forbidden_calls_fail_as_documented() {
    let Some(machine) = Machine::new("forbidden_calls") else { return };
    let mut sandbox = machine.start();
    for (what, arguments, expected) in FORBIDDEN.iter().copied() {
        assert_eq!(call(&sandbox, 0, arguments), expected, "{what}, as root");
        assert_eq!(call(&sandbox, 1000, arguments), expected, "{what}, as user");
    }
    for (what, arguments) in ALLOWED.iter().copied() {
        assert_eq!(call(&sandbox, 0, arguments), "ok", "{what}");
    }
    machine.kill(&mut sandbox);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_32_bit_interface_does_not_exist() {
    let Some(machine) = Machine::new("the_32_bit_interface") else { return };
    let mut sandbox = machine.start();
    let program =
        r#"int main(){long r; asm volatile("int $0x80":"=a"(r):"a"(20));return (int)r==-38?7:8;}"#;
    let built = format!("cd /tmp && echo '{program}' > i.c && gcc i.c -o i && ./i");
    assert_eq!(sandbox.user(&built).status, 7);
    machine.kill(&mut sandbox);
}

#[test]
fn proc_and_mounts_give_nothing_away_and_take_nothing() {
    let Some(machine) = Machine::new("proc_and_mounts") else { return };
    let mut sandbox = machine.start();
    let refused = |command: &str, why: &str| {
        let answer = sandbox.root(command);
        assert!(answer.status != 0 && answer.output.contains(why), "{command}: {}", answer.output);
    };
    refused("echo x > /proc/sys/kernel/core_pattern", "Read-only");
    refused("echo x > /proc/sys/kernel/hostname", "Read-only");
    refused("echo 9 > /proc/sys/user/max_net_namespaces", "Read-only");
    refused("echo x > /run/sinew/output/x", "Read-only");
    refused("mv /run/sinew /run/elsewhere", "busy");
    refused("rm -r /run/sinew", "");
    refused("echo -900 > /proc/1/oom_score_adj || echo -900 > /proc/self/oom_score_adj", "");
    refused("cat /dev/mem", "No such file");
    for file in ["kcore", "kmsg", "kallsyms", "keys", "timer_list", "sysrq-trigger", "cmdline"] {
        let node = format!("test -e /proc/{file} || exit 0; stat -c %t:%T /proc/{file}");
        let node = sandbox.root(&node).ok();
        assert!(node.is_empty() || node == "1:3\n", "{file} is {node}");
    }
    for directory in ["acpi", "scsi", "bus", "irq", "fs", "driver"] {
        assert_eq!(sandbox.root(&format!("ls -A /proc/{directory} 2>/dev/null; true")).ok(), "");
    }
    let limits = sandbox.root("cat /proc/sys/user/max_*_namespaces").ok();
    assert!(limits.lines().all(|line| line == "0") && limits.lines().count() >= 7, "{limits}");
    // Nothing of the host's tree is left, and no path of it shows.
    let mounts = sandbox.root("cat /proc/self/mountinfo").ok();
    for leak in ["sinew-test", "/var/cache", "pool", machine.dir().to_str().unwrap()] {
        assert!(!mounts.contains(leak), "{leak} in {mounts}");
    }
    for wanted in ["capabilities", "CapBnd"] {
        let status = sandbox.root(&format!("grep {wanted} /proc/self/status; true")).ok();
        if let Some(bounding) = status.trim().strip_prefix("CapBnd:\t") {
            assert_eq!(bounding, "00000000800405fb");
        }
    }
    machine.kill(&mut sandbox);
}

#[test]
fn setuid_files_raise_nobody() {
    let Some(machine) = Machine::new("setuid_files") else { return };
    let mut sandbox = machine.start();
    sandbox.root("cp /usr/bin/id /usr/local/bin/suid && chmod 4755 /usr/local/bin/suid").ok();
    assert_eq!(sandbox.root("stat -c %a /usr/local/bin/suid").ok(), "4755\n");
    assert_eq!(
        sandbox.user("/usr/local/bin/suid -u; grep NoNewPrivs /proc/self/status").ok(),
        "1000\nNoNewPrivs:\t1\n"
    );
    machine.kill(&mut sandbox);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn only_the_same_user_is_debugged() {
    let Some(machine) = Machine::new("only_the_same_user") else { return };
    let mut sandbox = machine.start();
    // PTRACE_SEIZE of a sleeping process of the given user.
    let seize = |tracer: u32| {
        let answer = sandbox.run(
            tracer,
            "perl -e 'print syscall(101, 0x4206, 0+`cat /tmp/pid`, 0, 0) < 0 ? $!+0 : \"ok\"'",
        );
        answer.ok()
    };
    sandbox.user("sleep 600 > /dev/null 2>&1 & echo $! > /tmp/pid").ok();
    assert_eq!(seize(1000), "ok");
    assert_eq!(seize(0), EPERM, "root of the sandbox has no CAP_SYS_PTRACE");
    assert_eq!(seize(1001), EPERM);
    machine.kill(&mut sandbox);
}

/// The launcher is host root when it prepares a volume's next epoch, in a tree that a hostile
/// guest arranged.
#[test]
fn links_in_a_volume_lead_the_next_start_nowhere() {
    let Some(machine) = Machine::new("links_in_a_volume") else { return };
    let victim = machine.dir().join("victim");
    fs::create_dir(&victim).unwrap();
    let mut sandbox = machine.start();
    let target = victim.display();
    sandbox
        .root(&format!(
            "rm -rf /workspace /home /mnt/x && ln -s {target} /workspace && ln -s {target} /home \
             && rm -f /etc/hostname && ln -s {target}/hostname /etc/hostname \
             && rmdir /sys && ln -s / /sys; true"
        ))
        .ok();
    // The guest cannot remove mount points; on the volume itself it could have any shape.
    machine.kill(&mut sandbox);
    let upper = sandbox.volume.upper();
    for name in ["proc", "dev", "run", "tmp"] {
        let _ = fs::remove_dir_all(upper.join(name));
        std::os::unix::fs::symlink(&victim, upper.join(name)).unwrap();
    }
    fs::rename(upper.join("etc"), upper.join("etc-moved")).unwrap();
    std::os::unix::fs::symlink(&victim, upper.join("etc")).unwrap();

    machine.restart(&mut sandbox);
    sandbox.user("echo x > /workspace/f; test -e /proc/self/status; test -c /dev/null").ok();
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    machine.kill(&mut sandbox);
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
}

/// Whoever takes the agent over has its descriptors; the volume behind them must stay closed.
#[test]
fn the_output_descriptor_leads_nowhere_else() {
    let Some(machine) = Machine::new("the_output_descriptor") else { return };
    let mut sandbox = machine.start();
    // The stand-in lets its descriptors through to root.
    let up = sandbox.root("ls -a /proc/self/fd/4/ /proc/self/fd/4/.. /proc/self/fd/4/../..").ok();
    for beside in ["u", "w", "label", "boot"] {
        assert!(!up.lines().any(|line| line == beside), "{up}");
    }
    sandbox.root("echo kept > /proc/self/fd/4/x").ok();
    assert_eq!(sandbox.user("cat /run/sinew/output/x").ok(), "kept\n");
    assert_eq!(fs::read_to_string(sandbox.volume.output().join("x")).unwrap(), "kept\n");
    machine.kill(&mut sandbox);
}
