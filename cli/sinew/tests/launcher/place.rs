//! One launcher of the real binary on a data directory of its own, and what it occupies.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base_types::{ByteSize, ProfileName};
use sandbox_api::contract::Place;
use sandbox_api::{Limits, SandboxDriver};
use sandbox_image::{ImageStore, MINIMAL_IMAGE};
use sandbox_launcher::{LauncherDriver, Layout};

/// The first start formats a pool, on a machine that builds something else meanwhile.
const READY_WITHIN: Duration = Duration::from_secs(60);

const RANGES: &str = "/run/sinew/idmap";
/// What holds the ranges of ids that no sandbox has yet, below the data directory.
const AHEAD_HOLDER: &str = "launcher/sandboxes/ahead";

/// Who `serve` would be.
pub const SERVE_UID: u32 = 64_500;

pub const CONFIG: &str = r#"
[[profile]]
name = "small"
cpus = 1.0
memory = "96MiB"
pids = 48
disk = "64MiB"
tools_as = "root"
env = { FROM_PROFILE = "here" }

[[profile.match]]
metadata = { shape = "small" }

[pool]
initial = "1GiB"
step = "256MiB"
max = "8GiB"
reserve = "64MiB"
"#;

pub struct Launcher {
    pub dir: tempfile::TempDir,
    images: PathBuf,
    process: Option<Child>,
}

/// What a launcher has made ahead of starts, by the marks that it leaves outside of the process.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    pub groups: BTreeSet<PathBuf>,
    pub volumes: BTreeSet<PathBuf>,
    pub ranges: BTreeSet<PathBuf>,
}

/// So many starts are prepared where the configuration does not say it otherwise.
pub const AHEAD: usize = 8;
pub const NONE_AHEAD: &str = "\n[limits]\nstarts_ahead = 0\n";

impl Launcher {
    /// `None`, with the reason on stderr, where this machine cannot run one.
    pub async fn start(test: &str) -> Option<Self> {
        Self::start_with(test, CONFIG).await
    }

    pub async fn start_with(test: &str, config: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP {test}: needs root");
            return None;
        }
        let images = images(test)?;
        // Many directories deep and in one that only root may enter, as a clone may be.
        let dir = tempfile::Builder::new().prefix("sinew-launcher-").tempdir().unwrap();
        fs::write(dir.path().join("sinew.toml"), config).unwrap();
        let mut launcher = Self { dir, images, process: None };
        launcher.launch();
        Some(launcher)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("sinew.toml")
    }

    pub fn images(&self) -> &Path {
        &self.images
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Starts the process and waits until it listens.
    pub fn launch(&mut self) {
        let log = self.dir.path().join("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sinew"))
            .arg("launcher")
            .arg("--data")
            .arg(self.data())
            .arg("--images")
            .arg(&self.images)
            .arg("--config")
            .arg(self.config())
            .args(["--user", &SERVE_UID.to_string()])
            .env("SINEW_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        let end = Instant::now() + READY_WITHIN;
        while Layout::at(&self.data()).connect().is_err() {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the launcher ended: {}", self.log());
            assert!(Instant::now() < end, "the launcher does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// As a service manager would.
    pub fn terminate(&mut self) {
        let mut process = self.process.take().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(process.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(process.wait().unwrap().success(), "{}", self.log());
    }

    /// Waits for an end that was asked for.
    pub fn wait(&mut self) {
        let mut process = self.process.take().expect("it runs");
        assert!(process.wait().unwrap().success(), "{}", self.log());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn pool_mount(&self) -> PathBuf {
        self.data().join("launcher/pool/mnt")
    }

    /// This installation's directories in the control group hierarchies.
    pub fn groups(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        groups(Path::new("/sys/fs/cgroup"), &self.installation(), &mut found);
        found
    }

    /// What is made ahead, once that is complete.
    pub fn ahead(&self) -> Ahead {
        let config = fs::read_to_string(self.config()).unwrap();
        let wanted = if config.contains(NONE_AHEAD) { 0 } else { AHEAD };
        let end = Instant::now() + READY_WITHIN;
        loop {
            let ahead = self.ahead_now();
            if ahead.volumes.len() == wanted && ahead.ranges.len() == wanted {
                // A range is taken a moment before the rest of its part is there, and given away
                // a moment after: so it is looked at twice.
                let again = self.ahead_now();
                if again == ahead && ahead.groups.is_empty() == (wanted == 0) {
                    return ahead;
                }
            }
            assert!(Instant::now() < end, "{ahead:#?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn ahead_now(&self) -> Ahead {
        let mut ahead = Ahead::default();
        let mut all = BTreeSet::new();
        groups(Path::new("/sys/fs/cgroup"), &self.installation(), &mut all);
        let part = |group: &&String| group.contains("/part_");
        ahead.groups.extend(
            all.iter().filter(part).map(|group| PathBuf::from(group.trim_start_matches("group "))),
        );
        let unfinished = self.data().join("launcher/pool/mnt/unfinished");
        ahead.volumes.extend(entries(&unfinished));
        let is_ahead = |range: &PathBuf| {
            let holder = fs::read_to_string(range).unwrap_or_default();
            Path::new(&holder) == self.data().canonicalize().unwrap().join(AHEAD_HOLDER)
        };
        ahead.ranges.extend(entries(Path::new(RANGES)).filter(is_ahead));
        ahead
    }

    fn installation(&self) -> String {
        Layout::at(&self.data().canonicalize().unwrap()).installation()
    }
}

impl Drop for Launcher {
    /// Ends what it made, whatever became of the test.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the launcher's log:\n{}", self.log());
        }
        if self.process.is_none() && self.data().join("launcher/pool/mnt/volumes").exists() {
            self.launch();
        }
        let Some(mut process) = self.process.take() else { return };
        let data = self.data();
        let ask = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let driver = LauncherDriver::observe(&data).await.map_err(io::Error::other)?;
                let leave = sandbox_launcher::wire::Leave::Nothing;
                driver.shutdown(leave).await.map_err(io::Error::other)
            })
        };
        // A runtime of its own thread: this one may be inside another.
        if let Err(error) = std::thread::spawn(ask).join().expect("no panic") {
            eprintln!("the launcher was not shut down: {error}");
            process.kill().unwrap();
        }
        process.wait().unwrap();
    }
}

#[async_trait]
impl Place for Launcher {
    async fn driver(&self) -> Arc<dyn SandboxDriver> {
        Arc::new(LauncherDriver::connect(&self.data()).await.expect("the launcher answers"))
    }

    fn image(&self) -> &str {
        MINIMAL_IMAGE
    }

    fn profile(&self) -> ProfileName {
        ProfileName::from("small")
    }

    fn limits(&self) -> Limits {
        Limits { cpu_millis: 1000, memory: ByteSize::mib(96), pids: 48, disk: ByteSize::mib(64) }
    }

    fn host_sockets(&self) -> Vec<PathBuf> {
        vec![self.data().canonicalize().unwrap().join("launcher/launcher.sock")]
    }

    async fn footprint(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        // These come and go; how many there are stays.
        let Ahead { groups: ahead_groups, volumes, ranges } = self.ahead();
        found.insert(format!("{} volumes and {} ranges ahead", volumes.len(), ranges.len()));
        found.insert(format!("{} groups ahead", ahead_groups.len()));
        let data = self.data().canonicalize().unwrap();
        mounts(&data, &mut found);
        groups(Path::new("/sys/fs/cgroup"), &self.installation(), &mut found);
        found.retain(|group| !group.contains("/part_"));
        descriptors(self.pid(), &mut found);
        for directory in ["launcher/sandboxes", "launcher/agents", "launcher/pool/mnt/volumes"] {
            names(&data.join(directory), &mut found);
        }
        for range in entries(Path::new(RANGES)) {
            let holder = fs::read_to_string(&range).unwrap_or_default();
            if Path::new(&holder).starts_with(&data) && !holder.ends_with(AHEAD_HOLDER) {
                found.insert(format!("range {}", range.display()));
            }
        }
        children(self.pid(), &mut found);
        found
    }
}

fn mounts(data: &Path, found: &mut BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = |line: &&str| line.contains(&data.display().to_string());
    // The first field is a number that a repeated mount changes.
    found.extend(
        mounts
            .lines()
            .filter(ours)
            .filter_map(|line| line.split_once(' '))
            .map(|(_, rest)| format!("mount {rest}")),
    );
}

/// Control groups of this installation, in every hierarchy.
fn groups(directory: &Path, installation: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.path().to_string_lossy().contains(installation) {
                found.insert(format!("group {}", entry.path().display()));
            }
            groups(&entry.path(), installation, found);
        }
    }
}

/// Namespaces, mounts, pidfds and event counters that the launcher holds.
fn descriptors(pid: u32, found: &mut BTreeSet<String>) {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        // A connection comes and goes with its client.
        let kind = target.split('[').next().unwrap_or_default().to_owned();
        if kind != "socket:" {
            *counts.entry(kind).or_default() += 1;
        }
    }
    found.extend(counts.into_iter().map(|(kind, count)| format!("descriptor {kind} × {count}")));
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path())
}

fn names(directory: &Path, found: &mut BTreeSet<String>) {
    let entries = fs::read_dir(directory).unwrap();
    found.extend(entries.flatten().map(|entry| format!("file {}", entry.path().display())));
}

/// Processes whose parent the launcher is, zombies included.
fn children(pid: u32, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(2));
        if parent == Some(&pid.to_string()) {
            found.insert(format!("process {}", entry.path().display()));
        }
    }
}

/// The shared cache with its smallest image, which is built where it is missing.
fn images(test: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("SINEW_IMAGES");
    let dir = shared.map_or_else(|| "/var/cache/sinew/images".into(), PathBuf::from);
    let store = ImageStore::open(&dir).unwrap();
    if store.get(MINIMAL_IMAGE).is_ok() {
        return Some(dir);
    }
    match store.build_minimal() {
        Ok(_) => Some(dir),
        Err(error) => {
            eprintln!("SKIP {test}: no image: {}", base_types::Chain(&error));
            None
        }
    }
}
