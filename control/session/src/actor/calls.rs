//! Tool calls: from the router's step to a result that the brain has.

use base_types::{CallId, Epoch};
use brain_api::{Block, ToolResult, ToolResultKind, ToolUse, ToolUseKind};
use store_api::{
    CallEnd, CallRecord, CallState, Change, LogEvent, NewCall, Phase, SandboxRecord, StoreError,
    Untold,
};
use tokio::time::Instant;
use tools_api::{Idempotency, ToolAnswer};

use super::ending::End;
use super::serving::{Queued, Stage, Undelivered};
use super::{Actor, Slot};
use crate::call::{
    CallRun, CancelReason, Running, interrupted_answer, loss_notice, outcome_unknown_answer,
};
use crate::message::{CallOutcome, Outbox, SendEnd, line};
use crate::router::{LeaveReason, Step};
use crate::sender::Delivery;

const THREAD_ENDED: &str = "its thread was terminated";
/// The tool that tells of lost processes: its state is what was lost.
const SHELL_TOOL: &str = "bash";

/// What to do with the call at the head of the queue.
enum Head {
    /// Nothing yet: something else must happen first.
    Wait,
    Answer(ToolAnswer),
    Run {
        epoch: Epoch,
    },
}

impl Actor {
    pub(super) async fn take_steps(&mut self, steps: Vec<Step>, from_history: bool) {
        let mut cancelled = Vec::new();
        for step in steps {
            match step {
                Step::Answer(call) => self.enqueue(call, from_history).await,
                Step::Hold(call) => {
                    let (tool_use, tool) = (call.id, call.name);
                    self.note(LogEvent::CallHeld { tool_use, tool }).await;
                }
                // Somebody else's tools are nothing to write home about.
                Step::Leave { why: LeaveReason::NotOurs, .. } => {}
                Step::Leave { call, why } => {
                    let (tool_use, tool, why) = (call.id, call.name, why.text().to_owned());
                    self.note(LogEvent::CallNotRun { tool_use, tool, why }).await;
                }
                Step::Cancel(call) => {
                    if self.cancel_call(&call).await {
                        cancelled.push(call);
                    }
                }
                Step::CancelHeld(call) => {
                    let tool_use = call.id.clone();
                    self.enqueue(call, from_history).await;
                    if self.cancel_call(&tool_use).await {
                        cancelled.push(tool_use);
                    }
                }
                Step::Void(call) => self.void_call(&call).await,
                Step::Answered(call) => self.drop_answered(&call).await,
                Step::Refresh => self.refresh_identity(),
                Step::Ended { reason } => {
                    return self.end_item(End::SessionOver { reason }).await;
                }
            }
        }
        if !cancelled.is_empty() {
            self.note(LogEvent::Interrupted { cancelled }).await;
        }
    }

    /// Takes a call that is ours into the queue, or its result from the journal.
    async fn enqueue(&mut self, call: ToolUse, from_history: bool) {
        let known = match self.journal.call_for(&call.id).await {
            Ok(known) => known,
            Err(error) => return self.journal_failed(&error).await,
        };
        let Some(known) = known else {
            let new = NewCall {
                id: CallId::generate(),
                tool_use: call.id,
                tool: call.name,
                custom: call.kind == ToolUseKind::Custom,
                thread: call.thread,
                input: call.input,
            };
            return self.queue(new, Stage::Fresh);
        };
        let CallRecord { call: new, state, started, .. } = known;
        match state {
            CallState::Received => self.queue(new, Stage::Received),
            CallState::Started => {
                self.queue(new, Stage::Started(started.and_then(|started| started.epoch)));
            }
            CallState::Finished { end, .. } => self.deliver(&new, &end, false),
            // The brain said it has the result and lists the call as open all the same.
            CallState::Settled { end, refused: None, .. } if from_history => {
                self.deliver(&new, &end, true);
            }
            CallState::Settled { .. } => {}
        }
    }

    fn queue(&mut self, call: NewCall, stage: Stage) {
        if let Some(serving) = &mut self.serving {
            serving.queue.push_back(Queued::new(call, stage));
        }
    }

    /// Runs the call at the head when it may run; journals what else has come in.
    pub(super) async fn advance_calls(&mut self) {
        loop {
            let head = self.head();
            let answered = match head {
                Head::Wait => return self.journal_fresh().await,
                Head::Answer(answer) => {
                    let Some(queued) = self.pop_head() else { return };
                    self.finish(queued, answer, None).await
                }
                Head::Run { epoch } => {
                    let Some(queued) = self.pop_head() else { return };
                    self.start(queued, epoch).await
                }
            };
            if let Err(error) = answered {
                return self.journal_failed(&error).await;
            }
        }
    }

    fn head(&self) -> Head {
        let Some(serving) = &self.serving else { return Head::Wait };
        let Some(queued) = serving.queue.front().filter(|_| serving.running.is_none()) else {
            return Head::Wait;
        };
        let Some(tool) = self.shared.tools.get(&queued.call.tool) else {
            return Head::Answer(outcome_unknown_answer("the tool is not offered any more"));
        };
        if !matches!(queued.stage, Stage::Started(_))
            && let Err(refusal) = tool.check(&queued.call.input)
        {
            return Head::Answer(refusal);
        }
        let Slot::Ready(live) = &self.sandbox else { return Head::Wait };
        match queued.stage {
            Stage::Fresh | Stage::Received => Head::Run { epoch: live.epoch },
            // The agent that was to run it is the one we speak to: it knows what became of it.
            Stage::Started(Some(epoch))
                if epoch == live.epoch && tool.idempotency() == Idempotency::Keyed =>
            {
                Head::Run { epoch }
            }
            Stage::Started(_) if tool.idempotency() == Idempotency::Repeatable => {
                Head::Run { epoch: live.epoch }
            }
            Stage::Started(_) => {
                let why = match self.record.as_ref().and_then(|record| record.untold.as_ref()) {
                    Some(Untold::Processes { why } | Untold::Files { why }) => why.as_str(),
                    None => "the process that ran it is gone",
                };
                Head::Answer(outcome_unknown_answer(why))
            }
        }
    }

    fn pop_head(&mut self) -> Option<Queued> {
        self.serving.as_mut()?.queue.pop_front()
    }

    async fn start(&mut self, queued: Queued, epoch: Epoch) -> Result<(), StoreError> {
        let Queued { call, stage, cancelled } = queued;
        let mut changes = Vec::new();
        if stage == Stage::Fresh {
            changes.push(Change::CallReceived(Box::new(call.clone())));
        }
        if !matches!(stage, Stage::Started(_)) {
            changes.push(Change::CallStarted { call: call.id.clone(), epoch: Some(epoch) });
        }
        changes.extend(self.take_fresh());
        if !changes.is_empty()
            && let Err(error) = self.record_changes(&changes).await
        {
            return Err(error);
        }
        let untold = self.record.as_ref().and_then(|record| record.untold.clone());
        let tells = untold.filter(|untold| match untold {
            Untold::Processes { .. } => call.tool == SHELL_TOOL,
            Untold::Files { .. } => true,
        });
        let (Some(tool), Some(shape)) = (self.shared.tools.get(&call.tool), &self.shape) else {
            return Ok(());
        };
        let (Slot::Ready(live), Some(serving)) = (&self.sandbox, &mut self.serving) else {
            return Ok(());
        };
        let run = CallRun {
            tool: tool.clone(),
            session: self.session.clone(),
            call: call.id.clone(),
            input: call.input.clone(),
            client: live.client.clone(),
            epoch,
            limits: shape.tools,
            notice: tells.as_ref().map(loss_notice),
        };
        let outbox = Outbox::new(self.me.clone(), self.tasks.stopping());
        let mut running = Running::start(run, call, tells, &self.tasks, outbox);
        if let Some(reason) = cancelled {
            running.cancel(reason);
        }
        serving.running = Some(running);
        if self.phase != Phase::Serving {
            self.enter(Phase::Serving).await?;
        }
        Ok(())
    }

    /// The changes that make waiting calls durable.
    fn take_fresh(&mut self) -> Vec<Change> {
        let Some(serving) = &mut self.serving else { return Vec::new() };
        let fresh = serving.queue.iter_mut().filter(|queued| queued.stage == Stage::Fresh);
        fresh
            .map(|queued| {
                queued.stage = Stage::Received;
                Change::CallReceived(Box::new(queued.call.clone()))
            })
            .collect()
    }

    async fn journal_fresh(&mut self) {
        let changes = self.take_fresh();
        if !changes.is_empty()
            && let Err(error) = self.record_changes(&changes).await
        {
            self.journal_failed(&error).await;
        }
    }

    pub(super) async fn on_call_done(&mut self, call: CallId, outcome: CallOutcome) {
        let Some(serving) = &mut self.serving else { return };
        let Some(running) = serving.running.take_if(|running| running.call.id == call) else {
            return;
        };
        let interrupted = running.cancelled == Some(CancelReason::Interrupt);
        let stage = Stage::Started(None);
        if running.cancelled == Some(CancelReason::ThreadEnded) {
            let queued = Queued::new(running.call, stage);
            return self.write_off(queued, THREAD_ENDED).await;
        }
        // Only an answer of the tool carries the notice of a loss.
        let mut tells = None;
        let answer = match outcome {
            CallOutcome::Answered(answer) => {
                tells = running.tells;
                answer
            }
            CallOutcome::Unknown { why } if !interrupted => outcome_unknown_answer(&why),
            CallOutcome::Cancelled | CallOutcome::Unknown { .. } => interrupted_answer(),
            CallOutcome::ConnectionLost { .. } if interrupted => interrupted_answer(),
            CallOutcome::ConnectionLost { why } => {
                tracing::info!(session = %self.session, %call, %why, "lost sight of a call");
                return self.look_for(running.call, running.epoch, why);
            }
        };
        let queued = Queued::new(running.call, stage);
        if let Err(error) = self.finish(queued, answer, tells).await {
            self.journal_failed(&error).await;
        }
    }

    /// The connection broke under a call: whether its agent lives is found out by preparing the
    /// sandbox again, and the call waits at the head of the queue for the answer.
    fn look_for(&mut self, call: NewCall, epoch: Epoch, why: String) {
        // A later epoch may be up already: it has nothing to do with this connection.
        if matches!(&self.sandbox, Slot::Ready(live) if live.epoch == epoch) {
            self.sandbox = Slot::Cold { last_end: Some(why), retry: None };
        }
        if let Some(serving) = &mut self.serving {
            serving.queue.push_front(Queued::new(call, Stage::Started(Some(epoch))));
        }
    }

    /// Makes an answer durable and hands it to the sender.
    pub(super) async fn finish(
        &mut self,
        queued: Queued,
        answer: ToolAnswer,
        tells: Option<Untold>,
    ) -> Result<(), StoreError> {
        let end = self.encode(&queued.call, answer);
        self.record_end(&queued, &end, tells).await?;
        self.deliver(&queued.call, &end, false);
        Ok(())
    }

    /// The journal's side of an end: what was missing of the call, its result, and that a loss has
    /// been told.
    pub(super) async fn record_end(
        &mut self,
        queued: &Queued,
        end: &CallEnd,
        tells: Option<Untold>,
    ) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        if queued.stage == Stage::Fresh {
            changes.push(Change::CallReceived(Box::new(queued.call.clone())));
        }
        let call = queued.call.id.clone();
        changes.push(Change::CallFinished { call, end: end.clone() });
        // A later epoch may be on its way, with a loss of its own to tell of: its record stays.
        let is_current = |record: &SandboxRecord| matches!(&self.sandbox, Slot::Ready(live) if live.epoch == record.epoch);
        let told = self
            .record
            .clone()
            .filter(|record| tells.is_some() && record.untold == tells && is_current(record));
        if let Some(record) = told {
            let record = SandboxRecord { untold: None, ..record };
            changes.push(Change::Sandbox(record.clone()));
            self.record = Some(record);
        }
        self.record_changes(&changes).await
    }

    pub(super) fn encode(&self, call: &NewCall, answer: ToolAnswer) -> CallEnd {
        let result = ToolResult {
            call: call.tool_use.clone(),
            kind: result_kind(call.custom),
            is_error: answer.is_error,
            content: answer.content,
        };
        let body = self.serving.as_ref().map(|serving| serving.remote.encode(&result));
        CallEnd {
            body: body.unwrap_or_default(),
            is_error: answer.is_error,
            summary: answer.summary,
            exit_code: answer.exit_code,
        }
    }

    fn deliver(&mut self, call: &NewCall, end: &CallEnd, settled: bool) {
        let Some(serving) = &mut self.serving else { return };
        let undelivered = Undelivered {
            tool_use: call.tool_use.clone(),
            custom: call.custom,
            is_error: end.is_error,
            settled,
            shortened: false,
            body_bytes: end.body.len(),
        };
        let delivery = Delivery {
            call: call.id.clone(),
            tool_use: call.tool_use.clone(),
            body: end.body.clone(),
        };
        if serving.deliveries.try_send(delivery).is_ok() {
            serving.undelivered.insert(call.id.clone(), undelivered);
        } else {
            // It is in the journal, and the next history finds it open.
            tracing::warn!(session = %self.session, call = %call.id, "too many undelivered results");
        }
    }

    pub(super) async fn on_sent(&mut self, call: CallId, end: SendEnd) {
        let Some(serving) = &mut self.serving else { return };
        let Some(undelivered) = serving.undelivered.remove(&call) else { return };
        let refused = match end {
            SendEnd::Delivered => None,
            SendEnd::Refused { status } => Some(status),
            SendEnd::TooLarge if undelivered.shortened => Some(413),
            SendEnd::TooLarge => return self.shorten(call, undelivered).await,
            SendEnd::Kept { why } => {
                let what = format!("the result of {call} was refused and is kept: {why}");
                return self.note(LogEvent::BrainTrouble { what }).await;
            }
        };
        if let Some(status) = refused {
            tracing::warn!(session = %self.session, %call, status, "the brain refused a result");
        }
        match undelivered.settled {
            true => self.acknowledge(call),
            false => self.settle(call, refused),
        }
    }

    /// 413: one shorter result that says so.
    async fn shorten(&mut self, call: CallId, undelivered: Undelivered) {
        let Some(serving) = &mut self.serving else { return };
        let result = ToolResult {
            call: undelivered.tool_use.clone(),
            kind: result_kind(undelivered.custom),
            is_error: undelivered.is_error,
            content: vec![Block::text(format!(
                "[the result of this call was too large to deliver ({} bytes). The call itself \
                 ended as usual. Ask for less: a narrower range, a filter, or the end of the \
                 output.]",
                undelivered.body_bytes
            ))],
        };
        let body = serving.remote.encode(&result);
        let delivery =
            Delivery { call: call.clone(), tool_use: undelivered.tool_use.clone(), body };
        if !undelivered.settled {
            let change = Change::CallShortened { call: call.clone(), body: delivery.body.clone() };
            if let Err(error) = self.record_changes(&[change]).await {
                return self.journal_failed(&error).await;
            }
        }
        let Some(serving) = &mut self.serving else { return };
        if serving.deliveries.try_send(delivery).is_ok() {
            let undelivered = Undelivered { shortened: true, ..undelivered };
            serving.undelivered.insert(call, undelivered);
        }
    }

    /// An interrupt: kills the call if it runs, answers it if it waits. Says whether it did.
    async fn cancel_call(&mut self, tool_use: &base_types::ToolUseId) -> bool {
        let Some(serving) = &mut self.serving else { return false };
        if let Some(running) = &mut serving.running
            && running.call.tool_use == *tool_use
        {
            running.cancel(CancelReason::Interrupt);
            return true;
        }
        let at = serving.queue.iter().position(|queued| queued.call.tool_use == *tool_use);
        let Some(queued) = at.and_then(|at| serving.queue.remove(at)) else { return false };
        // One that may run since before a restart is joined first, and then killed.
        if matches!(queued.stage, Stage::Started(_)) {
            let cancelled = Some(CancelReason::Interrupt);
            serving.queue.push_front(Queued { cancelled, ..queued });
            return true;
        }
        if let Err(error) = self.finish(queued, interrupted_answer(), None).await {
            self.journal_failed(&error).await;
        }
        true
    }

    /// Its thread is over: the call is killed if it runs, and dropped if it waits. One that is on
    /// its way to the brain is the brain's to refuse.
    async fn void_call(&mut self, tool_use: &base_types::ToolUseId) {
        let Some(serving) = &mut self.serving else { return };
        if let Some(running) = &mut serving.running
            && running.call.tool_use == *tool_use
        {
            return running.cancel(CancelReason::ThreadEnded);
        }
        if let Some(queued) = serving.take_waiting(tool_use) {
            return self.write_off(queued, THREAD_ENDED).await;
        }
        // One that may run since before a restart is joined first, and then killed.
        let joins = serving.queue.iter_mut().find(|queued| queued.call.tool_use == *tool_use);
        if let Some(queued) = joins {
            queued.cancelled = Some(CancelReason::ThreadEnded);
        }
    }

    /// Answers the calls that wait for a sandbox and have not begun. The next call tries again.
    pub(super) async fn refuse_waiting_calls(&mut self, why: &str) {
        loop {
            let Some(serving) = &mut self.serving else { return };
            let has_not_begun = |queued: &Queued| !matches!(queued.stage, Stage::Started(_));
            let Some(at) = serving.queue.iter().position(has_not_begun) else { return };
            let Some(queued) = serving.queue.remove(at) else { return };
            let text = format!(
                "the call was not run, because no sandbox can be started for this session: {why}. \
                 Whoever operates it has to mend that; then further calls work."
            );
            if let Err(error) = self.finish(queued, ToolAnswer::error(text), None).await {
                return self.journal_failed(&error).await;
            }
        }
    }

    /// Arms and fires the idle timer.
    pub(super) async fn advance_idle(&mut self) {
        let idle = self.shared.timeouts.idle;
        let Some(serving) = &mut self.serving else { return };
        match (serving.is_quiet(), serving.idle_until) {
            (true, None) => {
                serving.idle_until = Some(Instant::now() + idle);
                self.enter_or_fail(Phase::Idle).await;
            }
            (true, Some(until)) if until <= Instant::now() => self.end_item(End::Idle).await,
            (true, Some(_)) => {}
            (false, _) => {
                let was_idle = serving.idle_until.take().is_some();
                if was_idle || (serving.caught_up && self.phase == Phase::Preparing) {
                    self.enter_or_fail(Phase::Serving).await;
                }
            }
        }
    }

    async fn enter_or_fail(&mut self, phase: Phase) {
        if let Err(error) = self.enter(phase).await {
            self.journal_failed(&error).await;
        }
    }

    /// Without a journal nothing may be promised: the item is let go, and its lease lapses.
    pub(super) async fn journal_failed(&mut self, error: &StoreError) {
        tracing::error!(session = %self.session, error = %line(error), "the journal failed");
        if !self.superseded && self.serving.is_some() {
            let why = format!("the journal failed: {}", line(error));
            Box::pin(self.end_item(End::LeaseLost { why })).await;
        }
    }
}

fn result_kind(custom: bool) -> ToolResultKind {
    if custom { ToolResultKind::Custom } else { ToolResultKind::Builtin }
}
