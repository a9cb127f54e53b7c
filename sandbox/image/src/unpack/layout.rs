//! From an OCI layout or a docker archive to the layers of one image, each digest checked.

use std::io::Read;

use crate::config::{ImageConfig, ImageSource, SourceKind};
use crate::unpack::documents::{
    Config, Descriptor, DockerImage, Index, Manifest, Platform, is_sha256_hex, parse,
};
use crate::unpack::error::{UnpackError, shown};
use crate::unpack::limits::{DOCUMENT_BYTES_MAX, INDEX_DEPTH_MAX, LAYERS_MAX};
use crate::unpack::source::{Blob, Source};
use crate::unpack::stream::{Unpacked, sha256};
use crate::unpack::tar::{Archive, End};
use crate::unpack::tree::Tree;
use crate::unpack::whiteouts::Whiteouts;
use crate::unpack::{Job, Watch, users};

/// What an error shows of the images in an archive.
const REFERENCES_SHOWN: usize = 20;

/// What is known of an image before any of its layers is read.
struct Chosen {
    kind: SourceKind,
    reference: Option<String>,
    /// Of what names the image: its manifest, or in a docker archive its configuration.
    digest: String,
    config: Config,
    layers: Vec<Layer>,
}

struct Layer {
    /// The member that holds it.
    name: String,
    /// Of the blob as it lies there; docker's archives have none.
    packed: Option<(String, u64)>,
    diff_id: String,
}

pub struct FromLayout {
    pub source: ImageSource,
    pub config: ImageConfig,
}

pub fn unpack(
    source: &Source,
    job: &Job,
    tree: &mut Tree,
    watch: &Watch,
) -> Result<FromLayout, UnpackError> {
    let layout = Layout { source, job, watch };
    let chosen = layout.choose()?;
    layout.check_platform(&chosen.config)?;
    watch.expect(layout.bytes_of(&chosen.layers)?);
    for (number, layer) in chosen.layers.iter().enumerate() {
        layout.layer(number, layer, tree)?;
    }
    let config = users::image_config(tree.root(), chosen.config)?;
    let source = ImageSource {
        kind: chosen.kind,
        from: String::new(),
        reference: chosen.reference,
        digest: chosen.digest,
        diff_ids: chosen.layers.into_iter().map(|layer| layer.diff_id).collect(),
        left_out: tree.left_out,
    };
    Ok(FromLayout { source, config })
}

struct Layout<'a> {
    source: &'a Source,
    job: &'a Job,
    watch: &'a Watch,
}

impl Layout<'_> {
    fn choose(&self) -> Result<Chosen, UnpackError> {
        if let Some(index) = self.source.document("index.json", self.watch)? {
            self.source
                .document("oci-layout", self.watch)?
                .ok_or_else(|| missing("the file `oci-layout`"))?;
            return self.by_index(parse("index.json", &index)?);
        }
        match self.source.document("manifest.json", self.watch)? {
            Some(manifest) => self.by_docker(parse("manifest.json", &manifest)?),
            None => Err(missing("the file `index.json`")),
        }
    }

    fn by_index(&self, index: Index) -> Result<Chosen, UnpackError> {
        let mut chosen = self.pick(index.manifests)?;
        let reference = chosen.names().next().map(str::to_owned);
        for _ in 0..INDEX_DEPTH_MAX {
            if !chosen.is_index() {
                return self.by_manifest(&chosen, reference);
            }
            let bytes = self.checked_document(&chosen, "an index")?;
            let index: Index = parse("an index", &bytes)?;
            chosen = self.for_this_machine(index.manifests)?;
        }
        Err(UnpackError::document("index.json", "its indexes nest too deep"))
    }

    /// By reference, where there are several images; else the one that this machine can run.
    fn pick(&self, mut manifests: Vec<Descriptor>) -> Result<Descriptor, UnpackError> {
        manifests.retain(|descriptor| !descriptor.is_attestation());
        let all = listed(manifests.iter().flat_map(Descriptor::names));
        if let Some(wanted) = &self.job.reference {
            let exact =
                |it: &Descriptor| it.digest == *wanted || it.names().any(|name| name == wanted);
            match manifests.iter().any(exact) {
                true => manifests.retain(exact),
                false => manifests.retain(|it| it.names().any(|name| is_named(name, wanted))),
            }
            if manifests.is_empty() {
                return Err(UnpackError::NoSuchImage {
                    wanted: shown(wanted.as_bytes()),
                    references: all,
                });
            }
        }
        let first = manifests.first().ok_or(UnpackError::Empty)?;
        let name = |it: &Descriptor| it.names().next().map(str::to_owned);
        let one_name = manifests.iter().all(|it| name(it) == name(first));
        let several_unnamed =
            manifests.len() > 1 && manifests.iter().any(|it| it.platform.is_none());
        if !one_name || several_unnamed {
            let digests = manifests.iter().map(|it| it.names().next().unwrap_or(&it.digest));
            return Err(UnpackError::Several { references: listed(digests) });
        }
        self.for_this_machine(manifests)
    }

    fn for_this_machine(&self, mut manifests: Vec<Descriptor>) -> Result<Descriptor, UnpackError> {
        manifests.retain(|descriptor| !descriptor.is_attestation());
        let fits = |it: &&Descriptor| {
            it.platform.as_ref().is_none_or(|platform| platform.is(&self.job.architecture))
        };
        if let Some(found) = manifests.iter().find(fits) {
            return Ok(found.clone());
        }
        if manifests.is_empty() {
            return Err(UnpackError::Empty);
        }
        let platforms: Vec<String> = manifests
            .iter()
            .filter_map(|it| it.platform.as_ref())
            .map(Platform::to_string)
            .collect();
        Err(self.foreign(listed(platforms.iter().map(String::as_str))))
    }

    fn foreign(&self, found: String) -> UnpackError {
        UnpackError::Foreign { found, wanted: format!("linux/{}", self.job.architecture) }
    }

    fn check_platform(&self, config: &Config) -> Result<(), UnpackError> {
        let os = config.os.clone().unwrap_or_else(|| "linux".to_owned());
        let architecture = config.architecture.clone().filter(|it| !it.is_empty());
        let architecture = architecture.unwrap_or_else(|| self.job.architecture.clone());
        let platform = Platform { architecture, os };
        match platform.is(&self.job.architecture) {
            true => Ok(()),
            false => Err(self.foreign(shown(platform.to_string().as_bytes()))),
        }
    }

    fn by_manifest(
        &self,
        descriptor: &Descriptor,
        reference: Option<String>,
    ) -> Result<Chosen, UnpackError> {
        if !descriptor.is_manifest() {
            return Err(UnpackError::unsupported(format!(
                "a manifest of type `{}`",
                descriptor.media_type
            )));
        }
        let bytes = self.checked_document(descriptor, "the manifest")?;
        let manifest: Manifest = parse("the manifest", &bytes)?;
        if !manifest.config.is_image_config() {
            let what = format!("something that is no image (`{}`)", manifest.config.media_type);
            return Err(UnpackError::unsupported(what));
        }
        let bytes = self.checked_document(&manifest.config, "the configuration")?;
        let config: Config = parse("the configuration", &bytes)?;
        check_layers(manifest.layers.len(), &config)?;
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            if !layer.is_layer() {
                return Err(UnpackError::unsupported(format!(
                    "a layer of type `{}`",
                    layer.media_type
                )));
            }
            layers.push(Layer {
                name: blob_name(layer)?,
                packed: Some((layer.digest.clone(), layer.size)),
                diff_id: diff_id.clone(),
            });
        }
        let digest = descriptor.digest.clone();
        let reference = reference.map(|name| shown(name.as_bytes()));
        Ok(Chosen { kind: SourceKind::OciLayout, reference, digest, config, layers })
    }

    fn by_docker(&self, images: Vec<DockerImage>) -> Result<Chosen, UnpackError> {
        let all = || listed(images.iter().flat_map(|image| &image.repo_tags).map(String::as_str));
        let image = match (&self.job.reference, images.as_slice()) {
            (_, []) => return Err(UnpackError::Empty),
            (None, [image]) => image,
            (None, _) => return Err(UnpackError::Several { references: all() }),
            (Some(wanted), images) => {
                let exact = |it: &&DockerImage| it.repo_tags.contains(wanted);
                let named =
                    |it: &&DockerImage| it.repo_tags.iter().any(|name| is_named(name, wanted));
                let found: Vec<_> = images.iter().filter(named).collect();
                match (images.iter().find(exact), found.as_slice()) {
                    (Some(image), _) => image,
                    (None, [image]) => *image,
                    (None, []) => {
                        let wanted = shown(wanted.as_bytes());
                        return Err(UnpackError::NoSuchImage { wanted, references: all() });
                    }
                    (None, _) => return Err(UnpackError::Several { references: all() }),
                }
            }
        };
        let bytes = self.source.document(&image.config, self.watch)?;
        let bytes = bytes.ok_or_else(|| missing("the configuration"))?;
        let digest = sha256(&bytes);
        // Where the name is the digest it must be the right one. Some programs give it another
        // name; then nothing in the archive vouches for it but that its layers are the named ones.
        let name = image.config.strip_suffix(".json").unwrap_or(&image.config);
        let name = name.rsplit(['/', ':']).next().unwrap_or(name);
        let expected = format!("sha256:{name}");
        if is_sha256_hex(name) && digest != expected {
            let what = "the configuration".to_owned();
            return Err(UnpackError::Digest { what, expected, found: digest });
        }
        let config: Config = parse("the configuration", &bytes)?;
        check_layers(image.layers.len(), &config)?;
        let layers = image.layers.iter().zip(&config.rootfs.diff_ids);
        let layers = layers
            .map(|(name, diff_id)| Layer {
                name: name.clone(),
                packed: None,
                diff_id: diff_id.clone(),
            })
            .collect();
        let reference = image.repo_tags.first().map(|name| shown(name.as_bytes()));
        Ok(Chosen { kind: SourceKind::DockerArchive, reference, digest, config, layers })
    }

    fn checked_document(&self, it: &Descriptor, what: &str) -> Result<Vec<u8>, UnpackError> {
        if it.size > DOCUMENT_BYTES_MAX {
            return Err(UnpackError::document(what, format!("it has {} bytes", it.size)));
        }
        let name = blob_name(it)?;
        let bytes = self.source.document(&name, self.watch)?;
        let bytes = bytes.ok_or_else(|| missing(&format!("{what} ({})", it.digest)))?;
        check_blob(what, &(it.digest.clone(), it.size), &sha256(&bytes), bytes.len() as u64)?;
        Ok(bytes)
    }

    fn blob(&self, layer: &Layer) -> Result<Blob, UnpackError> {
        let found = self.source.blob(&layer.name)?;
        found.ok_or_else(|| missing(&format!("layer `{}`", shown(layer.name.as_bytes()))))
    }

    /// How much will be read, for the bar: layers above the first are read twice.
    fn bytes_of(&self, layers: &[Layer]) -> Result<u64, UnpackError> {
        let mut sum = 0_u64;
        for (number, layer) in layers.iter().enumerate() {
            let times = if number == 0 { 1 } else { 2 };
            sum = sum.saturating_add(self.blob(layer)?.length.saturating_mul(times));
        }
        Ok(sum)
    }

    fn layer(&self, number: usize, layer: &Layer, tree: &mut Tree) -> Result<(), UnpackError> {
        let what = format!("layer {}", number + 1);
        if number > 0 {
            let mut whiteouts = Whiteouts::default();
            self.read_layer(&what, layer, |archive| {
                while let Some(entry) = archive.next()? {
                    whiteouts.collect(&entry)?;
                }
                Ok(())
            })?;
            tree.apply(&whiteouts)?;
        }
        self.read_layer(&what, layer, |archive| tree.unpack_layer(archive))
    }

    /// Reads a layer from beginning to end, and fails unless it is the one that was promised.
    fn read_layer(
        &self,
        what: &str,
        layer: &Layer,
        read: impl FnOnce(&mut Archive<&mut dyn Read>) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let blob = self.blob(layer)?;
        if let Some((_, expected)) = layer.packed.as_ref().filter(|(_, size)| *size != blob.length)
        {
            let (expected, found) = (*expected, blob.length);
            return Err(UnpackError::Size { what: what.to_owned(), expected, found });
        }
        let reader = Box::new(blob.reader(self.watch));
        let mut stream = Unpacked::new(reader, what, self.job.limits)?;
        let done = read(&mut Archive::new(&mut stream as &mut dyn Read, End::Any));
        // Whoever changed a layer is told so, rather than what the change broke; and one that
        // was cut off or is too large is told before its digest can be.
        let is_final = matches!(
            done,
            Err(UnpackError::TooLarge { .. }
                | UnpackError::TooManyEntries { .. }
                | UnpackError::Bomb { .. }
                | UnpackError::DiskFull
                | UnpackError::System { .. })
        );
        if is_final {
            return done;
        }
        let (packed, unpacked) = match stream.finish() {
            Ok(meters) => meters,
            Err(error) => return done.and(Err(error)),
        };
        if let Some(expected) = &layer.packed {
            check_blob(what, expected, &packed.digest(), packed.bytes())?;
        }
        let found = unpacked.digest();
        if found != layer.diff_id {
            let (what, expected) = (format!("{what}, unpacked,"), shown(layer.diff_id.as_bytes()));
            return Err(UnpackError::Digest { what, expected, found });
        }
        done
    }
}

fn check_layers(count: usize, config: &Config) -> Result<(), UnpackError> {
    let diff_ids = config.rootfs.diff_ids.len();
    if count != diff_ids {
        let reason = format!("it has {count} layers, and its configuration names {diff_ids}");
        return Err(UnpackError::document("the manifest", reason));
    }
    match count {
        0 => Err(UnpackError::Empty),
        count if count > LAYERS_MAX => {
            Err(UnpackError::unsupported(format!("an image of {count} layers")))
        }
        _ => Ok(()),
    }
}

fn check_blob(
    what: &str,
    (digest, size): &(String, u64),
    found: &str,
    bytes: u64,
) -> Result<(), UnpackError> {
    let what = what.to_owned();
    if *size != bytes {
        return Err(UnpackError::Size { what, expected: *size, found: bytes });
    }
    if digest != found {
        return Err(UnpackError::Digest {
            what,
            expected: digest.clone(),
            found: found.to_owned(),
        });
    }
    Ok(())
}

fn blob_name(descriptor: &Descriptor) -> Result<String, UnpackError> {
    Ok(format!("blobs/sha256/{}", descriptor.sha256_hex()?))
}

/// `docker.io/library/app:1` is also known as `app:1`, and in a layout as `1`.
fn is_named(name: &str, wanted: &str) -> bool {
    name == wanted || name.strip_suffix(wanted).is_some_and(|rest| rest.ends_with(['/', ':']))
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.map(|name| shown(name.as_bytes())).collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(REFERENCES_SHOWN);
    names.truncate(REFERENCES_SHOWN);
    match (names.is_empty(), more) {
        (true, _) => "none with a name".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

fn missing(what: &str) -> UnpackError {
    UnpackError::Missing { what: shown(what.as_bytes()) }
}
