//! Another version on the other side: what the first release said is still answered, by a launcher
//! whose sandbox runs all the while.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use base_types::{Epoch, SandboxId, VolumeId};
use sandbox_api::SandboxDriver;
use sandbox_api::contract::Place;
use sandbox_launcher::wire::{ANSWER_BYTES_MAX, read_frame, write_frame};
use sandbox_launcher::{LauncherDriver, Layout};
use serde_json::Value;

use crate::place::Launcher;
use crate::process::say;

const LONG: Duration = Duration::from_secs(60);
const VERSION_1: &str = include_str!("../../../../sandbox/launcher/golden/version-1.jsonl");

/// A client of the first release: it sends what that one sent.
struct Old {
    stream: UnixStream,
    /// What stands in the recording, and what it is here.
    names: Vec<(String, String)>,
}

impl Old {
    fn connect(launcher: &Launcher, names: &[(String, String)]) -> Self {
        let stream = Layout::at(&launcher.data()).connect().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self { stream, names: names.to_vec() }
    }

    fn send(&mut self, frame: &Value) {
        let mut text = frame.to_string();
        for (recorded, here) in &self.names {
            text = text.replace(recorded, here);
        }
        write_frame(&mut self.stream, text.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> Value {
        serde_json::from_slice(&read_frame(&mut self.stream, ANSWER_BYTES_MAX).unwrap()).unwrap()
    }
}

/// The same keys and words; ids, numbers and reasons differ.
fn has_shape(answer: &Value, recorded: &Value) -> bool {
    match (answer, recorded) {
        (Value::Object(answer), Value::Object(recorded)) => recorded.iter().all(|(name, value)| {
            let Some(found) = answer.get(name) else { return false };
            match name.as_str() {
                "id" | "answer" | "because" | "restored_from" | "state" | "more" => found == value,
                "why" => found.is_string() || found.is_null(),
                _ => has_shape(found, value),
            }
        }),
        (Value::Array(answer), Value::Array(recorded)) => {
            answer.len() == recorded.len()
                && answer.iter().zip(recorded).all(|(a, r)| has_shape(a, r))
        }
        // A figure may be known now that was not then, and the other way round.
        (Value::Number(_) | Value::Null, Value::Number(_) | Value::Null) => true,
        (answer, recorded) => std::mem::discriminant(answer) == std::mem::discriminant(recorded),
    }
}

/// The first connection of the recording: hello, start, look, wait, stop.
fn first_connection() -> Vec<(bool, Value)> {
    let lines = VERSION_1.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["to"] == "launcher", line["frame"].clone())
    });
    let is_next =
        |(to_launcher, frame): &(bool, Value)| *to_launcher && frame["role"]["as"] == "resume";
    lines.take_while(|line| !is_next(line)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_first_version_is_answered_and_its_sandbox_is_reached() {
    let test = "a_client_of_the_first_version_is_answered_and_its_sandbox_is_reached";
    let Some(mut launcher) = Launcher::start(test).await else { return };
    let observer = LauncherDriver::observe(&launcher.data()).await.unwrap();
    let image = observer.image(launcher.image()).await.unwrap().id;
    let script = first_connection();
    let created = |frame: &Value| frame["spec"]["image"].as_str().map(str::to_owned);
    let recorded_image = script.iter().find_map(|(_, frame)| created(frame)).unwrap();
    // All sandboxes of the recording differ in the last digit only.
    let (sandbox, volume) = (SandboxId::generate(), VolumeId::generate());
    let stem = |id: &str| id[..id.len() - 1].to_owned();
    let names = [
        ("sbx_0190a5f2c3d47e8f9a0b1c2d3e4f5a6".to_owned(), stem(sandbox.as_str())),
        ("vol_0190a5f2c3d47e8f9a0b1c2d3e4f5a6".to_owned(), stem(volume.as_str())),
        (recorded_image, image.to_string()),
    ];
    let sandbox = SandboxId::parse(&format!("{}b", names[0].1)).unwrap();
    let mut old = Old::connect(&launcher, &names);
    let mut reached = None;
    for (to_launcher, frame) in &script {
        if *to_launcher && frame["ask"] == "stop" {
            // It is stopped next: until then a restart of the launcher changes nothing for it.
            let guest = observer.connect(&sandbox, Epoch::FIRST).await.unwrap();
            say(&guest, "kept=in_the_shell").await;
            launcher.terminate();
            launcher.launch();
            assert_eq!(say(&guest, "echo $kept").await, "in_the_shell");
            reached = Some(guest);
            old = resume(&launcher, &names);
        }
        match to_launcher {
            true => old.send(frame),
            false => {
                let answer = old.hear();
                assert!(has_shape(&answer, frame), "{frame} became {answer}");
            }
        }
    }
    assert!(reached.is_some(), "the recording has a stop");
}

/// The same `serve` after the launcher was replaced; it waits for the end of its sandbox again.
fn resume(launcher: &Launcher, names: &[(String, String)]) -> Old {
    let mut old = Old::connect(launcher, names);
    old.send(&serde_json::json!({"id": 1, "ask": "hello", "version_min": 1, "version": 1,
        "role": {"as": "resume", "generation": 1}}));
    let hello = old.hear();
    assert_eq!((&hello["answer"], &hello["version"]), (&"hello".into(), &1.into()), "{hello}");
    old.send(&serde_json::json!({"id": 10, "ask": "watch_ended", "epoch": 1,
        "sandbox": "sbx_0190a5f2c3d47e8f9a0b1c2d3e4f5a6b"}));
    old
}
