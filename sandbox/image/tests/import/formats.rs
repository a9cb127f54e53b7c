//! Archives that people have: each kind, each compression, and what comes out of them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use sandbox_image::SourceKind;
use tar::EntryType;

use crate::archives::{
    INDEX, Tar, descriptor, digest, docker, gzip, image, layout, plain, simple, this_architecture,
    zstd,
};
use crate::{Bench, is_root, owner};

fn rootfs() -> Vec<u8> {
    Tar::new()
        .directory("./")
        .directory("./etc/")
        .file("./etc/hostname", b"imported\n")
        .link("./bin", "usr/bin")
        .directory("./usr/")
        .directory("./usr/bin/")
        .file("./bin/tool", b"#!/bin/sh\n")
        .hard_link("./usr/bin/also", "./usr/bin/tool")
        .owned("./usr/bin/setuid", 0o4755, 0, 0)
        .owned("./etc/secret", 0o640, 65_535, 65_535)
        .special("./run.pipe", EntryType::Fifo)
        .special("./null", EntryType::Char)
        .end()
}

#[test]
fn a_root_filesystem_in_every_compression_is_one_image() {
    if !is_root("a_root_filesystem_in_every_compression_is_one_image") {
        return;
    }
    let bench = Bench::make();
    let plain = bench.imported(&rootfs());
    let source = plain.manifest.source.clone().unwrap();
    assert_eq!(source.kind, SourceKind::Rootfs);
    assert_eq!(source.left_out.devices, 1);
    assert_eq!(plain.manifest.config, None);
    let root = plain.rootfs();
    assert_eq!(fs::read_to_string(root.join("etc/hostname")).unwrap(), "imported\n");
    assert_eq!(owner(&root.join("usr/bin/setuid")), (0, 0, 0o4755));
    assert_eq!(owner(&root.join("etc/secret")), (65_535, 65_535, 0o640));
    assert!(fs::symlink_metadata(root.join("run.pipe")).unwrap().file_type().is_fifo());
    assert!(!root.join("null").exists());
    let tool = fs::metadata(root.join("usr/bin/tool")).unwrap();
    assert_eq!((tool.nlink(), tool.mtime()), (2, 1_700_000_000));
    bench.store.verify(plain.id()).unwrap();
    for packed in [gzip(&rootfs()), zstd(&rootfs())] {
        assert_eq!(bench.imported(&packed).id(), plain.id());
    }
    let xz = bench.file("root.tar", &rootfs());
    match std::process::Command::new("xz").arg(&xz).status() {
        Ok(status) if status.success() => {
            let packed = fs::read(xz.with_extension("tar.xz")).unwrap();
            assert_eq!(bench.imported(&packed).id(), plain.id());
        }
        _ => eprintln!("SKIP a_root_filesystem_in_every_compression_is_one_image (xz): no xz"),
    }
    assert_eq!(bench.store.list().unwrap().len(), 1);
}

#[test]
fn what_gnu_tar_writes_comes_out_as_it_was() {
    if !is_root("what_gnu_tar_writes_comes_out_as_it_was") {
        return;
    }
    let bench = Bench::make();
    let tree = bench.dir.path().join("tree");
    let deep = tree.join("a-directory-with-a-rather-long-name/".repeat(6));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("x".repeat(200)), "long name").unwrap();
    std::os::unix::fs::symlink("y".repeat(300), tree.join("long-link")).unwrap();
    fs::write(tree.join("ümlaut \n newline"), "odd").unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    use std::os::unix::fs::FileExt;
    for piece in 0..60_u64 {
        sparse.write_all_at(format!("piece {piece}").as_bytes(), piece << 20).unwrap();
    }
    sparse.set_len(80 << 20).unwrap();
    fs::write(tree.join("hole-only"), "").unwrap();
    fs::File::options().write(true).open(tree.join("hole-only")).unwrap().set_len(1 << 20).unwrap();
    drop(sparse);
    let expected = sandbox_image::TreeDigest::of(&tree).unwrap();
    for format in [
        &["--format=gnu", "--sparse"][..],
        &["--format=gnu"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix"],
    ] {
        let archive = bench.dir.path().join("gnu.tar");
        let mut tar = std::process::Command::new("tar");
        tar.args(format).arg("-C").arg(&tree).arg("-cf").arg(&archive).arg(".");
        assert!(tar.status().unwrap().success());
        let image = bench.import(&archive).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        assert_eq!(image.manifest.checksum, format!("blake3:{}", expected.hex), "{format:?}");
    }
    let holes = fs::metadata(bench.store.get("imported").unwrap().rootfs().join("sparse")).unwrap();
    assert_eq!(holes.len(), 80 << 20);
    // The last archive had no holes; every other one leaves most of the file unwritten.
}

#[test]
fn attributes_that_a_sandbox_honours_are_kept_and_those_that_steer_overlays_are_not() {
    if !is_root("attributes_that_a_sandbox_honours_are_kept_and_those_that_steer_overlays_are_not")
    {
        return;
    }
    let bench = Bench::make();
    // `cap_net_bind_service=ep`, as the kernel stores it.
    let mut capability = vec![1, 0, 0, 2, 0, 4, 0, 0];
    capability.resize(20, 0);
    let archive = Tar::new()
        .extended(&[
            ("SCHILY.xattr.user.note", &b"kept\0\n"[..]),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.acl.access", b"user::rwx"),
        ])
        .file("tool", b"x")
        .end();
    let image = bench.imported(&archive);
    assert_eq!(image.manifest.source.as_ref().unwrap().left_out.attributes, 4);
    let tool = image.rootfs().join("tool");
    let mut list = vec![0; 4096];
    let length = rustix::fs::listxattr(&tool, &mut list).unwrap();
    let mut names: Vec<&[u8]> =
        list[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    names.sort();
    assert_eq!(names, [&b"security.capability"[..], b"user.note"]);
    let mut value = vec![0; 64];
    let length = rustix::fs::getxattr(&tool, "user.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"kept\0\n");
}

#[test]
fn an_oci_layout_as_archive_compressed_and_as_directory_is_one_image() {
    if !is_root("an_oci_layout_as_archive_compressed_and_as_directory_is_one_image") {
        return;
    }
    let bench = Bench::make();
    let layer = Tar::new()
        .directory("etc/")
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:101:102::/srv/app:/bin/sh\n")
        .file("etc/group", b"app:x:102:\nmail:x:8:app\n")
        .end();
    let execution = serde_json::json!({
        "User": "app", "WorkingDir": "/srv/app", "Env": ["PATH=/bin", "EMPTY="],
        "Entrypoint": ["/init"], "Cmd": ["--serve"], "Labels": {"a": "b"}, "StopSignal": "SIGTERM",
    });
    let archive = simple(&[layer], execution);
    let image = bench.imported(&archive);
    let manifest = &image.manifest;
    let config = manifest.config.clone().unwrap();
    let user = config.user.unwrap();
    assert_eq!((user.uid, user.gid, user.groups.as_slice()), (101, 102, &[8][..]));
    assert_eq!(user.home.as_deref(), Some("/srv/app"));
    assert_eq!(config.workdir.as_deref(), Some("/srv/app"));
    assert_eq!(config.env, [("PATH".into(), "/bin".into()), ("EMPTY".into(), String::new())]);
    assert_eq!((config.entrypoint, config.cmd), (vec!["/init".into()], vec!["--serve".into()]));
    assert_eq!(config.architecture.as_deref(), Some(this_architecture()));
    assert_eq!(manifest.source.as_ref().unwrap().kind, SourceKind::OciLayout);

    assert_eq!(bench.imported(&gzip(&archive)).id(), image.id());
    let directory = bench.dir.path().join("layout");
    fs::create_dir(&directory).unwrap();
    let path = bench.file("layout.tar", &archive);
    let mut tar = std::process::Command::new("tar");
    assert!(tar.arg("-C").arg(&directory).arg("-xf").arg(path).status().unwrap().success());
    // Only the owner may read the blobs: whoever imports can, the unpacker could not.
    for blob in fs::read_dir(directory.join("blobs/sha256")).unwrap().flatten() {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(blob.path(), fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(bench.import(&directory).unwrap().id(), image.id());
    assert_eq!(bench.store.list().unwrap().len(), 1);
}

#[test]
fn a_docker_archive_is_read_and_one_of_several_images_is_chosen() {
    if !is_root("a_docker_archive_is_read_and_one_of_several_images_is_chosen") {
        return;
    }
    let bench = Bench::make();
    let one = [Tar::new().file("one", b"1").end()];
    let two = [Tar::new().file("two", b"2").end(), Tar::new().file("three", b"3").end()];
    let image = bench.imported(&docker(&[("app:1", &one)]));
    assert_eq!(image.manifest.source.as_ref().unwrap().kind, SourceKind::DockerArchive);
    assert_eq!(image.manifest.config.as_ref().unwrap().cmd, ["sh"]);
    // Other programs name the members as they like.
    let config = serde_json::json!({
        "architecture": this_architecture(), "rootfs": {"diff_ids": [digest(&one[0])]},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "Layers": ["base.tar.gz"]}]);
    let odd = Tar::new()
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("config.json", config.to_string().as_bytes())
        .file("base.tar.gz", &gzip(&one[0]))
        .end();
    assert!(bench.imported(&odd).rootfs().join("one").exists());
    // Old ones share a layer by a link.
    let shared = Tar::new()
        .file("config.json", config.to_string().as_bytes())
        .file("a/layer.tar", &one[0])
        .link("b/layer.tar", "../a/layer.tar")
        .file("manifest.json", br#"[{"Config": "config.json", "Layers": ["b/layer.tar"]}]"#)
        .end();
    assert!(bench.imported(&shared).rootfs().join("one").exists());
    let both = docker(&[("app:1", &one), ("registry/other:2", &two)]);
    let error = bench.refused(&both).to_string();
    assert!(error.contains("--ref") && error.contains("app:1, registry/other:2"), "{error}");
    let path = bench.file("both.tar", &both);
    let mut options = bench.options(&path);
    options.reference = Some("other:2".to_owned());
    let image = bench.import_with(&options).unwrap();
    assert!(image.rootfs().join("three").exists() && !image.rootfs().join("one").exists());
    assert_eq!(
        image.manifest.source.as_ref().unwrap().reference.as_deref(),
        Some("registry/other:2")
    );
    options.reference = Some("nothing".to_owned());
    let error = bench.refused_with(&options).to_string();
    assert!(error.contains("no image `nothing`"), "{error}");
}

#[test]
fn of_an_index_for_several_machines_this_ones_image_is_taken() {
    if !is_root("of_an_index_for_several_machines_this_ones_image_is_taken") {
        return;
    }
    let bench = Bench::make();
    let of = |architecture: &str, attestation: bool| {
        let layer = Tar::new().file(architecture, b"x").end();
        let image = image(&plain(&[layer]), serde_json::Value::Null, architecture);
        let mut manifest = image.manifest.clone();
        let shown = if attestation { "unknown" } else { architecture };
        manifest["platform"] = serde_json::json!({"architecture": shown, "os": "linux"});
        (image.list, manifest)
    };
    let index_of = |machines: &[(Vec<Vec<u8>>, serde_json::Value)]| {
        let manifests: Vec<_> = machines.iter().map(|(_, manifest)| manifest).collect();
        let index = serde_json::json!({"manifests": manifests}).to_string().into_bytes();
        let mut blobs: Vec<_> = machines.iter().flat_map(|(blobs, _)| blobs.clone()).collect();
        blobs.push(index.clone());
        let mut described = descriptor(INDEX, &index);
        described["annotations"] =
            serde_json::json!({"org.opencontainers.image.ref.name": "app:1"});
        layout(&blobs, &[described])
    };
    let machines = [of("s390x", false), of(this_architecture(), false), of("attested", true)];
    let image = bench.imported(&index_of(&machines));
    assert!(image.rootfs().join(this_architecture()).exists());
    assert_eq!(image.manifest.source.as_ref().unwrap().reference.as_deref(), Some("app:1"));
    let error = bench.refused(&index_of(&[of("s390x", false), of("riscv64", false)])).to_string();
    let expected =
        format!("linux/riscv64, linux/s390x, and this machine runs linux/{}", this_architecture());
    assert!(error.contains(&expected), "{error}");
    // One image whose index does not say so, and a root filesystem whose programs do.
    let (blobs, mut manifest) = of("s390x", false);
    manifest.as_object_mut().unwrap().remove("platform");
    let error = bench.refused(&layout(&blobs, &[manifest])).to_string();
    assert!(error.contains("linux/s390x"), "{error}");
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(64, 0);
    program[18] = 22;
    program[18] = 243;
    let error = bench.refused(&Tar::new().file("bin/sh", &program).end()).to_string();
    assert!(error.contains("riscv64") && error.contains("/bin/sh"), "{error}");
}

#[test]
fn an_archive_from_a_pipe_is_imported() {
    if !is_root("an_archive_from_a_pipe_is_imported") {
        return;
    }
    let bench = Bench::make();
    let expected = bench.imported(&simple(&[rootfs()], serde_json::Value::Null));
    let path = bench.dir.path().join("pipe");
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let writer = {
        let path = path.clone();
        std::thread::spawn(move || fs::write(path, simple(&[rootfs()], serde_json::Value::Null)))
    };
    assert_eq!(bench.import(&path).unwrap().id(), expected.id());
    writer.join().unwrap().unwrap();
}
