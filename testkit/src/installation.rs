//! One installation: data directory, brain, `serve`, launcher.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::binary::sinew_binary;
use crate::brain::Brain;
use crate::brain_process::BrainProcess;

/// On a disk, and open to be walked through: `serve` and the launcher are different users.
const PARENT: &str = "/var/tmp";
/// The first start allocates the pool of volumes; a busy machine takes its time.
const READY_WAIT: Duration = Duration::from_secs(120);
const POOL: &str =
    "[pool]\ninitial = \"512MiB\"\nstep = \"512MiB\"\nmax = \"4GiB\"\nreserve = \"64MiB\"\n";

/// What a test sets about its installation.
#[derive(Default)]
pub struct Options {
    /// Lines of `sinew.toml`, besides a small pool.
    pub config: String,
    /// Scenario files by name.
    pub scenarios: Vec<(&'static str, String)>,
}

/// Ends and removes everything when it is dropped.
pub struct Installation {
    dir: TempDir,
    images: PathBuf,
    program: PathBuf,
    pub brain: Brain,
    /// `None`: somebody else's.
    brain_process: Option<BrainProcess>,
    serve: Option<Child>,
}

impl Installation {
    /// Starts a brain and `serve`, and waits until both are ready.
    ///
    /// # Panics
    /// When one of them does not get ready; its log is in the message.
    pub fn start(images: &Path, options: Options) -> Self {
        let mut installation = Self::without_serve(images, options);
        installation.start_serve();
        installation
    }

    /// Starts the brain only.
    pub fn without_serve(images: &Path, options: Options) -> Self {
        let process = BrainProcess::start(&options.scenarios);
        let brain = process.brain.clone();
        let mut installation = Self::of_brain(images, &options.config, brain);
        installation.brain_process = Some(process);
        installation
    }

    /// Another installation for a brain that is there; without `serve`.
    pub fn of_brain(images: &Path, config: &str, brain: Brain) -> Self {
        let dir = tempfile::Builder::new().prefix("sinew-test-").tempdir_in(PARENT).unwrap();
        let open = || Permissions::from_mode(0o755);
        fs::set_permissions(dir.path(), open()).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        fs::set_permissions(dir.path().join("data"), open()).unwrap();
        fs::write(dir.path().join("sinew.toml"), format!("{config}\n{POOL}")).unwrap();
        Self {
            dir,
            images: images.to_owned(),
            program: sinew_binary(),
            brain,
            brain_process: None,
            serve: None,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// From where `serve`, and with it the launcher, are started from now on.
    pub fn use_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// The process id of the launcher.
    ///
    /// # Panics
    /// When none listens.
    pub fn launcher_pid(&self) -> u32 {
        let socket = self.data().join("launcher/launcher.sock");
        let stream = std::os::unix::net::UnixStream::connect(socket).expect("a launcher listens");
        let peer =
            nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
        peer.expect("it has an id").pid() as u32
    }

    /// Starts `serve` and waits until it is ready.
    pub fn start_serve(&mut self) {
        assert!(self.serve.is_none(), "serve runs already");
        let mut command = self.serve_command();
        command.env("ANTHROPIC_BASE_URL", &self.brain.url);
        command.env("ANTHROPIC_ENVIRONMENT_ID", &self.brain.environment_id);
        command.env("ANTHROPIC_ENVIRONMENT_KEY", &self.brain.environment_key);
        let (child, _) = spawn(command, &self.dir.path().join("serve.log"));
        self.serve = Some(child);
    }

    /// `sinew serve` of this installation, without an environment to serve.
    pub fn serve_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--data").arg(self.data());
        command.arg("--images").arg(&self.images);
        command.arg("--config").arg(self.dir.path().join("sinew.toml"));
        for inherited in ["SINEW_DATA", "SINEW_IMAGES", "SINEW_CONFIG", "SINEW_STORE_URL"] {
            command.env_remove(inherited);
        }
        command
    }

    /// The launcher of this installation, as a unit would start it.
    pub fn launcher_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["launcher", "--detached", "--data"]).arg(self.data());
        command.arg("--images").arg(&self.images);
        command.arg("--config").arg(self.dir.path().join("sinew.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// SIGKILL: no farewell of any kind. Returns when the process is gone.
    pub fn kill_serve(&mut self) {
        let mut serve = self.serve.take().expect("serve runs");
        serve.kill().unwrap();
        serve.wait().unwrap();
    }

    /// SIGTERM, and waits for the end of the drain. Returns whether it ended well.
    pub fn stop_serve(&mut self) -> bool {
        let mut serve = self.serve.take().expect("serve runs");
        kill(pid(&serve), Signal::SIGTERM).unwrap();
        serve.wait().unwrap().success()
    }

    pub fn serve_pid(&self) -> u32 {
        self.serve.as_ref().expect("serve runs").id()
    }

    /// Runs the command line against this installation.
    pub fn sinew(&self, args: &[&str]) -> Output {
        let mut command = Command::new(sinew_binary());
        command.args(args).env("SINEW_DATA", self.data()).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// The JSON that a command prints.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.sinew(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "sinew {args:?}: {}: {errors}", output.status);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("sinew {args:?}: {error}: {text}"))
    }

    /// What a process wrote to its log so far: `serve.log`, `brain.log`, or the launcher's.
    pub fn log(&self, name: &str) -> String {
        if name == "brain.log" {
            return self.brain_process.as_ref().map(BrainProcess::log).unwrap_or_default();
        }
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Installation {
    /// In the order that leaves nothing behind. It must not panic: it may run in a panic.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["serve.log", "brain.log", "data/launcher/launcher.log"] {
                eprintln!("--- {log} ---\n{}", self.log(log));
            }
        }
        if let Some(mut serve) = self.serve.take() {
            end(&mut serve);
        }
        self.brain_process = None;
        let mut teardown = Command::new(sinew_binary());
        teardown.arg("teardown").arg("--data").arg(self.data());
        match teardown.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            other => eprintln!("the installation was not taken down: {other:?}"),
        }
    }
}

pub(crate) fn end(child: &mut Child) {
    // It may have ended by itself; then there is nothing to do.
    let _ = child.kill();
    let _ = child.wait();
}

pub(crate) fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// Spawns and waits for the first line of output, which says that the process is ready.
pub(crate) fn spawn(mut command: Command, log: &Path) -> (Child, String) {
    let log_file = File::options().create(true).append(true).open(log).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        // An error reads like an end: no line.
        let _ = reader.read_line(&mut line);
        let _ = sender.send(line);
        // Whatever else it prints must not block it.
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    });
    let line = receiver.recv_timeout(READY_WAIT).unwrap_or_default();
    if line.trim().is_empty() {
        end(&mut child);
        panic!("{command:?} did not get ready:\n{}", fs::read_to_string(log).unwrap_or_default());
    }
    (child, line)
}
