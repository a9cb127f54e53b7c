//! What the stock promises, with stand-ins for what is in it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::stock::{Need, Stock};
use super::*;
use crate::testing::{Installation, first};

const LONG: Duration = Duration::from_secs(20);

fn with_stock(test: &str, ahead: usize) -> Option<Installation> {
    let mut place = Installation::new(test)?;
    place.ahead = ahead;
    Some(place)
}

#[track_caller]
fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn wait_until_full(sandboxes: &Sandboxes, ahead: usize) {
    wait_for("filling the stock", || sandboxes.stock.len() == (ahead, ahead));
}

#[test]
fn starts_use_what_is_there_and_make_what_is_not() {
    let Some(place) = with_stock("starts_use_what_is_there", 2) else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    wait_until_full(&sandboxes, 2);
    assert_eq!((place.ranges(), place.world.prepared.load(Ordering::Relaxed)), (2, 4));
    assert_eq!(sandboxes.list(None).unwrap(), (vec![], false), "they are no sandboxes");

    // From now on nothing can be made, so this one starts from what is there.
    let broken = || Some(PartError::NoRoom("the disk is full".to_owned()));
    *lock(&place.world.next_prepare) = broken();
    let one = first();
    sandboxes.create(&one).unwrap();
    // Filling it up again fails, and what is left in it goes.
    wait_for("emptying the stock", || sandboxes.stock.len() == (0, 0));
    assert_eq!((place.ranges(), place.world.prepared.load(Ordering::Relaxed)), (1, 0));
    // A failure is not tried again at once, and keeps no start from making what it needs.
    let other = first();
    sandboxes.create(&other).unwrap();
    *lock(&place.world.next_prepare) = broken();
    let Refusal::NoRoom { why } = sandboxes.create(&first()).unwrap_err() else { panic!() };
    assert_eq!(why, "the disk is full");
    for spec in [&one, &other] {
        sandboxes.destroy(&spec.sandbox, &spec.volume).unwrap();
    }
    assert_eq!(place.ranges(), 0);
}

#[test]
fn the_last_range_is_not_in_the_stock() {
    let Some(place) = with_stock("the_last_range", 6) else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    wait_until_full(&sandboxes, 6);
    // There are eight; at some moment the stock has the last.
    let all: Vec<_> = (0..8).map(|_| first()).collect();
    all.iter().for_each(|spec| drop(sandboxes.create(spec).unwrap()));
    assert!(matches!(sandboxes.create(&first()), Err(Refusal::NoRoom { .. })));
    assert_eq!(place.ranges(), 8);
}

#[test]
fn ranges_that_a_killed_launcher_had_prepared_are_free_again() {
    let Some(place) = with_stock("ranges_that_a_killed_launcher_had_prepared", 0) else { return };
    let holder = place.layout().sandboxes().join("ahead");
    let ranges = place.dir.path().join("idmap");
    std::fs::create_dir(&ranges).unwrap();
    std::fs::write(ranges.join("2003"), holder.as_os_str().as_encoded_bytes()).unwrap();
    // Cut short while it was given to a sandbox.
    std::fs::write(ranges.join("2004"), "").unwrap();
    let (sandboxes, ..) = place.launch().unwrap();
    let all: Vec<_> = (0..8).map(|_| first()).collect();
    all.iter().for_each(|spec| drop(sandboxes.create(spec).unwrap()));
}

#[test]
fn a_closed_stock_is_empty_and_stays_so() {
    let Some(place) = with_stock("a_closed_stock", 3) else { return };
    let (sandboxes, _, _jobs) = place.launch().unwrap();
    wait_for("the first part", || sandboxes.stock.len() != (0, 0));
    // Most likely in the middle of making one.
    sandboxes.close_stock();
    let ever = place.world.ever_prepared.load(Ordering::Relaxed);
    assert_eq!((place.ranges(), place.world.prepared.load(Ordering::Relaxed)), (0, 0));
    let spec = first();
    sandboxes.create(&spec).unwrap();
    sandboxes.stop(&spec.sandbox).unwrap();
    assert_eq!(sandboxes.stock.wait(), Need::Closed);
    assert_eq!(place.world.ever_prepared.load(Ordering::Relaxed), ever + 2, "those of the start");
    assert_eq!(place.ranges(), 0);
}

#[test]
fn nothing_is_made_while_a_start_is_under_way_or_has_just_been() {
    let stock = Stock::new(1);
    let (one, other) = (stock.starting(), stock.starting());
    drop(one);
    assert_eq!(stock.wait(), Need::Look, "a part is missing, and is not made");
    let ended = Instant::now();
    drop(other);
    assert_eq!(stock.wait(), Need::Part);
    assert!(ended.elapsed() >= Duration::from_millis(20), "{:?}", ended.elapsed());
    assert_eq!(Stock::new(0).wait(), Need::Look, "none is wanted");
}
