//! Importing archives: those that people have, and those that somebody made to do harm. The
//! unpacker runs in its jail, so that every test here needs root.

#![forbid(unsafe_code)]

mod archives;
mod damaged;
mod formats;
mod hostile;
mod jail;
mod layers;
mod store;
mod tools;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sandbox_image::{
    Image, ImageStore, ImportFrom, ImportImageError, ImportLimits, ImportOptions, UnpackError,
    UnpackHelper,
};

pub fn is_root(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP {test}: needs root");
        return false;
    }
    true
}

pub fn helper() -> UnpackHelper {
    UnpackHelper {
        program: env!("CARGO_BIN_EXE_image-unpacker").into(),
        args: Vec::new(),
        map_ids: sandbox_container::map_ids,
    }
}

/// A cache of its own, and room for archives beside it.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub store: ImageStore,
}

impl Bench {
    pub fn make() -> Self {
        // On a disk: a file system in memory cannot be id-mapped by older kernels.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn options(&self, path: &Path) -> ImportOptions {
        ImportOptions {
            from: ImportFrom::Path(path.to_owned()),
            name: "imported".to_owned(),
            reference: None,
            limits: ImportLimits::default(),
            interrupt: Arc::new(AtomicBool::new(false)),
        }
    }

    pub fn import_with(&self, options: &ImportOptions) -> Result<Image, ImportImageError> {
        self.store.import(options, &helper(), &mut |_| {})
    }

    pub fn import(&self, path: &Path) -> Result<Image, ImportImageError> {
        self.import_with(&self.options(path))
    }

    #[track_caller]
    pub fn imported(&self, bytes: &[u8]) -> Image {
        self.import(&self.file("archive", bytes)).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Fails with an error of the archive's, and nothing is left in the cache.
    #[track_caller]
    pub fn refused_with(&self, options: &ImportOptions) -> UnpackError {
        let before = self.names();
        match self.import_with(options) {
            Err(ImportImageError::Refused { error, .. }) => {
                let mut left = self.names();
                left.retain(|name| name != "build.lock");
                assert!(left.iter().all(|name| before.contains(name)), "{left:?} is left");
                error
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn refused(&self, bytes: &[u8]) -> UnpackError {
        let path = self.file("archive", bytes);
        self.refused_with(&self.options(&path))
    }

    pub fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.store.dir()).unwrap().flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

pub fn owner(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}
