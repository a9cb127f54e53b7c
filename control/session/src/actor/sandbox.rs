//! The sandbox in the actor's hands: prepared when something needs it, replaced when it ends.

use std::time::Duration;

use base_tasks::TaskKind;
use base_types::Epoch;
use store_api::{LogEvent, SandboxRecord, SandboxState};
use tokio::time::Instant;

use super::ending::End;
use super::serving::Serving;
use super::{Actor, Slot};
use crate::message::{Inside, Outbox, line};
use crate::sandbox::{LiveSandbox, Preparation, PrepareError, Prepared, is_elsewhere};

/// Between attempts to start a sandbox that does not start.
const PREPARE_WAIT_MIN: Duration = Duration::from_secs(1);
const PREPARE_WAIT_MAX: Duration = Duration::from_secs(30);
/// Where an image is missing: whether it is there by now is found out cheaply.
const IMAGE_WAIT_MAX: Duration = Duration::from_secs(2);

pub struct Retry {
    pub at: Instant,
    wait: Duration,
}

impl Actor {
    /// Starts the sandbox when something needs it and nothing is under way.
    pub(super) async fn advance_sandbox(&mut self) {
        let wanted = !self.guests_waiting.is_empty()
            || self.serving.as_ref().is_some_and(Serving::wants_sandbox);
        let (Some(identity), Some(shape)) = (&self.identity, &self.shape) else { return };
        let Slot::Cold { last_end, retry } = &mut self.sandbox else { return };
        let wait = match retry {
            Some(retry) if retry.at > Instant::now() => return,
            Some(retry) => (retry.wait * 2).min(PREPARE_WAIT_MAX),
            None => PREPARE_WAIT_MIN,
        };
        if !wanted {
            *retry = None;
            return;
        }
        let preparation = Preparation {
            node: self.shared.node.clone(),
            driver: self.shared.driver.clone(),
            journal: self.journal.clone(),
            record: self.record.clone(),
            profile: identity.profile.clone(),
            tenant: identity.tenant.clone(),
            image: shape.image.clone(),
            last_end: last_end.take(),
        };
        self.sandbox = Slot::Preparing { wait };
        let outbox = Outbox::new(self.me.clone(), self.tasks.stopping());
        self.tasks.spawn(TaskKind::SandboxPreparation, async move {
            let prepared = preparation.run().await;
            let _ = outbox.tell(Inside::Prepared(prepared)).await;
        });
    }

    pub(super) async fn on_prepared(&mut self, prepared: Result<Prepared, PrepareError>) {
        let wait = match &self.sandbox {
            Slot::Preparing { wait } => *wait,
            _ => PREPARE_WAIT_MIN,
        };
        match prepared {
            Ok(prepared) => {
                let me = self.me.clone();
                let live = LiveSandbox::watch(
                    &prepared,
                    self.shared.driver.clone(),
                    self.shared.timeouts.agent_silent,
                    &self.tasks,
                    |watch| Outbox::new(me, watch.stopping()),
                );
                self.record = Some(prepared.record);
                self.sandbox = Slot::Ready(live);
                self.lend_to_waiting();
                // Whatever it was started for may be over by now.
                if self.serving.is_none() && self.sleep_at.is_none() {
                    self.sleep_at = Some(Instant::now() + self.keep_running());
                }
            }
            Err(error) => self.on_prepare_failed(error, wait).await,
        }
    }

    pub(super) fn on_sandbox_ended(&mut self, epoch: Epoch, why: String) {
        if matches!(&self.sandbox, Slot::Ready(live) if live.epoch == epoch) {
            tracing::info!(session = %self.session, %epoch, %why, "the sandbox ended");
            self.sandbox = Slot::Cold { last_end: Some(why), retry: None };
        }
        if let Some(running) = self.serving.as_ref().and_then(|serving| serving.running.as_ref())
            && running.epoch == epoch
        {
            running.let_go();
        }
    }

    pub(super) async fn on_prepare_failed(&mut self, error: PrepareError, wait: Duration) {
        let why = line(&error);
        tracing::warn!(session = %self.session, error = %why, "could not prepare the sandbox");
        // What was recorded before the failure counts, not what was meant to be.
        match self.shared.store.session(&self.session).await {
            Ok(Some(session)) => self.record = session.sandbox,
            Ok(None) => {}
            Err(error) => tracing::warn!(error = %line(&error), "read the journal"),
        }
        let no_image = error.is_missing_image();
        let pause = if no_image { wait.min(IMAGE_WAIT_MAX) } else { wait };
        let retry = Some(Retry { at: Instant::now() + pause, wait: pause });
        self.sandbox = Slot::Cold { last_end: None, retry };
        self.refuse_guests(&why);
        if !error.is_transient() {
            return self.end_item(End::Failed { reason: why }).await;
        }
        if wait == PREPARE_WAIT_MIN {
            let text = format!("the sandbox does not start: {why}");
            self.note(LogEvent::Warning { text }).await;
        }
        // An operator has to act first, which may take days; the model is told now.
        if no_image {
            self.refuse_waiting_calls(&why).await;
        }
    }

    /// Ends the processes; the volume stays.
    pub(super) async fn stop_sandbox(&mut self, why: &str) -> Result<(), String> {
        self.settle_preparation().await;
        let Some(record) = self.record.clone() else { return Ok(()) };
        let over = matches!(record.state, SandboxState::Stopped | SandboxState::Gone);
        if over || is_elsewhere(&record, &self.shared.node) {
            return Ok(());
        }
        self.shared.driver.stop(&record.id).await.map_err(|error| line(&error))?;
        self.sandbox = Slot::Cold { last_end: Some(why.to_owned()), retry: None };
        let record = SandboxRecord { state: SandboxState::Stopped, ..record };
        self.remember(record).await.map_err(|error| line(&error))
    }

    /// Ends the processes and removes the files.
    pub(super) async fn destroy_sandbox(&mut self) -> Result<(), String> {
        self.settle_preparation().await;
        let Some(record) = self.record.clone() else { return Ok(()) };
        // What another node has of it, that node removes when it sees the record.
        if !is_elsewhere(&record, &self.shared.node) {
            let destroyed = self.shared.driver.destroy(&record.id, &record.volume).await;
            destroyed.map_err(|error| line(&error))?;
        }
        self.sandbox = Slot::Cold { last_end: None, retry: None };
        let record = SandboxRecord { state: SandboxState::Gone, ..record };
        self.remember(record).await.map_err(|error| line(&error))
    }
}
