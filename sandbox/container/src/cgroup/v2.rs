//! cgroup v2: one hierarchy, in which a group that has children with controllers may hold no
//! process of its own.
//!
//! Where our groups go:
//!
//! - Under a service manager that delegated a group for sandboxes beside ours (its directory says
//!   so in an extended attribute): below that one, after what is in it has moved into a leaf.
//!   systemd cannot start a service again whose own group has such children, so that ours would
//!   keep a launcher from being restarted while sandboxes run.
//! - Under one that delegated our own group to us: below that.
//! - In a container, whose group looks like the root: below it, after everything in it has moved
//!   into a leaf.
//! - Otherwise at the real root, where the rule does not hold and a launcher started from another
//!   session finds them again.
//!
//! Wherever an earlier launcher has put this installation's groups, there they stay.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base_types::{PartId, SandboxId};
use sandbox_api::Limits;

use super::{
    AGENT_LEAF, CGROUP_ROOT, CPU_PERIOD_US, CgroupUse, Cgroups, Entry, Figures, PAYLOAD_LEAF,
    kill_member, make_directory, named, names_in, open_to_write, pids_in, read_keyed, read_number,
    remove_directory, write,
};
use crate::error::ContainerError;

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Moving the last processes of a group into a leaf races with their forks.
const EVACUATE_ROUNDS_MAX: u32 = 50;

/// A group cannot be renamed here: whose it is stands in this attribute of its directory, which
/// guests, to whom the hierarchy is not mounted, do not see.
const OWNER: &str = "trusted.sinew.sandbox";
/// Longer than any id.
const OWNER_BYTES_MAX: usize = 64;

pub struct V2 {
    /// This installation's directory.
    base: PathBuf,
    /// The directory's name, for each sandbox that has groups.
    names: Mutex<BTreeMap<SandboxId, String>>,
}

// === impl V2 ===

impl V2 {
    /// `None` if the controllers are not on v2 here.
    pub fn detect(prefix: &str) -> Result<Option<Self>, ContainerError> {
        let root = Path::new(CGROUP_ROOT);
        let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else {
            return Ok(None);
        };
        let controllers: BTreeSet<&str> = controllers.split_whitespace().collect();
        for controller in CONTROLLERS {
            if !controllers.contains(controller) {
                return Err(ContainerError::NoController(controller));
            }
        }
        let parent = parent_of_ours(root, prefix);
        let base = parent.join(prefix);
        let prepared = prepare(&parent, &base, prefix);
        prepared.map_err(|source| ContainerError::Io {
            what: "make cgroup",
            path: base.clone(),
            source,
        })?;
        let names = names_in(&base).unwrap_or_default().into_iter();
        let names = names.filter_map(|name| Some((owner(&base.join(&name))?, name))).collect();
        Ok(Some(Self { base, names: Mutex::new(names) }))
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<SandboxId, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, sandbox: &SandboxId) -> String {
        self.names().get(sandbox).cloned().unwrap_or_else(|| sandbox.to_string())
    }

    fn group(&self, sandbox: &SandboxId) -> PathBuf {
        self.base.join(self.name(sandbox))
    }

    fn limit(&self, sandbox: &SandboxId, limits: &Limits) -> io::Result<()> {
        let figures = Figures::of(limits);
        let group = self.group(sandbox);
        let payload = group.join(PAYLOAD_LEAF);
        let text = |number: u64| number.to_string();
        write(&group, "memory.max", &text(figures.total_memory))?;
        write(&group, "pids.max", &text(figures.total_pids))?;
        write(&group, "cpu.max", &format!("{} {CPU_PERIOD_US}", figures.cpu_quota_us))?;
        write(&payload, "memory.max", &text(figures.payload_memory))?;
        write(&payload, "pids.max", &text(figures.payload_pids))?;
        // Half of a killed program tree is worse than none of it.
        write(&payload, "memory.oom.group", "1")?;
        if group.join("memory.swap.max").exists() {
            write(&group, "memory.swap.max", "0")?;
        }
        Ok(())
    }

    fn set_frozen(&self, sandbox: &SandboxId, value: &str) -> io::Result<()> {
        write(&self.group(sandbox), "cgroup.freeze", value)
    }
}

impl Cgroups for V2 {
    fn version(&self) -> u8 {
        2
    }

    fn prepare(&self, part: &PartId) -> io::Result<()> {
        let group = self.base.join(part.as_str());
        // An administrator may have tidied up while it was empty.
        make_directory(&self.base)?;
        enable_controllers(&self.base)?;
        make_directory(&group)?;
        enable_controllers(&group)?;
        for leaf in [AGENT_LEAF, PAYLOAD_LEAF] {
            make_directory(&group.join(leaf))?;
        }
        Ok(())
    }

    fn adopt(&self, part: &PartId, sandbox: &SandboxId, limits: &Limits) -> io::Result<()> {
        self.remove(sandbox)?;
        let group = self.base.join(part.as_str());
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&group, OWNER, sandbox.as_str().as_bytes(), flags)
            .map_err(|errno| named(&group)(errno.into()))?;
        self.names().insert(sandbox.clone(), part.to_string());
        self.limit(sandbox, limits)
    }

    fn discard(&self, part: &PartId) -> io::Result<()> {
        remove_group(&self.base.join(part.as_str()))
    }

    fn parts(&self) -> io::Result<Vec<PartId>> {
        let free = |name: &&String| owner(&self.base.join(name)).is_none();
        let names = names_in(&self.base)?;
        Ok(names.iter().filter(free).filter_map(|name| PartId::parse(name)).collect())
    }

    fn agent_entry(&self, sandbox: &SandboxId) -> io::Result<Entry> {
        let leaf = self.group(sandbox).join(AGENT_LEAF);
        let directory = File::open(&leaf).map_err(named(&leaf))?;
        Ok(Entry { born_in: Some(directory.into()), tasks: Vec::new() })
    }

    fn payload_procs(&self, sandbox: &SandboxId) -> io::Result<Vec<OwnedFd>> {
        let leaf = self.group(sandbox).join(PAYLOAD_LEAF);
        Ok(vec![open_to_write(&leaf, "cgroup.procs")?])
    }

    fn freeze(&self, sandbox: &SandboxId) -> io::Result<()> {
        self.set_frozen(sandbox, "1")
    }

    fn thaw(&self, sandbox: &SandboxId) -> io::Result<()> {
        self.set_frozen(sandbox, "0")
    }

    fn members(&self, sandbox: &SandboxId) -> io::Result<BTreeSet<i32>> {
        let mut members = BTreeSet::new();
        let group = self.group(sandbox);
        for leaf in [AGENT_LEAF, PAYLOAD_LEAF] {
            pids_in(&group.join(leaf), &mut members)?;
        }
        Ok(members)
    }

    fn kill(&self, sandbox: &SandboxId) -> io::Result<()> {
        // All at once, forks in flight included; kernels before 5.14 do not have it.
        if write(&self.group(sandbox), "cgroup.kill", "1").is_ok() {
            return Ok(());
        }
        let (members, name) = (self.members(sandbox)?, self.name(sandbox));
        members.into_iter().try_for_each(|pid| kill_member(pid, &name))
    }

    fn usage(&self, sandbox: &SandboxId) -> CgroupUse {
        let group = self.group(sandbox);
        let payload = group.join(PAYLOAD_LEAF);
        CgroupUse {
            memory_bytes: read_number(&group, "memory.current"),
            memory_peak_bytes: read_number(&group, "memory.peak"),
            pids: read_number(&group, "pids.current"),
            cpu_usec: read_keyed(&group, "cpu.stat", "usage_usec"),
            oom_kills: read_keyed(&payload, "memory.events", "oom_kill"),
        }
    }

    fn payload_memory(&self, sandbox: &SandboxId) -> PathBuf {
        self.group(sandbox).join(PAYLOAD_LEAF)
    }

    fn remove(&self, sandbox: &SandboxId) -> io::Result<()> {
        remove_group(&self.group(sandbox))?;
        self.names().remove(sandbox);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        remove_directory(&self.base)
    }

    fn list(&self) -> io::Result<Vec<SandboxId>> {
        let owner = |name: String| SandboxId::parse(&name).or_else(|| owner(&self.base.join(name)));
        Ok(names_in(&self.base)?.into_iter().filter_map(owner).collect())
    }
}

/// Whose groups these are.
fn owner(group: &Path) -> Option<SandboxId> {
    let mut value = [0_u8; OWNER_BYTES_MAX];
    let length = rustix::fs::getxattr(group, OWNER, &mut value).ok()?;
    SandboxId::parse(std::str::from_utf8(value.get(..length)?).ok()?)
}

fn remove_group(group: &Path) -> io::Result<()> {
    for directory in [&group.join(AGENT_LEAF), &group.join(PAYLOAD_LEAF), group] {
        remove_directory(directory)?;
    }
    Ok(())
}

fn parent_of_ours(root: &Path, prefix: &str) -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let mut own = root.join(own);
    // After a restart we may sit in the leaf that an earlier launcher made.
    if own.ends_with(LAUNCHER_LEAF) {
        own.pop();
    }
    let beside = own.with_file_name(SANDBOXES_GROUP);
    let usual = root.join("system.slice").join(SANDBOXES_GROUP);
    let has_ours = |parent: &&PathBuf| parent.join(prefix).is_dir();
    let root = root.to_path_buf();
    if let Some(parent) = [&beside, &usual, &own, &root].into_iter().find(has_ours) {
        return parent.clone();
    }
    [beside, own].into_iter().find(|group| is_delegated(group)).unwrap_or(root)
}

/// The unit that holds the sandboxes of an installed service (`sinew install --systemd`).
const SANDBOXES_GROUP: &str = "sinew-sandboxes.service";

/// The leaf that holds this process where the rule demands one.
const LAUNCHER_LEAF: &str = "sinew-launcher";

/// systemd marks the group of a unit with `Delegate=yes`.
fn is_delegated(group: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        let length = rustix::fs::getxattr(group, *name, &mut value);
        length.is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

fn prepare(parent: &Path, base: &Path, prefix: &str) -> io::Result<()> {
    // Only the real root has no type: every other group must be empty to have such children.
    if parent.join("cgroup.type").exists() {
        evacuate(parent, &parent.join(LAUNCHER_LEAF))?;
    }
    debug_assert!(base.ends_with(prefix));
    enable_controllers(parent)?;
    make_directory(base)?;
    enable_controllers(base)
}

fn evacuate(group: &Path, leaf: &Path) -> io::Result<()> {
    make_directory(leaf)?;
    for _ in 0..EVACUATE_ROUNDS_MAX {
        let mut members = BTreeSet::new();
        pids_in(group, &mut members)?;
        if members.is_empty() {
            return Ok(());
        }
        for pid in members {
            match write(leaf, "cgroup.procs", &pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                // `named` keeps the kind only; a process that is gone is found gone next round.
                Err(error) if !Path::new(&format!("/proc/{pid}")).exists() => drop(error),
                other => other?,
            }
        }
    }
    Err(io::Error::other(format!("processes keep appearing in {}", group.display())))
}

fn enable_controllers(group: &Path) -> io::Result<()> {
    let wanted: Vec<String> = CONTROLLERS.iter().map(|name| format!("+{name}")).collect();
    write(group, "cgroup.subtree_control", &wanted.join(" "))
}
