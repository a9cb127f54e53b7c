//! Entry points for coverage-guided fuzzing: any bytes, never a panic.

use bytes::BytesMut;

use crate::call::{AgentInfo, CallSpec, CallState, OutputChunk};
use crate::frame::take_message;
use crate::terminal::{OpenedTerminal, TerminalChunk, TerminalSpec, accept_list};
use crate::vt::Scanner;
use crate::wire::{Request, RequestBody, Response, ResponseBody, TerminalOutput};
use crate::{FRAME_BYTES_MAX, REQUEST_BYTES_MAX, version};

/// What the host does with bytes of a hostile agent.
pub fn fuzz_response(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(response)) = take_message::<Response>(&mut buffer, FRAME_BYTES_MAX) {
        match response.body {
            Some(ResponseBody::Hello(hello)) => drop(version::agree(&hello)),
            Some(ResponseBody::State(state)) => drop(CallState::try_from(state)),
            Some(ResponseBody::Output(output)) => drop(OutputChunk::accept(output, 0, 1 << 16)),
            Some(ResponseBody::Info(info)) => drop(AgentInfo::try_from(info)),
            Some(ResponseBody::OpenedTerminal(opened)) => drop(OpenedTerminal::try_from(opened)),
            Some(ResponseBody::Terminals(list)) => drop(accept_list(list)),
            Some(ResponseBody::TerminalOutput(output)) => fuzz_terminal_output(output),
            _ => {}
        }
    }
}

fn fuzz_terminal_output(output: TerminalOutput) {
    if let Ok(chunk) = TerminalChunk::accept(output, 0) {
        fuzz_terminal(&chunk.data);
    }
}

/// What both ends do with bytes that a guest shows.
pub fn fuzz_terminal(bytes: &[u8]) {
    let (mut agent, mut viewer) = (Scanner::default(), Scanner::default());
    agent.scan(bytes);
    let mut shown = Vec::new();
    viewer.replayable(bytes, &mut shown);
    assert!(shown.len() <= bytes.len(), "a replay only leaves out");
    assert_eq!(agent.modes(), viewer.modes());
}

/// What the agent does with bytes of a broken host.
pub fn fuzz_request(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(request)) = take_message::<Request>(&mut buffer, REQUEST_BYTES_MAX) {
        match request.body {
            Some(RequestBody::Hello(hello)) => drop(version::agree(&hello)),
            Some(RequestBody::Start(start)) => drop(CallSpec::try_from(start)),
            Some(RequestBody::OpenTerminal(open)) => drop(TerminalSpec::try_from(open)),
            _ => {}
        }
    }
}

/// Both directions at once: the first byte chooses.
pub fn fuzz_frame(bytes: &[u8]) {
    match bytes.split_first() {
        Some((choice, rest)) if choice % 2 == 0 => fuzz_response(rest),
        Some((_, rest)) => fuzz_request(rest),
        None => {}
    }
}
