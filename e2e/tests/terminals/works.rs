//! One person at one shell.

use crate::pane::{Pane, between};
use crate::with_sandbox;

#[tokio::test(flavor = "multi_thread")]
async fn a_person_works_in_a_shell_and_everything_is_as_in_a_terminal() {
    let name = "a_person_works_in_a_shell_and_everything_is_as_in_a_terminal";
    let Some((installation, session)) = with_sandbox(name).await else { return };
    let pane = Pane::open(&installation);
    let (before, after) = (pane.path("before"), pane.path("after"));
    pane.run(&format!("stty -a >{}; sinew shell {session}", before.display()));
    pane.wait_for("Enter ~. detaches");
    pane.wait_for("/workspace$");
    pane.run("echo $TERM is-login=$(shopt -q login_shell; echo $?) $SHELL $(id -u) $(tty)");
    let screen = pane.wait_for("is-login=0 /bin/bash 1000 /dev/pts/");
    assert!(screen.contains("screen is-login") || screen.contains("tmux"), "{screen}");
    pane.run("stty size");
    pane.wait_for("30 100");

    // Keys that are signals reach what is in the foreground, and not us.
    pane.run("echo begun; sleep 1000");
    pane.wait_until("it sleeps", |screen| screen.matches("begun").count() == 2);
    pane.key("C-c");
    pane.run("echo interrupted=$?");
    pane.wait_for("interrupted=130");
    pane.run("trap 'echo got-quit' QUIT; trap 'echo got-winch' WINCH; kill -QUIT $$");
    pane.wait_for("got-quit");

    // A full-screen program draws, follows a resize, and the arrow keys move in it.
    pane.run("seq 1 200 >numbers; vim -u NONE -c 'set ruler' numbers");
    pane.wait_until("vim draws", |screen| screen.contains("29\n") && screen.contains("1,1"));
    assert!(pane.is_full_screen());
    pane.key("Down");
    pane.wait_for("2,1");
    pane.resize(120, 40);
    pane.wait_until("vim fills the larger screen", |screen| screen.contains("\n39\n"));
    pane.run(":q!");
    pane.wait_until("vim is gone", |screen| !screen.contains("2,1"));
    pane.run("stty size");
    pane.wait_for("40 120");

    // A paste that is larger than any terminal's line buffer arrives whole.
    pane.run("cat >pasted");
    let line = "0123456789".repeat(20);
    for _ in 0..50 {
        pane.run(&line);
    }
    pane.key("C-d");
    pane.run("echo sum=$(md5sum <pasted | cut -c1-8)=$(wc -c <pasted)");
    pane.wait_for(&format!("={}", 50 * (line.len() + 1)));

    pane.run("exit 7");
    pane.wait_for_outer();
    pane.run(&format!("echo outer-code=$?; stty -a >{}", after.display()));
    pane.wait_for("outer-code=7");
    // The size has changed, nothing else.
    let settings = |text: String| text.split_once(';').map(|(_, rest)| rest.to_owned()).unwrap();
    let (before, after) = (pane.wait_for_file(&before), pane.wait_for_file(&after));
    let without_size = |text: String| settings(settings(settings(text)));
    assert_eq!(without_size(before), without_size(after));

    let log = installation.sinew(&["session", "log", &session]);
    let log = String::from_utf8(log.stdout).unwrap();
    assert!(log.contains("operator shell main opened by uid 0"), "{log}");
    assert!(log.contains("operator shell main ended with code 7"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_screen_program_is_left_and_found_again_and_the_terminal_is_clean() {
    let name = "a_full_screen_program_is_left_and_found_again_and_the_terminal_is_clean";
    let Some((installation, session)) = with_sandbox(name).await else { return };
    let pane = Pane::open(&installation);
    let clean = pane.modes();
    pane.run(&format!("sinew shell {session} --name edit"));
    pane.wait_for("/workspace$");
    pane.run("seq 1 200 >numbers; vim -u NONE -c 'set mouse=a' numbers");
    pane.wait_until("vim draws", |screen| screen.contains("29\n"));
    pane.keys("ihello-");
    pane.wait_for("hello-1");
    pane.key("Enter");
    pane.keys("~.");
    pane.wait_for("detached");
    pane.wait_for_outer();
    assert_eq!(pane.modes(), clean, "nothing is left on");
    pane.run("clear; echo outer-works");
    pane.wait_for("outer-works");

    pane.run(&format!("sinew shell {session} --name edit"));
    // Every line is drawn again, though nothing has happened in the editor.
    let shows = |screen: &str| screen.contains("hello-") && screen.contains("\n27\n");
    pane.wait_until("the editor is back", shows);
    assert!(pane.is_full_screen());
    pane.key("Escape");
    pane.run(":wq");
    pane.wait_until("vim is gone", |screen| screen.contains("/workspace$"));
    pane.run("echo first=$(head -c 6 numbers); exit");
    pane.wait_for("first=hello-");
    pane.wait_for_outer();

    // A program that draws once and ignores sizes is replayed; its questions are not asked again.
    pane.run("clear");
    let asks = "printf 'drawn\\033[6n\\033[c\\a'; exec cat -v";
    pane.run(&format!("sinew shell {session} --name asks --command \"{asks}\""));
    pane.wait_for("^[[");
    pane.key("Enter");
    pane.keys("~.");
    pane.wait_for("detached");
    pane.wait_for_outer();
    pane.run(&format!("clear; sinew shell {session} --name asks"));
    pane.wait_for("drawn");
    pane.run("typed");
    let screen = pane.wait_until("typed comes back", |screen| screen.matches("typed").count() >= 2);
    let answers = screen.matches("^[[").count();
    pane.run("more");
    let screen = pane.wait_until("more comes back", |screen| screen.matches("more").count() >= 2);
    assert_eq!(screen.matches("^[[").count(), answers, "an answer was typed: {screen}");
    assert!(between(&screen, "drawn", "typed").matches("^[[").count() <= 4, "{screen}");
}
