//! What the launcher decides by itself, with stand-ins for disks and containers.

use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use base_types::{Epoch, SandboxId, VolumeId};
use sandbox_api::{RestoredFrom, SandboxSpec, Vitality};

use super::{Sandboxes, Waiter};
use crate::lock;
use crate::parts::PartError;
use crate::table::{IdRange, Phase, Table};
use crate::testing::{Installation, first, next};
use crate::wire::Refusal;

const LONG: Duration = Duration::from_secs(20);

struct Told(Sender<Vitality>);

impl Waiter for Told {
    fn is_gone(&self) -> bool {
        false
    }

    fn tell(self: Box<Self>, vitality: Vitality) {
        self.0.send(vitality).unwrap();
    }
}

fn end_of(sandboxes: &Sandboxes, spec: &SandboxSpec) -> Receiver<Vitality> {
    let (sender, told) = channel();
    sandboxes.when_ended(&spec.sandbox, spec.epoch, Box::new(Told(sender))).unwrap();
    told
}

fn stopped(epoch: Epoch, why: &str) -> Vitality {
    Vitality::Stopped { epoch, why: Some(why.to_owned()) }
}

#[test]
fn a_first_start_that_fails_leaves_nothing() {
    let Some(place) = Installation::new("a_first_start_that_fails_leaves_nothing") else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    let spec = first();
    *lock(&place.world.next_start) = Some(PartError::NoRoom("no memory".into()));
    let refusal = sandboxes.create(&spec).unwrap_err();
    assert_eq!(refusal, Refusal::NoRoom { why: "no memory".into() });

    assert_eq!(sandboxes.status(&spec.sandbox), None);
    assert!(lock(&place.world.volumes).is_empty());
    assert_eq!((place.ranges(), place.sockets()), (0, 0));
    assert!(!Table::new(place.layout().sandboxes()).path(&spec.sandbox).exists());
    // The volume belongs to nobody again, and the epoch may be tried again.
    assert_eq!(sandboxes.create(&spec).unwrap().restored_from, RestoredFrom::Nothing);
}

#[test]
fn a_later_start_that_fails_keeps_the_volume_and_may_be_tried_again() {
    let name = "a_later_start_that_fails_keeps_the_volume_and_may_be_tried_again";
    let Some(place) = Installation::new(name) else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    let spec = first();
    sandboxes.create(&spec).unwrap();
    let second = next(&spec);
    *lock(&place.world.next_start) = Some(PartError::Failed("broken".into()));
    sandboxes.create(&second).unwrap_err();
    assert!(lock(&place.world.volumes).contains_key(&spec.volume));
    let vitality = sandboxes.status(&spec.sandbox).unwrap().vitality;
    assert_eq!(vitality, stopped(Epoch(2), "it did not start: broken"));
    assert_eq!(place.ranges(), 0);

    assert_eq!(sandboxes.create(&second).unwrap().restored_from, RestoredFrom::SameVolume);
    let refusal = sandboxes.create(&spec).unwrap_err();
    assert_eq!(refusal, Refusal::OlderEpoch { reached: Epoch(2) });
}

#[test]
fn ids_of_a_start_that_cannot_be_undone_are_nobody_elses() {
    let name = "ids_of_a_start_that_cannot_be_undone_are_nobody_elses";
    let Some(place) = Installation::new(name) else { return };
    let (sandboxes, _, jobs) = place.launch().unwrap();
    let spec = first();
    *lock(&place.world.next_opened) = Some(PartError::Failed("broken".into()));
    *lock(&place.world.next_end) = Some(PartError::Failed("a process does not end".into()));
    let Refusal::Stuck { why } = sandboxes.create(&spec).unwrap_err() else { panic!() };
    assert!(why.contains("broken") && why.contains("a process does not end"), "{why}");
    assert_eq!(lock(&place.world.processes).len(), 1, "it runs, with ids of that range");
    assert_eq!(place.ranges(), 1);

    drop((sandboxes, jobs));
    place.world.end(&spec.sandbox);
    let (sandboxes, ..) = place.launch().unwrap();
    assert_eq!((place.ranges(), sandboxes.status(&spec.sandbox)), (0, None));
}

#[test]
fn an_epoch_that_ended_does_not_begin_again() {
    let Some(place) = Installation::new("an_epoch_that_ended_does_not_begin_again") else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    let spec = first();
    sandboxes.create(&spec).unwrap();
    sandboxes.stop(&spec.sandbox).unwrap();
    let Refusal::Failed { why } = sandboxes.create(&spec).unwrap_err() else { panic!() };
    assert!(why.contains("the next start is epoch 2"), "{why}");
}

#[test]
fn a_volume_is_one_sandboxs_alone() {
    let Some(place) = Installation::new("a_volume_is_one_sandboxs_alone") else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    let spec = first();
    sandboxes.create(&spec).unwrap();

    let thief = SandboxSpec { volume: spec.volume.clone(), volume_exists: true, ..first() };
    let Refusal::Failed { why } = sandboxes.create(&thief).unwrap_err() else { panic!() };
    assert!(why.contains("another sandbox"), "{why}");
    assert!(sandboxes.destroy(&thief.sandbox, &spec.volume).is_err());
    assert!(sandboxes.destroy(&spec.sandbox, &VolumeId::generate()).is_err());
    let moved = SandboxSpec { volume: VolumeId::generate(), ..next(&spec) };
    assert!(sandboxes.create(&moved).is_err());
    assert!(lock(&place.world.volumes).contains_key(&spec.volume));
    let running = sandboxes.status(&spec.sandbox).unwrap().vitality;
    assert_eq!(running, Vitality::Running { epoch: Epoch(1) });
}

#[test]
fn ends_are_seen_and_say_why() {
    let Some(place) = Installation::new("ends_are_seen_and_say_why") else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    let (exits, starves) = (first(), first());
    sandboxes.create(&exits).unwrap();
    sandboxes.create(&starves).unwrap();
    let (exited, starved) = (end_of(&sandboxes, &exits), end_of(&sandboxes, &starves));

    place.world.end(&exits.sandbox);
    assert_eq!(exited.recv_timeout(LONG).unwrap(), stopped(Epoch(1), "agent exited"));
    lock(&place.world.shortages).get(&starves.sandbox).unwrap().write_all(b"!").unwrap();
    let why = "out of memory (limit 64MiB)";
    assert_eq!(starved.recv_timeout(LONG).unwrap(), stopped(Epoch(1), why));

    assert!(lock(&place.world.processes).is_empty(), "what is left of them is ended and reaped");
    assert_eq!((place.ranges(), place.sockets()), (0, 0));
    assert_eq!(lock(&place.world.volumes).len(), 2);
    // Whoever asks late is told as well.
    assert_eq!(end_of(&sandboxes, &starves).try_recv().unwrap(), stopped(Epoch(1), why));
    let unknown = end_of(&sandboxes, &first()).try_recv().unwrap();
    assert_eq!(unknown, stopped(Epoch(1), "there is no such sandbox"));
}

#[test]
fn a_launcher_that_was_killed_is_replaced() {
    let Some(place) = Installation::new("a_launcher_that_was_killed_is_replaced") else { return };
    let (killed, _, _jobs) = place.launch().unwrap();
    let (goes_on, ends_unseen, at_rest) = (first(), first(), first());
    for spec in [&goes_on, &ends_unseen, &at_rest] {
        killed.create(spec).unwrap();
    }
    killed.stop(&at_rest.sandbox).unwrap();
    // As a launcher leaves them that is killed in the middle of things: a start that was written
    // down and not finished, a socket and a process without a record, a range without either.
    let table = Table::new(place.layout().sandboxes());
    let half_done = half_done(&place, &table);
    let orphan = SandboxId::generate();
    let sleep = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    lock(&place.world.processes).insert(orphan.clone(), sleep);
    std::fs::write(place.layout().agents().join(format!("{orphan}.sock")), "").unwrap();
    drop(killed);
    let unseen = lock(&place.world.processes).remove(&ends_unseen.sandbox);
    let mut unseen = unseen.unwrap();
    unseen.kill().and_then(|()| unseen.wait()).unwrap();

    let (sandboxes, found, _jobs) = place.launch().unwrap();
    assert_eq!((found.running, found.ended, found.stopped), (1, 2, 1), "{found:?}");
    assert_eq!(found.swept, [orphan.as_str()]);
    let vitality = |spec: &SandboxSpec| sandboxes.status(&spec.sandbox).unwrap().vitality;
    assert_eq!(vitality(&goes_on), Vitality::Running { epoch: Epoch(1) });
    let why = "ended while no launcher was running";
    assert_eq!(vitality(&ends_unseen), stopped(Epoch(1), why));
    assert_eq!(vitality(&at_rest), stopped(Epoch(1), "stopped"));
    assert_eq!((place.ranges(), place.sockets()), (1, 1));

    // What goes on is the same sandbox, and its end is seen.
    assert_eq!(sandboxes.create(&goes_on).unwrap().restored_from, RestoredFrom::StillRunning);
    let end = end_of(&sandboxes, &goes_on);
    place.world.end(&goes_on.sandbox);
    assert_eq!(end.recv_timeout(LONG).unwrap(), stopped(Epoch(1), "agent exited"));
    // What was half done is done when it is asked for again.
    assert_eq!(sandboxes.create(&half_done).unwrap().restored_from, RestoredFrom::Nothing);
}

fn half_done(place: &Installation, table: &Table) -> SandboxSpec {
    let spec = first();
    let mut record = crate::table::tests::record(Phase::Starting { range: IdRange(0x2007) });
    record.sandbox = spec.sandbox.clone();
    record.volume = spec.volume.clone();
    table.write(&record).unwrap();
    let owner = Some(spec.sandbox.clone());
    lock(&place.world.volumes).insert(spec.volume.clone(), owner);
    let range = place.dir.path().join("idmap/2007");
    std::fs::write(range, table.path(&spec.sandbox).as_os_str().as_encoded_bytes()).unwrap();
    spec
}

#[test]
fn a_volume_without_a_record_is_kept_listed_and_never_passed_for_new() {
    let name = "a_volume_without_a_record_is_kept_listed_and_never_passed_for_new";
    let Some(place) = Installation::new(name) else { return };
    let spec = first();
    let owner = Some(spec.sandbox.clone());
    lock(&place.world.volumes).insert(spec.volume.clone(), owner);
    let (sandboxes, found, _jobs) = place.launch().unwrap();
    assert_eq!(found.warnings, [format!("volume {} has no record; kept", spec.volume)]);

    let (page, more) = sandboxes.list(None).unwrap();
    assert!(!more);
    assert_eq!(page.len(), 1);
    assert_eq!((&page[0].sandbox, &page[0].vitality), (&spec.sandbox, &Vitality::VolumeOnly));
    assert_eq!(sandboxes.create(&spec).unwrap().restored_from, RestoredFrom::SameVolume);
}

#[test]
fn a_list_comes_in_pages() {
    let Some(place) = Installation::new("a_list_comes_in_pages") else { return };
    let count = crate::wire::LIST_PAGE_MAX + 1;
    for _ in 0..count {
        lock(&place.world.volumes).insert(VolumeId::generate(), Some(SandboxId::generate()));
    }
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    let (page, more) = sandboxes.list(None).unwrap();
    assert_eq!((page.len(), more), (count - 1, true));
    let last = page.last().map(|status| status.sandbox.clone());
    let (page, more) = sandboxes.list(last.as_ref()).unwrap();
    assert_eq!((page.len(), more), (1, false));
}

#[test]
fn ranges_run_out_with_a_clear_word() {
    let Some(place) = Installation::new("ranges_run_out_with_a_clear_word") else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    let all: Vec<_> = (0..8).map(|_| first()).collect();
    all.iter().for_each(|spec| drop(sandboxes.create(spec).unwrap()));
    let Refusal::NoRoom { why } = sandboxes.create(&first()).unwrap_err() else { panic!() };
    assert!(why.contains("ranges of user ids"), "{why}");
    sandboxes.stop(&all[3].sandbox).unwrap();
    sandboxes.create(&first()).unwrap();
}
