//! The long proof: every test again and again, with more random cases, until the time is over.

use std::time::{Duration, Instant};

use crate::tests_run::{Counts, prepare, run_tests};
use crate::workspace::Workspace;

/// For the property tests, instead of their default of 256.
const PROPTEST_CASES: &str = "20000";

pub fn run(workspace: &Workspace, minutes: u64) -> bool {
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut total = Counts::default();
    let mut rounds = 0_u32;
    if let Err(error) = prepare(workspace) {
        println!("soak: FAILED: {error:#}");
        return false;
    }
    while rounds == 0 || Instant::now() < end {
        rounds += 1;
        match run_tests(workspace, &[("PROPTEST_CASES", PROPTEST_CASES), ("SINEW_SOAK", "1")]) {
            Ok(counts) => {
                println!("soak: round {rounds}: {counts}");
                total.passed += counts.passed;
                total.failed += counts.failed;
                total.skipped += counts.skipped;
            }
            Err(error) => {
                println!("soak: round {rounds}: FAILED: {error:#}");
                total.failed += 1;
            }
        }
    }
    println!("soak: {rounds} rounds in {minutes} min");
    println!("{total}");
    total.failed == 0
}
