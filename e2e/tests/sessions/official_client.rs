//! The official Python client, unmodified, on the application's side of a session that
//! `sinew serve` serves.

use std::path::PathBuf;
use std::process::{Command, Output};

use base_types::SessionId;
use serde_json::Value;
use testkit::{Installation, Options, can_run_sandboxes, skip};

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
    let mut client = Command::new(python);
    client
        .arg(repository().join("e2e/clients/session.py"))
        .args(["fix-a-bug", "--environment", &brain.environment_id])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("ANTHROPIC_BASE_URL", &brain.url)
        .env("ANTHROPIC_API_KEY", &brain.api_key);
    let ran = tokio::task::spawn_blocking(move || client.output()).await.unwrap().unwrap();
    let lines = json_lines(&ran);
    let value = |key: &str| lines.iter().find_map(|line| line.get(key)).cloned();
    assert_eq!(value("done"), Some("end_turn".into()), "{lines:#?}");

    // What the client saw on its stream is what was played, and every expectation held.
    let session = SessionId::from(value("session").unwrap().as_str().unwrap());
    let played = brain.played(&session).await;
    assert!(played.passed, "{played:#?}");
    let seen = lines.iter().filter(|line| line["event"]["type"] == "user.tool_result").count();
    assert_eq!(seen, played.results.len());
    let shown = installation.json(&["session", "show", "--json", session.as_str()]);
    assert_eq!(shown["calls"]["total"], played.results.len());
}

fn json_lines(output: &Output) -> Vec<Value> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}
