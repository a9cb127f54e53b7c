//! The world of the session tests: a brain and sandboxes in memory behind their contracts, a real
//! journal in a file, and the real driver between them.

pub mod agent;
pub mod brain;
pub mod driver;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base_types::{NodeId, ProfileName, SessionId, SystemClock, TenantId};
use brain_api::Block;
use control_session::{
    Chosen, EnvironmentParts, EnvironmentStatus, Hands, HandsHandle, HandsParts, KeySource,
    Profiles, Sealer, SessionFacts, Shape, Tenancy, Timeouts,
};
use sandbox_api::Tier;
use sandbox_api::guest::client::ClientError;
use sandbox_api::guest::{CallSpec, Exit, OutputLimits, ShellSpec, Work};
use serde_json::Value;
use store_api::{CallRecord, SessionRecord, Store};
use store_sql::SqlStore;
use tokio_util::sync::CancellationToken;
use tools_api::{Idempotency, Tool, ToolAnswer, ToolContext, ToolError, ToolLimits};

use self::brain::{SESSION, TestBrain};
use self::driver::Driver;
use self::store::{Cut, CuttableStore};

pub struct World {
    pub node: &'static str,
    pub brain: TestBrain,
    /// Brains of other environments that the same server serves.
    pub others: Vec<Other>,
    pub driver: Arc<Driver>,
    pub store: Arc<dyn Store>,
    pub timeouts: Timeouts,
    pub keep_running: Duration,
    pub image: String,
    _directory: Arc<tempfile::TempDir>,
}

/// Another environment.
pub struct Other {
    pub brain: TestBrain,
    pub concurrency_max: usize,
    pub key: Option<Arc<dyn KeySource>>,
}

impl Other {
    pub fn of(brain: TestBrain) -> Self {
        Self { brain, concurrency_max: 4, key: None }
    }
}

/// One process's worth of serving; dropping it is a crash.
pub struct Server {
    pub handle: HandsHandle,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), control_session::HandsError>>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct OneProfile {
    keep_running: Duration,
    image: String,
}

impl Profiles for OneProfile {
    fn choose(&self, _: &SessionFacts<'_>) -> Chosen {
        Chosen { profile: ProfileName::from("default"), by: "the only one".into() }
    }

    fn shape(&self, _: &ProfileName) -> Option<Shape> {
        let long = Duration::from_secs(120);
        Some(Shape {
            tier: Tier::Container,
            image: self.image.clone(),
            tools: ToolLimits { bash: long, bash_max: long, other: long },
            keep_running: self.keep_running,
            retain: Duration::from_secs(7 * 24 * 3600),
        })
    }
}

/// `bash` as far as these tests need it: start, wait, say what came.
struct Bash;

#[async_trait]
impl Tool for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn idempotency(&self) -> Idempotency {
        Idempotency::Keyed
    }

    fn check(&self, input: &Value) -> Result<(), ToolAnswer> {
        match input.get("command") {
            Some(Value::String(_)) => Ok(()),
            _ => Err(ToolAnswer::error("bash: command is required")),
        }
    }

    async fn run(&self, context: &ToolContext<'_>, input: &Value) -> Result<ToolAnswer, ToolError> {
        let command = input["command"].as_str().unwrap_or_default().to_owned();
        let spec = CallSpec {
            timeout: context.limits.bash,
            limits: OutputLimits::default(),
            work: Work::Shell(ShellSpec::Command(command)),
        };
        let lost = |error: ClientError| ToolError::ConnectionLost(error);
        context.guest.start(context.call, &spec).await.map_err(lost)?;
        let outcome = context.guest.wait(context.call).await.map_err(lost)?;
        let output = String::from_utf8_lossy(&outcome.head).into_owned();
        let text = [context.notice.clone().unwrap_or_default(), output].concat();
        Ok(ToolAnswer {
            content: vec![Block::text(text)],
            is_error: outcome.exit != Exit::Code(0),
            summary: "ran".into(),
            exit_code: Some(0),
        })
    }
}

impl World {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = SqlStore::open_sqlite(&directory.path().join("journal.db")).await.unwrap();
        Self {
            node: "node-1",
            brain: TestBrain::new(),
            others: Vec::new(),
            driver: Driver::shared(),
            store: Arc::new(store),
            timeouts: Timeouts { drain: Duration::from_secs(2), ..Timeouts::default() },
            keep_running: Duration::from_secs(600),
            image: "default".into(),
            _directory: Arc::new(directory),
        }
    }

    /// Another node with sandboxes of its own, on the same store and for the same brain.
    pub fn beside(&self, node: &'static str) -> Self {
        Self {
            node,
            brain: self.brain.clone(),
            others: Vec::new(),
            driver: Driver::shared(),
            store: self.store.clone(),
            timeouts: self.timeouts,
            keep_running: self.keep_running,
            image: self.image.clone(),
            _directory: self._directory.clone(),
        }
    }

    /// From here on this node reaches the store through a line that the test can cut.
    pub fn cut_from_the_store(&mut self) -> Cut {
        let cut = Cut::default();
        self.store = Arc::new(CuttableStore { store: self.store.clone(), cut: cut.clone() });
        cut
    }

    /// The brain of another environment with a session of its own.
    pub fn another_session(&self, n: usize) -> TestBrain {
        TestBrain::of(&format!("env_of_{n}"), &format!("sesn_of_{n}"))
    }

    /// Serves these environments too.
    pub fn serve_all(&self, brains: &[TestBrain]) -> Server {
        let others = brains.iter().map(|brain| Other::of(brain.clone())).collect();
        World { others, ..self.same() }.serve()
    }

    /// The same world seen by another handle.
    fn same(&self) -> Self {
        Self { driver: self.driver.clone(), ..self.beside(self.node) }
    }

    /// A server on a runtime of its own, so that a crash takes every one of its tasks.
    pub fn serve(&self) -> Server {
        let parts = HandsParts {
            node: NodeId::from(self.node),
            store: self.store.clone(),
            environments: std::iter::once(environment(&self.brain, 4, None))
                .chain(self.others.iter().map(|other| {
                    environment(&other.brain, other.concurrency_max, other.key.clone())
                }))
                .collect(),
            driver: self.driver.clone(),
            tools: vec![Arc::new(Bash)],
            profiles: Arc::new(OneProfile {
                keep_running: self.keep_running,
                image: self.image.clone(),
            }),
            sealer: Sealer::new(&[1; 32]),
            clock: Arc::new(SystemClock),
            timeouts: self.timeouts,
        };
        let hands = Hands::build(parts);
        let handle = hands.handle();
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let task = runtime.spawn(hands.run(stop.clone()));
        Server { handle, stop, task, runtime: Some(runtime) }
    }

    pub async fn session(&self) -> SessionRecord {
        self.store.session(&SessionId::from(SESSION)).await.unwrap().expect("a session")
    }

    pub async fn calls(&self) -> Vec<CallRecord> {
        self.store.calls(&SessionId::from(SESSION), None, 100).await.unwrap()
    }

    pub async fn phase_is(&self, name: &str) {
        wait_for(&format!("phase {name}"), async || {
            match self.store.session(&SessionId::from(SESSION)).await.unwrap() {
                Some(session) if session.phase.name() == name => Ok(()),
                Some(session) => Err(format!("{:?}", session.phase)),
                None => Err("no session".into()),
            }
        })
        .await;
    }

    pub async fn posts_are(&self, count: usize) -> Vec<String> {
        wait_for(&format!("{count} posts"), async || {
            let posts = self.brain.posts();
            if posts.len() >= count { Ok(()) } else { Err(format!("{posts:?}")) }
        })
        .await;
        self.brain.posts()
    }

    pub async fn begun(&self, count: usize) -> Vec<String> {
        wait_for(&format!("{count} calls begun"), async || {
            let begun = self.driver.agent().map(|agent| agent.begun()).unwrap_or_default();
            if begun.len() >= count { Ok(()) } else { Err(format!("{begun:?}")) }
        })
        .await;
        self.driver.agent().unwrap().begun()
    }

    pub async fn logged(&self, what: &str, count: usize) {
        wait_for(&format!("{count} × {what}"), async || match self.brain.logged(what) {
            seen if seen >= count => Ok(()),
            _ => Err(format!("{:?}", self.brain.log())),
        })
        .await;
    }
}

fn environment(
    brain: &TestBrain,
    concurrency_max: usize,
    key: Option<Arc<dyn KeySource>>,
) -> EnvironmentParts {
    EnvironmentParts {
        brain: Arc::new(brain.clone()),
        key,
        tenancy: Tenancy { tenant: TenantId::from("acme"), metadata_key: None },
        concurrency_max,
    }
}

impl Server {
    pub fn environment(&self, id: &str) -> EnvironmentStatus {
        let mut all = self.handle.environments();
        let at = all.iter().position(|environment| environment.environment.as_str() == id);
        all.swap_remove(at.unwrap_or_else(|| panic!("no environment {id}: {all:?}")))
    }

    /// How serving ended, if it has.
    pub async fn ended(&mut self) -> Result<(), control_session::HandsError> {
        (&mut self.task).await.unwrap()
    }

    /// Ends as a SIGKILL would: no task runs another step.
    pub fn crash(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub async fn shut_down(mut self) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits until `check` is `Ok`, and says what it last saw when the time is over.
pub async fn wait_for(what: &str, mut check: impl AsyncFnMut() -> Result<(), String>) {
    let mut last = String::new();
    for _ in 0..1_000 {
        match check().await {
            Ok(()) => return,
            Err(seen) => last = seen,
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    panic!("waited in vain for {what}; last seen: {last}");
}
