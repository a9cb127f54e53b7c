//! Opening a journal in a file: the file's rights, the connections' settings, the schema.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqlitePool};

use crate::SqlStore;
use crate::backend::Backend;
use crate::failure::is_damage;
use crate::open::{OpenError, schema_error};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Readers run beside the writer (WAL); more than this only compete for two or four cores.
const READERS_MAX: u32 = 4;

/// A statement waits this long for another process's lock (`doctor`, a backup) before it fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A writer waits this long for those before it. A commit takes under a millisecond, so a queue
/// this long means that the disk stands still.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// The write-ahead log is cut back to this size after a checkpoint, so that one large result
/// does not keep its space for ever.
const WAL_BYTES_KEPT: &str = "67108864";

/// The journal holds results and sealed credentials: its owner's, and nobody else's.
const FILE_MODE: u32 = 0o600;

impl SqlStore {
    /// Opens the journal in the file at `path`, makes it if it does not exist, and brings its
    /// schema up to date. The folder must exist.
    pub async fn open_sqlite(path: &Path) -> Result<SqlStore, OpenError> {
        prepare_file(path).map_err(|source| OpenError::File { place: place(path), source })?;
        let writer = connect(path, 1).await?;
        MIGRATIONS.run(&writer).await.map_err(|error| migrate_error(path, error))?;
        let readers = connect(path, READERS_MAX).await?;
        Ok(SqlStore { backend: Backend::Sqlite { writer, readers, group: Arc::default() } })
    }
}

/// SQLite gives its side files the rights of the main one, so that one is made first.
fn prepare_file(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the journal was open to others; it is not any more");
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    // The name must survive a power cut as surely as the content does.
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// A pool of connections that sync what they commit.
///
/// On some errors, a full disk among them, SQLite takes a transaction back by itself; sqlx does
/// not notice and counts one transaction too many from then on. What that connection would commit
/// later could be a mere savepoint, and lost. So one that is still counted as in a transaction
/// when it is taken from the pool is thrown away (`tests/full_disk.rs`).
async fn connect(path: &Path, connections: u32) -> Result<SqlitePool, OpenError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("journal_size_limit", WAL_BYTES_KEPT)
        .disable_statement_logging();
    SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        // Each connection is tested when it comes back.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
        .connect_with(options)
        .await
        .map_err(|source| match is_damage(&source) {
            true => OpenError::NotADatabase { place: place(path) },
            false => OpenError::Connect { place: place(path), source: Box::new(source) },
        })
}

fn migrate_error(path: &Path, error: MigrateError) -> OpenError {
    match error {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)
            if is_damage(&source) =>
        {
            OpenError::NotADatabase { place: place(path) }
        }
        error => schema_error(place(path), &MIGRATIONS, error),
    }
}

fn place(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use sqlx::Row;

    use super::*;

    /// These settings are of each connection, so they are asked of the ones that the store uses.
    #[tokio::test]
    async fn every_connection_syncs_and_checks() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqlStore::open_sqlite(&folder.path().join("journal.db")).await.unwrap();
        const FULL: i64 = 2;
        let Backend::Sqlite { writer, readers, .. } = &store.backend else { panic!("a file") };
        for pool in [writer, readers] {
            for (pragma, expected) in [
                ("PRAGMA synchronous", FULL),
                ("PRAGMA foreign_keys", 1),
                ("PRAGMA busy_timeout", BUSY_TIMEOUT.as_millis() as i64),
            ] {
                let row = sqlx::query(pragma).fetch_one(pool).await.unwrap();
                assert_eq!(row.get::<i64, _>(0), expected, "{pragma}");
            }
        }
    }
}
