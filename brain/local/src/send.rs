//! What a client or a worker sends into a session: checked as a whole first, then applied.

use std::sync::Arc;

use base_types::ToolUseId;
use serde_json::{Value, json};

use crate::reply::{ApiError, new_id};
use crate::route::CredentialKind;
use crate::scenario::text_of;
use crate::session::{CallState, MAX_QUEUED_MESSAGES, Phase, Play, ResultRecord, Status};

/// Events one request may carry.
const MAX_EVENTS_PER_SEND: usize = 100;
/// What an unanswerable call is answered with; also used for a person's refusal without words.
const DENIED: &str = "the call was denied";

const RESULT_BLOCKS: &[&str] = &["text", "image", "document", "search_result"];

/// Results that were not simply taken, over all sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    pub results: u64,
    /// Identical re-posts of a result.
    pub identical_results: u64,
    /// Re-posts of another content for an answered call.
    pub conflicting_results: u64,
    /// Results that came after an interrupt had ended the turn.
    pub late_results: u64,
    /// Results for calls that do not exist, are denied, or belong to an ended thread.
    pub refused_results: u64,
    /// Sends applied whose answer a fault rule kept back.
    pub dropped_answers: u64,
}

/// One event of a send, checked for its form.
enum Sent {
    Message { event: Value },
    Interrupt { thread: Option<String> },
    Confirmation { id: String, allow: bool, message: Option<String>, event: Value },
    Result(SentResult),
    Other { event: Value },
}

struct SentResult {
    id: String,
    custom: bool,
    is_error: bool,
    content: Value,
    event: Value,
}

impl Play<'_> {
    /// Takes a request's events. Nothing is applied when one of them is refused.
    pub(crate) fn send(
        &mut self,
        body: &Value,
        credential: CredentialKind,
        counters: &mut Counters,
    ) -> Result<Value, ApiError> {
        let events = body["events"]
            .as_array()
            .filter(|events| !events.is_empty() && events.len() <= MAX_EVENTS_PER_SEND)
            .ok_or_else(|| ApiError::invalid("events: expected a list of 1 to 100 events"))?;
        if self.session.status == Status::Terminated {
            return Err(ApiError::invalid("the session is terminated"));
        }
        if self.session.history.is_full() {
            return Err(ApiError::full("the session has too many events"));
        }
        let mut checked = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let sent = parse(event).map_err(|message| at(index, &message))?;
            self.check(&sent, counters).map_err(|message| at(index, &message))?;
            checked.push(sent);
        }
        let mut echoes = Vec::new();
        for sent in checked {
            echoes.push(self.apply(sent, credential, counters));
        }
        Ok(json!({ "data": echoes }))
    }

    fn check(&mut self, sent: &Sent, counters: &mut Counters) -> Result<(), String> {
        match sent {
            Sent::Message { .. } if self.session.queued.len() >= MAX_QUEUED_MESSAGES => {
                Err("too many messages wait for the end of the turn".to_owned())
            }
            Sent::Confirmation { id, .. } => match self.session.calls.get(id) {
                None => Err(format!("no tool use {id}")),
                Some(call) if call.custom => Err(format!("{id} is a custom tool use")),
                Some(_) => Ok(()),
            },
            Sent::Result(result) => self.check_result(result, counters),
            _ => Ok(()),
        }
    }

    fn check_result(&mut self, sent: &SentResult, counters: &mut Counters) -> Result<(), String> {
        let id = &sent.id;
        let refuse_identical = self.now.switches.refuse_identical_result;
        let verdict = match self.session.calls.get(id) {
            None => Err(format!("no tool use {id}")),
            Some(call) if call.custom != sent.custom => {
                Err(format!("{id} is answered by the other kind of result"))
            }
            Some(call) => match &call.state {
                CallState::AwaitResult | CallState::Abandoned => Ok(()),
                CallState::AwaitConfirmation => Err(format!("tool use {id} is not confirmed")),
                CallState::Denied => Err(format!("tool use {id} is denied")),
                CallState::Gone => Err(format!("the thread of tool use {id} is terminated")),
                CallState::Answered { is_error, content, .. } => {
                    let same = *is_error == sent.is_error && *content == sent.content;
                    if same && !refuse_identical {
                        return Ok(());
                    }
                    if !same {
                        counters.conflicting_results += 1;
                        self.count_repeat(id, |record| record.conflicts += 1);
                    }
                    return Err(format!("tool use {id} is already resolved"));
                }
            },
        };
        if verdict.is_err() {
            counters.refused_results += 1;
        }
        verdict
    }

    fn count_repeat(&mut self, id: &str, count: impl FnOnce(&mut ResultRecord)) {
        let mut records = self.session.results.iter_mut();
        if let Some(record) = records.find(|record| record.tool_use_id.as_str() == id) {
            count(record);
        }
    }

    fn apply(&mut self, sent: Sent, by: CredentialKind, counters: &mut Counters) -> Value {
        match sent {
            Sent::Message { event } => {
                let echo = self.append(with_id(event, Value::Null));
                let id = echo["id"].as_str().unwrap_or_default().to_owned();
                self.message_arrived(id);
                Value::clone(&echo)
            }
            Sent::Interrupt { thread } => {
                let mut fields = json!({});
                if let Some(thread) = &thread {
                    fields["session_thread_id"] = Value::from(thread.as_str());
                }
                let echo = self.emit("user.interrupt", fields);
                self.interrupted(thread.as_deref());
                Value::clone(&echo)
            }
            Sent::Confirmation { id, allow, message, event } => {
                let echo = self.append_processed(event, &id);
                self.confirmed(&id, allow, message.as_deref());
                Value::clone(&echo)
            }
            Sent::Result(result) => self.take_result(result, by, counters),
            Sent::Other { event } => {
                let time = Value::from(self.now.stamps.now());
                Value::clone(&self.append(with_id(event, time)))
            }
        }
    }

    /// Appends a confirmation or a result, marked with its thread.
    fn append_processed(&mut self, mut event: Value, call: &str) -> Arc<Value> {
        let call = self.session.calls.get(call);
        if let Some(thread) = call.and_then(|call| call.thread.clone()) {
            event["session_thread_id"] = Value::from(thread);
        }
        let time = Value::from(self.now.stamps.now());
        self.append(with_id(event, time))
    }

    fn confirmed(&mut self, id: &str, allow: bool, message: Option<&str>) {
        let Some(call) = self.session.calls.get_mut(id) else { return };
        if call.state != CallState::AwaitConfirmation {
            return;
        }
        call.state = if allow { CallState::AwaitResult } else { CallState::Denied };
        if !allow {
            self.refuse_call(id, message.unwrap_or(DENIED));
        }
        self.calls_changed();
    }

    fn take_result(
        &mut self,
        sent: SentResult,
        by: CredentialKind,
        counters: &mut Counters,
    ) -> Value {
        let id = sent.id;
        if let Some(CallState::Answered { echo, .. }) =
            self.session.calls.get(&id).map(|call| &call.state)
        {
            let echo = echo.clone();
            counters.identical_results += 1;
            self.count_repeat(&id, |record| record.repeats += 1);
            return Value::clone(&echo);
        }
        let echo = self.append_processed(sent.event, &id);
        // The check found it; only this method removes it, and puts it back.
        let Some(mut call) = self.session.calls.remove(&id) else { return Value::clone(&echo) };
        let late = call.state == CallState::Abandoned;
        let blocks = sent.content.as_array().map(Vec::as_slice).unwrap_or_default();
        counters.results += 1;
        counters.late_results += u64::from(late);
        self.session.results.push(ResultRecord {
            tool_use_id: ToolUseId::from(id.as_str()),
            tool: call.name.clone(),
            is_error: sent.is_error,
            text: text_of(blocks),
            content: sent.content.clone(),
            credential: by,
            at: echo["processed_at"].as_str().unwrap_or_default().to_owned(),
            late,
            repeats: 0,
            conflicts: 0,
        });
        let wrong = call.expect.check(sent.is_error, blocks);
        let (is_error, content) = (sent.is_error, sent.content);
        call.state = CallState::Answered { is_error, content, echo: echo.clone() };
        if wrong.is_empty() {
            self.session.calls.insert(id, call);
            self.calls_changed();
        } else {
            let waiting = self.session.player.phase == Phase::AwaitResults;
            self.result_was_wrong(&call, &wrong, waiting);
            self.session.calls.insert(id, call);
        }
        Value::clone(&echo)
    }

    /// A late result that is wrong is a failure too, but there is no turn to end.
    fn result_was_wrong(&mut self, call: &crate::session::Call, wrong: &[String], waiting: bool) {
        if waiting {
            self.expectation_failed(call, wrong);
        } else {
            let message = format!("step {}, late: {}", call.step, wrong.join("; "));
            self.session.verdict.add_failure(message);
        }
    }
}

fn at(index: usize, message: &str) -> ApiError {
    ApiError::invalid(format!("events.{index}: {message}"))
}

fn with_id(mut event: Value, processed_at: Value) -> Value {
    event["id"] = Value::from(new_id("sevt"));
    event["processed_at"] = processed_at;
    event
}

fn parse(event: &Value) -> Result<Sent, String> {
    let event = event.as_object().map(|_| event.clone()).ok_or("expected an object")?;
    let kind = event["type"].as_str().unwrap_or_default();
    match kind {
        "user.message" => {
            blocks(&event["content"], &["text", "image", "document"])?;
            Ok(Sent::Message { event })
        }
        "user.interrupt" => {
            let thread = event["session_thread_id"].as_str().map(str::to_owned);
            Ok(Sent::Interrupt { thread })
        }
        "user.tool_confirmation" => {
            let allow = match event["result"].as_str() {
                Some("allow") => true,
                Some("deny") => false,
                _ => return Err("result: expected allow or deny".to_owned()),
            };
            let message = event["deny_message"].as_str().map(str::to_owned);
            let id = required(&event, "tool_use_id")?;
            Ok(Sent::Confirmation { id, allow, message, event })
        }
        "user.tool_result" => parse_result(event, "tool_use_id", false),
        "user.custom_tool_result" => parse_result(event, "custom_tool_use_id", true),
        "system.message" => {
            blocks(&event["content"], &["text"])?;
            Ok(Sent::Other { event })
        }
        "user.define_outcome" => Ok(Sent::Other { event }),
        _ => Err(format!("type: {kind:.64?} cannot be sent")),
    }
}

fn parse_result(event: Value, key: &str, custom: bool) -> Result<Sent, String> {
    let id = required(&event, key)?;
    let is_error = match &event["is_error"] {
        Value::Null => false,
        value => value.as_bool().ok_or("is_error: expected true or false")?,
    };
    let content = match &event["content"] {
        Value::Null => json!([]),
        content => {
            // On an error the Messages API takes nothing but text.
            let allowed = if is_error { &RESULT_BLOCKS[..1] } else { RESULT_BLOCKS };
            blocks(content, allowed)?;
            content.clone()
        }
    };
    Ok(Sent::Result(SentResult { id, custom, is_error, content, event }))
}

fn required(event: &Value, key: &str) -> Result<String, String> {
    let text = event[key].as_str().filter(|text| !text.is_empty());
    text.map(str::to_owned).ok_or_else(|| format!("{key}: required"))
}

fn blocks(content: &Value, allowed: &[&str]) -> Result<(), String> {
    let blocks = content.as_array().ok_or("content: expected a list of blocks")?;
    for (index, block) in blocks.iter().enumerate() {
        let kind = block["type"].as_str().unwrap_or_default();
        if !allowed.contains(&kind) {
            return Err(format!("content.{index}: a block of type {kind:.64?} is not taken here"));
        }
        let text = block["text"].as_str();
        if kind == "text" && text.is_none_or(str::is_empty) {
            return Err(format!("content.{index}.text: must not be empty"));
        }
    }
    Ok(())
}
