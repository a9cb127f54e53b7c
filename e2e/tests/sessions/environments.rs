//! One `serve`, several brains, each with a bad day of its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{BrainProcess, Installation, Options, can_run_sandboxes};

use crate::SCENE;

/// Who `serve` is after it gave up root.
const SERVE_USER: u32 = 64_500;
/// As many calls as tell a slow one from a machine that is busy.
const STEPS: usize = 20;

fn steps() -> String {
    let step = |n: usize| {
        format!(
            "[[step]]\n[[step.call]]\ntool = \"bash\"\ninput = {{ command = \"echo {n}\" }}\n\
             expect = {{ is_error = false, equals = \"{n}\" }}\n"
        )
    };
    let steps: String = (0..STEPS).map(step).collect();
    steps + "[[step]]\nend_turn = \"end_turn\"\n"
}

struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sinew-keys-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As an operator writes one who wants to change it under a running `serve`.
    fn write(&self, name: &str, key: &str) {
        let path = self.path(name);
        fs::write(&path, key).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(SERVE_USER), Some(SERVE_USER)).unwrap();
    }

    fn section(&self, name: &str, id: &str, url: &str, more: &str) -> String {
        let file = self.path(name);
        let file = file.display();
        format!(
            "[[environment]]\nid = \"{id}\"\nkey_file = \"{file}\"\nbase_url = \"{url}\"\n{more}\n"
        )
    }
}

fn of_environment(installation: &Installation, environment: &str) -> Value {
    let list = installation.json(&["session", "ls", "--json"]);
    let ill = list["ill"].as_array().unwrap();
    ill.iter().find(|ill| ill["environment"] == environment).cloned().unwrap_or_default()
}

fn is_ill(installation: &Installation, environment: &str, why: &str) {
    let until = Instant::now() + SCENE;
    loop {
        let found = of_environment(installation, environment);
        if found["trouble"].as_str().is_some_and(|trouble| trouble.contains(why)) {
            return;
        }
        assert!(Instant::now() < until, "{environment} is not ill with {why}: {found}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One brain is not there, one takes connections and answers nothing, one refuses the key, one is
/// slow in everything, one is at its limit; the sixth is served as if it were alone. What each has
/// is told; what is mended goes on without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn environments_fail_alone_and_are_told_apart() {
    let name = "environments_fail_alone_and_are_told_apart";
    let Some(images) = can_run_sandboxes(name) else { return };
    let scenarios = vec![("steps", steps())];
    let [frozen, revoked, slow, full] = [(); 4].map(|()| BrainProcess::start(&scenarios));
    let keys = Keys::new();
    for (name, brain) in [("frozen", &frozen), ("slow", &slow), ("full", &full)] {
        keys.write(name, &brain.brain.environment_key);
    }
    keys.write("revoked", "sk-ant-oat01-revoked");
    keys.write("down", "sk-ant-oat01-whatever");
    let section = |name: &str, brain: &BrainProcess, more: &str| {
        keys.section(name, &brain.brain.environment_id, &brain.brain.url, more)
    };
    let config = [
        section("frozen", &frozen, ""),
        section("revoked", &revoked, ""),
        section("slow", &slow, ""),
        section("full", &full, "concurrency = 1"),
        keys.section("down", "env_down", "http://127.0.0.1:9", ""),
    ];
    let options = Options { config: config.concat(), scenarios };
    let mut installation = Installation::without_serve(&images, options);
    frozen.freeze();
    slow_down(&slow.brain).await;
    installation.start_serve();

    let brain = installation.brain.clone();
    let waits = frozen_session_later(&frozen);
    let of_slow = slow.brain.start_session("steps", "Slowly").await;
    let of_full = full.brain.start_session("steps", "One").await;
    let after_full = full.brain.start_session("steps", "Two").await;
    let of_revoked = revoked.brain.start_session("steps", "With the right key").await;
    let session = brain.start_session("steps", "Alone").await;
    let what = "the first call is answered";
    brain.wait_until(&session, SCENE, what, |played| !played.results.is_empty()).await;
    let began = Instant::now();
    assert!(brain.wait_played(&session, 1, SCENE).await.passed);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{STEPS} calls took {took:?} beside five others");

    is_ill(&installation, "env_down", "no connection");
    is_ill(&installation, &frozen.brain.environment_id, "has not been answered");
    is_ill(&installation, &revoked.brain.environment_id, "401");
    let refused = of_environment(&installation, &revoked.brain.environment_id);
    assert_eq!((&refused["refused"], &refused["configured"]), (&json!(true), &json!(true)));
    assert_eq!(of_environment(&installation, &brain.environment_id), Value::Null);
    assert_eq!(of_environment(&installation, &full.brain.environment_id), Value::Null);
    assert!(!refused.to_string().contains("sk-ant"), "{refused}");
    let shown = installation.sinew(&["session", "ls"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("warning: environment env_down: "), "{shown}");

    // Slow and full are served all the same, the second session of the full one after the first.
    assert!(slow.brain.wait_played(&of_slow, 1, SCENE).await.passed);
    assert!(full.brain.wait_played(&of_full, 1, SCENE).await.passed);

    // The operator mends two of them.
    keys.write("revoked", &revoked.brain.environment_key);
    assert!(revoked.brain.wait_played(&of_revoked, 1, SCENE).await.passed);
    assert_eq!(of_environment(&installation, &revoked.brain.environment_id), Value::Null);
    frozen.thaw();
    let of_frozen = waits.await.unwrap();
    assert!(frozen.brain.wait_played(&of_frozen, 1, 2 * SCENE).await.passed);
    let stop = installation.sinew(&["session", "stop", of_full.as_str()]);
    assert!(stop.status.success(), "{stop:?}");
    assert!(full.brain.wait_played(&after_full, 1, SCENE).await.passed);
}

async fn slow_down(brain: &testkit::Brain) {
    let fault = json!({ "kind": "delay_before", "ms": 400 });
    let every = |route: &str| json!({ "route": route, "times": 1_000, "fault": fault });
    let routes =
        ["work_poll", "work_ack", "work_heartbeat", "session_get", "event_list", "event_send"];
    brain.inject(Value::from(routes.map(every).to_vec())).await;
}

/// A session of the brain that is frozen now: it is made once the brain answers again.
fn frozen_session_later(frozen: &BrainProcess) -> tokio::task::JoinHandle<base_types::SessionId> {
    let brain = frozen.brain.clone();
    tokio::spawn(async move {
        loop {
            // A frozen brain answers no request; each has a limit of its own.
            let made = tokio::spawn({
                let brain = brain.clone();
                async move { brain.start_session("steps", "Late").await }
            });
            if let Ok(session) = made.await {
                return session;
            }
        }
    })
}

#[test]
fn two_environments_with_one_id_are_refused() {
    let name = "two_environments_with_one_id_are_refused";
    let Some(images) = can_run_sandboxes(name) else { return };
    let keys = Keys::new();
    keys.write("key", "sk-ant-oat01-key");
    let one = keys.section("key", "env_1", "http://127.0.0.1:9", "");
    let options = Options { config: [one.clone(), one].concat(), ..Options::default() };
    let installation = Installation::without_serve(&images, options);
    let output = installation.serve_command().output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("environment `env_1` stands in the file twice"), "{text}");
    assert!(!Path::new(&installation.data()).join("launcher").exists(), "nothing was done");
}
