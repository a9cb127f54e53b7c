//! Completions and manual pages: the real readers take them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{COMMANDS, sinew, stderr, stdout};

const HIDDEN: [&str; 4] = ["launcher", "teardown", "reference", "unpack"];

fn script(shell: &str, dir: &Path) -> String {
    let output = sinew(dir, &["completions", shell]);
    assert!(output.status.success(), "{}", stderr(&output));
    let script = stdout(&output);
    for command in COMMANDS {
        assert!(script.contains(command), "{shell}: {command}");
    }
    std::fs::write(dir.join("script"), &script).unwrap();
    script
}

/// What a shell prints that reads a program with the script at hand; `None` where it is missing.
fn shell(name: &str, dir: &Path, program: &str) -> Option<String> {
    let shell = Command::new(name).args(["-c", program]).current_dir(dir).output();
    let output = match shell {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIP completions of {name}: {error}");
            return None;
        }
    };
    let errors = stderr(&output);
    assert!(output.status.success() && errors.is_empty(), "{name}: {errors}");
    Some(stdout(&output))
}

#[test]
fn bash_completes_commands_flags_and_nothing_hidden() {
    let dir = tempfile::tempdir().unwrap();
    script("bash", dir.path());
    let complete = |line: &str| {
        let words: Vec<String> = line.split(' ').map(|word| format!("'{word}'")).collect();
        let (last, count) = (words.last().unwrap(), words.len());
        let program = format!(
            "source ./script; COMP_WORDS=({}); COMP_CWORD={}; _sinew sinew {last} ''; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            count - 1
        );
        let found = shell("bash", dir.path(), &program)?;
        Some(found.lines().map(str::to_owned).collect::<BTreeSet<String>>())
    };
    let Some(commands) = complete("sinew ") else { return };
    assert!(COMMANDS.iter().all(|command| commands.contains(*command)), "{commands:?}");
    assert!(HIDDEN.iter().all(|command| !commands.contains(*command)), "{commands:?}");
    let flags = complete("sinew profile explain --").unwrap();
    for flag in ["--agent", "--meta", "--environment", "--tenant", "--json"] {
        assert!(flags.contains(flag), "{flag}: {flags:?}");
    }
    assert_eq!(complete("sinew session sh").unwrap(), BTreeSet::from(["show".to_owned()]));
    assert_eq!(complete("sinew completions f").unwrap(), BTreeSet::from(["fish".to_owned()]));
}

#[test]
fn fish_completes_commands_and_nothing_hidden() {
    let dir = tempfile::tempdir().unwrap();
    script("fish", dir.path());
    let program = "source ./script; complete -C 'sinew '; complete -C 'sinew profile '";
    let Some(found) = shell("fish", dir.path(), program) else { return };
    let words: BTreeSet<&str> = found.lines().filter_map(|line| line.split('\t').next()).collect();
    assert!(COMMANDS.iter().all(|command| words.contains(command)), "{words:?}");
    assert!(words.contains("explain") && words.contains("check"), "{words:?}");
    assert!(HIDDEN.iter().all(|command| !words.contains(command)), "{words:?}");
}

#[test]
fn zsh_loads_the_script() {
    let dir = tempfile::tempdir().unwrap();
    let script = script("zsh", dir.path());
    assert!(script.starts_with("#compdef sinew"));
    let program = "autoload -U compinit && compinit -D -u && source ./script && \
                   print ${_comps[sinew]} && whence -w _sinew";
    let Some(found) = shell("zsh", dir.path(), program) else { return };
    assert!(found.contains("_sinew\n") && found.contains("_sinew: function"), "{found}");
    assert!(HIDDEN.iter().all(|command| !script.contains(&format!("({command})"))));
}

#[test]
fn an_unread_script_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sinew"))
        .args(["completions", "zsh"])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn every_command_has_a_manual_page_that_groff_takes() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man/man1");
    let output = sinew(dir.path(), &["reference", "man", "--dir", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let names: BTreeSet<String> = std::fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in COMMANDS.map(|name| format!("sinew-{name}.1")) {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    for name in ["sinew.1", "sinew-session-show.1", "sinew-profile-explain.1"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    assert!(names.iter().all(|name| HIDDEN.iter().all(|hidden| !name.contains(hidden))));

    let page = std::fs::read_to_string(pages.join("sinew-profile-explain.1")).unwrap();
    let page = page.replace("\\-", "-");
    for expected in ["sinew-profile-explain", "--meta", "EXIT STATUS", "no `sinew serve` answers"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }

    for name in &names {
        let mut groff = Command::new("groff");
        let Ok(output) =
            groff.args(["-man", "-Tascii", "-ww", "-P-cbu"]).arg(pages.join(name)).output()
        else {
            eprintln!("SKIP every_command_has_a_manual_page_that_groff_takes: no groff");
            return;
        };
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        assert!(output.stderr.is_empty(), "{name}: {}", stderr(&output));
        assert!(stdout(&output).contains("EXIT STATUS"), "{name}");
    }

    // The same program makes the same pages: a package can be built again.
    let again = dir.path().join("again");
    assert!(
        sinew(dir.path(), &["reference", "man", "--dir", again.to_str().unwrap()]).status.success()
    );
    for name in &names {
        assert_eq!(
            std::fs::read(pages.join(name)).unwrap(),
            std::fs::read(again.join(name)).unwrap()
        );
    }
}
