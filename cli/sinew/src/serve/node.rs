//! One running node, in the order in which it comes up.
//!
//! As root: the launcher, the directory of `serve`, the API's socket. Then, as an unprivileged
//! user, everything that reads a byte of a network or of a person.

use std::fs::{self, File};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use base_config::{Config, Environment, StoreConfig};
use base_tasks::TaskKind;
use base_types::{Clock, NodeId, SystemClock};
use brain_http::{HttpBrain, HttpBrainConfig};
use control_server::{ApiSocket, Server, ServerParts, SocketOwner};
use control_session::{EnvironmentParts, Hands, HandsParts, KeySource, Tenancy, Timeouts};
use rustix::fs::FlockOperation;
use sandbox_api::{DriverError, SandboxDriver};
use sandbox_launcher::{EnsureRunning, Launched, LauncherDriver, ServeUser, ensure_running};
use store_api::Store;
use store_sql::SqlStore;
use tokio_util::sync::CancellationToken;

use super::control::Control;
use super::key::KeyFile;
use super::profiles::ConfiguredProfiles;
use super::{identity, privilege};
use crate::installation::{Installation, is_root, prepare_for_serve};
use crate::store::{Journal, read_authorities};

/// Where nodes share a store: between an acknowledgement that is on its way and the wait of a
/// session whose item the wrong node was offered.
const LEFT_ITEM_AGAIN: Duration = Duration::from_secs(2);

/// What is left of root: a socket, a lock, and what only root could read.
pub struct Prepared {
    config: Arc<Config>,
    installation: Installation,
    socket: ApiSocket,
    /// Held until the process ends: one `serve` at a time.
    lock: File,
    authorities: Vec<Option<Vec<u8>>>,
    journal: Journal,
}

/// A node that is ready to claim work.
pub struct Node {
    installation: Installation,
    hands: Hands,
    server: Server,
    api_stop: CancellationToken,
    store: SqlStore,
    environments: Vec<String>,
    _lock: File,
}

// === impl Prepared ===

impl Prepared {
    pub fn prepare(config: Config, socket_group: Option<u32>) -> anyhow::Result<Self> {
        let installation = Installation::at(config.data.clone());
        let authorities =
            config.environments.iter().map(authorities_of).collect::<Result<_, _>>()?;
        let journal = Journal::of(&config.store)?;
        // Whatever the caller's: everything here is its owner's until it is given away.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        if is_root() {
            launch(&config, &installation)?;
            prepare_for_serve(&installation, ServeUser::of_same_number(config.user))?;
        } else if !installation.serve_dir().is_dir() {
            bail!(
                "{} is not ready, and only root can make it so: run `sinew serve` as root once, or \
                 start the launcher's unit",
                installation.data().display()
            );
        }
        let lock = lock(&installation)?;
        let owner = SocketOwner { uid: config.user, group: socket_group };
        let socket = ApiSocket::bind(&installation.socket(), is_root().then_some(owner))?;
        if is_root() {
            privilege::drop_to(config.user)?;
        }
        check_reach(&installation)?;
        Ok(Self { config: Arc::new(config), installation, socket, lock, authorities, journal })
    }
}

fn launch(config: &Config, installation: &Installation) -> anyhow::Result<()> {
    let wanted = EnsureRunning {
        data: installation.data(),
        images: &config.images,
        config: config.file.as_deref(),
        serve_uid: config.user,
    };
    match ensure_running(&wanted).context("have a launcher")? {
        Launched::Already { pid } => tracing::info!(pid, "the launcher runs already"),
        Launched::Now { pid } => tracing::info!(pid, "the launcher was started"),
    }
    Ok(())
}

fn lock(installation: &Installation) -> anyhow::Result<File> {
    let dir = installation.serve_dir();
    let file = File::open(&dir).with_context(|| format!("open {}", dir.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let data = installation.data().display();
            bail!("another `sinew serve` runs for {data}: stop it, or name another with --data DIR")
        }
        Err(errno) => Err(errno).with_context(|| format!("lock {}", dir.display())),
    }
}

/// A data directory below somebody's private home is the usual way to get this wrong.
fn check_reach(installation: &Installation) -> anyhow::Result<()> {
    let dir = installation.serve_dir();
    fs::read_dir(&dir).map(drop).with_context(|| {
        let user = rustix::process::geteuid().as_raw();
        format!(
            "user {user} cannot reach {}: let others pass through its parents (`chmod o+x`), or name \
             another directory with --data DIR",
            dir.display()
        )
    })
}

fn authorities_of(environment: &Environment) -> anyhow::Result<Option<Vec<u8>>> {
    environment.ca_file.as_deref().map(read_authorities).transpose()
}

// === impl Node ===

impl Node {
    pub async fn start(prepared: Prepared) -> anyhow::Result<Self> {
        let Prepared { config, installation, socket, lock, authorities, journal } = prepared;
        let node = identity::node_id(&installation)?;
        let sealer = identity::sealer(&installation)?;
        let store = journal.open(&installation).await?;
        let driver = LauncherDriver::connect(installation.data()).await;
        let driver: Arc<dyn SandboxDriver> = Arc::new(driver.context("connect to the launcher")?);
        check_images(&config, driver.as_ref()).await?;
        let worker = config.worker_id.clone().unwrap_or_else(|| worker_id(&node));
        let mut environments = Vec::new();
        for (environment, ca) in config.environments.iter().zip(authorities) {
            environments.push(environment_parts(&config, environment, &worker, ca)?);
        }
        let shared_store: Arc<dyn Store> = Arc::new(store.clone());
        let hands = Hands::build(HandsParts {
            node: node.clone(),
            store: shared_store.clone(),
            environments,
            driver: driver.clone(),
            tools: tools_builtin::builtin_tools(),
            profiles: Arc::new(ConfiguredProfiles(config.clone())),
            sealer,
            clock: Arc::new(SystemClock),
            timeouts: Timeouts {
                idle: config.limits.idle,
                agent_silent: config.limits.agent_silence,
                drain: config.limits.shutdown_drain,
                beat_attempt: config.limits.beat_attempt,
                log_retention: config.limits.log_retention,
                node_ttl: config.limits.node_ttl,
                ..Timeouts::default()
            },
        });
        let api_stop = CancellationToken::new();
        let parts = ServerParts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node,
            started_at: SystemClock.now(),
            store: shared_store,
            control: Arc::new(Control(hands.handle())),
            driver,
        };
        let server = Server::new(parts, socket, api_stop.clone());
        let names = config.environments.iter().map(|environment| environment.id.to_string());
        let environments = names.collect();
        Ok(Self { installation, hands, server, api_stop, store, environments, _lock: lock })
    }

    /// For the line that says that it is ready.
    pub fn summary(&self) -> String {
        let environments = self.environments.join(", ");
        format!("serving {environments} from {}", self.installation.data().display())
    }

    /// Serves until `stop`, then drains. The API answers until the drain is over.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let server = base_tasks::spawn(TaskKind::ApiListener, self.server.run());
        let served = self.hands.run(stop).await;
        self.api_stop.cancel();
        match server.await {
            Ok(ended) => ended.context("serve the API")?,
            Err(panic) => tracing::error!(error = %panic, "the API ended early"),
        }
        self.store.close().await;
        served.context("serve sessions")
    }
}

/// Found out now rather than at the first session.
async fn check_images(config: &Config, driver: &dyn SandboxDriver) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for profile in &config.profiles {
        match driver.image(&profile.image).await {
            Ok(_) => {}
            Err(DriverError::NoSuchImage(image)) => {
                missing.push(format!("profile `{}` needs image `{image}`", profile.name));
            }
            Err(error) => return Err(error).context("look for the images of the profiles"),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let images = config.images.display();
    bail!(
        "{}; not in {images}: `sinew image ls --images {images}` shows what there is, `sinew image \
         build` and `sinew image import` make one",
        missing.join(", ")
    )
}

fn environment_parts(
    config: &Config,
    environment: &Environment,
    worker: &str,
    extra_ca_pem: Option<Vec<u8>>,
) -> anyhow::Result<EnvironmentParts> {
    let limits = &config.limits;
    let defaults = brain_http::Timeouts::default();
    let brain = HttpBrain::new(HttpBrainConfig {
        environment: environment.id.clone(),
        key: environment.key.clone(),
        base_url: environment.base_url.clone(),
        worker_id: worker.to_owned(),
        allow_plain_http: environment.allow_plain_http,
        extra_ca_pem,
        // Other nodes may have a session's files: an item that is left to them shall reach them soon.
        reclaim: matches!(config.store, StoreConfig::Postgres(_)).then_some(LEFT_ITEM_AGAIN),
        timeouts: brain_http::Timeouts {
            connect: limits.brain_connect,
            request: limits.brain_request,
            beat_attempt: limits.beat_attempt,
            stream_silence: limits.stream_silence,
            ..defaults
        },
    });
    let brain = Arc::new(brain.with_context(|| format!("environment {}", environment.id))?);
    let key = environment.key_file.clone().map(|path| {
        let key: Arc<dyn KeySource> = Arc::new(KeyFile { path, brain: brain.clone() });
        key
    });
    Ok(EnvironmentParts {
        brain,
        key,
        tenancy: Tenancy {
            tenant: environment.tenant.clone(),
            metadata_key: environment.tenant_metadata_key.clone(),
        },
        concurrency_max: usize::try_from(environment.concurrency).unwrap_or(usize::MAX),
    })
}

/// Tells the workers of one environment apart, and one machine's two installations.
fn worker_id(node: &NodeId) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-.".contains(*c);
    let host: String = host.trim().chars().filter(is_plain).take(64).collect();
    let short: String = node.as_str().trim_start_matches("node_").chars().take(12).collect();
    if host.is_empty() { format!("sinew-{short}") } else { format!("{host}-{short}") }
}
