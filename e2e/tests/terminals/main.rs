//! `sinew shell` as people use it: in a real terminal (tmux), with real programs.

#![forbid(unsafe_code)]

mod comes_back;
mod hostile;
mod pane;
mod works;

use std::time::Duration;

use testkit::{Installation, Options, can_run_sandboxes};

/// Far longer than a scenario takes on a busy machine.
const SCENE: Duration = Duration::from_secs(60);

const ONE_CALL: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo ready" }
expect = { is_error = false, equals = "ready" }

[[step]]
end_turn = "end_turn"
"#;

/// An installation with a session whose sandbox runs; its id is the session's.
async fn with_sandbox(test: &str) -> Option<(Installation, String)> {
    configured(test, "").await
}

async fn configured(test: &str, config: &str) -> Option<(Installation, String)> {
    let images = can_run_sandboxes(test)?;
    if !pane::has_tmux() {
        testkit::skip(test, "no tmux: run `scripts/setup.sh test`");
        return None;
    }
    let scenarios = vec![("one-call", ONE_CALL.to_owned())];
    let installation =
        Installation::start(&images, Options { config: config.to_owned(), scenarios });
    let session = installation.brain.start_session("one-call", "Get ready").await;
    installation.brain.wait_played(&session, 1, SCENE).await;
    Some((installation, session.as_str().to_owned()))
}
