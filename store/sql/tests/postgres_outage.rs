//! PostgreSQL goes away in every way it can, and comes back: nothing acknowledged is lost, nothing
//! is applied twice, and what does not come back is said.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use store_api::{LogEvent, Outage, Store, StoreError};
use store_sql::{OpenError, PostgresOptions, SqlStore};
use testkit::{Ending, Postgres, PostgresSettings};

use support::{Owned, Proxy, Writers, at_port, options};

const CALLS_BETWEEN: usize = 40;

async fn open(options: &PostgresOptions) -> SqlStore {
    SqlStore::open_postgres(options).await.expect("open the journal")
}

#[track_caller]
fn assert_outage<T: std::fmt::Debug>(result: Result<T, StoreError>, expected: &[Outage]) {
    match result {
        Err(StoreError::Unavailable { outage, .. }) if expected.contains(&outage) => {}
        other => panic!("{expected:?} expected, was {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_loses_and_doubles_nothing() {
    let test = "a_restart_in_the_middle_loses_and_doubles_nothing";
    let Some(mut server) = Postgres::start(test) else { return };
    let store = open(&options(&server)).await;
    let writers = Writers::start(&store).await;
    for ending in [Ending::Kill, Ending::Immediate, Ending::Fast] {
        writers.progress(CALLS_BETWEEN).await;
        server.end(ending);
        server.start_again();
    }
    writers.progress(CALLS_BETWEEN).await;
    writers.verify(&open(&options(&server)).await).await;
}

/// The commit went through and its answer did not: repeated, it must be found and not done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_answer_was_lost_is_applied_once() {
    let test = "a_batch_whose_answer_was_lost_is_applied_once";
    let Some(server) = Postgres::start(test) else { return };
    let proxy = Proxy::to(server.port()).await;
    let store = open(&at_port(&server, proxy.port)).await;
    let owned = Owned::new(&store, "session_1").await;
    for round in 0..5 {
        proxy.lose_the_next_answer();
        owned.note(&format!("round {round}")).await.expect("apply");
        assert!(proxy.has_lost_an_answer());
        // Of a call that was received already, a repetition would be refused.
        proxy.lose_the_next_answer();
        owned.write_call(1).await.expect("apply");
        assert!(proxy.has_lost_an_answer());
    }
    let log = owned.log(&store).await;
    let notes: Vec<_> =
        log.iter().filter(|event| matches!(event, LogEvent::Warning { .. })).collect();
    assert_eq!(notes.len(), 5, "{notes:?}");
    assert_eq!(log.len(), 5 + 5 * 3);
    // What the keys are kept for is over after a while.
    assert_eq!(server.sql("SELECT count(*) FROM journal.batches"), "15");
    server.sql("UPDATE journal.batches SET at = 0");
    store.prune(store.now().await.expect("read clock")).await.expect("prune");
    assert_eq!(server.sql("SELECT count(*) FROM journal.batches"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_synchronous_standby_loses_nothing() {
    let test = "a_failover_to_a_synchronous_standby_loses_nothing";
    let Some(mut primary) = Postgres::start(test) else { return };
    let standby = primary.synchronous_standby();
    let proxy = Proxy::to(primary.port()).await;
    let store = open(&at_port(&primary, proxy.port)).await;
    let writers = Writers::start(&store).await;
    writers.progress(CALLS_BETWEEN).await;
    primary.end(Ending::Kill);
    // The address leads to the standby before that takes writes: it must not be used before.
    proxy.lead_to(standby.port());
    standby.promote();
    writers.progress(CALLS_BETWEEN).await;
    writers.verify(&open(&options(&standby)).await).await;
}

/// No farewell, no reset: the kernel would wait for a quarter of an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent_is_left() {
    let Some(server) = Postgres::start("a_server_that_falls_silent_is_left") else { return };
    let proxy = Proxy::to(server.port()).await;
    let store = open(&at_port(&server, proxy.port)).await;
    let owned = Owned::new(&store, "session_1").await;
    proxy.silence_connections();
    let began = Instant::now();
    owned.note("after the silence").await.expect("apply");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(owned.log(&store).await.len(), 1);
}

/// Whoever must let go of its sessions is told, and then told quickly; and all goes on when the
/// server is back.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_anybody_waits_is_said() {
    let test = "an_outage_longer_than_anybody_waits_is_said";
    let Some(mut server) = Postgres::start(test) else { return };
    let patience = Duration::from_millis(1_500);
    let store = open(&PostgresOptions { patience, ..options(&server) }).await;
    let owned = Owned::new(&store, "session_1").await;
    owned.note("before").await.expect("apply");
    server.end(Ending::Fast);
    let away = [Outage::Unreachable, Outage::Restarting, Outage::Slow];
    assert_outage(owned.note("lost").await, &away);
    assert_outage(store.session(&owned.session).await, &away);
    server.start_again();
    owned.note("after").await.expect("apply");
    let log = owned.log(&store).await;
    let expected = ["before", "after"].map(|text| LogEvent::Warning { text: text.into() });
    assert_eq!(log, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_writes_is_waited_for() {
    let test = "a_server_that_takes_no_writes_is_waited_for";
    let Some(server) = Postgres::start(test) else { return };
    let store = open(&options(&server)).await;
    let hasty = PostgresOptions { patience: Duration::from_millis(300), ..options(&server) };
    let hasty_store = open(&hasty).await;
    let owned = Owned::new(&store, "session_1").await;
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.reload();
    let hasty_one = Owned { store: hasty_store, session: owned.session.clone(), ..owned };
    let until = Instant::now() + Duration::from_secs(10);
    let refused = loop {
        // The servers' processes hear of it a little later.
        match hasty_one.note("early").await {
            Ok(()) => assert!(Instant::now() < until, "the setting does not arrive"),
            refused => break refused,
        }
    };
    assert_outage(refused, &[Outage::ReadOnly]);
    // What is there can be read all the same.
    assert!(store.session(&owned.session).await.expect("read session").is_some());
    let error = SqlStore::open_postgres(&hasty).await.expect_err("it takes no writes");
    let read_only = matches!(error, OpenError::Unavailable { outage: Outage::ReadOnly, .. });
    assert!(read_only, "{error:?}");

    let patient = tokio::spawn(async move {
        owned.note("late").await.expect("apply");
        owned
    });
    server.sql("ALTER SYSTEM RESET default_transaction_read_only");
    server.reload();
    let owned = patient.await.expect("the outage is ridden out");
    let late = LogEvent::Warning { text: "late".into() };
    assert_eq!(owned.log(&store).await.iter().filter(|event| **event == late).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_not_opened() {
    let Some(primary) = Postgres::start("a_standby_is_not_opened") else { return };
    open(&options(&primary)).await.close().await;
    let standby = primary.synchronous_standby();
    let hasty = PostgresOptions { patience: Duration::ZERO, ..options(&standby) };
    let error = SqlStore::open_postgres(&hasty).await.expect_err("a standby");
    let read_only = matches!(error, OpenError::Unavailable { outage: Outage::ReadOnly, .. });
    assert!(read_only && error.to_string().contains("standby"), "{error:?}");
}

/// The tables are on a small disk of their own, so that it is their disk that fills up.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_survived() {
    let test = "a_full_disk_is_said_and_survived";
    let Some(server) = Postgres::start(test) else { return };
    let Some(disk) = server.keep_tables_on_a_small_disk(test, 24) else { return };
    // Something to make room with later.
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![0; 12 << 20]).expect("write ballast");
    let patience = Duration::from_millis(500);
    let store = open(&PostgresOptions { patience, ..options(&server) }).await;
    let owned = Owned::new(&store, "session_1").await;
    let mut acknowledged = vec![owned.write_call(1).await.expect("apply")];
    let refused = loop {
        match owned.write_call(8_000).await {
            Ok(id) => acknowledged.push(id),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1_000, "the disk takes everything");
    };
    assert_outage(Err::<(), _>(refused), &[Outage::DiskFull]);
    assert_outage(owned.write_call(8_000).await, &[Outage::DiskFull]);

    fs::remove_file(&ballast).expect("make room");
    acknowledged.push(owned.write_call(1).await.expect("there is room again"));
    let records = store.calls(&owned.session, None, 1_000).await.expect("list calls");
    let finished: Vec<_> = records
        .iter()
        .filter(|record| matches!(record.state, store_api::CallState::Finished { .. }))
        .map(|record| record.call.id.clone())
        .collect();
    assert_eq!(finished, acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_connection_left_is_said() {
    let test = "a_server_without_a_connection_left_is_said";
    let config = "max_connections = 4\nsuperuser_reserved_connections = 0\n\
                  max_wal_senders = 0\n";
    let settings = PostgresSettings { config: config.into(), ..PostgresSettings::default() };
    let Some(server) = Postgres::start_with(test, settings) else { return };
    let others = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(server.port())
        .username(server.user())
        .database("postgres");
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(others.connect().await.expect("connect"));
    }
    let hasty = PostgresOptions { patience: Duration::ZERO, ..options(&server) };
    let error = SqlStore::open_postgres(&hasty).await.expect_err("no connection is left");
    let overloaded = matches!(error, OpenError::Unavailable { outage: Outage::Overloaded, .. });
    assert!(overloaded, "{error:?}");
    drop(held);
    open(&options(&server)).await.close().await;
}
