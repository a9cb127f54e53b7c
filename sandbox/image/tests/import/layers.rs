//! Layers over layers: whiteouts, opaque directories, links between layers, and which wins.

use std::fs;

use serde_json::Value;
use tar::EntryType;

use crate::archives::{Tar, simple};
use crate::{Bench, is_root, owner};

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn whiteouts_hide_what_is_below_and_never_their_own_layer() {
    if !is_root("whiteouts_hide_what_is_below_and_never_their_own_layer") {
        return;
    }
    let bench = Bench::make();
    let base = Tar::new()
        .directory("d/")
        .file("d/gone", b"1")
        .file("d/replaced", b"1")
        .directory("d/tree/")
        .file("d/tree/deep", b"1")
        .directory("opaque/")
        .file("opaque/old", b"1")
        .directory("opaque/sub/")
        .file("opaque/sub/old", b"1")
        .link("through", "d")
        .end();
    let upper = Tar::new()
        // The whiteout comes after what its layer brings, and before, and through a link.
        .directory("opaque/")
        .file("opaque/new", b"2")
        .file("opaque/.wh..wh..opq", b"")
        .file("d/.wh.replaced", b"")
        .file("d/replaced", b"2")
        .file("through/.wh.gone", b"")
        .file("d/.wh.tree", b"")
        .file(".wh.never-was", b"")
        .file("nowhere/.wh.x", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .end();
    let root = bench.imported(&simple(&[base, upper], Value::Null)).rootfs();
    assert_eq!(names(&root), ["d", "opaque", "through"]);
    assert_eq!(names(&root.join("d")), ["replaced"]);
    assert_eq!(fs::read_to_string(root.join("d/replaced")).unwrap(), "2");
    assert_eq!(names(&root.join("opaque")), ["new"]);
}

#[test]
fn in_a_root_filesystem_a_whiteouts_name_is_a_name() {
    if !is_root("in_a_root_filesystem_a_whiteouts_name_is_a_name") {
        return;
    }
    let bench = Bench::make();
    let root = bench.imported(&Tar::new().file(".wh.x", b"1").file("x", b"1").end()).rootfs();
    assert_eq!(names(&root), [".wh.x", "x"]);
}

#[test]
fn a_later_layer_replaces_kinds_and_links_reach_into_earlier_ones() {
    if !is_root("a_later_layer_replaces_kinds_and_links_reach_into_earlier_ones") {
        return;
    }
    let bench = Bench::make();
    let base = Tar::new()
        .directory("usr/")
        .directory("usr/lib/")
        .file("usr/lib/one", b"1")
        .link("lib", "usr/lib")
        .directory("was-directory/")
        .file("was-directory/x", b"1")
        .file("was-file", b"1")
        .link("was-link", "/etc")
        .file("linked", b"below")
        .owned("keeps-mode", 0o4711, 7, 8)
        .end();
    let upper = Tar::new()
        .file("lib/two", b"2")
        .file("was-directory", b"2")
        .directory("was-file/")
        .file("was-file/inner", b"2")
        .directory("was-link/")
        .file("was-link/inner", b"2")
        .hard_link("also-linked", "linked")
        .hard_link("keeps-too", "/keeps-mode")
        .hard_link("linked", "linked")
        .special("linked-pipe", EntryType::Fifo)
        .end();
    let top = Tar::new().file("also-linked", b"above").end();
    let root = bench.imported(&simple(&[base, upper, top], Value::Null)).rootfs();
    assert_eq!(names(&root.join("usr/lib")), ["one", "two"]);
    assert!(fs::symlink_metadata(root.join("lib")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(root.join("was-directory")).unwrap(), "2");
    assert_eq!(names(&root.join("was-file")), ["inner"]);
    assert!(fs::symlink_metadata(root.join("was-link")).unwrap().is_dir());
    // A new file takes a link's place and leaves the other name of the old one alone.
    assert_eq!(fs::read_to_string(root.join("linked")).unwrap(), "below");
    assert_eq!(fs::read_to_string(root.join("also-linked")).unwrap(), "above");
    assert_eq!(owner(&root.join("keeps-too")), (7, 8, 0o4711));
}

#[test]
fn a_whiteout_of_nothing_or_with_something_below_it_is_refused() {
    if !is_root("a_whiteout_of_nothing_or_with_something_below_it_is_refused") {
        return;
    }
    let bench = Bench::make();
    let base = || Tar::new().file("x", b"1").end();
    for bad in ["d/.wh.", ".wh..", ".wh...", ".wh.d/x", "../.wh.x", "d/../.wh.x"] {
        let upper = Tar::new().file(bad, b"").end();
        let error = bench.refused(&simple(&[base(), upper], Value::Null)).to_string();
        assert!(error.contains("refused"), "{bad}: {error}");
    }
}
