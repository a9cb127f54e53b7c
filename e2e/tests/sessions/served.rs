//! A session from its first message to its end.

use testkit::{Installation, Options, can_run_sandboxes};

use crate::SCENE;

#[tokio::test(flavor = "multi_thread")]
async fn a_scripted_session_is_served_end_to_end() {
    let Some(images) = can_run_sandboxes("a_scripted_session_is_served_end_to_end") else { return };
    let installation = Installation::start(&images, Options::default());
    let brain = &installation.brain;
    let session = brain.start_session("fix-a-bug", "Make the tests pass").await;
    let other = brain.start_session("six-tools", "Use every tool").await;
    for session in [&session, &other] {
        let played = brain.wait_played(session, 1, SCENE).await;
        assert!(played.passed, "{played:#?}");
        assert_eq!(played.verdict.open_calls, 0);
        assert!(played.results.iter().all(|result| result.repeats == 0 && result.conflicts == 0));
    }

    // What the operator sees is what happened.
    let list = installation.json(&["session", "ls", "--json"]);
    assert_eq!(list["sessions"].as_array().unwrap().len(), 2);
    let shown = installation.json(&["session", "show", "--json", session.as_str()]);
    assert_eq!(shown["profile"], "default");
    assert_eq!(shown["sandbox"]["epoch"], 1);
    assert_eq!(shown["sandbox"]["restored_from"], "nothing");
    assert_eq!(shown["calls"]["open"], 0);
    let results = brain.played(&session).await.results.len();
    assert_eq!(shown["calls"]["total"], results);
    let log = installation.sinew(&["session", "log", session.as_str()]);
    let log = String::from_utf8(log.stdout).unwrap();
    for expected in ["claimed", "profile default", "finished", "posted", "exit code 1"] {
        assert!(log.contains(expected), "{expected}: {log}");
    }

    // No credential is in anything that an operator reads, or in a log.
    let everything =
        [log, list.to_string(), shown.to_string(), installation.log("serve.log")].concat();
    assert!(!everything.contains(&brain.environment_key));
    for request in brain.requests(0).await {
        assert_ne!(request["credential"], "none", "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_is_unprivileged_and_a_second_one_is_refused() {
    let name = "serve_is_unprivileged_and_a_second_one_is_refused";
    let Some(images) = can_run_sandboxes(name) else { return };
    let mut installation = Installation::start(&images, Options::default());
    let status = format!("/proc/{}/status", installation.serve_pid());
    let status = std::fs::read_to_string(status).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), ["64500"; 4]);
    assert_eq!(field("Gid:"), ["64500"; 4]);
    assert!(field("Groups:").is_empty());
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);

    let brain = installation.brain.clone();
    let second = installation
        .serve_command()
        .env("ANTHROPIC_BASE_URL", &brain.url)
        .env("ANTHROPIC_ENVIRONMENT_ID", &brain.environment_id)
        .env("ANTHROPIC_ENVIRONMENT_KEY", &brain.environment_key)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("another `sinew serve` runs"), "{text}");

    // The first one is not disturbed, and ends well.
    let session = brain.start_session("six-tools", "Use every tool").await;
    assert!(brain.wait_played(&session, 1, SCENE).await.passed);
    assert!(installation.stop_serve());
    let answer = installation.sinew(&["session", "ls"]);
    assert_eq!(answer.status.code(), Some(4), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_installations_on_one_machine_do_not_disturb_each_other() {
    let name = "two_installations_on_one_machine_do_not_disturb_each_other";
    let Some(images) = can_run_sandboxes(name) else { return };
    let one = Installation::start(&images, Options::default());
    let two = Installation::start(&images, Options::default());
    let of_one = one.brain.start_session("six-tools", "Use every tool").await;
    let of_two = two.brain.start_session("six-tools", "Use every tool").await;
    assert!(one.brain.wait_played(&of_one, 1, SCENE).await.passed);
    assert!(two.brain.wait_played(&of_two, 1, SCENE).await.passed);
    let list = two.json(&["session", "ls", "--json"]);
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1, "{list:#}");
    assert_eq!(list["sessions"][0]["id"], of_two.as_str());

    // One goes, launcher and all; the other's sandbox is as it was.
    drop(one);
    let exec = two.sinew(&["exec", of_two.as_str(), "--", "cat", "notes/a.txt"]);
    assert_eq!(String::from_utf8_lossy(&exec.stdout), "alpha\ngamma\n", "{exec:?}");
    let shown = two.json(&["session", "show", "--json", of_two.as_str()]);
    assert_eq!(shown["sandbox"]["epoch"], 1, "{shown:#}");
}
