//! Starting the jailed unpacker, giving it its ids and its descriptors, and hearing it out.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::process::Signal;

use super::{ImportImageError, Input, check, has_room};
use crate::unpack::error::UnpackError;
use crate::wire::{self, Job, Report, ToHost, ToUnpacker};

/// The range of host ids that unpackers run in, below those of sandboxes. Two at a time may share
/// it: neither can see or reach the other.
const ID_BASE: u32 = 0x1fff_0000;
const ID_RANGE: u32 = 65_536;
/// It tells of its progress several times a second.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// It waits for each answer that it asks for, so that there is always room for one.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How soon an interrupt is noticed.
const LOOK_UP: Duration = Duration::from_millis(100);
/// Documents and layers are opened once or twice each.
const OPENS_MAX: usize = 4096;
/// Before every other process when memory runs out.
const OOM_SCORE: &str = "1000";

/// How to start the unpacker: a program that calls [`crate::unpacker`] and nothing else, and the
/// one call to the kernel that safe code cannot make.
#[derive(Clone, Debug)]
pub struct UnpackHelper {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// A mount of the directory in which ids appear as a user namespace (the second) maps them.
    pub map_ids: fn(BorrowedFd<'_>, BorrowedFd<'_>) -> io::Result<OwnedFd>,
}

pub enum HelperError {
    /// The archive cannot be imported.
    Refused(UnpackError),
    Own(ImportImageError),
}

impl From<ImportImageError> for HelperError {
    fn from(error: ImportImageError) -> Self {
        HelperError::Own(error)
    }
}

pub struct Unpacking<'a> {
    pub helper: &'a UnpackHelper,
    pub job: &'a Job,
    pub input: &'a Input,
    /// Given to the unpacker, so that the lock is held until it is gone, even if we are killed.
    pub lock: &'a File,
}

impl Unpacking<'_> {
    /// Returns when the unpacker has ended, whatever became of it.
    pub fn run(
        &self,
        rootfs: &Path,
        interrupt: &AtomicBool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Report, HelperError> {
        let (ours, theirs) = UnixStream::pair().map_err(ImportImageError::Start)?;
        ours.set_read_timeout(Some(SILENCE_MAX)).map_err(ImportImageError::Start)?;
        ours.set_write_timeout(Some(ANSWER_MAX)).map_err(ImportImageError::Start)?;
        let (child, cache) = (self.start(theirs)?, self.lock);
        let mut running = Running { child, socket: ours, interrupt, cache, opens: 0 };
        let outcome = self.converse(&mut running, rootfs, progress);
        let status = running.end();
        match (outcome, status) {
            (Err(HelperError::Own(ImportImageError::Died { .. })), Some(status)) => {
                Err(HelperError::Own(died(status)))
            }
            (outcome, _) => outcome,
        }
    }

    fn start(&self, socket: UnixStream) -> Result<Child, ImportImageError> {
        let lock = self.lock.try_clone().map_err(ImportImageError::Start)?;
        Command::new(&self.helper.program)
            .args(&self.helper.args)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(Stdio::from(lock))
            .stderr(Stdio::null())
            .current_dir("/")
            // A terminal's Ctrl-C is for us, who then say what became of the import.
            .process_group(0)
            .spawn()
            .map_err(ImportImageError::Start)
    }

    fn converse(
        &self,
        running: &mut Running<'_>,
        rootfs: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Report, HelperError> {
        match running.next()? {
            ToHost::Separated => {}
            ToHost::Failed(error) => {
                let source = io::Error::other(error.to_string());
                return Err(ImportImageError::Jail(source).into());
            }
            _ => return Err(nonsense("out of order").into()),
        }
        let tree = self.mapped(running.child.id(), rootfs).map_err(ImportImageError::Jail)?;
        let mut descriptors = vec![tree.as_fd()];
        if let Input::Archive(file) = self.input {
            descriptors.push(file.as_fd());
        }
        running.send(&ToUnpacker::Go(self.job.clone()), &descriptors)?;
        drop(tree);
        loop {
            match running.next()? {
                ToHost::Separated => return Err(nonsense("out of order").into()),
                ToHost::Open { name } => self.open(running, &name)?,
                ToHost::Progress { done, total } => progress(done, total),
                ToHost::Failed(error) => return Err(HelperError::Refused(error)),
                ToHost::Done(report) => {
                    check::report(&report).map_err(|reason| nonsense(&reason))?;
                    return Ok(*report);
                }
            }
        }
    }

    /// Gives the unpacker's user namespace its ids, and the tree as it looks from there.
    fn mapped(&self, pid: u32, rootfs: &Path) -> io::Result<OwnedFd> {
        let extents = format!("0 {ID_BASE} {ID_RANGE}\n");
        fs::write(format!("/proc/{pid}/uid_map"), &extents)?;
        fs::write(format!("/proc/{pid}/gid_map"), &extents)?;
        fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE)?;
        let namespace = File::open(format!("/proc/{pid}/ns/user"))?;
        let directory = File::open(rootfs)?;
        (self.helper.map_ids)(directory.as_fd(), namespace.as_fd())
    }

    fn open(&self, running: &mut Running<'_>, name: &str) -> Result<(), ImportImageError> {
        running.opens += 1;
        let Input::Layout(directory) = self.input else {
            return Err(nonsense("it asks for files, and was given one"));
        };
        if running.opens > OPENS_MAX || !is_of_layout(name) {
            return Err(nonsense("it asks for a file that no layout has"));
        }
        match open_in(directory, name) {
            Some(file) => running.send(&ToUnpacker::Opened { found: true }, &[file.as_fd()]),
            None => running.send(&ToUnpacker::Opened { found: false }, &[]),
        }
    }
}

fn is_of_layout(name: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let blob = name.strip_prefix("blobs/sha256/");
    matches!(name, "index.json" | "oci-layout")
        || blob.is_some_and(|hex| hex.len() == 64 && is_hex(hex))
}

/// A regular file of the layout, not through any link.
fn open_in(directory: &OwnedFd, name: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve).ok()?;
    let mode = rustix::fs::fstat(&file).ok()?.st_mode;
    let is_file = rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::RegularFile;
    is_file.then_some(file)
}

struct Running<'a> {
    child: Child,
    socket: UnixStream,
    interrupt: &'a AtomicBool,
    /// A file of the cache's file system.
    cache: &'a File,
    opens: usize,
}

impl Running<'_> {
    fn send(
        &self,
        message: &ToUnpacker,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ImportImageError> {
        wire::send(&self.socket, message, descriptors).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ImportImageError::Silent { seconds: ANSWER_MAX.as_secs() },
            _ => unknown_death(),
        })
    }

    /// The next message, while nobody interrupts and the disk is not filled.
    fn next(&self) -> Result<ToHost, HelperError> {
        let start = Instant::now();
        let mut is_there = false;
        while !is_there {
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(ImportImageError::Interrupted.into());
            }
            let mut wait = [PollFd::new(&self.socket, PollFlags::IN)];
            let look_up = Timespec::try_from(LOOK_UP).ok();
            match poll(&mut wait, look_up.as_ref()) {
                Ok(0) if start.elapsed() > SILENCE_MAX => {
                    let seconds = SILENCE_MAX.as_secs();
                    return Err(ImportImageError::Silent { seconds }.into());
                }
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => is_there = true,
                Err(errno) => return Err(ImportImageError::Start(errno.into()).into()),
            }
            if !has_room(self.cache).map_err(ImportImageError::Start)? {
                return Err(ImportImageError::Filling.into());
            }
        }
        self.receive().map_err(HelperError::Own)
    }

    fn receive(&self) -> Result<ToHost, ImportImageError> {
        wire::receive(&self.socket).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => unknown_death(),
            io::ErrorKind::WouldBlock => {
                ImportImageError::Silent { seconds: SILENCE_MAX.as_secs() }
            }
            _ => nonsense(&error.to_string()),
        })
    }

    /// It has nothing more to do, whether it knows that or not.
    fn end(&mut self) -> Option<ExitStatus> {
        // A process that hung up is ending by itself: its own status tells why.
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        let mut wait = [PollFd::new(&self.socket, PollFlags::HUP)];
        let moment = Timespec::try_from(LOOK_UP).ok();
        let hung_up = matches!(poll(&mut wait, moment.as_ref()), Ok(1..));
        if !hung_up {
            let _ = self.child.kill();
        }
        self.child.wait().ok()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nonsense(reason: &str) -> ImportImageError {
    ImportImageError::Nonsense { reason: crate::unpack::error::shown(reason.as_bytes()) }
}

/// Until its status is known.
fn unknown_death() -> ImportImageError {
    died(ExitStatus::default())
}

fn died(status: ExitStatus) -> ImportImageError {
    let is = |signal: Signal| status.signal() == Some(signal.as_raw());
    let hint = if is(Signal::XCPU) || is(Signal::KILL) {
        "it computed for longer than an hour, or something killed it"
    } else if is(Signal::ABORT) || is(Signal::SEGV) {
        "it probably wanted more memory than its limit, 1 GiB"
    } else {
        "it gives no reason"
    };
    ImportImageError::Died { status, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_layout_are_opened_and_never_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let hex = "0a".repeat(32);
        let blobs = dir.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(&hex), "blob").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("index.json")).unwrap();
        let opened = OwnedFd::from(File::open(dir.path()).unwrap());
        assert!(open_in(&opened, &format!("blobs/sha256/{hex}")).is_some());
        assert!(open_in(&opened, "index.json").is_none());
        assert!(open_in(&opened, "blobs").is_none());
        for name in
            ["/etc/passwd", "../x", "blobs/sha256/../../x", "manifest.json", "blobs/sha256/"]
        {
            assert!(!is_of_layout(name), "{name}");
        }
        assert!(is_of_layout(&format!("blobs/sha256/{hex}")));
    }
}
