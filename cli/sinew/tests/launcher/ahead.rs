//! What the launcher makes ahead of starts: nobody's until it is one sandbox's, and gone with the
//! launcher however that ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base_types::{Epoch, SandboxId};
use sandbox_api::{SandboxDriver, SandboxSpec};
use sandbox_launcher::LauncherDriver;

use crate::place::{AHEAD, Ahead, CONFIG, Launcher, NONE_AHEAD};
use crate::process::{say, spec};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_ahead_is_gone_when_the_launcher_is_killed_and_replaced() {
    let name = "what_was_made_ahead_is_gone_when_the_launcher_is_killed_and_replaced";
    let Some(mut launcher) = Launcher::start(name).await else { return };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let kept = spec(&driver, &launcher).await;
    driver.create(&kept).await.unwrap();
    let guest = driver.connect(&kept.sandbox, kept.epoch).await.unwrap();
    let full = launcher.ahead();
    assert_eq!((full.volumes.len(), full.ranges.len()), (AHEAD, AHEAD));
    assert_eq!(driver.list().await.unwrap().len(), 1, "they are listed nowhere");

    launcher.kill();
    assert_eq!(launcher.ahead_now(), full, "a killed process removes nothing");
    fs::write(launcher.config(), format!("{CONFIG}{NONE_AHEAD}")).unwrap();
    launcher.launch();
    assert_eq!(launcher.ahead_now(), Ahead::default());
    assert_eq!(say(&guest, "echo on").await, "on", "what runs was not swept along");

    // One that fills its own finds nothing of its predecessor's, and takes it along when it leaves.
    launcher.terminate();
    fs::write(launcher.config(), CONFIG).unwrap();
    launcher.launch();
    let again = launcher.ahead();
    assert!(again.volumes.is_disjoint(&full.volumes) && again.groups.is_disjoint(&full.groups));
    launcher.terminate();
    assert_eq!(launcher.ahead_now(), Ahead::default());
    assert_eq!(say(&guest, "echo on").await, "on");
    launcher.launch();
}

/// What a sandbox has of the kernel, by which it would be found again.
struct Parts {
    names: Vec<String>,
    /// So that the kernel gives no number again while both are compared.
    _held: Vec<fs::File>,
}

impl Parts {
    fn of(launcher: &Launcher, spec: &SandboxSpec) -> Self {
        let pid = init_of(launcher, &spec.sandbox);
        let (mut names, mut held) = (Vec::new(), Vec::new());
        for kind in ["net", "user", "mnt", "pid", "ipc", "uts", "cgroup"] {
            let path = format!("/proc/{pid}/ns/{kind}");
            names.push(fs::read_link(&path).unwrap().display().to_string());
            held.push(fs::File::open(path).unwrap());
        }
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let mine = launcher.groups().into_iter().filter(|group| {
            let name = group.rsplit('/').find(|name| name.starts_with("sbx_"));
            name == Some(spec.sandbox.as_str())
        });
        assert!(groups.contains(spec.sandbox.as_str()), "{groups}");
        for group in mine.map(|group| PathBuf::from(group.trim_start_matches("group "))) {
            names.push(cgroup(&group));
        }
        let volume = launcher.pool_mount().join("volumes").join(spec.volume.as_str());
        names.push(format!("subvolume {}", fs::metadata(volume).unwrap().dev()));
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
        names.push(format!("ids {}", map.trim()));
        Self { names, _held: held }
    }
}

/// Renaming it does not change this.
fn cgroup(group: &Path) -> String {
    let metadata = fs::metadata(group).unwrap();
    format!("cgroup {}:{}", metadata.dev(), metadata.ino())
}

fn init_of(launcher: &Launcher, sandbox: &SandboxId) -> u64 {
    let record = launcher.data().join(format!("launcher/sandboxes/{sandbox}.json"));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    record["phase"]["init"]["pid"].as_u64().expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_part_of_one_sandbox_reaches_the_next() {
    let name = "no_part_of_one_sandbox_reaches_the_next";
    let Some(launcher) = Launcher::start(name).await else { return };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let ahead = launcher.ahead();
    let ahead: Vec<_> = ahead.groups.iter().map(|group| cgroup(group)).collect();
    let first = spec(&driver, &launcher).await;
    driver.create(&first).await.unwrap();
    let of_first = Parts::of(&launcher, &first);
    let used = of_first.names.iter().any(|part| ahead.contains(part));
    assert!(used, "it came from what was there: {:#?} {ahead:#?}", of_first.names);
    let guest = driver.connect(&first.sandbox, first.epoch).await.unwrap();
    // Wherever a file may lie, and whatever the network can hold.
    say(
        &guest,
        "for d in /workspace /tmp /dev/shm /run /root /var/tmp; do echo mine > $d/left-behind; done; \
         (setsid python3 -m http.server 4321 >/dev/null 2>&1 || setsid sleep 600) & true",
    )
    .await;
    driver.stop(&first.sandbox).await.unwrap();

    // With the whole stock used up, so that anything that came back would be met.
    for _ in 0..=AHEAD {
        let next = spec(&driver, &launcher).await;
        driver.create(&next).await.unwrap();
        let of_next = Parts::of(&launcher, &next);
        for part in of_next.names.iter().filter(|part| !part.starts_with("ids ")) {
            assert!(!of_first.names.contains(part), "{part} is in both");
        }
        let guest = driver.connect(&next.sandbox, next.epoch).await.unwrap();
        let found =
            say(&guest, "find / -xdev -name left-behind 2>/dev/null; ls /dev/shm /run").await;
        assert!(!found.contains("left-behind"), "{found}");
        let sockets = say(&guest, "cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp | wc -l").await;
        assert_eq!(sockets, "3", "the three headings");
        driver.destroy(&next.sandbox, &next.volume).await.unwrap();
    }
    // Its own next epoch has its files and nothing else of the first.
    let again = SandboxSpec { epoch: Epoch(2), volume_exists: true, ..first };
    driver.create(&again).await.unwrap();
    let guest = driver.connect(&again.sandbox, again.epoch).await.unwrap();
    assert_eq!(say(&guest, "cat /workspace/left-behind; ls /dev/shm").await, "mine");
}
