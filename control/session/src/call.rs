//! One tool call on its own task, and the words the model gets when there is no answer of a tool.

use std::sync::Arc;
use std::time::Duration;

use base_tasks::{TaskKind, Tasks};
use base_types::{CallId, Epoch, SessionId};
use sandbox_api::guest::client::GuestClient;
use sandbox_api::guest::{CallState, KillScope};
use serde_json::Value;
use store_api::{NewCall, Untold};
use tokio::sync::watch;
use tools_api::{Tool, ToolAnswer, ToolContext, ToolError, ToolLimits};

use crate::message::{CallOutcome, Inside, Outbox, line};

/// How long a killed call may take to be dead before its sandbox is given up.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// What one run of one call needs; owned by its task.
pub struct CallRun {
    pub tool: Arc<dyn Tool>,
    pub session: SessionId,
    pub call: CallId,
    pub input: Value,
    pub client: GuestClient,
    pub epoch: Epoch,
    pub limits: ToolLimits,
    pub notice: Option<String>,
}

/// The actor's hold on the call that runs.
pub struct Running {
    pub call: NewCall,
    /// Where it runs. A later epoch knows nothing of it.
    pub epoch: Epoch,
    /// The loss that this call's result tells of, if it gets one.
    pub tells: Option<Untold>,
    pub cancelled: Option<CancelReason>,
    orders: watch::Sender<Option<Order>>,
}

/// What the actor tells a running call's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Kill(KillScope),
    /// Its sandbox is gone: there is nothing to kill and nothing to wait for.
    LetGo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The user interrupted the turn: the model is told, jobs in the background stay.
    Interrupt,
    /// Its thread was terminated: nobody is told, the other threads' jobs stay.
    ThreadEnded,
    /// The work item ended under it: the model is told by whoever serves the session next.
    ItemEnded,
}

// === impl Running ===

impl Running {
    pub fn start(
        run: CallRun,
        call: NewCall,
        tells: Option<Untold>,
        tasks: &Tasks,
        outbox: Outbox,
    ) -> Self {
        let (orders, ordered) = watch::channel(None);
        let epoch = run.epoch;
        tasks.spawn(TaskKind::ToolCall, run.run(ordered, outbox));
        Self { call, epoch, tells, cancelled: None, orders }
    }

    /// Ends the call soon. The first reason stays.
    pub fn cancel(&mut self, reason: CancelReason) {
        if self.cancelled.is_none() {
            self.cancelled = Some(reason);
        }
        let scope = match reason {
            CancelReason::Interrupt | CancelReason::ThreadEnded => KillScope::Foreground,
            CancelReason::ItemEnded => KillScope::Tree,
        };
        let _ = self.orders.send(Some(Order::Kill(scope)));
    }

    /// Ends the wait for a call whose sandbox is gone, whatever its connection says.
    pub fn let_go(&self) {
        let _ = self.orders.send(Some(Order::LetGo));
    }
}

// === impl CallRun ===

impl CallRun {
    async fn run(self, mut orders: watch::Receiver<Option<Order>>, outbox: Outbox) {
        let call = self.call.clone();
        let context = ToolContext {
            session: &self.session,
            call: &self.call,
            epoch: self.epoch,
            guest: &self.client,
            limits: self.limits,
            notice: self.notice.clone(),
        };
        let ran = tokio::select! {
            ran = self.tool.run(&context, &self.input) => Ok(ran),
            order = next_order(&mut orders) => Err(order),
            // The actor goes, the call stays: it lives in the agent, and the next owner joins it.
            () = outbox.stopping().cancelled() => return,
        };
        let outcome = match ran {
            Ok(Ok(answer)) => CallOutcome::Answered(answer),
            Ok(Err(error @ ToolError::ConnectionLost(_))) => {
                CallOutcome::ConnectionLost { why: line(&error) }
            }
            Ok(Err(error @ ToolError::OutcomeUnknown(_))) => {
                CallOutcome::Unknown { why: line(&error) }
            }
            Err(Order::Kill(scope)) => self.kill(scope, &mut orders).await,
            Err(Order::LetGo) => let_go(),
        };
        let _ = outbox.tell(Inside::CallDone { call, outcome }).await;
    }

    /// Kills the call at its agent and waits until nothing of it runs.
    async fn kill(
        &self,
        scope: KillScope,
        orders: &mut watch::Receiver<Option<Order>>,
    ) -> CallOutcome {
        let id = &self.call;
        let killed = async {
            match self.client.kill(id, scope).await? {
                CallState::Running { .. } => self.client.wait(id).await.map(|_| ()),
                CallState::Finished(_) | CallState::Unknown => Ok(()),
            }
        };
        let let_go_order = orders.wait_for(|order| *order == Some(Order::LetGo));
        let killed = tokio::select! {
            killed = tokio::time::timeout(KILL_WAIT, killed) => killed,
            _ = let_go_order => return let_go(),
        };
        match killed {
            Ok(Ok(())) => CallOutcome::Cancelled,
            Ok(Err(error)) => CallOutcome::ConnectionLost { why: line(&error) },
            Err(_) => {
                let why = format!("a killed call was not dead after {}s", KILL_WAIT.as_secs());
                CallOutcome::ConnectionLost { why }
            }
        }
    }
}

fn let_go() -> CallOutcome {
    CallOutcome::ConnectionLost { why: "its sandbox ended".to_owned() }
}

async fn next_order(orders: &mut watch::Receiver<Option<Order>>) -> Order {
    match orders.wait_for(Option::is_some).await.map(|order| *order) {
        Ok(Some(order)) => order,
        // A dropped sender is an actor that is gone; the call must not outlive its owner's
        // interest, but killing it is then the next owner's decision.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// "Cancelled by interrupt": what the brain gets for a call that was killed or never run.
pub fn interrupted_answer() -> ToolAnswer {
    ToolAnswer::error("cancelled by interrupt")
}

/// A call that may have run, wholly or in part, and whose result nobody has.
pub fn outcome_unknown_answer(why: &str) -> ToolAnswer {
    let mut answer = ToolAnswer::error(format!(
        "interrupted, outcome unknown: {why}. The call may have run, wholly or in part; it was not \
         run again. Check the state of the workspace before you repeat it."
    ));
    answer.summary = "outcome unknown".to_owned();
    answer
}

/// The sentence that a result begins with when there was a loss.
pub fn loss_notice(untold: &Untold) -> String {
    match untold {
        Untold::Processes { why } => format!(
            "[notice: this is a new shell. The processes of the sandbox are gone ({why}): working \
             directory, variables, functions and background jobs were lost. Files are as they were.]"
        ),
        Untold::Files { why } => format!(
            "[notice: the workspace is new and empty ({why}). Files and processes of before are \
             gone.]"
        ),
    }
}
