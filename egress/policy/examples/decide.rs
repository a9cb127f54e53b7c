//! Measures decisions: `cargo run --release -p egress-policy --example decide`.

use std::time::Instant;

use egress_policy::measure::{Shape, decisions, engine};

const RULES: usize = 1_000;
const RUNS: usize = 200_000;

fn main() {
    let zero = Instant::now();
    for rules in [1_000, 4_000] {
        for shape in [Shape::Mixed, Shape::Everywhere] {
            let start = Instant::now();
            let made = engine(shape, rules);
            assert!(made.is_ok(), "the policy is right");
            println!(
                "{:10} {rules} rules: read and checked in {:?}",
                shape.name(),
                start.elapsed()
            );
        }
    }
    for shape in Shape::ALL {
        let (engine, identity) = match engine(shape, RULES) {
            Ok(made) => made,
            Err(errors) => panic!("{errors}"),
        };
        let now = || zero.elapsed();
        let mut times = decisions(shape, (&engine, &identity), RULES, RUNS, now);
        times.sort();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "{:10} {RULES} rules: p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
            shape.name(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
}
