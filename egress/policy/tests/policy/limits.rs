//! Meters: what is counted, when it is free again, and that all limits are charged or none.

use std::time::Duration;

use base_types::Timestamp;
use egress_policy::{Exceeded, Meter, Obligations};

use crate::support::{Session, allowed};

const RULES: &str = r#"
[[rule]]
id = "open"
action = "allow"
host = "**"
[[rule]]
id = "rate"
action = "limit"
requests_per_minute = 3
[[rule]]
id = "wide"
action = "limit"
concurrent = 2
bytes_up = "100B"
bytes_down = "1KiB"
[[rule]]
id = "upload"
action = "limit"
path = "/upload"
body = "10B"
"#;

fn obligations(path: &str) -> Obligations {
    allowed(Session::deployment(RULES).get(&format!("https://a.example{path}"))).obligations
}

#[test]
fn requests_come_free_after_a_minute() {
    let obligations = obligations("/");
    let mut meter = Meter::default();
    let start = Timestamp(1_000_000);
    for _ in 0..3 {
        let slot = meter.start(&obligations, start).unwrap();
        meter.finish(slot);
    }
    let Err(Exceeded::Requests { limit: 3, retry_after, rule }) = meter.start(&obligations, start)
    else {
        panic!()
    };
    assert!(rule.contains("rule `rate`"), "{rule}");
    let before = start.plus(Duration::from_secs(59));
    assert!(meter.start(&obligations, before).is_err());
    // What it promised is so.
    let slot = meter.start(&obligations, start.plus(retry_after)).unwrap();
    meter.finish(slot);
    // A clock that goes back frees nothing and breaks nothing.
    for _ in 0..2 {
        let slot = meter.start(&obligations, start).unwrap();
        meter.finish(slot);
    }
    assert!(meter.start(&obligations, start).is_err());
}

#[test]
fn a_refused_request_charges_nothing() {
    let obligations = obligations("/");
    let mut meter = Meter::default();
    let one = meter.start(&obligations, Timestamp(0)).unwrap();
    let two = meter.start(&obligations, Timestamp(0)).unwrap();
    for _ in 0..10 {
        let refused = meter.start(&obligations, Timestamp(0));
        assert!(matches!(refused, Err(Exceeded::Concurrent { limit: 2, .. })), "{refused:?}");
    }
    meter.finish(one);
    // The third of the minute: the refused ones were not counted.
    let three = meter.start(&obligations, Timestamp(0)).unwrap();
    meter.finish(two);
    meter.finish(three);
}

#[test]
fn bytes_are_counted_over_the_session_and_bodies_by_themselves() {
    let (upload, other) = (obligations("/upload"), obligations("/"));
    let mut meter = Meter::default();
    let mut slot = meter.start(&upload, Timestamp(0)).unwrap();
    meter.up(&mut slot, 6).unwrap();
    meter.up(&mut slot, 4).unwrap();
    assert!(matches!(meter.up(&mut slot, 1), Err(Exceeded::Body { .. })));
    meter.down(&slot, 1024).unwrap();
    assert!(matches!(meter.down(&slot, 1), Err(Exceeded::Down { .. })));
    meter.finish(slot);
    let next = meter.start(&other, Timestamp(120_000));
    assert!(matches!(next, Err(Exceeded::Down { .. })), "{next:?}");

    let mut meter = Meter::default();
    let mut slot = meter.start(&other, Timestamp(0)).unwrap();
    meter.up(&mut slot, 100).unwrap();
    assert!(matches!(meter.up(&mut slot, 1), Err(Exceeded::Up { .. })));
    assert!(matches!(meter.up(&mut slot, u64::MAX), Err(Exceeded::Up { .. })));
    meter.finish(slot);
}
