//! What the demo shows, and how it makes sure that it is true.

mod checks;
mod transcript;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base_types::SessionId;

use crate::brain_client::BrainClient;
use crate::cmd::exec::capture;
use crate::output;
use crate::scratch::Scratch;
use checks::Outcome;
use transcript::Watched;

/// The whole of each scene; far longer than it takes.
const SCENE_WAIT: Duration = Duration::from_secs(120);
/// How often the brain is asked for news of the sessions.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The kill comes when the long call has counted this far, of twenty.
const KILL_AT: usize = 5;
/// What the counting call has written when nothing is lost and nothing is repeated.
const COUNTED: usize = 20;

/// Plays the three scenes and checks them. Prints as it goes.
pub async fn play(scratch: &mut Scratch) -> anyhow::Result<()> {
    output::line("Starting the development brain and `sinew serve` as two processes.")?;
    let ready = scratch.start_brain(None).await?;
    let took = scratch.start_serve(&ready).await?;
    output::line(&format!("Serving {} (ready after {}).", ready.url, output::duration(took)))?;
    output::line(&format!("The journal is in {}.\n", scratch.journal()))?;
    let brain = BrainClient::new(ready.clone())?;

    output::line("Scene 1: two agent sessions at once, each in a sandbox of its own.\n")?;
    let mut watched = vec![
        begin(&brain, 'A', "fix-a-bug", "Write a word counter with tests and make them pass")
            .await?,
        begin(&brain, 'B', "search-and-background", "Find the broken link; run a job meanwhile")
            .await?,
    ];
    watch(&brain, &mut watched, |_| false).await?;

    output::line("\nScene 2: `serve` is killed in the middle of a call.\n")?;
    let mut counting = vec![begin(&brain, 'C', "long-count", "Count to twenty, slowly").await?];
    let before = count_until(scratch, &brain, &mut counting).await?;
    scratch.kill_serve().await?;
    output::line(&format!("[!] SIGKILL to serve; the call has counted to {before} of {COUNTED}."))?;
    let took = scratch.start_serve(&ready).await?;
    output::line(&format!("[!] serve is back after {}.", output::duration(took)))?;
    watch(&brain, &mut counting, |_| false).await?;

    output::line("\nWhat the brain has, what the sandbox has:\n")?;
    let counted = counted_lines(scratch, &counting[0].session).await?;
    checks::nothing_lost_or_repeated(&counted, COUNTED)?;
    output::line(&format!(
        "count.log in the sandbox: {} lines, every number from 1 to {COUNTED} once.",
        counted.len()
    ))?;
    let shown = scratch.api().session(&counting[0].session).await?;
    let epoch = shown.sandbox.map(|sandbox| sandbox.epoch.0);
    if epoch != Some(1) {
        bail!("the sandbox of session C is in epoch {epoch:?}: its processes did not survive");
    }
    output::line("The sandbox is still in its first epoch: its processes outlived serve.\n")?;
    watched.append(&mut counting);
    summarise(&brain, &watched).await
}

async fn begin(
    brain: &BrainClient,
    letter: char,
    script: &'static str,
    message: &str,
) -> anyhow::Result<Watched> {
    let session = brain.start_session(script, message).await?;
    output::line(&format!("[{letter}] {session}: \"{message}\""))?;
    Ok(Watched::new(letter, script, session))
}

/// Prints what happens until every session's turn is over, or `enough` says so.
async fn watch(
    brain: &BrainClient,
    watched: &mut [Watched],
    enough: impl Fn(&[Watched]) -> bool,
) -> anyhow::Result<()> {
    let until = Instant::now() + SCENE_WAIT;
    loop {
        look(brain, watched).await?;
        if enough(watched) || watched.iter().all(|session| session.over) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the sessions are not done after {} s", SCENE_WAIT.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(brain: &BrainClient, watched: &mut [Watched]) -> anyhow::Result<()> {
    for session in watched {
        for event in brain.events(&session.session, &mut session.cursor).await? {
            for line in session.take(&event) {
                output::line(&line)?;
            }
        }
    }
    Ok(())
}

/// Lets the counting call run until it has really counted, as its own sandbox shows.
async fn count_until(
    scratch: &Scratch,
    brain: &BrainClient,
    counting: &mut [Watched],
) -> anyhow::Result<usize> {
    let until = Instant::now() + SCENE_WAIT;
    loop {
        look(brain, counting).await?;
        // Before the sandbox exists there is nothing to look into.
        let called = !counting[0].open_calls().is_empty();
        let counted = match called {
            true => counted_lines(scratch, &counting[0].session).await.unwrap_or_default().len(),
            false => 0,
        };
        if (KILL_AT..COUNTED).contains(&counted) && called {
            return Ok(counted);
        }
        if counting[0].over || counted >= COUNTED {
            bail!("the counting call was over before serve could be killed");
        }
        if Instant::now() > until {
            bail!("the counting call does not count");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The lines of `count.log`, read by a program of the operator in the session's sandbox.
async fn counted_lines(scratch: &Scratch, session: &SessionId) -> anyhow::Result<Vec<String>> {
    let (code, bytes) = capture(&scratch.api(), session, &["cat", "count.log"]).await?;
    if code != 0 {
        bail!("`cat count.log` in the sandbox ended with {code}");
    }
    let text = String::from_utf8(bytes).context("read count.log")?;
    Ok(text.lines().map(str::to_owned).collect())
}

async fn summarise(brain: &BrainClient, watched: &[Watched]) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for session in watched {
        let outcome = Outcome::of(session, &brain.played(&session.session).await?);
        wrong.extend(outcome.wrong.iter().map(|what| format!("{}: {what}", session.letter)));
        rows.push(outcome.row);
    }
    let head = [
        "session",
        "script",
        "calls",
        "results",
        "repeated",
        "median call",
        "slowest call",
        "verdict",
    ];
    output::table(&head, rows)?;
    output::line("")?;
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}
