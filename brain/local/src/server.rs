//! Starting and stopping the brain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use base_tasks::{Drained, TaskKind, Tasks, blocking};
use base_types::{EnvironmentId, Secret};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};

use crate::config::BrainConfig;
use crate::connection::{Cut, Doors};
use crate::handle::BrainHandle;
use crate::scenario::ScenarioError;
use crate::service::serve;
use crate::state::Shared;

/// How long a shutdown waits for connections to end.
const DRAIN: Duration = Duration::from_secs(2);
/// The timers look no more often than this, however much changes.
const MIN_TICK: Duration = Duration::from_millis(20);
/// They look at least this often; a deadline that moved closer is noticed at once anyway.
const MAX_TICK: Duration = Duration::from_secs(60);

/// Why the brain did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the scenarios cannot be used")]
    Scenarios(#[source] ScenarioError),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// The development brain.
pub struct BrainServer;

impl BrainServer {
    /// Listens and serves until the handle is shut down or dropped.
    pub async fn start(config: BrainConfig) -> Result<BrainHandle, StartError> {
        let address = config.listen;
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let loaded = blocking(move || Shared::new(config)).await;
        let (shared, environment) = loaded.map_err(StartError::Scenarios)?;
        let shared = Arc::new(shared);
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the development brain can be reached from the network");
        }
        let tasks = Tasks::new();
        let service = Router::new()
            .fallback(serve)
            .with_state(shared.clone())
            .into_make_service_with_connect_info::<Cut>();
        let server = axum::serve(Doors::new(listener), service)
            .with_graceful_shutdown(shared.stop.clone().cancelled_owned());
        tasks.spawn_logged(TaskKind::DevelopmentBrain, async move { server.await });
        tasks.spawn(TaskKind::DevelopmentBrain, tick(shared.clone()));
        let environment_id = EnvironmentId::from(environment);
        Ok(BrainHandle::new(shared, tasks, address, environment_id))
    }
}

/// Does what time makes due: leases end, scripts go on.
async fn tick(shared: Arc<Shared>) {
    let mut changes = shared.changes();
    loop {
        changes.mark_unchanged();
        let (changed, next) = shared.change_silently(|state| state.advance());
        if changed {
            shared.touched();
        }
        let latest = Instant::now() + MAX_TICK;
        let wake = next.map_or(latest, |next| Instant::from_std(next).min(latest));
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep_until(wake) => {}
            _ = changes.changed() => tokio::time::sleep(MIN_TICK).await,
        }
    }
}

/// Ends the brain's tasks; what is still running after the grace period dies with the runtime.
pub(crate) async fn drain(shared: &Shared, tasks: &Tasks) -> Drained {
    shared.stop.cancel();
    tasks.drain(DRAIN).await
}

/// A credential that was generated or given.
pub(crate) fn api_key(shared: &Shared) -> Secret {
    shared.read(|state| state.api_key.clone())
}
