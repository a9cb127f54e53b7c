//! From a tree under a name that no reader accepts to an image: hash it, write the manifest, sync,
//! rename. Builds and imports share it, and the lock that they take turns by.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base_types::{Clock, ImageId, SystemClock};
use rustix::fs::{FlockOperation, flock};

use crate::config::{ImageConfig, ImageSource};
use crate::manifest::{
    Alias, Image, MANIFEST_BYTES_MAX, MANIFEST_FILE, MANIFEST_FORMAT, Manifest, Package,
    ROOTFS_DIR, id_of,
};
use crate::removal::remove_tree;
use crate::store::{BUILDING_PREFIX, GetImageError, ImageStore, publish};
use crate::tree::{TreeDigest, TreeError};

/// How often someone who waits for the lock looks whether to go on waiting.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// Of other names for one tree; the oldest is forgotten.
const ALIASES_MAX: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("it was interrupted")]
    Interrupted,
    #[error("clean up a half-built image at {path}")]
    CleanUp { path: PathBuf, source: io::Error },
    #[error("image {id} is damaged and in use: stop the sandboxes that run from it first")]
    DamagedInUse { id: ImageId },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("compute the checksum")]
    Checksum(#[source] TreeError),
    #[error("read the image that has the same tree")]
    Present(#[from] GetImageError),
}

/// What is known of a tree before it is hashed.
pub(crate) struct NewImage {
    pub name: String,
    pub recipe: String,
    pub packages: Vec<Package>,
    pub source: Option<ImageSource>,
    pub config: Option<ImageConfig>,
}

impl NewImage {
    fn manifest(self, digest: &TreeDigest) -> Manifest {
        let mut manifest = Manifest {
            format: MANIFEST_FORMAT,
            id: id_of(&digest.hex, self.config.as_ref()),
            name: self.name,
            aliases: Vec::new(),
            recipe: self.recipe,
            checksum: format!("blake3:{}", digest.hex),
            size_bytes: digest.size_bytes,
            entries: digest.entries,
            built_at: SystemClock.now(),
            packages: self.packages,
            source: self.source,
            config: self.config,
        };
        manifest.mark_format();
        manifest
    }
}

impl ImageStore {
    /// `go_on` is asked every now and then; once it says no, nothing has happened.
    pub(crate) fn commit(
        &self,
        new: NewImage,
        staging: Staging,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Image, CommitError> {
        let rootfs = staging.dir.join(ROOTFS_DIR);
        let digest = TreeDigest::of_while(&rootfs, go_on).map_err(|error| match error {
            TreeError::Interrupted => CommitError::Interrupted,
            error => CommitError::Checksum(error),
        })?;
        let manifest = new.manifest(&digest);
        let target = self.dir().join(manifest.id.as_str());
        if target.exists() {
            return self.commit_over(manifest, staging, &target);
        }
        write_manifest(&staging.dir, &manifest)?;
        staging.commit(&target)?;
        self.publish(&manifest, &target)?;
        Ok(Image::new(manifest, target))
    }

    /// The same tree is there already. It is kept, since sandboxes may run from it, unless it is
    /// no longer what its manifest says.
    fn commit_over(
        &self,
        manifest: Manifest,
        staging: Staging,
        target: &Path,
    ) -> Result<Image, CommitError> {
        if let Ok(image) = self.verify(&manifest.id) {
            staging.discard()?;
            return self.name_also(image, manifest);
        }
        let error = |source| CommitError::CleanUp { path: target.to_owned(), source };
        let in_use = || CommitError::DamagedInUse { id: manifest.id.clone() };
        write_manifest(&staging.dir, &manifest)?;
        let aside = self.set_aside(&manifest.id).map_err(error)?.ok_or_else(in_use)?;
        staging.commit(target)?;
        remove_tree(&aside).map_err(error)?;
        self.publish(&manifest, target)?;
        Ok(Image::new(manifest, target.to_owned()))
    }

    /// Gives the image that is there the name under which its tree came again, unless it is the
    /// newest of that name anyway.
    fn name_also(&self, image: Image, again: Manifest) -> Result<Image, CommitError> {
        let target = image.dir().to_owned();
        let holder = match self.get(&again.name) {
            Ok(holder) => Some(holder.id().clone()),
            Err(GetImageError::Missing { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let mut manifest = image.manifest;
        if holder.as_ref() != Some(&manifest.id) {
            manifest.aliases.retain(|alias| alias.name != again.name);
            manifest.aliases.push(Alias { name: again.name, since: again.built_at });
            let surplus = manifest.aliases.len().saturating_sub(ALIASES_MAX);
            manifest.aliases.drain(..surplus);
            manifest.mark_format();
            write_manifest(&target, &manifest)?;
        }
        self.publish(&manifest, &target)?;
        Ok(Image::new(manifest, target))
    }

    /// Takes a name from an image that has others, and says which; `None` if it is the only one.
    pub(crate) fn forget_name(
        &self,
        image: &Image,
        name: &str,
    ) -> Result<Option<Vec<String>>, CommitError> {
        let mut manifest = image.manifest.clone();
        manifest.aliases.retain(|alias| alias.name != name);
        if manifest.name == name {
            // It stays in the list, with its own time: that decides who is the newest of the name.
            let Some(next) = manifest.aliases.last() else { return Ok(None) };
            manifest.name = next.name.clone();
        }
        manifest.mark_format();
        write_manifest(image.dir(), &manifest)?;
        self.publish(&manifest, image.dir())?;
        Ok(Some(manifest.names().map(str::to_owned).collect()))
    }

    fn publish(&self, manifest: &Manifest, target: &Path) -> Result<(), CommitError> {
        let error = |source| CommitError::Write { path: target.to_owned(), source };
        publish(self.dir(), manifest).map_err(error)
    }

    /// Waits while someone else builds or imports, for as long as `go_on` says so.
    pub(crate) fn lock_for_build(
        &self,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<File, CommitError> {
        let path = self.dir().join("build.lock");
        let error = |source| CommitError::Lock { path: path.clone(), source };
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(error)?;
        while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(error(errno.into()));
            }
            if !go_on() {
                return Err(CommitError::Interrupted);
            }
            std::thread::sleep(LOCK_POLL);
        }
        Ok(file)
    }

    /// Under the build lock, whatever carries the prefix belongs to a build that is dead.
    pub(crate) fn remove_half_built(&self) -> Result<(), CommitError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| CommitError::CleanUp { path, source }
        };
        for entry in fs::read_dir(self.dir()).map_err(error(self.dir()))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(BUILDING_PREFIX) {
                remove_tree(&entry.path()).map_err(error(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// Whole or not at all, also where there is one already.
fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), CommitError> {
    let path = dir.join(MANIFEST_FILE);
    let new = dir.join("manifest.new");
    let write = |source| CommitError::Write { path: path.clone(), source };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| write(e.into()))?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        // Readers refuse it, and nobody could remove an image by a name that cannot be read.
        let too_large = format!("the manifest would have {} bytes", text.len());
        return Err(write(io::Error::new(io::ErrorKind::InvalidData, too_large)));
    }
    remove_tree(&new).map_err(write)?;
    let mut file = File::create_new(&new).map_err(write)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(write)?;
    file.set_permissions(Permissions::from_mode(0o644)).map_err(write)?;
    // One call for the whole tree: a manifest must not outlive files a power cut took.
    rustix::fs::syncfs(&file).map_err(|e| write(e.into()))?;
    fs::rename(&new, &path).map_err(write)
}

/// The directory of a build that is not finished: gone when dropped, unless committed.
pub(crate) struct Staging {
    pub dir: PathBuf,
    armed: bool,
}

impl Staging {
    pub(crate) fn create(images: &Path) -> Result<Self, CommitError> {
        let nanos = jiff::Timestamp::now().as_nanosecond();
        let dir = images.join(format!("{BUILDING_PREFIX}{}-{nanos}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|source| CommitError::Write { path: dir.clone(), source })?;
        Ok(Self { dir, armed: true })
    }

    fn commit(mut self, target: &Path) -> Result<(), CommitError> {
        let rename = fs::rename(&self.dir, target);
        rename.map_err(|source| CommitError::Write { path: target.to_owned(), source })?;
        self.armed = false;
        Ok(())
    }

    fn discard(mut self) -> Result<(), CommitError> {
        self.armed = false;
        let path = self.dir.clone();
        remove_tree(&path).map_err(|source| CommitError::CleanUp { path, source })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = remove_tree(&self.dir) {
            // The next build tries again, so this one's own error is the one to report.
            tracing::warn!(path = %self.dir.display(), %error, "half-built image stays until the next build");
        }
    }
}
