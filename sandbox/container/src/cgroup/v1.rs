//! cgroup v1: one hierarchy for each controller.
//!
//! Memory and pids have the two leaves; CPU time and freezing are the sandbox's as a whole.
//! Groups lie at the root of each hierarchy, so that a launcher started from another group finds
//! them again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use base_types::{PartId, SandboxId};
use sandbox_api::Limits;

use super::{
    AGENT_LEAF, CGROUP_ROOT, CPU_PERIOD_US, CgroupUse, Cgroups, Entry, Figures, PAYLOAD_LEAF,
    kill_member, make_directory, named, names_in, open_to_write, pids_in, read_keyed, read_number,
    remove_directory, write,
};
use crate::error::ContainerError;

/// For one thread, where `cgroup.procs` is for all threads of a process.
const TASKS: &str = "tasks";

pub struct V1 {
    memory: PathBuf,
    pids: PathBuf,
    cpu: PathBuf,
    freezer: PathBuf,
    cpu_account: Option<PathBuf>,
}

// === impl V1 ===

impl V1 {
    /// Makes this installation's directory in every hierarchy it needs.
    pub fn detect(prefix: &str) -> Result<Self, ContainerError> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let find = |controller: &'static str| {
            hierarchy(&mounts, controller)
                .map(|root| root.join(prefix))
                .ok_or(ContainerError::NoController(controller))
        };
        let found = Self {
            memory: find("memory")?,
            pids: find("pids")?,
            cpu: find("cpu")?,
            freezer: find("freezer")?,
            cpu_account: find("cpuacct").ok(),
        };
        for directory in found.hierarchies() {
            make_directory(directory).map_err(|source| ContainerError::Io {
                what: "make cgroup",
                path: directory.clone(),
                source,
            })?;
        }
        Ok(found)
    }

    /// Co-mounted controllers appear once.
    fn hierarchies(&self) -> BTreeSet<&PathBuf> {
        let all = [&self.memory, &self.pids, &self.cpu, &self.freezer];
        all.into_iter().chain(&self.cpu_account).collect()
    }

    fn leaves(&self, name: &str, leaf: &str) -> [PathBuf; 2] {
        [&self.memory, &self.pids].map(|root| root.join(name).join(leaf))
    }

    fn names(&self) -> io::Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for root in self.hierarchies() {
            all.extend(names_in(root)?);
        }
        Ok(all)
    }

    fn remove_named(&self, name: &str) -> io::Result<()> {
        self.hierarchies().into_iter().try_for_each(|root| remove_group(&root.join(name)))
    }

    fn limit(&self, sandbox: &SandboxId, limits: &Limits) -> io::Result<()> {
        let figures = Figures::of(limits);
        let [payload_memory, payload_pids] = self.leaves(sandbox.as_str(), PAYLOAD_LEAF);
        let (memory, pids, cpu) = (
            self.memory.join(sandbox.as_str()),
            self.pids.join(sandbox.as_str()),
            self.cpu.join(sandbox.as_str()),
        );
        let text = |number: u64| number.to_string();
        write(&memory, "memory.limit_in_bytes", &text(figures.total_memory))?;
        write(&payload_memory, "memory.limit_in_bytes", &text(figures.payload_memory))?;
        write(&pids, "pids.max", &text(figures.total_pids))?;
        write(&payload_pids, "pids.max", &text(figures.payload_pids))?;
        write(&cpu, "cpu.cfs_period_us", &text(CPU_PERIOD_US))?;
        write(&cpu, "cpu.cfs_quota_us", &text(figures.cpu_quota_us))
    }

    fn set_frozen(&self, sandbox: &SandboxId, state: &str) -> io::Result<()> {
        write(&self.freezer.join(sandbox.as_str()), "freezer.state", state)
    }
}

impl Cgroups for V1 {
    fn version(&self) -> u8 {
        1
    }

    fn prepare(&self, part: &PartId) -> io::Result<()> {
        for root in self.hierarchies() {
            // An administrator may have tidied up while it was empty.
            make_directory(root)?;
            make_directory(&root.join(part.as_str()))?;
        }
        for leaf in [AGENT_LEAF, PAYLOAD_LEAF] {
            self.leaves(part.as_str(), leaf).iter().try_for_each(|path| make_directory(path))?;
        }
        Ok(())
    }

    fn adopt(&self, part: &PartId, sandbox: &SandboxId, limits: &Limits) -> io::Result<()> {
        for root in self.hierarchies() {
            let (from, to) = (root.join(part.as_str()), root.join(sandbox.as_str()));
            if to.exists() {
                remove_group(&to)?;
            }
            fs::rename(&from, &to).map_err(named(&to))?;
        }
        self.limit(sandbox, limits)
    }

    fn discard(&self, part: &PartId) -> io::Result<()> {
        self.remove_named(part.as_str())
    }

    fn parts(&self) -> io::Result<Vec<PartId>> {
        Ok(self.names()?.iter().filter_map(|name| PartId::parse(name)).collect())
    }

    fn agent_entry(&self, sandbox: &SandboxId) -> io::Result<Entry> {
        let whole =
            BTreeSet::from_iter([&self.cpu, &self.freezer].into_iter().chain(&self.cpu_account));
        let whole = whole.into_iter().map(|root| root.join(sandbox.as_str()));
        let groups = whole.chain(self.leaves(sandbox.as_str(), AGENT_LEAF));
        let tasks: io::Result<_> = groups.map(|group| open_to_write(&group, TASKS)).collect();
        Ok(Entry { born_in: None, tasks: tasks? })
    }

    fn payload_procs(&self, sandbox: &SandboxId) -> io::Result<Vec<OwnedFd>> {
        self.leaves(sandbox.as_str(), PAYLOAD_LEAF)
            .iter()
            .map(|leaf| open_to_write(leaf, TASKS))
            .collect()
    }

    fn freeze(&self, sandbox: &SandboxId) -> io::Result<()> {
        self.set_frozen(sandbox, "FROZEN")
    }

    fn thaw(&self, sandbox: &SandboxId) -> io::Result<()> {
        self.set_frozen(sandbox, "THAWED")
    }

    fn members(&self, sandbox: &SandboxId) -> io::Result<BTreeSet<i32>> {
        let mut members = BTreeSet::new();
        for root in self.hierarchies() {
            let group = root.join(sandbox.as_str());
            for directory in [group.join(AGENT_LEAF), group.join(PAYLOAD_LEAF), group] {
                pids_in(&directory, &mut members)?;
            }
        }
        Ok(members)
    }

    fn kill(&self, sandbox: &SandboxId) -> io::Result<()> {
        let members = self.members(sandbox)?;
        members.into_iter().try_for_each(|pid| kill_member(pid, sandbox.as_str()))
    }

    fn usage(&self, sandbox: &SandboxId) -> CgroupUse {
        let memory = self.memory.join(sandbox.as_str());
        let pids = self.pids.join(sandbox.as_str());
        let account = self.cpu_account.as_ref().unwrap_or(&self.cpu).join(sandbox.as_str());
        let payload = memory.join(PAYLOAD_LEAF);
        CgroupUse {
            memory_bytes: read_number(&memory, "memory.usage_in_bytes"),
            memory_peak_bytes: read_number(&memory, "memory.max_usage_in_bytes"),
            pids: read_number(&pids, "pids.current"),
            cpu_usec: read_number(&account, "cpuacct.usage").map(|nanoseconds| nanoseconds / 1000),
            oom_kills: read_keyed(&payload, "memory.oom_control", "oom_kill"),
        }
    }

    fn payload_memory(&self, sandbox: &SandboxId) -> PathBuf {
        self.memory.join(sandbox.as_str()).join(PAYLOAD_LEAF)
    }

    fn remove(&self, sandbox: &SandboxId) -> io::Result<()> {
        self.remove_named(sandbox.as_str())
    }

    fn close(&self) -> io::Result<()> {
        self.hierarchies().into_iter().try_for_each(|root| remove_directory(root))
    }

    fn list(&self) -> io::Result<Vec<SandboxId>> {
        Ok(self.names()?.iter().filter_map(|name| SandboxId::parse(name)).collect())
    }
}

fn remove_group(group: &Path) -> io::Result<()> {
    let leaves = [AGENT_LEAF, PAYLOAD_LEAF].map(|leaf| group.join(leaf));
    leaves.iter().try_for_each(|leaf| remove_directory(leaf))?;
    remove_directory(group)
}

/// Where the hierarchy with this controller is mounted.
fn hierarchy(mounts: &str, controller: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = kind == "cgroup"
            && Path::new(path).starts_with(CGROUP_ROOT)
            && options.split(',').any(|option| option == controller);
        is_it.then(|| PathBuf::from(path))
    })
}
