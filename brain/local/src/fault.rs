//! Faults a test asks for: what a network, a proxy or a bad day of the brain does to a request.
//!
//! A rule names a route; the first rule of that route with uses left decides. Rules are data, so
//! that another process can post them to `/dev/faults`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::route::Route;

/// More rules than this at once is a mistake in a test.
const MAX_RULES: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    pub route: Route,
    /// Requests that pass before the rule applies.
    #[serde(default)]
    pub skip: u32,
    /// Requests it applies to.
    #[serde(default = "once")]
    pub times: u32,
    pub fault: Fault,
}

fn once() -> u32 {
    1
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Fault {
    /// Answered with this status; the request is not applied.
    Status { status: u16, retry_after: Option<String> },
    /// Answered 200 with a body that is not JSON; not applied.
    Garbage,
    /// Answered 204 without a body; not applied.
    NoContent,
    /// Not applied, and the connection closes without an answer.
    DropBefore,
    /// Applied, and the connection closes without an answer: an ambiguous send.
    DropAnswer,
    /// Applied after this long.
    DelayBefore { ms: u64 },
    /// Applied at once, answered after this long.
    DelayAnswer { ms: u64 },
    /// Applied; the body arrives in pieces with a pause after each.
    SlowBody { piece: usize, pause_ms: u64 },
    /// Applied; the connection closes in the middle of the body.
    CutBody { after: usize },
    /// What happens to an event stream that opens.
    Stream { stream: StreamFault },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum StreamFault {
    /// Ends cleanly after this many events.
    End { after_events: u32 },
    /// Breaks off in the middle of a frame when this many bytes are out.
    Cut { after_bytes: usize },
    /// After this many events, half of the next frame is sent and the connection breaks.
    HalfFrame { after_events: u32 },
    /// Frames carry no `event:` line.
    NoName,
    /// Frames carry this name whatever they hold.
    Name { name: String },
    /// After this many events comes an `event: error` frame.
    ErrorFrame { after_events: u32 },
    /// After this many events comes a frame whose data is not JSON.
    GarbageFrame { after_events: u32 },
    /// Each event is delivered twice.
    Duplicate,
    /// Each frame is followed by a pause.
    Slow { pause_ms: u64 },
}

/// The rules in force.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Mutex<Vec<FaultRule>>,
}

/// Too many rules at once.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("more than {MAX_RULES} fault rules at once")]
pub struct TooManyFaults;

impl Faults {
    pub(crate) fn new(rules: Vec<FaultRule>) -> Self {
        Self { rules: Mutex::new(rules) }
    }

    pub(crate) fn add(&self, rule: FaultRule) -> Result<(), TooManyFaults> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.retain(|rule| rule.times > 0);
        if rules.len() >= MAX_RULES {
            return Err(TooManyFaults);
        }
        rules.push(rule);
        Ok(())
    }

    pub(crate) fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Uses up one application of the first rule for `route`, or one of its skips.
    pub(crate) fn take(&self, route: Route) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = rules.iter_mut().find(|rule| rule.route == route && rule.times > 0)?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

/// What is done to a body on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFault {
    Slow { piece: usize, pause: Duration },
    Cut { after: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_skips_then_applies_then_is_used_up() {
        let fault = Fault::Status { status: 503, retry_after: None };
        let rule = FaultRule { route: Route::EventSend, skip: 1, times: 2, fault: fault.clone() };
        let faults = Faults::new(vec![rule]);
        assert_eq!(faults.take(Route::WorkPoll), None);
        assert_eq!(faults.take(Route::EventSend), None);
        assert_eq!(faults.take(Route::EventSend), Some(fault.clone()));
        assert_eq!(faults.take(Route::EventSend), Some(fault));
        assert_eq!(faults.take(Route::EventSend), None);
    }

    #[test]
    fn a_rule_reads_from_json_and_refuses_a_typing_mistake() {
        let text =
            r#"{"route":"event_stream","fault":{"kind":"stream","stream":{"kind":"no_name"}}}"#;
        let rule: FaultRule = serde_json::from_str(text).unwrap();
        assert_eq!((rule.times, rule.skip), (1, 0));
        let text = r#"{"route":"event_stream","tims":3,"fault":{"kind":"garbage"}}"#;
        assert!(serde_json::from_str::<FaultRule>(text).is_err());
    }
}
