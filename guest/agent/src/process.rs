//! What the agent does to itself and to its children at the level of the kernel: becoming PID 1,
//! forking, taking on the ids of the tool's user.
//!
//! Together with [`crate::payload`] the only module with `unsafe`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use guest_protocol::boot::{BootArgs, ToolsAs};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Gid, Pid, Uid};

/// Longest environment a profile may give.
const ENV_BYTES_MAX: u64 = 1 << 20;
/// Payload dies before the agent when memory is short.
const PAYLOAD_OOM_SCORE_ADJ: &str = "500";

/// What [`prepare`] made of the inherited descriptors.
pub struct Prepared {
    pub listener: OwnedFd,
    pub output_dir: OwnedFd,
    pub signals: SignalFd,
    pub identity: Identity,
    /// `NAME=VALUE` for whatever runs as a tool.
    pub env: Vec<(String, String)>,
}

/// Who payload is, and where it is accounted.
#[derive(Debug)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub root: bool,
    /// A child that writes `0` to each of them is in the leaf for payload.
    pub payload_procs: Vec<OwnedFd>,
}

/// Hides the agent, blocks the signals it reads from a descriptor, and takes over what it
/// inherited.
pub fn prepare(boot: &BootArgs) -> io::Result<Prepared> {
    nix::sys::prctl::set_dumpable(false)?;
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?;
    ignore_terminal_signals()?;
    let signals = child_signals()?;
    // A directory that the guest could have replaced is no start for a walk.
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let env = match boot.env_fd {
        Some(fd) => read_env(inherit(fd)?)?,
        None => Vec::new(),
    };
    Ok(Prepared {
        listener: nonblocking(inherit(boot.listen_fd)?)?,
        output_dir: inherit(boot.output_fd)?,
        signals,
        identity: Identity {
            uid: boot.tool_uid,
            gid: boot.tool_gid,
            groups: boot.tool_groups.clone(),
            root: boot.tools_as == ToolsAs::Root,
            payload_procs: inherit_all(&boot.payload_procs_fds)?,
        },
        env: with_defaults(env, boot),
    })
}

fn inherit_all(fds: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    fds.iter().map(|fd| inherit(*fd)).collect()
}

/// A line for whoever started the sandbox. `eprintln!` would end the agent, and everything with
/// it, when nobody reads any more.
pub fn log(text: &str) {
    let _ = writeln!(io::stderr(), "sinew-guest-agent: {text}");
}

/// A descriptor on which the ends of children are read. `SIGCHLD` is blocked since [`prepare`].
pub fn child_signals() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Outside a PID namespace (in a test) these would end the agent; PID 1 is immune anyway.
fn ignore_terminal_signals() -> io::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler, so no code runs in signal context.
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) }?;
    }
    Ok(())
}

fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::Error::other(format!("descriptor {fd} is a standard stream")));
    }
    // SAFETY: fcntl does not touch memory; a number that is no descriptor is its EBADF.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as fcntl has just shown, and the contract of `BootArgs`
    // gives it to us; each is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

fn read_env(fd: OwnedFd) -> io::Result<Vec<(String, String)>> {
    let mut text = String::new();
    File::from(fd).take(ENV_BYTES_MAX).read_to_string(&mut text)?;
    let pair = |entry: &str| {
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    Ok(text.split('\0').filter_map(pair).collect())
}

/// The given environment over what every tool needs, without the brain's own variables.
fn with_defaults(given: Vec<(String, String)>, boot: &BootArgs) -> Vec<(String, String)> {
    let defaults = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", &*boot.home),
        ("USER", &*boot.user_name),
        ("LOGNAME", &*boot.user_name),
        ("SHELL", "/bin/bash"),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
    ];
    let mut env: Vec<(String, String)> = Vec::new();
    let defaults = defaults.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (name, value) in defaults.into_iter().chain(given) {
        if !name.starts_with("ANTHROPIC_") {
            set_var(&mut env, name, value);
        }
    }
    env
}

pub fn set_var(env: &mut Vec<(String, String)>, name: String, value: String) {
    match env.iter_mut().find(|(known, _)| *known == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name, value)),
    }
}

/// Forks; the child runs `body` and never returns. The agent has one thread, so the child is an
/// ordinary process and not one in which only async-signal-safe calls are allowed.
pub fn fork_into(body: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: this program never starts a second thread, so no lock can be held by a thread that
    // the child does not have.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = body();
            // SAFETY: _exit ends the process without running the parent's exit handlers twice.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Closes every descriptor from 3 up that is not in `keep`, so that a child holds neither the
/// host's connections nor another call's pipes.
pub fn close_others(keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1);
        }
        from = fd + 1;
    }
    close_range(from, RawFd::MAX);
}

fn close_range(first: RawFd, last: RawFd) {
    // SAFETY: only called in a forked child, whose Rust owners of these descriptors are never
    // dropped: it ends by exec or `_exit`.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if done < 0 {
        // Kernels before 5.9, or a filter without it.
        for fd in first..=last.min(65_536) {
            // SAFETY: as above; closing a number that is not open is its EBADF.
            unsafe { libc::close(fd) };
        }
    }
}

// === impl Identity ===

impl Identity {
    pub fn payload_procs_fd(&self) -> impl Iterator<Item = RawFd> {
        self.payload_procs.iter().map(AsRawFd::as_raw_fd)
    }

    /// Turns the calling child into payload: into its cgroup, then to its user, for good.
    pub fn become_payload(&self, as_root: bool) -> io::Result<()> {
        for procs in &self.payload_procs {
            rustix::io::write(procs, b"0")?;
        }
        // Without /proc there is nothing to write to, and the score is a courtesy.
        let _ = std::fs::write("/proc/self/oom_score_adj", PAYLOAD_OOM_SCORE_ADJ);
        if self.root || as_root {
            nix::unistd::setgroups(&[])?;
            return Ok(());
        }
        let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        nix::unistd::setgroups(&groups)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        // Leaving uid 0 has emptied the effective and permitted sets; nothing may bring them back.
        if !uid.is_root() && nix::unistd::setresuid(Uid::from_raw(0), uid, uid).is_ok() {
            return Err(io::Error::other("the tool's user can still become root"));
        }
        Ok(())
    }
}
