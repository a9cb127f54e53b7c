//! The launcher as a process: it is killed, restarted, started by hand, and asked by strangers.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base_types::{CallId, Epoch, ImageId, SandboxId, SessionId, TenantId, VolumeId};
use guest_protocol::client::GuestClient;
use guest_protocol::{CallSpec, ExecSpec, Exit, Outcome, OutputLimits, RunAs, ShellSpec, Work};
use sandbox_api::contract::Place;
use sandbox_api::{RestoredFrom, SandboxDriver, SandboxSpec, Vitality};
use sandbox_launcher::wire::Leave;
use sandbox_launcher::{LauncherDriver, Layout};
use tokio::time::timeout;

use crate::place::{CONFIG, Launcher, SERVE_UID};

const LONG: Duration = Duration::from_secs(60);

pub async fn spec(driver: &LauncherDriver, launcher: &Launcher) -> SandboxSpec {
    SandboxSpec {
        sandbox: SandboxId::generate(),
        epoch: Epoch::FIRST,
        volume: VolumeId::generate(),
        volume_exists: false,
        image: driver.image(launcher.image()).await.unwrap().id,
        profile: launcher.profile(),
        session: SessionId::from("session"),
        tenant: TenantId::from("tenant"),
    }
}

async fn shell(guest: &GuestClient, command: &str) -> Outcome {
    let id = CallId::generate();
    let work = Work::Shell(ShellSpec::Command(command.to_owned()));
    let spec = CallSpec { timeout: LONG, limits: OutputLimits::default(), work };
    guest.start(&id, &spec).await.unwrap();
    timeout(LONG, guest.wait(&id)).await.unwrap().unwrap()
}

pub async fn say(guest: &GuestClient, command: &str) -> String {
    let outcome = shell(guest, command).await;
    let text = String::from_utf8_lossy(&outcome.head).trim().to_owned();
    assert_eq!(outcome.exit, Exit::Code(0), "{command}: {text}");
    text
}

/// How often this launcher has marked the image as in use.
fn image_locks(launcher: &Launcher, image: &ImageId) -> usize {
    let process = PathBuf::from(format!("/proc/{}", launcher.pid()));
    let of_image = |link: &Path| link.iter().any(|part| part == image.as_str());
    let locks = std::fs::read_dir(process.join("fd")).unwrap().flatten().filter(|fd| {
        let info = std::fs::read_to_string(process.join("fdinfo").join(fd.file_name()));
        std::fs::read_link(fd.path()).is_ok_and(|link| of_image(&link))
            && info.is_ok_and(|info| info.contains("FLOCK"))
    });
    locks.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_go_on_while_the_launcher_is_killed_and_replaced() {
    let name = "sandboxes_go_on_while_the_launcher_is_killed_and_replaced";
    let Some(mut launcher) = Launcher::start(name).await else { return };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let (one, other) = (spec(&driver, &launcher).await, spec(&driver, &launcher).await);
    driver.create(&one).await.unwrap();
    driver.create(&other).await.unwrap();
    let guest = driver.connect(&one.sandbox, one.epoch).await.unwrap();
    say(&guest, "kept=in_the_shell").await;
    assert_eq!(image_locks(&launcher, &one.image), 2);

    launcher.kill();
    assert_eq!(say(&guest, "echo $kept").await, "in_the_shell", "it does not need the launcher");
    launcher.launch();

    assert_eq!(image_locks(&launcher, &one.image), 2, "held again for what runs");
    // The same client, which noticed nothing, and the end is seen by one that is not the parent.
    assert_eq!(driver.list().await.unwrap().len(), 2);
    assert_eq!(driver.create(&one).await.unwrap().restored_from, RestoredFrom::StillRunning);
    let again = driver.connect(&one.sandbox, one.epoch).await.unwrap();
    assert_eq!(say(&again, "echo $kept").await, "in_the_shell");
    // It may end before it has answered.
    let _ = again.shutdown().await;
    let ended = timeout(LONG, driver.ended(&one.sandbox, one.epoch)).await.unwrap().unwrap();
    let why = Some("agent exited".to_owned());
    assert_eq!(ended, Vitality::Stopped { epoch: one.epoch, why });
    assert_eq!(image_locks(&launcher, &one.image), 1);

    // Out of memory is seen again too.
    let guest = driver.connect(&other.sandbox, other.epoch).await.unwrap();
    let bomb = CallSpec {
        timeout: LONG,
        limits: OutputLimits::default(),
        work: Work::Exec(ExecSpec {
            argv: ["tail", "-n", "1", "/dev/zero"].map(str::to_owned).to_vec(),
            env: Vec::new(),
            cwd: None,
            run_as: RunAs::Tool,
            stdin: false,
            pty: None,
        }),
    };
    guest.start(&CallId::generate(), &bomb).await.unwrap();
    let ended = timeout(LONG, driver.ended(&other.sandbox, other.epoch)).await.unwrap().unwrap();
    let why = Some("out of memory (limit 96MiB)".to_owned());
    assert_eq!(ended, Vitality::Stopped { epoch: other.epoch, why });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_launcher_left_is_swept() {
    let Some(mut launcher) = Launcher::start("what_a_killed_launcher_left_is_swept").await else {
        return;
    };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let before = launcher.footprint().await;
    let lost = spec(&driver, &launcher).await;
    driver.create(&lost).await.unwrap();
    launcher.kill();
    // Its record is lost: the launcher does not know it any more.
    let record = launcher.data().join(format!("launcher/sandboxes/{}.json", lost.sandbox));
    std::fs::remove_file(record).unwrap();
    launcher.launch();

    let status = driver.list().await.unwrap();
    assert_eq!(status.len(), 1, "the volume is kept");
    assert_eq!(status[0].vitality, Vitality::VolumeOnly);
    assert_eq!((&status[0].sandbox, &status[0].volume), (&lost.sandbox, &lost.volume));
    driver.destroy(&lost.sandbox, &lost.volume).await.unwrap();
    let after = launcher.footprint().await;
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_launcher_leaves_sandboxes_running() {
    let name = "a_terminated_launcher_leaves_sandboxes_running";
    let Some(mut launcher) = Launcher::start(name).await else { return };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let spec = spec(&driver, &launcher).await;
    driver.create(&spec).await.unwrap();
    let guest = driver.connect(&spec.sandbox, spec.epoch).await.unwrap();
    launcher.terminate();
    assert_eq!(say(&guest, "echo on").await, "on");
    launcher.launch();
    assert_eq!(driver.create(&spec).await.unwrap().restored_from, RestoredFrom::StillRunning);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_that_leaves_nothing_leaves_nothing() {
    let name = "a_shutdown_that_leaves_nothing_leaves_nothing";
    let Some(mut launcher) = Launcher::start(name).await else { return };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    for _ in 0..3 {
        let spec = spec(&driver, &launcher).await;
        driver.create(&spec).await.unwrap();
    }
    assert_ne!(launcher.groups(), BTreeSet::new());
    driver.shutdown(Leave::Nothing).await.unwrap();
    launcher.wait();
    assert_eq!(launcher.groups(), BTreeSet::new());
    let pool = launcher.pool_mount().canonicalize().unwrap().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&pool), "the pool is unmounted");
    let attached = Command::new("losetup").arg("-a").output().unwrap();
    let data = launcher.data().canonicalize().unwrap().display().to_string();
    assert!(!String::from_utf8_lossy(&attached.stdout).contains(&data), "no loop device is left");
}

/// What runs as another user is not let in: neither through the directory nor at the socket.
#[tokio::test(flavor = "multi_thread")]
async fn other_users_are_not_served() {
    let Some(launcher) = Launcher::start("other_users_are_not_served").await else { return };
    let data = launcher.data();
    open_to_all(&data);
    let ask = |uid: u32, gid: u32| {
        let socket = data.join("launcher/launcher.sock");
        let script = "import socket,sys\n\
            s=socket.socket(socket.AF_UNIX)\n\
            try: s.connect(sys.argv[1])\n\
            except PermissionError: print('refused'); sys.exit()\n\
            s.settimeout(10)\n\
            m=b'{\"id\":1,\"ask\":\"hello\",\"version_min\":1,\"version\":1,\"role\":{\"as\":\"observe\"}}'\n\
            try: s.sendall(len(m).to_bytes(4,'little')+m); r=s.recv(4096)\n\
            except OSError: r=b''\n\
            print('answered' if r else 'closed')";
        let output = Command::new("python3")
            .args(["-c", script])
            .arg(socket)
            .uid(uid)
            .gid(gid)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(ask(SERVE_UID, SERVE_UID), "answered");
    assert_eq!(ask(65_533, 65_533), "refused", "the directory keeps it out");
    assert_eq!(ask(65_533, SERVE_UID), "closed", "the group is not enough");
}

/// The temporary directory is 0700; the data directory's own modes are what is tested.
fn open_to_all(data: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(data.parent().unwrap(), open).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_launcher_of_the_same_directory_is_refused() {
    let name = "a_second_launcher_of_the_same_directory_is_refused";
    let Some(launcher) = Launcher::start(name).await else { return };
    let second = Command::new(env!("CARGO_BIN_EXE_sinew"))
        .arg("launcher")
        .arg("--data")
        .arg(launcher.data())
        .arg("--images")
        .arg(launcher.images())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("is running already"), "{said}");
    Layout::at(&launcher.data()).connect().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_installations_do_not_disturb_each_other() {
    let name = "two_installations_do_not_disturb_each_other";
    let Some(mut one) = Launcher::start(name).await else { return };
    let Some(other) = Launcher::start(name).await else { return };
    let (first, second) = (
        LauncherDriver::connect(&one.data()).await.unwrap(),
        LauncherDriver::connect(&other.data()).await.unwrap(),
    );
    let (a, b) = (spec(&first, &one).await, spec(&second, &other).await);
    first.create(&a).await.unwrap();
    second.create(&b).await.unwrap();
    let (in_a, in_b) = (
        first.connect(&a.sandbox, a.epoch).await.unwrap(),
        second.connect(&b.sandbox, b.epoch).await.unwrap(),
    );
    let maps =
        [say(&in_a, "cat /proc/self/uid_map").await, say(&in_b, "cat /proc/self/uid_map").await];
    assert_ne!(maps[0], maps[1], "each has ids of its own");
    // A sweep of one is not a sweep of the other.
    one.kill();
    one.launch();
    assert_eq!(say(&in_b, "echo on").await, "on");
    assert_eq!(second.list().await.unwrap().len(), 1);
    first.shutdown(Leave::Nothing).await.unwrap();
    one.wait();
    assert_eq!(say(&in_b, "echo still on").await, "still on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_profile_holds_for_the_next_start() {
    let Some(launcher) = Launcher::start("a_changed_profile_holds_for_the_next_start").await else {
        return;
    };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let new = SandboxSpec { profile: "added".into(), ..spec(&driver, &launcher).await };
    driver.create(&new).await.expect_err("there is no such profile yet");
    let config = std::fs::read_to_string(launcher.config()).unwrap();
    let added = format!(
        "[[profile]]\nname = \"added\"\nenv = {{ GREETING = \"hello\" }}\n\
         [[profile.match]]\ntenant = \"added\"\n{config}"
    );
    std::fs::write(launcher.config(), &added).unwrap();
    driver.create(&new).await.unwrap();
    let guest = driver.connect(&new.sandbox, new.epoch).await.unwrap();
    assert_eq!(say(&guest, "echo $GREETING").await, "hello");
    // A file with mistakes changes nothing.
    std::fs::write(launcher.config(), "profile = 7").unwrap();
    let other = SandboxSpec { profile: "added".into(), ..spec(&driver, &launcher).await };
    driver.create(&other).await.unwrap();
}

/// The pool grows while a guest writes more than it had, by a process that has few capabilities.
#[tokio::test(flavor = "multi_thread")]
async fn the_pool_grows_while_guests_write() {
    let config = CONFIG
        .replace("disk = \"64MiB\"", "disk = \"3GiB\"")
        .replace("initial = \"1GiB\"", "initial = \"384MiB\"");
    let Some(launcher) = Launcher::start_with("the_pool_grows_while_guests_write", &config).await
    else {
        return;
    };
    let pool = launcher.data().join("launcher/pool/pool.btrfs");
    let size = || std::fs::metadata(&pool).unwrap().len();
    let before = size();
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let spec = spec(&driver, &launcher).await;
    driver.create(&spec).await.unwrap();
    let guest = driver.connect(&spec.sandbox, spec.epoch).await.unwrap();
    // A pool as small as this one may be full before its growth is noticed; then a moment helps.
    let script = "for i in $(seq 10); do for try in 1 2 3 4 5; do \
                  head -c 48M /dev/zero > /workspace/$i && break; sleep 1; done; sleep 0.3; done; \
                  du -sm --apparent-size /workspace | cut -f 1";
    let said = say(&guest, script).await;
    let written: u64 = said.lines().last().unwrap().parse().unwrap();
    assert!(written >= 480 && written << 20 > before, "{said}");
    assert!(size() > before, "it has grown from {before}");
    driver.destroy(&spec.sandbox, &spec.volume).await.unwrap();
}

/// Prints what a start takes, for the record; fails only when it is out of all proportion.
#[tokio::test(flavor = "multi_thread")]
async fn from_create_to_the_first_exec() {
    const RUNS: usize = 60;
    let Some(launcher) = Launcher::start("from_create_to_the_first_exec").await else { return };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let (mut starts, mut wholes, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let spec = spec(&driver, &launcher).await;
        let began = Instant::now();
        driver.create(&spec).await.unwrap();
        starts.push(began.elapsed());
        let guest = driver.connect(&spec.sandbox, spec.epoch).await.unwrap();
        let exec = ExecSpec {
            argv: vec!["/bin/true".to_owned()],
            env: Vec::new(),
            cwd: None,
            run_as: RunAs::Tool,
            stdin: false,
            pty: None,
        };
        let limits = OutputLimits::default();
        let call = CallSpec { timeout: LONG, limits, work: Work::Exec(exec) };
        let id = CallId::generate();
        guest.start(&id, &call).await.unwrap();
        assert_eq!(guest.wait(&id).await.unwrap().exit, Exit::Code(0));
        wholes.push(began.elapsed());
        let began = Instant::now();
        driver.destroy(&spec.sandbox, &spec.volume).await.unwrap();
        ends.push(began.elapsed());
    }
    for (what, times) in [("create", &mut starts), ("to exec", &mut wholes), ("destroy", &mut ends)]
    {
        times.sort();
        eprintln!("{what}: p50 {:?} p99 {:?}", times[RUNS / 2], times[RUNS * 99 / 100]);
    }
    assert!(wholes[RUNS / 2] < Duration::from_secs(2), "{:?}", wholes[RUNS / 2]);
}

/// As `sinew serve` starts it: no terminal's hang-up and no group's signal reaches it.
#[tokio::test(flavor = "multi_thread")]
async fn a_detached_launcher_leads_a_session_of_its_own() {
    let Some(launcher) = Launcher::start("a_detached_launcher_leads_a_session_of_its_own").await
    else {
        return;
    };
    // Same session and group as the test: what a detached one must not be in.
    let ours = nix::unistd::getsid(None).unwrap();
    let detached = Command::new(env!("CARGO_BIN_EXE_sinew"))
        .args(["launcher", "--detached", "--data"])
        .arg(launcher.dir.path().join("other"))
        .arg("--images")
        .arg(launcher.images())
        .arg("--config")
        .arg(launcher.config())
        .args(["--user", &SERVE_UID.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut detached = detached;
    let data = launcher.dir.path().join("other");
    let driver = timeout(LONG, async {
        loop {
            match LauncherDriver::observe(&data).await {
                Ok(driver) => return driver,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    let driver = driver.await.unwrap();
    let pid = nix::unistd::Pid::from_raw(detached.id() as i32);
    assert_ne!(nix::unistd::getsid(Some(pid)).unwrap(), ours);
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid, "it leads a session");
    driver.shutdown(Leave::Nothing).await.unwrap();
    assert!(detached.wait().unwrap().success());
    let left = std::fs::read_dir(data.join("launcher/sandboxes")).unwrap().count();
    assert_eq!(left, 0);
}
