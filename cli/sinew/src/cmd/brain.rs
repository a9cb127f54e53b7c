//! `sinew brain`: the development brain as a process.

use anyhow::Context;
use brain_local::{BrainConfig, BrainHandle, BrainServer};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{BrainArgs, LogFormat};
use crate::cmd::block_on_threads;
use crate::exit::Exit;
use crate::{logging, output};

/// What it prints when it listens; `--json` prints it as one line. The credentials are generated
/// at each start and open nothing but this process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BrainReady {
    pub url: String,
    pub environment_id: String,
    pub environment_key: String,
    pub api_key: String,
}

pub fn run(args: BrainArgs) -> anyhow::Result<Exit> {
    logging::init(LogFormat::Text, "info");
    block_on_threads(serve(args))
}

async fn serve(args: BrainArgs) -> anyhow::Result<Exit> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let config =
        BrainConfig { listen: args.listen, scenario_dir: args.scenarios, ..BrainConfig::default() };
    let brain = BrainServer::start(config).await.context("start the development brain")?;
    announce(&brain, args.json.json)?;
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    brain.shutdown().await;
    Ok(Exit::Ok)
}

fn announce(brain: &BrainHandle, json: bool) -> anyhow::Result<()> {
    let ready = BrainReady {
        url: brain.url(),
        environment_id: brain.environment_id().to_string(),
        environment_key: brain.environment_key().expose().to_owned(),
        api_key: brain.api_key().expose().to_owned(),
    };
    if json {
        return output::json_line(&ready);
    }
    output::line(&format!(
        "{}\n\
         listening on     {}\n\
         api key          {}\n\n\
         To serve it, in another terminal:\n\n  \
         export ANTHROPIC_BASE_URL={}\n  \
         export ANTHROPIC_ENVIRONMENT_ID={}\n  \
         export ANTHROPIC_ENVIRONMENT_KEY={}\n  \
         sinew serve",
        brain_local::BANNER.trim_end(),
        ready.url,
        ready.api_key,
        ready.url,
        ready.environment_id,
        ready.environment_key,
    ))
}
