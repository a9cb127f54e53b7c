//! What a round trip costs; run with `--ignored --nocapture` on a quiet machine.

use std::time::{Duration, Instant};

use guest_protocol::CallSpec;

use crate::harness::*;

const RUNS: usize = 300;

#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn round_trips() {
    let Some(sandbox) = sandbox("round_trips").await else { return };
    sandbox.put("file", "x\n");
    let read = guest_protocol::FileOp::Read { path: "file".into(), lines: None };
    sandbox.bash("true").await;
    report("fork and exec of /bin/true by this process", async || {
        tokio::process::Command::new("/bin/true").status().await.unwrap();
    })
    .await;
    report("exec of true", async || drop(sandbox.run(&exec(&["/bin/true"])).await)).await;
    report("bash: true", async || drop(sandbox.bash("true").await)).await;
    report("bash: /bin/true", async || drop(sandbox.bash("/bin/true").await)).await;
    report("read of a small file", async || drop(sandbox.file(read.clone()).await)).await;
    report("ping", async || sandbox.client.ping().await.unwrap()).await;
    let timeout = Duration::from_millis(50);
    let slow = CallSpec { timeout, ..exec(&["sleep", "300"]) };
    report("time-out of 50 ms", async || drop(sandbox.run(&slow).await)).await;
    let memory = "grep -h -E '^(Rss|Pss|Private_Dirty)' /proc/1/smaps_rollup";
    let spec = exec_with(&["sh", "-c", memory], |spec| {
        spec.run_as = guest_protocol::RunAs::Root;
    });
    println!("agent: {}", text(&sandbox.run(&spec).await).replace('\n', ", "));
}

async fn report(what: &str, mut run: impl AsyncFnMut()) {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        run().await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let at = |share: usize| times[RUNS * share / 100];
    println!("{what}: p50 {:?}, p99 {:?}", at(50), at(99));
}
