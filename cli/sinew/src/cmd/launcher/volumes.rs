//! The pool of volumes as the launcher uses it.
//!
//! A volume says itself whose it is: its label is the id of its sandbox.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base_types::{ByteSize, SandboxId, VolumeId};
use sandbox_launcher::parts::{PartError, PreparedVolume, Volumes};
use sandbox_volume::{Blank, Pool, PoolConfig, PoolError, VolumeError};

use super::failed;

#[derive(Clone)]
pub struct PoolVolumes {
    /// `None` once it was closed.
    pool: Arc<RwLock<Option<Pool>>>,
}

struct Ready {
    volumes: PoolVolumes,
    blank: Blank,
}

impl PoolVolumes {
    pub fn open(dir: &Path, config: base_config::Pool) -> Result<Self, PoolError> {
        let config = PoolConfig {
            initial_bytes: config.initial.bytes(),
            step_bytes: config.step.bytes(),
            max_bytes: config.max.bytes(),
            reserve_bytes: config.reserve.bytes(),
        };
        Ok(Self { pool: Arc::new(RwLock::new(Some(Pool::open(dir, config)?))) })
    }

    fn with<T>(&self, act: impl FnOnce(&Pool) -> Result<T, PartError>) -> Result<T, PartError> {
        let pool = self.pool.read().unwrap_or_else(PoisonError::into_inner);
        match &*pool {
            Some(pool) => act(pool),
            None => Err(PartError::Failed("the pool of volumes is closed".to_owned())),
        }
    }
}

impl PreparedVolume for Ready {
    fn give(
        self: Box<Self>,
        volume: &VolumeId,
        owner: &SandboxId,
        quota: ByteSize,
    ) -> Result<(), PartError> {
        let Self { volumes, blank } = *self;
        volumes.with(|pool| {
            let made = pool.finish(blank, volume, owner.as_str(), quota);
            made.map(drop).map_err(|error| failed(&error))
        })
    }
}

impl Volumes for PoolVolumes {
    fn exists(&self, volume: &VolumeId) -> Result<bool, PartError> {
        self.with(|pool| match pool.volume(volume) {
            Ok(_) => Ok(true),
            Err(VolumeError::NotFound(_)) => Ok(false),
            Err(error) => Err(failed(&error)),
        })
    }

    fn prepare(&self) -> Result<Box<dyn PreparedVolume>, PartError> {
        let made = |pool: &Pool| {
            pool.blank().map_err(|error| PartError::Failed(format!("make a volume: {error}")))
        };
        Ok(Box::new(Ready { blank: self.with(made)?, volumes: self.clone() }))
    }

    fn open(&self, volume: &VolumeId, quota: ByteSize) -> Result<PathBuf, PartError> {
        self.with(|pool| {
            let readied = pool.make_room(volume, quota).map_err(|error| failed(&error))?;
            Ok(readied.path().to_owned())
        })
    }

    fn opened(&self, volume: &VolumeId, quota: ByteSize) -> Result<(), PartError> {
        self.with(|pool| pool.set_quota(volume, quota).map_err(|error| failed(&error)))
    }

    fn destroy(&self, volume: &VolumeId) -> Result<(), PartError> {
        self.with(|pool| pool.destroy(volume).map_err(|error| failed(&error)))
    }

    fn used(&self, volume: &VolumeId) -> Result<Option<u64>, PartError> {
        self.with(|pool| match pool.volume_usage(volume) {
            Ok(usage) => Ok(Some(usage.used_bytes)),
            Err(VolumeError::NotFound(_)) => Ok(None),
            Err(error) => Err(failed(&error)),
        })
    }

    fn list(&self) -> Result<Vec<VolumeId>, PartError> {
        self.with(|pool| {
            pool.list().map_err(|error| PartError::Failed(format!("list the volumes: {error}")))
        })
    }

    fn owner(&self, volume: &VolumeId) -> Option<SandboxId> {
        let label = |pool: &Pool| pool.volume(volume).ok()?.label().ok();
        self.with(|pool| Ok(label(pool))).ok()?.and_then(|label| SandboxId::parse(&label))
    }

    fn tend(&self, thorough: bool) -> Result<(), PartError> {
        self.with(|pool| {
            let tended = if thorough { pool.maintain() } else { pool.grow_if_needed() };
            tended.map(drop).map_err(|error| failed(&error))
        })
    }

    fn close(&self) -> Result<(), PartError> {
        let pool = self.pool.write().unwrap_or_else(PoisonError::into_inner).take();
        pool.map_or(Ok(()), |pool| pool.close().map_err(|error| failed(&error)))
    }
}
