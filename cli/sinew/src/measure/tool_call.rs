//! `tool-call`: the whole way, from the brain's event to our result at the brain, by the brain's
//! clock. The command is `:`, which the shell runs without starting anything, so that there is
//! nothing to take off.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bench::{Figures, Goal, Machine, Measurement, Report, Unit};

use crate::brain_client::{BrainClient, EventCursor, event_micros};
use crate::scratch::Scratch;

/// Not measured: the first one starts the sandbox, the next ones the shell.
const WARM_UP: usize = 10;
const WAIT: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub async fn tool_call(scratch: &mut Scratch, runs: usize) -> anyhow::Result<Report> {
    let scenarios = scratch.path().join("scenarios");
    std::fs::create_dir(&scenarios)?;
    std::fs::write(scenarios.join("bench.toml"), script(WARM_UP + runs))
        .context("write the script")?;
    let ready = scratch.start_brain(Some(&scenarios)).await?;
    let serve_ready = scratch.start_serve(&ready).await?;
    let brain = BrainClient::new(ready)?;
    let session = brain.start_session("bench", "Call a tool many times").await?;
    let mut cursor = EventCursor::default();
    let mut asked = HashMap::new();
    let mut took = Vec::new();
    let until = Instant::now() + WAIT;
    while took.len() < WARM_UP + runs {
        for event in brain.events(&session, &mut cursor).await? {
            let Some(at) = event_micros(&event) else { continue };
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            match event["type"].as_str() {
                Some("agent.tool_use") => {
                    asked.insert(text("id"), at);
                }
                Some("user.tool_result") => {
                    if event["is_error"] == true {
                        bail!("a call failed: {}", event["content"]);
                    }
                    let asked = asked.get(&text("tool_use_id")).context("a result for no call")?;
                    took.push(Duration::from_micros((at - asked).max(0) as u64));
                }
                _ => {}
            }
        }
        if Instant::now() > until {
            bail!("{} of {} calls were answered in time", took.len(), WARM_UP + runs);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let figures = Figures::of_durations(&took[WARM_UP..])?;
    let ready_ms = serve_ready.as_secs_f64() * 1e3;
    Ok(Report {
        bench: "tool-call",
        machine: Machine::this(),
        results: vec![
            measurement("event in to result out", figures),
            measurement("serve start to ready, launcher started too", Figures::of(&[ready_ms])?),
        ],
        goals: vec![
            Goal::at_most("event in to result out, p50 ms", 3.0, Some(figures.p50)),
            Goal::at_most("event in to result out, p99 ms", 10.0, Some(figures.p99)),
        ],
    })
}

fn measurement(name: &'static str, figures: Figures) -> Measurement {
    Measurement { name, unit: Unit::Ms, figures, peer: None }
}

/// One call at a time, as an agent works.
fn script(calls: usize) -> String {
    let mut script = String::from("description = \"Calls a tool many times.\"\n");
    for _ in 0..calls {
        // Writing to a string does not fail.
        let _ = write!(
            script,
            "\n[[step]]\n[[step.call]]\ntool = \"bash\"\ninput = {{ command = \":\" }}\n\
             expect = {{ is_error = false }}\n"
        );
    }
    script.push_str("\n[[step]]\nend_turn = \"end_turn\"\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_one_that_the_brain_takes() {
        let scenario = brain_local::Scenario::parse(&script(3)).unwrap();
        assert_eq!(scenario.calls(), 3);
    }
}
