//! Random layers against the tree alone, without the jail around it.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::unpack::tar::End;

/// A few names, so that entries meet: as files, links, directories, and on the way to others.
fn name() -> impl Strategy<Value = String> {
    let component =
        prop::sample::select(vec!["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq"]);
    prop::collection::vec(component, 1..5).prop_map(|components| components.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let start = prop::sample::select(vec!["", "/", "../", "../../../", "./"]);
    (start, name()).prop_map(|(start, name)| format!("{start}{name}"))
}

#[derive(Clone, Debug)]
struct Spec {
    path: String,
    kind: u8,
    target: String,
}

fn spec() -> impl Strategy<Value = Spec> {
    let kind = prop::sample::select(vec![b'0', b'0', b'1', b'2', b'2', b'3', b'5', b'6']);
    (name(), kind, target()).prop_map(|(path, kind, target)| Spec { path, kind, target })
}

fn archive(specs: &[Spec]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for spec in specs {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        old.name[..spec.path.len()].copy_from_slice(spec.path.as_bytes());
        old.linkname[..spec.target.len()].copy_from_slice(spec.target.as_bytes());
        header.set_entry_type(tar::EntryType::new(spec.kind));
        header.set_mode(0o755);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_size(if spec.kind == b'0' { 4 } else { 0 });
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        if spec.kind == b'0' {
            bytes.extend_from_slice(b"evil");
            bytes.resize(bytes.len() + 508, 0);
        }
    }
    bytes
}

fn unpack(root: &Path, layers: &[Vec<Spec>]) {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let root = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    let mut tree = Tree::new(root, ImportLimits { bytes: 1 << 20, entries: 1000 });
    for layer in layers {
        let bytes = archive(layer);
        let mut whiteouts = Whiteouts::default();
        let mut first = Archive::new(&bytes[..], End::Any);
        // An archive that is refused somewhere has done until then what it could.
        while let Ok(Some(entry)) = first.next() {
            let _ = whiteouts.collect(&entry);
        }
        let _ = tree.apply(&whiteouts);
        let _ = tree.unpack_layer(&mut Archive::new(&bytes[..], End::Any));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Without the jail around it: the tree alone keeps everything inside its root.
    #[test]
    fn no_layers_reach_out_of_the_root(
        layers in prop::collection::vec(prop::collection::vec(spec(), 0..12), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("x/root");
        std::fs::create_dir_all(&root).unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(dir.path().join(name), "kept").unwrap();
            std::fs::create_dir(dir.path().join("x").join(name)).unwrap();
        }
        unpack(&root, &layers);
        for name in ["a", "b", "c"] {
            assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "kept");
            let link_count = std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(dir.path().join(name)).unwrap());
            assert_eq!(link_count, 1, "a hard link into the root");
            assert_eq!(std::fs::read_dir(dir.path().join("x").join(name)).unwrap().count(), 0);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
        assert_eq!(std::fs::read_dir(dir.path().join("x")).unwrap().count(), 4);
    }
}
