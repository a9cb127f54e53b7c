//! The last steps before a guest's program: descriptors, session, user, then `exec`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::AccessFlags;

use crate::process::Identity;

/// Descriptors are moved above this first, so that placing one never closes another.
const PARKING_FD: RawFd = 200;

/// A program about to run. Built before the fork, so that nothing here depends on the guest's
/// file system but the last three steps.
pub struct Plan {
    /// Tried in turn until one exists.
    pub programs: Vec<CString>,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    /// The first that can be entered is taken.
    pub directories: Vec<CString>,
    pub as_root: bool,
    /// What each number will be in the program; everything else is closed.
    pub descriptors: Vec<(OwnedFd, RawFd)>,
    /// Standard input is a terminal, which becomes the controlling one.
    pub terminal: bool,
}

/// Why a program did not start.
pub struct Unstarted {
    pub reason: String,
    /// None of the places where it may be has it.
    pub missing: bool,
}

impl From<String> for Unstarted {
    fn from(reason: String) -> Self {
        Self { reason, missing: false }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
}

pub fn c_string(what: &'static str, text: &str) -> Result<CString, PlanError> {
    CString::new(text).map_err(|_| PlanError::Nul(what))
}

pub fn c_strings<'a>(
    what: &'static str,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<CString>, PlanError> {
    texts.into_iter().map(|text| c_string(what, text)).collect()
}

/// Where a program may be: as given if it has a slash, else in each directory of `PATH`.
pub fn candidates(program: &str, path: &str) -> Result<Vec<CString>, PlanError> {
    if program.contains('/') {
        return Ok(vec![c_string("program", program)?]);
    }
    let mut found = Vec::new();
    for directory in path.split(':').filter(|directory| directory.starts_with('/')) {
        found.push(c_string("program", &format!("{directory}/{program}"))?);
    }
    Ok(found)
}

// === impl Plan ===

impl Plan {
    pub fn raw_descriptors(&self) -> Vec<RawFd> {
        self.descriptors.iter().map(|(fd, _)| fd.as_raw_fd()).collect()
    }

    /// Becomes the program. Returns only when that failed, with the reason.
    pub fn execute(&self, identity: &Identity) -> Unstarted {
        match self.become_program(identity) {
            Ok(never) => match never {},
            Err(unstarted) => unstarted,
        }
    }

    fn become_program(&self, identity: &Identity) -> Result<std::convert::Infallible, Unstarted> {
        nix::unistd::setsid().map_err(|e| format!("new session: {e}"))?;
        identity
            .become_payload(self.as_root)
            .map_err(|e| format!("become the tool's user: {e}"))?;
        place(&self.descriptors).map_err(|e| format!("place descriptors: {e}"))?;
        if self.terminal {
            let stdin = std::io::stdin();
            rustix::process::ioctl_tiocsctty(stdin).map_err(|e| format!("take terminal: {e}"))?;
        }
        reset_signals().map_err(|e| format!("reset signals: {e}"))?;
        self.enter_directory()?;
        let mut last = Errno::ENOENT;
        let mut missing = true;
        for program in &self.programs {
            let Err(error) = nix::unistd::execve(program, &self.argv, &self.env);
            // What exists and cannot run says more than what does not exist.
            if error != Errno::ENOENT {
                last = error;
            }
            missing &= error == Errno::ENOENT
                && nix::unistd::access(program.as_c_str(), AccessFlags::F_OK).is_err();
            if !matches!(error, Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) {
                break;
            }
        }
        let name = self.argv.first().map(|name| name.to_string_lossy()).unwrap_or_default();
        let reason = match last {
            Errno::ENOENT if !missing => {
                format!("{name}: it is there, but not its interpreter or library loader")
            }
            error => format!("{name}: {}", describe(error)),
        };
        Err(Unstarted { reason, missing })
    }

    fn enter_directory(&self) -> Result<(), String> {
        let mut reason = "no directory to start in".to_owned();
        for directory in &self.directories {
            match nix::unistd::chdir(directory.as_c_str()) {
                Ok(()) => return Ok(()),
                Err(e) => reason = format!("{}: {}", directory.to_string_lossy(), describe(e)),
            }
        }
        Err(reason)
    }
}

/// The words people know from their shell.
pub fn describe(error: Errno) -> String {
    error.desc().to_lowercase()
}

fn place(descriptors: &[(OwnedFd, RawFd)]) -> io::Result<()> {
    let mut parked = Vec::new();
    for (fd, target) in descriptors {
        // SAFETY: fcntl touches no memory; the source is owned and open.
        let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, PARKING_FD) };
        if high < 0 {
            return Err(io::Error::last_os_error());
        }
        parked.push((high, *target));
    }
    for (high, target) in parked {
        // SAFETY: dup2 touches no memory. The child is about to exec, and every owner of the
        // number it replaces is closed by that exec anyway.
        if unsafe { libc::dup2(high, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Programs expect default actions and nothing blocked; the agent ignores some and blocks one, and
/// whoever started it may have left more. The C library keeps two signals to itself and would skip
/// them, so the kernel is asked directly.
fn reset_signals() -> io::Result<()> {
    /// What the kernel takes for a signal's action: handler, flags, restorer and a mask of 64 bits.
    /// All zero is the default action.
    const DEFAULT_ACTION: [u64; 4] = [0; 4];
    static NOTHING_BLOCKED: u64 = 0;
    const MASK_BYTES: usize = 8;
    const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;
    for signal in SIGNALS.filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // SAFETY: the kernel reads the action, which outlives the call and is as large as any
        // architecture's, and writes nothing.
        let done = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT_ACTION.as_ptr(),
                std::ptr::null::<u64>(),
                MASK_BYTES,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the kernel reads the mask, which outlives the call, and writes nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const NOTHING_BLOCKED,
            std::ptr::null::<u64>(),
            MASK_BYTES,
        )
    };
    if done != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_for_and_a_path_is_not() {
        let found = |name| candidates(name, "/usr/bin:relative::/bin").unwrap();
        assert_eq!(found("ls"), [c"/usr/bin/ls".to_owned(), c"/bin/ls".to_owned()]);
        assert_eq!(found("./ls"), [c"./ls".to_owned()]);
        assert!(candidates("a\0b", "/bin").is_err());
    }
}
