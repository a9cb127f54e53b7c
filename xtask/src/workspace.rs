//! The workspace as cargo and git know it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use cargo_metadata::{Metadata, MetadataCommand};

pub struct Workspace {
    pub root: PathBuf,
    pub metadata: Metadata,
    /// Relative paths of the files that are committed, or would be.
    pub files: Vec<PathBuf>,
}

impl Workspace {
    pub fn load() -> anyhow::Result<Self> {
        let metadata = MetadataCommand::new().no_deps().exec().context("run `cargo metadata`")?;
        let root: PathBuf = metadata.workspace_root.clone().into();
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root)
            .output()
            .context("run `git ls-files`")?;
        if !output.status.success() {
            bail!("`git ls-files` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let files = String::from_utf8(output.stdout)
            .context("a file's name is not UTF-8")?
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(PathBuf::from)
            // A file that is deleted but not committed is still listed.
            .filter(|path| root.join(path).is_file())
            .collect();
        Ok(Self { root, metadata, files })
    }

    /// Every Rust file with its text.
    pub fn rust_files(&self) -> anyhow::Result<Vec<(PathBuf, String)>> {
        let rust = self.files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
        rust.map(|path| Ok((path.clone(), self.read(path)?))).collect()
    }

    pub fn read(&self, path: impl AsRef<std::path::Path>) -> anyhow::Result<String> {
        let path = path.as_ref();
        std::fs::read_to_string(self.root.join(path))
            .with_context(|| format!("read {}", path.display()))
    }
}
