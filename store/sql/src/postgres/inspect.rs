//! What a server is like, for `doctor`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sqlx::{Connection, PgConnection, Row};

use super::open::{connect, version};
use super::{PostgresOptions, quoted};
use crate::OpenError;

/// Round trips that are measured; the median of them is told.
const PINGS: usize = 9;

#[derive(Clone, Debug)]
pub struct ServerFacts {
    pub version: String,
    /// Whether what it commits is synced to its disk.
    pub fsync: bool,
    pub full_page_writes: bool,
    pub synchronous_commit: String,
    /// It is a standby.
    pub in_recovery: bool,
    /// Transactions take no writes unless they say otherwise.
    pub read_only: bool,
    pub encoding: String,
    pub max_connections: u32,
    pub encrypted: bool,
    pub round_trip: Duration,
    /// How far its clock is ahead of ours; negative when it is behind.
    pub clock_ahead_ms: i64,
    /// The schema step it holds; `None` where there is no journal yet.
    pub schema_step: Option<i64>,
}

const FACTS: &str = "\
    SELECT current_setting('fsync') = 'on' AS fsync, \
    current_setting('full_page_writes') = 'on' AS full_page_writes, \
    current_setting('synchronous_commit') AS synchronous_commit, \
    current_setting('transaction_read_only') = 'on' AS read_only, \
    current_setting('server_encoding') AS encoding, \
    CAST(current_setting('max_connections') AS BIGINT) AS max_connections, \
    pg_is_in_recovery() AS in_recovery, \
    COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), FALSE) AS encrypted, \
    to_regclass($1) IS NOT NULL AS has_journal";

/// Looks at the server and changes nothing. One that is down is not waited for.
pub async fn inspect(options: &PostgresOptions) -> Result<ServerFacts, OpenError> {
    let mut connection = connect(options).await?;
    let version = connection.server_version_num().map(version).unwrap_or_default();
    let facts = look(options, &mut connection, version).await;
    let failed = |source: sqlx::Error| OpenError::Connect {
        place: options.to_string(),
        source: Box::new(source),
    };
    let facts = facts.map_err(failed)?;
    connection.close().await.map_err(failed)?;
    Ok(facts)
}

async fn look(
    options: &PostgresOptions,
    connection: &mut PgConnection,
    version: String,
) -> sqlx::Result<ServerFacts> {
    let migrations = format!("{}._sqlx_migrations", quoted(&options.schema));
    let row = sqlx::query(FACTS).bind(&migrations).fetch_one(&mut *connection).await?;
    let schema_step = match row.try_get("has_journal")? {
        true => schema_step(options, connection).await?,
        false => None,
    };
    let (round_trip, clock_ahead_ms) = times(connection).await?;
    Ok(ServerFacts {
        version,
        fsync: row.try_get("fsync")?,
        full_page_writes: row.try_get("full_page_writes")?,
        synchronous_commit: row.try_get("synchronous_commit")?,
        in_recovery: row.try_get("in_recovery")?,
        read_only: row.try_get("read_only")?,
        encoding: row.try_get("encoding")?,
        max_connections: u32::try_from(row.try_get::<i64, _>("max_connections")?).unwrap_or(0),
        encrypted: row.try_get("encrypted")?,
        round_trip,
        clock_ahead_ms,
        schema_step,
    })
}

async fn schema_step(
    options: &PostgresOptions,
    connection: &mut PgConnection,
) -> sqlx::Result<Option<i64>> {
    sqlx::query("SELECT set_config('search_path', $1, false)")
        .bind(quoted(&options.schema))
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query("SELECT MAX(version) AS step FROM _sqlx_migrations WHERE success")
        .fetch_one(connection)
        .await?;
    row.try_get("step")
}

/// The median round trip, and the clock of the one that took the shortest.
async fn times(connection: &mut PgConnection) -> sqlx::Result<(Duration, i64)> {
    let mut pings = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        let row = sqlx::query(
            "SELECT CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp()) * 1000) AS BIGINT) AS now",
        )
        .fetch_one(&mut *connection)
        .await?;
        let took = began.elapsed();
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let half_ago = ours.saturating_sub(took / 2);
        let theirs: i64 = row.try_get("now")?;
        let ours_ms = i64::try_from(half_ago.as_millis()).unwrap_or(i64::MAX);
        pings.push((took, theirs.saturating_sub(ours_ms)));
    }
    pings.sort();
    let ahead = pings.first().map_or(0, |(_, ahead)| *ahead);
    let median = pings.get(PINGS / 2).map_or(Duration::ZERO, |(took, _)| *took);
    Ok((median, ahead))
}
