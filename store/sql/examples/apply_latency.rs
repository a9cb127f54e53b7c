//! How long the journal entry before every tool call takes, `received` and `started`, durably: for
//! one session alone, and for many that write at the same time.
//!
//! `cargo run --release -p store-sql --example apply_latency [FOLDER | postgres PORT USER DATABASE]`

use std::time::{Duration, Instant};

use base_types::{CallId, Generation, SessionId};
use store_api::{Change, NewCall, NewWork, Store};
use store_sql::{Encryption, Host, PATIENCE, PostgresOptions, SqlStore, drop_schema};

/// Sessions that write at the same time.
const CROWDS: [usize; 4] = [1, 8, 64, 256];
/// In all, whatever the crowd.
const RUNS: usize = 4_096;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "postgres") {
        let options = PostgresOptions {
            host: Host::Tcp("127.0.0.1".into()),
            port: arguments[1].parse().expect("a port"),
            user: arguments[2].clone(),
            database: arguments[3].clone(),
            password: None,
            encryption: Encryption::IfOffered,
            schema: "sinew_apply_latency".into(),
            connections: 10,
            patience: PATIENCE,
        };
        let store = SqlStore::open_postgres(&options).await.expect("open");
        measure_all(&store).await;
        store.close().await;
        return drop_schema(&options).await.expect("drop the schema");
    }
    let folder = match arguments.first() {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    let folder = folder.expect("make a folder");
    let store = SqlStore::open_sqlite(&folder.path().join("journal.db")).await.expect("open");
    measure_all(&store).await;
}

async fn measure_all(store: &SqlStore) {
    for crowd in CROWDS {
        let mut sessions = Vec::new();
        for number in 0..crowd {
            sessions.push(owned(store, &format!("session_{crowd}_{number}")).await);
        }
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (session, generation) in sessions {
            tasks.spawn(write(store.clone(), session, generation, RUNS / crowd));
        }
        let mut times: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
        let rate = times.len() as f64 / began.elapsed().as_secs_f64();
        times.sort();
        let at = |share: f64| ms(times[((times.len() - 1) as f64 * share) as usize]);
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(at);
        println!(
            "apply [received, started], {crowd} sessions, n = {}: \
             p50 {p50} p90 {p90} p99 {p99} max {max} ms, {rate:.0} batches/s",
            times.len()
        );
    }
}

async fn owned(store: &SqlStore, name: &str) -> (SessionId, Generation) {
    let work = NewWork {
        id: name.into(),
        environment: "env_1".into(),
        session: name.into(),
        node: "node-1".into(),
        token: None,
    };
    store.claim_work(&work).await.expect("claim work");
    let generation = store.take_session(&work.session, &work.node).await.expect("take session");
    (work.session, generation)
}

async fn write(
    store: SqlStore,
    session: SessionId,
    generation: Generation,
    runs: usize,
) -> Vec<Duration> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let id = CallId::generate();
        let call = NewCall {
            id: id.clone(),
            tool_use: id.as_str().into(),
            tool: "bash".into(),
            custom: false,
            thread: None,
            input: serde_json::json!({"command": "cargo test"}),
        };
        let changes =
            [Change::CallReceived(Box::new(call)), Change::CallStarted { call: id, epoch: None }];
        let start = Instant::now();
        store.apply(&session, generation, &changes).await.expect("apply");
        times.push(start.elapsed());
    }
    times
}

fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1_000.0)
}
