//! The HTTP API of `sinew serve`, over a unix socket: what the command line asks, and later the
//! console.
//!
//! [`api`] holds the words of requests and answers, [`client`] speaks them, [`Server`] answers
//! them. What only a running session driver can do comes in through [`SessionControl`].
//!
//! **Invariant:** an answer never carries a credential: it is made from journal rows and statuses,
//! and neither holds one.
//! **Invariant:** one place ([`api::FaultCode`]) decides status codes.

#![forbid(unsafe_code)]

pub mod api;
pub mod client;
mod control;
mod fault;
mod routes;
mod server;
mod socket;

pub use control::{ControlError, GuestHold, SessionControl};
pub use server::{Server, ServerParts};
pub use socket::{ApiSocket, BindError, SocketOwner};

/// The socket's name in the data directory.
pub const SOCKET_FILE: &str = "serve.sock";

/// The directory of the socket itself, in the data directory: `serve` may write there, and what is
/// in the data directory under [`SOCKET_FILE`] is a link that only root can change.
pub const SOCKET_DIR: &str = "api";

/// The longest accepted request body: an `exec` with a large environment is far below it.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Connections served at once. Each is a person or a script; more is a mistake.
pub const CONNECTIONS_MAX: usize = 256;
