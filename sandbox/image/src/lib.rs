//! Root filesystems for sandboxes: built once, checked by digest, shared by every sandbox.
//!
//! An image cache is one directory:
//!
//! ```text
//! <images>/                      0755  the build lock, and what anyone may read
//!   <id>.json                    0644  the manifest again (a hard link), for unprivileged readers
//!   <id>/                        0700  so that nobody runs an old setuid program of an image
//!     manifest.json                    what it is and the digest of its tree
//!     rootfs/                          the tree, owned by canonical ids (0 to 65,535)
//! ```
//!
//! The invariant: an image is its manifest. A tree becomes an image by one rename of a directory
//! that holds both, after everything in it has reached the disk; until then it lies under a name
//! that no reader accepts and that the next build removes. The id is taken from the digest of the
//! tree, so that two images with the same id are the same image.

#![forbid(unsafe_code)]

mod bootstrap;
mod build;
mod commit;
mod config;
mod import;
mod manifest;
mod progress;
mod recipe;
mod removal;
mod sources;
mod store;
mod tree;
mod unpack;
mod users;
mod wire;

pub use build::{BuildImageError, BuildOptions};
pub use commit::CommitError;
pub use config::{ImageConfig, ImageSource, LeftOut, ResolvedUser, SourceKind};
pub use import::{ImportFrom, ImportImageError, ImportOptions, UnpackHelper};
pub use manifest::{Alias, IMPORTED, Image, Manifest, Package};
pub use progress::{Progress, Stage};
pub use recipe::{AGENT_GID, AGENT_UID, DEFAULT_IMAGE, MINIMAL_IMAGE, Recipe};
pub use store::{
    GetImageError, ImageStore, OpenStoreError, RemoveImageError, Removed, UseLock, VerifyImageError,
};
pub use tree::{TreeDigest, TreeError};
pub use unpack::error::UnpackError;
pub use unpack::fuzz::fuzz_import;
pub use unpack::limits::ImportLimits;
pub use unpack::main as unpacker;
pub use users::{User, Users};
