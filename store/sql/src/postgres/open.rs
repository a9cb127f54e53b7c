//! Opening a journal in PostgreSQL: what the server must be, the schema, the pool.

use std::time::{Duration, Instant};

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};
use store_api::Outage;

use super::{PostgresOptions, quoted};
use crate::SqlStore;
use crate::backend::{Backend, Trust};
use crate::failure;
use crate::open::{OpenError, schema_error};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The oldest server that the statements are tried on the likes of, and that its makers still
/// knew when this was written.
pub(super) const VERSION_MIN: u32 = 13;

/// To connect and to be let in.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Another node's migration is waited for this long.
const MIGRATE_MAX: Duration = Duration::from_secs(120);

/// How long work waits for a connection of the pool. Work that gets none is tried again.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);

/// Between attempts to open a journal whose server is down.
const OPEN_WAIT: Duration = Duration::from_millis(500);

/// What the server ends by itself, so that no lock outlives its holder's interest in it. In its
/// own unit, milliseconds. All are shorter than an attempt.
const STATEMENT_TIMEOUT: &str = "8000";
const LOCK_TIMEOUT: &str = "7000";
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "9000";

/// Of each connection. A commit is on the disk when it is answered, whatever the server's default;
/// a stronger one stays.
const SETTINGS: &str = "\
    SELECT set_config('search_path', $1, false), \
    set_config('synchronous_commit', \
        CASE WHEN current_setting('synchronous_commit') = 'remote_apply' \
             THEN 'remote_apply' ELSE 'on' END, false), \
    set_config('statement_timeout', $2, false), \
    set_config('lock_timeout', $3, false), \
    set_config('idle_in_transaction_session_timeout', $4, false), \
    pg_is_in_recovery() AS in_recovery";

impl SqlStore {
    /// Opens the journal at `options`, makes its schema if it does not exist, and brings it up to
    /// date. A server that is down or starting is waited for.
    pub async fn open_postgres(options: &PostgresOptions) -> Result<SqlStore, OpenError> {
        let began = Instant::now();
        loop {
            match prepare(options).await {
                Ok(()) => return Ok(SqlStore { backend: pool(options).await? }),
                Err(OpenError::Unavailable { outage, source, .. })
                    if began.elapsed() + OPEN_WAIT < options.patience =>
                {
                    tracing::warn!(place = %options, %outage, error = %source, "waiting for the database");
                    tokio::time::sleep(OPEN_WAIT).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Removes the schema with all that is in it: what an installation that was only tried leaves.
pub async fn drop_schema(options: &PostgresOptions) -> Result<(), OpenError> {
    let mut connection = connect(options).await?;
    let statement = format!("DROP SCHEMA IF EXISTS {} CASCADE", quoted(&options.schema));
    connection
        .execute(AssertSqlSafe(statement))
        .await
        .map_err(|error| open_error(options, error))?;
    connection.close().await.map_err(|error| open_error(options, error))
}

/// One connection to a server that is new enough.
pub(super) async fn connect(options: &PostgresOptions) -> Result<PgConnection, OpenError> {
    let connect_options = options.connect_options();
    let connecting = tokio::time::timeout(CONNECT_MAX, connect_options.connect()).await;
    let connection = match connecting {
        Ok(connected) => connected.map_err(|error| open_error(options, error))?,
        Err(elapsed) => {
            let (place, source) = (options.to_string(), Box::new(elapsed));
            return Err(OpenError::Unavailable { place, outage: Outage::Slow, source });
        }
    };
    match connection.server_version_num() {
        Some(number) if number / 10_000 >= VERSION_MIN => Ok(connection),
        number => Err(OpenError::TooOld {
            place: options.to_string(),
            found: number.map_or("of an unknown version".to_owned(), version),
            needed: VERSION_MIN,
        }),
    }
}

/// 150017 is 15.17; before version 10 there were three parts.
pub(super) fn version(number: u32) -> String {
    match number / 10_000 {
        major @ 10.. => format!("{major}.{}", number % 10_000),
        major => format!("{major}.{}.{}", number / 100 % 100, number % 100),
    }
}

async fn prepare(options: &PostgresOptions) -> Result<(), OpenError> {
    let mut connection = connect(options).await?;
    let failed = |error| open_error(options, error);
    check_server(options, &mut connection).await?;
    let path = quoted(&options.schema);
    sqlx::query("SELECT set_config('search_path', $1, false)")
        .bind(&path)
        .execute(&mut connection)
        .await
        .map_err(failed)?;
    match tokio::time::timeout(MIGRATE_MAX, migrate(options, &mut connection)).await {
        Ok(migrated) => migrated.map_err(|error| migrate_error(options, error))?,
        Err(elapsed) => {
            let (place, source) = (options.to_string(), Box::new(elapsed));
            return Err(OpenError::Migrate { place, source });
        }
    }
    connection.close().await.map_err(failed)
}

async fn check_server(
    options: &PostgresOptions,
    connection: &mut PgConnection,
) -> Result<(), OpenError> {
    let failed = |error| open_error(options, error);
    let row = sqlx::query(
        "SELECT pg_is_in_recovery() AS in_recovery, current_setting('server_encoding') AS encoding, \
         current_setting('fsync') AS fsync",
    )
    .fetch_one(connection)
    .await
    .map_err(failed)?;
    let place = options.to_string();
    if row.try_get("in_recovery").map_err(failed)? {
        let source = "it is a standby".into();
        return Err(OpenError::Unavailable { place, outage: Outage::ReadOnly, source });
    }
    let encoding: String = row.try_get("encoding").map_err(failed)?;
    if encoding != "UTF8" {
        return Err(OpenError::Encoding { place, encoding });
    }
    let fsync: String = row.try_get("fsync").map_err(failed)?;
    if fsync != "on" {
        tracing::warn!(place = %options,
            "the server does not sync what it commits (fsync is off): a power cut may damage the journal");
    }
    Ok(())
}

/// Nodes that start for the first time at the same moment wait for each other.
async fn migrate(
    options: &PostgresOptions,
    connection: &mut PgConnection,
) -> Result<(), MigrateError> {
    connection.lock().await?;
    let known = sqlx::query("SELECT 1 FROM pg_namespace WHERE nspname = $1")
        .bind(&options.schema)
        .fetch_optional(&mut *connection)
        .await?;
    if known.is_none() {
        // Not `IF NOT EXISTS`: that asks for the right to make one even where it exists.
        let statement = format!("CREATE SCHEMA {}", quoted(&options.schema));
        connection.execute(AssertSqlSafe(statement)).await?;
    }
    MIGRATIONS.run_direct(None, &mut *connection, false).await?;
    connection.unlock().await
}

async fn pool(options: &PostgresOptions) -> Result<Backend, OpenError> {
    let trust = Trust::new();
    let trusted = trust.clone();
    let path = quoted(&options.schema);
    let pool = PgPoolOptions::new()
        .max_connections(options.connections.max(1))
        .min_connections(1)
        .acquire_timeout(ACQUIRE_MAX)
        // A broken one is found by its use, which is repeated on another.
        .test_before_acquire(false)
        .before_acquire(move |_, connection| {
            let usable = trusted.has(connection.age);
            Box::pin(async move { Ok(usable) })
        })
        .after_connect(move |connection, _| {
            let path = path.clone();
            Box::pin(async move { settle_in(connection, &path).await })
        })
        .connect_with(options.connect_options())
        .await
        .map_err(|error| open_error(options, error))?;
    Ok(Backend::Postgres { pool, trust, patience: options.patience })
}

/// A standby would answer questions with what was true some time ago.
async fn settle_in(connection: &mut PgConnection, path: &str) -> sqlx::Result<()> {
    let row = sqlx::query(SETTINGS)
        .bind(path)
        .bind(STATEMENT_TIMEOUT)
        .bind(LOCK_TIMEOUT)
        .bind(IDLE_IN_TRANSACTION_TIMEOUT)
        .fetch_one(connection)
        .await?;
    match row.try_get("in_recovery")? {
        true => Err(sqlx::Error::Protocol("the server is a standby".into())),
        false => Ok(()),
    }
}

fn migrate_error(options: &PostgresOptions, error: MigrateError) -> OpenError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            open_error(options, error)
        }
        error => schema_error(options.to_string(), &MIGRATIONS, error),
    }
}

fn open_error(options: &PostgresOptions, error: sqlx::Error) -> OpenError {
    let place = options.to_string();
    let user = options.user.clone();
    if let Some(outage) = failure::outage(&error) {
        return OpenError::Unavailable { place, outage, source: Box::new(error) };
    }
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
    match &*code {
        // invalid_password, invalid_authorization_specification
        "28P01" | "28000" => OpenError::LoginRefused { place, user, source: Box::new(error) },
        // invalid_catalog_name
        "3D000" => OpenError::NoDatabase { place, database: options.database.clone(), user },
        // insufficient_privilege
        "42501" => {
            let schema = options.schema.clone();
            OpenError::NoRights { place, user, schema, source: Box::new(error) }
        }
        // An error of another kind would be an outage.
        _ if matches!(error, sqlx::Error::Tls(_) | sqlx::Error::Io(_)) => {
            OpenError::Insecure { place, source: Box::new(error) }
        }
        _ => OpenError::Connect { place, source: Box::new(error) },
    }
}
