//! What an imported image says of itself: where it came from, and how its programs want to run.
//!
//! The invariant: users are numbers here. A name was looked up in the image's own files by the
//! jailed unpacker, so that nobody who starts a sandbox ever reads those files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The parts of an OCI image configuration that mean something to a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `None`: the image names no user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<ResolvedUser>,
    /// Absolute, without `.` and `..`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// In the image's order; no name is empty or holds `=`, nothing holds a NUL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// As written there: a name like `SIGTERM`, or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// In OCI's words: `amd64`, `arm64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A user of the image, by number. Every number is a canonical id (0 to 65,535).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// As the image's configuration writes it: `app`, `1000`, `app:staff`.
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, without `gid`.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// From the image's `/etc/passwd`; `None` for a number that has no line there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
}

/// What kind of archive an image was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A tar archive of a root filesystem.
    Rootfs,
    /// An OCI image layout, as a directory or as an archive of one.
    OciLayout,
    /// What `docker save` writes, without an OCI layout inside.
    DockerArchive,
}

impl SourceKind {
    /// As `--json` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            SourceKind::Rootfs => "rootfs",
            SourceKind::OciLayout => "oci-layout",
            SourceKind::DockerArchive => "docker-archive",
        }
    }
}

impl std::fmt::Display for SourceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SourceKind::Rootfs => "root filesystem archive",
            SourceKind::OciLayout => "OCI layout",
            SourceKind::DockerArchive => "docker archive",
        })
    }
}

/// What an image was imported from, and what of it was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSource {
    pub kind: SourceKind,
    /// The path that was given, for a person.
    pub from: String,
    /// Which image of the archive, where it names any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Of the OCI manifest, of the docker image's configuration, or of the whole archive.
    pub digest: String,
    /// Of the layers, unpacked, lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diff_ids: Vec<String>,
    #[serde(default)]
    pub left_out: LeftOut,
}

/// What an import does not carry over, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Device nodes: a sandbox has a /dev of its own, and no other device works in it.
    pub devices: u64,
    /// Extended attributes that a sandbox cannot honour, or that would steer its overlay.
    pub attributes: u64,
}
