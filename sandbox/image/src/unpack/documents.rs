//! The JSON documents of an OCI layout and of a docker archive, as far as they are read.
//!
//! Unknown fields are passed over, as both specifications ask; sizes, digests and media types are
//! claims that [`crate::unpack::layout`] checks.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::unpack::error::UnpackError;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

pub fn parse<T: DeserializeOwned>(document: &str, bytes: &[u8]) -> Result<T, UnpackError> {
    serde_json::from_slice(bytes).map_err(|error| UnpackError::document(document, error))
}

/// `null` where a list or an object is expected, as Go programs write it.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Deserialize)]
pub struct Index {
    #[serde(default, deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
}

#[derive(Debug, Deserialize)]
pub struct Manifest {
    pub config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Default, Deserialize)]
pub struct Config {
    #[serde(default)]
    pub architecture: Option<String>,
    #[serde(default)]
    pub os: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub config: Execution,
    pub rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    #[serde(default, deserialize_with = "or_default")]
    pub user: String,
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    pub stop_signal: String,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
pub struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// One image of docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    pub config: String,
    #[serde(default, deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<String>,
}

// === impl Descriptor ===

impl Descriptor {
    /// Names that people know it by, the fullest first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [IMAGE_NAME, REF_NAME].into_iter().filter_map(|key| self.annotations.get(key)).map(|s| &**s)
    }

    /// What builders put beside images: provenance and such.
    pub fn is_attestation(&self) -> bool {
        self.annotations.contains_key(REFERENCE_TYPE)
            || self.platform.as_ref().is_some_and(|platform| platform.architecture == "unknown")
    }

    pub fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    pub fn is_manifest(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v2+json"
        )
    }

    /// The configuration of something that is no image (a chart, a signature) is another type.
    pub fn is_image_config(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.config.v1+json"
                | "application/vnd.docker.container.image.v1+json"
        )
    }

    /// Layers that are to be fetched from elsewhere or are encrypted are not here.
    pub fn is_layer(&self) -> bool {
        let known = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar",
        ];
        let known = known.iter().any(|prefix| self.media_type.starts_with(prefix));
        known && !self.media_type.ends_with("+encrypted")
    }

    /// The hexadecimal digits of a digest that is one.
    pub fn sha256_hex(&self) -> Result<&str, UnpackError> {
        let hex = self.digest.strip_prefix("sha256:").filter(|hex| is_sha256_hex(hex));
        hex.ok_or_else(|| UnpackError::unsupported(format!("the digest `{}`", self.digest)))
    }
}

// === impl Platform ===

impl Platform {
    pub fn is(&self, architecture: &str) -> bool {
        self.os == "linux" && self.architecture == architecture
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

pub fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_programs_leave_out_or_write_as_null_is_empty() {
        let text = br#"{"architecture":"amd64","config":{"Env":null,"Cmd":["sh"],"Labels":null,
            "ExposedPorts":{"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config: Config = parse("config", text).unwrap();
        assert!(config.config.env.is_empty() && config.config.cmd == ["sh"]);
        let config: Config = parse("config", br#"{"config":null,"rootfs":{}}"#).unwrap();
        assert!(config.config.user.is_empty());
        parse::<Config>("config", b"{}").unwrap_err();
    }

    #[test]
    fn a_document_that_nests_without_end_is_an_error() {
        let deep = [b"[".repeat(1 << 20), b"]".repeat(1 << 20)].concat();
        let error = parse::<Index>("index.json", &deep).unwrap_err();
        assert!(matches!(error, UnpackError::Document { .. }), "{error}");
    }

    #[test]
    fn a_digest_is_never_a_path() {
        let digest = |digest: &str| Descriptor {
            media_type: String::new(),
            digest: digest.to_owned(),
            size: 0,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(digest(&good).sha256_hex().unwrap(), "0a".repeat(32));
        for bad in ["sha256:../../etc/passwd", "sha256:", "sha512:00", &good.to_uppercase()] {
            digest(bad).sha256_hex().unwrap_err();
        }
    }
}
