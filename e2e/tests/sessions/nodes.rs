//! Two `serve` on one PostgreSQL: they share an environment and never a session.

use std::ops::RangeInclusive;
use std::time::Duration;

use base_types::SessionId;
use testkit::{Brain, Installation, Options, Played, Postgres, can_run_sandboxes};

use crate::SCENE;

/// Long enough that a busy machine's node is not taken for gone.
const NODE_TTL: Duration = Duration::from_secs(12);

/// A new message plays the next turn: the file tells whether it is the same workspace.
const VISITS: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo visit >> visits; wc -l < visits" }
expect = { is_error = false }

[[step]]
end_turn = "end_turn"
"#;

fn config(postgres: &Postgres) -> String {
    let ttl = NODE_TTL.as_secs();
    format!(
        "[store]\nurl = \"{}\"\n[limits]\nidle = \"500ms\"\nnode_ttl = \"{ttl}s\"\n\
         [[profile]]\nname = \"default\"\nkeep_running = \"0s\"\n",
        postgres.url()
    )
}

/// Which installation has the session, and its sandbox as it is shown there.
fn owner<'a>(
    pair: &'a [Installation; 2],
    session: &SessionId,
) -> (&'a Installation, serde_json::Value) {
    let shown = pair[0].json(&["session", "show", "--json", session.as_str()]);
    let of = |installation: &&Installation| {
        let status = std::fs::read_to_string(installation.data().join("serve/node")).unwrap();
        status.trim() == shown["owner"].as_str().unwrap_or_default()
    };
    let found = pair.iter().find(of).unwrap_or_else(|| panic!("nobody's: {shown:#}"));
    (found, shown["sandbox"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_serve_on_one_store_share_an_environment_and_never_a_session() {
    let name = "two_serve_on_one_store_share_an_environment_and_never_a_session";
    let Some(images) = can_run_sandboxes(name) else { return };
    let Some(postgres) = Postgres::start(name) else { return };
    let scenarios = vec![("visits", VISITS.to_owned())];
    let first = Installation::start(&images, Options { config: config(&postgres), scenarios });
    let brain = first.brain.clone();
    let mut second = Installation::of_brain(&images, &config(&postgres), brain.clone());
    second.start_serve();
    let mut pair = [first, second];

    let mut sessions = Vec::new();
    for _ in 0..6 {
        sessions.push(brain.start_session("visits", "Come").await);
    }
    for session in &sessions {
        let played = brain.wait_played(session, 1, SCENE).await;
        assert!(played.passed && played.results.len() == 1, "{played:#?}");
        assert_eq!(played.results[0].text, "1");
    }
    // Whoever is offered the next item: the one that has the files serves it.
    let (_, sandbox) = owner(&pair, &sessions[0]);
    come_again(&brain, &sessions, 2..=3).await;
    let (_, same) = owner(&pair, &sessions[0]);
    assert_eq!((&same["volume"], &same["node"]), (&sandbox["volume"], &sandbox["node"]));

    // The other one refuses what only the owner can do, and says who that is.
    let node = same["node"].as_str().unwrap().to_owned();
    let wrong = pair.iter().find(|one| !of_node(one, &node)).unwrap();
    let exec = wrong.sinew(&["exec", sessions[0].as_str(), "--", "true"]);
    let text = String::from_utf8_lossy(&exec.stderr).into_owned();
    assert!(!exec.status.success() && text.contains(&node), "{text}");

    // The owner is gone for good: an empty workspace on the other, and the result says so.
    let at = pair.iter().position(|one| of_node(one, &node)).unwrap();
    sleeps(&brain, &sessions[0]).await;
    pair[at].kill_serve();
    brain.say(&sessions[0], "Anybody?").await;
    let played = brain.wait_played(&sessions[0], 4, NODE_TTL + SCENE).await;
    let last = played.results.last().unwrap();
    assert!(last.text.contains("the workspace is new and empty"), "{last:#?}");
    assert!(last.text.contains(&node) && last.text.ends_with("\n1"), "{last:#?}");
    let shown = pair[1 - at].json(&["session", "show", "--json", sessions[0].as_str()]);
    assert_ne!(shown["sandbox"]["node"], node.as_str());
    assert!(shown["sandbox"]["epoch"].as_u64() > same["epoch"].as_u64(), "{shown:#}");

    // It comes back: what it had of the session is removed there, and nothing else is.
    pair[at].start_serve();
    let kept = sessions.iter().filter(|session| {
        let shown = pair[at].json(&["session", "show", "--json", session.as_str()]);
        shown["sandbox"]["node"] == node.as_str()
    });
    let kept = kept.count();
    let sandboxes = launcher_knows(&pair[at]);
    assert_eq!(sandboxes, kept, "of the sessions that are its own, and no others");
    brain.say(&sessions[0], "And again").await;
    let played = brain.wait_played(&sessions[0], 5, SCENE).await;
    assert!(played.results.last().unwrap().text.ends_with('2'), "{played:#?}");
}

/// Each plays these turns, on the files of the turn before.
async fn come_again(brain: &Brain, sessions: &[SessionId], turns: RangeInclusive<u32>) {
    for turn in turns {
        for session in sessions {
            sleeps(brain, session).await;
            brain.say(session, "Come again").await;
        }
        for session in sessions {
            let played = brain.wait_played(session, turn, SCENE).await;
            let last = played.results.last().unwrap();
            assert!(last.text.ends_with(&format!("\n{turn}")), "{played:#?}");
            assert!(last.text.contains("Files are as they were"), "{played:#?}");
            assert!(played.results.iter().all(|r| r.conflicts == 0 && r.repeats == 0));
        }
    }
}

/// Its item is stopped: the next message makes a new one, for whoever takes it.
async fn sleeps(brain: &Brain, session: &SessionId) {
    let stopped = |played: &Played| played.items.iter().all(|item| item["state"] == "stopped");
    brain.wait_until(session, SCENE, "the session's items are stopped", stopped).await;
}

fn of_node(installation: &Installation, node: &str) -> bool {
    let file = installation.data().join("serve/node");
    std::fs::read_to_string(file).unwrap().trim() == node
}

fn launcher_knows(installation: &Installation) -> usize {
    let doctor = installation.sinew(&["doctor", "--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let checks = answer["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == "launcher").unwrap();
    let text = found["found"].as_str().unwrap();
    let count = text.split_whitespace().find_map(|word| word.parse().ok());
    count.unwrap_or_else(|| panic!("{text}"))
}
