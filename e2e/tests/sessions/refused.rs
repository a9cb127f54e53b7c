//! `serve` says what is wrong and what to do, instead of serving badly.

use std::process::{Command, Output, Stdio};

use testkit::{Installation, Options, can_run_sandboxes, sinew_binary};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn mistakes_in_the_configuration_are_all_told_at_once() {
    let name = "mistakes_in_the_configuration_are_all_told_at_once";
    let Some(images) = can_run_sandboxes(name) else { return };
    let config =
        "colour = \"red\"\nuser = \"root\"\n[[profile]]\nname = \"p\"\nmemory = \"1 lot\"\n";
    let options = Options { config: config.to_owned(), ..Options::default() };
    let installation = Installation::without_serve(&images, options);
    let output = installation.serve_command().output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = text(&output);
    for expected in ["sinew.toml:1:1", "colour", "sinew.toml:2:", "user", "sinew.toml:5:", "memory"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!installation.data().join("launcher").exists(), "nothing was done");
}

#[test]
fn a_missing_image_is_named_with_the_command_that_builds_it() {
    let name = "a_missing_image_is_named_with_the_command_that_builds_it";
    let Some(images) = can_run_sandboxes(name) else { return };
    let config = "[[profile]]\nname = \"odd\"\nimage = \"no-such-image\"\n";
    let options = Options { config: config.to_owned(), ..Options::default() };
    let installation = Installation::without_serve(&images, options);
    let brain = &installation.brain;
    let output = installation
        .serve_command()
        .env("ANTHROPIC_BASE_URL", &brain.url)
        .env("ANTHROPIC_ENVIRONMENT_ID", &brain.environment_id)
        .env("ANTHROPIC_ENVIRONMENT_KEY", &brain.environment_key)
        .output()
        .unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("profile `odd` needs image `no-such-image`"), "{text}");
    assert!(text.contains("sinew image build"), "{text}");
}

#[test]
fn a_key_that_the_brain_refuses_ends_serve_with_the_reason() {
    let name = "a_key_that_the_brain_refuses_ends_serve_with_the_reason";
    let Some(images) = can_run_sandboxes(name) else { return };
    let installation = Installation::without_serve(&images, Options::default());
    let brain = &installation.brain;
    let output = installation
        .serve_command()
        .env("ANTHROPIC_BASE_URL", &brain.url)
        .env("ANTHROPIC_ENVIRONMENT_ID", &brain.environment_id)
        .env("ANTHROPIC_ENVIRONMENT_KEY", "sk-ant-oat01-not-the-right-one")
        .output()
        .unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("refused") && text.contains(&brain.environment_id), "{text}");
    assert!(!text.contains("not-the-right-one"), "{text}");
}

#[test]
fn without_root_and_without_a_launcher_serve_says_who_must_start_it() {
    let name = "without_root_and_without_a_launcher_serve_says_who_must_start_it";
    let Some(_) = can_run_sandboxes(name) else { return };
    // A place that nobody in particular can reach, unlike a clone below a private home.
    let dir = tempfile::Builder::new().prefix("sinew-test-").tempdir_in("/var/tmp").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let binary = dir.path().join("sinew");
    std::fs::copy(sinew_binary(), &binary).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(binary)
        .args(["serve", "--data"])
        .arg(dir.path().join("data"))
        .env("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
        .env("ANTHROPIC_ENVIRONMENT_ID", "env_1")
        .env("ANTHROPIC_ENVIRONMENT_KEY", "key")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("run `sinew serve` as root"), "{text}");
}

#[test]
fn doctor_sees_a_running_installation_and_a_wrong_key() {
    let name = "doctor_sees_a_running_installation_and_a_wrong_key";
    let Some(images) = can_run_sandboxes(name) else { return };
    let installation = Installation::start(&images, Options::default());
    let brain = &installation.brain;
    let doctor = |key: &str| {
        let output = Command::new(sinew_binary())
            .args(["doctor", "--json"])
            .env("SINEW_DATA", installation.data())
            .env("SINEW_IMAGES", &images)
            .env("ANTHROPIC_BASE_URL", &brain.url)
            .env("ANTHROPIC_ENVIRONMENT_ID", &brain.environment_id)
            .env("ANTHROPIC_ENVIRONMENT_KEY", key)
            .output()
            .unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = answer["checks"].as_array().unwrap().clone();
        (output.status.code(), checks)
    };
    let verdict = |checks: &[serde_json::Value], name: &str| {
        let found = checks.iter().find(|check| check["name"] == name);
        found.unwrap_or_else(|| panic!("no check {name}: {checks:#?}"))["verdict"].clone()
    };
    let (code, checks) = doctor(&brain.environment_key);
    assert_eq!(code, Some(0), "{checks:#?}");
    for name in ["kernel", "cgroups", "image", "launcher", "serve", "brain"] {
        assert_eq!(verdict(&checks, name), "ok", "{checks:#?}");
    }
    let (code, checks) = doctor("sk-ant-oat01-wrong");
    assert_eq!((code, verdict(&checks, "brain")), (Some(1), "fail".into()), "{checks:#?}");
}
