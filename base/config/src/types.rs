//! A configuration that has been checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base_types::{AgentId, ByteSize, EnvironmentId, ProfileName, Secret, TenantId};

use crate::problem::{Place, Problem};
use crate::store::StoreConfig;

#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// The installation: store, sockets, volumes.
    pub data: PathBuf,
    pub images: PathBuf,
    /// The numeric user that `serve` runs as after it dropped root.
    pub user: u32,
    /// How this worker names itself to the brain; `None` leaves the choice to the program.
    pub worker_id: Option<String>,
    pub environments: Vec<Environment>,
    /// One for each environment of the file and the variables; known without any key.
    pub tenancies: Vec<Tenancy>,
    /// In the order of the file, then the built-in `default` unless the file has its own.
    pub profiles: Vec<Profile>,
    pub limits: Limits,
    pub pool: Pool,
    pub store: StoreConfig,
    /// What looks wrong and does not keep anything from working.
    pub warnings: Vec<Problem>,
}

/// A queue of work at a brain.
#[derive(Clone, Debug)]
pub struct Environment {
    pub id: EnvironmentId,
    pub key: Secret,
    /// The file that the key was read from, where it was one: a new key may be put there.
    pub key_file: Option<PathBuf>,
    pub base_url: String,
    /// Lets the key travel readable to a host that is not this one.
    pub allow_plain_http: bool,
    /// PEM certificates trusted besides the system's own.
    pub ca_file: Option<PathBuf>,
    pub tenant: TenantId,
    /// The session-metadata key that names the tenant instead.
    pub tenant_metadata_key: Option<String>,
    /// Sessions served at the same time.
    pub concurrency: u32,
}

/// Which tenant the sessions of an environment belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenancy {
    pub environment: EnvironmentId,
    pub tenant: TenantId,
    /// The session-metadata key that names the tenant instead.
    pub metadata_key: Option<String>,
}

/// A named sandbox shape, and which sessions get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub name: ProfileName,
    /// Where it begins; nowhere for the built-in one.
    pub place: Place,
    /// One of them must hold; without any, every session matches.
    pub matches: Vec<Match>,
    pub tier: Tier,
    /// The image's name in the image cache.
    pub image: String,
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    pub memory: ByteSize,
    pub pids: u32,
    pub disk: ByteSize,
    /// `None`: the user that the image names, else `agent`.
    pub tools_as: Option<ToolsAs>,
    /// Inside the sandbox. `None`: the image's, else `/workspace`.
    pub workdir: Option<String>,
    pub entrypoint: Entrypoint,
    /// Variables of the guest, over the image's. Never a credential.
    pub env: BTreeMap<String, String>,
    pub bash_timeout: Duration,
    pub bash_timeout_max: Duration,
    pub tool_timeout: Duration,
    pub keep_running: Duration,
    pub retain: Duration,
}

/// What a session must be. All that is named must hold; at least one thing is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub place: Place,
    pub environment: Option<EnvironmentId>,
    pub agent: Option<AgentId>,
    pub tenant: Option<TenantId>,
    pub metadata: BTreeMap<String, String>,
}

/// How a sandbox is made. The other tiers of the design join here when they exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Container,
}

impl Tier {
    pub fn name(self) -> &'static str {
        match self {
            Tier::Container => "container",
        }
    }
}

/// Whose rights tools have inside the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolsAs {
    /// `agent`, uid 1000.
    User,
    /// Root of the sandbox's own user namespace.
    Root,
}

/// What runs beside the tools, once each time the sandbox starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Entrypoint {
    #[default]
    None,
    /// The image's own, with its command.
    OfImage,
    /// Never empty.
    Command(Vec<String>),
}

/// The waits and bounds that belong to no profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub agent_silence: Duration,
    pub idle: Duration,
    pub shutdown_drain: Duration,
    pub log_retention: Duration,
    pub node_ttl: Duration,
    pub brain_connect: Duration,
    pub brain_request: Duration,
    pub beat_attempt: Duration,
    pub stream_silence: Duration,
    /// How many starts the launcher prepares ahead.
    pub starts_ahead: u32,
}

/// The file that holds the sandboxes' disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub initial: ByteSize,
    pub step: ByteSize,
    pub max: ByteSize,
    pub reserve: ByteSize,
}
