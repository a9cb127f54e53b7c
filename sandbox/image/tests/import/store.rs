//! Names, ids and removal of imported images.

use std::sync::atomic::Ordering;

use sandbox_image::{ImportImageError, Manifest, RemoveImageError, Removed};
use serde_json::{Value, json};

use crate::archives::{Tar, simple};
use crate::{Bench, is_root};

fn layer(text: &str) -> Vec<u8> {
    Tar::new().file("file", text.as_bytes()).end()
}

#[test]
fn the_same_archive_twice_is_one_image_and_another_takes_the_name() {
    if !is_root("the_same_archive_twice_is_one_image_and_another_takes_the_name") {
        return;
    }
    let bench = Bench::make();
    let one = bench.imported(&layer("1"));
    let again = bench.imported(&layer("1"));
    assert_eq!(one.manifest, again.manifest);
    let used = bench.store.lock_for_use(one.id()).unwrap();
    let two = bench.imported(&layer("2"));
    assert_ne!(one.id(), two.id());
    assert_eq!(bench.store.get("imported").unwrap().id(), two.id());
    // The old one stays under its id for whoever runs from it, and can have the name again.
    bench.store.verify(one.id()).unwrap();
    let back = bench.imported(&layer("1"));
    assert_eq!(back.id(), one.id());
    assert_eq!(bench.store.get("imported").unwrap().id(), one.id());
    assert_eq!(bench.store.list().unwrap().len(), 2);
    drop(used);
}

#[test]
fn the_same_tree_with_another_configuration_is_another_image() {
    if !is_root("the_same_tree_with_another_configuration_is_another_image") {
        return;
    }
    let bench = Bench::make();
    let plain = bench.imported(&layer("1"));
    let with = |command: &str| bench.imported(&simple(&[layer("1")], json!({"Cmd": [command]})));
    let (sh, bash) = (with("sh"), with("bash"));
    assert_eq!(plain.manifest.checksum, sh.manifest.checksum);
    assert!(plain.id() != sh.id() && sh.id() != bash.id());
    assert_eq!(with("sh").id(), sh.id());
    bench.store.verify(sh.id()).unwrap();
}

#[test]
fn what_an_image_says_to_its_programs_is_for_root_only() {
    if !is_root("what_an_image_says_to_its_programs_is_for_root_only") {
        return;
    }
    let bench = Bench::make();
    let execution = json!({
        "Env": ["TOKEN=of-the-image"], "Cmd": ["--of-the-image"], "Entrypoint": ["of-the-image"],
        "Labels": {"of-the-image": "1"}, "WorkingDir": "/srv",
    });
    let image = bench.imported(&simple(&[layer("1")], execution));
    assert_eq!(image.manifest.config.as_ref().unwrap().env.len(), 1);
    let public = bench.store.dir().join(format!("{}.json", image.id()));
    let text = std::fs::read_to_string(&public).unwrap();
    assert!(!text.contains("of-the-image") && text.contains("/srv"), "{text}");
    assert_eq!(crate::owner(&public).2, 0o644);
}

#[test]
fn one_image_has_several_names_and_goes_with_the_last() {
    if !is_root("one_image_has_several_names_and_goes_with_the_last") {
        return;
    }
    let bench = Bench::make();
    let path = bench.file("archive", &simple(&[layer("1")], Value::Null));
    let mut options = bench.options(&path);
    let id = bench.import_with(&options).unwrap().id().clone();
    options.name = "app:2".to_owned();
    let image = bench.import_with(&options).unwrap();
    assert_eq!(image.manifest.names().collect::<Vec<_>>(), ["imported", "app:2"]);
    assert_eq!(*bench.store.get("imported").unwrap().id(), id);
    assert_eq!(*bench.store.get("app:2").unwrap().id(), id);
    // Anyone may read the names.
    let public = std::fs::read(bench.store.dir().join(format!("{id}.json"))).unwrap();
    let public: Manifest = serde_json::from_slice(&public).unwrap();
    assert_eq!(public.names().count(), 2);

    let used = bench.store.lock_for_use(&id).unwrap();
    // A name of several goes although the image is in use; the image does not.
    let removed = bench.store.remove("imported").unwrap();
    assert_eq!(removed, Removed::Name { left: vec!["app:2".to_owned()] });
    bench.store.get("imported").unwrap_err();
    for last in ["app:2", id.as_str()] {
        let error = bench.store.remove(last).unwrap_err();
        assert!(matches!(error, RemoveImageError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("in use by process"), "{error}");
    }
    assert!(bench.store.users(&id).unwrap().is_some());
    drop(used);
    assert_eq!(bench.store.users(&id).unwrap(), None);
    assert_eq!(bench.store.remove("app:2").unwrap(), Removed::Image);
    assert_eq!(bench.names(), ["build.lock"]);
}

#[test]
fn whoever_waits_for_another_import_can_be_interrupted() {
    if !is_root("whoever_waits_for_another_import_can_be_interrupted") {
        return;
    }
    let bench = Bench::make();
    let lock = std::fs::File::create(bench.store.dir().join("build.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let options = bench.options(&bench.file("archive", &layer("1")));
    let interrupt = options.interrupt.clone();
    let mut stages = Vec::new();
    let error = bench.store.import(&options, &crate::helper(), &mut |progress| {
        stages.push(progress.stage);
        interrupt.store(true, Ordering::Relaxed);
    });
    let error = error.unwrap_err();
    assert!(matches!(error, ImportImageError::Interrupted), "{error}");
    assert_eq!(stages, [sandbox_image::Stage::Waiting]);
    assert_eq!(bench.names(), ["build.lock"]);
}

#[test]
fn names_that_are_paths_or_ids_are_refused() {
    if !is_root("names_that_are_paths_or_ids_are_refused") {
        return;
    }
    let bench = Bench::make();
    let mut options = bench.options(&bench.file("archive", &layer("1")));
    for name in ["../x", "", "a b", &"0a".repeat(16)] {
        options.name = name.to_owned();
        let error = bench.import_with(&options).unwrap_err();
        assert!(matches!(error, ImportImageError::Name { .. }), "{error}");
    }
}
