//! `sinew demo`: everything at work, on an installation that is gone afterwards.

use anyhow::{Context, bail};
use sandbox_image::{BuildOptions, ImageStore, Recipe};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{DemoArgs, LogFormat};
use crate::cmd::block_on_threads;
use crate::cmd::image::build_shown;
use crate::demo::play;
use crate::exit::Exit;
use crate::scratch::Scratch;
use crate::{logging, output};

pub fn run(args: DemoArgs) -> anyhow::Result<Exit> {
    logging::init(LogFormat::Text, "error");
    block_on_threads(demo(args))
}

async fn demo(args: DemoArgs) -> anyhow::Result<Exit> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut scratch = Scratch::new("demo", &args.images)?;
    if let Some(url) = &args.store {
        scratch.keep_journal_in(url)?;
    }
    let played = tokio::select! {
        played = prepare_and_play(&mut scratch) => played,
        _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("terminated")),
    };
    let logs = if played.is_err() { scratch.log_tails() } else { String::new() };
    output::line("Cleaning up: serve, brain, launcher, sandboxes, files.")?;
    let cleaned = scratch.clean(args.keep).await;
    if let Err(error) = played {
        if !logs.is_empty() {
            eprintln!("{logs}");
        }
        if let Err(unclean) = cleaned {
            eprintln!("sinew: cleaning up: {unclean:#}");
        }
        return Err(error.context("demo: failed"));
    }
    cleaned.context("demo: cleaning up")?;
    output::line("demo: ok")?;
    Ok(Exit::Ok)
}

async fn prepare_and_play(scratch: &mut Scratch) -> anyhow::Result<()> {
    let images = scratch.images().to_owned();
    let store = ImageStore::open(&images)?;
    let dir = scratch.path().display();
    output::line(&format!("Working in {dir} (removed at the end)."))?;
    output::line(&format!("Image cache {} (it stays).", images.display()))?;
    // A build is minutes of blocking work with a progress bar; on Ctrl-C its lock and its
    // half-built tree are cleaned by the next build.
    let build = move || build_shown(&store, &Recipe::debian(), &BuildOptions::default());
    let image = base_tasks::blocking(build).await?;
    if image.manifest.packages.is_empty() {
        bail!("image {} has no packages: run `sinew image build --force`", image.id());
    }
    play(scratch).await
}
