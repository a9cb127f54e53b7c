//! Why a session has its profile: what was recorded beside what the rules would choose now.

use testkit::{Installation, Options, can_run_sandboxes};

use crate::SCENE;

#[tokio::test(flavor = "multi_thread")]
async fn explaining_a_session_tells_what_it_keeps_from_what_it_would_get_now() {
    let name = "explaining_a_session_tells_what_it_keeps_from_what_it_would_get_now";
    let Some(images) = can_run_sandboxes(name) else { return };
    let mut installation = Installation::start(&images, Options::default());
    let brain = &installation.brain;
    let session = brain.start_session("fix-a-bug", "Make the tests pass").await;
    assert!(brain.wait_played(&session, 1, SCENE).await.passed);

    let explain = ["profile", "explain", "--json", session.as_str()];
    let answer = installation.json(&explain);
    assert_eq!(answer["session"], session.as_str());
    assert_eq!(answer["facts"]["environment"], brain.environment_id.as_str());
    assert!(answer["facts"]["agent"].as_str().is_some_and(|agent| agent.starts_with("agent_")));
    assert_eq!(answer["recorded"]["profile"], "default");
    assert_eq!(answer["recorded"]["same"], true, "{answer}");

    // The rules change: the session keeps what it has, and the answer says so.
    let agent = answer["facts"]["agent"].as_str().unwrap();
    let rules = format!(
        "[[profile]]\nname = \"other\"\n[[profile.match]]\nagent = \"nobody\"\n\
         [[profile.match]]\nagent = \"{agent}\"\n"
    );
    std::fs::write(installation.data().join("sinew.toml"), rules).unwrap();
    let answer = installation.json(&explain);
    assert_eq!(answer["recorded"]["profile"], "default");
    assert_eq!(answer["recorded"]["same"], false, "{answer}");
    assert_eq!(answer["chosen"]["profile"], "other");
    assert_eq!(answer["chosen"]["by"], "profile `other`, match 2");
    let text = installation.sinew(&["profile", "explain", session.as_str()]);
    let text = String::from_utf8(text.stdout).unwrap();
    for expected in ["has profile `default`", "keeps it: the rules would now choose `other`"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }

    // Without serve the rules can still be asked about a session that is described.
    assert!(installation.stop_serve());
    assert_eq!(installation.sinew(&explain).status.code(), Some(4));
    let described = ["profile", "explain", "--json", "--environment", "e", "--agent", agent];
    assert_eq!(installation.json(&described)["chosen"]["profile"], "other");
}
