//! The launcher keeps the capabilities it uses and gives the others up for good.

use std::process::Command;

use rustix::io;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// What mounting, namespaces, id maps, ownership of volumes and killing take. Above all not
/// `SYS_RESOURCE`, with which writes through an overlay would pass the quotas of its mounter.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_PTRACE);

/// Kernel modules are loaded while it may still be done. The kernel loads most by itself; a file
/// system is looked for before it is mounted.
pub fn load_modules() {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for module in ["btrfs", "overlay"] {
        let is_known = known.split_ascii_whitespace().any(|word| word == module);
        // Where it cannot be loaded, whoever needs it says what is missing.
        if !is_known && let Err(error) = Command::new("modprobe").arg("-q").arg(module).status() {
            tracing::debug!(module, %error, "modprobe");
        }
    }
}

/// Must be called while the process has one thread: capabilities are each thread's own.
pub fn keep_what_is_needed() -> io::Result<()> {
    // While SETPCAP is effective; what programs run by us could get goes first.
    // By name: `all` also has bits that stand for no capability.
    for (_, capability) in CapabilitySet::all().iter_names() {
        if !KEPT.contains(capability) && capability_is_in_bounding_set(capability)? {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    let has = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: has.effective.intersection(KEPT),
            permitted: has.permitted.intersection(KEPT),
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// A running sandbox costs three descriptors: its process, its memory notice, its image's lock.
pub fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Up to the hard limit anyone may; it is no reason not to start.
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays where it is");
    }
}
