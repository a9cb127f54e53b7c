//! The official Python SDK, unmodified, against the development brain: as client and as worker.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base_types::SessionId;
use brain_local::{
    BrainConfig, BrainHandle, BrainServer, Counters, CredentialKind, NewSession, Route, Timings,
    built_in_scenarios,
};
use serde_json::Value;
use tokio::process::{Child, Command};

/// A cold interpreter on a busy machine takes seconds to import the SDK.
pub const LIMIT: Duration = Duration::from_secs(90);
/// How long a worker stays with a session that has nothing for it.
const MAX_IDLE_SECONDS: &str = "2";

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The interpreter that has the SDK, or why there is none.
pub async fn python() -> Result<PathBuf, String> {
    let script = repository().join("scripts/python-venv.sh");
    let made = Command::new(&script).output().await.map_err(|error| error.to_string())?;
    let python = repository().join(".venv/bin/python");
    match made.status.success() && python.exists() {
        true => Ok(python),
        false => Err(String::from_utf8_lossy(&made.stderr).trim().to_owned()),
    }
}

/// Ends the test, and says so, where there is no Python with the SDK.
macro_rules! python_or_skip {
    ($test:expr) => {
        match $crate::sdk::python().await {
            Ok(python) => python,
            Err(reason) => {
                eprintln!("SKIP {}: no Python with the SDK: {reason}", $test);
                return;
            }
        }
    };
}

pub(crate) use python_or_skip;

async fn brain() -> BrainHandle {
    let timings = Timings { lease_ttl: Duration::from_secs(4), ..Timings::default() };
    BrainServer::start(BrainConfig { timings, ..BrainConfig::default() }).await.unwrap()
}

/// A client or a worker as its own process, with nothing of this one's environment but PATH.
fn program(python: &PathBuf, name: &str, brain: &BrainHandle) -> Command {
    let mut command = Command::new(python);
    command
        .arg(repository().join("e2e/clients").join(name))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("ANTHROPIC_BASE_URL", brain.url())
        .kill_on_drop(true);
    command
}

fn client(python: &PathBuf, name: &str, brain: &BrainHandle) -> Command {
    let mut command = program(python, name, brain);
    command.env("ANTHROPIC_API_KEY", brain.api_key().expose());
    command
}

pub fn worker(python: &PathBuf, brain: &BrainHandle, workdir: &std::path::Path) -> Child {
    program(python, "worker.py", brain)
        .arg(workdir)
        .arg(MAX_IDLE_SECONDS)
        .env("ANTHROPIC_ENVIRONMENT_ID", brain.environment_id().as_str())
        .env("ANTHROPIC_ENVIRONMENT_KEY", brain.environment_key().expose())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn new_session(brain: &BrainHandle, script: &str) -> NewSession {
    NewSession {
        script: script.to_owned(),
        environment: brain.environment_id().clone(),
        title: None,
        metadata: Vec::new(),
        message: Some("Please begin.".to_owned()),
    }
}

async fn played(brain: &BrainHandle, session: &SessionId) {
    let over = |brain: &BrainHandle| {
        let verdict = brain.verdict(session);
        verdict.completed > 0 || verdict.failed()
    };
    let waited = brain.wait_until(LIMIT, over).await;
    let verdict = brain.verdict(session);
    assert!(waited.is_ok() && verdict.passed(), "{verdict:?}: {:#?}", brain.results(session));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_walks_through_every_resource() {
    let python = python_or_skip!("the_client_walks_through_every_resource");
    let brain = brain().await;
    let output = client(&python, "resources.py", &brain).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_play_every_built_in_script() {
    let python = python_or_skip!("two_workers_play_every_built_in_script");
    let brain = brain().await;
    let workdirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let _workers = workdirs.each_ref().map(|dir| worker(&python, &brain, dir.path()));
    let sessions: Vec<SessionId> = built_in_scenarios()
        .map(|(name, _)| brain.start_session(new_session(&brain, name)).unwrap())
        .collect();
    for session in &sessions {
        played(&brain, session).await;
    }
    let calls: usize = built_in_scenarios().map(|(_, scenario)| scenario.calls()).sum();
    assert_eq!(brain.counters(), Counters { results: calls as u64, ..Counters::default() });
    for result in sessions.iter().flat_map(|session| brain.results(session)) {
        assert_eq!(result.credential, CredentialKind::SessionsToken, "{result:?}");
    }
    for route in [Route::WorkPoll, Route::WorkAck] {
        let requests = brain.requests_of(route);
        assert!(!requests.is_empty());
        assert!(requests.iter().all(|r| r.credential == CredentialKind::EnvironmentKey));
    }
    // Idle for its limit, a worker stops the item and polls again.
    let stopped = |brain: &BrainHandle| {
        sessions.iter().all(|session| brain.items_of(session)[0].state == "stopped")
    };
    brain.wait_until(LIMIT, stopped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_drives_a_session_that_the_worker_serves() {
    let python = python_or_skip!("the_client_drives_a_session_that_the_worker_serves");
    let scenario = r#"
        [[step]]
        say = "One call needs a confirmation."
        [[step]]
        [[step.call]]
        tool = "bash"
        input = { command = "echo confirmed" }
        permission = "ask"
        expect = { contains = "confirmed", is_error = false }
    "#;
    let timings = Timings { lease_ttl: Duration::from_secs(4), ..Timings::default() };
    let scenarios = vec![("confirm".to_owned(), scenario.to_owned())];
    let config = BrainConfig { timings, scenarios, ..BrainConfig::default() };
    let brain = BrainServer::start(config).await.unwrap();
    let workdir = tempfile::tempdir().unwrap();
    let _worker = worker(&python, &brain, workdir.path());
    let output = client(&python, "session.py", &brain)
        .args(["confirm", "--confirm", "allow"])
        .args(["--environment", brain.environment_id().as_str()])
        .output();
    let output = tokio::time::timeout(LIMIT, output).await.expect("the client ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let types: Vec<&str> = lines.iter().filter_map(|line| line["event"]["type"].as_str()).collect();
    let wanted = [
        "user.message",
        "session.status_running",
        "agent.message",
        "agent.tool_use",
        "session.status_idle",
        "user.tool_confirmation",
        "user.tool_result",
        "session.status_running",
        "session.status_idle",
    ];
    let mut rest = types.iter();
    assert!(wanted.iter().all(|kind| rest.any(|found| found == kind)), "{types:?}");
    assert!(lines.iter().any(|line| line["done"] == "end_turn"), "{lines:?}");
    assert!(brain.verdict(&brain.sessions()[0]).passed());
}
