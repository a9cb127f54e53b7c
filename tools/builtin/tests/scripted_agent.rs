//! The tools against an agent that says whatever a test wants, over the real framing.

use std::time::Duration;

use base_types::{CallId, Epoch, SessionId};
use brain_api::Block;
use bytes::BytesMut;
use guest_protocol::wire::{self, BlockKind, ErrorCode, RequestBody, ResponseBody, StateBody};
use guest_protocol::{FRAME_BYTES_MAX, GuestClient, frame, version};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tools_api::{ToolAnswer, ToolContext, ToolError, ToolLimits};

const LIMITS: ToolLimits = ToolLimits {
    bash: Duration::from_secs(120),
    bash_max: Duration::from_secs(1800),
    other: Duration::from_secs(150),
};

/// Runs one call against an agent whose answers `script` makes; `None` closes the connection.
async fn run(
    tool: &str,
    input: Value,
    notice: Option<&str>,
    script: impl FnMut(RequestBody) -> Option<ResponseBody> + Send + 'static,
) -> Result<ToolAnswer, ToolError> {
    let (host, agent) = tokio::io::duplex(1 << 16);
    tokio::spawn(serve(agent, script));
    let (guest, driver) = GuestClient::connect(host, "host").await.unwrap();
    tokio::spawn(driver);
    let tools = tools_builtin::builtin_tools();
    let tool = tools.iter().find(|t| t.name() == tool).unwrap();
    let (session, call) = (SessionId::new("sesn_1"), CallId::generate());
    let context = ToolContext {
        session: &session,
        call: &call,
        epoch: Epoch(1),
        guest: &guest,
        limits: LIMITS,
        notice: notice.map(str::to_owned),
    };
    tool.run(&context, &input).await
}

async fn serve(
    mut agent: DuplexStream,
    mut script: impl FnMut(RequestBody) -> Option<ResponseBody>,
) {
    let mut inbox = BytesMut::new();
    loop {
        while let Some(request) =
            frame::take_message::<wire::Request>(&mut inbox, usize::MAX).unwrap()
        {
            let body = match request.body.unwrap() {
                RequestBody::Hello(_) => Some(ResponseBody::Hello(version::hello("test", 1))),
                other => script(other),
            };
            let Some(body) = body else { return };
            let response = wire::Response { id: request.id, body: Some(body) };
            let mut out = BytesMut::new();
            frame::put_message(&mut out, &response, FRAME_BYTES_MAX).unwrap();
            agent.write_all(&out).await.unwrap();
        }
        if agent.read_buf(&mut inbox).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

fn state(body: StateBody) -> Option<ResponseBody> {
    Some(ResponseBody::State(wire::State { body: Some(body) }))
}

fn finished(outcome: wire::Outcome) -> Option<ResponseBody> {
    state(StateBody::Finished(outcome))
}

fn refused(code: ErrorCode) -> Option<ResponseBody> {
    Some(ResponseBody::Error(wire::Error { code: code.into(), text: "because".to_owned() }))
}

fn said(code: i32, text: &str) -> wire::Outcome {
    wire::Outcome {
        exit: Some(wire::Exit::Code(code)),
        total_bytes: text.len() as u64,
        head: text.as_bytes().to_vec(),
        ..Default::default()
    }
}

fn text(answer: &ToolAnswer) -> &str {
    let [Block::Text { text }] = answer.content.as_slice() else { panic!("{answer:?}") };
    text
}

#[tokio::test]
async fn a_call_that_runs_already_is_joined_and_its_notice_stands_first() {
    let mut waits = 0;
    let answer = run("bash", json!({"command": "x"}), Some("[lost]"), move |request| {
        let running = wire::Running { started_at_ms: 1, total_bytes: 0 };
        match request {
            RequestBody::Start(_) => state(StateBody::Running(running)),
            RequestBody::Wait(_) if waits == 0 => {
                waits += 1;
                state(StateBody::Running(running))
            }
            RequestBody::Wait(_) => finished(said(0, "done\n")),
            other => panic!("{other:?}"),
        }
    });
    let answer = answer.await.unwrap();
    assert_eq!(text(&answer), "[lost]\ndone");
    assert_eq!((answer.is_error, answer.exit_code), (false, Some(0)));
    assert_eq!(answer.summary, "exit code 0, 5 bytes of output");
}

#[tokio::test]
async fn what_the_model_asked_for_reaches_the_agent_with_its_limits() {
    let input = json!({"command": "make", "restart": true, "timeout_ms": 250_000});
    let answer = run("bash", input, None, |request| {
        let RequestBody::Start(start) = request else { return finished(said(0, "")) };
        assert_eq!(start.timeout_ms, 250_000);
        let Some(wire::Spec::Shell(shell)) = start.spec else { panic!("no shell") };
        assert_eq!((shell.command.as_deref(), shell.restart), (Some("make"), true));
        finished(said(0, ""))
    });
    assert_eq!(text(&answer.await.unwrap()), "bash session restarted");

    let answer = run("write", json!({"file_path": "a", "content": "é"}), None, |request| {
        let RequestBody::Start(start) = request else {
            return finished(said(0, "wrote 2 bytes to a"));
        };
        assert_eq!(start.timeout_ms, 150_000);
        let Some(wire::Spec::File(file)) = start.spec else { panic!("no file") };
        let roots: Vec<_> = file.roots.iter().map(|r| (r.path.as_str(), r.writable)).collect();
        assert_eq!(roots, [("/workspace", true), ("/run/sinew/output", false)]);
        finished(said(0, "wrote 2 bytes to a"))
    });
    let answer = answer.await.unwrap();
    assert_eq!(
        (text(&answer), answer.summary.as_str()),
        ("wrote 2 bytes to a", "wrote 2 bytes to a")
    );
}

#[tokio::test]
async fn a_lost_connection_is_the_callers_to_mend() {
    let input = json!({"command": "x"});
    let at_start = run("bash", input.clone(), None, |_| None).await;
    assert!(matches!(at_start, Err(ToolError::ConnectionLost(_))), "{at_start:?}");
    let at_wait = run("bash", input, None, |request| match request {
        RequestBody::Start(_) => state(StateBody::Running(wire::Running::default())),
        _ => None,
    });
    assert!(matches!(at_wait.await, Err(ToolError::ConnectionLost(_))));
    let mut answers = 0;
    let at_fetch = run("read", json!({"file_path": "a.png"}), None, move |_| {
        answers += 1;
        if answers == 1 { finished(image("image/png", 10)) } else { None }
    });
    assert!(matches!(at_fetch.await, Err(ToolError::ConnectionLost(_))));
}

#[tokio::test]
async fn a_refusal_says_whether_the_call_may_have_run() {
    let input = || json!({"command": "x"});
    let busy = run("bash", input(), None, |_| refused(ErrorCode::ShellBusy)).await.unwrap();
    assert!(text(&busy).starts_with("bash: the call was not started"), "{busy:?}");
    for unknown in [
        run("bash", input(), None, |_| refused(ErrorCode::AlreadyAcked)).await.unwrap(),
        run("bash", input(), None, |_| state(StateBody::Unknown(wire::Empty {}))).await.unwrap(),
        run("bash", input(), None, |_| Some(ResponseBody::Done(wire::Empty {}))).await.unwrap(),
        run("bash", input(), None, |request| match request {
            RequestBody::Start(_) => state(StateBody::Running(wire::Running::default())),
            _ => refused(ErrorCode::UnknownCall),
        })
        .await
        .unwrap(),
    ] {
        assert!(text(&unknown).starts_with("bash: outcome unknown"), "{unknown:?}");
        assert!(unknown.is_error);
    }
}

fn image(media_type: &str, total_bytes: u64) -> wire::Outcome {
    wire::Outcome {
        exit: Some(wire::Exit::Code(0)),
        total_bytes,
        block: BlockKind::Image.into(),
        media_type: media_type.to_owned(),
        ..Default::default()
    }
}

/// Reads a file of `held` bytes that the agent says has `claimed`.
async fn read_image(media_type: &'static str, claimed: u64, held: usize) -> ToolAnswer {
    let bytes: Vec<u8> = (0..held).map(|i| i as u8).collect();
    let answer = run("read", json!({"file_path": "a.png"}), None, move |request| match request {
        RequestBody::Start(_) | RequestBody::Wait(_) => finished(image(media_type, claimed)),
        RequestBody::Output(read) => {
            let from = (read.offset as usize).min(bytes.len());
            let to = (from + read.max_bytes as usize).min(bytes.len());
            Some(ResponseBody::Output(wire::Output {
                offset: read.offset,
                data: bytes[from..to].to_vec(),
                spooled_bytes: bytes.len() as u64,
                finished: true,
            }))
        }
        other => panic!("{other:?}"),
    });
    answer.await.unwrap()
}

#[tokio::test]
async fn a_picture_is_fetched_in_pieces() {
    let size = 1_500_000;
    let answer = read_image("image/png", size, size as usize).await;
    let [Block::Image { media_type, data }] = answer.content.as_slice() else { panic!("no image") };
    assert_eq!((media_type.as_str(), data.len()), ("image/png", 2_000_000));
    assert_eq!(answer.summary, "image/png, 1500000 bytes");
    let pdf = read_image("application/pdf", 3, 3).await;
    let [Block::Document { data, .. }] = pdf.content.as_slice() else { panic!("no document") };
    assert_eq!(data, "AAEC");
}

#[tokio::test]
async fn an_agent_that_lies_about_a_picture_gets_no_memory_and_no_picture() {
    for (media_type, claimed, held, expected) in [
        ("text/html", 10, 10, "read: not a kind of file to show"),
        ("image/png", 4_000_000, 10, "read: the file is 4000000 bytes, exceeds 3932160-byte limit"),
        ("application/pdf", u64::MAX, 10, "read: the file is 18446744073709551615 bytes"),
        ("image/png", 100, 10, "read: only 10 of the file's 100 bytes"),
        ("image/png", 10, 100, "read: only 100 of the file's 10 bytes"),
    ] {
        let answer = read_image(media_type, claimed, held).await;
        assert!(text(&answer).starts_with(expected), "{}", text(&answer));
        assert!(answer.is_error);
    }
}

#[tokio::test]
async fn file_texts_are_verbatim_and_refusals_are_errors() {
    let read = json!({"file_path": "a"});
    let verbatim = "\u{1b}[31mred\r\n\n\n";
    let script = move |_| finished(said(0, verbatim));
    let answer = run("read", read.clone(), None, script).await.unwrap();
    assert_eq!((text(&answer), answer.summary.as_str()), (verbatim, "12 bytes"));
    let empty = run("read", read.clone(), None, |_| finished(said(0, ""))).await.unwrap();
    assert_eq!(text(&empty), "(no output)");
    let missing = "read: a: no such file or directory";
    let answer =
        run("read", read.clone(), None, move |_| finished(said(1, missing))).await.unwrap();
    assert_eq!((text(&answer), answer.is_error), (missing, true));
    assert_eq!(answer.summary, missing);
    let timed_out =
        wire::Outcome { exit: Some(wire::Exit::TimedOut(wire::Empty {})), ..said(0, "half") };
    let answer = run("grep", json!({"pattern": "x"}), None, move |_| finished(timed_out.clone()));
    assert_eq!(text(&answer.await.unwrap()), "grep: timed out after 150s");
}

#[tokio::test]
async fn a_wrong_input_asks_no_agent_for_anything() {
    for (tool, input) in [("bash", json!({"cmd": 1})), ("read", json!(null)), ("edit", json!({}))] {
        let answer =
            run(tool, input, Some("[lost]"), |request| panic!("{request:?}")).await.unwrap();
        assert!(text(&answer).starts_with(&format!("[lost]\n{tool}: ")), "{answer:?}");
        assert!(answer.is_error);
    }
}
