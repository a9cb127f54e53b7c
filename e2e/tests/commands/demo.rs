//! `sinew demo`: it does what it shows, and nothing is left of it, however it ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::{can_run_sandboxes, sinew_binary};

struct Demo {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    dir: PathBuf,
}

impl Demo {
    /// Starts it, and reads where it works.
    fn start(images: &Path) -> Self {
        let mut child = Command::new(sinew_binary())
            .args(["demo", "--images"])
            .arg(images)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let dir = first.strip_prefix("Working in ").and_then(|rest| rest.split(' ').next());
        let dir = PathBuf::from(dir.unwrap_or_else(|| panic!("{first}")));
        assert!(dir.is_dir(), "{}", dir.display());
        Self { child, lines, dir }
    }

    fn read_until(&mut self, wanted: &str) {
        loop {
            let line =
                self.lines.next().unwrap_or_else(|| panic!("no line with {wanted}")).unwrap();
            if line.contains(wanted) {
                return;
            }
        }
    }

    /// Reads the rest; returns the last line and whether it ended well.
    fn end(mut self) -> (String, bool) {
        let last = self.lines.by_ref().map(Result::unwrap).last().unwrap_or_default();
        let status = self.child.wait().unwrap();
        nothing_is_left(&self.dir);
        (last, status.success())
    }
}

/// No file, no mount, no process that knows the directory.
fn nothing_is_left(dir: &Path) {
    let name = dir.to_str().unwrap();
    assert!(!dir.exists(), "{name} is left");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(name), "{mounts}");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        assert!(!arguments.contains(name), "left running: {arguments}");
    }
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    for device in devices {
        let behind = std::fs::read_to_string(device.path().join("loop/backing_file"));
        assert!(!behind.unwrap_or_default().contains(name), "{:?} is left", device.path());
    }
}

#[test]
fn the_demo_ends_well_and_leaves_nothing() {
    let Some(images) = can_run_sandboxes("the_demo_ends_well_and_leaves_nothing") else { return };
    let mut demo = Demo::start(&images);
    demo.read_until("SIGKILL to serve");
    demo.read_until("every number from 1 to 20 once");
    assert_eq!(demo.end(), ("demo: ok".to_owned(), true));
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let Some(images) = can_run_sandboxes("an_interrupted_demo_leaves_nothing") else { return };
    let mut demo = Demo::start(&images);
    demo.read_until("Scene 1");
    demo.read_until(" bash ");
    kill(Pid::from_raw(demo.child.id() as i32), Signal::SIGINT).unwrap();
    let (last, well) = demo.end();
    assert!(!well && last.starts_with("Cleaning up"), "{last}");
}
