//! Building an image: take the lock, bootstrap into a name no reader accepts, finish the tree,
//! hash it, write the manifest, sync, rename.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use base_types::{Clock, ImageId, SystemClock};
use rustix::fs::{FlockOperation, flock};

use crate::bootstrap::Bootstrap;
use crate::manifest::{
    Image, MANIFEST_FILE, MANIFEST_FORMAT, Manifest, Package, ROOTFS_DIR, id_of,
};
use crate::progress::{Progress, Stage};
use crate::recipe::{AGENT_GID, AGENT_UID, Recipe};
use crate::removal::remove_tree;
use crate::sources::{host_sources, without_credentials};
use crate::store::{BUILDING_PREFIX, ImageStore, OpenStoreError, publish};
use crate::tree::{TreeDigest, TreeError};

#[derive(Debug, thiserror::Error)]
pub enum BuildImageError {
    #[error("building an image needs root: run `sinew image build` as root")]
    NotRoot,
    #[error("`{tool}` is not installed: run `apt-get install mmdebstrap util-linux`")]
    NoTool { tool: &'static str },
    #[error("this kernel or container allows no mount and process namespaces:\n{output}")]
    NoNamespaces { output: String },
    #[error(
        "the package sources cannot be reached: check the network and what `apt-get update` \
         says, or name a mirror with `--mirror URL`; the last lines were:\n{output}"
    )]
    NoSources { output: String },
    #[error("the disk is full: the default image needs 2 GiB while it is built:\n{output}")]
    DiskFull { output: String },
    #[error("mmdebstrap failed with {status}; its last lines were:\n{output}")]
    Bootstrap { status: ExitStatus, output: String },
    #[error("start mmdebstrap")]
    Spawn(#[source] io::Error),
    #[error("lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("clean up a half-built image at {path}")]
    CleanUp { path: PathBuf, source: io::Error },
    #[error("image {id} is damaged and in use: stop the sandboxes that run from it first")]
    DamagedInUse { id: ImageId },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("compute the checksum")]
    Checksum(#[from] TreeError),
    #[error("read the image cache")]
    Store(#[from] OpenStoreError),
}

#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Build even where an image of the same recipe is in the cache.
    pub force: bool,
    /// The address of a Debian mirror, instead of the host's own sources.
    pub mirror: Option<String>,
}

impl ImageStore {
    /// The default image: from the cache where it is there, else built now.
    pub fn build_default(
        &self,
        options: &BuildOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, BuildImageError> {
        self.build(&Recipe::debian(), options, progress)
    }

    /// A bare system without agent tools, in seconds: for tests.
    pub fn build_minimal(&self) -> Result<Image, BuildImageError> {
        self.build(&Recipe::minimal(), &BuildOptions::default(), &mut |_| {})
    }

    /// Blocks for as long as the build takes, and before that for as long as another build of
    /// this cache does. What it returns is in the cache, complete and on the disk.
    pub fn build(
        &self,
        recipe: &Recipe,
        options: &BuildOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, BuildImageError> {
        let cached = |store: &Self| store.find(&recipe.name, &recipe.fingerprint());
        if !options.force
            && let Some(image) = cached(self)?
        {
            progress(done(&image));
            return Ok(image);
        }
        if !rustix::process::geteuid().is_root() {
            return Err(BuildImageError::NotRoot);
        }
        let lock = self.lock_for_build(progress)?;
        if !options.force
            && let Some(image) = cached(self)?
        {
            progress(done(&image));
            return Ok(image);
        }
        self.remove_half_built()?;
        let staging = Staging::create(self.dir())?;
        let sources = match &options.mirror {
            Some(mirror) => vec![mirror.clone()],
            None => host_sources(Path::new("/etc/apt")),
        };
        let rootfs = staging.dir.join(ROOTFS_DIR);
        Bootstrap { recipe, target: &rootfs, sources: &sources, lock: &lock }.run(progress)?;
        progress(step(Stage::Finishing, 93));
        finish(&rootfs)?;
        progress(step(Stage::Checksum, 95));
        let image = self.commit(recipe, staging)?;
        progress(done(&image));
        Ok(image)
    }

    fn commit(&self, recipe: &Recipe, staging: Staging) -> Result<Image, BuildImageError> {
        let rootfs = staging.dir.join(ROOTFS_DIR);
        let digest = TreeDigest::of(&rootfs)?;
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            id: id_of(&digest.hex),
            name: recipe.name.clone(),
            aliases: Vec::new(),
            recipe: recipe.fingerprint(),
            checksum: format!("blake3:{}", digest.hex),
            size_bytes: digest.size_bytes,
            entries: digest.entries,
            built_at: SystemClock.now(),
            packages: packages(&rootfs),
            source: None,
            config: None,
        };
        let path = staging.dir.join(MANIFEST_FILE);
        let write = |source| BuildImageError::Write { path: path.clone(), source };
        let mut file = File::create_new(&path).map_err(write)?;
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| write(e.into()))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(write)?;
        file.set_permissions(Permissions::from_mode(0o644)).map_err(write)?;
        // One call for the whole tree: a manifest must not outlive files a power cut took.
        rustix::fs::syncfs(&file).map_err(|e| write(e.into()))?;
        let target = self.dir().join(manifest.id.as_str());
        self.place(staging, &manifest.id, &target)?;
        publish(self.dir(), &manifest.id)
            .map_err(|source| BuildImageError::Write { path: target.clone(), source })?;
        Ok(Image::new(manifest, target))
    }

    /// The same tree may have been built before. Then the old one is kept, since sandboxes may
    /// run from it, unless it is no longer what its manifest says.
    fn place(&self, staging: Staging, id: &ImageId, target: &Path) -> Result<(), BuildImageError> {
        if !target.exists() {
            return staging.commit(target);
        }
        if self.verify(id).is_ok() {
            return staging.discard();
        }
        let error = |source| BuildImageError::CleanUp { path: target.to_owned(), source };
        let in_use = || BuildImageError::DamagedInUse { id: id.clone() };
        let aside = self.set_aside(id).map_err(error)?.ok_or_else(in_use)?;
        staging.commit(target)?;
        remove_tree(&aside).map_err(error)
    }

    fn lock_for_build(&self, progress: &mut dyn FnMut(Progress)) -> Result<File, BuildImageError> {
        let path = self.dir().join("build.lock");
        let error = |source| BuildImageError::Lock { path: path.clone(), source };
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(error)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            progress(step(Stage::Waiting, 0));
            flock(&file, FlockOperation::LockExclusive).map_err(|e| error(e.into()))?;
        }
        Ok(file)
    }

    /// Under the build lock, whatever carries the prefix belongs to a build that is dead.
    fn remove_half_built(&self) -> Result<(), BuildImageError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| BuildImageError::CleanUp { path, source }
        };
        for entry in fs::read_dir(self.dir()).map_err(error(self.dir()))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(BUILDING_PREFIX) {
                remove_tree(&entry.path()).map_err(error(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// The directory of a build that is not finished: gone when dropped, unless committed.
struct Staging {
    dir: PathBuf,
    armed: bool,
}

impl Staging {
    fn create(images: &Path) -> Result<Self, BuildImageError> {
        let nanos = jiff::Timestamp::now().as_nanosecond();
        let dir = images.join(format!("{BUILDING_PREFIX}{}-{nanos}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|source| BuildImageError::Write { path: dir.clone(), source })?;
        Ok(Self { dir, armed: true })
    }

    fn commit(mut self, target: &Path) -> Result<(), BuildImageError> {
        let rename = fs::rename(&self.dir, target);
        rename.map_err(|source| BuildImageError::Write { path: target.to_owned(), source })?;
        self.armed = false;
        Ok(())
    }

    fn discard(mut self) -> Result<(), BuildImageError> {
        self.armed = false;
        let path = self.dir.clone();
        remove_tree(&path).map_err(|source| BuildImageError::CleanUp { path, source })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = remove_tree(&self.dir) {
            // The next build tries again, so this one's own error is the one to report.
            tracing::warn!(path = %self.dir.display(), %error, "half-built image stays until the next build");
        }
    }
}

/// What the bootstrap leaves out, and what it left in that names this host.
fn finish(rootfs: &Path) -> Result<(), BuildImageError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| BuildImageError::Write { path, source }
    };
    let files: &[(&str, u32, &str)] = &[
        ("etc/hostname", 0o644, "sandbox\n"),
        ("etc/hosts", 0o644, "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n"),
        ("etc/resolv.conf", 0o644, ""),
        ("etc/machine-id", 0o444, "uninitialized\n"),
        // There is no init to start services with; without this a package's script would try.
        ("usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\nexit 101\n"),
    ];
    for (name, mode, text) in files {
        let path = rootfs.join(name);
        replace(&path, text, *mode).map_err(error(&path))?;
    }
    // Some packages' scripts fail where the directory of their manual page is missing.
    for section in 1..=8 {
        let path = rootfs.join(format!("usr/share/man/man{section}"));
        fs::create_dir_all(&path).map_err(error(&path))?;
    }
    add_agent(rootfs)?;
    scrub_sources(rootfs)?;
    // A sandbox gets a /dev of its own; nodes in the image would only be one more thing to guard.
    for name in ["dev", "tmp", "var/tmp", "var/cache/apt/archives", "var/log/apt"] {
        let path = rootfs.join(name);
        empty(&path).map_err(error(&path))?;
    }
    // The first one names the host's proxy.
    let leftovers = [
        "etc/apt/apt.conf.d/99mmdebstrap",
        "var/cache/ldconfig/aux-cache",
        "var/log/dpkg.log",
        "var/log/bootstrap.log",
    ];
    for name in leftovers {
        remove_tree(&rootfs.join(name)).map_err(error(&rootfs.join(name)))?;
    }
    Ok(())
}

/// Never through a link that the tree holds: what is there is removed first.
fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    remove_tree(path)?;
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn empty(dir: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(dir).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        remove_tree(&entry?.path())?;
    }
    Ok(())
}

/// The user of the tools, its home and its workspace, without running a program of the tree.
fn add_agent(rootfs: &Path) -> Result<(), BuildImageError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| BuildImageError::Write { path, source }
    };
    let lines = [
        ("etc/passwd", format!("agent:x:{AGENT_UID}:{AGENT_GID}:agent:/home/agent:/bin/bash\n")),
        ("etc/group", format!("agent:x:{AGENT_GID}:\n")),
        ("etc/shadow", "agent:*:19000:0:99999:7:::\n".to_owned()),
        ("etc/gshadow", "agent:*::\n".to_owned()),
    ];
    for (name, line) in lines {
        let path = rootfs.join(name);
        let append = File::options().append(true).open(&path);
        append.and_then(|mut file| file.write_all(line.as_bytes())).map_err(error(&path))?;
    }
    for (name, mode) in [("home/agent", 0o755), ("workspace", 0o755)] {
        let path = rootfs.join(name);
        fs::create_dir_all(&path)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
            .and_then(|()| chown(&path, Some(AGENT_UID), Some(AGENT_GID)))
            .map_err(error(&path))?;
    }
    let skeleton = rootfs.join("etc/skel");
    for entry in fs::read_dir(&skeleton).map_err(error(&skeleton))?.flatten() {
        let path = rootfs.join("home/agent").join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            fs::copy(entry.path(), &path).map_err(error(&path))?;
            lchown(&path, Some(AGENT_UID), Some(AGENT_GID)).map_err(error(&path))?;
        }
    }
    // So that `npm install -g` works for a user who cannot write to /usr.
    let path = rootfs.join("home/agent/.npmrc");
    replace(&path, "prefix=/home/agent/.local\nupdate-notifier=false\n", 0o644)
        .and_then(|()| chown(&path, Some(AGENT_UID), Some(AGENT_GID)))
        .map_err(error(&path))
}

fn scrub_sources(rootfs: &Path) -> Result<(), BuildImageError> {
    let apt = rootfs.join("etc/apt");
    let mut files = vec![apt.join("sources.list")];
    if let Ok(parts) = fs::read_dir(apt.join("sources.list.d")) {
        files.extend(parts.flatten().map(|entry| entry.path()));
    }
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let clean: String = text.lines().map(|line| without_credentials(line) + "\n").collect();
        if clean != text {
            replace(&path, &clean, 0o644)
                .map_err(|source| BuildImageError::Write { path, source })?;
        }
    }
    Ok(())
}

/// From dpkg's own record; a tree without one has no packages to name.
fn packages(rootfs: &Path) -> Vec<Package> {
    let status = fs::read_to_string(rootfs.join("var/lib/dpkg/status")).unwrap_or_default();
    let mut packages = Vec::new();
    for stanza in status.split("\n\n") {
        let field = |name| stanza.lines().find_map(|line| line.strip_prefix(name));
        if let (Some(name), Some(version)) = (field("Package: "), field("Version: ")) {
            packages.push(Package { name: name.to_owned(), version: version.to_owned() });
        }
    }
    packages
}

fn step(stage: Stage, percent: u8) -> Progress {
    Progress { stage, percent, detail: String::new() }
}

fn done(image: &Image) -> Progress {
    Progress { stage: Stage::Done, percent: 100, detail: image.id().to_string() }
}
