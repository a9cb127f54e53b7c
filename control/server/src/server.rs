//! Accepts connections and serves the router on them.

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use base_tasks::{Drained, TaskKind, Tasks};
use base_types::{Chain, NodeId, Timestamp};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sandbox_api::SandboxDriver;
use store_api::Store;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::CONNECTIONS_MAX;
use crate::control::SessionControl;
use crate::routes::{Shared, router};
use crate::socket::ApiSocket;

/// A client that does not finish its request head is not one of ours.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (say, no descriptors left) the next one is tried this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Open requests get this long when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Everything the API answers from.
pub struct ServerParts {
    pub version: String,
    pub node: NodeId,
    pub started_at: Timestamp,
    pub store: Arc<dyn Store>,
    pub control: Arc<dyn SessionControl>,
    pub driver: Arc<dyn SandboxDriver>,
}

/// Who is at the other end of a connection, as the kernel told it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerUid(pub u32);

pub struct Server {
    socket: ApiSocket,
    router: Router,
    stop: CancellationToken,
}

impl Server {
    pub fn new(parts: ServerParts, socket: ApiSocket, stop: CancellationToken) -> Self {
        let shared = Arc::new(Shared {
            version: parts.version,
            node: parts.node,
            started_at: parts.started_at,
            store: parts.store,
            control: parts.control,
            driver: parts.driver,
            viewers: Arc::default(),
            stop: stop.clone(),
        });
        Self { socket, router: router(shared), stop }
    }

    /// Serves until the stop signal, then lets open requests end.
    pub async fn run(self) -> std::io::Result<()> {
        let listener = self.socket.listener()?;
        let tasks = Tasks::new();
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let next = async {
                let permit = room.clone().acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = self.stop.cancelled() => break,
                next = next => next,
            };
            match accepted {
                Ok((stream, _)) => {
                    let peer = stream.peer_cred().map(|peer| PeerUid(peer.uid()));
                    // The kernel does not know only of a peer that is gone.
                    let Ok(peer) = peer else { continue };
                    let router = self.router.clone().layer(Extension(peer));
                    let connection = serve(stream, router, tasks.stopping());
                    tasks.spawn(TaskKind::ApiConnection, async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "accept an API connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if let Drained::TimedOut { running } = tasks.drain(DRAIN).await {
            tracing::warn!(running, "API connections were cut at shutdown");
        }
        Ok(())
    }
}

async fn serve(stream: UnixStream, router: Router, stop: CancellationToken) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an API connection ended early");
    }
}
