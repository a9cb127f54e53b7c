//! The digest of a tree: the same for the same paths, kinds, modes, owners, contents, links and
//! extended attributes, whatever the times and the order on disk are.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};

/// More than a large image has; a tree beyond it is a mistake, not an image.
const ENTRIES_MAX: u64 = 4_000_000;
/// The kernel's own limits on the attributes of one file.
const XATTR_LIST_BYTES_MAX: usize = 65_536;
const XATTR_VALUE_BYTES_MAX: usize = 65_536;
const READ_BUFFER_BYTES: usize = 256 << 10;
/// Our own digest's name: raised when what is hashed changes.
const DOMAIN: &[u8] = b"image tree 1\n";

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds more than {ENTRIES_MAX} entries")]
    TooLarge { path: PathBuf },
    #[error("it was interrupted")]
    Interrupted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeDigest {
    pub hex: String,
    /// What the contents of its regular files add up to, hard links counted once.
    pub size_bytes: u64,
    pub entries: u64,
}

impl TreeDigest {
    pub fn of(root: &Path) -> Result<Self, TreeError> {
        Self::of_while(root, &mut || true)
    }

    /// For as long as `go_on`, which is asked before each entry and each read, says so.
    pub(crate) fn of_while(
        root: &Path,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Self, TreeError> {
        let mut walk = Walk {
            root,
            go_on,
            hasher: blake3::Hasher::new(),
            seen: BTreeMap::new(),
            size_bytes: 0,
            entries: 0,
            buffer: vec![0; READ_BUFFER_BYTES],
        };
        walk.hasher.update(DOMAIN);
        walk.entry(root)?;
        let hex = walk.hasher.finalize().to_hex().to_string();
        Ok(Self { hex, size_bytes: walk.size_bytes, entries: walk.entries })
    }
}

struct Walk<'a> {
    root: &'a Path,
    go_on: &'a mut dyn FnMut() -> bool,
    hasher: blake3::Hasher,
    /// The first path of each file that has several names: the others are hashed as links to it.
    seen: BTreeMap<(u64, u64), PathBuf>,
    size_bytes: u64,
    entries: u64,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// Hashes `top` and everything below it in the order of path components, with a stack of its
    /// own: a tree deeper than ours is allowed to be.
    fn entry(&mut self, top: &Path) -> Result<(), TreeError> {
        let mut pending = vec![top.to_owned()];
        while let Some(path) = pending.pop() {
            self.entries += 1;
            if !(self.go_on)() {
                return Err(TreeError::Interrupted);
            }
            if self.entries > ENTRIES_MAX {
                return Err(TreeError::TooLarge { path: self.root.to_owned() });
            }
            let read = |source| TreeError::Read { path: path.clone(), source };
            let metadata = fs::symlink_metadata(&path).map_err(read)?;
            let is_read = self.one(&path, &metadata).map_err(read)?;
            if !is_read {
                return Err(TreeError::Interrupted);
            }
            if metadata.is_dir() {
                let mut children = fs::read_dir(&path)
                    .and_then(|dir| dir.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>())
                    .map_err(read)?;
                children.sort_by(|a, b| b.cmp(a));
                pending.extend(children);
            }
        }
        Ok(())
    }

    /// False: it was interrupted.
    fn one(&mut self, path: &Path, metadata: &fs::Metadata) -> io::Result<bool> {
        let relative = path.strip_prefix(self.root).unwrap_or(path).to_owned();
        self.field(relative.as_os_str());
        for number in [metadata.mode(), metadata.uid(), metadata.gid()] {
            self.hasher.update(&number.to_le_bytes());
        }
        self.attributes(path)?;
        let kind = metadata.file_type();
        if kind.is_symlink() {
            self.field(fs::read_link(path)?.as_os_str());
        } else if kind.is_block_device() || kind.is_char_device() {
            self.hasher.update(&metadata.rdev().to_le_bytes());
        } else if kind.is_file() {
            return self.content(path, &relative, metadata);
        }
        Ok(true)
    }

    /// False: it was interrupted. A file of holes can be larger than anyone waits for.
    fn content(&mut self, path: &Path, relative: &Path, meta: &fs::Metadata) -> io::Result<bool> {
        if meta.nlink() > 1 {
            let inode = (meta.dev(), meta.ino());
            if let Some(first) = self.seen.get(&inode).cloned() {
                self.hasher.update(b"link");
                self.field(first.as_os_str());
                return Ok(true);
            }
            self.seen.insert(inode, relative.to_owned());
        }
        self.hasher.update(b"data").update(&meta.len().to_le_bytes());
        self.size_bytes += meta.len();
        let mut file = File::open(path)?;
        while (self.go_on)() {
            match file.read(&mut self.buffer)? {
                0 => return Ok(true),
                count => self.hasher.update(self.buffer.get(..count).unwrap_or_default()),
            };
        }
        Ok(false)
    }

    fn attributes(&mut self, path: &Path) -> io::Result<()> {
        let mut list = vec![0; XATTR_LIST_BYTES_MAX];
        let length = match llistxattr(path, &mut list) {
            Ok(length) => length,
            Err(rustix::io::Errno::NOTSUP) => 0,
            Err(error) => return Err(error.into()),
        };
        list.truncate(length);
        let mut names: Vec<&[u8]> = list.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort_unstable();
        self.hasher.update(&(names.len() as u64).to_le_bytes());
        for name in names {
            let mut value = vec![0; XATTR_VALUE_BYTES_MAX];
            let length = lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
            value.truncate(length);
            self.field(OsStr::from_bytes(name));
            self.field(OsStr::from_bytes(&value));
        }
        Ok(())
    }

    /// With its length before it, so that no two lists of fields read the same.
    fn field(&mut self, value: &OsStr) {
        let bytes = value.as_bytes();
        self.hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn sample(root: &Path) {
        fs::create_dir_all(root.join("bin/deep")).unwrap();
        fs::write(root.join("bin/tool"), "#!/bin/sh\n").unwrap();
        fs::hard_link(root.join("bin/tool"), root.join("bin/also")).unwrap();
        symlink("tool", root.join("bin/link")).unwrap();
        fs::write(root.join("a"), "1").unwrap();
    }

    #[track_caller]
    fn changes_it(change: impl FnOnce(&Path)) {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        sample(one.path());
        sample(two.path());
        let before = TreeDigest::of(one.path()).unwrap();
        assert_eq!(before, TreeDigest::of(two.path()).unwrap());
        change(two.path());
        assert_ne!(before.hex, TreeDigest::of(two.path()).unwrap().hex);
    }

    #[test]
    fn every_kind_of_change_shows() {
        changes_it(|root| fs::write(root.join("a"), "2").unwrap());
        changes_it(|root| fs::rename(root.join("a"), root.join("b")).unwrap());
        changes_it(|root| fs::create_dir(root.join("empty")).unwrap());
        changes_it(|root| {
            let mode = fs::Permissions::from_mode(0o4755);
            fs::set_permissions(root.join("bin/tool"), mode).unwrap();
        });
        changes_it(|root| {
            fs::remove_file(root.join("bin/link")).unwrap();
            symlink("/bin/tool", root.join("bin/link")).unwrap();
        });
        changes_it(|root| {
            fs::remove_file(root.join("bin/also")).unwrap();
            fs::write(root.join("bin/also"), "#!/bin/sh\n").unwrap();
        });
    }

    #[test]
    fn times_do_not_count_and_links_count_once() {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path());
        let before = TreeDigest::of(dir.path()).unwrap();
        let file = File::options().write(true).open(dir.path().join("a")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(before, TreeDigest::of(dir.path()).unwrap());
        assert_eq!(before.size_bytes, 11);
        assert_eq!(before.entries, 7);
    }

    #[test]
    fn an_interrupt_is_heard_within_a_file() {
        let dir = tempfile::tempdir().unwrap();
        // All hole: an unpacker that was taken over can leave one of any size.
        File::create(dir.path().join("holes")).unwrap().set_len(1 << 30).unwrap();
        let mut asked = 0;
        let done = TreeDigest::of_while(dir.path(), &mut || {
            asked += 1;
            asked < 10
        });
        assert!(matches!(done, Err(TreeError::Interrupted)), "{done:?}");
    }
}
