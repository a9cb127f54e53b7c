//! The table of sandboxes on disk: one small file each, replaced in one step.
//!
//! The invariant: a record says `Starting` before anything of the sandbox exists and is removed
//! after everything of it is gone. So whatever a killed launcher leaves has a record, and the next
//! one can finish what was begun.
//!
//! Records are not forced to the disk: what they describe beyond the volume does not survive the
//! machine either, and volumes say themselves whose they are.

use std::fs;
use std::io;
use std::path::PathBuf;

use base_types::{Epoch, ImageId, ProfileName, SandboxId, SessionId, TenantId, VolumeId};
use sandbox_api::Limits;
use serde::{Deserialize, Serialize};

use crate::layout::{missing_is_fine, replace};
use crate::parts::Init;

/// A record is under 2 KiB; a larger file is not one of ours.
const RECORD_BYTES_MAX: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub sandbox: SandboxId,
    pub epoch: Epoch,
    pub volume: VolumeId,
    pub image: ImageId,
    pub profile: ProfileName,
    pub session: SessionId,
    pub tenant: TenantId,
    /// The limits of this epoch, as the profile had them when it started.
    pub limits: Limits,
    /// Whether any epoch on this volume ever ran.
    pub ever_ran: bool,
    pub phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Parts of it may exist.
    Starting {
        range: IdRange,
    },
    Running {
        range: IdRange,
        init: Init,
        boot: String,
    },
    /// The epoch never began: the start failed, and may be tried again.
    Failed {
        why: String,
    },
    Stopped {
        why: String,
    },
}

/// Which range of host ids a sandbox has: the ids from `number * 0x10000` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdRange(pub u32);

#[derive(Debug)]
pub struct Table {
    dir: PathBuf,
}

/// What the table's directory held.
#[derive(Debug, Default)]
pub struct Loaded {
    pub records: Vec<Record>,
    /// Files that are not records, each with the reason; they were renamed out of the way.
    pub damaged: Vec<String>,
}

// === impl IdRange ===

impl IdRange {
    pub fn base(self) -> u32 {
        self.0 << 16
    }
}

// === impl Record ===

impl Record {
    pub fn range(&self) -> Option<IdRange> {
        match self.phase {
            Phase::Starting { range } | Phase::Running { range, .. } => Some(range),
            Phase::Failed { .. } | Phase::Stopped { .. } => None,
        }
    }
}

// === impl Table ===

impl Table {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub fn path(&self, sandbox: &SandboxId) -> PathBuf {
        self.dir.join(format!("{sandbox}.json"))
    }

    /// Beside the records, and no record: where nothing is written, but whose name says whose
    /// something is.
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn write(&self, record: &Record) -> io::Result<()> {
        replace(&self.path(&record.sandbox), &serde_json::to_vec(record)?)
    }

    pub fn remove(&self, sandbox: &SandboxId) -> io::Result<()> {
        missing_is_fine(fs::remove_file(self.path(sandbox)))
    }

    pub fn load(&self) -> io::Result<Loaded> {
        let mut loaded = Loaded::default();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => loaded.records.push(record),
                Err(why) => {
                    fs::rename(&path, path.with_extension("damaged"))?;
                    loaded.damaged.push(format!("{}: {why}", path.display()));
                }
            }
        }
        Ok(loaded)
    }
}

fn read(path: &std::path::Path) -> Result<Record, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > RECORD_BYTES_MAX {
        return Err(format!("{size} bytes are too many"));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let record: Record = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let name = path.file_stem().and_then(|stem| stem.to_str());
    let is_its_own = name == Some(record.sandbox.as_str())
        && SandboxId::parse(record.sandbox.as_str()).is_some()
        && VolumeId::parse(record.volume.as_str()).is_some();
    is_its_own.then_some(record).ok_or_else(|| "its ids are not what its name says".to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use base_types::ByteSize;

    use super::*;

    pub(crate) fn record(phase: Phase) -> Record {
        Record {
            sandbox: SandboxId::generate(),
            epoch: Epoch::FIRST,
            volume: VolumeId::generate(),
            image: "image".into(),
            profile: "default".into(),
            session: "session".into(),
            tenant: "tenant".into(),
            limits: Limits {
                cpu_millis: 1000,
                memory: ByteSize::mib(64),
                pids: 64,
                disk: ByteSize::mib(64),
            },
            ever_ran: false,
            phase,
        }
    }

    #[test]
    fn what_is_written_is_loaded_and_what_is_damaged_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::new(dir.path().to_owned());
        let good = record(Phase::Starting { range: IdRange(0x2000) });
        table.write(&good).unwrap();
        let stranger = record(Phase::Stopped { why: "stopped".into() });
        fs::write(dir.path().join("sbx_x.json"), serde_json::to_vec(&stranger).unwrap()).unwrap();
        fs::write(dir.path().join("cut.json"), b"{\"sandbox\":").unwrap();

        let loaded = table.load().unwrap();
        assert_eq!(loaded.records, vec![good.clone()]);
        assert_eq!(loaded.damaged.len(), 2, "{:?}", loaded.damaged);
        assert!(dir.path().join("cut.damaged").exists());

        table.remove(&good.sandbox).unwrap();
        table.remove(&good.sandbox).unwrap();
        assert!(table.load().unwrap().records.is_empty());
    }
}
