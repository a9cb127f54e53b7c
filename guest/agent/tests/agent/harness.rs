//! Starts the static agent under `unshare`, with a work directory and a directory of outputs that
//! belong to one test.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use guest_protocol::boot::{BootArgs, ToolsAs};
use guest_protocol::{
    Block, CallId, CallSpec, CallState, ExecSpec, Exit, FileOp, FileSpec, GuestClient, Note,
    Outcome, OutputLimits, Root, RunAs, ShellSpec, Work,
};

const TOOL_UID: u32 = 1000;

pub struct Sandbox {
    pub directory: tempfile::TempDir,
    pub client: GuestClient,
    init: Child,
    socket: PathBuf,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `unshare --kill-child` takes the whole namespace with it.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// Why the agent cannot be started here as PID 1, if it cannot.
fn obstacle() -> Option<&'static str> {
    static OBSTACLE: OnceLock<Option<&'static str>> = OnceLock::new();
    *OBSTACLE.get_or_init(|| {
        if !Path::new("/bin/bash").exists() {
            return Some("no /bin/bash");
        }
        let unshared = Command::new("unshare")
            .args(["--pid", "--fork", "--mount", "--mount-proc", "true"])
            .stderr(Stdio::null())
            .status();
        match unshared {
            Ok(status) if status.success() => None,
            _ => Some("cannot make a PID namespace (needs root and util-linux)"),
        }
    })
}

/// The static agent as an executable file.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("sinew-agent").tempdir().unwrap().keep();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        let path = directory.join("sinew-guest-agent");
        fs::write(&path, guest_embed::AGENT).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    })
}

/// A started sandbox, or `None` with a loud reason.
pub async fn sandbox(test: &str) -> Option<Sandbox> {
    sandbox_as(test, ToolsAs::User).await
}

pub async fn sandbox_as(test: &str, tools_as: ToolsAs) -> Option<Sandbox> {
    sandbox_after(test, tools_as, ":").await
}

/// `prepare` is run by `bash` in the sandbox's mount namespace, before the agent.
pub async fn sandbox_after(test: &str, tools_as: ToolsAs, prepare: &str) -> Option<Sandbox> {
    sandbox_with(test, prepare, |boot| boot.tools_as = tools_as).await
}

pub async fn sandbox_with(
    test: &str,
    prepare: &str,
    change: impl FnOnce(&mut BootArgs),
) -> Option<Sandbox> {
    if let Some(reason) = obstacle() {
        eprintln!("SKIP {test}: {reason}");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    for (name, owned) in [("work", true), ("home", true), ("out", false)] {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        if owned {
            chown(&path, Some(TOOL_UID), Some(TOOL_UID)).unwrap();
        }
    }
    let socket = directory.path().join("agent.sock");
    let init = start_agent(directory.path(), &socket, prepare, change);
    let client = connect(&socket).await;
    Some(Sandbox { directory, client, init, socket })
}

fn start_agent(
    directory: &Path,
    socket: &Path,
    prepare: &str,
    change: impl FnOnce(&mut BootArgs),
) -> Child {
    let listener: OwnedFd = UnixListener::bind(socket).unwrap().into();
    let outputs: OwnedFd = File::open(directory.join("out")).unwrap().into();
    let mut env = tempfile::tempfile_in(directory).unwrap();
    env.write_all(b"PROFILE_VAR=from the profile\0ANTHROPIC_KEY=secret\0").unwrap();
    std::io::Seek::rewind(&mut env).unwrap();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let mut boot = BootArgs::new(100, 101, 5);
    boot.env_fd = Some(102);
    boot.workdir = path("work");
    boot.output_path = path("out");
    boot.home = path("home");
    change(&mut boot);
    let inherited =
        [(listener.as_raw_fd(), 100), (outputs.as_raw_fd(), 101), (env.as_raw_fd(), 102)];
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"])
        .args(["bash", "-c", &format!("{prepare}; exec \"$@\""), "bash"])
        .arg(binary())
        .args(boot.to_args())
        .env_clear()
        .stdin(Stdio::null());
    // SAFETY: between fork and exec only dup2 and prctl are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in inherited {
                if libc::dup2(from, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            // A test that is cut off leaves nothing behind.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

async fn connect(socket: &Path) -> GuestClient {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (client, driver) = GuestClient::connect(stream, "test").await.unwrap();
    tokio::spawn(driver);
    client
}

impl Sandbox {
    pub async fn reconnect(&self) -> GuestClient {
        connect(&self.socket).await
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn work(&self, name: &str) -> PathBuf {
        self.path("work").join(name)
    }

    /// A file of the tool's user.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work(name);
        let parent = path.parent().unwrap();
        fs::create_dir_all(parent).unwrap();
        fs::write(&path, content).unwrap();
        for made in [parent, &path] {
            chown(made, Some(TOOL_UID), Some(TOOL_UID)).unwrap();
        }
        path
    }

    /// Runs to the end, with its ack.
    pub async fn run(&self, spec: &CallSpec) -> Outcome {
        let id = CallId::generate();
        self.client.start(&id, spec).await.unwrap();
        let outcome = self.client.wait(&id).await.unwrap();
        self.client.ack(&id).await.unwrap();
        outcome
    }

    pub async fn bash(&self, command: &str) -> Outcome {
        self.run(&shell(command)).await
    }

    pub async fn start(&self, spec: &CallSpec) -> CallId {
        let id = CallId::generate();
        let state = self.client.start(&id, spec).await.unwrap();
        assert!(matches!(state, CallState::Running { .. }), "{state:?}");
        id
    }

    /// Roots: the work directory, and the outputs read-only.
    pub async fn file(&self, op: FileOp) -> Outcome {
        let root = |name: &str, writable| Root {
            path: self.path(name).to_str().unwrap().to_owned(),
            writable,
        };
        let roots = vec![root("work", true), root("out", false)];
        self.run(&CallSpec {
            timeout: Duration::from_secs(20),
            limits: OutputLimits { head_bytes: 400_000, tail_bytes: 0, spool_bytes: 64 << 20 },
            work: Work::File(FileSpec { in_workdir: false, roots, op }),
        })
        .await
    }

    /// What a file tool answered, if it did not refuse.
    pub async fn file_ok(&self, op: FileOp) -> String {
        let outcome = self.file(op).await;
        assert_eq!(outcome.exit, Exit::Code(0), "{}", text(&outcome));
        assert_eq!(outcome.block, Block::Text);
        text(&outcome)
    }

    /// What a file tool refused with.
    pub async fn file_refused(&self, op: FileOp) -> String {
        let outcome = self.file(op).await;
        assert_eq!(outcome.exit, Exit::Code(1), "{}", text(&outcome));
        text(&outcome)
    }
}

pub fn shell(command: &str) -> CallSpec {
    shell_for(command, Duration::from_secs(20))
}

pub fn shell_for(command: &str, timeout: Duration) -> CallSpec {
    let work = Work::Shell(ShellSpec::Command(command.to_owned()));
    CallSpec { timeout, limits: OutputLimits::default(), work }
}

pub fn exec(argv: &[&str]) -> CallSpec {
    exec_with(argv, |_| {})
}

pub fn exec_with(argv: &[&str], change: impl FnOnce(&mut ExecSpec)) -> CallSpec {
    let mut spec = ExecSpec {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        run_as: RunAs::Tool,
        stdin: false,
        pty: None,
    };
    change(&mut spec);
    let timeout = Duration::from_secs(20);
    CallSpec { timeout, limits: OutputLimits::default(), work: Work::Exec(spec) }
}

/// Head and tail, as text.
pub fn text(outcome: &Outcome) -> String {
    let bytes = [outcome.head.as_slice(), outcome.tail.as_slice()].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[track_caller]
pub fn assert_ok(outcome: &Outcome, want: &str) {
    assert_eq!((text(outcome).as_str(), &outcome.exit), (want, &Exit::Code(0)));
}

pub fn has_note(outcome: &Outcome, wanted: impl Fn(&Note) -> bool) -> bool {
    outcome.notes.iter().any(wanted)
}

/// Waits until `check` holds; the deadline is for a failing test only.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waited).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The output alone; how the command ended is not the point.
#[track_caller]
pub fn assert_text(outcome: &Outcome, want: &str) {
    assert_eq!(text(outcome), want, "{outcome:?}");
}

/// Output with the line numbers of bash taken out: they count on from call to call.
pub fn unnumbered(outcome: &Outcome) -> String {
    let text = text(outcome);
    let mut pieces = text.split("line ");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |before, piece| {
        before + "line " + piece.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}
