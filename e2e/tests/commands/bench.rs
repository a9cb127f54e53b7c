//! `sinew bench` as programs read it.

use std::process::{Command, Stdio};

use testkit::{can_run_sandboxes, sinew_binary};

#[test]
fn a_report_is_one_line_of_json_with_the_documented_keys() {
    let name = "a_report_is_one_line_of_json_with_the_documented_keys";
    let Some(images) = can_run_sandboxes(name) else { return };
    let output = Command::new(sinew_binary())
        .args(["bench", "exec", "--json", "--images"])
        .arg(images)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["bench"], "exec");
    assert!(report["machine"]["cpus"].as_u64().unwrap() > 0);
    let results = report["results"].as_array().unwrap();
    assert!(!results.is_empty());
    for result in results {
        assert!(result["n"].as_u64().unwrap() >= 300, "{result}");
        let figure = |key: &str| result[key].as_f64().unwrap();
        assert!(figure("p50") > 0.0 && figure("p50") <= figure("p90"), "{result}");
        assert!(figure("p90") <= figure("p99") && figure("p99") <= figure("max"), "{result}");
    }
    for goal in report["goals"].as_array().unwrap() {
        let met = goal["measured"].as_f64().unwrap() <= goal["limit"].as_f64().unwrap();
        assert_eq!(goal["met"], met, "{goal}");
    }
}
