//! `sinew profile check|explain` on files, without anything that runs.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::{sinew, stderr, stdout};

const FILE: &str = r#"
[[environment]]
id = "env_1"
key_file = "/nowhere/that/exists"
tenant = "blue"

[[environment]]
id = "env_2"
key_file = "/nowhere/that/exists"
tenant_metadata_key = "team"

[[profile]]
name = "large"
[[profile.match]]
metadata = { size = "large" }
[[profile.match]]
agent = "agent_1"
tenant = "red"

[[profile]]
name = "red"
[[profile.match]]
tenant = "red"
"#;

fn installation(file: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sinew.toml"), file).unwrap();
    dir
}

#[track_caller]
fn answer(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn explain(dir: &Path, args: &[&str]) -> Output {
    sinew(dir, &[&["profile", "explain"], args].concat())
}

#[test]
fn a_right_file_is_ok_without_keys_and_without_images() {
    let dir = installation(FILE);
    let output = sinew(dir.path(), &["profile", "check", "--json", "--strict"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answer = answer(&output);
    assert_eq!(answer["ok"], true);
    for empty in ["mistakes", "rules", "warnings"] {
        assert_eq!(answer[empty], json!([]), "{empty}");
    }
    let names: Vec<_> = answer["profiles"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["large", "red", "default"]);
    assert_eq!(
        answer["profiles"][0]["matches"],
        json!(["metadata size = large", "agent = agent_1, tenant = red"])
    );
    assert_eq!(answer["profiles"][0]["image_found"], Value::Null);
    let text = stdout(&sinew(dir.path(), &["profile", "check"]));
    assert!(text.contains("profile check: ok\n") && text.contains("tenant = red"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "it changed something");
}

#[test]
fn rules_that_never_decide_are_warnings_and_strict_makes_them_count() {
    let more = "[[profile]]\nname = \"late\"\n[[profile.match]]\nagent = \"a\"\ntenant = \"red\"\n\
                [[profile.match]]\nenvironment = \"env1\"\n";
    let dir = installation(&format!("{FILE}{more}"));
    let output = sinew(dir.path(), &["profile", "check", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answer = answer(&output);
    let rules = answer["rules"].as_array().unwrap();
    let short: Vec<Value> =
        rules.iter().map(|rule| json!([rule["kind"], rule["profile"], rule["match"]])).collect();
    assert_eq!(
        short,
        [
            json!(["unreachable", "late", 1]),
            json!(["unused", "late", 2]),
            json!(["unused", "late", null]),
        ]
    );
    assert_eq!(rules[0]["line"], 26);
    assert_eq!(rules[1]["fix"], "did you mean `env_1`?");
    assert_eq!(answer["warnings"], json!([]), "each is said once");

    let strict = sinew(dir.path(), &["profile", "check", "--strict"]);
    assert_eq!(strict.status.code(), Some(1));
    let text = stdout(&strict);
    assert!(text.contains("sinew.toml:26:1: profile `late`, match 1 never decides"), "{text}");
    assert!(text.contains("profile check: ok, with 3 warnings"), "{text}");
}

#[test]
fn mistakes_are_all_told_as_text_and_as_json() {
    let dir = installation("[[profile]]\nname = \"a\"\nmemory = \"1 lot\"\ncolour = 1\n");
    let output = sinew(dir.path(), &["profile", "check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the configuration has 2 mistakes"), "{}", stderr(&output));
    let output = sinew(dir.path(), &["profile", "check", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let answer = answer(&output);
    assert_eq!((&answer["ok"], &answer["mistakes"][0]["line"]), (&json!(false), &json!(3)));
    assert_eq!(answer["mistakes"].as_array().unwrap().len(), 2);
    // Explaining needs rules that can be believed.
    assert_eq!(explain(dir.path(), &["--agent", "a"]).status.code(), Some(2));
}

#[test]
fn a_profile_whose_image_is_missing_is_named() {
    let dir = installation("[[profile]]\nname = \"odd\"\nimage = \"no-such-image\"\n");
    let cache = dir.path().join("images");
    std::fs::create_dir(&cache).unwrap();
    let output = sinew(dir.path(), &["profile", "check", "--json"]);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP a_profile_whose_image_is_missing_is_named: an image cache is root's");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let answer = answer(&output);
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["profiles"][0]["image_found"], false);
    let text = stdout(&sinew(dir.path(), &["profile", "check"]));
    let expected = "FAIL: profile `odd`: there is no image `no-such-image`";
    assert!(text.contains(expected) && text.contains("would not start"), "{text}");
}

#[test]
fn a_profile_that_asks_for_an_entrypoint_its_image_lacks_is_warned_of() {
    let name = "a_profile_that_asks_for_an_entrypoint_its_image_lacks_is_warned_of";
    let images = std::env::var("SINEW_IMAGES").unwrap_or("/var/cache/sinew/images".to_owned());
    let file = "[[profile]]\nname = \"odd\"\nimage = \"debian-minimal\"\nentrypoint = true\n";
    let dir = installation(file);
    let output = sinew(dir.path(), &["profile", "check", "--json", "--images", &images]);
    let answer = answer(&output);
    if answer["profiles"][0]["image_found"] != true {
        eprintln!("SKIP {name}: no image debian-minimal in {images}");
        return;
    }
    let warning = &answer["warnings"][0];
    let expected = "profile `odd` has `entrypoint = true`, and image `debian-minimal` names none";
    assert_eq!((&warning["what"], &warning["line"]), (&expected.into(), &1.into()), "{answer}");
}

#[test]
fn explaining_names_what_speaks_against_each_rule() {
    let dir = installation(FILE);
    let args = ["--environment", "env_2", "--agent", "agent_2", "--meta", "team=red"];
    let output = explain(dir.path(), &[&args[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answer = answer(&output);
    assert_eq!(answer["facts"]["tenant"], "red", "from the metadata that the environment names");
    assert_eq!(answer["chosen"], json!({"profile": "red", "by": "profile `red`, match 1"}));
    assert_eq!((&answer["session"], &answer["recorded"]), (&Value::Null, &Value::Null));
    let outcomes: Vec<_> =
        answer["profiles"].as_array().unwrap().iter().map(|p| &p["outcome"]).collect();
    assert_eq!(outcomes, ["no_match", "chosen", "late"]);
    let large = &answer["profiles"][0]["matches"];
    assert_eq!(
        large[0]["misses"],
        json!([{"what": "metadata", "key": "size", "wanted": "large", "is": null}])
    );
    assert_eq!(
        large[1]["misses"],
        json!([{"what": "agent", "key": null, "wanted": "agent_1", "is": "agent_2"}])
    );
    let text = stdout(&explain(dir.path(), &args));
    for expected in [
        "match 1 (line 14) no: there is no metadata `size`; it must be `large`",
        "match 2 (line 16) no: agent is `agent_2`, not `agent_1`",
        "profile red (line 20): chosen",
        "profile default: would hold, but one before it was chosen",
        "the session gets profile `red`",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn which_environment_is_asked_only_where_it_matters() {
    let dir = installation(FILE);
    let output = explain(dir.path(), &["--agent", "a"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--environment (env_1, env_2)"), "{}", stderr(&output));
    let one = installation("[[environment]]\nid = \"env_1\"\nkey_env = \"K\"\ntenant = \"blue\"\n");
    let output = explain(one.path(), &["--agent", "a", "--json"]);
    assert_eq!(answer(&output)["facts"]["tenant"], "blue", "{}", stderr(&output));
    // A tenant that such sessions cannot have is explained, and said to be impossible.
    let output = explain(one.path(), &["--tenant", "red", "--json"]);
    let notes = answer(&output)["notes"].to_string();
    assert!(notes.contains("is of tenant `blue`, not `red`"), "{notes}");
}

#[test]
fn what_a_flag_holds_cannot_steer_the_terminal() {
    let dir = installation(FILE);
    let bad = "x=\u{1b}[2J";
    let text = stdout(&explain(dir.path(), &["--environment", "env_1", "--meta", bad]));
    assert!(text.contains("x = ") && !text.contains('\u{1b}'), "{text:?}");
}
