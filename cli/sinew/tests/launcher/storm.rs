//! The launcher is killed again and again while sandboxes come and go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base_types::{Epoch, SandboxId, VolumeId};
use sandbox_api::contract::Place;
use sandbox_api::{ConnectError, CreateError, RestoredFrom, SandboxDriver, SandboxSpec, Vitality};
use sandbox_launcher::LauncherDriver;

use crate::place::Launcher;
use crate::process::{say, spec};

/// The soak runs more of them.
const KILLS: &str = "SINEW_LAUNCHER_KILLS";
const KILLS_DEFAULT: u64 = 12;

/// Clients that each drive one sandbox after another.
const CLIENTS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launcher_killed_at_any_moment_loses_and_leaves_nothing() {
    let name = "a_launcher_killed_at_any_moment_loses_and_leaves_nothing";
    let Some(mut launcher) = Launcher::start(name).await else { return };
    let driver = LauncherDriver::connect(&launcher.data()).await.unwrap();
    let before = launcher.footprint().await;
    let template = spec(&driver, &launcher).await;
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(lives(driver.clone(), template.clone(), over.clone())))
        .collect();

    let kills = std::env::var(KILLS).ok().and_then(|text| text.parse().ok());
    for round in 0..kills.unwrap_or(KILLS_DEFAULT) {
        // Somewhere in a start, an end, or between: the steps of each take milliseconds.
        tokio::time::sleep(Duration::from_micros(20_000 + round * 7_919 % 60_000)).await;
        launcher.kill();
        launcher.launch();
    }
    over.store(true, Ordering::Relaxed);
    let mut lived = 0;
    for client in clients {
        lived += client.await.expect("no promise was broken");
    }
    assert!(lived >= CLIENTS, "each client got through at least one life: {lived}");
    assert_eq!(driver.list().await.unwrap(), []);
    let after = launcher.footprint().await;
    let left: BTreeSet<_> = after.difference(&before).collect();
    assert!(left.is_empty(), "{left:#?}");
}

/// One sandbox after another through its whole life, whatever becomes of the launcher. Returns how
/// many.
async fn lives(driver: LauncherDriver, template: SandboxSpec, over: Arc<AtomicBool>) -> usize {
    let mut lived = 0;
    while !over.load(Ordering::Relaxed) {
        let first = SandboxSpec {
            sandbox: SandboxId::generate(),
            volume: VolumeId::generate(),
            ..template.clone()
        };
        let first = begin(&driver, first, false).await;
        write(&driver, &first, "one").await;
        let second = SandboxSpec { epoch: first.epoch.next(), volume_exists: true, ..first };
        let second = begin(&driver, second, true).await;
        assert_eq!(read(&driver, &second).await.as_deref(), Some("one"), "the file is kept");
        end(&driver, &second).await;
        lived += 1;
    }
    lived
}

/// Starts an epoch, or the one after it where the launcher went down after it had begun.
async fn begin(driver: &LauncherDriver, mut spec: SandboxSpec, has_files: bool) -> SandboxSpec {
    loop {
        match driver.create(&spec).await {
            Ok(sandbox) => {
                let is_new = sandbox.restored_from == RestoredFrom::Nothing;
                assert!(!(is_new && has_files), "a volume was replaced: {sandbox:?}");
                return spec;
            }
            // Its launcher was killed after the start and before the record of it: the sweep has
            // ended an epoch that nobody was told of.
            Err(CreateError::Start { why, .. }) if why.contains("has ended") => {
                spec = SandboxSpec { epoch: Epoch(spec.epoch.0 + 1), ..spec };
            }
            // Killed again and again in the course of one request.
            Err(CreateError::Driver(error)) => eprintln!("asked again after: {error}"),
            Err(error) => panic!("{}", base_types::Chain(&error)),
        }
    }
}

/// One request may meet more kills than its client puts up with.
async fn end(driver: &LauncherDriver, spec: &SandboxSpec) {
    const ATTEMPTS_MAX: usize = 20;
    let mut attempts = 0;
    while let Err(error) = driver.stop(&spec.sandbox).await {
        attempts += 1;
        assert!(attempts < ATTEMPTS_MAX, "{}", base_types::Chain(&error));
    }
    let status = driver.status(&spec.sandbox).await.unwrap().expect("it exists");
    assert!(matches!(status.vitality, Vitality::Stopped { .. }), "{status:?}");
    while let Err(error) = driver.destroy(&spec.sandbox, &spec.volume).await {
        attempts += 1;
        assert!(attempts < ATTEMPTS_MAX, "{}", base_types::Chain(&error));
    }
}

async fn write(driver: &LauncherDriver, spec: &SandboxSpec, text: &str) {
    let guest = driver.connect(&spec.sandbox, spec.epoch).await.expect("it runs");
    say(&guest, &format!("echo {text} > /workspace/file")).await;
}

async fn read(driver: &LauncherDriver, spec: &SandboxSpec) -> Option<String> {
    match driver.connect(&spec.sandbox, spec.epoch).await {
        Ok(guest) => Some(say(&guest, "cat /workspace/file").await),
        Err(error @ ConnectError::NotRunning { .. }) => panic!("{error}"),
        Err(error) => panic!("{}", base_types::Chain(&error)),
    }
}
