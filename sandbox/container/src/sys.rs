//! System calls that no dependency wraps. Each function here is safe to call between clone and
//! exec: it neither allocates nor takes a lock.

use std::ffi::{CStr, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

const EMPTY: &CStr = c"";

/// `MOUNT_ATTR_*` of `linux/mount.h`, as far as they are used here.
pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;
pub const ATTR_IDMAP: u64 = 0x0010_0000;

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

pub enum Cloned {
    /// This is the new process. It shares nothing, and may make system calls only.
    Child,
    Parent {
        pid: Pid,
        pidfd: OwnedFd,
    },
}

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    // SAFETY: errno belongs to this thread.
    Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
}

/// Of `linux/sched.h`; libc has it as a number that does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks into new namespaces, and into the v2 group with this directory.
///
/// # Safety
///
/// The calling process may have other threads, whose locks stay taken in the child for ever: the
/// child must not allocate, panic or return to code that does, and must end in exec or exit.
pub unsafe fn clone_into(namespaces: u64, group: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: namespaces | libc::CLONE_PIDFD as u64 | group.map_or(0, |_| CLONE_INTO_CGROUP),
        cgroup: group.map_or(0, |fd| fd.as_raw_fd() as u64),
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a whole `struct clone_args`; without CLONE_VM the child runs on a copy.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    match Pid::from_raw(pid as i32) {
        None => Ok(Cloned::Child),
        // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
        Some(pid) => Ok(Cloned::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Ends the calling process at once: no destructors, no exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}

pub fn mount_setattr(
    tree: BorrowedFd<'_>,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let userns_fd = userns.map_or(0, |fd| fd.as_raw_fd() as u64);
    let attr = MountAttr { set, clear: 0, propagation: 0, userns_fd };
    // SAFETY: `attr` is a whole `struct mount_attr`; the path is empty and NUL-terminated.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// `unshare(2)`; for namespaces only, never for memory or descriptors.
pub fn unshare(namespace: libc::c_int) -> Result<(), Errno> {
    // SAFETY: takes a number; a namespace flag does not touch memory.
    check(unsafe { libc::syscall(libc::SYS_unshare, namespace) }).map(drop)
}

pub fn enter_network(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes two numbers.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), libc::CLONE_NEWNET) })
        .map(drop)
}

/// Default dispositions and an empty mask: a Rust program ignores SIGPIPE, its child must not.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: sets a disposition; SIGKILL, SIGSTOP and libc's own refuse, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an empty signal set is all zero on Linux.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `empty` is a valid set and the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &empty, std::ptr::null_mut()) };
}

pub fn set_rlimit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is valid for the call.
    check(libc::c_long::from(unsafe { libc::setrlimit(resource, &limit) })).map(drop)
}

pub fn hard_rlimit(resource: libc::__rlimit_resource_t) -> Result<u64, Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the call.
    check(libc::c_long::from(unsafe { libc::getrlimit(resource, &mut limit) }))?;
    Ok(limit.rlim_max)
}

/// Puts a copy of `from` at number `to`, inherited by exec.
pub fn place_descriptor(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: takes numbers; `to` is a number that the caller has set aside.
    check(unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) }).map(drop)
}

/// A copy of `from` at some number of at least `minimum`.
pub fn lift_descriptor(from: RawFd, minimum: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: takes numbers; the copy belongs to the caller.
    check(unsafe { libc::syscall(libc::SYS_fcntl, from, libc::F_DUPFD_CLOEXEC, minimum) })
        .map(|fd| fd as RawFd)
}

/// Every descriptor from `first` on is closed by exec.
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: takes numbers; nothing is closed before exec.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Closes every descriptor from `first` to `last`, if there is one. For the child of a clone: whose
/// descriptors they were does not matter to a process that never returns.
pub fn close_between(first: RawFd, last: RawFd) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: takes numbers; the caller uses none of them afterwards.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

pub fn load_seccomp(filter: &[libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` points to `len` instructions that outlive the call; the kernel copies.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
    .map(drop)
}

/// Replaces this process by the program in `file`. Returns only on failure.
///
/// `argv` and `envp` end with a null pointer; each entry points to a text that is alive.
pub fn exec(file: RawFd, argv: &[*const c_char], envp: &[*const c_char]) -> Errno {
    // SAFETY: the caller keeps the texts alive; both lists are null-terminated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file,
            EMPTY.as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result).err().unwrap_or(Errno::NOEXEC)
}
