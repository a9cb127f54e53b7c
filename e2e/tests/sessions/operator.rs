//! What an operator does to a session that is served.

use std::io::Write;
use std::process::{Command, Stdio};

use testkit::{Installation, Options, can_run_sandboxes, sinew_binary};

use crate::SCENE;

#[tokio::test(flavor = "multi_thread")]
async fn exec_passes_streams_users_and_exit_codes_through() {
    let name = "exec_passes_streams_users_and_exit_codes_through";
    let Some(images) = can_run_sandboxes(name) else { return };
    let installation = Installation::start(&images, Options::default());
    let brain = &installation.brain;
    let session = brain.start_session("six-tools", "Use every tool").await;
    brain.wait_played(&session, 1, SCENE).await;

    let exec = |args: &[&str], script: &str| {
        let args = [&["exec"], args, &[session.as_str(), "--", "sh", "-c", script]].concat();
        let output = installation.sinew(&args);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(exec(&[], "cat notes/a.txt; exit 7"), (Some(7), "alpha\ngamma\n".into()));
    assert_eq!(exec(&[], "id -u; pwd"), (Some(0), "1000\n/workspace\n".into()));
    assert_eq!(exec(&["--root"], "id -u"), (Some(0), "0\n".into()));
    let with = ["--env", "GREETING=hello there", "--cwd", "/tmp"];
    assert_eq!(exec(&with, "echo $GREETING; pwd"), (Some(0), "hello there\n/tmp\n".into()));
    assert_eq!(exec(&[], "kill -9 $$").0, Some(137));
    assert_eq!(exec(&["--timeout", "1s"], "sleep 100").0, Some(124));
    let missing = installation.sinew(&["exec", session.as_str(), "--", "no-such-program"]);
    assert!(matches!(missing.status.code(), Some(125..=127)), "{missing:?}");

    // Input, more of it than any buffer holds, comes back whole.
    let input: Vec<u8> = (0..3_000_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let mut child = Command::new(sinew_binary())
        .args(["exec", session.as_str(), "--", "cat"])
        .env("SINEW_DATA", installation.data())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == input, "{} bytes", output.stdout.len());

    // Input that never ends does not keep a program's end from us.
    let mut child = Command::new(sinew_binary())
        .args(["exec", session.as_str(), "--", "true"])
        .env("SINEW_DATA", installation.data())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let _open = child.stdin.take();
    assert!(child.wait().unwrap().success());

    let log = installation.sinew(&["session", "log", session.as_str()]);
    let log = String::from_utf8(log.stdout).unwrap();
    assert!(log.contains("operator exec sh -c cat notes/a.txt; exit 7: exit code 7"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_with_a_terminal_gives_the_program_one() {
    let name = "exec_with_a_terminal_gives_the_program_one";
    let Some(images) = can_run_sandboxes(name) else { return };
    let installation = Installation::start(&images, Options::default());
    let brain = &installation.brain;
    let session = brain.start_session("six-tools", "Use every tool").await;
    brain.wait_played(&session, 1, SCENE).await;

    // `script` gives us a terminal of our own, as a person has one.
    let inside = "tty; stty size; read line; echo got $line; exit 5";
    let binary = sinew_binary();
    let command = format!(
        "stty rows 33 cols 111; {} exec -t {session} -- bash -c '{inside}'",
        binary.display()
    );
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("SINEW_DATA", installation.data())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"typed\n").unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{text}");
    for expected in ["/dev/pts/", "33 111", "got typed"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_forget_end_a_session_and_remove_what_it_had() {
    let name = "stop_and_forget_end_a_session_and_remove_what_it_had";
    let Some(images) = can_run_sandboxes(name) else { return };
    let installation = Installation::start(&images, Options::default());
    let brain = &installation.brain;
    let session = brain.start_session("six-tools", "Use every tool").await;
    brain.wait_played(&session, 1, SCENE).await;

    let stopped = installation.json(&["session", "stop", "--json", session.as_str()]);
    assert_eq!((&stopped["stopped"], &stopped["forgotten"]), (&true.into(), &false.into()));
    let items = brain.played(&session).await.items;
    assert!(items.iter().all(|item| item["state"] == "stopped"), "{items:#?}");

    let forgotten = installation.json(&["session", "stop", "--forget", "--json", session.as_str()]);
    assert_eq!(forgotten["forgotten"], true);
    let shown = installation.json(&["session", "show", "--json", session.as_str()]);
    assert_eq!(shown["phase"], "ended", "{shown:#}");
    let exec = installation.sinew(&["exec", session.as_str(), "--", "true"]);
    assert_eq!(exec.status.code(), Some(125), "{exec:?}");
    let unknown = installation.sinew(&["session", "show", "sesn_unknown"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no session sesn_unknown"));
}
