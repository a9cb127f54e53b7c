//! `serve` is killed at the worst moment, and nothing is lost or done twice.

use testkit::{Installation, Options, can_run_sandboxes};

use crate::SCENE;

const COUNT: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "for n in $(seq 1 10); do echo $n >> count.log; sleep 0.2; done; echo counted" }
expect = { is_error = false, contains = "counted" }

[[step]]
[[step.call]]
tool = "bash"
input = { command = "cat count.log; kept=yes; echo kept=$kept" }
expect = { is_error = false, regex = '(?s)^1\n2\n3\n4\n5\n6\n7\n8\n9\n10\nkept=yes' }

[[step]]
end_turn = "end_turn"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_call_loses_and_repeats_nothing() {
    let name = "a_kill_in_the_middle_of_a_call_loses_and_repeats_nothing";
    let Some(images) = can_run_sandboxes(name) else { return };
    let options = Options { scenarios: vec![("count", COUNT.to_owned())], ..Options::default() };
    let mut installation = Installation::start(&images, options);
    let brain = installation.brain.clone();
    let session = brain.start_session("count", "Count").await;

    // The call runs for certain: its own sandbox shows that it has counted.
    let lines = |installation: &Installation| {
        let output = installation.sinew(&["exec", session.as_str(), "--", "cat", "count.log"]);
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    let until = std::time::Instant::now() + SCENE;
    while lines(&installation) < 3 {
        assert!(std::time::Instant::now() < until, "the call does not count");
        tokio::task::yield_now().await;
    }
    installation.kill_serve();
    assert!(brain.played(&session).await.results.is_empty(), "the call was over before the kill");
    installation.start_serve();

    let played = brain.wait_played(&session, 1, SCENE).await;
    assert!(played.passed, "{played:#?}");
    assert_eq!(played.results.len(), 2);
    assert!(played.results.iter().all(|result| result.conflicts == 0), "{played:#?}");
    let answered = brain.events(&session).await;
    let answered = answered.iter().filter(|event| event["type"] == "user.tool_result").count();
    assert_eq!(answered, 2, "each call has one result in the history");
    let shown = installation.json(&["session", "show", "--json", session.as_str()]);
    assert_eq!(shown["sandbox"]["epoch"], 1, "the sandbox outlived serve");
}
