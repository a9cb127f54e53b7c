//! Where one installation keeps its things.
//!
//! ```text
//! DATA/                0755 root
//!   serve.sock         0600, the API
//!   serve/             0700, what the unprivileged `serve` writes
//!     journal.sqlite   the journal
//!     master.key       0600, 32 random bytes: opens the journal's sealed tokens
//!     node             this installation's name among the owners of sessions
//!   launcher/          the launcher's own (sandbox/launcher)
//!   images/            the image cache, unless `--images` names another
//! ```

use std::path::{Path, PathBuf};

use base_config::{ConfigErrors, Overrides, Sources};

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

    pub fn socket(&self) -> PathBuf {
        self.data.join(control_server::SOCKET_FILE)
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
