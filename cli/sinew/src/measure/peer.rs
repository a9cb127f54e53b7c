//! What others need for the same, where they are installed: `runc` over the same image, and the
//! official Python worker at the same brain.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::sandboxes::PROGRAM;
use crate::cmd::brain::BrainReady;

/// One container of `runc`, prepared but for its start.
pub struct Runc<'a> {
    bundle: &'a Path,
    started: u64,
}

impl<'a> Runc<'a> {
    /// `None` where there is no `runc`. Its default configuration, on a read-only root: the usual
    /// namespaces but the user's, and no limits.
    pub fn prepare(bundle: &'a Path, rootfs: &Path) -> anyhow::Result<Option<Self>> {
        fs::create_dir_all(bundle)?;
        let spec =
            Command::new("runc").arg("spec").current_dir(bundle).stderr(Stdio::null()).status();
        if !spec.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let path = bundle.join("config.json");
        let text = fs::read_to_string(&path).context("read runc's configuration")?;
        let mut config: Value = serde_json::from_str(&text).context("read runc's configuration")?;
        config["process"]["args"] = Value::from(vec![PROGRAM]);
        config["process"]["terminal"] = Value::from(false);
        config["root"]["path"] = Value::from(rootfs.to_string_lossy());
        config["root"]["readonly"] = Value::from(true);
        fs::write(&path, config.to_string()).context("write runc's configuration")?;
        Ok(Some(Self { bundle, started: 0 }))
    }

    /// Runs the program in a new container; `runc` has removed it when this returns.
    pub fn run(&mut self) -> anyhow::Result<Duration> {
        self.started += 1;
        let name = format!("sinew-bench-{}-{}", std::process::id(), self.started);
        let mut command = Command::new("runc");
        command.arg("run").arg("--bundle").arg(self.bundle).arg(name);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let status = command.status().context("start runc")?;
        if !status.success() {
            bail!("runc ended with {status}");
        }
        Ok(began.elapsed())
    }
}

/// Where the Python with the official SDK is looked for: what `scripts/python-venv.sh` makes in a
/// clone, then the system's.
const PYTHONS: [&str; 2] = [".venv/bin/python", "python3"];
const WORKER: &str = include_str!("official_worker.py");

/// A Python that has the official SDK.
pub struct OfficialWorker {
    python: &'static str,
    version: String,
}

impl OfficialWorker {
    /// `None` where there is no SDK.
    pub fn find() -> Option<Self> {
        PYTHONS.into_iter().find_map(|python| {
            let mut command = Command::new(python);
            command.args(["-c", "import anthropic; print(anthropic.__version__)"]);
            let output = command.stdin(Stdio::null()).output().ok()?;
            let version = String::from_utf8(output.stdout).ok()?.trim().to_owned();
            (output.status.success() && !version.is_empty()).then_some(Self { python, version })
        })
    }

    pub fn name(&self) -> String {
        format!("official Python worker {}, without a sandbox", self.version)
    }

    /// Starts it with nothing of this process's environment but `PATH`. It ends with the result.
    pub fn start(&self, dir: &Path, brain: &BrainReady) -> anyhow::Result<tokio::process::Child> {
        let script = dir.join("official_worker.py");
        fs::write(&script, WORKER).context("write the worker's script")?;
        let workdir = dir.join("official-worker");
        fs::create_dir_all(&workdir).context("make the worker's directory")?;
        let log = fs::File::create(dir.join("official-worker.log")).context("open its log")?;
        let mut command = tokio::process::Command::new(self.python);
        command.arg(script).arg(workdir).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("ANTHROPIC_BASE_URL", &brain.url);
        command.env("ANTHROPIC_ENVIRONMENT_ID", &brain.environment_id);
        command.env("ANTHROPIC_ENVIRONMENT_KEY", &brain.environment_key);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        command.spawn().context("start the official worker")
    }
}
