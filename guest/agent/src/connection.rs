//! One connection of the host: whole frames in, whole frames out, both bounded.

use std::io;
use std::os::fd::OwnedFd;

use bytes::{Buf, BytesMut};
use guest_protocol::frame::{FrameError, has_frame, put_message, take_message};
use guest_protocol::wire::{self, Request, Response, ResponseBody};
use guest_protocol::{FRAME_BYTES_MAX, REQUEST_BYTES_MAX, version};
use rustix::io::Errno;

/// Unsent answers, beyond which the connection's requests wait: a host that does not read holds
/// up itself only.
const UNSENT_BYTES_MAX: usize = 4 << 20;
/// Of an empty buffer; more is given back.
const KEPT_BYTES_MAX: usize = 256 << 10;
/// Asked of the kernel in one read.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub struct Connection {
    stream: OwnedFd,
    inbox: BytesMut,
    outbox: BytesMut,
    greeted: bool,
    /// Nothing more is read; it ends when everything is sent.
    ending: bool,
}

// === impl Connection ===

impl Connection {
    pub fn new(stream: OwnedFd) -> Self {
        let (inbox, outbox) = (BytesMut::new(), BytesMut::new());
        Self { stream, inbox, outbox, greeted: false, ending: false }
    }

    pub fn stream(&self) -> &OwnedFd {
        &self.stream
    }

    pub fn wants_read(&self) -> bool {
        !self.ending && self.outbox.len() < UNSENT_BYTES_MAX
    }

    pub fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether a request is here that came with others and has not had its turn.
    pub fn has_request(&self) -> bool {
        self.wants_read() && has_frame(&self.inbox, REQUEST_BYTES_MAX)
    }

    pub fn is_over(&self) -> bool {
        self.ending && self.outbox.is_empty()
    }

    /// Takes what has arrived; `false` when the host has closed it.
    pub fn receive(&mut self) -> bool {
        if self.inbox.is_empty() && self.inbox.capacity() > KEPT_BYTES_MAX {
            self.inbox = BytesMut::new(); // A large request has passed; an idle agent is small.
        }
        let start = self.inbox.len();
        self.inbox.resize(start + READ_BYTES, 0);
        let read = rustix::io::read(&self.stream, &mut self.inbox[start..]);
        self.inbox.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => false,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// The next request after the hello, which is answered here.
    pub fn next_request(&mut self, build: &str, epoch: u64) -> Option<Request> {
        if !self.wants_read() {
            return None;
        }
        let request = match take_message::<Request>(&mut self.inbox, REQUEST_BYTES_MAX) {
            Ok(request) => request?,
            Err(error) => {
                self.refuse(0, wire::ErrorCode::BadRequest, &frame_error(&error));
                return None;
            }
        };
        if self.greeted {
            return Some(request);
        }
        let Some(wire::RequestBody::Hello(hello)) = &request.body else {
            self.refuse(request.id, wire::ErrorCode::BadRequest, "the first message is no hello");
            return None;
        };
        match version::agree(hello) {
            Ok(_) => {
                self.greeted = true;
                self.send(request.id, ResponseBody::Hello(version::hello(build, epoch)));
                self.next_request(build, epoch)
            }
            Err(error) => {
                let code = wire::ErrorCode::UnsupportedVersion;
                self.refuse(request.id, code, &error.to_string());
                None
            }
        }
    }

    pub fn send(&mut self, id: u64, body: ResponseBody) {
        let response = Response { id, body: Some(body) };
        if put_message(&mut self.outbox, &response, FRAME_BYTES_MAX).is_err() {
            // Everything in an answer is bounded to fit; should that ever be wrong, say so.
            let code = wire::ErrorCode::Internal;
            let error = wire::Error { code: code.into(), text: "answer too long".into() };
            let response = Response { id, body: Some(ResponseBody::Error(error)) };
            let _ = put_message(&mut self.outbox, &response, FRAME_BYTES_MAX);
        }
    }

    fn refuse(&mut self, id: u64, code: wire::ErrorCode, text: &str) {
        let error = wire::Error { code: code.into(), text: text.to_owned() };
        self.send(id, ResponseBody::Error(error));
        self.ending = true;
    }

    /// Sends what the kernel takes; `false` when the host is gone.
    pub fn flush(&mut self) -> bool {
        while !self.outbox.is_empty() {
            match rustix::io::write(&self.stream, &self.outbox) {
                Ok(sent) => self.outbox.advance(sent),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn frame_error(error: &FrameError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The next waiting connection, if there is one.
pub fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    use rustix::net::SocketFlags;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match rustix::net::accept_with(listener, flags) {
        Ok(stream) => Ok(Some(stream)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
