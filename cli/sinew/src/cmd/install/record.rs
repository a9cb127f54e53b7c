//! What was installed, written down for later runs: an upgrade removes what a new version no longer
//! has, and an uninstallation removes exactly what was made.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::target::Target;

/// A hundred paths have a few kilobytes.
const RECORD_BYTES_MAX: u64 = 1 << 20;
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    pub program_version: String,
    pub prefix: PathBuf,
    pub data: PathBuf,
    pub user: String,
    /// Whether the user was made by us, and so may be removed by us.
    pub made_user: bool,
    pub files: BTreeSet<PathBuf>,
    /// Directories that were not there before.
    pub directories: BTreeSet<PathBuf>,
    /// The configuration as it was first written: one that nobody changed since may go.
    pub config: Option<String>,
}

// === impl Record ===

impl Record {
    pub fn new(target: &Target) -> Self {
        Self {
            format: FORMAT,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            prefix: target.prefix.clone(),
            data: target.data.clone(),
            user: target.user.clone(),
            made_user: false,
            files: BTreeSet::new(),
            directories: BTreeSet::new(),
            config: None,
        }
    }

    /// `None` where nothing was installed.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(|| format!("open {}", path.display()))?,
        };
        let metadata = file.metadata()?;
        if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
            bail!(
                "{} can be changed by others than root, and it says what is removed: look into it, \
                 then `chown root` and `chmod go-w` it",
                path.display()
            );
        }
        let mut text = String::new();
        file.take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
        let record: Self = serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged: move it away and install again", path.display())
        })?;
        if record.format > FORMAT {
            let version = &record.program_version;
            bail!("sinew {version} was installed here, which is newer: use that program");
        }
        record.check()?;
        Ok(Some(record))
    }

    pub fn text(&self) -> Vec<u8> {
        // Strings and lists of them always become JSON.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// What is written here is removed as root.
    fn check(&self) -> anyhow::Result<()> {
        let target = Target {
            prefix: self.prefix.clone(),
            data: self.data.clone(),
            user: self.user.clone(),
            destdir: None,
        };
        if let Err(error) = target.checked() {
            bail!("what was installed: {error}");
        }
        let is_straight = |path: &PathBuf| {
            path.is_absolute() && path.components().all(|part| part.as_os_str() != "..")
        };
        match self.files.iter().chain(&self.directories).find(|path| !is_straight(path)) {
            Some(path) => bail!("what was installed: {} is no path of ours", path.display()),
            None => Ok(()),
        }
    }
}
