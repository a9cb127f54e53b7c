//! Building an image: take the lock, bootstrap into a name no reader accepts, finish the tree,
//! hash it, write the manifest, sync, rename.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::bootstrap::Bootstrap;
use crate::commit::{CommitError, NewImage, Staging};
use crate::manifest::{Image, Package, ROOTFS_DIR};
use crate::progress::{Progress, Stage};
use crate::recipe::{AGENT_GID, AGENT_UID, Recipe};
use crate::removal::remove_tree;
use crate::sources::{host_sources, without_credentials};
use crate::store::{ImageStore, OpenStoreError};

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
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Commit(#[from] CommitError),
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
        let mut is_told = false;
        let lock = self.lock_for_build(&mut || {
            if !std::mem::replace(&mut is_told, true) {
                progress(step(Stage::Waiting, 0));
            }
            true
        })?;
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
        let new = NewImage {
            name: recipe.name.clone(),
            recipe: recipe.fingerprint(),
            packages: packages(&rootfs),
            source: None,
            config: None,
        };
        let image = self.commit(new, staging, &mut || true)?;
        progress(done(&image));
        Ok(image)
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
