//! `tool-call`: the whole way, from the brain's event to the result at the brain, by the brain's
//! clock. The command is `:`, which the shell runs without starting anything, so that there is
//! nothing to take off. The peer serves another session of the same brain with the same calls.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bench::{Figures, Goal, Machine, Measurement, Report, Unit};

use super::peer::OfficialWorker;
use crate::brain_client::{BrainClient, EventCursor, event_micros};
use crate::cmd::brain::BrainReady;
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
    let brain = BrainClient::new(ready.clone())?;
    let figures = one_session(&brain, runs).await?;
    let ready_ms = serve_ready.as_secs_f64() * 1e3;
    let serve_ready = Figures::of(&[ready_ms])?;
    let mut results = vec![
        measurement(EVENT_TO_RESULT, figures),
        measurement("serve start to ready, launcher started too", serve_ready),
    ];
    // It would claim the next session, too.
    scratch.stop_serve().await?;
    if let Some(worker) = OfficialWorker::find() {
        let peer = of_peer(&worker, scratch, &ready, runs).await;
        let figures = peer.context("the official Python worker")?;
        let peer = Some(worker.name());
        results.push(Measurement { name: EVENT_TO_RESULT, unit: Unit::Ms, figures, peer });
    }
    Ok(Report {
        bench: "tool-call",
        machine: Machine::this(),
        results,
        goals: vec![
            Goal::at_most("event in to result out, p50 ms", 3.0, Some(figures.p50)),
            Goal::at_most("event in to result out, p99 ms", 10.0, Some(figures.p99)),
        ],
    })
}

const EVENT_TO_RESULT: &str = "event in to result out";

async fn of_peer(
    worker: &OfficialWorker,
    scratch: &Scratch,
    ready: &BrainReady,
    runs: usize,
) -> anyhow::Result<Figures> {
    let mut process = worker.start(scratch.path(), ready)?;
    let brain = BrainClient::new(ready.clone())?;
    let figures = tokio::select! {
        figures = one_session(&brain, runs) => figures?,
        ended = process.wait() => bail!("it ended with {}", ended?),
    };
    process.kill().await.context("end it")?;
    Ok(figures)
}

/// Plays the script in a new session, whoever serves it.
async fn one_session(brain: &BrainClient, runs: usize) -> anyhow::Result<Figures> {
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
    Ok(Figures::of_durations(&took[WARM_UP..])?)
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
