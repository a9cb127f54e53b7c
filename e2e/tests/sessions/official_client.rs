//! The official Python SDK, unmodified, with the built binary on the other side: its client with a
//! session that `sinew serve` serves, its worker with `sinew brain`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use base_types::SessionId;
use serde_json::Value;
use testkit::{Brain, Installation, Options, can_run_sandboxes, skip};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The interpreter that has the SDK, or why there is none.
fn python() -> Result<PathBuf, String> {
    let made = Command::new(repository().join("scripts/python-venv.sh")).output();
    let made = made.map_err(|error| error.to_string())?;
    let python = repository().join(".venv/bin/python");
    match made.status.success() && python.exists() {
        true => Ok(python),
        false => Err(String::from_utf8_lossy(&made.stderr).trim().to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_drives_a_session_that_serve_serves() {
    let name = "the_official_client_drives_a_session_that_serve_serves";
    let Some(images) = can_run_sandboxes(name) else { return };
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip(name, &format!("no Python with the SDK: {reason}")),
    };
    let installation = Installation::start(&images, Options::default());
    let brain = &installation.brain;
    let (session, lines) = drive(&python, brain, "fix-a-bug").await;

    // What the client saw on its stream is what was played, and every expectation held.
    let played = brain.played(&session).await;
    assert!(played.passed, "{played:#?}");
    let seen = lines.iter().filter(|line| line["event"]["type"] == "user.tool_result").count();
    assert_eq!(seen, played.results.len());
    let shown = installation.json(&["session", "show", "--json", session.as_str()]);
    assert_eq!(shown["calls"]["total"], played.results.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_worker_serves_sessions_of_sinew_brain() {
    let name = "the_official_worker_serves_sessions_of_sinew_brain";
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip(name, &format!("no Python with the SDK: {reason}")),
    };
    // No sandbox is needed: the tools are the official worker's own.
    let installation = Installation::without_serve(Path::new("/nonexistent"), Options::default());
    let brain = &installation.brain;
    let workdir = tempfile::tempdir().unwrap();
    let mut worker = program(&python, "worker.py", brain);
    worker.arg(workdir.path()).arg("2");
    worker.env("ANTHROPIC_ENVIRONMENT_ID", &brain.environment_id);
    worker.env("ANTHROPIC_ENVIRONMENT_KEY", &brain.environment_key);
    let worker = Ended(worker.stdout(Stdio::null()).spawn().unwrap());
    let (session, _) = drive(&python, brain, "six-tools").await;
    let played = brain.played(&session).await;
    assert!(played.passed, "{played:#?}");
    drop(worker);
}

/// A process that ends with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of ours on the SDK, with nothing of this process's environment but PATH.
fn program(python: &Path, name: &str, brain: &Brain) -> Command {
    let mut program = Command::new(python);
    program
        .arg(repository().join("e2e/clients").join(name))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("ANTHROPIC_BASE_URL", &brain.url);
    program
}

/// The client plays a script to its end. Returns the session and what the client printed.
async fn drive(python: &Path, brain: &Brain, script: &str) -> (SessionId, Vec<Value>) {
    let mut client = program(python, "session.py", brain);
    client.args([script, "--environment", &brain.environment_id]);
    client.env("ANTHROPIC_API_KEY", &brain.api_key);
    let ran = tokio::task::spawn_blocking(move || client.output()).await.unwrap().unwrap();
    let lines = json_lines(&ran);
    let value = |key: &str| lines.iter().find_map(|line| line.get(key)).cloned();
    assert_eq!(value("done"), Some("end_turn".into()), "{lines:#?}");
    let session = value("session").expect("the session's id");
    (SessionId::from(session.as_str().unwrap()), lines)
}

fn json_lines(output: &Output) -> Vec<Value> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}
