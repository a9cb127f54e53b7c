//! What an installation is born with: its name among owners of sessions, and the key that opens
//! the tokens in its journal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use base_types::NodeId;
use control_session::{KEY_BYTES, Sealer};
use rand::TryRngCore;
use zeroize::Zeroizing;

use crate::installation::Installation;

/// The longest node file that is one: a prefix and a uuid.
const NODE_BYTES_MAX: u64 = 64;

/// The same at every start from this data directory.
pub fn node_id(installation: &Installation) -> anyhow::Result<NodeId> {
    let path = installation.node_file();
    if !path.exists() {
        let id = format!("node_{}", uuid::Uuid::new_v4().simple());
        create(&path, id.as_bytes()).context("write this installation's name")?;
    }
    let mut text = String::new();
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    file.take(NODE_BYTES_MAX).read_to_string(&mut text)?;
    let id = text.trim();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !id.starts_with("node_") || !id.chars().all(is_plain) {
        bail!("{} is not a node's name: restore it from a backup", path.display());
    }
    Ok(NodeId::from(id))
}

/// Reads the master key, and makes it at the first start. A key that is missing beside a journal
/// is not replaced: a new one would open none of the journal's tokens.
pub fn sealer(installation: &Installation) -> anyhow::Result<Sealer> {
    let path = installation.master_key();
    match read_key(&path) {
        Ok(key) => Ok(Sealer::new(&key)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if installation.journal().exists() {
                bail!(
                    "{} is missing beside a journal whose tokens only it opens: restore it from a \
                     backup, or move {} away to start empty",
                    path.display(),
                    installation.journal().display()
                );
            }
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            rand::rngs::OsRng.try_fill_bytes(key.as_mut()).context("read random bytes")?;
            create(&path, key.as_ref()).context("write the master key")?;
            Ok(Sealer::new(&key))
        }
        Err(error) => Err(error).with_context(|| format!("read the master key {}", path.display())),
    }
}

fn read_key(path: &Path) -> io::Result<Zeroizing<[u8; KEY_BYTES]>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "others than its owner may read it: run `chmod 600` on it, and think about who has",
        ));
    }
    if metadata.len() != KEY_BYTES as u64 {
        let what = format!("it has {} bytes, not {KEY_BYTES}", metadata.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    file.read_exact(key.as_mut())?;
    Ok(key)
}

/// The file is there whole or not at all, and it survives a power cut.
fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn installation() -> (tempfile::TempDir, Installation) {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::at(dir.path().to_owned());
        fs::create_dir(installation.serve_dir()).unwrap();
        (dir, installation)
    }

    #[test]
    fn a_name_and_a_key_are_made_once_and_kept() {
        let (_dir, installation) = installation();
        let first = node_id(&installation).unwrap();
        assert_eq!(node_id(&installation).unwrap(), first);
        sealer(&installation).unwrap();
        let key = fs::read(installation.master_key()).unwrap();
        sealer(&installation).unwrap();
        assert_eq!(fs::read(installation.master_key()).unwrap(), key);
        let mode = fs::metadata(installation.master_key()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_lost_or_open_or_cut_key_is_refused() {
        let (_dir, installation) = installation();
        fs::write(installation.journal(), "").unwrap();
        let error = format!("{:#}", sealer(&installation).err().unwrap());
        assert!(error.contains("restore it from a backup"), "{error}");

        fs::write(installation.master_key(), [0; KEY_BYTES]).unwrap();
        fs::set_permissions(installation.master_key(), fs::Permissions::from_mode(0o644)).unwrap();
        let error = format!("{:#}", sealer(&installation).err().unwrap());
        assert!(error.contains("chmod 600"), "{error}");

        fs::set_permissions(installation.master_key(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(installation.master_key(), [0; 5]).unwrap();
        let error = format!("{:#}", sealer(&installation).err().unwrap());
        assert!(error.contains("5 bytes"), "{error}");
    }
}
