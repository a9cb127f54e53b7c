//! Images that other people's programs make: umoci builds one from a Debian tree, skopeo copies it
//! into other forms, and each form is the same image here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandbox_image::{Image, ImageStore, MINIMAL_IMAGE, SourceKind};

use crate::{Bench, is_root};

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
}

/// A Debian tree that other tests have built.
fn debian() -> Option<PathBuf> {
    let cache =
        std::env::var_os("SINEW_IMAGES").unwrap_or_else(|| "/var/cache/sinew/images".into());
    let store = ImageStore::open(Path::new(&cache)).ok()?;
    Some(store.get(MINIMAL_IMAGE).ok()?.rootfs())
}

/// What of Debian is enough: users, packages, programs, without the libraries that are most of it.
fn base(dir: &Path, debian: &Path) -> PathBuf {
    let base = dir.join("base");
    fs::create_dir(&base).unwrap();
    let script = "tar --numeric-owner --exclude=./usr/lib --exclude=./usr/share/perl \
        --exclude=./usr/share/zoneinfo --exclude=./usr/share/i18n --exclude=./var/lib/apt \
        --exclude=./var/cache -C \"$1\" -cf - . | tar -C \"$2\" -xpf -";
    run("sh", &["-c", script, "sh", debian.to_str().unwrap(), base.to_str().unwrap()]);
    base
}

/// The layout `app` with two layers: Debian, and above it what changes, hides and adds.
fn build(dir: &Path, debian: &Path) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let image = format!("{}:1.0", path("app"));
    run("umoci", &["init", "--layout", &path("app")]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["unpack", "--image", &image, &path("bundle")]);
    run("cp", &["-a", &format!("{}/.", debian.display()), &path("bundle/rootfs")]);
    run("umoci", &["repack", "--refresh-bundle", "--image", &image, &path("bundle")]);
    let root = dir.join("bundle/rootfs");
    fs::remove_file(root.join("bin/bash")).unwrap();
    fs::remove_dir_all(root.join("usr/share/doc")).unwrap();
    fs::create_dir_all(root.join("srv/app")).unwrap();
    fs::write(root.join("srv/app/hello"), "hello").unwrap();
    std::os::unix::fs::chown(root.join("srv/app/hello"), Some(33), Some(33)).unwrap();
    run("umoci", &["repack", "--image", &image, &path("bundle")]);
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.user",
            "www-data",
            "--config.workingdir",
            "/srv/app",
            "--config.env",
            "GREETING=hello",
            "--config.cmd",
            "/bin/sh",
        ],
    );
}

#[test]
fn what_umoci_builds_and_skopeo_copies_is_one_image_in_every_form() {
    let test = "what_umoci_builds_and_skopeo_copies_is_one_image_in_every_form";
    if !is_root(test) {
        return;
    }
    if !has("umoci") || !has("skopeo") {
        eprintln!("SKIP {test}: umoci and skopeo are not installed: run `scripts/setup.sh test`");
        return;
    }
    let Some(debian) = debian() else {
        eprintln!("SKIP {test}: no minimal image in the cache: run `sinew image build --minimal`");
        return;
    };
    let bench = Bench::make();
    let dir = bench.dir.path();
    let debian = base(dir, &debian);
    build(dir, &debian);
    let image = bench.import(&dir.join("app")).unwrap();
    check(&image, &debian);

    let copy = |to: &str| {
        let source = format!("oci:{}:1.0", dir.join("app").display());
        run("skopeo", &["copy", "--quiet", "--insecure-policy", &source, to]);
    };
    let form = |name: &str| dir.join(name);
    copy(&format!("docker-archive:{}:app:1.0", form("docker.tar").display()));
    copy(&format!("oci-archive:{}:1.0", form("oci.tar").display()));
    let docker = bench.import(&form("docker.tar")).unwrap();
    assert_eq!(docker.manifest.checksum, image.manifest.checksum);
    assert_eq!(docker.manifest.config, image.manifest.config);
    assert_eq!(bench.import(&form("oci.tar")).unwrap().id(), image.id());
    assert_eq!(bench.store.list().unwrap().len(), 1);

    // And the tree itself, packed by GNU tar, is what it was.
    let flat = form("flat.tar");
    run(
        "tar",
        &["--numeric-owner", "-C", debian.to_str().unwrap(), "-cf", flat.to_str().unwrap(), "."],
    );
    let flat = bench.import(&flat).unwrap();
    let original = sandbox_image::TreeDigest::of(&debian).unwrap();
    assert_eq!(flat.manifest.checksum, format!("blake3:{}", original.hex));
}

fn check(image: &Image, debian: &Path) {
    let root = image.rootfs();
    let source = image.manifest.source.as_ref().unwrap();
    assert_eq!((source.kind, source.diff_ids.len()), (SourceKind::OciLayout, 2));
    assert_eq!(source.reference.as_deref(), Some("1.0"));
    assert!(!root.join("bin/bash").exists() && !root.join("usr/share/doc").exists());
    assert_eq!(fs::read_to_string(root.join("srv/app/hello")).unwrap(), "hello");
    assert_eq!(crate::owner(&root.join("srv/app/hello")).0, 33);
    assert_eq!(
        crate::owner(&root.join("usr/bin/passwd")),
        crate::owner(&debian.join("usr/bin/passwd"))
    );
    let config = image.manifest.config.as_ref().unwrap();
    let user = config.user.as_ref().unwrap();
    assert_eq!((user.uid, user.gid, user.home.as_deref()), (33, 33, Some("/var/www")));
    assert_eq!(config.workdir.as_deref(), Some("/srv/app"));
    assert!(config.env.contains(&("GREETING".to_owned(), "hello".to_owned())));
    assert_eq!(config.cmd, ["/bin/sh"]);
    assert!(image.manifest.packages.iter().any(|package| package.name == "dpkg"));
}
