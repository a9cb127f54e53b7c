//! What is written beside a tree, and the image as its readers see it.

use std::path::{Path, PathBuf};

use base_types::{ImageId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config::{ImageConfig, ImageSource};

/// The latest format that this program knows; a later one is refused by name, not misread.
pub(crate) const MANIFEST_FORMAT: u32 = 2;
/// Before images could be imported: without source, configuration and aliases.
pub(crate) const MANIFEST_FORMAT_OLDEST: u32 = 1;
pub(crate) const MANIFEST_FILE: &str = "manifest.json";
pub(crate) const ROOTFS_DIR: &str = "rootfs";
/// An image of a distribution has some hundred packages: a larger manifest is not one of ours.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub id: ImageId,
    pub name: String,
    /// Other names that it was imported under since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Alias>,
    /// The fingerprint of the [`crate::Recipe`] it was built from; [`IMPORTED`] for an import.
    pub recipe: String,
    /// `blake3:` and the digest of paths, kinds, modes, owners, contents, links and attributes.
    pub checksum: String,
    pub size_bytes: u64,
    pub entries: u64,
    pub built_at: Timestamp,
    pub packages: Vec<Package>,
    /// What it was imported from; `None` for an image that was built here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ImageSource>,
    /// How its maker wants its programs to run; `None` where nobody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
}

/// The recipe of an image that was not built.
pub const IMPORTED: &str = "import";

/// A further name of an image, valid from a time on: the newest holder of a name has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    pub name: String,
    pub since: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
}

impl Manifest {
    /// Marks it with the oldest format that can say it: several versions of this program may share
    /// a cache, as they do in the middle of an upgrade.
    pub(crate) fn mark_format(&mut self) {
        let says_more = self.source.is_some() || self.config.is_some() || !self.aliases.is_empty();
        self.format = if says_more { MANIFEST_FORMAT } else { MANIFEST_FORMAT_OLDEST };
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        let others = self.aliases.iter().map(|alias| &*alias.name);
        std::iter::once(&*self.name).chain(others.filter(|name| *name != self.name))
    }

    /// Since when the image has this name, if it has.
    pub fn named_since(&self, name: &str) -> Option<Timestamp> {
        let first = (self.name == name).then_some(self.built_at);
        let later = self.aliases.iter().filter(|alias| alias.name == name).map(|a| a.since);
        later.chain(first).max()
    }
}

/// An image that is complete and in the cache.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Manifest,
    dir: PathBuf,
}

impl Image {
    pub(crate) fn new(manifest: Manifest, dir: PathBuf) -> Self {
        Self { manifest, dir }
    }

    pub fn id(&self) -> &ImageId {
        &self.manifest.id
    }

    /// The tree. Only root can walk to it.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join(ROOTFS_DIR)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// How many of the digest's hexadecimal digits name an image: 128 bits.
const ID_DIGITS: usize = 32;

/// The same tree with another configuration is another image: its programs run differently. A tree
/// without one is named by its digest alone.
pub(crate) fn id_of(checksum_hex: &str, config: Option<&ImageConfig>) -> ImageId {
    let Some(config) = config else { return short(checksum_hex) };
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"image 2\n").update(checksum_hex.as_bytes()).update(b"\n");
    // Its fields and maps have one order, and nothing in it can fail to be written.
    hasher.update(&serde_json::to_vec(config).unwrap_or_default());
    short(&hasher.finalize().to_hex())
}

fn short(hex: &str) -> ImageId {
    ImageId::new(hex.chars().take(ID_DIGITS).collect::<String>())
}

/// An id becomes a file name, so it is nothing but what [`id_of`] makes.
pub(crate) fn is_image_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_follows_tree_and_configuration() {
        let hex = "ab".repeat(32);
        let mut config = ImageConfig::default();
        assert_eq!(id_of(&hex, None).as_str(), "ab".repeat(16));
        let plain = id_of(&hex, Some(&config));
        config.cmd.push("sh".to_owned());
        let other = id_of(&hex, Some(&config));
        assert!(plain != other && is_image_id(other.as_str()));
        assert_eq!(other, id_of(&hex, Some(&config)));
    }

    #[test]
    fn what_an_older_version_can_read_is_written_for_it() {
        let mut manifest = Manifest {
            format: 0,
            id: ImageId::from("00"),
            name: "debian".into(),
            aliases: Vec::new(),
            recipe: "by hand".into(),
            checksum: "blake3:00".into(),
            size_bytes: 1,
            entries: 1,
            built_at: Timestamp(1),
            packages: Vec::new(),
            source: None,
            config: None,
        };
        manifest.mark_format();
        assert_eq!(manifest.format, 1);
        manifest.aliases.push(Alias { name: "again".into(), since: Timestamp(2) });
        manifest.mark_format();
        assert_eq!(manifest.format, 2);
    }

    #[test]
    fn an_id_is_never_a_path() {
        assert!(is_image_id(&"0a".repeat(16)));
        for bad in ["", "..", "debian", &"0A".repeat(16), &"../a".repeat(8), &"a".repeat(33)] {
            assert!(!is_image_id(bad), "{bad}");
        }
    }
}
