//! The unix socket that the API listens on.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, chown};

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("another `sinew serve` answers on {path}")]
    InUse { path: PathBuf },
    #[error("{path} is in the way: it is not a socket")]
    NotASocket { path: PathBuf },
    #[error("{path} is too long for a socket's name (107 bytes): choose a shorter data directory")]
    TooLong { path: PathBuf },
    #[error("listen on {path}")]
    Io { path: PathBuf, source: io::Error },
}

/// Who may use the socket. Without a group it is its owner's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOwner {
    pub uid: u32,
    pub group: Option<u32>,
}

/// A bound socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// `sun_path` has 108 bytes, the last one NUL.
const PATH_BYTES_MAX: usize = 107;

impl ApiSocket {
    /// Binds, with the mode in force from the first moment on. A socket file that nobody answers
    /// on is left over from a killed process and is replaced. The caller holds the data
    /// directory's lock, so two of us never race here.
    ///
    /// Changes the process's umask for a moment: call it before there are other threads.
    pub fn bind(path: &Path, owner: Option<SocketOwner>) -> Result<Self, BindError> {
        let io = |source| BindError::Io { path: path.to_owned(), source };
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(BindError::TooLong { path: path.to_owned() });
        }
        remove_stale(path)?;
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound.map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        let socket = Self { listener, path: path.to_owned() };
        if let Some(SocketOwner { uid, group }) = owner {
            let changed = chown(path, Some(Uid::from_raw(uid)), group.map(Gid::from_raw));
            changed.map_err(|errno| io(errno.into()))?;
            if group.is_some() {
                let mode = std::fs::Permissions::from_mode(0o660);
                std::fs::set_permissions(path, mode).map_err(io)?;
            }
        }
        Ok(socket)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        // A process that dropped its privileges may not be allowed to; the next start replaces it.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the API socket's file stays");
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    if UnixStream::connect(path).is_ok() {
        return Err(BindError::InUse { path: path.to_owned() });
    }
    std::fs::remove_file(path).map_err(io)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_socket_can_be_opened_to_one_group() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP a_socket_can_be_opened_to_one_group: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serve.sock");
        let owner = SocketOwner { uid: 64_500, group: Some(64_501) };
        let _socket = ApiSocket::bind(&path, Some(owner)).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
        assert_eq!((metadata.uid(), metadata.gid()), (64_500, 64_501));
    }

    #[test]
    fn a_socket_is_private_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serve.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the file of a dead listener stays");

        let socket = ApiSocket::bind(&path, None).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(ApiSocket::bind(&path, None), Err(BindError::InUse { .. })));
        drop(socket);
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ApiSocket::bind(&path, None), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(ApiSocket::bind(&long, None), Err(BindError::TooLong { .. })));
    }
}
