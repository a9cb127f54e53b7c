//! A development brain that a test starts, stops for a while, and ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::binary::sinew_binary;
use crate::brain::Brain;
use crate::installation::{end, pid, spawn};

/// Ended when it is dropped.
pub struct BrainProcess {
    pub brain: Brain,
    process: Child,
    dir: TempDir,
}

impl BrainProcess {
    /// Starts one with these scenarios by name, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready; its log is in the message.
    pub fn start(scenarios: &[(&'static str, String)]) -> Self {
        let dir = tempfile::Builder::new().prefix("sinew-brain-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let folder = dir.path().join("scenarios");
        fs::create_dir(&folder).unwrap();
        for (name, text) in scenarios {
            fs::write(folder.join(format!("{name}.toml")), text).unwrap();
        }
        let mut command = Command::new(sinew_binary());
        command.args(["brain", "--listen", "127.0.0.1:0", "--json", "--scenarios"]).arg(folder);
        let (process, line) = spawn(command, &dir.path().join("brain.log"));
        let brain = serde_json::from_str(&line).expect("what the brain prints");
        Self { brain, process, dir }
    }

    /// From here on it takes connections and answers nothing.
    pub fn freeze(&self) {
        kill(pid(&self.process), Signal::SIGSTOP).unwrap();
    }

    pub fn thaw(&self) {
        kill(pid(&self.process), Signal::SIGCONT).unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("brain.log")).unwrap_or_default()
    }
}

impl Drop for BrainProcess {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}
