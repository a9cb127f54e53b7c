//! The installed service under a real systemd: it starts, is restarted and upgraded under a running
//! session, and goes without a trace.

#![forbid(unsafe_code)]

mod oldest_system;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use base_types::SessionId;
use nix::sched::{CloneFlags, setns};
use testkit::{BINARY_IN_MACHINE as SINEW, Brain, Machine};

/// Far longer than a step takes on a busy machine.
const SCENE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The configuration of an operator who has a small disk.
const CONFIG: &str = r#"
data = "/var/lib/sinew"

[pool]
initial = "512MiB"
step = "512MiB"
max = "4GiB"
reserve = "64MiB"

[[environment]]
id = "@ID@"
key_file = "/etc/sinew/keys/test"
base_url = "@URL@"
"#;

const KEEPS: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "kept=in_the_shell; until test -e go; do sleep 0.05; done; echo gone on" }
expect = { is_error = false, contains = "gone on" }

[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo $kept" }
expect = { is_error = false, contains = "in_the_shell" }

[[step]]
end_turn = "end_turn"
"#;

struct Scene {
    machine: Machine,
    brain: Brain,
    brain_process: Child,
    runtime: tokio::runtime::Runtime,
}

impl Scene {
    /// A machine with a brain, and a configuration that names it.
    fn new(test: &str) -> Option<Self> {
        let machine = Machine::boot(test)?;
        // This thread's sockets are the machine's from here on; what is forked is sent back by
        // `nsenter`.
        let network = File::open(machine.network()).unwrap();
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut keeps = machine.command("sh");
        let mut keeps = keeps
            .args(["-c", "mkdir -p /root/scenarios && cat > /root/scenarios/keeps.toml"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        keeps.stdin.take().unwrap().write_all(KEEPS.as_bytes()).unwrap();
        assert!(keeps.wait().unwrap().success());
        let mut brain = machine.command(SINEW);
        brain.args(["brain", "--listen", "127.0.0.1:0", "--json", "--scenarios"]);
        let mut brain_process =
            brain.arg("/root/scenarios").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(brain_process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let brain: Brain = serde_json::from_str(&line).expect("what the brain prints");
        let scene = Self { machine, brain, brain_process, runtime };
        let config = CONFIG.replace("@ID@", &scene.brain.environment_id);
        let config = config.replace("@URL@", &scene.brain.url);
        scene.shell(&format!(
            "mkdir -p /etc/sinew && cat > /etc/sinew/sinew.toml <<'END'\n{config}END"
        ));
        Some(scene)
    }

    fn shell(&self, script: &str) -> String {
        let output = self.machine.run("bash", &["-euc", script]);
        self.expect(script, output)
    }

    fn expect(&self, what: &str, output: Output) -> String {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        assert!(status.success(), "{what}: {status}: {said}{errors}\n{}", self.machine.logs());
        said
    }

    fn works(&self, program: &str, args: &[&str]) -> String {
        let output = self.machine.run(program, args);
        self.expect(&format!("{program} {args:?}"), output)
    }

    fn is_active(&self, unit: &str) -> bool {
        self.machine.run("systemctl", &["is-active", "--quiet", unit]).status.success()
    }

    fn main_pid(&self, unit: &str) -> String {
        self.works("systemctl", &["show", "--property=MainPID", "--value", unit]).trim().to_owned()
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + SCENE;
        while !holds() {
            assert!(Instant::now() < end, "{what}: not in time\n{}", self.machine.logs());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// A session whose shell waits for a file.
    fn begin(&self) -> SessionId {
        let session = self.runtime.block_on(self.brain.start_session("keeps", "Keep"));
        let kept = ["exec", session.as_str(), "--", "true"];
        self.until("a sandbox", || self.machine.run("sinew", &kept).status.success());
        session
    }

    fn played(&self, session: &SessionId, times: u32) {
        let played = self.runtime.block_on(self.brain.wait_played(session, times, SCENE));
        assert!(played.passed, "{played:#?}");
        assert!(played.results.iter().all(|result| result.conflicts == 0), "{played:#?}");
        let shown = self.works("sinew", &["session", "show", "--json", session.as_str()]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["sandbox"]["epoch"], 1, "it is the same sandbox");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // It ends with the machine in any case.
        let _ = self.brain_process.kill();
        let _ = self.brain_process.wait();
    }
}

#[test]
fn a_service_lives_through_restarts_and_an_upgrade_and_goes_without_a_trace() {
    let test = "a_service_lives_through_restarts_and_an_upgrade_and_goes_without_a_trace";
    // A thread of its own: it moves to another network.
    let done = std::thread::spawn(move || live(test)).join();
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn live(test: &str) {
    let Some(scene) = Scene::new(test) else { return };
    installs(&scene);
    let session = scene.begin();
    crashes(&scene);
    scene.works("sinew", &["exec", session.as_str(), "--", "touch", "go"]);
    scene.played(&session, 1);
    upgrades(&scene);
    scene.runtime.block_on(scene.brain.say(&session, "Again"));
    scene.played(&session, 2);
    leaves(&scene, &session);
}

/// Without a key there is nothing to serve yet; the installation says what is missing.
fn installs(scene: &Scene) {
    let said = scene.works(SINEW, &["install", "--systemd", "--yes"]);
    assert!(said.contains("install: done"), "{said}");
    assert!(said.contains("then:") && said.contains("/etc/sinew/keys/test"), "{said}");
    assert!(scene.is_active("sinew-launcher.service") && !scene.is_active("sinew.service"));
    let key = &scene.brain.environment_key;
    scene.shell(&format!(
        "install -o sinew -g sinew -m 0600 /dev/stdin /etc/sinew/keys/test <<< '{key}'"
    ));
    let said = scene.works(SINEW, &["install", "--systemd", "--yes"]);
    assert!(said.contains("$ systemctl start sinew.service"), "{said}");
    assert!(scene.is_active("sinew.service"), "it says itself when it is ready");
    let user = scene.shell("ps -o user= -C sinew | sort | uniq -c | xargs");
    assert!(user.contains("1 sinew"), "{user}");
    let status = scene.works("systemctl", &["status", "--no-pager", "sinew.service"]);
    assert!(status.contains("Status: \"serving "), "{status}");
    assert_eq!(
        scene.works("stat", &["-c", "%U %a", "-L", "/var/lib/sinew/serve.sock"]),
        "sinew 600\n"
    );
}

/// While a call runs: the launcher is restarted, and `serve` is killed.
fn crashes(scene: &Scene) {
    let (launcher, serve) =
        (scene.main_pid("sinew-launcher.service"), scene.main_pid("sinew.service"));
    scene.works("systemctl", &["restart", "sinew-launcher.service"]);
    assert_ne!(scene.main_pid("sinew-launcher.service"), launcher);
    assert_eq!(scene.main_pid("sinew.service"), serve, "the other half is not disturbed");
    scene.works("kill", &["-KILL", &serve]);
    scene.until("another serve", || {
        let pid = scene.main_pid("sinew.service");
        pid != "0" && pid != serve && scene.is_active("sinew.service")
    });
    let again = scene.works("sinew", &["install", "--systemd", "--yes"]);
    assert!(again.contains("upgrade: nothing to do"), "{again}");
}

/// Another program under the same name, which is this one with a byte more.
fn upgrades(scene: &Scene) {
    scene.shell(&format!("cp {SINEW} /root/newer && echo >> /root/newer && chmod +x /root/newer"));
    let before = (scene.main_pid("sinew-launcher.service"), scene.main_pid("sinew.service"));
    let said = scene.works("/root/newer", &["install", "--systemd", "--yes"]);
    for shown in ["~ /usr/local/bin/sinew", "restart sinew-launcher.service (sandboxes go on)"] {
        assert!(said.contains(shown), "{shown}: {said}");
    }
    let after = (scene.main_pid("sinew-launcher.service"), scene.main_pid("sinew.service"));
    assert!(before.0 != after.0 && before.1 != after.1);

    // One that does not come up is taken back, and the one before goes on.
    scene.shell("cp /root/newer /root/broken; echo >> /root/broken");
    scene.shell("mkdir -p /etc/systemd/system/sinew.service.d");
    scene.shell(
        "printf '[Service]\\nExecStartPre=+/usr/bin/cmp /usr/local/bin/sinew /root/newer\\n' \
         > /etc/systemd/system/sinew.service.d/picky.conf; systemctl daemon-reload",
    );
    let failed = scene.machine.run("/root/broken", &["install", "--systemd", "--yes"]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(
        said.contains("every step was undone") && said.contains("restart sinew.service"),
        "{said}"
    );
    scene.works("cmp", &["/usr/local/bin/sinew", "/root/newer"]);
    assert!(scene.is_active("sinew.service") && scene.is_active("sinew-launcher.service"));
    scene.shell("rm -r /etc/systemd/system/sinew.service.d; systemctl daemon-reload");
}

fn leaves(scene: &Scene, session: &SessionId) {
    let refused = scene.machine.run("sinew", &["install", "--uninstall", "--yes"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("1 sandbox runs") && said.contains("--end-sandboxes"), "{said}");
    assert!(scene.is_active("sinew.service"));
    let said = scene.works("sinew", &["install", "--uninstall", "--end-sandboxes", "--yes"]);
    assert!(said.contains("/var/lib/sinew stays"), "{said}");
    assert!(!scene.is_active("sinew-sandboxes.service"));
    let mounts = scene.shell("cat /proc/mounts; losetup --list --noheadings -O BACK-FILE");
    assert!(!mounts.contains("/var/lib/sinew/launcher"), "{mounts}");
    assert_eq!(scene.shell("pgrep -c -u sinew || true").trim(), "0");
    assert_eq!(
        scene.shell("ls /etc/systemd/system | grep -c '^sinew.*service$' || true").trim(),
        "0"
    );

    // The files of the session are taken up again.
    scene.works(SINEW, &["install", "--systemd", "--yes"]);
    let listed = scene.works("sinew", &["exec", session.as_str(), "--", "ls"]);
    assert!(listed.contains("go"), "{listed}");
    let args = ["install", "--uninstall", "--purge", "--end-sandboxes", "--yes"];
    scene.works(SINEW, &args);
    let left = scene.shell(
        "ls -d /var/lib/sinew /etc/sinew/sinew.toml /etc/sinew/keys /usr/local/bin/sinew 2>&1 \
         | grep -v 'No such' || true; getent passwd sinew || true; \
         losetup --list --noheadings -O BACK-FILE | grep sinew/launcher || true",
    );
    assert_eq!(left, "");
}
