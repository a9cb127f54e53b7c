//! Promises about epochs: when they begin, what they find, how they end.

use base_types::{CallId, Epoch, SandboxId, VolumeId};
use futures::future::join_all;
use tokio::time::timeout;

use super::Place;
use super::fixture::{Fixture, LONG, next, output, start};
use crate::{ConnectError, CreateError, RestoredFrom, SandboxSpec, Vitality};

pub async fn a_new_sandbox_starts_from_the_image(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let spec = fixture.first();
    let sandbox = fixture.create(&spec).await;
    assert_eq!(sandbox.restored_from, RestoredFrom::Nothing);
    assert_eq!((sandbox.sandbox, sandbox.epoch), (spec.sandbox.clone(), Epoch::FIRST));

    let guest = fixture.connect(&spec).await;
    assert_eq!(guest.peer().epoch, Epoch::FIRST);
    assert_eq!(output(&guest, "echo hello; test -x /bin/sh && id -u").await, "hello\n0");
    fixture.destroy(&spec).await;
}

pub async fn creating_again_finds_the_running_sandbox(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (spec, guest) = fixture.started().await;
    let call = CallId::generate();
    start(&guest, &call, "sleep 1000").await;

    let again = fixture.create(&spec).await;
    assert_eq!(again.restored_from, RestoredFrom::StillRunning);
    let repeated = SandboxSpec { volume_exists: true, ..spec.clone() };
    assert_eq!(fixture.create(&repeated).await.restored_from, RestoredFrom::StillRunning);

    // Another connection to the same agent: the call that ran before is there.
    let other = fixture.connect(&spec).await;
    assert!(other.info().await.unwrap().running.contains(&call));
    fixture.destroy(&spec).await;
}

pub async fn a_lost_volume_is_not_replaced(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let spec = SandboxSpec { volume_exists: true, ..fixture.first() };
    let error = fixture.driver.create(&spec).await.expect_err("there is no such volume");
    assert!(matches!(&error, CreateError::VolumeGone(volume) if *volume == spec.volume), "{error}");
    assert_eq!(fixture.driver.status(&spec.sandbox).await.unwrap(), None);
    // Asking for it did not make it.
    let error = fixture.driver.create(&spec).await.expect_err("there is still no such volume");
    assert!(matches!(error, CreateError::VolumeGone(_)), "{error}");
}

pub async fn an_older_epoch_is_refused(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let first = fixture.first();
    let third = SandboxSpec { epoch: Epoch(3), ..first.clone() };
    fixture.create(&third).await;
    let older = SandboxSpec { epoch: Epoch(2), volume_exists: true, ..first };
    let error = fixture.driver.create(&older).await.expect_err("epoch 3 runs");
    let CreateError::OlderEpoch { running: Epoch(3), asked: Epoch(2), .. } = error else {
        panic!("{error}");
    };
    let guest = fixture.connect(&third).await;
    assert_eq!(output(&guest, "echo undisturbed").await, "undisturbed");
    fixture.destroy(&third).await;
}

pub async fn a_later_epoch_ends_the_earlier_one(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (first, guest) = fixture.started().await;
    output(&guest, "echo kept > /workspace/file").await;

    let second = next(&first);
    assert_eq!(fixture.create(&second).await.restored_from, RestoredFrom::SameVolume);
    let ended = fixture.driver.ended(&first.sandbox, first.epoch);
    let vitality = timeout(LONG, ended).await.expect("the first epoch has ended").unwrap();
    assert!(matches!(vitality, Vitality::Stopped { epoch: Epoch(1), .. }), "{vitality:?}");
    let guest = fixture.connect(&second).await;
    assert_eq!(output(&guest, "cat /workspace/file").await, "kept");
    fixture.destroy(&second).await;
}

pub async fn files_outlive_an_epoch_and_processes_do_not(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (first, guest) = fixture.started().await;
    let script = "echo work > /workspace/file; echo system > /etc/sinew-contract; \
                  rm /etc/issue; sleep 4711 >/dev/null 2>&1 & \
                  cat /proc/*/cmdline | tr '\\0' ' ' | grep -c 'sleep 4711'";
    let before = output(&guest, script).await;
    assert_ne!(before, "0", "a process that runs is seen");
    fixture.driver.stop(&first.sandbox).await.unwrap();

    let second = next(&first);
    assert_eq!(fixture.create(&second).await.restored_from, RestoredFrom::SameVolume);
    let guest = fixture.connect(&second).await;
    let files = output(&guest, "cat /workspace/file /etc/sinew-contract; ls /etc/issue || true");
    let files = files.await;
    assert!(files.starts_with("work\nsystem"), "{files}");
    assert!(!files.lines().any(|line| line == "/etc/issue"), "a removed file came back: {files}");
    let script = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep [4]711' || true";
    assert_eq!(output(&guest, script).await, "0");
    fixture.destroy(&second).await;
}

pub async fn a_stopped_sandbox_cannot_be_reached(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (spec, guest) = fixture.started().await;
    let later = fixture.driver.connect(&spec.sandbox, Epoch(2)).await;
    assert!(matches!(later, Err(ConnectError::NotRunning { epoch: Epoch(2), .. })), "{later:?}");

    fixture.driver.stop(&spec.sandbox).await.unwrap();
    assert!(guest.ping().await.is_err(), "the agent has ended");
    let stopped = fixture.driver.connect(&spec.sandbox, spec.epoch).await;
    assert!(matches!(stopped, Err(ConnectError::NotRunning { .. })), "{stopped:?}");
    let unknown = fixture.driver.connect(&SandboxId::generate(), Epoch::FIRST).await;
    assert!(matches!(unknown, Err(ConnectError::NotRunning { .. })), "{unknown:?}");
    fixture.destroy(&spec).await;
}

pub async fn stopping_and_destroying_may_be_repeated(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let driver = &fixture.driver;
    let (spec, _guest) = fixture.started().await;
    for _ in 0..2 {
        driver.stop(&spec.sandbox).await.unwrap();
    }
    for _ in 0..2 {
        driver.destroy(&spec.sandbox, &spec.volume).await.unwrap();
    }
    // The sweep does not know what there is.
    driver.stop(&SandboxId::generate()).await.unwrap();
    driver.destroy(&SandboxId::generate(), &VolumeId::generate()).await.unwrap();
    // What was destroyed is gone, and says so.
    let error = driver.create(&next(&spec)).await.expect_err("the volume was destroyed");
    assert!(matches!(error, CreateError::VolumeGone(_)), "{error}");
}

pub async fn what_is_told_of_sandboxes_is_true(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let driver = &fixture.driver;
    assert_eq!(driver.list().await.unwrap(), []);
    let (running, _guest) = fixture.started().await;
    let (stopped, _other) = fixture.started().await;
    driver.stop(&stopped.sandbox).await.unwrap();

    let status = driver.status(&running.sandbox).await.unwrap().expect("it exists");
    assert_eq!(status.volume, running.volume);
    assert_eq!(status.session.as_ref(), Some(&running.session));
    assert_eq!(status.vitality, Vitality::Running { epoch: Epoch::FIRST });
    assert!(status.usage.pids.is_none_or(|pids| pids >= 1), "{:?}", status.usage);
    let limit = place.limits().memory.bytes();
    assert!(status.usage.memory_bytes.is_none_or(|bytes| bytes <= limit), "{:?}", status.usage);

    let status = driver.status(&stopped.sandbox).await.unwrap().expect("it exists");
    let why = "stopped".to_owned();
    assert_eq!(status.vitality, Vitality::Stopped { epoch: Epoch::FIRST, why: Some(why) });
    let mut listed: Vec<_> =
        driver.list().await.unwrap().into_iter().map(|status| status.sandbox).collect();
    listed.sort();
    let mut expected = vec![running.sandbox.clone(), stopped.sandbox.clone()];
    expected.sort();
    assert_eq!(listed, expected);

    fixture.destroy(&running).await;
    fixture.destroy(&stopped).await;
    assert_eq!(driver.status(&running.sandbox).await.unwrap(), None);
    assert_eq!(driver.list().await.unwrap(), []);
}

pub async fn an_end_is_reported_to_all_who_wait(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (spec, guest) = fixture.started().await;
    let waiting = (0..3).map(|_| {
        let (driver, spec) = (fixture.driver.clone(), spec.clone());
        async move { driver.ended(&spec.sandbox, spec.epoch).await.unwrap() }
    });
    let waiting = join_all(waiting);
    tokio::pin!(waiting);
    // They wait for as long as it runs.
    assert!(futures::poll!(&mut waiting).is_pending());
    // The agent may end before it has answered.
    let _ = guest.shutdown().await;
    let ends = timeout(LONG, waiting).await.expect("the end is seen");
    for vitality in ends {
        let Vitality::Stopped { epoch: Epoch(1), why: Some(why) } = &vitality else {
            panic!("{vitality:?}");
        };
        assert_eq!(why, "agent exited");
    }
    // It is told again to whoever asks late.
    let late = fixture.driver.ended(&spec.sandbox, spec.epoch).await.unwrap();
    assert!(matches!(late, Vitality::Stopped { epoch: Epoch(1), .. }), "{late:?}");
    fixture.destroy(&spec).await;
}

pub async fn many_start_at_once(place: &dyn Place) {
    const MANY: usize = 8;
    let fixture = Fixture::of(place).await;
    let specs: Vec<_> = (0..MANY).map(|_| fixture.first()).collect();
    let answers = join_all(specs.iter().map(|spec| async {
        fixture.create(spec).await;
        let guest = fixture.connect(spec).await;
        output(&guest, &format!("echo {}", spec.sandbox)).await
    }));
    let answers = answers.await;
    for (spec, answer) in specs.iter().zip(answers) {
        assert_eq!(answer, spec.sandbox.as_str());
    }
    join_all(specs.iter().map(|spec| fixture.destroy(spec))).await;
    assert_eq!(fixture.driver.list().await.unwrap(), []);
}
