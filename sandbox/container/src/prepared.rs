//! What every start needs and no sandbox has yet: a network namespace, the id maps of its two
//! layers, its cgroups.
//!
//! It is made ahead or at the moment of the start, by the same code, and serves one start: a start
//! takes the value, and nothing gives one back. So nothing of one sandbox can reach the next
//! through it. Dropped unused, it is gone from the machine; one that a killed process left holds
//! nothing but empty cgroups, which a sweep removes.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use base_types::{PartId, SandboxId};
use sandbox_api::Limits;

use crate::cgroup::Cgroups;
use crate::error::{StartError, system};
use crate::idmap::Maps;
use crate::network::{self, NetworkNamespace};
use crate::spec::ID_RANGE;
use crate::start::Containers;

/// Bound to a range of ids: namespace and maps name it.
pub struct Prepared {
    pub(crate) id_base: u32,
    pub(crate) network: NetworkNamespace,
    pub(crate) maps: Maps,
    pub(crate) groups: PreparedGroups,
}

/// Cgroups without a process and without limits.
pub(crate) struct PreparedGroups {
    cgroups: Arc<dyn Cgroups>,
    /// `None` once they are a sandbox's.
    part: Option<PartId>,
}

impl Containers {
    /// Makes all of it, for the [`ID_RANGE`] ids from `id_base` on.
    pub fn prepare(&self, id_base: u32) -> Result<Prepared, StartError> {
        if id_base < ID_RANGE || id_base.checked_add(ID_RANGE).is_none() {
            return Err(StartError::BadSpec(format!("{id_base} is not the base of an id range")));
        }
        Ok(Prepared {
            id_base,
            groups: PreparedGroups::make(&self.cgroups)?,
            maps: Maps::of(id_base)?,
            network: network::loopback_only(id_base)?,
        })
    }
}

// === impl Prepared ===

impl Prepared {
    /// The namespace, in which nothing runs: what must be opened in it before the guest starts can
    /// be.
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }
}

// === impl PreparedGroups ===

impl PreparedGroups {
    fn make(cgroups: &Arc<dyn Cgroups>) -> Result<Self, StartError> {
        let part = PartId::generate();
        let groups = Self { cgroups: cgroups.clone(), part: Some(part.clone()) };
        cgroups.prepare(&part).map_err(system("make cgroups"))?;
        Ok(groups)
    }

    /// After a failure they may be the sandbox's, or nobody's: both are removed by their owners.
    pub fn give_to(mut self, sandbox: &SandboxId, limits: &Limits) -> std::io::Result<()> {
        if let Some(part) = &self.part {
            self.cgroups.adopt(part, sandbox, limits)?;
        }
        self.part = None;
        Ok(())
    }
}

impl Drop for PreparedGroups {
    fn drop(&mut self) {
        if let Some(part) = &self.part
            && let Err(error) = self.cgroups.discard(part)
        {
            // The next sweep tries again.
            tracing::warn!(%part, %error, "prepared cgroups stay");
        }
    }
}
