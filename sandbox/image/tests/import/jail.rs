//! The walls around the unpacker, seen from outside while it runs.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sandbox_image::ImportImageError;

use crate::archives::Tar;
use crate::{Bench, helper, is_root};

/// Unpackers of this test's own, by their parent.
fn children() -> Vec<u32> {
    let me = std::process::id().to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_mine = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|it| it.trim() == me))
            && status.starts_with("Name:\timage-unpacker")
    };
    pids.filter(is_mine).collect()
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A pipe whose writer stops in the middle of a file, so that the unpacker waits.
fn stuck(bench: &Bench) -> (PathBuf, fs::File) {
    let path = bench.dir.path().join("pipe");
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut writer = fs::File::options().read(true).write(true).open(&path).unwrap();
    let start = Tar::new().directory("etc/").file("etc/motd", b"hello");
    writer.write_all(&start.0).unwrap();
    (path, writer)
}

#[test]
fn the_unpacker_has_nothing_of_the_hosts() {
    if !is_root("the_unpacker_has_nothing_of_the_hosts") {
        return;
    }
    let bench = Bench::make();
    let (path, writer) = stuck(&bench);
    let options = bench.options(&path);
    let interrupt = options.interrupt.clone();
    let store = bench.store.clone();
    let import = std::thread::spawn(move || store.import(&options, &helper(), &mut |_| {}));
    let pid = wait_for("the unpacker in its jail", || {
        let pid = *children().first()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.contains("\nSeccomp:\t2").then_some(pid)
    });
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP: in its own user namespace only.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0x8000_001b, "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    let uid: u32 = field("Uid").split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(uid, 0x1fff_0000);
    for namespace in ["user", "mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" ro,"), "{mounts}");
    assert!(fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty());
    let open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .map(|entry| fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned())
        .collect();
    let allowed = |link: &String| {
        ["socket:", "/dev/null"].iter().any(|start| link.starts_with(start))
            || ["build.lock", "pipe", ".unpacking (deleted)", "/"]
                .iter()
                .any(|end| link.ends_with(end))
    };
    assert!(open.iter().all(allowed), "{open:?}");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(
        limit("Max data size").contains("1073741824") && limit("Max processes").contains(" 0 ")
    );

    interrupt.store(true, Ordering::Relaxed);
    let error = import.join().unwrap().unwrap_err();
    assert!(matches!(error, ImportImageError::Interrupted), "{error}");
    assert!(children().is_empty(), "the unpacker is left");
    assert_eq!(bench.names(), ["build.lock"]);
    drop(writer);
}

#[test]
fn an_unpacker_that_is_killed_leaves_nothing_and_is_told_of() {
    if !is_root("an_unpacker_that_is_killed_leaves_nothing_and_is_told_of") {
        return;
    }
    let bench = Bench::make();
    let (path, _writer) = stuck(&bench);
    let options = bench.options(&path);
    let store = bench.store.clone();
    let import = std::thread::spawn(move || store.import(&options, &helper(), &mut |_| {}));
    let pid = wait_for("the unpacker", || children().first().copied());
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let error = import.join().unwrap().unwrap_err();
    assert!(matches!(error, ImportImageError::Died { .. }), "{error}");
    assert!(error.to_string().contains("signal: 9"), "{error}");
    assert_eq!(bench.names(), ["build.lock"]);
}

/// Set for the process that this test kills: the cache it imports into, and the archive.
const IMPORT_INTO: &str = "SINEW_TEST_IMPORT_INTO";

#[test]
fn an_import_that_is_killed_takes_its_unpacker_along_and_is_swept_by_the_next() {
    let test = "jail::an_import_that_is_killed_takes_its_unpacker_along_and_is_swept_by_the_next";
    if let Some(paths) = std::env::var_os(IMPORT_INTO) {
        let paths: Vec<PathBuf> = std::env::split_paths(&paths).collect();
        let bench = Bench::make();
        let options = bench.options(&paths[1]);
        let store = sandbox_image::ImageStore::open(&paths[0]).unwrap();
        store.import(&options, &helper(), &mut |_| {}).unwrap();
        return;
    }
    if !is_root(test) {
        return;
    }
    let bench = Bench::make();
    let (path, _writer) = stuck(&bench);
    let paths = std::env::join_paths([bench.store.dir(), &path]).unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(IMPORT_INTO, paths)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("an unpacked file", || {
        assert!(child.try_wait().unwrap().is_none(), "the import ended before it could be killed");
        bench.names().into_iter().find(|name| name.starts_with(".building-"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    // The unpacker holds the lock, so that a free lock means that it is gone.
    let lock = fs::File::open(bench.store.dir().join("build.lock")).unwrap();
    wait_for("the unpacker to end", || {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()
    });
    drop(lock);
    assert!(bench.store.list().unwrap().is_empty());
    bench.imported(&Tar::new().file("x", b"").end());
    assert!(
        !bench.names().iter().any(|name| name.starts_with(".building-")),
        "{:?}",
        bench.names()
    );
}

/// Asks and asks, and never listens.
const DEAF: &str = r#"
import ctypes, json, os, socket, struct, time
ctypes.CDLL(None).unshare(0x10000000)
host = socket.socket(fileno=os.dup(0))
def say(message):
    body = json.dumps(message).encode()
    host.sendall(struct.pack("<I", len(body)) + body)
say("Separated")
for _ in range(4000):
    say({"Open": {"name": "oci-layout"}})
time.sleep(1000)
"#;

#[test]
fn an_unpacker_that_never_listens_is_stopped() {
    let test = "an_unpacker_that_never_listens_is_stopped";
    if !is_root(test) {
        return;
    }
    let python = PathBuf::from("/usr/bin/python3");
    if !python.exists() {
        eprintln!("SKIP {test}: needs python3");
        return;
    }
    let bench = Bench::make();
    let index = bench.file("layout/index.json", b"{}");
    let options = bench.options(index.parent().unwrap());
    let taken_over = sandbox_image::UnpackHelper {
        program: python,
        args: vec!["-c".into(), DEAF.into()],
        ..helper()
    };
    let store = bench.store.clone();
    let import = std::thread::spawn(move || store.import(&options, &taken_over, &mut |_| {}));
    wait_for("the import to give up", || import.is_finished().then_some(()));
    let error = import.join().unwrap().unwrap_err();
    assert!(matches!(error, ImportImageError::Silent { .. }), "{error}");
    assert_eq!(bench.names(), ["build.lock"]);
}
