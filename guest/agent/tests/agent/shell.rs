//! The persistent shell.

use std::time::Duration;

use guest_protocol::boot::ToolsAs;
use guest_protocol::{
    CallId, CallSpec, CallState, ClientError, Exit, KillScope, Note, OutputLimits, ShellSpec, Work,
};

use crate::harness::*;

/// The clock by which a job is older than a call has a resolution of 10 ms; between two calls of
/// a model there is more.
async fn pass_a_tick() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

#[tokio::test]
async fn directory_variables_functions_and_jobs_persist() {
    let Some(sandbox) = sandbox("directory_variables_functions_and_jobs_persist").await else {
        return;
    };
    let work = sandbox.path("work").display().to_string();
    assert_ok(&sandbox.bash("pwd").await, &format!("{work}\n"));
    assert_ok(
        &sandbox.bash("mkdir d && cd d && x=7 && f() { echo f$1; }; sleep 300 & j=$!").await,
        "",
    );
    assert_ok(&sandbox.bash("pwd; echo $x; f 1").await, &format!("{work}/d\n7\nf1\n"));
    assert_text(&sandbox.bash("kill -0 $j && jobs | wc -l").await, "1\n");
    assert_ok(&sandbox.bash("set -o pipefail; IFS=,; REPLY=r").await, "");
    assert_ok(
        &sandbox.bash("  printf '%s|' \"$REPLY\" a\\ b; [[ -o pipefail ]] && echo on").await,
        "r|a b|on\n",
    );
}

#[tokio::test]
async fn tools_run_as_their_user_with_a_clean_environment() {
    let Some(sandbox) = sandbox("tools_run_as_their_user_with_a_clean_environment").await else {
        return;
    };
    let home = sandbox.path("home").display().to_string();
    assert_ok(
        &sandbox.bash("id -u; id -g; id -G; echo $HOME").await,
        &format!("1000\n1000\n1000\n{home}\n"),
    );
    assert_text(
        &sandbox.bash("echo \"$TERM|$PS1|$PS2|$PROFILE_VAR\"; env | grep -c ANTHROPIC").await,
        "dumb|||from the profile\n0\n",
    );
    let caps =
        sandbox.bash("grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status | cut -f2 | sort -u").await;
    assert_ok(&caps, "0000000000000000\n");
    // Nothing of the agent is open in a command but its three streams (and what `ls` itself opens).
    assert_ok(&sandbox.bash("ls /proc/self/fd").await, "0\n1\n2\n3\n");
    assert_ok(
        &sandbox.bash("cat /proc/self/status | grep -E '^Sig(Blk|Ign)' | cut -f2 | sort -u").await,
        "0000000000000000\n",
    );
    // The agent's memory is closed to them.
    let maps = sandbox.bash("cat /proc/1/maps 2>&1 | tail -1").await;
    assert!(text(&maps).contains("Permission denied"), "{maps:?}");
}

#[tokio::test]
async fn tools_as_root_are_root() {
    let Some(sandbox) = sandbox_as("tools_as_root_are_root", ToolsAs::Root).await else { return };
    assert_ok(&sandbox.bash("id -u").await, "0\n");
}

#[tokio::test]
async fn a_command_is_data_and_never_script() {
    let Some(sandbox) = sandbox("a_command_is_data_and_never_script").await else { return };
    for broken in
        ["if true; then", "echo 'open", "echo \"open", "}", "( ", "case x in", "done", "$(("]
    {
        let outcome = sandbox.bash(broken).await;
        assert!(matches!(outcome.exit, Exit::Code(code) if code != 0), "{broken}: {outcome:?}");
        assert!(
            text(&outcome).contains("syntax error") || text(&outcome).contains("unexpected EOF"),
            "{broken}: {outcome:?}"
        );
        assert!(!text(&outcome).contains("__sinew"), "{broken}: {outcome:?}");
    }
    for empty in ["", " \n\t ", "# only a comment", ":"] {
        assert_ok(&sandbox.bash(empty).await, "");
    }
    // What would leave a loop, or look like a status.
    let left = sandbox.bash("break; continue; return 3").await;
    assert!(matches!(left.exit, Exit::Code(1..)) && left.notes.is_empty(), "{left:?}");
    assert_eq!(
        unnumbered(&sandbox.bash("echo '1 0'; echo '9 9' >&61; echo still").await),
        "1 0\nbash: line : 61: Bad file descriptor\nstill\n",
    );
    assert_ok(&sandbox.bash("cat <<E\nbody\nE").await, "body\n");
    assert_eq!(
        unnumbered(&sandbox.bash("cat <<E\nno end").await),
        "bash: line : warning: here-document at line  delimited by end-of-file (wanted `E')\nno end\n",
    );
    assert_ok(&sandbox.bash("echo one; echo two >&2; echo three").await, "one\ntwo\nthree\n");
    // A reading command reads the end of file, and not our next line.
    assert_ok(&sandbox.bash("cat; read x; echo \"<$x>\"").await, "<>\n");
    let nul = sandbox.bash("echo a\0b").await;
    assert_eq!(nul.exit, Exit::FailedToStart("command contains a NUL byte".into()));
    assert_ok(&sandbox.bash("printf 'a\\0b' | od -An -c | tr -d ' \\n'").await, "a\\0b");
}

#[tokio::test]
async fn a_megabyte_of_command_runs() {
    let Some(sandbox) = sandbox("a_megabyte_of_command_runs").await else { return };
    let long = format!("x='{}'; echo ${{#x}}", "y".repeat(1 << 20));
    assert_ok(&sandbox.bash(&long).await, "1048576\n");
    assert_ok(&sandbox.bash("echo ${#x}").await, "1048576\n");
}

#[tokio::test]
async fn settings_that_break_loops_do_not_break_the_shell() {
    let Some(sandbox) = sandbox("settings_that_break_loops_do_not_break_the_shell").await else {
        return;
    };
    assert_ok(&sandbox.bash("set -x").await, "");
    let traced = sandbox.bash("echo hi").await;
    assert_ok(&traced, "++ echo hi\nhi\n");
    assert_ok(&sandbox.bash("set +x").await, "++ set +x\n");
    assert_ok(&sandbox.bash("set -u; set -f; shopt -s extdebug; trap ':' DEBUG").await, "");
    assert_ok(&sandbox.bash("trap - DEBUG; echo fine").await, "fine\n");
    assert_ok(&sandbox.bash("set -o noclobber; set -v; cd /").await, "");
    assert_ok(&sandbox.bash("pwd").await, "pwd\n/\n");
}

#[tokio::test]
async fn the_exit_code_is_the_commands() {
    let Some(sandbox) = sandbox("the_exit_code_is_the_commands").await else { return };
    assert_eq!(sandbox.bash("false").await.exit, Exit::Code(1));
    assert_eq!(sandbox.bash("(exit 42)").await.exit, Exit::Code(42));
    assert_eq!(sandbox.bash("sh -c 'kill -9 $$'").await.exit, Exit::Code(137));
    let missing = sandbox.bash("no-such-program").await;
    assert_eq!(missing.exit, Exit::Code(127));
    assert!(text(&missing).ends_with(": no-such-program: command not found\n"), "{missing:?}");
}

#[tokio::test]
async fn a_shell_that_exits_is_replaced_and_it_is_said() {
    let Some(sandbox) = sandbox("a_shell_that_exits_is_replaced_and_it_is_said").await else {
        return;
    };
    let left = sandbox.bash("x=1; sleep 300 & echo bye; exit 3").await;
    assert_eq!((text(&left).as_str(), &left.exit), ("bye\n", &Exit::Code(3)));
    assert!(has_note(&left, |note| *note == Note::ShellEnded), "{left:?}");
    let next = sandbox.bash("echo \"<$x>\"; pgrep -x sleep").await;
    assert_eq!(text(&next), "<>\n");
    assert!(has_note(&next, |note| *note == Note::ShellRestarted), "{next:?}");
    let strict = sandbox.bash("set -e; false; echo not here").await;
    assert_eq!((text(&strict).as_str(), &strict.exit), ("", &Exit::Code(1)));
    let replaced = sandbox.bash("exec echo replaced").await;
    assert_eq!((text(&replaced).as_str(), &replaced.exit), ("replaced\n", &Exit::Code(0)));
    let killed = sandbox.bash("kill -9 $$").await;
    assert_eq!(killed.exit, Exit::ShellDied("the shell was killed by signal 9".into()));
    assert_ok(&sandbox.bash("echo alive").await, "alive\n");
}

#[tokio::test]
async fn a_time_out_kills_whatever_the_shell_ever_started() {
    let Some(sandbox) = sandbox("a_time_out_kills_whatever_the_shell_ever_started").await else {
        return;
    };
    // An operator's program beside the shell stays.
    let other = sandbox.start(&exec(&["sleep", "299"])).await;
    assert_ok(&sandbox.bash("sleep 301 & disown").await, "");
    pass_a_tick().await;
    let command = "setsid sleep 302 & nohup sleep 303 >/dev/null 2>&1 & (setsid sh -c 'sleep 304 & exit' &) ; \
                   echo started; sleep 305";
    let spec = shell_for(command, Duration::from_millis(700));
    let outcome = sandbox.run(&spec).await;
    assert_eq!((text(&outcome).as_str(), &outcome.exit), ("started\n", &Exit::TimedOut));
    assert!(has_note(&outcome, |note| *note == Note::JobsKilled), "{outcome:?}");
    assert!(has_note(&outcome, |note| *note == Note::ShellEnded), "{outcome:?}");
    assert!(outcome.ended_at_ms - outcome.started_at_ms < 5000, "{outcome:?}");
    let next = sandbox.bash("ps -eo args | grep '^sleep'").await;
    assert_eq!(text(&next), "sleep 299\n");
    assert!(has_note(&next, |note| *note == Note::ShellRestarted));
    sandbox.client.kill(&other, KillScope::Tree).await.unwrap();
    assert_eq!(sandbox.client.wait(&other).await.unwrap().exit, Exit::Killed);
}

#[tokio::test]
async fn a_fork_bomb_is_killed() {
    let Some(sandbox) = sandbox("a_fork_bomb_is_killed").await else { return };
    let bomb = "ulimit -u 300; f() { f | f & f; }; f 2>/dev/null";
    let outcome = sandbox.run(&shell_for(bomb, Duration::from_millis(500))).await;
    assert!(!has_note(&outcome, |note| matches!(note, Note::Unkillable { .. })), "{outcome:?}");
    let left = sandbox.bash("ps -u 1000 -o pid= | wc -l").await;
    // The shell, `ps` and `wc`.
    let count: u32 = text(&left).trim().parse().unwrap();
    assert!(count <= 4, "{left:?}");
}

#[tokio::test]
async fn a_job_that_holds_the_output_delays_nothing_and_stays_out_of_later_calls() {
    let test = "a_job_that_holds_the_output_delays_nothing_and_stays_out_of_later_calls";
    let Some(sandbox) = sandbox(test).await else { return };
    let id = CallId::generate();
    let job = "(while ! test -e go; do sleep 0.01; done; echo late) & echo now";
    sandbox.client.start(&id, &shell(job)).await.unwrap();
    let outcome = sandbox.client.wait(&id).await.unwrap();
    assert_ok(&outcome, "now\n");
    assert!(has_note(&outcome, |note| *note == Note::BackgroundOutput), "{outcome:?}");
    let path = outcome.output_path.clone().unwrap();
    sandbox.client.ack(&id).await.unwrap();
    assert_ok(&sandbox.bash("touch go; wait; echo second").await, "second\n");
    eventually("the job's output is in the file", async || {
        std::fs::read_to_string(&path).unwrap() == "now\nlate\n"
    })
    .await;
    // The agent lets go of it and keeps the file.
    eventually("the output is kept", async || {
        sandbox.client.info().await.unwrap().kept_outputs == 1
    })
    .await;
    // A job that floods its old output slows nobody down for long.
    assert_eq!(sandbox.bash("yes & echo").await.exit, Exit::Code(0));
    assert_ok(&sandbox.bash("echo quick; kill %yes").await, "quick\n");
}

#[tokio::test]
async fn long_output_keeps_its_ends_and_its_file() {
    let Some(sandbox) = sandbox("long_output_keeps_its_ends_and_its_file").await else { return };
    let id = CallId::generate();
    let mut spec = shell("seq 1 200000");
    spec.limits = OutputLimits { head_bytes: 10, tail_bytes: 7, spool_bytes: 1 << 20 };
    sandbox.client.start(&id, &spec).await.unwrap();
    let outcome = sandbox.client.wait(&id).await.unwrap();
    assert_eq!(outcome.total_bytes, 1_288_895);
    assert_eq!(
        (outcome.head.as_slice(), outcome.tail.as_slice()),
        (&b"1\n2\n3\n4\n5\n"[..], &b"200000\n"[..])
    );
    assert!(has_note(&outcome, |note| *note == Note::SpoolLimit { kept_bytes: 1 << 20 }));
    assert_eq!(sandbox.client.read_all(&id, usize::MAX).await.unwrap().len(), 1 << 20);
    let path = outcome.output_path.unwrap();
    sandbox.client.ack(&id).await.unwrap();
    // The guest can read it and cannot change it.
    assert_eq!(
        unnumbered(&sandbox.bash(&format!("wc -c < {path}; echo x >> {path}; rm -f {path}")).await),
        format!(
            "1048576\nbash: line : {path}: Permission denied\nrm: cannot remove '{path}': Permission denied\n"
        ),
    );
    // A short one leaves none behind.
    sandbox.bash("echo short").await;
    let left = std::fs::read_dir(sandbox.path("out")).unwrap();
    let files = left.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_file());
    assert_eq!(files.count(), 1);
}

#[tokio::test]
async fn a_kill_of_the_foreground_leaves_the_jobs() {
    let Some(sandbox) = sandbox("a_kill_of_the_foreground_leaves_the_jobs").await else { return };
    assert_ok(&sandbox.bash("x=1; sleep 300 & j=$!").await, "");
    pass_a_tick().await;
    let id = sandbox.start(&shell("echo begun; sleep 301; (touch went-on); touch went-on")).await;
    eventually("the command runs", async || {
        matches!(
            sandbox.client.query(&id).await.unwrap(),
            CallState::Running { total_bytes: 6, .. }
        )
    })
    .await;
    sandbox.client.kill(&id, KillScope::Foreground).await.unwrap();
    let outcome = sandbox.client.wait(&id).await.unwrap();
    assert_eq!(outcome.exit, Exit::Killed);
    // Bash cannot give up the rest of a list and live.
    assert!(has_note(&outcome, |note| *note == Note::ShellEnded), "{outcome:?}");
    assert!(!has_note(&outcome, |note| *note == Note::JobsKilled), "{outcome:?}");
    let after = sandbox.bash("pgrep -fc 'sleep 30[01]'; test ! -e went-on; echo \"$? <$x>\"").await;
    assert_eq!(after.head, b"1\n0 <>\n", "{after:?}");
    assert!(has_note(&after, |note| *note == Note::ShellRestarted), "{after:?}");
    // Nor does it get further where it is busy itself.
    let id = sandbox.start(&shell("while :; do :; done; touch went-on")).await;
    sandbox.client.kill(&id, KillScope::Foreground).await.unwrap();
    assert_eq!(sandbox.client.wait(&id).await.unwrap().exit, Exit::Killed);
    assert_text(&sandbox.bash("pgrep -fc 'sleep 300'; ls").await, "1\n");
    // The jobs of an interrupted shell end with a restart.
    let restart = CallSpec {
        timeout: Duration::from_secs(20),
        limits: OutputLimits::default(),
        work: Work::Shell(ShellSpec::Restart(None)),
    };
    assert_ok(&sandbox.run(&restart).await, "");
    eventually("the job is gone", async || {
        sandbox.bash("pgrep -fc 'sleep 300'").await.head == b"0\n"
    })
    .await;
}

#[tokio::test]
async fn a_restart_ends_everything_and_may_run_a_command() {
    let Some(sandbox) = sandbox("a_restart_ends_everything_and_may_run_a_command").await else {
        return;
    };
    let restart = |command: Option<&str>| CallSpec {
        timeout: Duration::from_secs(20),
        limits: OutputLimits::default(),
        work: Work::Shell(ShellSpec::Restart(command.map(str::to_owned))),
    };
    assert_ok(&sandbox.run(&restart(None)).await, "");
    assert_ok(&sandbox.bash("x=1; setsid sleep 300 &").await, "");
    assert_text(&sandbox.run(&restart(Some("echo \"<$x>\"; pgrep -c sleep"))).await, "<>\n0\n");
    assert_ok(&sandbox.bash("echo again").await, "again\n");
}

#[tokio::test]
async fn an_image_without_bash_is_told_and_still_runs_programs() {
    let test = "an_image_without_bash_is_told_and_still_runs_programs";
    let hide = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/e && touch /mnt/e/f && \
                mount --bind /mnt/e/f \"$(readlink -f /bin/bash)\"";
    let Some(sandbox) = sandbox_after(test, ToolsAs::User, hide).await else { return };
    for _ in 0..2 {
        let outcome = sandbox.bash("echo hi").await;
        let want = "bash: permission denied (the shell needs /bin/bash in the image)";
        assert_eq!(outcome.exit, Exit::FailedToStart(want.into()));
    }
    assert_ok(&sandbox.run(&exec(&["echo", "hi"])).await, "hi\n");
}

#[tokio::test]
async fn a_full_disk_does_not_keep_the_shell_from_running() {
    let test = "a_full_disk_does_not_keep_the_shell_from_running";
    // Only the directory of the pipes fits, and not one FIFO: everything falls back.
    let full = "mount -t tmpfs -o nr_inodes=2 tmpfs /mnt && mkdir -p /mnt/.pipes; exec 101</mnt";
    let Some(sandbox) = sandbox_after(test, ToolsAs::User, full).await else { return };
    for _ in 0..20 {
        assert_ok(&sandbox.bash("x=1; echo hi; echo err >&2").await, "hi\nerr\n");
    }
    let long = sandbox.bash("echo $x; seq 1 100000").await;
    assert_eq!(long.exit, Exit::Code(0));
    assert!(long.head.starts_with(b"1\n1\n2\n") && long.tail.ends_with(b"100000\n"), "{long:?}");
    assert!(has_note(&long, |note| matches!(note, Note::SpoolError(_))), "{:?}", long.notes);
}

#[tokio::test]
async fn one_command_at_a_time_and_a_wedged_shell_ends_by_its_time() {
    let test = "one_command_at_a_time_and_a_wedged_shell_ends_by_its_time";
    let Some(sandbox) = sandbox(test).await else { return };
    let id = sandbox.start(&shell("sleep 300")).await;
    let busy = sandbox.client.start(&CallId::generate(), &shell("echo")).await;
    assert!(matches!(busy, Err(ClientError::Refused { .. })), "{busy:?}");
    sandbox.client.kill(&id, KillScope::Tree).await.unwrap();
    assert_eq!(sandbox.client.wait(&id).await.unwrap().exit, Exit::Killed);
    // A function in the place of what our own lines use: the harm is its own.
    assert!(matches!(
        sandbox.run(&shell_for("builtin() { :; }", Duration::from_millis(300))).await.exit,
        Exit::TimedOut
    ));
    assert_ok(&sandbox.bash("echo back").await, "back\n");
    // Stopped by itself.
    assert_eq!(
        sandbox.run(&shell_for("kill -STOP $$", Duration::from_millis(300))).await.exit,
        Exit::TimedOut
    );
    assert_ok(&sandbox.bash("echo back").await, "back\n");
}
