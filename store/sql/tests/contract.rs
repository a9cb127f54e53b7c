//! The store contract on SQLite.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use store_api::Store;
use store_api::contract::{Damage, Place};
use store_sql::SqlStore;

struct SqlitePlace {
    folder: tempfile::TempDir,
}

impl SqlitePlace {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("make a folder") }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("journal.db")
    }
}

#[async_trait]
impl Place for SqlitePlace {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(SqlStore::open_sqlite(&self.file()).await.expect("open the journal"))
    }

    async fn damage(&self, damage: Damage) {
        let statement = match damage {
            Damage::SessionPhase => "UPDATE sessions SET phase = 'dreaming'",
            Damage::SessionIdentity => "UPDATE sessions SET identity = '{\"tenant\":'",
            Damage::WorkPhase => "UPDATE work SET phase = 'pondering'",
            Damage::CallState => "UPDATE calls SET state = 'pondering'",
            Damage::CallDocument => "UPDATE calls SET call = '[]'",
            Damage::LogEvent => "UPDATE log SET event = '{\"event\":\"from the future\"}'",
        };
        let options = SqliteConnectOptions::new().filename(self.file());
        let mut connection = options.connect().await.expect("connect behind the store's back");
        let done = sqlx::query(statement).execute(&mut connection).await.expect("spoil rows");
        assert!(done.rows_affected() > 0, "{damage:?} found nothing to spoil");
        connection.close().await.expect("close");
    }
}

store_api::store_contract!(SqlitePlace::new());
