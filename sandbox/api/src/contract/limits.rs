//! Promises about what a guest can use up, and what it can see.

use tokio::time::timeout;

use super::Place;
use super::fixture::{Fixture, LONG, next, output, run, start, text};
use crate::Vitality;
use base_types::CallId;
use guest_protocol::Exit;

/// Beyond its memory a sandbox is ended as a whole, and the end says why. Its files stay.
pub async fn memory_has_a_limit(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (spec, guest) = fixture.started().await;
    let (neighbour, beside) = fixture.started().await;
    output(&guest, "echo kept > /workspace/file").await;
    // Keeps all it reads, because it waits for the end of the only line.
    start(&guest, &CallId::generate(), "tail -n 1 /dev/zero").await;

    let ended = timeout(LONG, fixture.driver.ended(&spec.sandbox, spec.epoch)).await;
    let vitality = ended.expect("it ends").unwrap();
    let expected = format!("out of memory (limit {})", place.limits().memory);
    assert_eq!(vitality, Vitality::Stopped { epoch: spec.epoch, why: Some(expected) });

    assert_eq!(output(&beside, "echo undisturbed").await, "undisturbed");
    let second = next(&spec);
    fixture.create(&second).await;
    let guest = fixture.connect(&second).await;
    assert_eq!(output(&guest, "cat /workspace/file").await, "kept");
    fixture.destroy(&second).await;
    fixture.destroy(&neighbour).await;
}

pub async fn processes_have_a_limit(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (spec, guest) = fixture.started().await;
    let (neighbour, beside) = fixture.started().await;
    let limit = place.limits().pids;
    let script = format!("i=0; while [ $i -lt {} ]; do sleep 1000 & i=$((i+1)); done", 2 * limit);
    let bomb = CallId::generate();
    start(&guest, &bomb, &script).await;
    let outcome = timeout(LONG, guest.wait(&bomb)).await.expect("it ends").unwrap();
    let said = text(&outcome);
    assert_ne!(outcome.exit, Exit::Code(0), "more processes than allowed: {said}");
    assert!(said.contains("fork"), "{said}");

    let status = fixture.driver.status(&spec.sandbox).await.unwrap().expect("it exists");
    assert!(status.usage.pids.is_none_or(|pids| pids <= u64::from(limit) + 8), "{status:?}");
    assert_eq!(output(&beside, "echo undisturbed").await, "undisturbed");
    fixture.destroy(&spec).await;
    fixture.destroy(&neighbour).await;
}

pub async fn the_disk_has_a_limit(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (spec, guest) = fixture.started().await;
    let (neighbour, beside) = fixture.started().await;
    let megabytes = (place.limits().disk.bytes() >> 20) * 2;
    let script = format!("head -c {megabytes}M /dev/urandom > /workspace/much");
    let outcome = run(&guest, &script).await;
    let said = text(&outcome);
    assert_ne!(outcome.exit, Exit::Code(0), "more than the quota was written");
    let is_quota = said.contains("quota") || said.contains("No space");
    assert!(is_quota, "{said}");

    assert_eq!(
        output(&beside, "head -c 1M /dev/urandom > /workspace/some; echo written").await,
        "written"
    );
    // What is full can be emptied.
    let script = "rm /workspace/much && sync && echo again > /workspace/little && \
                  cat /workspace/little";
    assert_eq!(output(&guest, script).await, "again");
    fixture.destroy(&spec).await;
    fixture.destroy(&neighbour).await;
}

pub async fn one_sandbox_sees_nothing_of_another(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (one, guest) = fixture.started().await;
    let (other, beside) = fixture.started().await;
    output(&guest, "echo secret > /workspace/secret; echo secret > /tmp/secret").await;
    start(&guest, &CallId::generate(), "sleep 4242").await;

    let script = "ls /workspace/secret /tmp/secret 2>/dev/null | wc -l; \
                  cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep [4]242'; \
                  ls -d /proc/[0-9]* | wc -l";
    let seen = run(&beside, script).await;
    let seen = text(&seen);
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines[..2], ["0", "0"], "{seen}");
    let processes: usize = lines[2].parse().expect("a number of processes");
    assert!(processes < 16, "only its own processes are seen: {seen}");
    fixture.destroy(&one).await;
    fixture.destroy(&other).await;
}

pub async fn no_socket_of_the_host_is_in_reach(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let (spec, guest) = fixture.started().await;
    let sockets = place.host_sockets();
    assert!(!sockets.is_empty(), "there is something to look for");
    for socket in sockets {
        assert!(socket.exists(), "{} is the host's", socket.display());
        let path = socket.display();
        let script = format!("test -e '{path}' || test -e '/proc/1/root{path}' || echo unseen");
        assert_eq!(output(&guest, &script).await, "unseen");
    }
    // Abstract sockets belong to the network namespace, which holds the sandbox's own alone; and
    // the agent's socket has no name inside.
    let script = "grep -c '@\\|launcher\\|serve' /proc/net/unix || true";
    assert_eq!(output(&guest, script).await, "0");
    fixture.destroy(&spec).await;
}
