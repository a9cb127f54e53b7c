//! A benchmark's report.

use serde::Serialize;

use crate::machine::Machine;
use crate::statistics::{Figures, Unit};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub bench: &'static str,
    pub machine: Machine,
    pub results: Vec<Measurement>,
    pub goals: Vec<Goal>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    pub name: &'static str,
    pub unit: Unit,
    #[serde(flatten)]
    pub figures: Figures,
    /// The name of the peer that was measured in the same run, if this is one.
    pub peer: Option<String>,
}

/// An upper limit and what was measured against it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    pub name: &'static str,
    pub limit: f64,
    /// `None`: not measured on this machine, and so not met.
    pub measured: Option<f64>,
    pub met: bool,
}

impl Goal {
    pub fn at_most(name: &'static str, limit: f64, measured: Option<f64>) -> Self {
        let met = measured.is_some_and(|measured| measured <= limit);
        Self { name, limit, measured, met }
    }
}

impl Report {
    pub fn meets_its_goals(&self) -> bool {
        self.goals.iter().all(|goal| goal.met)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_at_its_limit_and_not_without_a_measurement() {
        assert!(Goal::at_most("p50", 3.0, Some(3.0)).met);
        assert!(!Goal::at_most("p50", 3.0, Some(3.1)).met);
        assert!(!Goal::at_most("p50", 3.0, None).met);
    }

    #[test]
    fn the_keys_of_a_report_are_stable() {
        let report = Report {
            bench: "exec",
            machine: Machine { cpus: 2, cpu: "x".into(), memory_mib: 1, kernel: "6".into() },
            results: vec![Measurement {
                name: "round trip",
                unit: Unit::Ms,
                figures: Figures::of(&[1.0]).unwrap(),
                peer: None,
            }],
            goals: vec![Goal::at_most("round trip p50", 1.0, Some(1.0))],
        };
        let expected = serde_json::json!({
            "bench": "exec",
            "machine": {"cpus": 2, "cpu": "x", "memory_mib": 1, "kernel": "6"},
            "results": [{
                "name": "round trip", "unit": "ms", "n": 1,
                "p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0, "peer": null,
            }],
            "goals": [{"name": "round trip p50", "limit": 1.0, "measured": 1.0, "met": true}],
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        assert!(report.meets_its_goals());
    }
}
