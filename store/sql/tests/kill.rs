//! A process that writes is killed with SIGKILL; everything that it was told is written is there.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use base_types::{CallId, SessionId};
use store_api::{CallEnd, CallState, Change, NewCall, NewWork, Store};
use store_sql::SqlStore;
use testkit::Postgres;

mod support;

/// Set in the child, to the file it writes to, or to the port of its server.
const CHILD: &str = "STORE_SQL_TEST_JOURNAL";
const SESSION: &str = "session_1";
/// Kills at different moments of a write.
const KILLS: usize = 5;
const ACKNOWLEDGED_BEFORE_KILL: usize = 20;

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_writer_is_killed() {
    if let Ok(journal) = std::env::var(CHILD) {
        return write_for_ever(&journal).await;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let journal = folder.path().join("journal.db");
    kill_and_verify(journal.to_str().expect("text")).await;
}

/// As the writer's own death, and what its server makes of it.
#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_writer_on_postgres_is_killed() {
    let test = "nothing_acknowledged_is_lost_when_the_writer_on_postgres_is_killed";
    let Some(server) = Postgres::start(test) else { return };
    kill_and_verify(&server.port().to_string()).await;
}

async fn kill_and_verify(journal: &str) {
    let mut acknowledged = Vec::new();
    for kill in 0..KILLS {
        acknowledged.extend(run_and_kill(journal, ACKNOWLEDGED_BEFORE_KILL + 3 * kill));
        verify(journal, &acknowledged).await;
    }
    assert!(acknowledged.len() >= KILLS * ACKNOWLEDGED_BEFORE_KILL);
}

async fn open(journal: &str) -> SqlStore {
    match journal.parse() {
        Ok(port) => {
            let opened = SqlStore::open_postgres(&support::of_server(port)).await;
            opened.expect("open the journal")
        }
        Err(_) => SqlStore::open_sqlite(Path::new(journal)).await.expect("open the journal"),
    }
}

/// Starts this test again as the writer, and kills it once it has acknowledged `count` calls.
/// Returns all that it acknowledged, those on their way at the kill included.
fn run_and_kill(journal: &str, count: usize) -> Vec<CallId> {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "nothing_acknowledged_is_lost_when_the_writer_is_killed", "--nocapture"])
        .env(CHILD, journal)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the writer");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut acknowledged = Vec::new();
    for line in lines.map_while(Result::ok) {
        // The test harness prints lines of its own, and the kill may cut the last one short.
        acknowledged.extend(line.strip_prefix("acknowledged ").and_then(CallId::parse));
        if acknowledged.len() == count {
            child.kill().expect("kill the writer");
        }
    }
    let status = child.wait().expect("wait for the writer");
    assert!(!status.success(), "the writer ended by itself");
    acknowledged
}

async fn verify(journal: &str, acknowledged: &[CallId]) {
    let store = open(journal).await;
    for id in acknowledged {
        let record = store.call(id).await.expect("read call");
        let record = record.unwrap_or_else(|| panic!("{id} was acknowledged and is lost"));
        let CallState::Finished { end, .. } = record.state else { panic!("{:?}", record.state) };
        assert_eq!(end.body, id.as_str().as_bytes());
    }
    // What was not acknowledged is there whole or not at all.
    let mut after = None;
    let mut last = 0;
    loop {
        let page = store.calls(&SESSION.into(), after, 100).await.expect("list calls");
        let Some(record) = page.last() else { break };
        after = Some(record.seq);
        assert!(page.iter().all(|record| record.state != CallState::Received), "half a batch");
        assert!(page[0].seq > last);
        last = record.seq;
    }
    store.close().await;
}

/// Two transactions a call, as a session makes them; a line on stdout is the acknowledgement.
async fn write_for_ever(journal: &str) {
    let store = open(journal).await;
    let session = SessionId::new(SESSION);
    let work = NewWork {
        id: "work_1".into(),
        environment: "env_1".into(),
        session: session.clone(),
        node: "node-1".into(),
        token: None,
    };
    store.claim_work(&work).await.expect("claim work");
    let generation = store.take_session(&session, &work.node).await.expect("take session");
    loop {
        let id = CallId::generate();
        let call = NewCall {
            id: id.clone(),
            tool_use: id.as_str().into(),
            tool: "bash".into(),
            custom: false,
            thread: None,
            input: serde_json::Value::Null,
        };
        let start = Change::CallStarted { call: id.clone(), epoch: None };
        let end = CallEnd {
            body: id.as_str().as_bytes().to_vec(),
            is_error: false,
            summary: String::new(),
            exit_code: None,
        };
        let received = Change::CallReceived(Box::new(call));
        store.apply(&session, generation, &[received, start]).await.expect("apply");
        let finish = Change::CallFinished { call: id.clone(), end };
        store.apply(&session, generation, &[finish]).await.expect("apply");
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "acknowledged {id}").expect("acknowledge");
        stdout.flush().expect("acknowledge");
    }
}
