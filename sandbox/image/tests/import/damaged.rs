//! Archives that are cut off, changed, or do not fit their own description.

use std::fs;

use sandbox_image::{ImportImageError, UnpackError};
use serde_json::{Value, json};

use crate::archives::{
    INDEX, MANIFEST, Tar, descriptor, digest, docker, gzip, hex, image, layout, plain, simple,
    this_architecture, zstd,
};
use crate::{Bench, is_root};

fn layer() -> Vec<u8> {
    Tar::new().directory("etc/").file("etc/motd", b"hello").end()
}

/// Beyond one block of every compression.
fn large() -> Vec<u8> {
    let noise: Vec<u8> =
        (0..400_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    Tar::new().file("noise", &noise).end()
}

#[test]
fn an_archive_that_is_cut_off_anywhere_is_refused() {
    if !is_root("an_archive_that_is_cut_off_anywhere_is_refused") {
        return;
    }
    let bench = Bench::make();
    for whole in [large(), gzip(&large()), zstd(&large())] {
        for cut in [whole.len() / 2, whole.len() - 1025, 600] {
            let error = bench.refused(&whole[..cut]);
            assert!(matches!(error, UnpackError::Truncated { .. }), "{cut}: {error}");
        }
    }
    // Without the blocks of zeros that end an archive nobody knows whether more was to come.
    let whole = large();
    let error = bench.refused(&whole[..whole.len() - 1024]);
    assert!(matches!(error, UnpackError::Truncated { .. }), "{error}");
    let whole = simple(&[large()], Value::Null);
    let error = bench.refused(&whole[..whole.len() / 2]);
    assert!(matches!(error, UnpackError::Truncated { .. }), "{error}");
}

#[test]
fn what_is_no_archive_says_what_was_expected() {
    if !is_root("what_is_no_archive_says_what_was_expected") {
        return;
    }
    let bench = Bench::make();
    for nonsense in [&b""[..], b"hello", &[0x5a; 4096], b"PK\x03\x04 a zip file", &gzip(b"hello")] {
        let error = bench.refused(nonsense);
        let known =
            matches!(error, UnpackError::UnknownKind { .. } | UnpackError::Truncated { .. });
        assert!(known, "{error}");
    }
    assert_eq!(bench.refused(&[0; 10_240]), UnpackError::Empty);
    assert_eq!(bench.refused(&Tar::new().end()), UnpackError::Empty);
    let directory = bench.dir.path().join("tree");
    fs::create_dir_all(directory.join("etc")).unwrap();
    let error = bench.import(&directory).unwrap_err();
    assert!(matches!(error, ImportImageError::NoLayout { .. }), "{error}");
    assert!(error.to_string().contains("tar -C"), "{error}");
    let error = bench.import(&bench.dir.path().join("nowhere")).unwrap_err();
    assert!(matches!(error, ImportImageError::Open { .. }), "{error}");
}

#[test]
fn a_changed_byte_fails_the_digest_that_covers_it() {
    if !is_root("a_changed_byte_fails_the_digest_that_covers_it") {
        return;
    }
    let bench = Bench::make();
    let upper = Tar::new().file("upper", b"above").end();
    let good = image(&plain(&[layer(), upper]), Value::Null, this_architecture());
    bench.imported(&layout(&good.list, std::slice::from_ref(&good.manifest)));
    // Every blob under its old name with one byte changed.
    for (number, blob) in good.list.iter().enumerate() {
        let mut tar = Tar::new()
            .file("oci-layout", b"{}")
            .file("index.json", json!({"manifests": [good.manifest]}).to_string().as_bytes());
        for (other, content) in good.list.iter().enumerate() {
            let mut content = content.clone();
            if other == number {
                let last = content.len() - 3;
                content[last] ^= 1;
            }
            tar = tar.file(&format!("blobs/sha256/{}", hex(&good.list[other])), &content);
        }
        let error = bench.refused(&tar.end());
        assert!(matches!(error, UnpackError::Digest { .. }), "{}: {error}", blob.len());
    }
    // A layer that is what the manifest says, and unpacks to something else.
    let lie = image(&[(layer(), gzip(&large()))], Value::Null, this_architecture());
    let error = bench.refused(&layout(&lie.list, &[lie.manifest]));
    assert!(
        error.to_string().contains("layer 1, unpacked, is not what its digest says"),
        "{error}"
    );
    // A docker archive names its configuration by the digest.
    let mut archive = docker(&[("app:1", &[layer()])]);
    let at = archive.windows(4).position(|window| window == b"\"sh\"").unwrap();
    archive[at + 1] = b'z';
    let error = bench.refused(&archive);
    assert!(matches!(error, UnpackError::Digest { .. }), "{error}");
}

#[test]
fn a_layer_that_breaks_off_inside_is_told_by_its_digest_or_its_end() {
    if !is_root("a_layer_that_breaks_off_inside_is_told_by_its_digest_or_its_end") {
        return;
    }
    let bench = Bench::make();
    let cut = large()[..100_000].to_vec();
    let honest = image(&plain(&[cut]), Value::Null, this_architecture());
    let error = bench.refused(&layout(&honest.list, &[honest.manifest]));
    assert!(matches!(error, UnpackError::Truncated { .. }), "{error}");
    let packed = gzip(&large());
    let cut =
        image(&[(large(), packed[..packed.len() / 2].to_vec())], Value::Null, this_architecture());
    let error = bench.refused(&layout(&cut.list, &[cut.manifest]));
    assert!(matches!(error, UnpackError::Truncated { .. }), "{error}");
}

#[test]
fn documents_that_contradict_themselves_are_refused() {
    if !is_root("documents_that_contradict_themselves_are_refused") {
        return;
    }
    let bench = Bench::make();
    let good = image(&plain(&[layer()]), Value::Null, this_architecture());
    let with = |manifest: Value, extra: &[Vec<u8>]| {
        let blobs: Vec<Vec<u8>> = good.list.iter().chain(extra).cloned().collect();
        layout(&blobs, &[manifest])
    };
    let spoiled = |change: &dyn Fn(&mut Value)| {
        let mut manifest: Value = serde_json::from_slice(&good.list[2]).unwrap();
        change(&mut manifest);
        let bytes = manifest.to_string().into_bytes();
        with(descriptor(MANIFEST, &bytes), &[bytes])
    };
    let expect = |archive: Vec<u8>, text: &str| {
        let error = bench.refused(&archive).to_string();
        assert!(error.contains(text), "{text}: {error}");
    };
    expect(spoiled(&|m| m["layers"] = json!([])), "names 1");
    expect(spoiled(&|m| m["layers"][0]["size"] = json!(7)), "manifest says 7");
    expect(spoiled(&|m| m["config"]["size"] = json!(1_u64 << 40)), "bytes");
    expect(
        spoiled(&|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")),
        "no image",
    );
    expect(
        spoiled(&|m| {
            m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted")
        }),
        "encrypted",
    );
    expect(spoiled(&|m| m["layers"][0]["digest"] = json!("sha256:../../../etc/passwd")), "digest");
    expect(
        spoiled(&|m| m["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)))),
        "digest",
    );
    expect(spoiled(&|m| m["layers"][0]["digest"] = json!(digest(b"elsewhere"))), "missing");
    expect(spoiled(&|m| m["config"] = json!(null)), "manifest");
    let mut size = good.manifest.clone();
    size["size"] = json!(1);
    expect(with(size, &[]), "manifest says 1");
    let mut kind = good.manifest.clone();
    kind["mediaType"] = json!("application/vnd.oci.empty.v1+json");
    expect(with(kind, &[]), "not supported");
    expect(Tar::new().file("oci-layout", b"{}").file("index.json", b"{}").end(), "no files");
    expect(
        Tar::new().file("oci-layout", b"{}").file("index.json", b"nonsense").end(),
        "index.json",
    );
    expect(Tar::new().file("manifest.json", b"[]").end(), "no files");
    let large = vec![b' '; 5 << 20];
    expect(Tar::new().file("oci-layout", b"{}").file("index.json", &large).end(), "5242880 bytes");
    // An index that holds itself, which no digest allows, stands for one that nests for ever.
    let mut blobs = good.list.clone();
    let mut described = good.manifest.clone();
    for _ in 0..10 {
        let index = json!({"manifests": [described]}).to_string().into_bytes();
        described = descriptor(INDEX, &index);
        blobs.push(index);
    }
    expect(layout(&blobs, &[described]), "nest too deep");
}

#[test]
fn configurations_that_no_sandbox_can_follow_are_refused() {
    if !is_root("configurations_that_no_sandbox_can_follow_are_refused") {
        return;
    }
    let bench = Bench::make();
    for (execution, text) in [
        (json!({"User": "nobody-here"}), "no such user"),
        (json!({"User": "0:nobody-here"}), "no such group"),
        (json!({"User": "70000"}), "beyond 65535"),
        (json!({"WorkingDir": "/a/../../b"}), "work directory"),
        (json!({"Env": ["NOVALUE"]}), "NOVALUE"),
        (json!({"Env": ["=x"]}), "no name"),
        (json!({"Cmd": ["a\u{0}b"]}), "NUL"),
        (json!({"Env": vec!["A=1"; 2000]}), "words and variables"),
        (json!({"Cmd": ["x".repeat(300 << 10)]}), "words and variables"),
        (json!({"Cmd": "not a list"}), "configuration"),
    ] {
        let error = bench.refused(&simple(&[layer()], execution)).to_string();
        assert!(error.contains(text), "{text}: {error}");
    }
}
