//! The program is replaced under a running installation: what runs goes on, whichever of the two
//! halves is the newer one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::{Installation, Options, can_run_sandboxes, sinew_binary};

use crate::SCENE;

const KEEPS: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "kept=in_the_shell; echo $$ > pid; until test -e go; do sleep 0.05; done; echo gone on" }
expect = { is_error = false, contains = "gone on" }

[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo $kept; test $$ = $(cat pid) && echo the same shell" }
expect = { is_error = false, contains = "in_the_shell\nthe same shell" }

[[step]]
end_turn = "end_turn"
"#;

/// Where `scripts/previous.sh` puts the program of the version before.
const PREVIOUS: &str = "/var/cache/sinew-test/previous/sinew";

/// An installation that runs `from`, and a session whose shell waits for a file.
struct Scene {
    installation: Installation,
    session: base_types::SessionId,
    program: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn begin(images: &Path, from: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("sinew-program-").tempdir_in("/var/tmp").unwrap();
        let program = dir.path().join("sinew");
        fs::copy(from, &program).unwrap();
        let options =
            Options { scenarios: vec![("keeps", KEEPS.to_owned())], ..Options::default() };
        let mut installation = Installation::without_serve(images, options);
        installation.use_program(&program);
        installation.start_serve();
        let session = installation.brain.start_session("keeps", "Keep").await;
        let scene = Self { installation, session, program, _dir: dir };
        let until = Instant::now() + SCENE;
        while !scene.guest(&["test", "-s", "pid"]).status.success() {
            assert!(Instant::now() < until, "the call does not begin");
            tokio::task::yield_now().await;
        }
        scene
    }

    fn guest(&self, argv: &[&str]) -> std::process::Output {
        let mut args = vec!["exec", self.session.as_str(), "--"];
        args.extend(argv);
        self.installation.sinew(&args)
    }

    /// As a package manager does: another file under the same name.
    fn replace(&self, by: &Path) {
        let new = self.program.with_extension("new");
        fs::copy(by, &new).unwrap();
        fs::rename(&new, &self.program).unwrap();
    }

    fn restart_serve(&mut self) {
        self.installation.kill_serve();
        self.installation.start_serve();
    }

    /// The next `serve` starts another one, from its own program.
    fn end_launcher(&self) {
        let pid = self.installation.launcher_pid();
        kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
        // Its socket is the last that a process lets go of.
        let socket = self.installation.data().join("launcher/launcher.sock");
        let until = Instant::now() + SCENE;
        while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            assert!(Instant::now() < until, "the launcher does not leave");
            std::thread::yield_now();
        }
    }

    /// The program that a process was started from is not there any more.
    fn is_outdated(pid: u32) -> bool {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        program.to_string_lossy().ends_with("(deleted)")
    }

    async fn end(self) {
        assert!(self.guest(&["touch", "go"]).status.success());
        let played = self.installation.brain.wait_played(&self.session, 1, SCENE).await;
        assert!(played.passed, "{played:#?}");
        assert!(played.results.iter().all(|result| result.conflicts == 0), "{played:#?}");
        let id = self.session.as_str();
        let shown = self.installation.json(&["session", "show", "--json", id]);
        assert_eq!(shown["sandbox"]["epoch"], 1, "it is the same sandbox");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_is_replaced_while_a_call_runs() {
    let Some(images) = can_run_sandboxes("the_program_is_replaced_while_a_call_runs") else {
        return;
    };
    let mut scene = Scene::begin(&images, &sinew_binary()).await;
    scene.replace(&sinew_binary());
    let (serve, launcher) = (scene.installation.serve_pid(), scene.installation.launcher_pid());
    assert!(Scene::is_outdated(serve) && Scene::is_outdated(launcher));
    // What a process needs of its own program it has, also when that was removed.
    assert!(scene.guest(&["true"]).status.success());
    scene.end_launcher();
    scene.restart_serve();
    assert_ne!(scene.installation.launcher_pid(), launcher);
    assert!(!Scene::is_outdated(scene.installation.launcher_pid()));
    scene.end().await;
}

/// The version before, then this one: first `serve` is the newer half, then the launcher too.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_the_version_before_disturbs_nothing() {
    let test = "an_upgrade_from_the_version_before_disturbs_nothing";
    let Some(images) = can_run_sandboxes(test) else { return };
    let Some(previous) = previous(test) else { return };
    let mut scene = Scene::begin(&images, &previous).await;
    let launcher = scene.installation.launcher_pid();
    scene.replace(&sinew_binary());
    scene.restart_serve();
    assert_eq!(scene.installation.launcher_pid(), launcher, "it is asked by a newer `serve`");
    assert!(scene.guest(&["true"]).status.success(), "and so is the sandbox's agent");
    scene.end_launcher();
    scene.restart_serve();
    assert_ne!(scene.installation.launcher_pid(), launcher);
    scene.end().await;
}

/// The other way round, as an installed service does it: `serve` is the older half at first.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_serve_is_served_by_a_newer_launcher() {
    let test = "an_older_serve_is_served_by_a_newer_launcher";
    let Some(images) = can_run_sandboxes(test) else { return };
    let Some(previous) = previous(test) else { return };
    let mut scene = Scene::begin(&images, &previous).await;
    scene.replace(&sinew_binary());
    scene.end_launcher();
    let serve = scene.installation.serve_pid();
    let mut launcher = scene.installation.launcher_command().spawn().unwrap();
    let socket = scene.installation.data().join("launcher/launcher.sock");
    let until = Instant::now() + SCENE;
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < until, "the newer launcher does not come up");
        std::thread::yield_now();
    }
    assert_eq!(scene.installation.launcher_pid(), launcher.id());
    assert_eq!(scene.installation.serve_pid(), serve);
    // One more sandbox, which the older half asks the newer one for.
    let other = scene.installation.brain.start_session("keeps", "Keep").await;
    let until = Instant::now() + SCENE;
    let touch = ["exec", other.as_str(), "--", "touch", "go"];
    loop {
        let touched = scene.installation.sinew(&touch);
        if touched.status.success() {
            break;
        }
        let said = String::from_utf8_lossy(&touched.stderr).into_owned();
        assert!(Instant::now() < until, "no new sandbox: {said}");
        tokio::task::yield_now().await;
    }
    assert!(scene.installation.brain.wait_played(&other, 1, SCENE).await.passed);
    scene.restart_serve();
    scene.end().await;
    assert!(launcher.wait().unwrap().success());
}

fn previous(test: &str) -> Option<PathBuf> {
    let previous = PathBuf::from(PREVIOUS);
    if previous.exists() {
        return Some(previous);
    }
    testkit::skip(test, &format!("no {PREVIOUS}: build it with `scripts/previous.sh`"));
    None
}
