//! Samples and their percentiles.

use std::time::Duration;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Ms,
    Mib,
}

/// The figures of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    pub n: usize,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{found} samples where figures need at least one")]
pub struct TooFewSamples {
    found: usize,
}

impl Figures {
    /// Percentiles by the nearest-rank rule: each is a value that was really measured.
    pub fn of(samples: &[f64]) -> Result<Self, TooFewSamples> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: f64| {
            let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied()
        };
        let figures = || {
            Some(Self {
                n: sorted.len(),
                p50: rank(50.0)?,
                p90: rank(90.0)?,
                p99: rank(99.0)?,
                max: rank(100.0)?,
            })
        };
        figures().ok_or(TooFewSamples { found: sorted.len() })
    }

    /// The same in milliseconds, from durations.
    pub fn of_durations(samples: &[Duration]) -> Result<Self, TooFewSamples> {
        let ms: Vec<f64> = samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect();
        Self::of(&ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_measured_values_by_nearest_rank() {
        let samples: Vec<f64> = (1..=300).rev().map(f64::from).collect();
        let figures = Figures::of(&samples).unwrap();
        assert_eq!((figures.n, figures.p50, figures.p90), (300, 150.0, 270.0));
        assert_eq!((figures.p99, figures.max), (297.0, 300.0));
        let one = Figures::of(&[7.0]).unwrap();
        assert_eq!((one.p50, one.p99, one.max), (7.0, 7.0, 7.0));
        assert_eq!(Figures::of(&[]), Err(TooFewSamples { found: 0 }));
    }

    #[test]
    fn durations_become_milliseconds() {
        let figures = Figures::of_durations(&[Duration::from_micros(1_500)]).unwrap();
        assert_eq!(figures.max, 1.5);
    }

    proptest! {
        #[test]
        fn figures_are_ordered_and_among_the_samples(
            samples in prop::collection::vec(0.0..1e9f64, 1..500),
        ) {
            let figures = Figures::of(&samples).unwrap();
            prop_assert!(figures.p50 <= figures.p90 && figures.p90 <= figures.p99);
            prop_assert!(figures.p99 <= figures.max);
            for value in [figures.p50, figures.p90, figures.p99, figures.max] {
                prop_assert!(samples.contains(&value));
            }
        }
    }
}
