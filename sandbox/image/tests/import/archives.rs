//! Archives as tests write them: entries one can bend at will, and the layouts around them.

use std::io::Write;

use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// A tar archive that is being written, without the library's own care for paths.
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    pub fn header(path: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        // Not through the library, which refuses what is to be tried here.
        let bytes = path.as_bytes();
        assert!(bytes.len() <= 100, "use `long`");
        header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        header
    }

    pub fn raw(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.raw(Self::header(path, EntryType::Regular, content.len() as u64), content)
    }

    pub fn directory(self, path: &str) -> Self {
        self.raw(Self::header(path, EntryType::Directory, 0), b"")
    }

    pub fn owned(self, path: &str, mode: u32, uid: u64, gid: u64) -> Self {
        let mut header = Self::header(path, EntryType::Regular, 0);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        self.raw(header, b"")
    }

    fn linking(self, path: &str, kind: EntryType, target: &str) -> Self {
        let mut header = Self::header(path, kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, b"")
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.linking(path, EntryType::Symlink, target)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.linking(path, EntryType::Link, target)
    }

    pub fn special(self, path: &str, kind: EntryType) -> Self {
        self.raw(Self::header(path, kind, 0), b"")
    }

    /// Records of an extended header for the entry that follows.
    pub fn extended(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let header = Self::header("PaxHeaders/x", EntryType::XHeader, body.len() as u64);
        self.raw(header, &body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

pub fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// One image, as its blobs.
pub struct Blobs {
    pub list: Vec<Vec<u8>>,
    pub manifest: serde_json::Value,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Layers are given unpacked and packed; `execution` is the configuration's `config`.
pub fn image(
    layers: &[(Vec<u8>, Vec<u8>)],
    execution: serde_json::Value,
    architecture: &str,
) -> Blobs {
    let diff_ids: Vec<_> = layers.iter().map(|(unpacked, _)| digest(unpacked)).collect();
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": execution,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(_, packed)| descriptor("application/vnd.oci.image.layer.v1.tar", packed))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": descriptors,
    });
    let mut list: Vec<Vec<u8>> = layers.iter().map(|(_, packed)| packed.clone()).collect();
    let manifest = manifest.to_string().into_bytes();
    let described = descriptor(MANIFEST, &manifest);
    list.extend([config, manifest]);
    Blobs { list, manifest: described }
}

pub fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

pub fn plain(layers: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    layers.iter().map(|layer| (layer.clone(), layer.clone())).collect()
}

/// An OCI layout as an archive.
pub fn layout(blobs: &[Vec<u8>], manifests: &[serde_json::Value]) -> Vec<u8> {
    let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    let mut tar = Tar::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.as_bytes())
        .directory("blobs/")
        .directory("blobs/sha256/");
    for blob in blobs {
        tar = tar.file(&format!("blobs/sha256/{}", hex(blob)), blob);
    }
    tar.end()
}

/// One image of plain layers as a layout's archive.
pub fn simple(layers: &[Vec<u8>], execution: serde_json::Value) -> Vec<u8> {
    let image = image(&plain(layers), execution, this_architecture());
    layout(&image.list, &[image.manifest])
}

/// What `docker save` wrote before it had a layout inside.
pub fn docker(images: &[(&str, &[Vec<u8>])]) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut manifest = Vec::new();
    for (tag, layers) in images {
        let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
        let config = serde_json::json!({
            "architecture": this_architecture(), "os": "linux",
            "config": {"Env": ["A=1"], "Cmd": ["sh"]}, "rootfs": {"diff_ids": diff_ids},
        });
        let config = config.to_string();
        let config_name = format!("{}.json", hex(config.as_bytes()));
        tar = tar.file(&config_name, config.as_bytes());
        let mut names = Vec::new();
        for layer in *layers {
            let name = format!("{}/layer.tar", hex(layer));
            tar = tar.file(&name, layer);
            names.push(name);
        }
        manifest
            .push(serde_json::json!({"Config": config_name, "RepoTags": [tag], "Layers": names}));
    }
    tar.file("manifest.json", serde_json::Value::from(manifest).to_string().as_bytes()).end()
}
