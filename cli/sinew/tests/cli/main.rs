//! The command line without an installation: what it prints, and what it ends with.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

mod generated;
mod images;
mod profiles;

const COMMANDS: [&str; 11] = [
    "serve",
    "brain",
    "demo",
    "doctor",
    "image",
    "session",
    "profile",
    "exec",
    "bench",
    "install",
    "completions",
];

fn sinew(data: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sinew"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("SINEW_") || name.starts_with("ANTHROPIC_") {
            command.env_remove(name);
        }
    }
    command.args(args).env("SINEW_DATA", data).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command_and_each_has_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let help = sinew(dir.path(), &["--help"]);
    assert!(help.status.success());
    for command in COMMANDS {
        assert!(stdout(&help).contains(&format!("\n  {command} ")), "{command}: {}", stdout(&help));
        let own = sinew(dir.path(), &[command, "--help"]);
        assert!(own.status.success() && stdout(&own).contains("Usage: sinew"), "{command}");
    }
    for hidden in ["launcher", "reference", "teardown", "unpack"] {
        assert!(!stdout(&help).contains(hidden), "{hidden}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["nonsense"][..],
        &[],
        &["session", "ls", "--limit", "many"],
        &["session", "log", "s", "--since", "yesterday"],
        &["exec", "s"],
        &["profile", "explain"],
        &["profile", "explain", "s", "--agent", "a"],
        &["profile", "explain", "--meta", "novalue"],
        &["completions", "tcsh"],
        &["reference", "man"],
        &["exec", "s", "--env", "NOVALUE", "--", "true"],
        &["bench", "no-such-bench"],
        &["bench", "exec", "--runs", "3"],
        &["serve"],
    ] {
        let output = sinew(dir.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty(), "{args:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_needs_serve_says_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display();
    for args in [
        &["session", "ls"][..],
        &["session", "show", "s"],
        &["session", "stop", "s"],
        &["session", "log", "s"],
        &["session", "log", "-f", "s"],
        &["profile", "explain", "s"],
    ] {
        let output = sinew(dir.path(), args);
        assert_eq!(output.status.code(), Some(4), "{args:?}");
        let hint = format!("not running for {data}: start it with `sinew serve --data {data}`");
        assert!(stderr(&output).contains(&hint), "{args:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty());
    }
    let exec = sinew(dir.path(), &["exec", "s", "--", "true"]);
    assert_eq!(exec.status.code(), Some(125));
    assert!(stderr(&exec).contains("start it with"), "{}", stderr(&exec));
}

#[test]
fn without_an_environment_serve_says_what_to_set() {
    let dir = tempfile::tempdir().unwrap();
    let output = sinew(dir.path(), &["serve"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("environment") && text.contains("ANTHROPIC_ENVIRONMENT_ID"), "{text}");
}

#[test]
fn doctor_needs_nothing_and_its_json_is_stable() {
    let dir = tempfile::tempdir().unwrap();
    let output = sinew(dir.path(), &["doctor", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let checks = answer["checks"].as_array().unwrap();
    let failed = checks.iter().any(|check| check["verdict"] == "fail");
    assert!(failed, "an empty data directory has no image");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(answer["ok"], false);
    for check in checks {
        assert!(check["name"].is_string() && check["found"].is_string(), "{check}");
        let is_fine = check["verdict"] == "ok";
        assert_eq!(check["fix"].is_null(), is_fine, "{check}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it changed something");
}

#[test]
fn an_empty_image_cache_is_an_empty_list_and_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let output = sinew(dir.path(), &["image", "ls", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let answer: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer["images"].as_array().map(Vec::len), Some(0));
    assert!(!dir.path().join("images").exists());
}

#[test]
fn the_development_brain_prints_what_a_worker_needs_and_leaves_when_told() {
    use std::io::{BufRead, BufReader};
    let mut brain = Command::new(env!("CARGO_BIN_EXE_sinew"))
        .args(["brain", "--listen", "127.0.0.1:0", "--json"])
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(brain.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    for key in ["url", "environment_id", "environment_key", "api_key"] {
        assert!(ready[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {ready}");
    }
    let pid = nix::unistd::Pid::from_raw(brain.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(brain.wait().unwrap().success());

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.toml"), "[[step]]\nsing = true\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sinew"))
        .args(["brain", "--listen", "127.0.0.1:0", "--scenarios"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("scenario bad"), "{}", stderr(&output));
}

#[test]
fn every_reference_page_is_printed_and_says_what_made_it() {
    let dir = tempfile::tempdir().unwrap();
    for page in ["config", "cli", "api", "errors"] {
        let output = sinew(dir.path(), &["reference", page]);
        assert!(output.status.success(), "{page}");
        assert!(stdout(&output).starts_with("# "), "{page}: {}", stdout(&output));
    }
    let cli = stdout(&sinew(dir.path(), &["reference", "cli"]));
    for command in COMMANDS {
        assert!(cli.contains(&format!("\n## sinew {command}")), "{command}");
    }
}
