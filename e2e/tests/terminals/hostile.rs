//! Floods, and viewers that do not read.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{Installation, sinew_binary};

use crate::pane::Pane;
use crate::with_sandbox;

/// What `serve` and a viewer may grow by for a flood: some pieces of output in some buffers.
const GROWTH_KB_MAX: u64 = 24 * 1024;

/// `sinew shell` in a terminal that nobody reads: its end is held open by the answer.
fn unread(installation: &Installation, args: &[&str]) -> (Child, OwnedFd) {
    let pty = nix::pty::openpty(None, None).unwrap();
    let ours = File::from(pty.slave);
    let child = Command::new(sinew_binary())
        .arg("shell")
        .args(args)
        .env("SINEW_DATA", installation.data())
        .stdin(Stdio::from(ours.try_clone().unwrap()))
        .stdout(Stdio::from(ours.try_clone().unwrap()))
        .stderr(Stdio::from(ours))
        .spawn()
        .unwrap();
    (child, pty.master)
}

fn rss_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn output_bytes(installation: &Installation, session: &str, name: &str) -> u64 {
    let listed = installation.json(&["shell", session, "--list", "--json"]);
    let all = listed["terminals"].as_array().unwrap();
    let one = all.iter().find(|one| one["name"] == name);
    one.map_or(0, |one| one["output_bytes"].as_u64().unwrap())
}

#[track_caller]
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_at_a_viewer_who_does_not_read_is_bounded_and_holds_nobody_up() {
    let name = "a_flood_at_a_viewer_who_does_not_read_is_bounded_and_holds_nobody_up";
    let Some((installation, session)) = with_sandbox(name).await else { return };
    let before_kb = rss_kb(installation.serve_pid());
    let flood = [session.as_str(), "--name", "flood", "--command", "exec yes flooded"];
    let (mut client, _unread) = unread(&installation, &flood);
    eventually("the flood goes on without its viewer", || {
        output_bytes(&installation, &session, "flood") > 20 << 20
    });
    let grown_kb = rss_kb(installation.serve_pid()).saturating_sub(before_kb);
    assert!(grown_kb < GROWTH_KB_MAX, "serve has grown by {grown_kb} KiB");
    let client_kb = rss_kb(client.id());
    assert!(client_kb < 2 * GROWTH_KB_MAX, "the viewer has {client_kb} KiB");

    // Another viewer sees it, skips, and leaves; other shells are as quick as ever.
    let pane = Pane::open(&installation);
    pane.run(&format!("sinew shell {session} --name flood"));
    pane.wait_for("flooded");
    pane.key("Enter");
    pane.keys("~.");
    pane.wait_for("detached");
    pane.wait_for_outer();
    pane.run(&format!("clear; sinew shell {session} --name quiet"));
    pane.wait_for("/workspace$");
    pane.run("echo quick-$((40 + 2))");
    pane.wait_for("quick-42");

    // The viewer's own terminal is full, and it ends all the same when it is told to.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(client.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    eventually("the viewer has ended", || client.try_wait().unwrap().is_some());
    let killed = installation.sinew(&["shell", &session, "--name", "flood", "--kill"]);
    assert!(killed.status.success(), "{killed:?}");
    // The session's own tools have not suffered.
    let exec = installation.sinew(&["exec", &session, "--", "echo", "fine"]);
    assert_eq!(exec.stdout, b"fine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_beyond_the_limit_are_refused_with_a_way_out() {
    let name = "shells_beyond_the_limit_are_refused_with_a_way_out";
    let Some((installation, session)) = with_sandbox(name).await else { return };
    let mut open = Vec::new();
    let mut refused = 0;
    // One more than the agent keeps is as good as a thousand here; the agent's own test does those.
    for n in 0..18 {
        let terminal = format!("t{n}");
        let args = [session.as_str(), "--name", &terminal, "--command", "exec sleep 1000"];
        let (mut client, master) = unread(&installation, &args);
        eventually("it is open or refused", || {
            let ended = client.try_wait().unwrap();
            if let Some(status) = ended {
                assert_eq!(status.code(), Some(125));
                refused += 1;
                return true;
            }
            let listed = installation.json(&["shell", &session, "--list", "--json"]);
            listed["terminals"].as_array().unwrap().iter().any(|one| one["name"] == *terminal)
        });
        open.push((client, master));
    }
    assert_eq!(refused, 2);
    let pane = Pane::open(&installation);
    pane.run(&format!("sinew shell {session} --name more"));
    pane.wait_for("16 terminals are open");
    pane.wait_for("--kill");
    for (client, _) in &mut open {
        let _ = client.kill(); // Two have ended.
        client.wait().unwrap();
    }
}
