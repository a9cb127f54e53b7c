//! What every promise needs: a sandbox to ask for, and a way to run something in it.

use std::sync::Arc;
use std::time::Duration;

use base_types::{Epoch, SandboxId, SessionId, TenantId, VolumeId};
use guest_protocol::client::GuestClient;
use guest_protocol::{CallId, CallSpec, ExecSpec, Exit, Outcome, OutputLimits, RunAs, Work};

use super::Place;
use crate::{Sandbox, SandboxDriver, SandboxSpec};

/// Ten times what anything here takes on a slow, loaded machine.
pub const LONG: Duration = Duration::from_secs(60);

/// The driver of a place, with what is asked of it again and again.
pub struct Fixture {
    pub driver: Arc<dyn SandboxDriver>,
    image: base_types::ImageId,
    profile: base_types::ProfileName,
}

impl Fixture {
    pub async fn of(place: &dyn Place) -> Self {
        let driver = place.driver().await;
        let image = driver.image(place.image()).await.expect("the place has its image");
        Self { driver, image: image.id, profile: place.profile() }
    }

    /// The first epoch of a new sandbox.
    pub fn first(&self) -> SandboxSpec {
        SandboxSpec {
            sandbox: SandboxId::generate(),
            epoch: Epoch::FIRST,
            volume: VolumeId::generate(),
            volume_exists: false,
            image: self.image.clone(),
            profile: self.profile.clone(),
            session: SessionId::from("session_contract"),
            tenant: TenantId::from("tenant_contract"),
        }
    }

    pub async fn create(&self, spec: &SandboxSpec) -> Sandbox {
        self.driver.create(spec).await.unwrap_or_else(|error| panic!("create: {}", chain(&error)))
    }

    pub async fn started(&self) -> (SandboxSpec, GuestClient) {
        let spec = self.first();
        self.create(&spec).await;
        let guest = self.connect(&spec).await;
        (spec, guest)
    }

    pub async fn connect(&self, spec: &SandboxSpec) -> GuestClient {
        self.driver
            .connect(&spec.sandbox, spec.epoch)
            .await
            .unwrap_or_else(|error| panic!("connect: {}", chain(&error)))
    }

    pub async fn destroy(&self, spec: &SandboxSpec) {
        self.driver
            .destroy(&spec.sandbox, &spec.volume)
            .await
            .unwrap_or_else(|error| panic!("destroy: {}", chain(&error)));
    }
}

/// The epoch after this one, on the volume it left.
pub fn next(spec: &SandboxSpec) -> SandboxSpec {
    SandboxSpec { epoch: spec.epoch.next(), volume_exists: true, ..spec.clone() }
}

pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    base_types::Chain(error).to_string()
}

/// Runs a shell script as the sandbox's root and waits for it.
pub async fn run(guest: &GuestClient, script: &str) -> Outcome {
    let id = CallId::generate();
    start(guest, &id, script).await;
    let wait = tokio::time::timeout(LONG, guest.wait(&id)).await;
    let outcome = wait.expect("the script ends in time").expect("its outcome is told");
    guest.ack(&id).await.expect("the outcome may be forgotten");
    outcome
}

/// Runs a script that must succeed; returns its output.
pub async fn output(guest: &GuestClient, script: &str) -> String {
    let outcome = run(guest, script).await;
    let text = text(&outcome);
    assert_eq!(outcome.exit, Exit::Code(0), "{script}: {text}");
    text
}

pub async fn start(guest: &GuestClient, id: &CallId, script: &str) {
    let exec = ExecSpec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: Some("/".to_owned()),
        run_as: RunAs::Root,
        stdin: false,
        pty: None,
    };
    let spec = CallSpec { timeout: LONG, limits: OutputLimits::default(), work: Work::Exec(exec) };
    guest.start(id, &spec).await.expect("the agent starts a program");
}

pub fn text(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.head).trim().to_owned()
}
