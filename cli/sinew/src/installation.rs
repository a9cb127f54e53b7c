//! Where one installation keeps its things.
//!
//! ```text
//! DATA/                0755 root
//!   serve.sock         a link to the API's socket
//!   api/               0755, the unprivileged `serve`'s
//!     serve.sock       0600, the API
//!   serve/             0700, what the unprivileged `serve` writes
//!     journal.sqlite   the journal
//!     master.key       0600, 32 random bytes: opens the journal's sealed tokens
//!     node             this installation's name among the owners of sessions
//!   launcher/          the launcher's own (sandbox/launcher)
//!   images/            the image cache, unless `--images` names another
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base_config::{ConfigErrors, Overrides, Sources};

use sandbox_launcher::ServeUser;

use crate::args::{DataArgs, ImagesArgs};

/// The image cache of `demo` and `bench`: it outlives their temporary installations.
pub const SHARED_IMAGES: &str = "/var/cache/sinew/images";

/// The paths of one data directory. Nothing is made or checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    data: PathBuf,
}

impl Installation {
    pub fn at(data: PathBuf) -> Self {
        Self { data }
    }

    /// The installation that a command asks about.
    pub fn of(args: &DataArgs) -> Result<Self, ConfigErrors> {
        let overrides = Overrides { data: args.data.clone(), ..Overrides::default() };
        Ok(Self::at(base_config::paths(&sources(overrides))?.data))
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where clients find the API: a link, because only root may write into this directory.
    pub fn socket_link(&self) -> PathBuf {
        self.data.join(control_server::SOCKET_FILE)
    }

    pub fn socket_dir(&self) -> PathBuf {
        self.data.join(control_server::SOCKET_DIR)
    }

    pub fn socket(&self) -> PathBuf {
        self.socket_dir().join(control_server::SOCKET_FILE)
    }

    pub fn serve_dir(&self) -> PathBuf {
        self.data.join("serve")
    }

    pub fn journal(&self) -> PathBuf {
        self.serve_dir().join("journal.sqlite")
    }

    pub fn master_key(&self) -> PathBuf {
        self.serve_dir().join("master.key")
    }

    pub fn node_file(&self) -> PathBuf {
        self.serve_dir().join("node")
    }
}

/// Makes what an unprivileged `serve` needs and cannot make itself. The data directory is one that
/// only root can change, so nobody can have planted something else in its place.
pub fn prepare_for_serve(installation: &Installation, user: ServeUser) -> anyhow::Result<()> {
    give_directory(&installation.serve_dir(), 0o700, user)?;
    give_directory(&installation.socket_dir(), 0o755, user)?;
    let (link, socket) = (installation.socket_link(), installation.socket());
    let leads_to = socket.strip_prefix(installation.data()).unwrap_or(&socket);
    if fs::read_link(&link).is_ok_and(|found| found == leads_to) {
        return Ok(());
    }
    // An older `serve` answers there until it is restarted, which comes by here again.
    if std::os::unix::net::UnixStream::connect(&link).is_ok() {
        return Ok(());
    }
    // A socket of an earlier version, which nobody else could have made here.
    match fs::symlink_metadata(&link) {
        Ok(found) if found.is_file() || found.is_dir() => {
            bail!("{} is in the way: it is not a socket", link.display())
        }
        Ok(_) => fs::remove_file(&link)?,
        Err(_) => {}
    }
    symlink(leads_to, &link).with_context(|| format!("link {}", link.display()))
}

fn give_directory(dir: &Path, mode: u32, user: ServeUser) -> anyhow::Result<()> {
    match DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("make {}", dir.display()));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir)?;
    if !metadata.is_dir() {
        bail!("{} is not a directory", dir.display());
    }
    if metadata.uid() != user.uid {
        if metadata.uid() != 0 {
            bail!(
                "{dir} belongs to user {owner}, and `serve` is to run as {uid}: run \
                 `chown -R {uid}:{gid} {dir}`, or set `user` in the configuration",
                dir = dir.display(),
                owner = metadata.uid(),
                uid = user.uid,
                gid = user.gid
            );
        }
        chown(dir, Some(user.uid), Some(user.gid))
            .with_context(|| format!("give {}", dir.display()))?;
    }
    // Whatever the umask.
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
    Ok(())
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The configuration as this process sees it: its flags, its variables, its user's defaults.
pub fn sources(overrides: Overrides) -> Sources {
    Sources::new(overrides, std::env::vars_os(), is_root())
}

/// The image cache that a command works on.
pub fn images(data: &DataArgs, images: &ImagesArgs) -> Result<PathBuf, ConfigErrors> {
    let overrides = Overrides {
        data: data.data.clone(),
        images: images.images.clone(),
        ..Overrides::default()
    };
    Ok(base_config::paths(&sources(overrides))?.images)
}
