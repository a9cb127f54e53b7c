//! What a caller decides about the development brain before it starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use base_types::{EnvironmentId, Secret};

use crate::fault::FaultRule;

/// Everything has a default: `BrainConfig::default()` listens on a free port of loopback.
#[derive(Clone, Debug)]
pub struct BrainConfig {
    pub listen: SocketAddr,
    /// A directory of `NAME.toml` scenario files; they shadow the built-in ones.
    pub scenario_dir: Option<PathBuf>,
    /// Scenarios given as text (name, TOML); they shadow both.
    pub scenarios: Vec<(String, String)>,
    pub timings: Timings,
    pub switches: Switches,
    pub faults: Vec<FaultRule>,
    pub credentials: Credentials,
}

/// The credentials of the first environment. What is `None` is generated at start.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub environment_id: Option<EnvironmentId>,
    pub environment_key: Option<Secret>,
    pub api_key: Option<Secret>,
}

#[derive(Clone, Debug)]
pub struct Timings {
    /// How long an item stays with a worker that does not beat. Reported in whole seconds,
    /// rounded up, and never as zero.
    pub lease_ttl: Duration,
    /// A polled item that nobody acknowledged is offered again after this long, unless the poll
    /// says otherwise.
    pub reclaim: Duration,
    /// Between two pings on an event stream.
    pub ping: Duration,
}

/// Behaviour that the protocol leaves open, or that a test wants both ways.
#[derive(Clone, Debug)]
pub struct Switches {
    /// Put an item that was acknowledged and never beat back into the queue when its lease time
    /// has passed. The real service is reported not to.
    pub requeue_unbeaten: bool,
    /// Hand out a sessions token with each polled item.
    pub secret: bool,
    /// A sessions token dies when its item is stopped or queued again.
    pub tokens_end_with_item: bool,
    /// Answer 404 to a gated request without the beta header.
    pub require_beta_header: bool,
    /// Give the identical re-post of a result 400 instead of accepting it.
    pub refuse_identical_result: bool,
    /// Give no more events in one page than this, whatever the request asks for.
    pub events_per_page: Option<usize>,
}

impl Default for BrainConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            scenario_dir: None,
            scenarios: Vec::new(),
            timings: Timings::default(),
            switches: Switches::default(),
            faults: Vec::new(),
            credentials: Credentials::default(),
        }
    }
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(60),
            reclaim: Duration::from_secs(5),
            ping: Duration::from_secs(15),
        }
    }
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            requeue_unbeaten: false,
            secret: true,
            tokens_end_with_item: false,
            require_beta_header: false,
            refuse_identical_result: false,
            events_per_page: None,
        }
    }
}
