//! One sandbox on real parts: pool, image, namespaces, cgroups.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use base_types::{ByteSize, Epoch, SandboxId, VolumeId};
use guest_protocol::boot::ToolsAs;
use sandbox_api::Limits;
use sandbox_container::{
    ContainerSpec, Containers, Prepared, StartError, Started, ToolUser, sealed_agent,
};
use sandbox_volume::{Pool, PoolConfig, Volume};

const MIB: u64 = 1 << 20;
pub const ID_BASE: u32 = 10 * 65_536;
pub const LIMITS: Limits =
    Limits { cpu_millis: 1000, memory: ByteSize::mib(256), pids: 64, disk: ByteSize::mib(100) };

/// Debian's smallest variant with gcc, made once; another run finds it.
const IMAGE: &str = "/var/cache/sinew-test/rootfs";
pub const CACHE: &str = "/var/cache/sinew-test";

pub struct Machine {
    dir: tempfile::TempDir,
    pool: Option<Pool>,
    pub containers: Containers,
    agent: OwnedFd,
    pub prefix: String,
}

pub struct Sandbox {
    pub id: SandboxId,
    pub volume: Volume,
    pub socket: PathBuf,
    pub limits: Limits,
    pub started: Option<Started>,
}

pub struct Answer {
    pub output: String,
    pub status: i32,
}

impl Machine {
    /// `None`, said loudly, where the machine cannot carry containers.
    pub fn new(test: &str) -> Option<Self> {
        match stand_in_agent() {
            Ok(program) => Self::with_agent(test, &program),
            Err(reason) => {
                eprintln!("SKIP {test}: {reason}");
                None
            }
        }
    }

    pub fn with_agent(test: &str, program: &[u8]) -> Option<Self> {
        let skip = |reason: String| {
            eprintln!("SKIP {test}: {reason}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("needs root".into());
        }
        if let Err(reason) = image() {
            return skip(reason);
        }
        let dir = tempfile::tempdir().unwrap();
        let prefix = format!("sinew-test-{}", dir.path().file_name().unwrap().to_str().unwrap())
            .replace('.', "");
        let containers = match Containers::new(&prefix) {
            Ok(containers) => containers,
            Err(error) => return skip(base_types::Chain(&error).to_string()),
        };
        let config = PoolConfig {
            initial_bytes: 384 * MIB,
            step_bytes: 128 * MIB,
            max_bytes: 640 * MIB,
            reserve_bytes: 64 * MIB,
        };
        let pool = match Pool::open(&dir.path().join("pool"), config) {
            Ok(pool) => pool,
            Err(error) => return skip(base_types::Chain(&error).to_string()),
        };
        let agent = sealed_agent(program).unwrap();
        Some(Self { dir, pool: Some(pool), containers, agent, prefix })
    }

    pub fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn prepare(&self, limits: Limits) -> Sandbox {
        let id = SandboxId::generate();
        let volume = self.pool().create(&VolumeId::generate(), id.as_str(), limits.disk).unwrap();
        let socket = self.dir().join(format!("{id}.sock"));
        Sandbox { id, volume, socket, limits, started: None }
    }

    pub fn try_start(
        &self,
        sandbox: &Sandbox,
        change: impl FnOnce(&mut ContainerSpec<'_>),
    ) -> Result<Started, StartError> {
        self.try_start_from(self.containers.prepare(ID_BASE)?, sandbox, change)
    }

    pub fn try_start_from(
        &self,
        prepared: Prepared,
        sandbox: &Sandbox,
        change: impl FnOnce(&mut ContainerSpec<'_>),
    ) -> Result<Started, StartError> {
        let _ = fs::remove_file(&sandbox.socket);
        let listener = UnixListener::bind(&sandbox.socket).unwrap();
        let mut spec = ContainerSpec {
            sandbox: sandbox.id.clone(),
            epoch: Epoch::FIRST,
            image_root: IMAGE.into(),
            volume: sandbox.volume.path().into(),
            limits: sandbox.limits,
            hostname: "box".into(),
            agent: self.agent.as_fd(),
            listener: listener.as_fd(),
            tools_as: ToolsAs::User,
            tool: ToolUser::agent(),
            workdir: "/workspace".into(),
            env: vec![("GREETING".into(), "hello".into())],
            entrypoint: None,
        };
        change(&mut spec);
        self.containers.start(prepared, &spec)
    }

    pub fn start(&self) -> Sandbox {
        self.start_with(LIMITS)
    }

    pub fn start_with(&self, limits: Limits) -> Sandbox {
        let mut sandbox = self.prepare(limits);
        self.restart(&mut sandbox);
        sandbox
    }

    pub fn restart(&self, sandbox: &mut Sandbox) {
        match self.try_start(sandbox, |_| ()) {
            Ok(started) => sandbox.started = Some(started),
            Err(error) => panic!("{}", base_types::Chain(&error)),
        }
    }

    pub fn kill(&self, sandbox: &mut Sandbox) {
        let started = sandbox.started.take();
        let pidfd = started.as_ref().map(|started| started.pidfd.as_fd());
        self.containers.kill(&sandbox.id, pidfd).unwrap();
    }
}

/// Everything of this machine goes, whatever the test did; a leak fails the test.
impl Drop for Machine {
    fn drop(&mut self) {
        let swept = self.containers.sweep(&Default::default());
        let closed = self.pool.take().map(Pool::close);
        let groups = self.containers.cgroups().close();
        if !std::thread::panicking() {
            swept.unwrap();
            closed.unwrap().unwrap();
            groups.unwrap();
        }
    }
}

impl Sandbox {
    /// Runs a shell command inside as root.
    #[track_caller]
    pub fn root(&self, command: &str) -> Answer {
        self.run(0, command)
    }

    /// Runs a shell command inside as the tool's user.
    #[track_caller]
    pub fn user(&self, command: &str) -> Answer {
        self.run(1000, command)
    }

    #[track_caller]
    pub fn run(&self, user: u32, command: &str) -> Answer {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        writeln!(stream, "{user} {}", command.replace('\n', "\u{1}")).unwrap();
        let mut output = String::new();
        stream.read_to_string(&mut output).unwrap();
        let (output, status) = output.rsplit_once("\nstatus ").expect(&output);
        Answer { status: status.trim().parse().unwrap(), output: output.to_owned() }
    }
}

impl Answer {
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}", self.output);
        self.output
    }
}

#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn image() -> Result<&'static Path, String> {
    static MADE: OnceLock<Result<(), String>> = OnceLock::new();
    MADE.get_or_init(make_image).clone().map(|()| Path::new(IMAGE))
}

fn make_image() -> Result<(), String> {
    if Path::new(IMAGE).is_dir() {
        return Ok(());
    }
    let cache = Path::new(IMAGE).parent().unwrap();
    fs::create_dir_all(cache).map_err(|error| error.to_string())?;
    // Two test processes may both get here; the first rename wins.
    let unfinished = cache.join(format!("rootfs.{}", std::process::id()));
    let made = Command::new("mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--include=gcc,libc6-dev,python3-minimal"])
        .arg("bookworm")
        .arg(&unfinished)
        .output()
        .map_err(|error| format!("mmdebstrap: {error}"))?;
    let finished = made.status.success() && fs::rename(&unfinished, IMAGE).is_ok();
    if !finished {
        let _ = fs::remove_dir_all(&unfinished);
    }
    match Path::new(IMAGE).is_dir() {
        true => Ok(()),
        false => Err(format!("mmdebstrap: {}", String::from_utf8_lossy(&made.stderr))),
    }
}

/// Compiles `fixture/agent.rs` once for each test process.
pub fn stand_in_agent() -> Result<Vec<u8>, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // Of its own: the compiler's intermediate files are named after the output alone.
    let own = directory.join(format!("stand-in-agent.{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/container/fixture/agent.rs");
    let cached = directory.join("stand-in-agent");
    let age = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if age(&cached) < age(&source) {
        fs::create_dir_all(&own).map_err(|error| error.to_string())?;
        let target = own.join("agent");
        let built = Command::new("rustc")
            .args(["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-o"])
            .arg(&target)
            .arg(&source)
            .output()
            .map_err(|error| format!("rustc: {error}"))?;
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        fs::rename(&target, &cached).map_err(|error| error.to_string())?;
        fs::remove_dir_all(&own).map_err(|error| error.to_string())?;
    }
    fs::read(&cached).map_err(|error| error.to_string())
}
