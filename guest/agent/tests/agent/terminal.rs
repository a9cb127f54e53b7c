//! Terminals: opened, left, come back to, shared, flooded, ended.

use std::time::Duration;

use guest_protocol::terminal::{
    OpenedTerminal, SCROLLBACK_BYTES, TERMINALS_ENDED_MAX, TERMINALS_MAX, TerminalChunk,
    TerminalId, TerminalRead, TerminalSpec,
};
use guest_protocol::{ClientError, Exit, GuestClient, PtySize, RunAs, wire::ErrorCode};

use crate::harness::*;

const SIZE: PtySize = PtySize { rows: 24, columns: 80 };
const WAIT: Duration = Duration::from_secs(20);

fn spec(name: &str, script: &str) -> TerminalSpec {
    TerminalSpec {
        name: name.parse().unwrap(),
        argv: ["bash", "--norc", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("PS1".into(), "ready> ".into())],
        cwd: None,
        run_as: RunAs::Tool,
        size: SIZE,
    }
}

fn interactive(name: &str) -> TerminalSpec {
    let argv = ["bash", "--norc", "-i"].map(str::to_owned).to_vec();
    TerminalSpec { argv, ..spec(name, "") }
}

async fn open(client: &GuestClient, spec: &TerminalSpec) -> OpenedTerminal {
    client.open_terminal(spec).await.unwrap()
}

async fn keys(client: &GuestClient, id: TerminalId, text: &str) {
    client.type_terminal(id, text.as_bytes().to_vec()).await.unwrap();
}

/// A viewer as the host has one.
struct Viewer<'a> {
    client: &'a GuestClient,
    id: TerminalId,
    number: u64,
    offset: u64,
    seen: String,
    missed: u64,
}

impl<'a> Viewer<'a> {
    fn new(client: &'a GuestClient, id: TerminalId, number: u64) -> Self {
        Self { client, id, number, offset: 0, seen: String::new(), missed: 0 }
    }

    async fn read(&mut self) -> TerminalChunk {
        let read = TerminalRead {
            terminal: self.id,
            viewer: self.number,
            offset: self.offset,
            wait: Duration::from_millis(500),
        };
        let chunk = self.client.read_terminal(read).await.unwrap();
        self.missed += chunk.offset - self.offset;
        self.offset = chunk.offset + chunk.data.len() as u64;
        self.seen.push_str(&String::from_utf8_lossy(&chunk.data));
        chunk
    }

    async fn until(&mut self, wanted: &str) {
        let waited = async {
            while !self.seen.contains(wanted) {
                self.read().await;
            }
        };
        let waited = tokio::time::timeout(WAIT, waited).await;
        waited.unwrap_or_else(|_| panic!("never {wanted:?}: {:?}", self.seen));
    }

    async fn end(&mut self) -> Exit {
        let waited = async {
            loop {
                if let Some(exit) = self.read().await.exit {
                    return exit;
                }
            }
        };
        tokio::time::timeout(WAIT, waited).await.expect("the terminal ends")
    }
}

#[tokio::test]
async fn a_shell_is_left_and_found_again_under_its_name() {
    let test = "a_shell_is_left_and_found_again_under_its_name";
    let Some(sandbox) = sandbox(test).await else { return };
    let opened = open(&sandbox.client, &interactive("main")).await;
    assert!(opened.created);
    let id = opened.terminal.id;
    let mut viewer = Viewer::new(&sandbox.client, id, 1);
    viewer.until("ready> ").await;
    keys(&sandbox.client, id, "x=kept; echo pid-$$-; tty; id -u; pwd\r").await;
    viewer.until("/work").await;
    assert!(viewer.seen.contains("/dev/pts/") && viewer.seen.contains("1000"), "{}", viewer.seen);
    let pid = viewer.seen.split("pid-").nth(2).unwrap().split('-').next().unwrap().to_owned();

    // Another connection, as after a restart of the host's side.
    let client = sandbox.reconnect().await;
    let again = open(&client, &interactive("main")).await;
    assert!(!again.created && again.terminal.id == id);
    let mut late = Viewer::new(&client, id, 1);
    late.until(&format!("pid-{pid}-")).await;
    keys(&client, id, "echo still-$x-$$-\r").await;
    late.until(&format!("still-kept-{pid}-")).await;
    viewer.until(&format!("still-kept-{pid}-")).await;

    let listed = client.terminals().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, listed[0].size, &listed[0].exit), (id, SIZE, &None));
    keys(&client, id, "exit 7\r").await;
    assert_eq!(late.end().await, Exit::Code(7));
    assert_eq!(viewer.end().await, Exit::Code(7), "each viewer learns of the end");
    let refused = client.type_terminal(id, b"x".to_vec()).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(ErrorCode::NotInteractive));
    let next = open(&client, &interactive("main")).await;
    assert!(next.created && next.terminal.id > id, "the name is free again");
}

#[tokio::test]
async fn keys_that_interrupt_and_sizes_reach_the_foreground() {
    let test = "keys_that_interrupt_and_sizes_reach_the_foreground";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let id = open(client, &interactive("main")).await.terminal.id;
    let mut viewer = Viewer::new(client, id, 1);
    viewer.until("ready> ").await;
    let runs = async |program: &str| {
        let command = format!("pgrep -cxf '{program}'");
        eventually(program, async || text(&sandbox.bash(&command).await) == "1\n").await;
    };
    keys(client, id, "sleep 301\r").await;
    runs("sleep 301").await;
    keys(client, id, "\x03").await;
    viewer.until("^C").await;
    keys(client, id, "echo left-$?-\r").await;
    viewer.until("left-130-").await;
    keys(client, id, "stty size; sleep 302\r").await;
    viewer.until("24 80").await;
    runs("sleep 302").await;
    keys(client, id, "\x1a").await;
    viewer.until("Stopped").await;
    client.resize_terminal(id, PtySize { rows: 50, columns: 132 }).await.unwrap();
    keys(client, id, "stty size\r").await;
    viewer.until("50 132").await;
    assert_eq!(client.terminals().await.unwrap()[0].size.rows, 50);

    // Hanging up reaches what is stopped, and what does not listen dies all the same.
    keys(client, id, "trap '' HUP; setsid sleep 303 & sleep 304\r").await;
    eventually("they run", async || {
        text(&sandbox.bash("pgrep -cf '^sleep 30[234]'").await) == "3\n"
    })
    .await;
    client.end_terminal(id).await.unwrap();
    assert!(matches!(viewer.end().await, Exit::Killed | Exit::Signal(1)));
    assert_text(&sandbox.bash("pgrep -cf '^sleep 30[234]'").await, "0\n");
    client.end_terminal(id).await.unwrap();
}

#[tokio::test]
async fn the_terminal_of_root_is_not_for_the_tools_user() {
    let test = "the_terminal_of_root_is_not_for_the_tools_user";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let as_root = TerminalSpec { run_as: RunAs::Root, ..interactive("root") };
    let id = open(client, &as_root).await.terminal.id;
    let mut viewer = Viewer::new(client, id, 1);
    keys(client, id, "id -u; tty\r").await;
    viewer.until("/dev/pts/").await;
    assert!(viewer.seen.contains("\r0\r\n"), "{}", viewer.seen);
    let number = viewer.seen.split("/dev/pts/").nth(1).unwrap().split('\r').next().unwrap();
    let stolen = sandbox.bash(&format!("cat /dev/pts/{number}; echo x >/dev/pts/{number}")).await;
    assert_eq!(text(&stolen).matches("Permission denied").count(), 2, "{stolen:?}");
}

#[tokio::test]
async fn who_keeps_up_misses_nothing_and_who_does_not_holds_nobody_up() {
    let test = "who_keeps_up_misses_nothing_and_who_does_not_holds_nobody_up";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let lines = 400_000;
    let script = format!("read -r go; seq 1 {lines}; echo the-end");
    let id = open(client, &spec("main", &script)).await.terminal.id;
    let mut reading = Viewer::new(client, id, 1);
    let mut sleeping = Viewer::new(client, id, 2);
    keys(client, id, "go\r").await;
    sleeping.until("go").await;
    reading.until("the-end").await;
    assert_eq!(reading.missed, 0);
    let want: String = (1..=lines).map(|n| format!("{n}\r\n")).collect();
    assert!(reading.seen.contains(&want), "{} bytes", reading.seen.len());
    assert!(reading.seen.len() > 4 * SCROLLBACK_BYTES, "the test must overtake what is kept");
    sleeping.until("the-end").await;
    assert!(sleeping.missed > 0);
    assert!(sleeping.seen.len() <= 2 * SCROLLBACK_BYTES);
}

#[tokio::test]
async fn a_flood_that_nobody_reads_costs_bounded_memory_and_delays_nothing() {
    let test = "a_flood_that_nobody_reads_costs_bounded_memory_and_delays_nothing";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let memory = async || {
        let rss = exec_with(&["awk", "/VmRSS/ {print $2}", "/proc/1/status"], |spec| {
            spec.run_as = RunAs::Root;
        });
        text(&sandbox.run(&rss).await).trim().parse::<usize>().unwrap()
    };
    let before_kb = memory().await;
    for n in 0..TERMINALS_MAX {
        let id = open(client, &spec(&format!("flood-{n}"), "exec yes")).await.terminal.id;
        // One who attaches and then reads no more.
        Viewer::new(client, id, 1).read().await;
    }
    let size = 4 * SCROLLBACK_BYTES as u64;
    eventually("each has gone on without its viewer", async || {
        client.terminals().await.unwrap().iter().all(|one| one.total_bytes > size)
    })
    .await;
    let grown_kb = memory().await.saturating_sub(before_kb);
    assert!(grown_kb < (TERMINALS_MAX * SCROLLBACK_BYTES) / 1024 + 4096, "{grown_kb} KiB");
    assert_ok(&sandbox.bash("echo quick").await, "quick\n");
    for one in client.terminals().await.unwrap() {
        client.end_terminal(one.id).await.unwrap();
    }
    eventually("all have ended", async || {
        client.terminals().await.unwrap().iter().all(|one| one.exit.is_some())
    })
    .await;
    assert_eq!(client.terminals().await.unwrap().len(), TERMINALS_ENDED_MAX);
}

#[tokio::test]
async fn more_terminals_than_the_limit_are_refused_and_lies_are_errors() {
    let test = "more_terminals_than_the_limit_are_refused_and_lies_are_errors";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let mut refused = 0;
    for n in 0..1000 {
        match client.open_terminal(&spec(&format!("t{n}"), "read -r line")).await {
            Ok(opened) => assert!(opened.created && n < TERMINALS_MAX),
            Err(error) => {
                assert_eq!(error.refusal(), Some(ErrorCode::TooManyCalls));
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 1000 - TERMINALS_MAX);
    // They are no calls: those go on.
    assert_ok(&sandbox.bash("echo fine").await, "fine\n");

    let unknown = TerminalId(9999);
    for result in [
        client.type_terminal(unknown, b"x".to_vec()).await,
        client.resize_terminal(unknown, SIZE).await,
        client.end_terminal(unknown).await,
    ] {
        assert_eq!(result.unwrap_err().refusal(), Some(ErrorCode::UnknownCall));
    }
    let one = client.terminals().await.unwrap()[0].id;
    client.end_terminal(one).await.unwrap();
    Viewer::new(client, one, 1).end().await;
    let missing = TerminalSpec { argv: vec!["no-such-shell".into()], ..spec("gone", "") };
    let id = open(client, &missing).await.terminal.id;
    let exit = Viewer::new(client, id, 1).end().await;
    assert_eq!(exit, Exit::FailedToStart("no-such-shell: no such file or directory".into()));
}

#[tokio::test]
async fn a_terminal_whose_program_lets_go_of_it_comes_back_with_the_next_one() {
    let test = "a_terminal_whose_program_lets_go_of_it_comes_back_with_the_next_one";
    let Some(sandbox) = sandbox(test).await else { return };
    let client = &sandbox.client;
    let script = "tty=$(tty); exec </dev/null >/dev/null 2>&1; sleep 0.3; echo back >$tty; exit 3";
    let id = open(client, &spec("main", script)).await.terminal.id;
    let mut viewer = Viewer::new(client, id, 1);
    viewer.until("back").await;
    assert_eq!(viewer.end().await, Exit::Code(3));
}

#[tokio::test]
async fn an_older_agent_is_not_asked_for_terminals() {
    let (host, mut agent) = tokio::io::duplex(1 << 16);
    let greet = async {
        use guest_protocol::{FRAME_BYTES_MAX, frame, wire};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut inbox = bytes::BytesMut::new();
        while frame::take_message::<wire::Request>(&mut inbox, FRAME_BYTES_MAX).unwrap().is_none() {
            assert_ne!(agent.read_buf(&mut inbox).await.unwrap(), 0);
        }
        let hello = wire::Hello { version_min: 1, version_max: 1, build: "old".into(), epoch: 1 };
        let body = Some(wire::ResponseBody::Hello(hello));
        let mut out = bytes::BytesMut::new();
        frame::put_message(&mut out, &wire::Response { id: 0, body }, FRAME_BYTES_MAX).unwrap();
        agent.write_all(&out).await.unwrap();
    };
    let (connected, ()) = tokio::join!(GuestClient::connect(host, "new"), greet);
    let (client, driver) = connected.unwrap();
    tokio::spawn(driver);
    let refused = client.open_terminal(&interactive("main")).await.unwrap_err();
    assert!(matches!(refused, ClientError::AgentTooOld { spoken: 1, needed: 2, .. }), "{refused}");
    assert!(refused.to_string().contains("replaced when the sandbox starts anew"), "{refused}");
}
