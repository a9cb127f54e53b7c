//! How a piece of work gets a connection: SQLite's one writer and its readers, or PostgreSQL's
//! pool, where an outage is ridden out.
//!
//! **Invariant:** a connection to PostgreSQL on which something did not come to its end is closed,
//! not used again: the server takes back what it was in the middle of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{Executor, PgPool, Postgres, Sqlite, SqlitePool, Transaction};
use store_api::{Outage, StoreError};

use crate::database::Connection;
use crate::failure::failed;
use crate::group::Group;

/// An outage of PostgreSQL is waited out this long before the caller is told: a restart takes
/// seconds, a failover some tens of them, and a session's lease is longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The same once one has lasted longer, until an answer comes: whoever lets go of its sessions for
/// it must not wait that long at each step.
const PATIENCE_LOST: Duration = Duration::from_millis(500);

const FIRST_WAIT: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// One attempt. A server whose machine is gone says no farewell, and the kernel would wait for it
/// for a quarter of an hour.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(crate) enum Backend {
    Sqlite {
        /// One connection: SQLite has one writer, and waiting here is fair where its lock is not.
        writer: SqlitePool,
        readers: SqlitePool,
        group: Arc<Group>,
    },
    Postgres {
        pool: PgPool,
        trust: Trust,
        patience: Duration,
    },
}

/// Which connections can be trusted: those made since the last outage.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    born: Instant,
    outage_at_ms: Arc<AtomicU64>,
    /// An outage lasted longer than anybody waits, and nothing has been answered since.
    lost: Arc<AtomicBool>,
}

/// A connection for one attempt at one piece of work.
pub(crate) enum Link {
    SqliteRead(PoolConnection<Sqlite>),
    SqliteWrite(Transaction<'static, Sqlite>),
    Postgres(PostgresLink),
}

pub(crate) struct PostgresLink {
    connection: PoolConnection<Postgres>,
    in_transaction: bool,
    finished: bool,
}

/// The attempts at one piece of work: one on SQLite; on PostgreSQL as many as an outage takes.
pub(crate) struct Attempts<'b> {
    backend: &'b Backend,
    action: &'static str,
    first_failure: Option<Instant>,
    wait: Duration,
}

/// Runs work that can be done again from its beginning: `write` in a transaction, `read` without.
///
/// A macro, because the future of an async closure is not known to be `Send` for every lifetime
/// of the connection it borrows.
macro_rules! attempt {
    ($backend:expr, $begin:ident, $action:literal, |$connection:ident| $work:expr) => {{
        let mut attempts = $crate::backend::Attempts::new(&$backend, $action);
        loop {
            let done = match attempts.$begin().await {
                Ok(mut link) => {
                    let done = {
                        let $connection = &mut link.connection();
                        attempts.bounded($work).await
                    };
                    attempts.finish(link, done).await
                }
                Err(error) => Err(error),
            };
            if let Some(done) = attempts.settle(done).await {
                break done;
            }
        }
    }};
}

pub(crate) use attempt;

impl Backend {
    pub async fn close(&self) {
        match self {
            Backend::Sqlite { writer, readers, .. } => {
                readers.close().await;
                writer.close().await;
            }
            Backend::Postgres { pool, .. } => pool.close().await,
        }
    }
}

// === impl Attempts ===

impl<'b> Attempts<'b> {
    pub fn new(backend: &'b Backend, action: &'static str) -> Self {
        Self { backend, action, first_failure: None, wait: FIRST_WAIT }
    }

    pub async fn read(&self) -> Result<Link, StoreError> {
        let link = match self.backend {
            Backend::Sqlite { readers, .. } => readers.acquire().await.map(Link::SqliteRead),
            Backend::Postgres { .. } => return self.postgres(false).await.map(Link::Postgres),
        };
        link.map_err(failed(self.action))
    }

    pub async fn write(&self) -> Result<Link, StoreError> {
        match self.backend {
            Backend::Sqlite { writer, .. } => {
                writer.begin().await.map(Link::SqliteWrite).map_err(failed(self.action))
            }
            Backend::Postgres { .. } => {
                let mut link = self.postgres(true).await?;
                self.bounded(self.simple(&mut link, "BEGIN ISOLATION LEVEL READ COMMITTED"))
                    .await?;
                Ok(Link::Postgres(link))
            }
        }
    }

    async fn postgres(&self, in_transaction: bool) -> Result<PostgresLink, StoreError> {
        let Backend::Postgres { pool, trust, .. } = self.backend else {
            unreachable!("asked of PostgreSQL only")
        };
        let limit = if trust.is_lost() { PATIENCE_LOST } else { ATTEMPT_MAX };
        let acquired = tokio::time::timeout(limit, pool.acquire()).await;
        let acquired = acquired.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let connection = acquired.map_err(failed(self.action))?;
        Ok(PostgresLink { connection, in_transaction, finished: false })
    }

    async fn simple(
        &self,
        link: &mut PostgresLink,
        statement: &'static str,
    ) -> Result<(), StoreError> {
        link.connection.execute(statement).await.map(drop).map_err(failed(self.action))
    }

    /// SQLite has limits of its own, and work that it began it ends.
    pub async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match self.backend {
            Backend::Sqlite { .. } => work.await,
            Backend::Postgres { .. } => {
                tokio::time::timeout(ATTEMPT_MAX, work).await.unwrap_or_else(|elapsed| {
                    let (action, source) = (self.action, Box::new(elapsed));
                    Err(StoreError::Unavailable { action, outage: Outage::Slow, source })
                })
            }
        }
    }

    /// Commits what went well and takes back what did not.
    pub async fn finish<T>(
        &self,
        link: Link,
        done: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match (link, done) {
            (Link::SqliteRead(_), done) => done,
            (Link::SqliteWrite(transaction), Ok(answer)) => {
                transaction.commit().await.map(|()| answer).map_err(failed(self.action))
            }
            (Link::SqliteWrite(transaction), Err(error)) => {
                // One that fails leaves its mark on the connection, which is then not used again.
                let _ = transaction.rollback().await;
                Err(error)
            }
            (Link::Postgres(_), Err(error @ StoreError::Unavailable { .. })) => Err(error),
            (Link::Postgres(mut link), done) => {
                if link.in_transaction {
                    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
                    self.bounded(self.simple(&mut link, end)).await?;
                }
                link.finished = true;
                done
            }
        }
    }

    /// What to give the caller; `None` after an outage that may have passed: try again. What was
    /// under way when the connection broke may have happened, so work says itself how it is
    /// repeated.
    pub async fn settle<T>(
        &mut self,
        done: Result<T, StoreError>,
    ) -> Option<Result<T, StoreError>> {
        let Backend::Postgres { trust, patience, .. } = self.backend else { return Some(done) };
        let Err(StoreError::Unavailable { outage, source, .. }) = &done else {
            trust.lost.store(false, Ordering::Relaxed);
            return Some(done);
        };
        if matches!(outage, Outage::Unreachable | Outage::Restarting | Outage::ReadOnly) {
            trust.lose();
        }
        let since = *self.first_failure.get_or_insert_with(|| {
            tracing::warn!(action = self.action, %outage, error = %source, "waiting for the database");
            Instant::now()
        });
        let patience = match trust.is_lost() {
            true => PATIENCE_LOST.min(*patience),
            false => *patience,
        };
        if since.elapsed() + self.wait > patience {
            trust.lost.store(true, Ordering::Relaxed);
            return Some(done);
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(WAIT_MAX);
        None
    }
}

// === impl Link ===

impl Link {
    pub fn connection(&mut self) -> Connection<'_> {
        match self {
            Link::SqliteRead(connection) => Connection::Sqlite(connection),
            Link::SqliteWrite(transaction) => Connection::Sqlite(transaction),
            Link::Postgres(link) => Connection::Postgres(&mut link.connection),
        }
    }
}

impl Drop for PostgresLink {
    fn drop(&mut self) {
        if !self.finished {
            self.connection.close_on_drop();
        }
    }
}

// === impl Trust ===

impl Trust {
    pub fn new() -> Self {
        Self { born: Instant::now(), outage_at_ms: Arc::default(), lost: Arc::default() }
    }

    /// Every connection that exists now may be broken, or lead to a server that is not the one.
    fn lose(&self) {
        let now_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.outage_at_ms.fetch_max(now_ms, Ordering::Relaxed);
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether a connection of that age was made after the last outage.
    pub fn has(&self, age: Duration) -> bool {
        let outage_at = Duration::from_millis(self.outage_at_ms.load(Ordering::Relaxed));
        outage_at.is_zero() || self.born.elapsed().saturating_sub(age) > outage_at
    }
}
