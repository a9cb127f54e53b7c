//! What others need for the same: `runc`, where it is installed, over the same image.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::sandboxes::PROGRAM;

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
