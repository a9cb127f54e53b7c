//! The program beside the tools, as an operator sees it.

use base_types::Timestamp;
use sandbox_api::guest::{ENTRYPOINT_LOG, EntrypointInfo, Exit, OUTPUT_PATH};
use serde::{Deserialize, Serialize};

/// The last millisecond of the year 9999: a guest's clock may say anything.
const LATEST_MS: i64 = 253_402_300_799_999;

/// How the entrypoint fares, by the word of the sandbox itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntrypointView {
    pub command: String,
    /// `running`, `ended` or `not_started`.
    pub state: String,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    /// Why it did not start.
    pub reason: Option<String>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub output_bytes: u64,
    /// The end of its output.
    pub output_tail: String,
    /// Where the sandbox has more of it.
    pub log: String,
}

// === impl EntrypointView ===

impl EntrypointView {
    pub fn of(info: EntrypointInfo) -> Self {
        let (mut exit_code, mut signal, mut reason) = (None, None, None);
        let ended_at = info.end.as_ref().map(|end| timestamp(end.at_ms));
        let state = match info.end.map(|end| end.exit) {
            None => "running",
            Some(Exit::FailedToStart(why)) => {
                reason = Some(why);
                "not_started"
            }
            Some(exit) => {
                match exit {
                    Exit::Code(code) => exit_code = Some(code),
                    Exit::Signal(number) => signal = Some(number),
                    _ => {}
                }
                "ended"
            }
        };
        Self {
            command: info.command,
            state: state.to_owned(),
            exit_code,
            signal,
            reason,
            started_at: timestamp(info.started_at_ms),
            ended_at,
            output_bytes: info.output_bytes,
            output_tail: String::from_utf8_lossy(&info.tail).into_owned(),
            log: format!("{OUTPUT_PATH}/{ENTRYPOINT_LOG}"),
        }
    }
}

fn timestamp(ms: u64) -> Timestamp {
    Timestamp(i64::try_from(ms).unwrap_or(LATEST_MS).min(LATEST_MS))
}

#[cfg(test)]
mod tests {
    use sandbox_api::guest::EntrypointEnd;

    use super::*;

    #[test]
    fn every_state_is_told_and_no_clock_is_believed() {
        let of = |exit: Option<Exit>| {
            EntrypointView::of(EntrypointInfo {
                command: "c".into(),
                started_at_ms: u64::MAX,
                end: exit.map(|exit| EntrypointEnd { exit, at_ms: 5 }),
                output_bytes: 2,
                tail: b"\xffx".to_vec(),
            })
        };
        let running = of(None);
        assert_eq!((running.state.as_str(), running.ended_at), ("running", None));
        assert_eq!(running.started_at, Timestamp(LATEST_MS));
        assert_eq!(running.output_tail, "\u{fffd}x");
        let ended = of(Some(Exit::Code(3)));
        assert_eq!((ended.state.as_str(), ended.exit_code), ("ended", Some(3)));
        assert_eq!(ended.ended_at, Some(Timestamp(5)));
        assert_eq!(of(Some(Exit::Signal(9))).signal, Some(9));
        let failed = of(Some(Exit::FailedToStart("why".into())));
        assert_eq!((failed.state.as_str(), failed.reason.as_deref()), ("not_started", Some("why")));
    }
}
