//! What runs beside the tools.

use std::fs;
use std::time::Duration;

use guest_protocol::{EntrypointInfo, Exit, FileOp, RunAs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    Sandbox, assert_ok, assert_text, eventually, exec, exec_with, sandbox_with, shell_for, text,
};

async fn sandbox_running(test: &str, words: &[&str]) -> Option<Sandbox> {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    sandbox_with(test, ":", |boot| boot.entrypoint = Some(words)).await
}

impl Sandbox {
    async fn entrypoint(&self) -> EntrypointInfo {
        self.client.info().await.unwrap().entrypoint.expect("one was asked for")
    }

    async fn entrypoint_end(&self) -> Exit {
        eventually("the entrypoint ends", async || self.entrypoint().await.end.is_some()).await;
        self.entrypoint().await.end.unwrap().exit
    }
}

#[tokio::test]
async fn it_runs_once_as_the_tools_do_and_its_end_is_remembered() {
    let script =
        "id -u; pwd; echo $PROFILE_VAR $HOME; cat; echo $$ >> ran; echo to the error >&2; exit 3";
    let test = "it_runs_once_as_the_tools_do";
    let Some(sandbox) = sandbox_running(test, &["sh", "-c", script]).await else { return };
    assert_eq!(sandbox.entrypoint_end().await, Exit::Code(3));
    let info = sandbox.entrypoint().await;
    assert!(info.command.starts_with("sh -c id -u;"), "{}", info.command);
    assert!(info.end.as_ref().unwrap().at_ms >= info.started_at_ms);
    let [work, home] = ["work", "home"].map(|name| sandbox.path(name).display().to_string());
    let expected = format!("1000\n{work}\nfrom the profile {home}\nto the error\n");
    let all = async || sandbox.entrypoint().await.tail == expected.as_bytes();
    eventually("all of the output is here", all).await;
    assert_eq!(sandbox.entrypoint().await.output_bytes, expected.len() as u64);
    // The model can look into it, and nobody starts it again.
    let path = sandbox.path("out/entrypoint.log").display().to_string();
    let read = FileOp::Read { path, lines: Some((4, 4)) };
    assert_eq!(sandbox.file_ok(read).await.trim_end(), "to the error");
    assert_ok(&sandbox.bash("wc -l < ran").await, "1\n");
}

#[tokio::test]
async fn one_that_does_not_start_is_told_and_costs_nothing() {
    for (words, expected) in [
        (&["no-such-program", "-x"][..], "no-such-program: no such file or directory"),
        (&["/etc/passwd"], "/etc/passwd: permission denied"),
        (&[], "the image names no entrypoint and no command"),
    ] {
        let test = "one_that_does_not_start";
        let Some(sandbox) = sandbox_running(test, words).await else { return };
        assert_eq!(sandbox.entrypoint_end().await, Exit::FailedToStart(expected.to_owned()));
        assert_ok(&sandbox.bash("echo served").await, "served\n");
    }
    let Some(sandbox) = sandbox_with("none", ":", |_| {}).await else { return };
    assert_eq!(sandbox.client.info().await.unwrap().entrypoint, None);
}

#[tokio::test]
async fn an_interpreter_that_is_missing_is_told_apart_from_a_missing_program() {
    let test = "an_interpreter_that_is_missing";
    let prepare = "mount -t tmpfs -o mode=0755 tmpfs /mnt; chmod 755 /mnt; \
                   echo '#!/no/such/interpreter' > /mnt/odd; chmod 755 /mnt/odd";
    let words = Some(vec!["/mnt/odd".to_owned()]);
    let Some(sandbox) = sandbox_with(test, prepare, |boot| boot.entrypoint = words).await else {
        return;
    };
    let expected = "/mnt/odd: it is there, but not its interpreter or library loader";
    assert_eq!(sandbox.entrypoint_end().await, Exit::FailedToStart(expected.to_owned()));
}

#[tokio::test]
async fn it_outlives_whatever_ends_calls_and_ends_with_the_sandbox() {
    let test = "it_outlives_whatever_ends_calls";
    let Some(sandbox) = sandbox_running(test, &["sleep", "7654"]).await else { return };
    let timed_out = sandbox.run(&shell_for("sleep 100", Duration::from_millis(200))).await;
    assert_eq!(timed_out.exit, Exit::TimedOut);
    // The agent itself sweeps what a supervisor left that guest root killed.
    let script = "kill -9 $PPID; sleep 50";
    let as_root = exec_with(&["sh", "-c", script], |spec| spec.run_as = RunAs::Root);
    assert_eq!(sandbox.run(&as_root).await.exit, Exit::Signal(Signal::SIGKILL as i32));
    assert_text(&sandbox.run(&exec(&["pgrep", "-cf", "sleep 7654"])).await, "1\n");
    assert_eq!(sandbox.entrypoint().await.end, None);
    let pid = sandbox.run(&exec_with(&["pgrep", "-f", "sleep 7654"], |_| {})).await;
    assert!(text(&pid).trim().parse::<u32>().is_ok());
    let outside = pid_outside("sleep\u{0}7654");
    assert_eq!(outside.len(), 1, "{outside:?}");
    let _ = sandbox.client.shutdown().await;
    let gone = async || kill(Pid::from_raw(outside[0]), None).is_err();
    eventually("it is gone with the sandbox", gone).await;
}

/// Processes of this machine whose command line begins so.
fn pid_outside(cmdline: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|text| text.starts_with(cmdline.as_bytes()))
    };
    pids.filter(is_it).collect()
}

#[tokio::test]
async fn a_daemon_that_it_leaves_lives_on_and_is_heard() {
    let test = "a_daemon_that_it_leaves";
    let script = "(while :; do sleep 0.05; test -e go && { echo daemon; exit; }; done) & exit 0";
    let Some(sandbox) = sandbox_running(test, &["sh", "-c", script]).await else { return };
    assert_eq!(sandbox.entrypoint_end().await, Exit::Code(0));
    sandbox.put("go", "");
    let heard = async || sandbox.entrypoint().await.tail == b"daemon\n";
    eventually("the daemon's words", heard).await;
    assert_eq!(sandbox.entrypoint().await.end.unwrap().exit, Exit::Code(0), "its first end counts");
}

#[tokio::test]
async fn one_that_is_killed_is_told_so() {
    let test = "one_that_is_killed";
    let Some(sandbox) = sandbox_running(test, &["sleep", "7655"]).await else { return };
    assert_ok(&sandbox.bash("pkill -TERM -f 'sleep 765[5]'").await, "");
    assert_eq!(sandbox.entrypoint_end().await, Exit::Signal(Signal::SIGTERM as i32));
}

#[tokio::test]
async fn a_flood_of_output_fills_nothing_and_holds_nobody_up() {
    let test = "a_flood_of_output";
    let Some(sandbox) = sandbox_running(test, &["yes", &"x".repeat(1000)]).await else { return };
    let much = async || sandbox.entrypoint().await.output_bytes > 100 << 20;
    eventually("a hundred megabytes", much).await;
    let ping = tokio::time::timeout(Duration::from_secs(5), sandbox.client.ping());
    ping.await.unwrap().unwrap();
    let sizes = ["entrypoint.log", "entrypoint.log.1"];
    let size = |name: &str| fs::metadata(sandbox.path("out").join(name)).unwrap().len();
    let total: u64 = sizes.map(size).iter().sum();
    assert!(total <= 8 << 20, "{total}");
    assert!(sandbox.entrypoint().await.tail.len() <= 2048);
    assert_ok(&sandbox.bash("pkill yes; echo served").await, "served\n");
}
