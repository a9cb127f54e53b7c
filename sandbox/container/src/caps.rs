//! The capabilities of guest root: what package managers and service users need, nothing else.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Kept, all of them within the sandbox's own user namespace.
///
/// Not kept, on purpose: `SYS_PTRACE` (the agent would be readable), `SYS_ADMIN`, `NET_ADMIN`,
/// `NET_RAW`, `SYS_RESOURCE` (limits), `DAC_READ_SEARCH` (open by handle), `MKNOD`, `SYS_MODULE`,
/// `AUDIT_WRITE` and every newer one.
pub const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT);

/// The kernel says EINVAL for the first number it does not know.
const CAPABILITY_NUMBER_MAX: u32 = 63;

/// Limits this process, and what it executes, to [`KEPT`].
pub fn limit() -> Result<(), Errno> {
    for number in 0..=CAPABILITY_NUMBER_MAX {
        if KEPT.bits() & (1 << number) != 0 {
            continue;
        }
        match drop_from_bounding_set(number) {
            Err(Errno::INVAL) if number > 0 => break,
            other => other?,
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: none },
    )
}

/// An overlay writes with the credentials of the process that mounted it, and this capability
/// would let it past every quota.
pub fn drop_resource() -> Result<(), Errno> {
    let mut sets = rustix::thread::capabilities(None)?;
    let resource = CapabilitySet::SYS_RESOURCE;
    sets.effective.remove(resource);
    sets.permitted.remove(resource);
    sets.inheritable.remove(resource);
    rustix::thread::set_capabilities(None, sets)
}

fn drop_from_bounding_set(number: u32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    let result =
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
    if result == 0 {
        return Ok(());
    }
    // SAFETY: errno belongs to this thread.
    Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
}
