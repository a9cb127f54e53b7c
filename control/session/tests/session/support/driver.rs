//! Sandboxes in memory, with the promises of the driver contract.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base_types::{Epoch, ImageId, SandboxId, SessionId, VolumeId};
use sandbox_api::guest::client::GuestClient;
use sandbox_api::{
    ConnectError, CreateError, DestroyError, DriverError, Image, RestoredFrom, Sandbox,
    SandboxDriver, SandboxSpec, SandboxStatus, SandboxUse, StopError, Tier, Vitality,
};

use super::agent::Agent;

#[derive(Default)]
pub struct Driver {
    sandboxes: Mutex<HashMap<SandboxId, Entry>>,
    /// The next creations fail with this.
    pub refuse: Mutex<Option<String>>,
    pub created: Mutex<Vec<SandboxSpec>>,
    /// Images beside `default` that came later.
    images: Mutex<Vec<String>>,
    /// Creations wait while this is set.
    pub hold: AtomicBool,
}

struct Entry {
    session: SessionId,
    volume: VolumeId,
    agent: Agent,
}

impl Driver {
    /// The agent of the only sandbox.
    pub fn agent(&self) -> Option<Agent> {
        self.sandboxes.lock().unwrap().values().next().map(|entry| entry.agent.clone())
    }

    /// The commands that were begun in any sandbox that is there.
    pub fn all_begun(&self) -> Vec<String> {
        self.sandboxes.lock().unwrap().values().flat_map(|entry| entry.agent.begun()).collect()
    }

    pub fn add_image(&self, name: &str) {
        self.images.lock().unwrap().push(name.to_owned());
    }

    pub fn count(&self) -> usize {
        self.sandboxes.lock().unwrap().len()
    }
}

fn vitality(agent: &Agent) -> Vitality {
    let epoch = Epoch(agent.epoch);
    match agent.is_dead() {
        false => Vitality::Running { epoch },
        true => Vitality::Stopped { epoch, why: Some("out of memory (limit 1GiB)".into()) },
    }
}

#[async_trait]
impl SandboxDriver for Driver {
    fn tier(&self) -> Tier {
        Tier::Container
    }

    async fn image(&self, name: &str) -> Result<Image, DriverError> {
        let is_there = self.images.lock().unwrap().iter().any(|image| image == name);
        match name {
            "default" => Ok(Image { id: ImageId::from("img"), name: name.into() }),
            _ if is_there => Ok(Image { id: ImageId::from("later"), name: name.into() }),
            _ => Err(DriverError::NoSuchImage(name.into())),
        }
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Sandbox, CreateError> {
        self.created.lock().unwrap().push(spec.clone());
        let sandbox = spec.sandbox.clone();
        while self.hold.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(why) = self.refuse.lock().unwrap().clone() {
            return Err(CreateError::Start { sandbox, why });
        }
        let mut sandboxes = self.sandboxes.lock().unwrap();
        let known = sandboxes.get(&spec.sandbox).filter(|entry| entry.volume == spec.volume);
        let restored_from = match known {
            Some(entry) if !entry.agent.is_dead() && entry.agent.epoch == spec.epoch.0 => {
                let epoch = spec.epoch;
                return Ok(Sandbox { sandbox, epoch, restored_from: RestoredFrom::StillRunning });
            }
            Some(entry) => {
                entry.agent.die();
                RestoredFrom::SameVolume
            }
            None if spec.volume_exists => return Err(CreateError::VolumeGone(spec.volume.clone())),
            None => RestoredFrom::Nothing,
        };
        let entry = Entry {
            session: spec.session.clone(),
            volume: spec.volume.clone(),
            agent: Agent::new(spec.epoch.0),
        };
        sandboxes.insert(spec.sandbox.clone(), entry);
        Ok(Sandbox { sandbox, epoch: spec.epoch, restored_from })
    }

    async fn connect(
        &self,
        sandbox: &SandboxId,
        epoch: Epoch,
    ) -> Result<GuestClient, ConnectError> {
        let agent = self.sandboxes.lock().unwrap().get(sandbox).map(|entry| entry.agent.clone());
        let not_running = || ConnectError::NotRunning { sandbox: sandbox.clone(), epoch };
        let agent = agent.filter(|agent| !agent.is_dead()).ok_or_else(not_running)?;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(agent.serve(theirs));
        let (client, driver) = GuestClient::connect(ours, "test").await.unwrap();
        tokio::spawn(driver);
        Ok(client)
    }

    async fn stop(&self, sandbox: &SandboxId) -> Result<(), StopError> {
        if let Some(entry) = self.sandboxes.lock().unwrap().get(sandbox) {
            entry.agent.die();
        }
        Ok(())
    }

    async fn destroy(&self, sandbox: &SandboxId, _: &VolumeId) -> Result<(), DestroyError> {
        if let Some(entry) = self.sandboxes.lock().unwrap().remove(sandbox) {
            entry.agent.die();
        }
        Ok(())
    }

    async fn status(&self, sandbox: &SandboxId) -> Result<Option<SandboxStatus>, DriverError> {
        let all = self.list().await?;
        Ok(all.into_iter().find(|status| status.sandbox == *sandbox))
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, DriverError> {
        let sandboxes = self.sandboxes.lock().unwrap();
        let status = |(id, entry): (&SandboxId, &Entry)| SandboxStatus {
            sandbox: id.clone(),
            volume: entry.volume.clone(),
            session: Some(entry.session.clone()),
            vitality: vitality(&entry.agent),
            usage: SandboxUse::default(),
        };
        Ok(sandboxes.iter().map(status).collect())
    }

    async fn ended(&self, sandbox: &SandboxId, _: Epoch) -> Result<Vitality, DriverError> {
        let agent = self.sandboxes.lock().unwrap().get(sandbox).map(|entry| entry.agent.clone());
        let Some(agent) = agent else {
            return Err(DriverError::Launcher("unknown".into()));
        };
        agent.died().await;
        Ok(vitality(&agent))
    }
}

impl Driver {
    pub fn shared() -> Arc<Self> {
        Arc::new(Self::default())
    }
}
