//! Profiles with mistakes in them.

use base_config::{Entrypoint, ToolsAs};

use crate::setup::{Setup, refused_for};

#[test]
fn profiles_contradict_nothing() {
    refused_for(
        "[[profile]]\nname = \"a\"\n[[profile]]\nname = \"b\"\n",
        "4:8: profile `b` is never chosen: profile `a` before it matches every session: put the \
         one without [[profile.match]] last",
    );
    refused_for(
        "[[profile]]\nname = \"default\"\n[[profile.match]]\nagent = \"a\"\n",
        "2:8: profile `default` is what no other profile's match holds for; it has none: remove \
         its [[profile.match]], or rename it",
    );
    refused_for(
        "[[profile]]\nname = \"a\"\n[[profile.match]]\nagent = \"a\"\n[[profile]]\nname = \"a\"\n",
        "6:8: profile `a` stands in the file twice: remove or rename one of them",
    );
    refused_for(
        "[[profile]]\nname = \"a\"\nkeep_running = \"8d\"\n",
        "3:16: `keep_running` (8d) is longer than `retain` (7d): shorten it, or set `retain`",
    );
    refused_for(
        "[[profile]]\nname = \"a\"\nenv = { ANTHROPIC_KEY = \"x\" }\n",
        "3:7: variable `ANTHROPIC_KEY` of `env`: ANTHROPIC_* does not enter a sandbox: credentials \
         of the control plane stay outside it",
    );
    refused_for(
        "[[profile]]\nname = \"a\"\nenv = { \"A=B\" = \"x\" }\n",
        "3:7: `A=B` of `env` is not a variable's name: use letters, digits and `_`, and no digit \
         in front",
    );
    refused_for("profile = 5\n", "1:1: `profile` is a whole number: write [[profile]]");
    refused_for("[profile]\nname = \"a\"\n", "1:2: `profile` is a table: write [[profile]]");
    refused_for("[[pool]]\n", "1:3: `pool` is an array: write [pool]");
}

#[test]
fn what_runs_inside_is_told_in_words_that_fit() {
    let profile = |line: &str| format!("[[profile]]\nname = \"p\"\n{line}\n");
    let image = "registry.example/team/python:3.12-slim";
    let own = Setup::new(&profile(&format!("image = \"{image}\""))).accepted();
    assert_eq!(own.profiles[0].image, image);
    let read = |line: &str| Setup::new(&profile(line)).accepted().profiles[0].clone();
    assert_eq!(read("tools_as = \"user\"").tools_as, Some(ToolsAs::User));
    assert_eq!(read("entrypoint = true").entrypoint, Entrypoint::OfImage);
    assert_eq!(read("entrypoint = false").entrypoint, Entrypoint::None);
    let long = format!("entrypoint = [{}\"x\"]", "\"x\", ".repeat(256));
    let words = "`true`, `false`, or words, like [\"redis-server\", \"--save\", \"\"]";
    let path = "an absolute path inside the sandbox, like \"/srv/app\"";
    for (line, expected) in [
        (
            "image = \"../debian\"",
            "9: `image` is not an image's name: use letters, digits and `._:/-`, at most 128, and \
             a letter or digit in front"
                .into(),
        ),
        ("workdir = \"srv\"", format!("11: `workdir` is not an absolute path: {path}")),
        ("workdir = \"\"", format!("11: `workdir` is not an absolute path: {path}")),
        (
            "workdir = \"/a/../../etc\"",
            "11: `workdir` leads upwards: write the path without `..`".into(),
        ),
        (
            &format!("workdir = \"{}\"", "/a".repeat(65)),
            "11: `workdir` is too long for a path: write a shorter one".into(),
        ),
        ("entrypoint = []", format!("14: `entrypoint` names no program: {words}")),
        ("entrypoint = [\"\", \"x\"]", format!("14: `entrypoint` names no program: {words}")),
        (
            "entrypoint = [\"x\", 5]",
            "14: `entrypoint` has a word that is a whole number: every word is a text".into(),
        ),
        ("entrypoint = \"nginx\"", format!("14: `entrypoint` is a text: {words}")),
        (&long, "14: `entrypoint` is too long: put it into a script in the image".into()),
    ] {
        refused_for(&profile(line), &format!("3:{expected}"));
    }
    let key = Setup::new(&profile("entrypoint = [\"sk-ant-oat01-never-print-this\"]")).refused();
    assert!(key[0].contains("looks like a key"), "{key:?}");
}
