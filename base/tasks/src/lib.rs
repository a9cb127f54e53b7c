//! The only place that spawns. A task has a kind, which names it in logs and says what its end
//! means; a scope owns its tasks and ends with them.

#![forbid(unsafe_code)]

use std::future::Future;
use std::time::Duration;

use base_types::Chain;
pub use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// What a task is for. A new background activity gets a new kind here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// Asks one environment's queue for work.
    BrainPoller,
    /// Keeps one work item's lease.
    LeaseHeartbeat,
    /// Owns one session.
    SessionDriver,
    /// Reads one session's event stream.
    EventReader,
    /// Runs one tool call and reports its result to the session's driver.
    ToolCall,
    /// Delivers one session's finished results to the brain.
    ResultSender,
    /// Watches the life of one sandbox.
    SandboxWatch,
    /// Brings one sandbox to a running state.
    SandboxPreparation,
    /// Drives the framing of one connection to a guest agent.
    GuestConnection,
    /// Serves one connection of a local or network API.
    ApiConnection,
    /// Accepts connections.
    ApiListener,
    /// The launcher's service of one connection, or its watch of one sandbox.
    Launcher,
    /// Brings what exists in line with what the store says.
    Reconciler,
    /// Writes to the journal what waits to be written.
    JournalWriter,
    /// The development brain's script player and timers.
    DevelopmentBrain,
    /// Waits for signals.
    Signals,
}

/// Spawns a task that belongs to nobody: it must end by itself when its channels close.
pub fn spawn<F>(kind: TaskKind, future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let span = tracing::debug_span!("task", kind = ?kind);
    tokio::spawn(future.instrument(span))
}

/// Runs blocking work (file system, synchronous system calls) off the async threads.
pub async fn blocking<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // A panic in the closure is the caller's panic; the runtime never cancels blocking work
        // that has begun.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A group of tasks with one stop signal. Dropping it does not stop them; [`Tasks::drain`] does.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    All,
    /// The grace period passed; this many tasks were still running.
    TimedOut {
        running: usize,
    },
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that stops when this one does, and by itself.
    pub fn child(&self) -> Tasks {
        Tasks { tracker: TaskTracker::new(), stop: self.stop.child_token() }
    }

    /// The signal that tasks of this group watch.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    pub fn spawn<F>(&self, kind: TaskKind, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let span = tracing::debug_span!("task", kind = ?kind);
        self.tracker.spawn(future.instrument(span))
    }

    /// Like [`Tasks::spawn`] for a task whose failure nobody awaits: it is logged with its causes.
    pub fn spawn_logged<F, E>(&self, kind: TaskKind, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        self.spawn(kind, async move {
            if let Err(error) = future.await {
                tracing::warn!(kind = ?kind, error = %Chain(&error), "task failed");
            }
        });
    }

    /// Tells every task to stop and waits up to `grace` for them.
    pub async fn drain(&self, grace: Duration) -> Drained {
        self.stop.cancel();
        self.drain_without_stop(grace).await
    }

    /// Waits up to `grace` for tasks that were told to end in another way.
    pub async fn drain_without_stop(&self, grace: Duration) -> Drained {
        self.tracker.close();
        match tokio::time::timeout(grace, self.tracker.wait()).await {
            Ok(()) => Drained::All,
            Err(_) => Drained::TimedOut { running: self.tracker.len() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_tasks_that_watch_the_signal_and_names_those_that_do_not() {
        let tasks = Tasks::new();
        let stop = tasks.stopping();
        tasks.spawn(TaskKind::SessionDriver, async move { stop.cancelled().await });
        assert_eq!(tasks.drain(Duration::from_secs(5)).await, Drained::All);

        let tasks = Tasks::new();
        tasks.spawn(TaskKind::SessionDriver, std::future::pending::<()>());
        assert_eq!(tasks.drain(Duration::from_millis(10)).await, Drained::TimedOut { running: 1 });
    }
}
