//! What a model sees of the six tools in a sandbox with the real agent.

mod sandbox;

use base_types::CallId;
use brain_api::Block;
use sandbox::{sandbox, text};
use serde_json::json;

#[tokio::test]
async fn the_shell_keeps_its_state_and_shows_what_a_command_did() {
    let Some(sandbox) = sandbox("the_shell_keeps_its_state").await else { return };
    assert_eq!(sandbox.bash("cd /tmp; x='a b'; f() { echo \"f $1\"; }").await, "(no output)");
    assert_eq!(sandbox.bash("pwd; echo \"$x\"; f 1; id -un >&2").await.lines().count(), 4);
    assert_eq!(
        sandbox.bash("printf '\\033[31mred\\033[0m\\n\\n'; false").await,
        "red\nexit code: 1"
    );
    let failed = sandbox.call("bash", json!({"command": "exit 7"})).await;
    assert_eq!((failed.is_error, failed.exit_code), (true, Some(7)));
    assert!(text(&failed).contains("exit code: 7\n[the shell ended"), "{}", text(&failed));
    let unbalanced = sandbox.bash("if true; then").await;
    assert!(unbalanced.contains("syntax error"), "{unbalanced}");
    assert_eq!(sandbox.bash("echo still here").await, "still here");
    let restarted = sandbox.call("bash", json!({"restart": true, "command": "pwd"})).await;
    assert_eq!(text(&restarted), "bash session restarted\n/workspace");
    assert_eq!(
        sandbox.bash("kill -SEGV $BASHPID & wait $!").await.lines().last().unwrap(),
        "exit code: 139 (as after SIGSEGV)"
    );
}

#[tokio::test]
async fn a_long_output_keeps_both_ends_and_the_rest_can_be_read() {
    let Some(sandbox) = sandbox("a_long_output_keeps_both_ends").await else { return };
    let long = sandbox.bash("seq 1 100000").await;
    assert!(long.starts_with("1\n2\n3\n"), "{}", &long[..100]);
    assert!(long.ends_with("99999\n100000"), "{}", &long[long.len() - 100..]);
    assert!(long.len() < 103_000, "{}", long.len());
    let path = long.split("the whole output is in ").nth(1).unwrap();
    let path = path.split(',').next().unwrap();
    let found = sandbox.call("grep", json!({"pattern": "^50000$", "path": path})).await;
    assert_eq!(text(&found), format!("{path}:50000:50000"));
    let read =
        sandbox.call("read", json!({"file_path": path, "view_range": [50_000, 50_001]})).await;
    assert_eq!(text(&read).trim_end(), "50000\n50001");
    let refused = sandbox.call("write", json!({"file_path": path, "content": "x"})).await;
    assert!(refused.is_error && text(&refused).contains("read-only"), "{}", text(&refused));
}

#[tokio::test]
async fn a_time_out_kills_everything_and_says_so() {
    let Some(sandbox) = sandbox("a_time_out_kills_everything").await else { return };
    // The agent tells jobs from the call's own processes by the kernel's tick of 10 ms.
    sandbox.bash("sleep 300 & echo $! > job; sleep 0.05").await;
    let input = json!({"command": "echo begun; setsid sleep 301 & sleep 302", "timeout_ms": 300});
    let answer = sandbox.call("bash", input).await;
    let said = text(&answer);
    assert!(said.starts_with("begun\nbash: command timed out after 0.3s; everything"), "{said}");
    assert!(said.contains("background jobs of earlier calls were killed"), "{said}");
    assert!(answer.is_error);
    let after = sandbox.bash("pgrep -c sleep; kill -0 $(cat job) && echo alive").await;
    assert!(!after.contains("alive"), "{after}");
    assert_eq!(after.lines().find(|line| *line == "0"), Some("0"), "{after}");
}

#[tokio::test]
async fn a_call_that_is_asked_for_twice_runs_once() {
    let Some(sandbox) = sandbox("a_call_that_is_asked_for_twice").await else { return };
    let call = CallId::generate();
    let input = json!({"command": "echo x >> ran; wc -l < ran"});
    let first = sandbox.call_without_ack(&call, "bash", input.clone()).await;
    let second = sandbox.call_as(&call, "bash", input.clone()).await;
    assert_eq!((text(&first), text(&second)), ("1".to_owned(), "1".to_owned()));
    let late = sandbox.call_without_ack(&call, "bash", input).await;
    assert!(text(&late).contains("outcome unknown"), "{}", text(&late));
    assert_eq!(sandbox.bash("wc -l < ran").await, "1");
}

#[tokio::test]
async fn files_are_written_edited_found_and_searched() {
    let Some(sandbox) = sandbox("files_are_written").await else { return };
    let write = json!({"file_path": "d/a.txt", "content": "cost: $1 (.*)\nbeta\n"});
    assert_eq!(text(&sandbox.call("write", write).await), "wrote 19 bytes to d/a.txt");
    let edit = json!({"file_path": "d/a.txt", "old_string": "$1 (.*)", "new_string": "$&"});
    let edited = text(&sandbox.call("edit", edit).await);
    assert!(edited.starts_with("edited d/a.txt (1 replacement"), "{edited}");
    let read = sandbox.call("read", json!({"file_path": "/workspace/d/a.txt"})).await;
    assert_eq!(text(&read), "cost: $&\nbeta\n");
    let absent = json!({"file_path": "d/a.txt", "old_string": "gamma", "new_string": "x"});
    let absent = sandbox.call("edit", absent).await;
    assert_eq!(text(&absent), "edit: old_string not found in d/a.txt");
    assert!(absent.is_error);
    sandbox.bash("touch d/b.rs d/.c.rs d/e.md").await;
    let found = sandbox.call("glob", json!({"pattern": "**/*.{rs,txt}"})).await;
    let mut found: Vec<_> = text(&found).lines().map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, ["/workspace/d/.c.rs", "/workspace/d/a.txt", "/workspace/d/b.rs"]);
    let lines = sandbox.call("grep", json!({"pattern": r"\$&|^beta"})).await;
    assert_eq!(text(&lines), "/workspace/d/a.txt:1:cost: $&\n/workspace/d/a.txt:2:beta");
    let bad = sandbox.call("grep", json!({"pattern": "("})).await;
    assert!(bad.is_error && text(&bad).starts_with("grep: "), "{}", text(&bad));
    let outside = sandbox.call("read", json!({"file_path": "../etc/passwd"})).await;
    assert!(outside.is_error && text(&outside).contains("outside"), "{}", text(&outside));
    let missing = sandbox.call("read", json!({"file_path": "nope"})).await;
    assert_eq!(text(&missing), "read: nope: no such file or directory");
}

#[tokio::test]
async fn a_picture_comes_whole() {
    let Some(sandbox) = sandbox("a_picture_comes_whole").await else { return };
    sandbox.bash("head -c 3000000 /dev/zero > a.png; head -c 4000000 /dev/zero > b.png").await;
    let picture = sandbox.call("read", json!({"file_path": "a.png"})).await;
    let [Block::Image { media_type, data }] = picture.content.as_slice() else {
        panic!("{}", picture.summary)
    };
    assert_eq!((media_type.as_str(), data.len()), ("image/png", 4_000_000));
    let large = sandbox.call("read", json!({"file_path": "b.png"})).await;
    assert!(large.is_error && text(&large).contains("exceeds 3932160-byte limit"), "{large:?}");
}
