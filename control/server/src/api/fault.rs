//! How a request is refused: a stable code, a message and a hint.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Every way the API refuses. The code is what programs branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    BadRequest,
    NoSuchRoute,
    WrongMethod,
    RequestTooLarge,
    NoSuchSession,
    SessionEnded,
    NoSandbox,
    Elsewhere,
    SandboxUnavailable,
    ExecRefused,
    UpgradeRequired,
    NoSuchTerminal,
    TerminalRefused,
    AgentTooOld,
    ServeStopping,
    StopFailed,
    StoreFailed,
    Internal,
}

impl FaultCode {
    pub const ALL: [FaultCode; 18] = [
        FaultCode::BadRequest,
        FaultCode::NoSuchRoute,
        FaultCode::WrongMethod,
        FaultCode::RequestTooLarge,
        FaultCode::NoSuchSession,
        FaultCode::SessionEnded,
        FaultCode::NoSandbox,
        FaultCode::Elsewhere,
        FaultCode::SandboxUnavailable,
        FaultCode::ExecRefused,
        FaultCode::UpgradeRequired,
        FaultCode::NoSuchTerminal,
        FaultCode::TerminalRefused,
        FaultCode::AgentTooOld,
        FaultCode::ServeStopping,
        FaultCode::StopFailed,
        FaultCode::StoreFailed,
        FaultCode::Internal,
    ];

    /// The one place that decides status codes.
    pub fn status(self) -> u16 {
        match self {
            FaultCode::BadRequest => 400,
            FaultCode::NoSuchRoute | FaultCode::NoSuchSession | FaultCode::NoSuchTerminal => 404,
            FaultCode::WrongMethod => 405,
            FaultCode::SessionEnded | FaultCode::NoSandbox | FaultCode::AgentTooOld => 409,
            FaultCode::RequestTooLarge => 413,
            FaultCode::Elsewhere => 421,
            FaultCode::ExecRefused | FaultCode::TerminalRefused => 422,
            FaultCode::UpgradeRequired => 426,
            FaultCode::StopFailed | FaultCode::StoreFailed | FaultCode::Internal => 500,
            FaultCode::SandboxUnavailable | FaultCode::ServeStopping => 503,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            FaultCode::BadRequest => "bad_request",
            FaultCode::NoSuchRoute => "no_such_route",
            FaultCode::WrongMethod => "wrong_method",
            FaultCode::RequestTooLarge => "request_too_large",
            FaultCode::NoSuchSession => "no_such_session",
            FaultCode::SessionEnded => "session_ended",
            FaultCode::NoSandbox => "no_sandbox",
            FaultCode::Elsewhere => "elsewhere",
            FaultCode::SandboxUnavailable => "sandbox_unavailable",
            FaultCode::ExecRefused => "exec_refused",
            FaultCode::UpgradeRequired => "upgrade_required",
            FaultCode::NoSuchTerminal => "no_such_terminal",
            FaultCode::TerminalRefused => "terminal_refused",
            FaultCode::AgentTooOld => "agent_too_old",
            FaultCode::ServeStopping => "serve_stopping",
            FaultCode::StopFailed => "stop_failed",
            FaultCode::StoreFailed => "store_failed",
            FaultCode::Internal => "internal",
        }
    }

    /// What the reader should do about it.
    pub fn hint(self) -> &'static str {
        match self {
            FaultCode::BadRequest => "correct the request as the message says",
            FaultCode::NoSuchRoute => "the routes are listed in docs/user/api.md",
            FaultCode::WrongMethod => "the methods are listed in docs/user/api.md",
            FaultCode::RequestTooLarge => "a request body is at most 1 MiB",
            FaultCode::NoSuchSession => "list the known ones with `sinew session ls`",
            FaultCode::SessionEnded => "the session is over; its log is kept: `sinew session log`",
            FaultCode::NoSandbox => "the session has run nothing yet; wait for its first call",
            FaultCode::Elsewhere => "run the command on that node; `sinew session show` names it",
            FaultCode::SandboxUnavailable => "see `sinew session log` and `sinew doctor`",
            FaultCode::ExecRefused => "check the command, its directory and its environment",
            FaultCode::UpgradeRequired => {
                "send `Connection: upgrade` and `Upgrade:` with the protocol that the message names"
            }
            FaultCode::NoSuchTerminal => "list them with `sinew shell SESSION --list`",
            FaultCode::TerminalRefused => {
                "see `sinew shell SESSION --list`; end one with `--name NAME --kill`"
            }
            FaultCode::AgentTooOld => {
                "`sinew session stop SESSION` ends the old one's processes and keeps the files; the \
                 sandbox comes back with the new agent"
            }
            FaultCode::ServeStopping => "what ran goes on: attach again when `sinew serve` is back",
            FaultCode::StopFailed => "try again; if it stays, see the log of `sinew serve`",
            FaultCode::StoreFailed => "check the disk of the data directory, then `sinew doctor`",
            FaultCode::Internal => "see the log of `sinew serve`",
        }
    }
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The body of every refusal: `{"error": {"code", "message", "hint"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultBody {
    pub error: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub code: FaultCode,
    pub message: String,
    pub hint: String,
}

impl Fault {
    pub fn new(code: FaultCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: code.hint().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_its_name_on_the_wire() {
        for code in FaultCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
            assert!((400..600).contains(&code.status()), "{code}");
            assert!(!code.hint().is_empty(), "{code}");
        }
    }
}
