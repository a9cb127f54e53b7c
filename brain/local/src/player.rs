//! Plays a session's script: from one step to the next until something must be waited for.
//!
//! A session is played under the state's lock and never waits there: what it waits for is in
//! its phase, and the message, result, interrupt or timer that ends the wait calls back.

use serde_json::{Value, json};

use crate::reply::new_id;
use crate::scenario::{CallSpec, Expectation, Step};
use crate::session::{Call, CallState, Phase, Play, Status, Thread};

/// What an agent without a script says.
const NO_SCRIPT: &str = "This is Sinew's development brain. It has no model: it plays scripts. \
    Create an agent whose model is \"script/NAME\".";

impl Play<'_> {
    /// A message that was just appended, still unprocessed: starts a turn, ends a wait, or waits
    /// for the end of the turn that is on.
    pub(crate) fn message_arrived(&mut self, event_id: String) {
        self.session.queued.push_back(event_id);
        match self.session.player.phase {
            Phase::BetweenTurns => self.start_turn(),
            Phase::AwaitMessage => {
                self.take_message();
                self.drive();
            }
            _ => {}
        }
    }

    /// Marks the oldest waiting message processed: it moves to the end of the history.
    fn take_message(&mut self) -> bool {
        let Some(id) = self.session.queued.pop_front() else { return false };
        if let Some(event) = self.session.history.take(&id) {
            let mut event = Value::clone(&event);
            event["processed_at"] = Value::from(self.now.stamps.now());
            self.append(event);
        }
        true
    }

    fn start_turn(&mut self) {
        if self.take_message() {
            self.set_running();
            self.drive();
        }
    }

    /// Plays on. Ends when the script waits, or when no message is left that starts a turn.
    pub(crate) fn drive(&mut self) {
        loop {
            if self.session.history.is_full() {
                self.emit("session.error", error("the development brain keeps no more events"));
                return self.terminate();
            }
            if let Some(phase) = self.step() {
                self.session.player.phase = phase;
                if phase != Phase::BetweenTurns || !self.take_message() {
                    return;
                }
                self.set_running();
            }
        }
    }

    /// Plays one step; answers what is waited for, if anything.
    fn step(&mut self) -> Option<Phase> {
        let Some(scenario) = self.session.scenario.clone() else {
            self.say(NO_SCRIPT);
            return Some(self.end_turn("end_turn"));
        };
        let Some(step) = scenario.steps.get(self.session.player.next) else {
            self.session.player.next = 0;
            self.session.verdict.completed += 1;
            // A script that closes with an end of turn has told its idle already.
            if self.session.status == Status::Running {
                return Some(self.end_turn("end_turn"));
            }
            return Some(Phase::BetweenTurns);
        };
        self.session.player.next += 1;
        match step {
            Step::Say(text) => self.say(text),
            Step::Think => {
                self.emit("agent.thinking", json!({}));
            }
            Step::Calls(calls) => return self.issue(calls),
            Step::Wait(wait) => return Some(Phase::AwaitTime(self.now.at + *wait)),
            Step::WaitForUser if self.take_message() => {}
            Step::WaitForUser => return Some(Phase::AwaitMessage),
            Step::ExpectInterrupt => return Some(Phase::AwaitInterrupt),
            Step::Emit(event) => self.emit_raw(event.clone()),
            Step::EndTurn(reason) => {
                let phase = self.end_turn(reason);
                if self.session.player.next >= scenario.steps.len() {
                    self.session.player.next = 0;
                    self.session.verdict.completed += 1;
                }
                return Some(phase);
            }
            Step::EndThread(name) => self.end_thread(name),
            Step::Terminate => {
                self.session.verdict.completed += 1;
                self.terminate();
                return Some(Phase::Ended);
            }
        }
        None
    }

    fn say(&mut self, text: &str) {
        self.emit("agent.message", json!({ "content": [{ "type": "text", "text": text }] }));
    }

    fn end_turn(&mut self, reason: &str) -> Phase {
        self.set_idle(json!({ "type": reason }));
        Phase::BetweenTurns
    }

    fn issue(&mut self, calls: &[CallSpec]) -> Option<Phase> {
        for spec in calls {
            self.issue_one(spec);
        }
        let blocking = self.session.blocking();
        if blocking.is_empty() {
            return None;
        }
        self.set_idle(json!({ "type": "requires_action", "event_ids": blocking }));
        Some(Phase::AwaitResults)
    }

    fn issue_one(&mut self, spec: &CallSpec) {
        let thread = spec.thread.as_ref().map(|name| self.thread(name));
        let mut fields = json!({ "name": spec.tool, "input": spec.input });
        if let Some(id) = &thread {
            fields["session_thread_id"] = Value::from(id.as_str());
        }
        let kind = if spec.custom { "agent.custom_tool_use" } else { "agent.tool_use" };
        let permission = match (&spec.permission, spec.custom) {
            (_, true) => "allow".to_owned(),
            (Some(text), false) => text.clone(),
            (None, false) => policy_of(&self.session.agent, &spec.tool).to_owned(),
        };
        if !spec.custom {
            fields["evaluated_permission"] = Value::from(permission.as_str());
        }
        let event = self.emit(kind, fields);
        let id = event["id"].as_str().unwrap_or_default().to_owned();
        let state = match permission.as_str() {
            "allow" => CallState::AwaitResult,
            "deny" => CallState::Denied,
            _ => CallState::AwaitConfirmation,
        };
        let denied = state == CallState::Denied;
        let call = Call {
            order: self.now.stamps.sequence(),
            name: spec.tool.clone(),
            custom: spec.custom,
            thread,
            state,
            awaited: spec.awaited,
            expect: spec.expect.clone(),
            step: self.session.player.next,
        };
        self.session.calls.insert(id.clone(), call);
        if denied {
            self.refuse_call(&id, "the call is denied by policy");
        }
    }

    /// The brain's own answer to a call that must not run.
    pub(crate) fn refuse_call(&mut self, id: &str, why: &str) {
        let content = json!([{ "type": "text", "text": why }]);
        let fields = json!({ "tool_use_id": id, "is_error": true, "content": content });
        self.emit("agent.tool_result", fields);
    }

    /// The id of a child thread, which begins with its first call.
    fn thread(&mut self, name: &str) -> String {
        if let Some(thread) = self.session.threads.get(name) {
            return thread.id.clone();
        }
        let id = new_id("sthr");
        let fields = json!({ "session_thread_id": id, "agent_name": name });
        self.emit("session.thread_created", fields.clone());
        self.emit("session.thread_status_running", fields);
        let time = self.now.stamps.now();
        let thread = Thread {
            id: id.clone(),
            created_at: time.clone(),
            updated_at: time,
            archived_at: None,
            status: Status::Running,
        };
        self.session.threads.insert(name.to_owned(), thread);
        id
    }

    /// Its open calls are over: nothing may answer them.
    pub(crate) fn end_thread(&mut self, name: &str) {
        let time = self.now.stamps.now();
        let Some(thread) = self.session.threads.get_mut(name) else { return };
        if thread.status == Status::Terminated {
            return;
        }
        thread.status = Status::Terminated;
        thread.updated_at = time;
        let id = thread.id.clone();
        for call in self.session.calls.values_mut() {
            let open = call.state.blocks() || call.state == CallState::Abandoned;
            if open && call.thread.as_deref() == Some(&id) {
                call.state = CallState::Gone;
            }
        }
        let fields = json!({ "session_thread_id": id, "agent_name": name });
        self.emit("session.thread_status_terminated", fields);
    }

    /// An event as a script or a test wrote it. A tool use among them can be answered, but the
    /// script does not wait for it.
    pub(crate) fn emit_raw(&mut self, mut event: Value) {
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        if event.get("id").is_none() {
            event["id"] = Value::from(new_id("sevt"));
        }
        if event.get("processed_at").is_none() {
            event["processed_at"] = Value::from(self.now.stamps.now());
        }
        if matches!(kind.as_str(), "agent.tool_use" | "agent.custom_tool_use") {
            let id = event["id"].as_str().unwrap_or_default().to_owned();
            let call = Call {
                order: self.now.stamps.sequence(),
                name: event["name"].as_str().unwrap_or_default().to_owned(),
                custom: kind == "agent.custom_tool_use",
                thread: event["session_thread_id"].as_str().map(str::to_owned),
                state: CallState::Abandoned,
                awaited: false,
                expect: Expectation::default(),
                step: self.session.player.next,
            };
            self.session.calls.entry(id).or_insert(call);
        }
        self.append(event);
    }

    /// Something about the open calls changed: goes on when none blocks, or says what is left.
    pub(crate) fn calls_changed(&mut self) {
        if self.session.player.phase != Phase::AwaitResults {
            return;
        }
        let blocking = self.session.blocking();
        if blocking.is_empty() {
            self.set_running();
            self.drive();
        } else {
            self.set_idle(json!({ "type": "requires_action", "event_ids": blocking }));
        }
    }

    /// A result was not as the script expects: the turn ends here.
    pub(crate) fn expectation_failed(&mut self, call: &Call, wrong: &[String]) {
        let message =
            format!("step {}: the result of {}: {}", call.step, call.name, wrong.join("; "));
        self.session.verdict.add_failure(message.clone());
        self.emit("session.error", error(&message));
        self.abandon_calls(None);
        self.break_off("retries_exhausted");
    }

    pub(crate) fn interrupted(&mut self, thread: Option<&str>) {
        let stuck = self.queue.live_item(&self.session.id).is_none();
        let unanswered = self.session.verdict().open_calls > 0;
        self.abandon_calls(thread);
        match self.session.player.phase {
            Phase::AwaitInterrupt => self.drive(),
            Phase::BetweenTurns | Phase::Ended => {}
            Phase::AwaitResults if !self.session.blocking().is_empty() => self.calls_changed(),
            Phase::AwaitResults if self.next_expects_interrupt() => {
                self.session.player.next += 1;
                self.set_running();
                self.drive();
            }
            _ => self.break_off("end_turn"),
        }
        // A session stranded by a stop gets a worker again.
        if stuck && unanswered && self.session.status != Status::Terminated {
            self.ensure_work();
        }
    }

    fn abandon_calls(&mut self, thread: Option<&str>) {
        for call in self.session.calls.values_mut() {
            if call.state.blocks() && (thread.is_none() || call.thread.as_deref() == thread) {
                call.state = CallState::Abandoned;
            }
        }
    }

    fn next_expects_interrupt(&self) -> bool {
        let scenario = self.session.scenario.as_ref();
        let next = scenario.and_then(|scenario| scenario.steps.get(self.session.player.next));
        matches!(next, Some(Step::ExpectInterrupt))
    }

    /// Leaves the turn: the script goes on behind its next end of turn.
    fn break_off(&mut self, reason: &str) {
        let Some(scenario) = self.session.scenario.clone() else { return };
        let next = self.session.player.next;
        let rest = scenario.steps.iter().skip(next);
        let skipped = rest.take_while(|step| !matches!(step, Step::EndTurn(_))).count();
        let after = next + skipped + 1;
        self.session.player.next = if after >= scenario.steps.len() { 0 } else { after };
        self.session.player.phase = self.end_turn(reason);
        self.start_turn();
    }
}

fn error(message: &str) -> Value {
    json!({ "error": {
        "type": "unknown_error",
        "message": message,
        "retry_status": { "type": "terminal" },
    }})
}

/// What the agent's tool configuration says of a built-in tool.
fn policy_of<'a>(agent: &'a Value, tool: &str) -> &'a str {
    let toolsets = agent["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
    let toolset = toolsets.iter().find(|entry| entry["type"] == "agent_toolset_20260401");
    let Some(toolset) = toolset else { return "allow" };
    let configs = toolset["configs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = configs.iter().find(|config| config["name"] == tool);
    let policies = [own, Some(&toolset["default_config"])];
    let named = policies
        .into_iter()
        .flatten()
        .find_map(|config| config["permission_policy"]["type"].as_str());
    if named == Some("always_ask") { "ask" } else { "allow" }
}
