//! Sessions whose journal is in PostgreSQL, which is killed and restarted while they are served.

use std::time::{Duration, Instant};

use testkit::{Ending, Installation, Options, Postgres, can_run_sandboxes};

use crate::SCENE;

const SESSIONS: usize = 3;

/// Many short calls, each of which leaves a line: one that ran twice would leave two.
fn counting() -> String {
    let call = |n: usize| {
        format!(
            "[[step]]\n[[step.call]]\ntool = \"bash\"\n\
             input = {{ command = \"echo {n} >> count.log; sleep 0.2; wc -l < count.log\" }}\n\
             expect = {{ is_error = false, equals = \"{n}\" }}\n\n"
        )
    };
    let calls: String = (1..=CALLS).map(call).collect();
    format!("{calls}[[step]]\nend_turn = \"end_turn\"\n")
}

const CALLS: usize = 25;

fn config(postgres: &Postgres) -> String {
    format!("[store]\nurl = \"{}\"\n", postgres.url())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_restarts_costs_no_session_anything() {
    let name = "a_database_that_restarts_costs_no_session_anything";
    let Some(images) = can_run_sandboxes(name) else { return };
    let Some(mut postgres) = Postgres::start(name) else { return };
    let scenarios = vec![("counting", counting())];
    let installation =
        Installation::start(&images, Options { config: config(&postgres), scenarios });
    let brain = &installation.brain;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(brain.start_session("counting", "Count").await);
    }
    let until = Instant::now() + SCENE;
    for (ending, results) in [(Ending::Kill, 2), (Ending::Immediate, 7), (Ending::Fast, 12)] {
        for session in &sessions {
            while brain.played(session).await.results.len() < results {
                assert!(Instant::now() < until, "the sessions stand still");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        postgres.end(ending);
        // Calls end meanwhile, and their results wait for the journal.
        tokio::time::sleep(Duration::from_millis(700)).await;
        postgres.start_again();
    }
    for session in &sessions {
        let played = brain.wait_played(session, 1, SCENE).await;
        assert!(played.passed, "{played:#?}");
        assert_eq!(played.results.len(), CALLS);
        assert!(played.results.iter().all(|r| r.repeats == 0 && r.conflicts == 0), "{played:#?}");
        let shown = installation.json(&["session", "show", "--json", session.as_str()]);
        assert_eq!(shown["sandbox"]["epoch"], 1, "{shown:#}");
        let calls = postgres.sql(&format!(
            "SELECT count(*), count(DISTINCT tool_use), bool_and(state = 'settled') \
             FROM sinew.calls WHERE session = '{session}'"
        ));
        assert_eq!(calls, format!("{CALLS}|{CALLS}|t"));
    }
    assert!(!installation.data().join("serve/journal.sqlite").exists());
}

/// All of the demonstration, on a database of which nothing is left changed.
#[test]
fn the_demo_plays_on_a_database_and_leaves_nothing_there() {
    let name = "the_demo_plays_on_a_database_and_leaves_nothing_there";
    let Some(images) = can_run_sandboxes(name) else { return };
    let Some(postgres) = Postgres::start(name) else { return };
    let before = postgres.sql("SELECT count(*) FROM pg_class");
    let mut command = std::process::Command::new(testkit::sinew_binary());
    command.args(["demo", "--store", &postgres.url(), "--images"]).arg(&images);
    let output = command.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}\n{errors}");
    assert!(shown.contains("demo: ok") && shown.contains("schema sinew_demo_"), "{shown}");
    assert_eq!(postgres.sql("SELECT count(*) FROM pg_class"), before);

    // A password in the address would be seen by everybody on this machine.
    let mut command = std::process::Command::new(testkit::sinew_binary());
    command.args(["demo", "--store", "postgres://u:never-print-this@127.0.0.1/d"]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("SINEW_STORE_PASSWORD"), "{errors}");
    assert!(!errors.contains("never-print-this"), "{errors}");
}
