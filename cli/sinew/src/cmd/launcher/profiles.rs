//! Profiles from the root-owned configuration, read again when the file has changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base_config::{Config, ConfigErrors, Overrides, Pool, Profile, Sources};
use base_types::ProfileName;
use sandbox_api::{Limits, Tier};
use sandbox_launcher::parts::{Entrypoint, PartError, Profiles, Shape, ToolsAs};

use super::LauncherArgs;

pub struct ConfiguredProfiles {
    overrides: Overrides,
    read: Mutex<Read>,
}

pub struct Settings {
    pub user: u32,
    pub images: PathBuf,
    pub pool: Pool,
    pub starts_ahead: usize,
}

struct Read {
    config: Config,
    /// Of the file it came from, so that a change is noticed.
    version: Option<FileVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl ConfiguredProfiles {
    pub fn load(args: &LauncherArgs) -> Result<Self, ConfigErrors> {
        let overrides = Overrides {
            config: args.config.clone(),
            data: Some(args.data.clone()),
            images: args.images.clone(),
            ..Overrides::default()
        };
        let version = FileVersion::of(&file(&overrides));
        let config = load(&overrides)?;
        Ok(Self { overrides, read: Mutex::new(Read { config, version }) })
    }

    /// What holds for the life of a launcher.
    pub fn settings(&self) -> Settings {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Config { user, images, pool, limits, .. } = &read.config;
        let starts_ahead = limits.starts_ahead as usize;
        Settings { user: *user, images: images.clone(), pool: *pool, starts_ahead }
    }

    /// A file with mistakes changes nothing: what was read before goes on, and the log says why.
    fn refresh(&self, read: &mut Read) {
        // Looked at before it is read: a change in between is noticed the next time.
        let version = FileVersion::of(&file(&self.overrides));
        if version == read.version {
            return;
        }
        read.version = version;
        match load(&self.overrides) {
            Ok(config) => {
                tracing::info!("the configuration was read again");
                read.config = config;
            }
            Err(errors) => tracing::error!(%errors, "the changed configuration is not used"),
        }
    }
}

impl Profiles for ConfiguredProfiles {
    fn shape(&self, name: &ProfileName) -> Result<Option<Shape>, PartError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut read);
        Ok(read.config.profiles.iter().find(|profile| profile.name == *name).map(shape))
    }
}

fn shape(profile: &Profile) -> Shape {
    Shape {
        tier: match profile.tier {
            base_config::Tier::Container => Tier::Container,
        },
        limits: Limits {
            cpu_millis: profile.cpu_millis,
            memory: profile.memory,
            pids: profile.pids,
            disk: profile.disk,
        },
        tools_as: profile.tools_as.map(|who| match who {
            base_config::ToolsAs::User => ToolsAs::User,
            base_config::ToolsAs::Root => ToolsAs::Root,
        }),
        workdir: profile.workdir.clone(),
        entrypoint: match &profile.entrypoint {
            base_config::Entrypoint::None => Entrypoint::None,
            base_config::Entrypoint::OfImage => Entrypoint::OfImage,
            base_config::Entrypoint::Command(words) => Entrypoint::Command(words.clone()),
        },
        env: profile.env.clone().into_iter().collect(),
    }
}

fn load(overrides: &Overrides) -> Result<Config, ConfigErrors> {
    let sources = Sources::new(overrides.clone(), std::env::vars_os(), true);
    base_config::load_without_environments(&sources.only_roots_own_file())
}

/// The file that is read, whether or not it is there.
fn file(overrides: &Overrides) -> PathBuf {
    let in_data = || overrides.data.as_deref().unwrap_or(Path::new("")).join("sinew.toml");
    overrides.config.clone().unwrap_or_else(in_data)
}

// === impl FileVersion ===

impl FileVersion {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}
