//! What opening a journal does to the file, and what it refuses.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base_types::{Chain, SessionId};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Row};
use store_api::{Change, LogEvent, NewWork, SessionFilter, Store, StoreError};
use store_sql::{OpenError, SqlStore};

async fn behind_its_back(file: &Path, statement: &'static str) {
    let mut connection = connect(file).await;
    sqlx::query(statement).execute(&mut connection).await.expect("run statement");
    connection.close().await.expect("close");
}

async fn connect(file: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(file).connect().await.expect("connect")
}

/// A journal with one session in it, closed.
async fn written(file: &Path) {
    let store = SqlStore::open_sqlite(file).await.expect("open the journal");
    let work = NewWork {
        id: "work_1".into(),
        environment: "env_1".into(),
        session: "session_1".into(),
        node: "node-1".into(),
        token: None,
    };
    store.claim_work(&work).await.expect("claim work");
    store.close().await;
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).expect("stat").permissions().mode() & 0o777
}

#[tokio::test]
async fn only_the_owner_can_read_it() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    let store = SqlStore::open_sqlite(&file).await.expect("open the journal");
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}");
    }
    store.close().await;

    fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("chmod");
    SqlStore::open_sqlite(&file).await.expect("open the journal").close().await;
    assert_eq!(mode(&file), 0o600);
}

/// What was written is in the write-ahead log's file when `apply` returns.
#[tokio::test]
async fn it_is_a_write_ahead_log() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    written(&file).await;
    let store = SqlStore::open_sqlite(&file).await.expect("open the journal");
    let generation = store.take_session(&"session_1".into(), &"node-1".into()).await;
    let note = Change::Note(LogEvent::Warning { text: "a note to look for".into() });
    let generation = generation.expect("take session");
    store.apply(&"session_1".into(), generation, &[note]).await.expect("apply");
    let wal = fs::read(folder.path().join("journal.db-wal")).expect("read the write-ahead log");
    let text = b"a note to look for";
    assert!(wal.windows(text.len()).any(|window| window == text));
    let mode = sqlx::query("PRAGMA journal_mode").fetch_one(&mut connect(&file).await).await;
    assert_eq!(mode.expect("read pragma").get::<String, _>(0), "wal");
}

/// An asynchronous standby that takes over may not have the last take-overs. The next one must not
/// give out a generation that a node holds already: both would write.
#[tokio::test]
async fn a_generation_is_not_given_out_again_after_a_failover() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    written(&file).await;
    let store = SqlStore::open_sqlite(&file).await.expect("open the journal");
    let session = SessionId::from("session_1");
    let first = store.take_session(&session, &"node-1".into()).await.expect("take session");
    let as_it_was = "CREATE TABLE was AS SELECT owner, generation FROM sessions";
    behind_its_back(&file, as_it_was).await;
    let lost = store.take_session(&session, &"node-1".into()).await.expect("take session");
    let back = "UPDATE sessions SET (owner, generation) = (SELECT owner, generation FROM was)";
    behind_its_back(&file, back).await;
    // The clock has gone on by more than its resolution, as it has in every failover.
    let then = store.now().await.expect("clock");
    while store.now().await.expect("clock") == then {}
    let next = store.take_session(&session, &"node-2".into()).await.expect("take session");
    assert!(first < lost && lost < next, "{first} {lost} {next}");
    let note = Change::Note(LogEvent::Warning { text: "of the one who was lost".into() });
    let refused = store.apply(&session, lost, &[note]).await;
    assert!(matches!(refused, Err(StoreError::NotOwner { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_later_versions_journal_is_refused() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    written(&file).await;
    behind_its_back(
        &file,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (999, 'from the future', TRUE, x'00', 0)",
    )
    .await;
    let before = fs::read(&file).expect("read the file");
    let error = SqlStore::open_sqlite(&file).await.expect_err("a later schema");
    assert!(matches!(error, OpenError::Newer { found: 999, known: 2, .. }), "{error:?}");
    let text = Chain(&error).to_string();
    assert!(text.contains("later version") && text.contains("run that version"), "{text}");
    assert_eq!(fs::read(&file).expect("read the file"), before, "it was touched");
}

#[tokio::test]
async fn another_schema_of_the_same_number_is_refused() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    written(&file).await;
    behind_its_back(&file, "UPDATE _sqlx_migrations SET checksum = x'00'").await;
    let error = SqlStore::open_sqlite(&file).await.expect_err("a foreign schema");
    assert!(matches!(error, OpenError::Foreign { step: 1, .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_not_a_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    let text = "this is a letter, not a database. ".repeat(100);
    fs::write(&file, &text).expect("write");
    let error = SqlStore::open_sqlite(&file).await.expect_err("not a database");
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error:?}");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
    assert_eq!(fs::read_to_string(&file).expect("read the file"), text);
}

/// A page in the middle overwritten: whoever reads it gets an error, never an empty answer.
#[tokio::test]
async fn a_damaged_page_is_an_error() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    written(&file).await;
    let mut bytes = fs::read(&file).expect("read the file");
    // The first page keeps the header and the schema; everything behind it is noise.
    bytes[4096..].fill(0xa5);
    fs::write(&file, &bytes).expect("write");
    match SqlStore::open_sqlite(&file).await {
        Err(error) => assert!(matches!(error, OpenError::NotADatabase { .. }), "{error:?}"),
        Ok(store) => {
            let filter = SessionFilter { open_only: false, owner: None, limit: 10 };
            let result = store.sessions(&filter).await;
            assert!(matches!(result, Err(StoreError::Database { .. })), "{result:?}");
        }
    }
}

#[tokio::test]
async fn a_folder_that_takes_no_file_is_named() {
    // Not even root can make a file in either.
    for folder in ["/proc/self", "/no/such/folder"] {
        let file = Path::new(folder).join("journal.db");
        let error = SqlStore::open_sqlite(&file).await.expect_err("no file can be there");
        assert!(matches!(error, OpenError::File { .. }), "{error:?}");
        assert!(error.to_string().contains(folder), "{error}");
    }
}

/// Batches that wait for the writer are committed together. One whose write fails costs the others
/// nothing, and each is told its own.
#[tokio::test]
async fn a_write_that_fails_costs_its_neighbours_nothing() {
    const SESSIONS: usize = 24;
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    written(&file).await;
    let store = SqlStore::open_sqlite(&file).await.expect("open the journal");
    behind_its_back(
        &file,
        "CREATE TRIGGER full BEFORE INSERT ON log WHEN new.event LIKE '%refuse%' \
         BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    .await;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..SESSIONS {
        let session = SessionId::new(format!("session_{number}"));
        let work = NewWork {
            id: session.as_str().into(),
            environment: "env_1".into(),
            session: session.clone(),
            node: "node-1".into(),
            token: None,
        };
        store.claim_work(&work).await.expect("claim work");
        let generation = store.take_session(&session, &work.node).await.expect("take session");
        let store = store.clone();
        writers.spawn(async move {
            let text = if number % 8 == 3 { "refuse" } else { "keep" };
            let note = Change::Note(LogEvent::Warning { text: text.into() });
            let done = store.apply(&session, generation, &[note]).await;
            assert_eq!(done.is_err(), text == "refuse", "{done:?}");
            let log = store.log(&session, None, 10).await.expect("read log");
            assert_eq!(log.len(), usize::from(text == "keep"));
        });
    }
    writers.join_all().await;
    store.close().await;
}

/// Who gives up waiting is not written for later, when it may have gone on to something else; and
/// those who waited behind it are served all the same.
#[tokio::test]
async fn a_batch_that_nobody_waits_for_is_whole_or_not_there() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    written(&file).await;
    let store = SqlStore::open_sqlite(&file).await.expect("open the journal");
    let session = SessionId::new("session_1");
    let generation = store.take_session(&session, &"node-1".into()).await.expect("take session");
    let pair = |text: &str| {
        let note = || Change::Note(LogEvent::Warning { text: text.into() });
        [note(), note()]
    };
    for round in 0..40_u64 {
        let mut writers = tokio::task::JoinSet::new();
        for number in 0..6_u64 {
            let (store, session) = (store.clone(), session.clone());
            let changes = pair(&format!("{round} {number}"));
            writers.spawn(async move {
                let apply = store.apply(&session, generation, &changes);
                // Some give up at every stage: waiting, being written, committed.
                let patience = std::time::Duration::from_micros(round * 40 * (number % 2));
                match number % 2 {
                    1 => tokio::time::timeout(patience, apply).await.is_ok_and(|done| done.is_ok()),
                    _ => apply.await.is_ok(),
                }
            });
        }
        let answers = writers.join_all().await;
        assert!(answers.iter().filter(|done| **done).count() >= 3, "who waits is served");
    }
    let log = store.log(&session, None, 1_000).await.expect("read log");
    let mut seen = std::collections::BTreeSet::new();
    for both in log.chunks(2) {
        assert_eq!(both[0].event, both[1].event, "half a batch");
        assert!(seen.insert(format!("{:?}", both[0].event)), "{:?} twice", both[0].event);
    }
    store.close().await;
}

#[tokio::test]
async fn a_disk_that_refuses_a_write_is_an_error_and_nothing_is_half_written() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("journal.db");
    written(&file).await;
    let store = SqlStore::open_sqlite(&file).await.expect("open the journal");
    let session = "session_1".into();
    let generation = store.take_session(&session, &"node-1".into()).await.expect("take session");
    let note = |text: &str| Change::Note(LogEvent::Warning { text: text.into() });
    store.apply(&session, generation, &[note("before")]).await.expect("apply");
    behind_its_back(
        &file,
        "CREATE TRIGGER full BEFORE INSERT ON log WHEN new.event LIKE '%refuse%' \
         BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    .await;
    let result = store.apply(&session, generation, &[note("one"), note("refuse")]).await;
    let Err(error @ StoreError::Database { .. }) = result else { panic!("{result:?}") };
    assert!(Chain(&error).to_string().contains("disk full"), "{}", Chain(&error));
    store.apply(&session, generation, &[note("after")]).await.expect("apply");
    let log = store.log(&session, None, 10).await.expect("read log");
    let events: Vec<_> = log.into_iter().map(|entry| entry.event).collect();
    let expected = ["before", "after"].map(|text| LogEvent::Warning { text: text.into() });
    assert_eq!(events, expected);
}
