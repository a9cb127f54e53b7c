//! One session's sandbox, as its actor sees it: which epoch is due, and a connection to the agent
//! that is watched for life.
//!
//! Preparing runs on a task of its own, so that a slow start holds up neither the lease nor a
//! stop. It is idempotent: the record says what was intended, and the driver says what there is.

use std::sync::Arc;
use std::time::Duration;

use base_tasks::{TaskKind, Tasks};
use base_types::{Epoch, ImageId, NodeId, ProfileName, SandboxId, TenantId, VolumeId};
use sandbox_api::guest::client::GuestClient;
use sandbox_api::{
    ConnectError, CreateError, DriverError, RestoredFrom, SandboxDriver, SandboxSpec, Vitality,
};
use store_api::{Change, SandboxRecord, SandboxState, StoreError, Untold};

use crate::entrypoint::EntrypointWatch;
use crate::journal::Journal;
use crate::message::{Inside, Outbox, line};

/// How often a quiet agent is asked for a sign of life, as a part of the time it may be silent.
const PINGS_PER_SILENCE: u32 = 3;
/// The first time it comes sooner: what is wrong with a new sandbox shows early.
const FIRST_PING: Duration = Duration::from_millis(500);

const SLEPT_TOO_LONG: &str = "the session slept longer than its files are kept";

/// Whether the sandbox is, or was, on another node.
pub fn is_elsewhere(record: &SandboxRecord, node: &NodeId) -> bool {
    record.node.as_ref().is_some_and(|of| of != node)
}

/// A sandbox that answers.
pub struct Prepared {
    pub record: SandboxRecord,
    /// The epoch began just now, and did not run already.
    pub began_now: bool,
    pub client: GuestClient,
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("look up image `{image}`")]
    Image {
        image: String,
        #[source]
        source: DriverError,
    },
    #[error("ask for the sandbox's state")]
    Status(#[source] DriverError),
    #[error("start the sandbox")]
    Create(#[source] CreateError),
    #[error("reach the sandbox")]
    Connect(#[source] ConnectError),
    #[error("the agent of {sandbox} says it is of epoch {theirs}, not {ours}")]
    WrongEpoch { sandbox: SandboxId, ours: Epoch, theirs: u64 },
    #[error("record the sandbox")]
    Journal(#[source] StoreError),
}

impl PrepareError {
    /// Nothing starts before somebody has put an image there.
    pub fn is_missing_image(&self) -> bool {
        matches!(
            self,
            PrepareError::Image { source: DriverError::NoSuchImage(_), .. }
                | PrepareError::Create(CreateError::NoSuchImage(_))
        )
    }

    /// Whether the same attempt may succeed later, when somebody has mended something.
    pub fn is_transient(&self) -> bool {
        !matches!(
            self,
            PrepareError::Create(CreateError::VolumeGone(_) | CreateError::OlderEpoch { .. })
                | PrepareError::Journal(StoreError::NotOwner { .. } | StoreError::Refused { .. })
        )
    }
}

/// What preparing needs to know; owned, because it runs on its own task.
pub struct Preparation {
    /// Where the sandbox will be.
    pub node: NodeId,
    pub driver: Arc<dyn SandboxDriver>,
    pub journal: Journal,
    pub record: Option<SandboxRecord>,
    pub profile: ProfileName,
    pub tenant: TenantId,
    /// The profile's image, for a session that has no sandbox yet.
    pub image: String,
    /// Why the epoch before ended, where the actor knows.
    pub last_end: Option<String>,
}

/// What to do about the record that is there.
enum Due {
    /// The epoch of the record runs, or may still have to be created.
    Same(SandboxRecord),
    /// A new epoch.
    Next(SandboxRecord),
}

impl Preparation {
    /// Brings the sandbox to a running epoch and connects to it.
    pub async fn run(self) -> Result<Prepared, PrepareError> {
        let due = match self.record.clone() {
            None => Due::Next(self.first_record().await?),
            Some(record) if is_elsewhere(&record, &self.node) => {
                Due::Next(self.taken_over(record).await?)
            }
            Some(record) => self.due(record).await?,
        };
        let record = match due {
            Due::Same(record) => record,
            Due::Next(record) => {
                self.remember(&record).await?;
                record
            }
        };
        let volume_exists =
            record.epoch != Epoch::FIRST && !matches!(record.untold, Some(Untold::Files { .. }));
        let spec = SandboxSpec {
            sandbox: record.id.clone(),
            epoch: record.epoch,
            volume: record.volume.clone(),
            volume_exists,
            image: record.image.clone(),
            profile: self.profile.clone(),
            session: self.journal.session().clone(),
            tenant: self.tenant.clone(),
        };
        let created = self.driver.create(&spec).await.map_err(PrepareError::Create)?;
        tracing::debug!(sandbox = %record.id, epoch = %record.epoch,
            restored_from = ?created.restored_from, "sandbox runs");
        debug_assert!(created.restored_from != RestoredFrom::Nothing || !volume_exists);
        let client = self.connect(&record).await?;
        let running = SandboxRecord { state: SandboxState::Running, ..record };
        if self.record.as_ref() != Some(&running) {
            self.remember(&running).await?;
        }
        let began_now = created.restored_from != RestoredFrom::StillRunning;
        Ok(Prepared { record: running, began_now, client })
    }

    async fn first_record(&self) -> Result<SandboxRecord, PrepareError> {
        Ok(SandboxRecord {
            id: SandboxId::generate(),
            volume: VolumeId::generate(),
            node: Some(self.node.clone()),
            image: self.image_id().await?,
            tier: self.driver.tier().name().to_owned(),
            epoch: Epoch::FIRST,
            state: SandboxState::Creating,
            untold: None,
        })
    }

    async fn image_id(&self) -> Result<ImageId, PrepareError> {
        let image = self.driver.image(&self.image).await;
        let image =
            image.map_err(|source| PrepareError::Image { image: self.image.clone(), source })?;
        Ok(image.id)
    }

    /// The files are on a node that is gone: the session begins anew here, and is told so.
    async fn taken_over(&self, record: SandboxRecord) -> Result<SandboxRecord, PrepareError> {
        let from = record.node.as_ref().map_or("another", NodeId::as_str);
        let why = match record.state {
            SandboxState::Gone => SLEPT_TOO_LONG.to_owned(),
            _ => format!("node {from}, which had the files of the session, is gone"),
        };
        tracing::warn!(session = %self.journal.session(), from, sandbox = %record.id,
            "the session's files were on a node that is gone: it gets an empty workspace");
        let fresh = self.first_record().await?;
        let untold = Some(Untold::Files { why });
        Ok(SandboxRecord { epoch: record.epoch.next(), untold, ..fresh })
    }

    async fn due(&self, record: SandboxRecord) -> Result<Due, PrepareError> {
        match record.state {
            // An epoch that ended before it was seen running is not created twice.
            SandboxState::Creating if self.is_over(&record).await? => {
                Ok(Due::Next(SandboxRecord { epoch: record.epoch.next(), ..record }))
            }
            SandboxState::Creating => Ok(Due::Same(record)),
            SandboxState::Running if self.runs(&record).await? => Ok(Due::Same(record)),
            SandboxState::Running | SandboxState::Stopped => {
                let why = self.last_end.clone().unwrap_or_else(|| "they were stopped".to_owned());
                // A loss of files that was never told outweighs the loss of processes.
                let untold = match record.untold {
                    Some(Untold::Files { why }) => Untold::Files { why },
                    _ => Untold::Processes { why },
                };
                Ok(Due::Next(SandboxRecord {
                    epoch: record.epoch.next(),
                    state: SandboxState::Creating,
                    untold: Some(untold),
                    ..record
                }))
            }
            SandboxState::Gone => Ok(Due::Next(SandboxRecord {
                volume: VolumeId::generate(),
                epoch: record.epoch.next(),
                state: SandboxState::Creating,
                untold: Some(Untold::Files { why: SLEPT_TOO_LONG.to_owned() }),
                ..record
            })),
        }
    }

    async fn runs(&self, record: &SandboxRecord) -> Result<bool, PrepareError> {
        let vitality = self.vitality(record).await?;
        Ok(matches!(vitality, Some(Vitality::Running { epoch }) if epoch == record.epoch))
    }

    async fn is_over(&self, record: &SandboxRecord) -> Result<bool, PrepareError> {
        let vitality = self.vitality(record).await?;
        Ok(matches!(vitality, Some(Vitality::Stopped { epoch, .. }) if epoch >= record.epoch))
    }

    async fn vitality(&self, record: &SandboxRecord) -> Result<Option<Vitality>, PrepareError> {
        let status = self.driver.status(&record.id).await.map_err(PrepareError::Status)?;
        Ok(status.map(|status| status.vitality))
    }

    async fn connect(&self, record: &SandboxRecord) -> Result<GuestClient, PrepareError> {
        let client = self.driver.connect(&record.id, record.epoch).await;
        let client = client.map_err(PrepareError::Connect)?;
        let theirs = client.peer().epoch.0;
        if theirs != record.epoch.0 {
            let (sandbox, ours) = (record.id.clone(), record.epoch);
            return Err(PrepareError::WrongEpoch { sandbox, ours, theirs });
        }
        Ok(client)
    }

    async fn remember(&self, record: &SandboxRecord) -> Result<(), PrepareError> {
        let change = Change::Sandbox(record.clone());
        self.journal.record(&[change]).await.map_err(PrepareError::Journal)
    }
}

/// A prepared sandbox with its watch.
pub struct LiveSandbox {
    pub client: GuestClient,
    pub epoch: Epoch,
    watch: Tasks,
}

impl LiveSandbox {
    pub fn watch(
        prepared: &Prepared,
        driver: Arc<dyn SandboxDriver>,
        silence_max: Duration,
        tasks: &Tasks,
        outbox: impl FnOnce(&Tasks) -> Outbox,
    ) -> Self {
        let watch = tasks.child();
        let watcher = Watcher {
            sandbox: prepared.record.id.clone(),
            epoch: prepared.record.epoch,
            client: prepared.client.clone(),
            driver,
            silence_max,
            entrypoint: EntrypointWatch::new(prepared.began_now),
            outbox: outbox(&watch),
        };
        watch.spawn(TaskKind::SandboxWatch, watcher.run());
        Self { client: prepared.client.clone(), epoch: prepared.record.epoch, watch }
    }
}

impl Drop for LiveSandbox {
    fn drop(&mut self) {
        self.watch.stopping().cancel();
    }
}

/// Watches one epoch: its processes through the driver, its agent through pings.
struct Watcher {
    sandbox: SandboxId,
    epoch: Epoch,
    client: GuestClient,
    driver: Arc<dyn SandboxDriver>,
    silence_max: Duration,
    entrypoint: EntrypointWatch,
    outbox: Outbox,
}

/// What the watch saw.
enum Seen {
    Ended(String),
    /// The connection is gone; the agent may live.
    Disconnected,
    Silent,
    /// The driver does not answer at the moment.
    Blind,
}

impl Watcher {
    async fn run(self) {
        loop {
            let seen = tokio::select! {
                ended = self.driver.ended(&self.sandbox, self.epoch) => match ended {
                    Ok(vitality) => Seen::Ended(end_of(&vitality)),
                    Err(error) => {
                        tracing::debug!(sandbox = %self.sandbox, error = %line(&error), "watch");
                        Seen::Blind
                    }
                },
                seen = self.pings() => seen,
                () = self.outbox.stopping().cancelled() => return,
            };
            let why = match seen {
                Seen::Ended(why) => why,
                Seen::Blind => {
                    if self.outbox.pause(self.silence_max / PINGS_PER_SILENCE).await.is_err() {
                        return;
                    }
                    continue;
                }
                Seen::Disconnected => "the connection to the agent broke".to_owned(),
                Seen::Silent => {
                    let why =
                        format!("the guest agent was silent for {}s", self.silence_max.as_secs());
                    if let Err(error) = self.driver.stop(&self.sandbox).await {
                        tracing::warn!(sandbox = %self.sandbox, error = %line(&error),
                            "stop a silent sandbox");
                    }
                    why
                }
            };
            let _ = self.outbox.tell(Inside::SandboxEnded { epoch: self.epoch, why }).await;
            return;
        }
    }

    async fn pings(&self) -> Seen {
        let pause = self.silence_max / PINGS_PER_SILENCE;
        tokio::time::sleep(pause.min(FIRST_PING)).await;
        loop {
            match tokio::time::timeout(self.silence_max, self.client.ping()).await {
                Err(_) => return Seen::Silent,
                Ok(Ok(())) => {
                    if let Some(text) = self.entrypoint.look(&self.client, self.silence_max).await {
                        let _ = self.outbox.tell(Inside::Entrypoint { text }).await;
                    }
                }
                Ok(Err(_)) if self.client.is_closed() => return Seen::Disconnected,
                Ok(Err(error)) => {
                    tracing::debug!(sandbox = %self.sandbox, error = %line(&error), "ping");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn end_of(vitality: &Vitality) -> String {
    match vitality {
        Vitality::Stopped { why: Some(why), .. } => why.clone(),
        _ => "its processes ended".to_owned(),
    }
}
