//! Where the launcher keeps its things: one directory that only root can change.
//!
//! ```text
//! DATA/                   root's; what `serve` writes lies in a directory of its own below it
//! DATA/launcher/          0710 root:serve
//!   launcher.sock         0660 root:serve
//!   launcher.lock         held by the one launcher of this data directory
//!   launcher.log          0640 root:serve
//!   generation            the number of the `serve` that is served
//!   sandboxes/<id>.json   0700, the table
//!   agents/<id>.sock      0710, sockets 0660 root:serve
//!   pool/                 0700, the volumes
//! ```
//!
//! The invariant: nobody but root can replace any of it. A data directory that somebody else could
//! rename a part of is refused, because the launcher would follow where they lead.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use base_types::SandboxId;
use rustix::fs::{FlockOperation, Mode, OFlags};

const SOCKET: &str = "launcher.sock";

#[derive(Clone, Debug)]
pub struct Layout {
    data: PathBuf,
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenLayoutError {
    #[error("make {path}")]
    Make { path: PathBuf, source: io::Error },
    #[error("{path} is not a directory")]
    NotADirectory { path: PathBuf },
    #[error(
        "{path} belongs to user {owner}, and the launcher runs as root from it: run \
         `chown root {path}`, or name another with `--data DIR`"
    )]
    Owner { path: PathBuf, owner: u32 },
    #[error(
        "{path} can be changed by others than root: run `chmod go-w {path}`, or name another with \
         `--data DIR`"
    )]
    Writable { path: PathBuf },
    #[error("a launcher for {path} is running already")]
    AlreadyRunning { path: PathBuf },
}

/// Held by the one launcher of a data directory, until it ends.
#[derive(Debug)]
pub struct InstallationLock(#[allow(dead_code, reason = "held, not read")] File);

// === impl Layout ===

impl Layout {
    /// Where things are, without making or checking any of them.
    pub fn at(data: &Path) -> Self {
        Self { data: data.to_owned(), root: data.join("launcher") }
    }

    /// Makes what is missing and refuses what others could have planted.
    pub fn open(data: &Path, serve_gid: u32) -> Result<Self, OpenLayoutError> {
        let owned = |path: &Path, mode| {
            make_dir(path, mode)?;
            refuse_foreign(path)
        };
        // From the root down, each with this mode whatever the umask: `serve` walks through them.
        let missing: Vec<_> = data
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .collect();
        missing.into_iter().rev().try_for_each(|path| make_dir(path, 0o755))?;
        refuse_foreign(data)?;
        let data = data
            .canonicalize()
            .map_err(|source| OpenLayoutError::Make { path: data.to_owned(), source })?;
        let layout = Self { root: data.join("launcher"), data };
        owned(&layout.root, 0o710)?;
        owned(&layout.agents(), 0o710)?;
        owned(&layout.sandboxes(), 0o700)?;
        owned(&layout.pool(), 0o700)?;
        for path in [&layout.root, &layout.agents()] {
            give(path, serve_gid, 0o710)
                .map_err(|source| OpenLayoutError::Make { path: path.clone(), source })?;
        }
        Ok(layout)
    }

    /// Takes the lock of this installation, or says who else has it.
    pub fn lock(&self) -> Result<InstallationLock, OpenLayoutError> {
        let path = self.root.join("launcher.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| OpenLayoutError::Make { path: path.clone(), source })?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(InstallationLock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(OpenLayoutError::AlreadyRunning { path: self.data.clone() })
            }
            Err(source) => Err(OpenLayoutError::Make { path, source: source.into() }),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn agents(&self) -> PathBuf {
        self.root.join("agents")
    }

    pub fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("launcher.log")
    }

    pub fn generation(&self) -> PathBuf {
        self.root.join("generation")
    }

    /// Names this installation among others on the machine, the same after every start: what it
    /// leaves in places that all share (control groups, mounts) bears this name.
    pub fn installation(&self) -> String {
        format!("sinew-{:016x}", fnv1a(self.data.as_os_str().as_encoded_bytes()))
    }

    pub fn bind(&self, serve_gid: u32) -> io::Result<UnixListener> {
        bind(&self.root, SOCKET, serve_gid)
    }

    pub fn connect(&self) -> io::Result<UnixStream> {
        connect(&self.root, SOCKET)
    }

    pub fn bind_agent(&self, sandbox: &SandboxId, serve_gid: u32) -> io::Result<UnixListener> {
        bind(&self.agents(), &agent_socket(sandbox), serve_gid)
    }

    pub fn connect_agent(&self, sandbox: &SandboxId) -> io::Result<UnixStream> {
        connect(&self.agents(), &agent_socket(sandbox))
    }

    pub fn unlink_agent(&self, sandbox: &SandboxId) -> io::Result<()> {
        missing_is_fine(fs::remove_file(self.agents().join(agent_socket(sandbox))))
    }
}

fn agent_socket(sandbox: &SandboxId) -> String {
    format!("{sandbox}.sock")
}

/// Binds by way of the open directory, because a socket's path is limited to 107 bytes and a data
/// directory's is not.
fn bind(dir: &Path, name: &str, serve_gid: u32) -> io::Result<UnixListener> {
    let dir = open_dir(dir)?;
    let path = through(&dir, name);
    missing_is_fine(fs::remove_file(&path))?;
    let listener = UnixListener::bind(&path)?;
    give(&path, serve_gid, 0o660)?;
    Ok(listener)
}

fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let dir = open_dir(dir)?;
    UnixStream::connect(through(&dir, name))
}

fn open_dir(dir: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

fn through(dir: &impl AsRawFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Gives the group of `serve` what the mode says. Ownership first: a change of owner drops bits.
fn give(path: &Path, serve_gid: u32, mode: u32) -> io::Result<()> {
    chown(path, None, Some(serve_gid))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), OpenLayoutError> {
    match DirBuilder::new().mode(mode).create(path) {
        // Whatever the umask.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(|source| OpenLayoutError::Make { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(OpenLayoutError::Make { path: path.to_owned(), source }),
    }
}

fn refuse_foreign(path: &Path) -> Result<(), OpenLayoutError> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|source| OpenLayoutError::Make { path: path.to_owned(), source })?;
    if !metadata.is_dir() {
        return Err(OpenLayoutError::NotADirectory { path: path.to_owned() });
    }
    if metadata.uid() != 0 {
        return Err(OpenLayoutError::Owner { path: path.to_owned(), owner: metadata.uid() });
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(OpenLayoutError::Writable { path: path.to_owned() });
    }
    Ok(())
}

/// A log larger than this is set aside when a launcher is started. It gets a line or two a
/// sandbox.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Opens the log for appending; `serve` may read it.
pub fn open_log(layout: &Layout, serve_gid: u32) -> io::Result<File> {
    let path = layout.log();
    if fs::symlink_metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        fs::rename(&path, path.with_extension("log.old"))?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)?;
    lchown(&path, None, Some(serve_gid))?;
    Ok(file)
}

/// Replaces a small file in one step: a reader, and a launcher after a crash, sees the old or the
/// new content.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)?;
    fs::rename(&new, path)
}

pub fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_own_directories_are_taken() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP only_roots_own_directories_are_taken: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("made/on/the/way/data");
        let layout = Layout::open(&data, 64_500).unwrap();
        assert_eq!(fs::metadata(layout.root()).unwrap().mode() & 0o7777, 0o710);
        assert_eq!(fs::metadata(layout.pool()).unwrap().mode() & 0o7777, 0o700);
        let on_the_way = dir.path().join("made/on/the");
        assert_eq!(fs::metadata(on_the_way).unwrap().mode() & 0o7777, 0o755);

        chown(&data, Some(64_500), None).unwrap();
        let error = Layout::open(&data, 64_500).unwrap_err();
        assert!(matches!(error, OpenLayoutError::Owner { owner: 64_500, .. }), "{error}");

        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink("/etc", other.join("launcher")).unwrap();
        let error = Layout::open(&other, 64_500).unwrap_err();
        assert!(matches!(error, OpenLayoutError::NotADirectory { .. }), "{error}");
    }

    #[test]
    fn one_launcher_at_a_time_and_a_long_path_is_no_obstacle() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP one_launcher_at_a_time_and_a_long_path_is_no_obstacle: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(&dir.path().join("d".repeat(200)), 64_500).unwrap();
        let held = layout.lock().unwrap();
        assert!(matches!(layout.lock(), Err(OpenLayoutError::AlreadyRunning { .. })));
        drop(held);
        layout.lock().unwrap();

        let _listener = layout.bind(64_500).unwrap();
        layout.connect().unwrap();
    }
}
