//! The limits of an import. Those that a large but honest image may meet can be raised by flags;
//! the others are far beyond any image that a person builds.

use serde::{Deserialize, Serialize};

/// Set by whoever imports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportLimits {
    /// What all files of all layers may add up to; holes and what later layers remove count too.
    pub bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
}

impl ImportLimits {
    pub const BYTES_DEFAULT: u64 = 16 << 30;
    pub const ENTRIES_DEFAULT: u64 = 500_000;
    /// What the digest of a tree takes, [`crate::TreeDigest`].
    pub const ENTRIES_MAX: u64 = 4_000_000;

    /// What one archive may hold, headers and padding included.
    pub fn stream_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.entries.saturating_mul(STREAM_ENTRY_BYTES))
    }
}

/// Headers and padding of one entry with a long name; entries with many attributes are few.
const STREAM_ENTRY_BYTES: u64 = 4096;

impl Default for ImportLimits {
    fn default() -> Self {
        Self { bytes: Self::BYTES_DEFAULT, entries: Self::ENTRIES_DEFAULT }
    }
}

/// The kernel takes 4095 bytes, and the cache's own path comes before it.
pub const PATH_BYTES_MAX: usize = 3072;
/// Far deeper than any tree of programs; removal and digest walk it.
pub const PATH_DEPTH_MAX: usize = 256;
/// The kernel's own.
pub const NAME_BYTES_MAX: usize = 255;
pub const LINK_BYTES_MAX: usize = 4095;
/// The kernel's own, for one path.
pub const LINKS_FOLLOWED_MAX: usize = 40;

/// One extended header, attributes included.
pub const PAX_BYTES_MAX: u64 = 1 << 20;
/// The kernel's own, for one value and for the names of one file.
pub const XATTR_BYTES_MAX: usize = 65_536;
pub const XATTRS_MAX: usize = 128;
/// Pieces of one sparse file.
pub const SPARSE_PIECES_MAX: usize = 65_536;
/// Headers in front of one entry: each kind once is what an archiver writes.
pub const PREFIX_HEADERS_MAX: usize = 16;

/// A compressed stream is measured against this only after its first bytes: small files of
/// zeros are common, and harmless.
pub const RATIO_FROM_BYTES: u64 = 128 << 20;
/// Programs compress to a third, text to a tenth; zeros to a thousandth.
pub const RATIO_MAX: u64 = 200;
/// A decompressor's window: what `zstd --ultra -22` and `xz -9` need.
pub const WINDOW_BYTES_MAX: u64 = 128 << 20;

/// One JSON document: an index, a manifest, a configuration.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// An index in an index, at most this often.
pub const INDEX_DEPTH_MAX: usize = 4;
/// OCI runtimes stop at about 125 layers.
pub const LAYERS_MAX: usize = 512;
/// Members of an archive of a layout: blobs and a few documents.
pub const MEMBERS_MAX: usize = 65_536;
/// Whiteouts of one layer, names and paths together.
pub const WHITEOUT_BYTES_MAX: usize = 64 << 20;

/// `/etc/passwd` and `/etc/group` of the image.
pub const USER_FILE_BYTES_MAX: usize = 4 << 20;
pub const GROUPS_MAX: usize = 256;
/// The package manager's own record.
pub const PACKAGE_FILE_BYTES_MAX: usize = 64 << 20;
pub const PACKAGES_MAX: usize = 20_000;
pub const PACKAGE_WORD_BYTES_MAX: usize = 256;
/// Names and versions of all packages: with everything else that an image says of itself they fit
/// into a manifest that is read again, escaped as they may be.
pub const PACKAGE_BYTES_MAX: usize = 1 << 20;

/// What of a configuration is carried over: lists of the same kind together.
pub const CONFIG_WORDS_MAX: usize = 1024;
pub const CONFIG_BYTES_MAX: usize = 256 << 10;
pub const LABELS_MAX: usize = 256;
pub const LABEL_BYTES_MAX: usize = 64 << 10;

/// Reads and writes of contents.
pub const BUFFER_BYTES: usize = 256 << 10;
