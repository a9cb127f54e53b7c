//! Programs beside the shell: input, terminals, signals, kills.

use std::time::Duration;

use futures::StreamExt;
use guest_protocol::boot::ToolsAs;
use guest_protocol::client::RunError;
use guest_protocol::{
    CallId, CallSpec, CallState, ClientError, Exit, KillScope, PtySize, RunAs, StdinData,
    wire::ErrorCode,
};

use crate::harness::*;

#[tokio::test]
async fn a_program_runs_with_its_arguments_environment_and_directory() {
    let test = "a_program_runs_with_its_arguments_environment_and_directory";
    let Some(sandbox) = sandbox(test).await else { return };
    let spec = exec_with(
        &["sh", "-c", "echo \"$1|$A|$PROFILE_VAR\"; pwd; id -u; cat", "sh", "a b"],
        |spec| {
            spec.env = vec![("A".into(), "1".into()), ("PROFILE_VAR".into(), "mine".into())];
            spec.cwd = Some("/usr".into());
        },
    );
    assert_ok(&sandbox.run(&spec).await, "a b|1|mine\n/usr\n1000\n");
    let root = exec_with(&["id", "-u"], |spec| spec.run_as = RunAs::Root);
    assert_ok(&sandbox.run(&root).await, "0\n");
    assert_eq!(sandbox.run(&exec(&["sh", "-c", "exit 7"])).await.exit, Exit::Code(7));
    assert_eq!(sandbox.run(&exec(&["sh", "-c", "kill -TERM $$"])).await.exit, Exit::Signal(15));
}

#[tokio::test]
async fn a_program_that_cannot_start_says_why() {
    let Some(sandbox) = sandbox("a_program_that_cannot_start_says_why").await else { return };
    let file = sandbox.put("plain", "not executable").display().to_string();
    let missing = exec_with(&["true"], |spec| spec.cwd = Some("/no/such".into()));
    for (spec, want) in [
        (exec(&["no-such-program"]), "no-such-program: no such file or directory".to_owned()),
        (exec(&[&file]), format!("{file}: permission denied")),
        (exec(&["a\0b"]), "program contains a NUL byte".to_owned()),
        (missing, "/no/such: no such file or directory".to_owned()),
    ] {
        assert_eq!(sandbox.run(&spec).await.exit, Exit::FailedToStart(want));
    }
}

#[tokio::test]
async fn a_start_and_a_wait_in_one_go_run_once_and_say_what_was_refused() {
    let test = "a_start_and_a_wait_in_one_go_run_once_and_say_what_was_refused";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let (id, spec) = (CallId::generate(), exec(&["sh", "-c", "echo ran >> ran; wc -l < ran"]));
    for _ in 0..2 {
        assert_ok(&client.run(&id, &spec).await.unwrap(), "1\n");
    }
    client.ack(&id).await.unwrap();
    let refused = client.run(&id, &spec).await.unwrap_err();
    let is_known = |error: &ClientError| error.refusal() == Some(ErrorCode::AlreadyAcked);
    assert!(matches!(&refused, RunError::Start(error) if is_known(error)), "{refused:?}");
}

#[tokio::test]
async fn input_reaches_a_program_as_fast_as_it_reads() {
    let test = "input_reaches_a_program_as_fast_as_it_reads";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let id = sandbox.start(&exec_with(&["wc", "-c"], |spec| spec.stdin = true)).await;
    for _ in 0..5 {
        client.stdin(&id, StdinData::Bytes(vec![b'x'; 300_000])).await.unwrap();
    }
    client.stdin(&id, StdinData::Eof).await.unwrap();
    assert_ok(&client.wait(&id).await.unwrap(), "1500000\n");
    let late = client.stdin(&id, StdinData::Eof).await.unwrap_err();
    assert_eq!(late.refusal(), Some(ErrorCode::NotInteractive));
    // Input for a program that does not read is answered when it ends.
    let id = sandbox.start(&exec_with(&["sleep", "0.2"], |spec| spec.stdin = true)).await;
    client.stdin(&id, StdinData::Bytes(vec![0; 1 << 20])).await.unwrap();
    // Without `stdin` there is an end of file.
    assert_ok(&sandbox.run(&exec(&["cat"])).await, "");
}

#[tokio::test]
async fn a_terminal_is_one_and_has_a_size() {
    let Some(sandbox) = sandbox("a_terminal_is_one_and_has_a_size").await else { return };
    let client = &sandbox.client;
    let size = |rows, columns| PtySize { rows, columns };
    let script = "tty; echo $TERM; stty size; trap 'stty size; exit 0' WINCH; echo ready; \
                  while :; do sleep 0.02; done";
    let spec = exec_with(&["bash", "-c", script], |spec| spec.pty = Some(size(24, 80)));
    let id = sandbox.start(&spec).await;
    let shown = async |wanted: &str| {
        eventually(wanted, async || {
            let shown = client.output(&id, 0, 4096).await.unwrap().data;
            String::from_utf8_lossy(&shown).contains(wanted)
        })
        .await;
    };
    shown("/dev/pts/").await;
    shown("xterm-256color\r\n24 80\r\nready").await;
    client.resize(&id, size(50, 132)).await.unwrap();
    shown("50 132").await;
    assert_eq!(client.wait(&id).await.unwrap().exit, Exit::Code(0));

    // A reader under a terminal: lines, the interrupt character, the end of input.
    let cat = exec_with(&["cat"], |spec| spec.pty = Some(size(24, 80)));
    let id = sandbox.start(&cat).await;
    client.stdin(&id, StdinData::Bytes(b"hello\n".to_vec())).await.unwrap();
    client.stdin(&id, StdinData::Eof).await.unwrap();
    let outcome = client.wait(&id).await.unwrap();
    assert_ok(&outcome, "hello\r\nhello\r\n");
    let id = sandbox.start(&cat).await;
    client.stdin(&id, StdinData::Bytes(b"\x03".to_vec())).await.unwrap();
    assert_eq!(client.wait(&id).await.unwrap().exit, Exit::Signal(2));
    let plain = sandbox.start(&exec(&["sleep", "300"])).await;
    let refused = client.resize(&plain, size(1, 1)).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(ErrorCode::NotInteractive));
}

#[tokio::test]
async fn output_streams_while_the_program_runs() {
    let Some(sandbox) = sandbox("output_streams_while_the_program_runs").await else { return };
    let spec =
        exec_with(&["sh", "-c", "echo one; read x; echo two; read x"], |spec| spec.stdin = true);
    let id = sandbox.start(&spec).await;
    let mut output = Box::pin(sandbox.client.attach(&id, 0));
    assert_eq!(output.next().await.unwrap().unwrap().data, b"one\n");
    sandbox.client.stdin(&id, StdinData::Bytes(b"\n".to_vec())).await.unwrap();
    assert_eq!(output.next().await.unwrap().unwrap().data, b"two\n");
    sandbox.client.stdin(&id, StdinData::Eof).await.unwrap();
    assert!(output.next().await.is_none());
    // Everything arrives when the output is much larger than any buffer.
    let id = sandbox.start(&exec(&["seq", "1", "300000"])).await;
    let pieces: Vec<_> = sandbox.client.attach(&id, 0).collect().await;
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.unwrap().data).collect();
    let want: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    assert!(bytes == want.as_bytes(), "{} bytes instead of {}", bytes.len(), want.len());
}

#[tokio::test]
async fn signals_and_kills_reach_the_tree_and_nothing_else() {
    let test = "signals_and_kills_reach_the_tree_and_nothing_else";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let ready = async |id: &guest_protocol::CallId| {
        eventually("ready", async || client.output(id, 0, 10).await.unwrap().spooled_bytes > 0)
            .await;
    };
    let trap = "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.02; done";
    let id = sandbox.start(&exec(&["bash", "-c", trap])).await;
    ready(&id).await;
    client.signal(&id, 10).await.unwrap();
    let outcome = client.wait(&id).await.unwrap();
    assert!(text(&outcome).ends_with("caught\n"), "{outcome:?}");
    assert_eq!(outcome.exit, Exit::Code(5));

    let deep =
        "setsid sh -c 'sleep 301 & setsid sleep 302 & exit' & sleep 303 & echo ready; sleep 304";
    let (one, two) = (
        sandbox.start(&exec(&["bash", "-c", deep])).await,
        sandbox.start(&exec(&["sleep", "305"])).await,
    );
    ready(&one).await;
    client.kill(&one, KillScope::Tree).await.unwrap();
    assert_eq!(client.wait(&one).await.unwrap().exit, Exit::Killed);
    assert_text(&sandbox.bash("ps -eo args | grep '^sleep'").await, "sleep 305\n");
    assert!(matches!(client.query(&two).await.unwrap(), CallState::Running { .. }));

    // What an ended program leaves goes on.
    assert_ok(&sandbox.run(&exec(&["bash", "-c", "sleep 306 >/dev/null 2>&1 & echo"])).await, "\n");
    assert_text(&sandbox.bash("pgrep -f '^sleep 306' | wc -l").await, "1\n");
    let short = exec(&["sleep", "300"]);
    let outcome = sandbox.run(&CallSpec { timeout: Duration::from_millis(200), ..short }).await;
    assert_eq!(outcome.exit, Exit::TimedOut);
}

#[tokio::test]
async fn a_supervisor_killed_by_root_takes_its_tree_along() {
    let test = "a_supervisor_killed_by_root_takes_its_tree_along";
    let Some(sandbox) = sandbox(test).await else { return };
    let script = "echo ready; setsid sleep 301 & sleep 302";
    let id = sandbox.start(&exec(&["bash", "-c", script])).await;
    let other = sandbox.start(&exec(&["sleep", "303"])).await;
    eventually("ready", async || {
        sandbox.client.output(&id, 0, 10).await.unwrap().spooled_bytes > 0
    })
    .await;
    let kill = "p=$(ps -eo pid,ppid,args | awk '/bash -c echo ready/ && !/awk/ {print $2; exit}'); kill -9 $p";
    let killer = exec_with(&["sh", "-c", kill], |spec| spec.run_as = RunAs::Root);
    sandbox.run(&killer).await;
    assert_eq!(sandbox.client.wait(&id).await.unwrap().exit, Exit::Signal(9));
    eventually("the tree is gone", async || {
        text(&sandbox.bash("ps -eo args | grep '^sleep'").await) == "sleep 303\n"
    })
    .await;
    // The tool's user cannot do that.
    let kill = "p=$(ps -eo pid,args | awk '/^ *[0-9]+ sleep 303/ {print $1}'); kill -9 $(ps -o ppid= $p) 1";
    let refused = sandbox.bash(kill).await;
    assert!(text(&refused).contains("Operation not permitted"), "{refused:?}");
    assert!(matches!(sandbox.client.query(&other).await.unwrap(), CallState::Running { .. }));
}

#[tokio::test]
async fn a_supervisor_stopped_by_root_does_not_keep_its_call_alive() {
    let test = "a_supervisor_stopped_by_root_does_not_keep_its_call_alive";
    let Some(sandbox) = sandbox_as(test, ToolsAs::Root).await else { return };
    let timeout = Duration::from_millis(300);
    let program = exec(&["bash", "-c", "kill -STOP $PPID; setsid sleep 301 & sleep 302"]);
    let outcome = sandbox.run(&CallSpec { timeout, ..program }).await;
    assert_eq!(outcome.exit, Exit::TimedOut);
    let command = "kill -STOP $PPID; setsid sleep 303 & sleep 304";
    let outcome = sandbox.run(&shell_for(command, timeout)).await;
    assert_eq!(outcome.exit, Exit::TimedOut);
    assert_text(&sandbox.bash("ps -eo args | grep '^sleep'").await, "");
}

#[tokio::test]
async fn a_call_of_no_program_is_refused() {
    let Some(sandbox) = sandbox("a_call_of_no_program_is_refused").await else { return };
    let refused = sandbox.client.start(&guest_protocol::CallId::generate(), &exec(&[])).await;
    assert!(
        matches!(&refused, Err(ClientError::Refused { code: ErrorCode::BadRequest, .. })),
        "{refused:?}"
    );
}
