//! A machine of its own to install on: systemd as PID 1 over this host's system, in namespaces,
//! with nothing of ours in it but the binary.
//!
//! **Invariant:** what happens in it changes nothing of the host: its files are copies on write, its
//! processes end with it, its network is loopback.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempDir};

use crate::binary::sinew_binary;
use crate::skip::{can_run_sandboxes, skip};

const SCRIPT: &str = include_str!("machine.sh");
const SYSTEMD: &str = "/lib/systemd/systemd";
/// Where the binary is, as if somebody had just brought it.
pub const BINARY_IN_MACHINE: &str = "/root/sinew";
/// Booting takes a second or two; a busy host takes its time.
const BOOT_WAIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Processes of a machine that was killed are gone within milliseconds; removing takes as long.
const REMOVE_WAIT: Duration = Duration::from_secs(20);

pub struct Machine {
    dir: TempDir,
    name: String,
    unshare: Child,
    init: u32,
}

// === impl Machine ===

impl Machine {
    /// Boots one, or says why `test` is skipped.
    ///
    /// # Panics
    /// When this host could run one and it does not boot.
    pub fn boot(test: &str) -> Option<Self> {
        let images = can_run_sandboxes(test)?;
        if !Path::new(SYSTEMD).exists() {
            skip(test, "no systemd on this machine: install it with `scripts/setup.sh test`");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("sinew-machine-").tempdir_in("/var/tmp").unwrap();
        let name = dir.path().file_name().and_then(OsStr::to_str).unwrap().to_owned();
        let inside = dir.path().join("machine");
        fs::create_dir(&inside).unwrap();
        let log = File::create(dir.path().join("boot.log")).unwrap();
        let mut script = NamedTempFile::new_in(dir.path()).unwrap();
        script.write_all(SCRIPT.as_bytes()).unwrap();
        let unshare = Command::new("bash")
            .arg(script.path())
            .args([inside.as_os_str(), name.as_ref(), images.as_os_str()])
            .arg(sinew_binary())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut machine = Self { dir, name, unshare, init: 0 };
        machine.wait_for_boot();
        Some(machine)
    }

    /// A command that runs in the machine, as root, in its home directory.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]);
        command.args([
            "--wdns=/root",
            "--",
            "env",
            "-i",
            "HOME=/root",
            "LANG=C.UTF-8",
            "TERM=dumb",
        ]);
        command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.arg(program).stdin(Stdio::null());
        command
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program).args(args).output().unwrap()
    }

    /// Its network, for a thread of ours that is to connect to what listens in it.
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.init))
    }

    /// Everything there is to read about what went wrong.
    pub fn logs(&self) -> String {
        let units = "--unit=sinew*";
        let journal = self.run("journalctl", &["--no-pager", "--lines=100", units]);
        let boot = fs::read_to_string(self.dir.path().join("boot.log")).unwrap_or_default();
        format!(
            "--- boot ---\n{boot}\n--- journal ---\n{}",
            String::from_utf8_lossy(&journal.stdout)
        )
    }

    fn wait_for_boot(&mut self) {
        let until = Instant::now() + BOOT_WAIT;
        loop {
            if let Some(status) = self.unshare.try_wait().unwrap() {
                panic!("the machine ended ({status}):\n{}", self.boot_log());
            }
            if let Some(init) = systemd_of(self.unshare.id()) {
                self.init = init;
                let active = self.run("systemctl", &["is-active", "multi-user.target"]);
                if active.stdout.starts_with(b"active") {
                    return;
                }
            }
            assert!(Instant::now() < until, "the machine does not boot:\n{}", self.boot_log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn boot_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("boot.log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    /// It must not panic: it may run in a panic.
    fn drop(&mut self) {
        // Its child, the machine's first process, is killed with it, and everything else with that.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        detach_loop_devices(self.dir.path());
        let until = Instant::now() + REMOVE_WAIT;
        while !remove_cgroups(&self.name) {
            if Instant::now() > until {
                eprintln!("control groups of {} are left", self.name);
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The child of `unshare`, once it has become systemd.
fn systemd_of(unshare: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    let child: u32 = children.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "systemd").then_some(child)
}

/// What a machine that was killed left attached would keep its disk from being freed.
fn detach_loop_devices(dir: &Path) {
    let mut list = Command::new("losetup");
    list.args(["--list", "--noheadings", "-O", "NAME,BACK-FILE"]);
    let Ok(list) = list.output() else { return };
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        let Some((device, file)) = line.trim().split_once(char::is_whitespace) else { continue };
        if file.contains(dir.to_string_lossy().as_ref()) {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

/// Whether nothing is left.
fn remove_cgroups(name: &str) -> bool {
    let root = Path::new("/sys/fs/cgroup");
    let mut roots = vec![root.join(name)];
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
    roots.extend(hierarchies.map(|hierarchy| hierarchy.path().join(name)));
    roots.into_iter().filter(|root| root.is_dir()).all(remove_tree)
}

fn remove_tree(group: PathBuf) -> bool {
    let inner = fs::read_dir(&group).into_iter().flatten().flatten();
    for group in inner.map(|entry| entry.path()).filter(|path| path.is_dir()) {
        remove_tree(group);
    }
    // It cannot be removed while one below it is there.
    fs::remove_dir(&group).is_ok()
}
