//! A whole installation for a while: a temporary data directory, the development brain and
//! `serve` as processes of this same binary, and a launcher; removed without a trace.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base_config::{Overrides, PostgresUrl, Sources};
use control_server::client::ApiClient;
use rustix::process::{Pid, Signal, kill_process};
use sandbox_launcher::wire::Leave;
use sandbox_launcher::{LauncherDriver, Layout};
use store_sql::{PostgresOptions, drop_schema};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::cmd::brain::BrainReady;
use crate::exit::UsageError;
use crate::store::Journal;

/// On a disk (volumes are allocated in full), and everybody may walk through it: `serve` and the
/// launcher run as different users.
const PARENT: &str = "/var/tmp";

/// The first start allocates the pool of volumes.
const SERVE_WAIT: Duration = Duration::from_secs(120);
const BRAIN_WAIT: Duration = Duration::from_secs(20);
/// How long a process may take to leave before it is killed.
const LEAVE_WAIT: Duration = Duration::from_secs(15);
const LOG_TAIL_BYTES: u64 = 3_000;

const STORE_URL: &str = "SINEW_STORE_URL";
const STORE_SCHEMA: &str = "SINEW_STORE_SCHEMA";

/// Small volumes: what runs here is a demonstration or a benchmark.
const CONFIG: &str = "[pool]\ninitial = \"1GiB\"\nstep = \"1GiB\"\nmax = \"8GiB\"\n";

pub struct Scratch {
    dir: TempDir,
    images: PathBuf,
    brain: Option<Child>,
    serve: Option<Child>,
    database: Option<Database>,
}

/// A schema of its own in a database of the caller's.
struct Database {
    url: String,
    options: PostgresOptions,
}

impl Scratch {
    /// Makes the directory; starts nothing.
    pub fn new(purpose: &str, images: &Path) -> anyhow::Result<Self> {
        if !crate::installation::is_root() {
            bail!("`sinew {purpose}` starts real sandboxes and needs root: run it with sudo");
        }
        let dir = tempfile::Builder::new().prefix(&format!("sinew-{purpose}-")).tempdir_in(PARENT);
        let dir = dir.with_context(|| format!("make a temporary directory in {PARENT}"))?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let scratch = Self {
            dir,
            images: std::path::absolute(images)?,
            brain: None,
            serve: None,
            database: None,
        };
        fs::create_dir(scratch.data())?;
        fs::set_permissions(scratch.data(), Permissions::from_mode(0o755))?;
        scratch.configure("")?;
        Ok(scratch)
    }

    /// What is started from now on has this in its configuration.
    pub fn configure(&self, more: &str) -> anyhow::Result<()> {
        let config = self.config();
        let written = fs::write(&config, format!("{CONFIG}{more}"));
        written.with_context(|| format!("write {}", config.display()))
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn images(&self) -> &Path {
        &self.images
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("sinew.toml")
    }

    pub fn api(&self) -> ApiClient {
        ApiClient::new(&self.data())
    }

    /// Where the journal is, for people.
    pub fn journal(&self) -> String {
        match &self.database {
            Some(Database { options, .. }) => format!("{options}, schema {}", options.schema),
            None => "a SQLite file".to_owned(),
        }
    }

    /// Has the journal kept in that database, in a schema that is removed with the rest.
    pub fn keep_journal_in(&mut self, url: &str) -> anyhow::Result<()> {
        // Looked at here, because a configuration would name a variable that the caller did not
        // set; and not by the parser of flags, which would show a password that stands in it.
        PostgresUrl::parse(url)
            .map_err(|error| UsageError(format!("--store {error}: {}", error.fix())))?;
        let name = self.dir.path().file_name().unwrap_or_default().to_string_lossy();
        let schema = name.replace('-', "_").to_lowercase();
        let of_ours = [(STORE_URL.into(), url.into()), (STORE_SCHEMA.into(), schema.into())];
        let variables = std::env::vars_os().chain(of_ours);
        let overrides = Overrides {
            config: Some(self.config()),
            data: Some(self.data()),
            ..Overrides::default()
        };
        let config = base_config::load_store(&Sources::new(overrides, variables, true))?;
        if let Journal::Postgres(options) = Journal::of(&config)? {
            self.database = Some(Database { url: url.to_owned(), options });
        }
        Ok(())
    }

    /// Starts the development brain on a free port.
    pub async fn start_brain(&mut self, scenarios: Option<&Path>) -> anyhow::Result<BrainReady> {
        let mut command = self.command("brain", "brain.log")?;
        command.args(["brain", "--listen", "127.0.0.1:0", "--json"]);
        if let Some(scenarios) = scenarios {
            command.arg("--scenarios").arg(scenarios);
        }
        let (child, line) = self.spawn(command, "brain", BRAIN_WAIT).await?;
        self.brain = Some(child);
        serde_json::from_str(&line).context("read what the brain printed")
    }

    /// Starts `serve` for that brain; returns when it is ready, with how long that took.
    pub async fn start_serve(&mut self, brain: &BrainReady) -> anyhow::Result<Duration> {
        let mut command = self.command("serve", "serve.log")?;
        command.arg("serve").arg("--data").arg(self.data());
        command.arg("--images").arg(&self.images).arg("--config").arg(self.config());
        command.env("ANTHROPIC_BASE_URL", &brain.url);
        command.env("ANTHROPIC_ENVIRONMENT_ID", &brain.environment_id);
        command.env("ANTHROPIC_ENVIRONMENT_KEY", &brain.environment_key);
        match &self.database {
            Some(Database { url, options }) => {
                command.env(STORE_URL, url).env(STORE_SCHEMA, &options.schema);
            }
            // Whatever the caller's own journal is, it is none of ours.
            None => {
                for (name, _) in std::env::vars_os() {
                    if name.to_string_lossy().starts_with("SINEW_STORE_") {
                        command.env_remove(name);
                    }
                }
            }
        }
        let began = Instant::now();
        let (child, _) = self.spawn(command, "serve", SERVE_WAIT).await?;
        self.serve = Some(child);
        Ok(began.elapsed())
    }

    /// Asks `serve` to leave. Returns when it has.
    pub async fn stop_serve(&mut self) -> anyhow::Result<()> {
        leave("serve", self.serve.take()).await
    }

    /// SIGKILL, as a crash would end it. Returns when the process is gone.
    pub async fn kill_serve(&mut self) -> anyhow::Result<()> {
        let mut serve = self.serve.take().context("serve does not run")?;
        serve.kill().await.context("kill serve")
    }

    /// Ends everything that was started here and removes everything that was made, in the order
    /// that leaves nothing behind. Every step is taken even if one before it failed.
    pub async fn clean(mut self, keep: bool) -> anyhow::Result<()> {
        let serve = leave("serve", self.serve.take()).await;
        let brain = leave("brain", self.brain.take()).await;
        let launcher = end_launcher(&self.data()).await;
        let journal = match self.database.take() {
            Some(Database { options, .. }) => drop_schema(&options)
                .await
                .with_context(|| format!("remove schema {} from {options}", options.schema)),
            None => Ok(()),
        };
        if keep {
            let path = self.dir.keep();
            eprintln!("kept: {}", path.display());
            return serve.and(brain).and(launcher).and(journal);
        }
        let path = self.dir.path().to_owned();
        let removed = self.dir.close().with_context(|| format!("remove {}", path.display()));
        serve.and(brain).and(launcher).and(journal).and(removed)
    }

    /// The end of the logs, for whoever must find out why something failed.
    pub fn log_tails(&self) -> String {
        let logs = ["brain.log", "serve.log", "data/launcher/launcher.log"];
        let tail = |name: &&str| {
            let text = tail(&self.dir.path().join(name)).unwrap_or_default();
            (!text.is_empty()).then(|| format!("--- the end of {name} ---\n{text}"))
        };
        logs.iter().filter_map(tail).collect::<Vec<_>>().join("\n")
    }

    /// This binary, in a process group of its own: a Ctrl-C at the terminal is for us, and we end
    /// our children in order.
    fn command(&self, name: &str, log: &str) -> anyhow::Result<Command> {
        let log_file = File::options().create(true).append(true).open(self.dir.path().join(log));
        let log_file = log_file.with_context(|| format!("open the log of {name}"))?;
        let mut command = Command::new("/proc/self/exe");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
        command.process_group(0).kill_on_drop(true);
        for inherited in ["SINEW_DATA", "SINEW_CONFIG", "ANTHROPIC_WORKER_ID"] {
            command.env_remove(inherited);
        }
        Ok(command)
    }

    /// Spawns and waits for the first line of output, which says that the process is ready.
    async fn spawn(
        &self,
        mut command: Command,
        name: &str,
        wait: Duration,
    ) -> anyhow::Result<(Child, String)> {
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let stdout = child.stdout.take().with_context(|| format!("read from {name}"))?;
        let mut lines = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(wait, lines.next_line()).await;
        let line = match first {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => bail!("{name} ended before it was ready\n{}", self.log_tails()),
            Ok(Err(error)) => return Err(error).with_context(|| format!("read from {name}")),
            Err(_) => bail!("{name} was not ready in {} s\n{}", wait.as_secs(), self.log_tails()),
        };
        Ok((child, line))
    }
}

/// Asks a process to leave, and makes it when it does not.
async fn leave(name: &str, child: Option<Child>) -> anyhow::Result<()> {
    let Some(mut child) = child else { return Ok(()) };
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
        // It may have ended by itself; then there is nobody to tell.
        let _ = kill_process(pid, Signal::TERM);
    }
    match tokio::time::timeout(LEAVE_WAIT, child.wait()).await {
        Ok(ended) => {
            ended.with_context(|| format!("wait for {name}"))?;
        }
        Err(_) => {
            child.kill().await.with_context(|| format!("kill {name}"))?;
            bail!("{name} did not leave within {} s and was killed", LEAVE_WAIT.as_secs());
        }
    }
    Ok(())
}

/// Ends the launcher of a data directory, with everything it has. A second try meets a launcher
/// that was restarted meanwhile.
pub async fn end_launcher(data: &Path) -> anyhow::Result<()> {
    if !Layout::at(data).root().join("launcher.sock").exists() {
        return Ok(());
    }
    let launcher = LauncherDriver::observe(data).await.context("reach the launcher")?;
    launcher.shutdown(Leave::Nothing).await.context("end the launcher and its sandboxes")
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(crate::output::printable(String::from_utf8_lossy(&bytes).trim_end()))
}
