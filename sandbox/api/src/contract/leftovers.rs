//! The promise that what was destroyed is gone.

use super::Place;
use super::fixture::{Fixture, next, output, start};
use base_types::CallId;

pub async fn nothing_is_left_behind(place: &dyn Place) {
    const ROUNDS: usize = 20;
    let fixture = Fixture::of(place).await;
    // The first one may make what all later ones share.
    let (warm_up, _guest) = fixture.started().await;
    fixture.destroy(&warm_up).await;
    let before = place.footprint().await;

    let (kept, _guest) = fixture.started().await;
    assert_ne!(place.footprint().await, before, "a sandbox that runs is seen");
    fixture.destroy(&kept).await;

    for round in 0..ROUNDS {
        let (mut spec, guest) = fixture.started().await;
        output(&guest, "echo something > /workspace/file").await;
        start(&guest, &CallId::generate(), "sleep 1000 & sleep 1000").await;
        if round % 4 == 0 {
            spec = next(&spec);
            fixture.create(&spec).await;
        }
        fixture.destroy(&spec).await;
    }
    let after = place.footprint().await;
    let left: Vec<_> = after.difference(&before).collect();
    assert!(left.is_empty(), "{left:#?}");
}
