//! The store contract, on SQLite and on PostgreSQL: the same promises, the same results.

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use store_api::Store;
use store_api::contract::{Damage, Place};
use store_sql::SqlStore;
use testkit::Postgres;

use support::options;

struct SqlitePlace {
    folder: tempfile::TempDir,
}

impl SqlitePlace {
    fn new() -> Option<Self> {
        Some(Self { folder: tempfile::tempdir().expect("make a folder") })
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
        let statement = spoil(damage);
        let options = SqliteConnectOptions::new().filename(self.file());
        let mut connection = options.connect().await.expect("connect behind the store's back");
        let done = sqlx::query(statement).execute(&mut connection).await.expect("spoil rows");
        assert!(done.rows_affected() > 0, "{damage:?} found nothing to spoil");
        connection.close().await.expect("close");
    }
}

struct PostgresPlace(Postgres);

impl PostgresPlace {
    fn new() -> Option<Self> {
        Postgres::start("the store contract on PostgreSQL").map(Self)
    }
}

#[async_trait]
impl Place for PostgresPlace {
    async fn open(&self) -> Arc<dyn Store> {
        let store = SqlStore::open_postgres(&options(&self.0)).await;
        Arc::new(store.expect("open the journal"))
    }

    async fn damage(&self, damage: Damage) {
        let statement = spoil(damage).replacen("UPDATE ", "UPDATE journal.", 1);
        let rows = self.0.sql(&format!("{statement} RETURNING 1"));
        assert!(!rows.is_empty(), "{damage:?} found nothing to spoil");
    }
}

fn spoil(damage: Damage) -> &'static str {
    match damage {
        Damage::SessionPhase => "UPDATE sessions SET phase = 'dreaming'",
        Damage::SessionIdentity => "UPDATE sessions SET identity = '{\"tenant\":'",
        Damage::WorkPhase => "UPDATE work SET phase = 'pondering'",
        Damage::CallState => "UPDATE calls SET state = 'pondering'",
        Damage::CallDocument => "UPDATE calls SET call = '[]'",
        Damage::LogEvent => "UPDATE log SET event = '{\"event\":\"from the future\"}'",
    }
}

mod sqlite {
    use super::SqlitePlace;

    store_api::store_contract!(SqlitePlace::new());
}

mod postgres {
    use super::PostgresPlace;

    store_api::store_contract!(PostgresPlace::new());
}
