//! The jail of the unpacker, which it builds around itself before it has seen a byte of an archive.
//!
//! Afterwards the process has no files but the descriptors it was given, no network, no neighbours
//! it could reach, the ids of a range of its own, five capabilities that count in its own user
//! namespace only, and the system calls that unpacking takes. What it can spoil is the tree it
//! writes, and that one belongs to whoever made the archive anyway.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// A directory that every host has; the empty root goes over it.
const EMPTY_ROOT_AT: &str = "/tmp";
/// To give files their owner, mode and attributes, and to write where their mode forbids it.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP);
const CAPABILITY_NUMBER_MAX: u32 = 63;

/// Two decompression windows, the whiteouts of a layer, a document and an index of members.
const DATA_BYTES_MAX: u64 = 1 << 30;
/// The deepest tree that is removed, and a few files.
const OPEN_FILES_MAX: u64 = 512;
/// An hour of computing unpacks hundreds of gigabytes.
const CPU_SECONDS_MAX: u64 = 3600;

#[derive(Debug, thiserror::Error)]
#[error("build the unpacker's jail: {step}: {error}")]
pub struct JailError {
    step: &'static str,
    error: String,
}

fn at<E: ToString>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError { step, error: error.to_string() }
}

/// First half, as root of the host: nothing of the host is left in sight, and the process is in a
/// user namespace that has no ids yet. Needs a process with one thread.
pub fn separate() -> Result<(), JailError> {
    close_strangers().map_err(at("close descriptors"))?;
    // Made before the user namespace, they are not its own: root of that one cannot mount.
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(at("namespaces"))?;
    empty_root().map_err(at("an empty root"))?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(at("a user namespace"))
}

/// Second half, when the namespace has its ids. `host` is the other process's socket.
pub fn close(host: BorrowedFd<'_>) -> Result<(), JailError> {
    let (root, group) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
        .and_then(|()| rustix::thread::set_thread_res_uid(root, root, root))
        .map_err(at("its own ids"))?;
    limit_resources().map_err(at("limits"))?;
    limit_capabilities().map_err(at("capabilities"))?;
    rustix::process::umask(Mode::empty());
    // After the change of ids, which clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(at("ends with its parent"))?;
    // Whoever died before that sends no signal any more, but has let go of the socket.
    let mut look = [PollFd::new(&host, PollFlags::HUP)];
    let hung_up = poll(&mut look, Some(&Timespec::default())).map_err(at("look for its parent"))?;
    if hung_up > 0 {
        return Err(JailError { step: "ends with its parent", error: "it is gone".to_owned() });
    }
    let filter = filter().map_err(at("system calls"))?;
    // It sets no_new_privs, too.
    seccompiler::apply_filter(&filter).map_err(at("system calls"))
}

/// Whatever the process that started us left open, a job server's pipe say.
fn close_strangers() -> std::io::Result<()> {
    let listed = fs::read_dir("/proc/self/fd")?;
    let numbers = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let numbers: Vec<i32> = numbers.filter(|number| *number > 2).collect();
    for number in numbers {
        // The listing's own is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

fn empty_root() -> Result<(), Errno> {
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", everything)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("jail", EMPTY_ROOT_AT, "tmpfs", flags, c"size=4k,nr_inodes=1,mode=0500")?;
    rustix::process::chdir(EMPTY_ROOT_AT)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    match rustix::fs::accessat(
        CWD,
        "/proc",
        rustix::fs::Access::EXISTS,
        rustix::fs::AtFlags::empty(),
    ) {
        Err(Errno::NOENT) => Ok(()),
        _ => Err(Errno::EXIST),
    }
}

fn limit_resources() -> Result<(), Errno> {
    let limits = [
        (Resource::Data, DATA_BYTES_MAX),
        (Resource::Nofile, OPEN_FILES_MAX),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Nproc, 0),
    ];
    for (resource, limit) in limits {
        let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX).min(limit);
        rustix::process::setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })?;
    }
    Ok(())
}

fn limit_capabilities() -> Result<(), Errno> {
    for number in 0..=CAPABILITY_NUMBER_MAX {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // The kernel says EINVAL for the first number it does not know.
            Err(Errno::INVAL) if number > 0 => break,
            removed => removed?,
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: none };
    rustix::thread::set_capabilities(None, sets)
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    // Memory that can be run is not needed any more.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        let plain = SeccompCondition::new(2, SeccompCmpArgLen::Dword, executable, 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![plain])?]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?.try_into()
}

/// No socket can be made, no process, no mount, no program started, nobody signalled or traced.
const ALLOWED: &[i64] = &[
    // The tree.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fsetxattr,
    libc::SYS_utimensat,
    libc::SYS_fcntl,
    // Contents.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    // The host.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    // Memory, time, the end.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_starts_connects_or_mounts_is_allowed() {
        let dangerous = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_pidfd_open,
            libc::SYS_flock,
            libc::SYS_prctl,
            libc::SYS_bpf,
            libc::SYS_chroot,
            libc::SYS_open_by_handle_at,
            libc::SYS_io_uring_setup,
            // Only in their guarded forms.
            libc::SYS_mmap,
            libc::SYS_mprotect,
        ];
        for call in dangerous {
            assert!(!ALLOWED.contains(&call), "{call}");
        }
        filter().unwrap();
    }
}
