//! The demo's claims, checked against what the brain and the sandbox really have.

use std::collections::BTreeMap;

use anyhow::bail;

use super::transcript::Watched;
use crate::brain_client::Played;
use crate::output::duration;

/// What came of one session.
pub struct Outcome {
    /// Its line in the summary.
    pub row: Vec<String>,
    /// What is not as it should be.
    pub wrong: Vec<String>,
}

impl Outcome {
    pub fn of(watched: &Watched, played: &Played) -> Self {
        let mut wrong: Vec<String> = played.verdict.failures.clone();
        if !played.passed && wrong.is_empty() {
            wrong.push("the script was not played to its end".to_owned());
        }
        if played.verdict.open_calls > 0 {
            wrong.push(format!("{} calls have no result", played.verdict.open_calls));
        }
        for (id, call) in &watched.calls {
            if call.results.len() != 1 {
                wrong.push(format!("call {id} has {} results in the history", call.results.len()));
            }
        }
        let mut posted: BTreeMap<&str, usize> = BTreeMap::new();
        for result in &played.results {
            *posted.entry(&result.tool_use_id).or_default() += 1;
            if result.conflicts > 0 {
                wrong.push(format!("call {} was answered differently again", result.tool_use_id));
            }
        }
        wrong.extend(
            posted
                .iter()
                .filter(|(_, count)| **count != 1)
                .map(|(id, count)| format!("call {id} was answered {count} times")),
        );
        let repeats: u32 = played.results.iter().map(|result| result.repeats).sum();
        let mut times = watched.times();
        times.sort();
        let time = |index: usize| times.get(index).map_or("-".to_owned(), |time| duration(*time));
        let verdict = if wrong.is_empty() { "passed" } else { "FAILED" };
        let row = vec![
            watched.letter.to_string(),
            watched.script.to_owned(),
            watched.calls.len().to_string(),
            played.results.len().to_string(),
            repeats.to_string(),
            time(times.len() / 2),
            time(times.len().saturating_sub(1)),
            verdict.to_owned(),
        ];
        Self { row, wrong }
    }
}

/// The counting call wrote `count 1` to `count N`: each once, in order.
pub fn nothing_lost_or_repeated(lines: &[String], expected: usize) -> anyhow::Result<()> {
    let wanted: Vec<String> = (1..=expected).map(|number| format!("count {number}")).collect();
    if lines != wanted {
        bail!("the sandbox counted {lines:?}: something was lost or done twice");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brain_client::{PostedResult, Verdict};

    #[test]
    fn a_lost_or_repeated_number_is_found() {
        let lines = |numbers: &[u32]| -> Vec<String> {
            numbers.iter().map(|number| format!("count {number}")).collect()
        };
        assert!(nothing_lost_or_repeated(&lines(&[1, 2, 3]), 3).is_ok());
        assert!(nothing_lost_or_repeated(&lines(&[1, 3]), 3).is_err());
        assert!(nothing_lost_or_repeated(&lines(&[1, 2, 2, 3]), 3).is_err());
        assert!(nothing_lost_or_repeated(&lines(&[1, 2, 3, 1]), 3).is_err());
    }

    #[test]
    fn a_call_without_a_result_or_with_two_fails_the_session() {
        let watched = Watched::new('A', "x", base_types::SessionId::from("s"));
        let result = |id: &str, conflicts| PostedResult {
            tool_use_id: id.to_owned(),
            repeats: 0,
            conflicts,
        };
        let played = |results, open_calls| Played {
            passed: true,
            verdict: Verdict { failures: Vec::new(), open_calls },
            results,
        };
        assert!(Outcome::of(&watched, &played(vec![result("t1", 0)], 0)).wrong.is_empty());
        for bad in [
            played(vec![result("t1", 0), result("t1", 0)], 0),
            played(vec![result("t1", 1)], 0),
            played(vec![], 1),
        ] {
            assert!(!Outcome::of(&watched, &bad).wrong.is_empty());
        }
    }
}
