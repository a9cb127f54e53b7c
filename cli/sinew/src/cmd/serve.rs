//! `sinew serve`: from root to a small unprivileged process that serves until it is told to end.

use base_config::{Config, Overrides};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::ServeArgs;
use crate::cmd::block_on_threads;
use crate::exit::{Exit, UsageError};
use crate::installation::sources;
use crate::serve::node::{Node, Prepared};
use crate::supervisor::Supervisor;
use crate::{logging, output};

pub fn run(args: ServeArgs) -> anyhow::Result<Exit> {
    logging::init(args.log_format, "info");
    crate::serve::install_tls();
    let config = load(&args)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // As root and with one thread: the launcher, the socket; then the privileges go.
    let prepared = Prepared::prepare(config, args.socket_group)?;
    block_on_threads(serve(prepared))
}

fn load(args: &ServeArgs) -> anyhow::Result<Config> {
    let overrides = Overrides {
        config: args.config.clone(),
        data: args.data.data.clone(),
        images: args.images.images.clone(),
        ..Overrides::default()
    };
    let config = base_config::load(&sources(overrides))?;
    if config.environments.is_empty() {
        let text = "there is no environment to serve: set ANTHROPIC_ENVIRONMENT_ID and \
                    ANTHROPIC_ENVIRONMENT_KEY, or write an [[environment]] into sinew.toml";
        return Err(UsageError(text.to_owned()).into());
    }
    Ok(config)
}

async fn serve(prepared: Prepared) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let stop = CancellationToken::new();
    let node = tokio::select! {
        node = Node::start(prepared) => node?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before it was ready");
            return Ok(Exit::Ok);
        }
    };
    let supervisor = Supervisor::of_environment();
    supervisor.ready(&node.summary());
    output::line(&format!("ready: {}", node.summary()))?;
    let stopping = stop.clone();
    let mut running = std::pin::pin!(node.run(stopping));
    tokio::select! {
        ended = running.as_mut() => return ended.map(|()| Exit::Ok),
        never = supervisor.keep_alive() => match never {},
        name = signals.next() => {
            tracing::info!(signal = name, "draining; a second signal ends at once");
            supervisor.stopping();
            stop.cancel();
        }
    }
    tokio::select! {
        ended = running => ended.map(|()| Exit::Ok),
        name = signals.next() => {
            tracing::warn!(signal = name, "ended without a drain; open work goes on at the next start");
            Ok(Exit::Failed)
        }
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
