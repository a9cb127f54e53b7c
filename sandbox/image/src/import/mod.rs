//! Importing an image: take the lock, let the jailed unpacker put the tree under a name no reader
//! accepts, check what it reports, and commit as a build does.
//!
//! The invariant: nothing here reads a byte of the archive. What is learnt of it comes from the
//! unpacker as typed values, each of which is checked once more ([`check`]).

mod check;
mod helper;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::commit::{CommitError, NewImage, Staging};
use crate::manifest::{IMPORTED, Image, ROOTFS_DIR, is_image_id};
use crate::progress::{Progress, Stage};
use crate::store::ImageStore;
use crate::unpack::error::{UnpackError, shown};
use crate::unpack::limits::ImportLimits;
use crate::unpack::this_architecture;
use crate::wire::{Job, Report};

pub use helper::UnpackHelper;

/// As `docker` and OCI registries have them, with room for a registry's name.
const NAME_BYTES_MAX: usize = 128;
/// What an import leaves free on the cache's file system: a full one fails every sandbox on it.
const FREE_BYTES_KEPT: u64 = 256 << 20;
/// What an unpacker that is believed about nothing may leave of that: blocks, directories and
/// attributes are not counted by it, and one that was taken over does not count at all.
const FREE_BYTES_LEAST: u64 = FREE_BYTES_KEPT / 2;
/// The same for files, where the file system has a limit of them.
const FREE_FILES_LEAST: u64 = 1024;
/// The import's part of the bar; the checksum is the rest.
const UNPACK_FROM: u8 = 1;
const UNPACK_TO: u8 = 85;

#[derive(Debug, thiserror::Error)]
pub enum ImportImageError {
    #[error("importing an image needs root: run `sinew image import` as root")]
    NotRoot,
    #[error(
        "`{name}` is no name for an image: use up to 128 letters, digits and `._:/-`, beginning \
         with a letter or digit; 32 hexadecimal digits are an id"
    )]
    Name { name: String },
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "{path} is a directory without an `index.json`, so no OCI layout: pack a root filesystem \
         with `tar -C {path} -cf root.tar .` first"
    )]
    NoLayout { path: PathBuf },
    #[error("import {path}: {}", shown(.error.to_string().as_bytes()))]
    Refused { path: PathBuf, error: UnpackError },
    #[error(
        "the image would fill the file system of the image cache: make room there, or name \
         another cache with `--images DIR`"
    )]
    Filling,
    #[error("it was interrupted, and nothing of it is left")]
    Interrupted,
    #[error("start the unpacker")]
    Start(#[source] io::Error),
    #[error("this kernel lacks what the unpacker's jail needs; `sinew doctor` says more")]
    Jail(#[source] io::Error),
    #[error("the unpacker said nothing for {seconds} seconds and was stopped")]
    Silent { seconds: u64 },
    #[error("the unpacker ended with {status} before it was done: {hint}")]
    Died { status: std::process::ExitStatus, hint: &'static str },
    #[error("the unpacker reported nonsense: {reason}")]
    Nonsense { reason: String },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Commit(CommitError),
}

impl From<CommitError> for ImportImageError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Interrupted => ImportImageError::Interrupted,
            error => ImportImageError::Commit(error),
        }
    }
}

/// Where the archive is.
#[derive(Clone, Debug)]
pub enum ImportFrom {
    Path(PathBuf),
    /// Whatever standard input is.
    Stdin,
}

#[derive(Clone, Debug)]
pub struct ImportOptions {
    pub from: ImportFrom,
    pub name: String,
    /// Which image, where there are several.
    pub reference: Option<String>,
    pub limits: ImportLimits,
    /// Set from outside to have the import end soon, with nothing left.
    pub interrupt: Arc<AtomicBool>,
}

/// What is given to the unpacker: a file, or a directory that stays outside.
enum Input {
    Archive(File),
    Layout(OwnedFd),
}

impl ImageStore {
    /// Blocks for as long as it takes, and before that for as long as another build or import of
    /// this cache does. What it returns is in the cache, complete and on the disk.
    pub fn import(
        &self,
        options: &ImportOptions,
        helper: &UnpackHelper,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, ImportImageError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ImportImageError::NotRoot);
        }
        check_name(&options.name)?;
        let input = open(&options.from)?;
        let interrupted = || options.interrupt.load(Ordering::Relaxed);
        let mut waited = false;
        let lock = self.lock_for_build(&mut || {
            if !std::mem::replace(&mut waited, true) {
                progress(step(Stage::Waiting, 0));
            }
            !interrupted()
        })?;
        self.remove_half_built()?;
        let staging = Staging::create(self.dir())?;
        let rootfs = staging.dir.join(ROOTFS_DIR);
        let write = |source| ImportImageError::Write { path: rootfs.clone(), source };
        fs::create_dir(&rootfs).map_err(write)?;
        let (limits, is_all_there_is) = self.limits(options.limits).map_err(write)?;
        let job = Job {
            limits,
            reference: options.reference.clone(),
            architecture: this_architecture().to_owned(),
        };
        let unpacking = helper::Unpacking { helper, job: &job, input: &input, lock: &lock };
        let report = unpacking.run(&rootfs, &options.interrupt, &mut |done, total| {
            progress(Progress {
                stage: Stage::Unpacking,
                percent: percent(done, total),
                detail: String::new(),
            });
        });
        let report = report.map_err(|error| named(error, options, is_all_there_is))?;
        progress(step(Stage::Checksum, UNPACK_TO));
        let image = self.commit(new_image(options, report), staging, &mut || !interrupted())?;
        progress(Progress { stage: Stage::Done, percent: 100, detail: image.id().to_string() });
        Ok(image)
    }

    /// The limits, and whether the bytes are what the file system has rather than what was set.
    fn limits(&self, mut limits: ImportLimits) -> io::Result<(ImportLimits, bool)> {
        let stat = rustix::fs::statvfs(self.dir())?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(FREE_BYTES_KEPT);
        limits.entries = limits.entries.min(ImportLimits::ENTRIES_MAX);
        let is_all_there_is = free < limits.bytes;
        limits.bytes = limits.bytes.min(free);
        Ok((limits, is_all_there_is))
    }
}

/// Whether the cache's file system can bear that more is written to it.
fn has_room(cache: &File) -> io::Result<bool> {
    let stat = rustix::fs::fstatvfs(cache)?;
    let has_bytes = stat.f_bavail.saturating_mul(stat.f_frsize) >= FREE_BYTES_LEAST;
    Ok(has_bytes && (stat.f_files == 0 || stat.f_favail >= FREE_FILES_LEAST))
}

fn new_image(options: &ImportOptions, report: Report) -> NewImage {
    let mut source = report.source;
    source.from = match &options.from {
        ImportFrom::Path(path) => shown(path.as_os_str().as_encoded_bytes()),
        ImportFrom::Stdin => "-".to_owned(),
    };
    NewImage {
        name: options.name.clone(),
        recipe: IMPORTED.to_owned(),
        packages: report.packages,
        source: Some(source),
        config: report.config,
    }
}

fn named(error: helper::HelperError, options: &ImportOptions, is_all: bool) -> ImportImageError {
    let path = match &options.from {
        ImportFrom::Path(path) => path.clone(),
        ImportFrom::Stdin => PathBuf::from("-"),
    };
    match error {
        helper::HelperError::Refused(UnpackError::TooLarge { limit }) if is_all => {
            ImportImageError::Refused { path, error: UnpackError::NoRoom { limit } }
        }
        helper::HelperError::Refused(error) => ImportImageError::Refused { path, error },
        helper::HelperError::Own(error) => error,
    }
}

fn check_name(name: &str) -> Result<(), ImportImageError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let fits = name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed);
    match first && fits && !is_image_id(name) {
        true => Ok(()),
        false => Err(ImportImageError::Name { name: shown(name.as_bytes()) }),
    }
}

fn open(from: &ImportFrom) -> Result<Input, ImportImageError> {
    let path = match from {
        ImportFrom::Path(path) => path,
        ImportFrom::Stdin => {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            let error = |source| ImportImageError::Open { path: "-".into(), source };
            return Ok(Input::Archive(File::from(stdin.map_err(error)?)));
        }
    };
    let error = |source| ImportImageError::Open { path: path.clone(), source };
    let file = File::open(path).map_err(error)?;
    if !file.metadata().map_err(error)?.is_dir() {
        return Ok(Input::Archive(file));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(&file, "index.json", flags, Mode::empty()) {
        Ok(_) => Ok(Input::Layout(file.into())),
        Err(_) => Err(ImportImageError::NoLayout { path: path.clone() }),
    }
}

fn percent(done: u64, total: u64) -> u8 {
    let span = u64::from(UNPACK_TO - UNPACK_FROM);
    let part = done.min(total).saturating_mul(span).checked_div(total).unwrap_or(0);
    UNPACK_FROM + u8::try_from(part).unwrap_or(0)
}

fn step(stage: Stage, percent: u8) -> Progress {
    Progress { stage, percent, detail: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_neither_a_path_nor_an_id() {
        for good in ["debian", "app:1.2", "ghcr.io/org/app:latest", "A_b-c"] {
            check_name(good).unwrap();
        }
        let id = "ab".repeat(16);
        for bad in ["", "../x", "/x", "-x", "a b", "a\n", &id, &"x".repeat(129)] {
            check_name(bad).unwrap_err();
        }
    }

    #[test]
    fn the_bar_stays_in_its_part_whatever_is_said() {
        assert_eq!(percent(0, 0), UNPACK_FROM);
        assert_eq!(percent(9, 3), UNPACK_TO);
        assert_eq!(percent(u64::MAX, u64::MAX), UNPACK_FROM + 1);
    }
}
