//! How long the journal entry before every tool call takes: `received` and `started`, durably.

use std::time::{Duration, Instant};

use base_types::CallId;
use store_api::{Change, NewCall, NewWork, Store};
use store_sql::SqlStore;

const RUNS: usize = 2_000;

#[tokio::main]
async fn main() {
    let folder = match std::env::args_os().nth(1) {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    let folder = folder.expect("make a folder");
    let store = SqlStore::open_sqlite(&folder.path().join("journal.db")).await.expect("open");
    let work = NewWork {
        id: "work_1".into(),
        environment: "env_1".into(),
        session: "session_1".into(),
        node: "node-1".into(),
        token: None,
    };
    store.claim_work(&work).await.expect("claim work");
    let generation = store.take_session(&work.session, &work.node).await.expect("take session");
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
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
        store.apply(&work.session, generation, &changes).await.expect("apply");
        times.push(start.elapsed());
    }
    times.sort();
    let at = |share: f64| times[((RUNS - 1) as f64 * share) as usize];
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| ms(at(share)));
    println!("apply [received, started], n = {RUNS}: p50 {p50} p90 {p90} p99 {p99} max {max} ms");
}

fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1_000.0)
}
