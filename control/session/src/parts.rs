//! What the composition root hands in, and the small types that cross this crate's border.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base_types::{AgentId, Clock, EnvironmentId, NodeId, ProfileName, TenantId, Timestamp};
use brain_api::Brain;
use sandbox_api::{SandboxDriver, Tier};
use store_api::Store;
use tools_api::{Tool, ToolLimits};

use crate::seal::Sealer;

/// Everything that serving needs. `Hands::build` takes it and names no implementation.
pub struct HandsParts {
    pub node: NodeId,
    pub store: Arc<dyn Store>,
    pub environments: Vec<EnvironmentParts>,
    pub driver: Arc<dyn SandboxDriver>,
    pub tools: Vec<Arc<dyn Tool>>,
    pub profiles: Arc<dyn Profiles>,
    pub sealer: Sealer,
    pub clock: Arc<dyn Clock>,
    pub timeouts: Timeouts,
}

/// One environment to serve.
pub struct EnvironmentParts {
    pub brain: Arc<dyn Brain>,
    pub tenancy: Tenancy,
    /// Where its key can be read again, if anywhere.
    pub key: Option<Arc<dyn KeySource>>,
    /// Sessions of this environment served at the same time.
    pub concurrency_max: usize,
}

/// Where an environment's key is read from. A key that was refused is looked for again there, so
/// that a new one needs no restart.
pub trait KeySource: Send + Sync + 'static {
    /// Reads the key, and has the brain's client use it when it is another one: `Ok(true)`. `Err`
    /// says why it cannot be read. Blocks for as long as a file takes.
    fn renew(&self) -> Result<bool, String>;
}

/// Where a session's tenant comes from.
#[derive(Clone, Debug)]
pub struct Tenancy {
    pub tenant: TenantId,
    /// The session-metadata key that names the tenant instead; a session without it is of
    /// [`Self::tenant`].
    pub metadata_key: Option<String>,
}

impl Tenancy {
    /// The tenant of a session with that metadata.
    pub fn tenant_of(&self, metadata: &BTreeMap<String, String>) -> TenantId {
        let named = self.metadata_key.as_ref().and_then(|key| metadata.get(key));
        match named {
            Some(name) if !name.is_empty() => TenantId::from(name.as_str()),
            _ => self.tenant.clone(),
        }
    }
}

/// Profile rules, and what they choose.
pub trait Profiles: Send + Sync + 'static {
    /// The profile of a new session.
    fn choose(&self, facts: &SessionFacts<'_>) -> Chosen;

    /// The shape of a profile, `None` when the configuration no longer has it.
    fn shape(&self, profile: &ProfileName) -> Option<Shape>;
}

/// What a rule may look at. Title and agent name are not among it: anyone may choose those.
pub struct SessionFacts<'a> {
    pub environment: &'a EnvironmentId,
    pub tenant: &'a TenantId,
    pub agent: Option<&'a AgentId>,
    pub metadata: &'a BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub profile: ProfileName,
    /// Which rule chose it, for the reader.
    pub by: String,
}

/// What the session driver needs of a profile; limits are the launcher's to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub tier: Tier,
    /// The image's name, looked up when the session's first sandbox is made.
    pub image: String,
    pub tools: ToolLimits,
    /// How long processes outlive the work item.
    pub keep_running: Duration,
    /// How long the volume outlives the last activity.
    pub retain: Duration,
}

/// The waits of design §5 that do not belong to a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A turn is over and nothing is outstanding for this long: the item is stopped.
    pub idle: Duration,
    /// A guest agent that answers nothing for this long is dead.
    pub agent_silent: Duration,
    /// How long a shutdown waits for running calls.
    pub drain: Duration,
    /// How long one heartbeat request may take before the next one is tried.
    pub beat_attempt: Duration,
    /// How long logs and ended sessions are remembered.
    pub log_retention: Duration,
    /// A key that was refused is tried again after this long.
    pub refused_retry: Duration,
    /// How long one sign of life of this node lasts. A node that is gone for longer loses its
    /// sessions to the others that share its store.
    pub node_ttl: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            agent_silent: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            beat_attempt: Duration::from_secs(5),
            log_retention: Duration::from_secs(30 * 24 * 3600),
            refused_retry: Duration::from_secs(60),
            node_ttl: Duration::from_secs(60),
        }
    }
}

/// How an environment is doing, for `doctor` and the API.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct EnvironmentStatus {
    pub environment: EnvironmentId,
    /// `false`: it was taken out of the configuration, and sessions of it still have something
    /// here.
    pub configured: bool,
    pub serving: usize,
    pub concurrency_max: usize,
    pub last_poll_at: Option<Timestamp>,
    /// Why polling does not work at the moment, with its causes.
    pub trouble: Option<String>,
    pub trouble_since: Option<Timestamp>,
    /// The brain refuses the key; it is tried again from time to time.
    pub refused: bool,
    /// Offers that are left to other nodes, or for later, at the moment.
    pub left_alone: usize,
}
