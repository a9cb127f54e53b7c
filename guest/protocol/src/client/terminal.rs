//! Terminals, from the host's end.

use super::{ClientError, GuestClient};
use crate::terminal::{
    OpenedTerminal, TERMINAL_CHUNK_BYTES_MAX, Terminal, TerminalChunk, TerminalId, TerminalRead,
    TerminalSpec, accept_list,
};
use crate::version::TERMINALS_SINCE;
use crate::wire::{self, RequestBody, ResponseBody};
use crate::{Malformed, PtySize};

impl GuestClient {
    /// Opens a terminal, or answers with the living one of this name.
    pub async fn open_terminal(&self, spec: &TerminalSpec) -> Result<OpenedTerminal, ClientError> {
        const REQUEST: &str = "open terminal";
        self.knows_terminals(REQUEST)?;
        let body = RequestBody::OpenTerminal(spec.clone().into());
        match self.request(REQUEST, body).await? {
            ResponseBody::OpenedTerminal(opened) => {
                let opened = OpenedTerminal::try_from(opened).map_err(malformed(REQUEST))?;
                if opened.terminal.name != spec.name {
                    return Err(malformed(REQUEST)(Malformed::Impossible("terminal name")));
                }
                Ok(opened)
            }
            _ => Err(ClientError::WrongAnswer { request: REQUEST }),
        }
    }

    /// The living ones, and those that ended last.
    pub async fn terminals(&self) -> Result<Vec<Terminal>, ClientError> {
        const REQUEST: &str = "list terminals";
        self.knows_terminals(REQUEST)?;
        match self.request(REQUEST, RequestBody::Terminals(wire::Empty {})).await? {
            ResponseBody::Terminals(list) => accept_list(list).map_err(malformed(REQUEST)),
            _ => Err(ClientError::WrongAnswer { request: REQUEST }),
        }
    }

    /// Output from `read.offset` on, or from where it is still kept. Waits until there is some,
    /// the terminal has ended, or `read.wait` has passed: then the piece is empty.
    pub async fn read_terminal(&self, read: TerminalRead) -> Result<TerminalChunk, ClientError> {
        const REQUEST: &str = "read terminal";
        self.knows_terminals(REQUEST)?;
        let body = RequestBody::ReadTerminal(wire::ReadTerminal {
            terminal: read.terminal.0,
            viewer: read.viewer,
            offset: read.offset,
            max_bytes: TERMINAL_CHUNK_BYTES_MAX as u64,
            wait_ms: read.wait.as_millis().try_into().unwrap_or(u64::MAX),
        });
        match self.request(REQUEST, body).await? {
            ResponseBody::TerminalOutput(output) => {
                TerminalChunk::accept(output, read.offset).map_err(malformed(REQUEST))
            }
            _ => Err(ClientError::WrongAnswer { request: REQUEST }),
        }
    }

    /// Keys. The answer comes when the terminal has taken them, which it does as fast as its
    /// program reads.
    pub async fn type_terminal(&self, id: TerminalId, data: Vec<u8>) -> Result<(), ClientError> {
        const REQUEST: &str = "type into terminal";
        self.knows_terminals(REQUEST)?;
        let typed = wire::TypeTerminal { terminal: id.0, data };
        self.done(REQUEST, RequestBody::TypeTerminal(typed)).await
    }

    pub async fn resize_terminal(&self, id: TerminalId, size: PtySize) -> Result<(), ClientError> {
        const REQUEST: &str = "resize terminal";
        self.knows_terminals(REQUEST)?;
        let resize = wire::ResizeTerminal { terminal: id.0, size: Some(size.into()) };
        self.done(REQUEST, RequestBody::ResizeTerminal(resize)).await
    }

    /// Hangs up, and soon kills what stays. Harmless when it has ended.
    pub async fn end_terminal(&self, id: TerminalId) -> Result<(), ClientError> {
        const REQUEST: &str = "end terminal";
        self.knows_terminals(REQUEST)?;
        self.done(REQUEST, RequestBody::EndTerminal(wire::EndTerminal { terminal: id.0 })).await
    }

    fn knows_terminals(&self, request: &'static str) -> Result<(), ClientError> {
        let spoken = self.peer().version;
        if spoken >= TERMINALS_SINCE {
            return Ok(());
        }
        Err(ClientError::AgentTooOld { request, spoken, needed: TERMINALS_SINCE })
    }
}

fn malformed(request: &'static str) -> impl Fn(Malformed) -> ClientError {
    move |source| ClientError::Malformed { request, source }
}
