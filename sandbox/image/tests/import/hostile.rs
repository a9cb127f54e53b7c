//! Archives that somebody made to do harm: to get out of the root, to fill the disk, to confuse.
//! Each is refused with a reason or kept inside, and nothing half-done is left.

use std::fs;

use sandbox_image::{ImportLimits, UnpackError};
use serde_json::Value;
use tar::EntryType;

use crate::archives::{Tar, gzip, image, layout, simple, this_architecture};
use crate::{Bench, is_root};

#[test]
fn an_entry_that_would_leave_the_root_is_refused_or_stays_inside() {
    if !is_root("an_entry_that_would_leave_the_root_is_refused_or_stays_inside") {
        return;
    }
    let bench = Bench::make();
    // Beside the tree lies the manifest, and above it the cache.
    let outside = bench.file("outside/secret", b"of the host");
    for path in ["../evil", "a/../../evil", "..", "/../evil", "./../../../../../../etc/evil"] {
        let error = bench.refused(&Tar::new().file(path, b"x").end());
        assert!(matches!(error, UnpackError::Entry { .. }), "{path}: {error}");
        assert!(error.to_string().contains(path), "{path}: {error}");
    }
    for (path, target) in [("h", "../../outside/secret"), ("h", ".."), ("h", "a/../../x")] {
        let error = bench.refused(&Tar::new().hard_link(path, target).end()).to_string();
        assert!(error.contains("outside the root"), "{target}: {error}");
    }
    // Absolute ones mean the image's root, as they will in the sandbox.
    let host = outside.to_str().unwrap();
    let error = bench.refused(&Tar::new().hard_link("h", host).end()).to_string();
    assert!(error.contains("not there"), "{error}");
    let above = bench.dir.path().to_str().unwrap();
    let escape = Tar::new()
        .link("up", "../../../../../../../../var/tmp")
        .link("abs", above)
        .link("magic", "/proc/self/root")
        .file("up/evil", b"x")
        .file("abs/evil", b"x")
        .file("magic/evil", b"x")
        .file("/rooted", b"x")
        .hard_link("copy", "abs/evil")
        .end();
    let root = bench.imported(&escape).rootfs();
    assert!(root.join("var/tmp/evil").is_file() && root.join("rooted").is_file());
    assert!(root.join(above.trim_start_matches('/')).join("evil").is_file());
    assert!(root.join("copy").is_file() && root.join("proc/self/root/evil").is_file());
    assert!(!fs::exists("/var/tmp/evil").unwrap() && !fs::exists("/evil").unwrap());
    assert!(!bench.dir.path().join("evil").exists());
    assert_eq!(fs::read_to_string(outside).unwrap(), "of the host");
}

#[test]
fn a_link_under_an_entry_is_never_written_through() {
    if !is_root("a_link_under_an_entry_is_never_written_through") {
        return;
    }
    let bench = Bench::make();
    let host = bench.file("host-file", b"of the host");
    let archive = Tar::new()
        .link("file", host.to_str().unwrap())
        .file("file", b"new")
        .link("pipe", host.to_str().unwrap())
        .special("pipe", EntryType::Fifo)
        .directory("d/")
        .link("d", "/")
        .file("d/through", b"x")
        .end();
    let root = bench.imported(&archive).rootfs();
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "new");
    assert!(!fs::symlink_metadata(root.join("file")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&host).unwrap(), "of the host");
    // The directory gave way to the link, and the link leads to the image's root.
    assert!(root.join("through").is_file());
}

#[test]
fn links_in_a_circle_paths_without_end_and_deep_trees_are_refused() {
    if !is_root("links_in_a_circle_paths_without_end_and_deep_trees_are_refused") {
        return;
    }
    let bench = Bench::make();
    let circle = Tar::new().link("a", "b").link("b", "a").file("a/x", b"").end();
    assert!(bench.refused(&circle).to_string().contains("circle"));
    let own = Tar::new().link("a", "a/a/a").file("a/x", b"").end();
    assert!(bench.refused(&own).to_string().contains("circle"));
    // Two at each step: what resolves by trying all would never end.
    let mut doubling = Tar::new().link("l0", ".");
    for step in 1..40 {
        let before = step - 1;
        doubling = doubling.link(&format!("l{step}"), &format!("l{before}/l{before}"));
    }
    let error = bench.refused(&doubling.file("l39/x", b"").end()).to_string();
    assert!(error.contains("circle"), "{error}");
    let deep = "d/".repeat(300);
    let named = Tar::new().extended(&[("path", deep.as_bytes())]).directory("x/").end();
    assert!(bench.refused(&named).to_string().contains("deeper"));
    let long = format!("{}/", "d".repeat(200)).repeat(20);
    let named = Tar::new().extended(&[("path", long.as_bytes())]).directory("x/").end();
    assert!(bench.refused(&named).to_string().contains("longer"));
    let name = "n".repeat(256);
    let named = Tar::new().extended(&[("path", name.as_bytes())]).file("x", b"").end();
    assert!(bench.refused(&named).to_string().contains("255"));
    let target = Tar::new().extended(&[("linkpath", "t".repeat(5000).as_bytes())]).link("x", "y");
    assert!(bench.refused(&target.end()).to_string().contains("target"));
    let nul = Tar::new().extended(&[("path", b"etc/passwd\0.txt")]).file("x", b"").end();
    assert!(bench.refused(&nul).to_string().contains("NUL"));
}

/// Compressed, so that the test's own file is small.
fn zeros(name: &str, gigabytes: u64) -> Vec<u8> {
    let megabyte = vec![0; 1 << 20];
    let mut start = Tar::header(name, EntryType::Regular, gigabytes << 30);
    start.set_cksum();
    let mut packed = gzip(start.as_bytes());
    packed.extend(gzip(&megabyte).repeat((gigabytes << 10) as usize));
    packed.extend(gzip(&[0; 1024]));
    packed
}

#[test]
fn gigabytes_of_zeros_are_stopped_whether_packed_or_not() {
    if !is_root("gigabytes_of_zeros_are_stopped_whether_packed_or_not") {
        return;
    }
    let bench = Bench::make();
    let bomb = zeros("zeros", 4);
    let error = bench.refused(&bomb);
    assert!(matches!(error, UnpackError::Bomb { bytes, .. } if bytes < 1 << 28), "{error}");
    let in_layer = image(&[(Vec::new(), bomb)], Value::Null, this_architecture());
    let error = bench.refused(&layout(&in_layer.list, &[in_layer.manifest]));
    assert!(matches!(error, UnpackError::Bomb { .. }), "{error}");
    // Within the ratio, as a hole, or merely announced: the size that was allowed decides.
    let mut options = bench.options(&bench.file("small", &gzip(&vec![0; 512])));
    options.limits = ImportLimits { bytes: 1 << 20, entries: 100 };
    for archive in [
        Tar::new().file("a", &vec![7; 2 << 20]).end(),
        Tar::new().file("a", &vec![7; 700 << 10]).file("b", &vec![7; 700 << 10]).end(),
        Tar::new()
            .extended(&[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.size", b"1000000000000"),
                ("GNU.sparse.map", b"0,1"),
            ])
            .file("hole", b"x")
            .end(),
        Tar::new().raw(Tar::header("etc/lie", EntryType::Regular, 1 << 40), b"short").end(),
    ] {
        bench.file("small", &archive);
        let error = bench.refused_with(&options);
        assert_eq!(error, UnpackError::TooLarge { limit: 1 << 20 });
        assert!(error.to_string().contains("--max-size"));
    }
}

#[test]
fn a_million_entries_are_refused_and_a_limit_can_be_raised() {
    if !is_root("a_million_entries_are_refused_and_a_limit_can_be_raised") {
        return;
    }
    let bench = Bench::make();
    // Names that do not compress to nothing, or it would be a bomb before it is a million entries.
    let mut headers = Vec::new();
    for number in 0..10_000_u64 {
        let name = format!("{:016x}", (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut header = Tar::header(&name, EntryType::Char, 0);
        header.set_mtime(number.wrapping_mul(0x9e37_79b9) & 0xffff_ffff);
        header.set_cksum();
        headers.extend_from_slice(header.as_bytes());
    }
    let million = gzip(&headers).repeat(100);
    let error = bench.refused(&million);
    let limit = ImportLimits::ENTRIES_DEFAULT;
    assert_eq!(error, UnpackError::TooManyEntries { limit });
    assert!(error.to_string().contains("--max-entries"));
    // Directories that are made on the way count too.
    let deep: Vec<String> = (0..30).map(|n| format!("{n}/{}", "d/".repeat(20))).collect();
    let archive = deep.iter().fold(Tar::new(), |tar, path| tar.directory(path)).end();
    let mut options = bench.options(&bench.file("deep", &archive));
    options.limits.entries = 100;
    assert_eq!(bench.refused_with(&options), UnpackError::TooManyEntries { limit: 100 });
    options.limits.entries = 1000;
    bench.import_with(&options).unwrap();
}

#[test]
fn owners_beyond_the_range_are_named_and_odd_kinds_refused() {
    if !is_root("owners_beyond_the_range_are_named_and_odd_kinds_refused") {
        return;
    }
    let bench = Bench::make();
    let error = bench.refused(&Tar::new().owned("etc/shadow", 0o600, 65_536, 0).end());
    assert!(error.to_string().contains("`etc/shadow` belongs to user 65536"), "{error}");
    let error = bench.refused(&Tar::new().extended(&[("gid", b"4294967295")]).file("x", b"").end());
    assert!(error.to_string().contains("group 4294967295"), "{error}");
    let error = bench.refused(&Tar::new().special("x", EntryType::new(b'M')).end()).to_string();
    assert!(error.contains("type is `M`"), "{error}");
    let error = bench.refused(&Tar::new().file(".", b"x").end()).to_string();
    assert!(error.contains("root must be a directory"), "{error}");
    let error = bench.refused(&Tar::new().file("f", b"x").file("f/below", b"x").end()).to_string();
    assert!(error.contains("no directory"), "{error}");
    let error = bench.refused(&Tar::new().directory("d/").hard_link("h", "d").end()).to_string();
    assert!(error.contains("a directory"), "{error}");
    // A name that would steer the terminal is shown without its control characters.
    let error = bench.refused(&Tar::new().file("\u{1b}[2J/../x", b"").end()).to_string();
    assert!(!error.contains('\u{1b}') && error.contains("·[2J"), "{error}");
}

#[test]
fn names_that_differ_in_case_only_are_two_and_a_whiteouts_prefix_has_one_case() {
    if !is_root("names_that_differ_in_case_only_are_two_and_a_whiteouts_prefix_has_one_case") {
        return;
    }
    let bench = Bench::make();
    let base = Tar::new().directory("etc/").file("etc/passwd", b"1").file("etc/group", b"").end();
    let upper = Tar::new()
        .link("ETC", "/proc")
        .directory("Etc/")
        .file("Etc/passwd", b"2")
        .file("etc/.WH.passwd", b"")
        .end();
    let root = bench.imported(&simple(&[base, upper], Value::Null)).rootfs();
    assert_eq!(fs::read_to_string(root.join("etc/passwd")).unwrap(), "1");
    assert_eq!(fs::read_to_string(root.join("Etc/passwd")).unwrap(), "2");
    assert!(root.join("etc/.WH.passwd").exists());
}

#[test]
fn extended_headers_that_lie_are_refused() {
    if !is_root("extended_headers_that_lie_are_refused") {
        return;
    }
    let bench = Bench::make();
    let global = |records: &[u8]| {
        Tar::new()
            .raw(Tar::header("g", EntryType::XGlobalHeader, records.len() as u64), records)
            .file("x", b"")
            .end()
    };
    bench.imported(&global(b"13 comment=x\n"));
    assert!(bench.refused(&global(b"12 path=a/b\n")).to_string().contains("global header"));
    let many =
        vec![("SCHILY.xattr.user.a", &[0_u8; 40_000][..]), ("SCHILY.xattr.user.b", &[0; 40_000])];
    assert!(
        bench
            .refused(&Tar::new().extended(&many).file("x", b"").end())
            .to_string()
            .contains("attributes")
    );
    let huge = Tar::header("x", EntryType::XHeader, 1 << 40);
    assert!(
        bench.refused(&Tar::new().raw(huge, b"").end()).to_string().contains("extended header")
    );
    let endless = (0..40).fold(Tar::new(), |tar, _| tar.extended(&[("path", b"a")]));
    assert!(bench.refused(&endless.file("x", b"").end()).to_string().contains("too many headers"));
    for map in ["5,1,0,1", "0,2,1,2", "0,1,18446744073709551615,5", "0,5", "0", "a,b"] {
        let records = [
            ("GNU.sparse.major", &b"0"[..]),
            ("GNU.sparse.size", b"100"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        let error =
            bench.refused(&Tar::new().extended(&records).file("x", b"12").end()).to_string();
        assert!(error.contains("map") || error.contains("number"), "{map}: {error}");
    }
}

/// A small disk for a cache, gone with the test.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(bench: &Bench, options: &str) -> Option<Self> {
        let at = bench.dir.path().join("disk");
        fs::create_dir(&at).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("disk", &at, "tmpfs", flags, &*options).ok()?;
        Some(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_disk_without_room_is_told_before_and_while_it_fills() {
    let test = "a_disk_without_room_is_told_before_and_while_it_fills";
    if !is_root(test) {
        return;
    }
    let mut bench = Bench::make();
    let Some(disk) = Disk::mount(&bench, "size=258m,nr_inodes=2000,mode=0755") else {
        eprintln!("SKIP {test}: cannot mount a small disk");
        return;
    };
    bench.store = sandbox_image::ImageStore::open(&disk.0.join("images")).unwrap();
    match bench.import(&bench.file("archive", &Tar::new().file("a", b"x").end())) {
        Ok(_) => {}
        Err(sandbox_image::ImportImageError::Jail(error)) => {
            eprintln!("SKIP {test}: this kernel cannot map the ids of a tmpfs: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let large = Tar::new().file("large", &vec![7; 4 << 20]).end();
    let error = bench.refused(&large);
    assert!(matches!(error, UnpackError::NoRoom { .. }), "{error}");
    let many = (0..3000).fold(Tar::new(), |tar, number| tar.file(&format!("f{number}"), b""));
    // Whoever sees it first, the unpacker or the one who watches the disk.
    match bench.import(&bench.file("archive", &many.end())) {
        Err(
            sandbox_image::ImportImageError::Filling
            | sandbox_image::ImportImageError::Refused { error: UnpackError::DiskFull, .. },
        ) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_record_of_countless_packages_does_not_make_an_image_that_nobody_can_read_or_remove() {
    if !is_root("a_record_of_countless_packages") {
        return;
    }
    let bench = Bench::make();
    let long = "v".repeat(250);
    let record: String =
        (0..20_000).map(|n| format!("Package: {n}{long}\nVersion: {long}\n\n")).collect();
    let image = bench.imported(&Tar::new().file("var/lib/dpkg/status", record.as_bytes()).end());
    let found = bench.store.get("imported").unwrap();
    assert_eq!(found.id(), image.id());
    assert!(!found.manifest.packages.is_empty());
    assert_eq!(bench.store.remove("imported").unwrap(), sandbox_image::Removed::Image);
    assert_eq!(bench.names(), ["build.lock"]);
}

#[test]
fn small_files_do_not_fill_the_file_system_beyond_what_is_kept_free() {
    if !is_root("small_files_do_not_fill_the_file_system_beyond_what_is_kept_free") {
        return;
    }
    let mut bench = Bench::make();
    let Some(disk) = Disk::mount(&bench, "size=300m,mode=0755") else {
        eprintln!("SKIP small_files_do_not_fill_the_file_system: cannot mount a small disk");
        return;
    };
    bench.store = sandbox_image::ImageStore::open(&disk.0.join("images")).unwrap();
    // One byte each, and a page of the file system.
    let tar = (0..50_000).fold(Tar::new(), |tar, n| tar.file(&format!("d{}/{n}", n % 100), b"x"));
    let path = bench.file("archive", &tar.end());
    match bench.import(&path) {
        Err(sandbox_image::ImportImageError::Filling) => {}
        Err(sandbox_image::ImportImageError::Jail(error)) => {
            eprintln!("SKIP small_files_do_not_fill_the_file_system: map ids of a tmpfs: {error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.names(), ["build.lock"]);
}
