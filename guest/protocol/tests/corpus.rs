//! The corpus of the fuzzers, replayed: each file goes through both decoders.
//!
//! A file's first byte chooses the direction (see [`guest_protocol::fuzz::fuzz_frame`]). What a
//! fuzzer finds is added as a file; the seeds are written by the ignored test below.

use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use guest_protocol::wire::{self, Request, RequestBody, Response, ResponseBody};
use guest_protocol::{
    AgentInfo, Block, CallId, CallSpec, CallState, EntrypointEnd, EntrypointInfo, Epoch, Exit,
    FileOp, FileSpec, Note, Outcome, OutputLimits, PtySize, Root, RunAs, ShellSpec, Work, frame,
    fuzz, version,
};

use guest_protocol::terminal::{OpenedTerminal, Terminal, TerminalId, TerminalSpec};

const FROM_AGENT: u8 = 0;
const FROM_HOST: u8 = 1;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

#[test]
fn the_corpus_never_panics() {
    let mut files = 0;
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        fuzz::fuzz_frame(&bytes);
        // Cut anywhere, and with each byte turned: the near misses of something valid.
        for at in 0..bytes.len() {
            fuzz::fuzz_frame(&bytes[..at]);
            let mut turned = bytes.clone();
            turned[at] ^= 0xff;
            fuzz::fuzz_frame(&turned);
        }
        files += 1;
    }
    assert!(files >= 8, "{files} files");
}

fn info() -> AgentInfo {
    AgentInfo {
        epoch: Epoch(3),
        build: "seed".into(),
        shell_alive: true,
        running: vec![CallId::new("call_0123456789abcdef0123456789abcdef")],
        finished: 1,
        uptime: Duration::from_secs(5),
        kept_outputs: 2,
        entrypoint: Some(EntrypointInfo {
            command: "nginx -g".into(),
            started_at_ms: 1,
            end: Some(EntrypointEnd { exit: Exit::Signal(15), at_ms: 2 }),
            output_bytes: 4,
            tail: b"tail".to_vec(),
        }),
    }
}

#[test]
#[ignore = "writes the seeds of the corpus"]
fn write_seeds() {
    let id = CallId::new("call_0123456789abcdef0123456789abcdef");
    let outcome = Outcome {
        exit: Exit::FailedToStart("no".into()),
        total_bytes: 9,
        head: b"head".to_vec(),
        tail: b"tail".to_vec(),
        output_path: Some("/run/sinew/output/x".into()),
        notes: vec![Note::JobsKilled, Note::SpoolLimit { kept_bytes: 1 }],
        block: Block::Image { media_type: "image/png".into() },
        started_at_ms: 1,
        ended_at_ms: 2,
    };
    let output = wire::Output { offset: 0, data: b"x".to_vec(), spooled_bytes: 1, finished: true };
    let error = wire::Error { code: 2, text: "acked".into() };
    let states = [CallState::Unknown, CallState::Finished(Box::new(outcome))];
    let mut answers: Vec<ResponseBody> =
        states.into_iter().map(|state| ResponseBody::State(state.into())).collect();
    answers.push(ResponseBody::Hello(version::hello("seed", 3)));
    answers.push(ResponseBody::Output(output));
    answers.push(ResponseBody::Error(error));
    let terminal = Terminal {
        id: TerminalId(1),
        name: "main".parse().unwrap(),
        run_as: RunAs::Root,
        size: PtySize { rows: 24, columns: 80 },
        started_at_ms: 1,
        total_bytes: 30,
        exit: Some(Exit::Signal(1)),
    };
    let shown = b"\x1b[?1049h\x1b]0;title\x07\x1b[6n\x1bP+q\x1b\\";
    answers.push(ResponseBody::Terminals(wire::TerminalList {
        terminals: vec![terminal.clone().into()],
    }));
    answers.push(ResponseBody::OpenedTerminal(OpenedTerminal { terminal, created: true }.into()));
    answers.push(ResponseBody::TerminalOutput(wire::TerminalOutput {
        offset: 3,
        data: shown.to_vec(),
        modes: 1,
        total_bytes: 40,
        end: None,
    }));
    answers.push(ResponseBody::Info(info().into()));
    for (number, body) in answers.into_iter().enumerate() {
        save(&format!("answer-{number}"), FROM_AGENT, &Response { id: 7, body: Some(body) });
    }
    let root = Root { path: "/workspace".into(), writable: true };
    let grep = FileOp::Grep { pattern: "a|b".into(), path: Some("x".into()) };
    for (name, work) in [
        ("shell", Work::Shell(ShellSpec::Command("echo".into()))),
        ("restart", Work::Shell(ShellSpec::Restart(None))),
        ("file", Work::File(FileSpec { in_workdir: false, roots: vec![root], op: grep })),
    ] {
        let limits = OutputLimits::default();
        let spec = CallSpec { timeout: Duration::from_secs(1), limits, work };
        let body = Some(RequestBody::Start(spec.to_wire(&id)));
        save(&format!("start-{name}"), FROM_HOST, &Request { id: 8, body });
    }
}

/// Beside the others, so that those stay as the fuzzers left them.
#[test]
#[ignore = "writes the seeds of the corpus"]
fn write_request_seeds_of_terminals() {
    let open = TerminalSpec {
        name: "main".parse().unwrap(),
        argv: vec!["sh".into()],
        env: vec![("TERM".into(), "xterm".into())],
        cwd: None,
        run_as: RunAs::Tool,
        size: PtySize { rows: 24, columns: 80 },
    };
    let read = wire::ReadTerminal { terminal: 1, viewer: 2, offset: 3, max_bytes: 4, wait_ms: 5 };
    let typed = wire::TypeTerminal { terminal: 1, data: b"\x03".to_vec() };
    for (name, body) in [
        ("open", RequestBody::OpenTerminal(open.into())),
        ("read", RequestBody::ReadTerminal(read)),
        ("type", RequestBody::TypeTerminal(typed)),
    ] {
        save(&format!("terminal-{name}"), FROM_HOST, &Request { id: 9, body: Some(body) });
    }
}

fn save(name: &str, direction: u8, message: &impl prost::Message) {
    let mut framed = BytesMut::from(&[direction][..]);
    frame::put_message(&mut framed, message, 1 << 20).unwrap();
    std::fs::write(corpus().join(name), framed).unwrap();
}
