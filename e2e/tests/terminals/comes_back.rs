//! Shells outlive their viewers and `serve`.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pane::{Pane, between};
use crate::{SCENE, configured, with_sandbox};

/// Of the `sinew shell` in this pane.
fn client_pid(pane: &Pane, file: &str) -> Pid {
    let path = pane.path(file);
    Pid::from_raw(pane.wait_for_file(&path).trim().parse().unwrap())
}

/// Opens a shell, sets a variable in it, and answers with its process id.
fn begin(pane: &Pane, session: &str) -> String {
    pane.run(&format!("sinew shell {session}"));
    pane.wait_for("/workspace$");
    pane.run("x=kept; echo the-pid=$$.");
    let is_pid = |screen: &str| between(screen, "the-pid=", ".").parse::<u32>().is_ok();
    between(&pane.wait_until("the pid", is_pid), "the-pid=", ".")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_outlives_its_viewers() {
    let name = "a_shell_outlives_its_viewers";
    let Some((installation, session)) = with_sandbox(name).await else { return };
    let pane = Pane::open(&installation);
    let pid = begin(&pane, &session);

    // A second person at the same shell: both see everything.
    let second = Pane::open(&installation);
    let shell =
        format!("sh -c 'echo $$ >{}; exec sinew shell {session}'", second.path("pid").display());
    second.run(&shell);
    second.wait_for("1 more attached");
    second.wait_for(&format!("the-pid={pid}."));
    second.run("echo from-two-$x");
    pane.wait_for("from-two-kept");
    let listed = installation.json(&["shell", &session, "--list", "--json"]);
    assert_eq!(listed["terminals"][0]["viewers"], 2, "{listed:#}");
    assert_eq!(listed["terminals"][0]["state"], "running", "{listed:#}");

    // SIGKILL leaves the terminal raw, which nobody can help; the shell does not notice.
    kill(client_pid(&second, "pid"), Signal::SIGKILL).unwrap();
    second.wait_for("Killed");
    second.wait_for_outer();
    second.run("stty sane; clear");
    pane.run("echo still-$x-$$");
    pane.wait_for(&format!("still-kept-{pid}"));

    // SIGTERM and SIGHUP end the client and give the terminal back.
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        std::fs::remove_file(second.path("pid")).unwrap();
        second.run("clear");
        second.run(&format!("stty -a >{}; {shell}", second.path("before").display()));
        second.wait_for(&format!("still-kept-{pid}"));
        kill(client_pid(&second, "pid"), signal).unwrap();
        second.wait_for_outer();
        second.run(&format!("echo code=$?; stty -a >{}", second.path("after").display()));
        second.wait_for(&format!("code={code}"));
        let after = second.wait_for_file(&second.path("after"));
        assert_eq!(second.wait_for_file(&second.path("before")), after);
        std::fs::remove_file(second.path("after")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_outlives_serve() {
    let name = "a_shell_outlives_serve";
    let Some((mut installation, session)) = with_sandbox(name).await else { return };
    let pane = Pane::open(&installation);
    let pid = begin(&pane, &session);

    // `serve` dies: the viewer is told, the shell goes on, and the next `serve` finds it.
    installation.kill_serve();
    pane.wait_for("the terminal is lost");
    pane.wait_for_outer();
    pane.run("echo code=$?; stty -a | grep -o ' icanon'");
    pane.wait_for("code=125");
    pane.wait_for(" icanon");
    installation.start_serve();
    pane.run(&format!("clear; sinew shell {session}"));
    pane.wait_for(&format!("the-pid={pid}."));
    pane.run("echo after-restart-$x-$$");
    pane.wait_for(&format!("after-restart-kept-{pid}"));

    // It stops in an orderly way: the same.
    assert!(installation.stop_serve());
    pane.wait_for("`sinew serve` is stopping");
    pane.wait_for_outer();
    installation.start_serve();
    pane.run(&format!("clear; sinew shell {session}"));
    pane.wait_for(&format!("after-restart-kept-{pid}"));
    pane.run("exit 3");
    pane.wait_for_outer();
    pane.run("echo code=$?");
    pane.wait_for("code=3");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_several_shells_lists_and_ends() {
    let name = "root_several_shells_lists_and_ends";
    let Some((installation, session)) = with_sandbox(name).await else { return };
    let pane = Pane::open(&installation);
    pane.run(&format!("sinew shell {session} --root --name admin --escape %"));
    pane.wait_for("Enter %. detaches");
    pane.wait_for("/workspace#");
    pane.run("echo I-am-$(id -u)-$HOME-$USER");
    pane.wait_for("I-am-0-/root-root");
    pane.key("Enter");
    pane.keys("%.");
    pane.wait_for("detached");
    pane.wait_for_outer();
    pane.run(&format!("sinew shell {session} --name work --command 'echo only-this; exit 4'"));
    // Once as it was typed, and once as it ran.
    pane.wait_until("it has run", |screen| screen.matches("only-this").count() == 2);
    pane.wait_for_outer();
    pane.run("echo code=$?");
    pane.wait_for("code=4");

    let listed = installation.json(&["shell", &session, "--list", "--json"]);
    let of = |name: &str| {
        let all = listed["terminals"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap().clone()
    };
    let (admin, work) = (of("admin"), of("work"));
    assert_eq!((&admin["root"], &admin["state"]), (&true.into(), &"running".into()));
    assert_eq!((&admin["viewers"], &admin["columns"]), (&0.into(), &100.into()));
    assert_eq!((&work["state"], &work["exit_code"]), (&"ended".into(), &4.into()));
    let table = installation.sinew(&["shell", &session, "--list"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("admin") && table.contains("ended with 4"), "{table}");

    let killed = installation.sinew(&["shell", &session, "--name", "admin", "--kill"]);
    assert!(killed.status.success(), "{killed:?}");
    let again = installation.sinew(&["shell", &session, "--name", "admin", "--kill"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("no terminal admin"), "{again:?}");

    let refused = installation.sinew(&["shell", &session]);
    assert_eq!(refused.status.code(), Some(125));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("needs a terminal") && text.contains("sinew exec"), "{text}");
    for wrong in ["../main", "a\u{1b}[2J", "", &"x".repeat(40)] {
        let refused = installation.sinew(&["shell", &session, "--name", wrong]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(!refused.stderr.contains(&0x1b), "{refused:?}");
    }
    let log = installation.sinew(&["session", "log", &session]);
    let log = String::from_utf8(log.stdout).unwrap();
    for line in ["root's shell admin opened", "root's shell admin left running", "admin ended by"] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_shell_keeps_its_sandbox_awake_and_a_left_one_does_not() {
    let name = "a_watched_shell_keeps_its_sandbox_awake_and_a_left_one_does_not";
    let config = "[limits]\nidle = \"200ms\"\n[[profile]]\nname = \"default\"\n\
                  keep_running = \"500ms\"\n";
    let Some((installation, session)) = configured(name, config).await else { return };
    let pane = Pane::open(&installation);
    // It may sleep already, and is woken then.
    pane.run(&format!("sinew shell {session}"));
    pane.wait_for("/workspace$");
    pane.run("sleep 3; echo still-$((1 + 1))");
    pane.wait_for("still-2");
    pane.key("Enter");
    pane.keys("~.");
    pane.wait_for_outer();
    let until = Instant::now() + SCENE;
    loop {
        let shown = installation.json(&["session", "show", "--json", &session]);
        if shown["sandbox"]["state"] == "stopped" {
            break;
        }
        assert!(Instant::now() < until, "it does not sleep: {shown:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
    // A sandbox that sleeps has no shells, and is not woken by the question.
    let listed = installation.json(&["shell", &session, "--list", "--json"]);
    assert_eq!(listed["terminals"], serde_json::json!([]));
    let shown = installation.json(&["session", "show", "--json", &session]);
    assert_eq!(shown["sandbox"]["state"], "stopped", "{shown:#}");
    pane.run(&format!("clear; sinew shell {session}"));
    pane.wait_for("opened");
    pane.wait_for("/workspace$");
}
