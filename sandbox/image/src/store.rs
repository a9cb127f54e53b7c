//! The cache: which images there are, and who uses them.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base_types::ImageId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::commit::CommitError;
use crate::manifest::{
    Image, MANIFEST_BYTES_MAX, MANIFEST_FILE, MANIFEST_FORMAT, MANIFEST_FORMAT_OLDEST, Manifest,
    ROOTFS_DIR, is_image_id,
};
use crate::removal::remove_tree;
use crate::tree::{TreeDigest, TreeError};
use crate::users::Users;

/// Whoever has the exclusive lock looks at the image, or renames it, and lets go.
const LOCK_TRIES: usize = 100;
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Not hexadecimal, so never an image's id; the process id follows, for a person who looks.
pub(crate) const BUILDING_PREFIX: &str = ".building-";
/// A removal renames first, so that a removal that is killed is finished by the next build.
const REMOVING_PREFIX: &str = ".building-removed-";

#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    #[error("open the image cache {path}: name another with `--images DIR` or `SINEW_IMAGES`")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "the image cache {path} can be written by others than its owner: run \
         `chmod go-w {path}`, or name another with `--images DIR`"
    )]
    Writable { path: PathBuf },
    #[error(
        "the image cache {path} belongs to user {owner}, and root would run what is in it: run \
         `chown root {path}`, or name another with `--images DIR`"
    )]
    Owner { path: PathBuf, owner: u32 },
}

#[derive(Debug, thiserror::Error)]
pub enum GetImageError {
    #[error(
        "there is no image `{name}`: build one with `sinew image build`, or bring your own with \
         `sinew image import`"
    )]
    Missing { name: String },
    #[error("the manifest {path} is damaged: run `sinew image build --force`")]
    Damaged { path: PathBuf, source: io::Error },
    #[error("read the image cache")]
    Store(#[from] OpenStoreError),
    #[error("lock image {id} for use")]
    Lock { id: ImageId, source: io::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyImageError {
    #[error(transparent)]
    Get(#[from] GetImageError),
    #[error("compute the checksum")]
    Tree(#[from] TreeError),
    #[error(
        "image {id} is not what was built: its checksum is blake3:{found}, the manifest says \
         {expected}; build it again with `sinew image build --force`"
    )]
    Differs { id: ImageId, expected: String, found: String },
}

#[derive(Debug, thiserror::Error)]
pub enum RemoveImageError {
    #[error(transparent)]
    Get(#[from] GetImageError),
    #[error("image {id} is in use{by}: stop the sandboxes that run from it first")]
    InUse { id: ImageId, by: Users },
    #[error("remove image {id}")]
    Remove { id: ImageId, source: io::Error },
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What [`ImageStore::remove`] has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    Image,
    /// It has other names, under which it stays.
    Name {
        left: Vec<String>,
    },
}

/// Held by whoever runs sandboxes from an image; [`ImageStore::remove`] refuses meanwhile. The
/// lock lives as long as any copy of its descriptor.
#[derive(Debug)]
pub struct UseLock(File);

impl AsFd for UseLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: PathBuf,
}

// === impl ImageStore ===

impl ImageStore {
    /// Makes the directory where it is missing. What root runs from it must be root's alone.
    pub fn open(dir: &Path) -> Result<Self, OpenStoreError> {
        let error = |source| OpenStoreError::Open { path: dir.to_owned(), source };
        let is_new = !dir.exists();
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(error)?;
        if is_new {
            // Whatever the umask: an unprivileged `serve` reads the manifests.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(error)?;
        }
        let metadata = fs::metadata(dir).map_err(error)?;
        if metadata.mode() & 0o022 != 0 {
            return Err(OpenStoreError::Writable { path: dir.to_owned() });
        }
        if rustix::process::geteuid().is_root() && metadata.uid() != 0 {
            return Err(OpenStoreError::Owner { path: dir.to_owned(), owner: metadata.uid() });
        }
        let dir = dir.canonicalize().map_err(error)?;
        Ok(Self { dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every complete image, newest first. One with a damaged manifest is left out, with a
    /// warning: it must not hide the others.
    pub fn list(&self) -> Result<Vec<Image>, OpenStoreError> {
        let error = |source| OpenStoreError::Open { path: self.dir.clone(), source };
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(error)?.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str().filter(|name| is_image_id(name)) else { continue };
            match self.read(id) {
                Ok(manifest) => images.push(Image::new(manifest, entry.path())),
                Err(error) => {
                    tracing::warn!(image = id, %error, "image skipped: its manifest cannot be read");
                }
            }
        }
        images.sort_by_key(|image| Reverse(image.manifest.built_at));
        Ok(images)
    }

    /// By id, or the newest of that name.
    pub fn get(&self, name_or_id: &str) -> Result<Image, GetImageError> {
        let missing = || GetImageError::Missing { name: name_or_id.to_owned() };
        if is_image_id(name_or_id) {
            let dir = self.dir.join(name_or_id);
            return match self.read(name_or_id) {
                Ok(manifest) => Ok(Image::new(manifest, dir)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
                Err(source) => {
                    Err(GetImageError::Damaged { path: dir.join(MANIFEST_FILE), source })
                }
            };
        }
        let named = |image: Image| Some((image.manifest.named_since(name_or_id)?, image));
        let newest = self.list()?.into_iter().filter_map(named).max_by_key(|(since, _)| *since);
        newest.map(|(_, image)| image).ok_or_else(missing)
    }

    /// Tells other users of this cache that the image must stay.
    pub fn lock_for_use(&self, id: &ImageId) -> Result<UseLock, GetImageError> {
        let error = |source| GetImageError::Lock { id: id.clone(), source };
        let mut tries = 0;
        loop {
            // Anew each time: whoever had the lock may have removed it.
            let image = self.get(id.as_str())?;
            let rootfs = match File::open(image.rootfs()) {
                Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(error)?,
            };
            match locked(rootfs, &image.rootfs()) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) if tries < LOCK_TRIES => tries += 1,
                Ok(None) => return Err(error(Errno::WOULDBLOCK.into())),
                Err(source) => return Err(error(source)),
            }
            std::thread::sleep(LOCK_RETRY);
        }
    }

    /// Who runs sandboxes from it; `None` for nobody. Asks the lock, and so needs root.
    pub fn users(&self, id: &ImageId) -> Result<Option<Users>, GetImageError> {
        let error = |source| GetImageError::Lock { id: id.clone(), source };
        let rootfs = File::open(self.get(id.as_str())?.rootfs()).map_err(error)?;
        match flock(&rootfs, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => Ok(Some(Users::of(&rootfs))),
            Err(errno) => Err(error(errno.into())),
        }
    }

    /// Reads the whole tree again: seconds, not milliseconds.
    pub fn verify(&self, id: &ImageId) -> Result<Image, VerifyImageError> {
        let image = self.get(id.as_str())?;
        let digest = TreeDigest::of(&image.rootfs())?;
        let found = format!("blake3:{}", digest.hex);
        if found == image.manifest.checksum {
            return Ok(image);
        }
        let expected = image.manifest.checksum.clone();
        Err(VerifyImageError::Differs { id: id.clone(), expected, found: digest.hex })
    }

    /// By id, the image; by name, the name, and the image with its last one. An image is not
    /// removed while any sandbox runs from it. Waits while someone builds or imports.
    pub fn remove(&self, name_or_id: &str) -> Result<Removed, RemoveImageError> {
        self.get(name_or_id)?;
        let _lock = self.lock_for_build(&mut || true)?;
        let image = self.get(name_or_id)?;
        let id = image.id().clone();
        if id.as_str() != name_or_id
            && let Some(left) = self.forget_name(&image, name_or_id)?
        {
            return Ok(Removed::Name { left });
        }
        let error = |source| RemoveImageError::Remove { id: id.clone(), source };
        let removed = match self.set_aside(&id).map_err(error)? {
            Some(removed) => removed,
            None => {
                let by = self.users(&id)?.unwrap_or_default();
                return Err(RemoveImageError::InUse { id, by });
            }
        };
        match fs::remove_file(self.public_manifest(id.as_str())) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
            _ => {}
        }
        remove_tree(&removed).map_err(error)?;
        Ok(Removed::Image)
    }

    /// Gives the image a name that no reader accepts; `None` while it is in use.
    pub(crate) fn set_aside(&self, id: &ImageId) -> io::Result<Option<PathBuf>> {
        let dir = self.dir.join(id.as_str());
        // Held until after the rename, so that nobody begins to use it in between.
        let _rootfs = match File::open(dir.join(ROOTFS_DIR)) {
            Ok(rootfs) if flock(&rootfs, FlockOperation::NonBlockingLockExclusive).is_err() => {
                return Ok(None);
            }
            Ok(rootfs) => Some(rootfs),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let aside = self.dir.join(format!("{REMOVING_PREFIX}{id}"));
        remove_tree(&aside)?;
        fs::rename(&dir, &aside)?;
        Ok(Some(aside))
    }

    pub(crate) fn find(&self, name: &str, recipe: &str) -> Result<Option<Image>, OpenStoreError> {
        let same = |image: &Image| image.manifest.name == name && image.manifest.recipe == recipe;
        Ok(self.list()?.into_iter().find(same))
    }

    /// The manifest inside the image for root, the public one for everybody else.
    fn read(&self, id: &str) -> io::Result<Manifest> {
        match read_manifest(&self.dir.join(id).join(MANIFEST_FILE), id) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                read_manifest(&self.public_manifest(id), id)
            }
            result => result,
        }
    }

    fn public_manifest(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// `None` while somebody has the exclusive lock, and where that one has taken the tree away from
/// its place between our opening it and our locking it: a lock on that keeps nothing.
fn locked(rootfs: File, place: &Path) -> io::Result<Option<UseLock>> {
    match flock(&rootfs, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let (ours, there) = (rootfs.metadata()?, fs::symlink_metadata(place));
    let is_there = there.is_ok_and(|it| (it.dev(), it.ino()) == (ours.dev(), ours.ino()));
    Ok(is_there.then_some(UseLock(rootfs)))
}

/// Makes the manifest readable for those who cannot walk into the image, but for the words and
/// variables of its programs: people bake secrets into those. Done again for an image that is there
/// already, since a crash may have come between the rename and this.
pub(crate) fn publish(images: &Path, manifest: &Manifest) -> io::Result<()> {
    let id = &manifest.id;
    let mut public = manifest.clone();
    if let Some(config) = &mut public.config {
        config.env.clear();
        config.entrypoint.clear();
        config.cmd.clear();
        config.labels.clear();
    }
    // A name of removals, so that no build has it and the next one sweeps it.
    let new = images.join(format!("{REMOVING_PREFIX}manifest-{id}"));
    remove_tree(&new)?;
    let mut file = File::create_new(&new)?;
    file.write_all(&serde_json::to_vec_pretty(&public)?)?;
    file.sync_all()?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    fs::rename(&new, images.join(format!("{id}.json")))?;
    File::open(images)?.sync_all()
}

fn read_manifest(path: &Path, id: &str) -> io::Result<Manifest> {
    let mut text = String::new();
    let read = File::open(path)?.take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut text)?;
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if read as u64 > MANIFEST_BYTES_MAX {
        return Err(invalid(format!("larger than {MANIFEST_BYTES_MAX} bytes")));
    }
    let manifest: Manifest = serde_json::from_str(&text)?;
    if !(MANIFEST_FORMAT_OLDEST..=MANIFEST_FORMAT).contains(&manifest.format) {
        return Err(invalid(format!("format {} is not known", manifest.format)));
    }
    if manifest.id.as_str() != id {
        return Err(invalid(format!("it is the manifest of {}", manifest.id)));
    }
    let rootfs = path.with_file_name(ROOTFS_DIR);
    if path.ends_with(MANIFEST_FILE) && !rootfs.is_dir() {
        return Err(invalid("the tree beside it is missing".to_owned()));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_is_taken_away_while_it_is_locked_is_not_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        let id = ImageId::new("0a".repeat(16));
        let rootfs = store.dir().join(id.as_str()).join(ROOTFS_DIR);
        fs::create_dir_all(&rootfs).unwrap();
        let used = locked(File::open(&rootfs).unwrap(), &rootfs).unwrap().unwrap();
        assert_eq!(store.set_aside(&id).unwrap(), None);
        drop(used);
        // Opened by one who wants to use it, removed by another, and only then locked.
        let opened = File::open(&rootfs).unwrap();
        assert!(store.set_aside(&id).unwrap().is_some());
        assert!(locked(opened, &rootfs).unwrap().is_none());
        // The same tree was imported again meanwhile.
        let aside = File::open(store.dir().join(format!("{REMOVING_PREFIX}{id}"))).unwrap();
        fs::create_dir_all(&rootfs).unwrap();
        assert!(locked(aside, &rootfs).unwrap().is_none());
    }
}
