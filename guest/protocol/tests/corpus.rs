//! The corpus of the fuzzers, replayed: each file goes through both decoders.
//!
//! A file's first byte chooses the direction (see [`guest_protocol::fuzz::fuzz_frame`]). What a
//! fuzzer finds is added as a file; the seeds are written by the ignored test below.

use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use guest_protocol::wire::{self, Request, RequestBody, Response, ResponseBody};
use guest_protocol::{
    Block, CallId, CallSpec, CallState, Exit, FileOp, FileSpec, Note, Outcome, OutputLimits, Root,
    ShellSpec, Work, frame, fuzz, version,
};

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

fn save(name: &str, direction: u8, message: &impl prost::Message) {
    let mut framed = BytesMut::from(&[direction][..]);
    frame::put_message(&mut framed, message, 1 << 20).unwrap();
    std::fs::write(corpus().join(name), framed).unwrap();
}
