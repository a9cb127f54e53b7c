//! The service as its clients see it: well-behaved ones, old ones and hostile ones.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use base_types::{Epoch, SandboxId};
use sandbox_api::{CreateError, DriverError, RestoredFrom, SandboxDriver, SandboxSpec, Vitality};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::LauncherDriver;
use crate::server::{Server, ServerSettings};
use crate::testing::{Installation, SERVE_UID, first, next};
use crate::wire::{ANSWER_BYTES_MAX, Leave, read_frame, write_frame};

const LONG: Duration = Duration::from_secs(20);

struct Service {
    server: Arc<Server>,
    exit: mpsc::UnboundedReceiver<()>,
}

/// A launcher that listens, on a thread of this process.
fn serve(place: &Installation) -> Service {
    let (sandboxes, _, jobs) = place.launch().unwrap();
    let (exit, asked) = mpsc::unbounded_channel();
    let settings = ServerSettings { layout: place.layout(), serve_uid: SERVE_UID, exit };
    let server = Server::new(sandboxes, jobs, settings);
    let listener = place.layout().bind(SERVE_UID).unwrap();
    let accepting = server.clone();
    std::thread::spawn(move || accepting.accept(&listener));
    Service { server, exit: asked }
}

fn data(place: &Installation) -> std::path::PathBuf {
    place.dir.path().join("data")
}

/// A client that writes whatever it wants.
struct Raw(UnixStream);

impl Raw {
    fn connect(place: &Installation) -> Self {
        let stream = place.layout().connect().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    fn serving(place: &Installation) -> Self {
        let mut raw = Self::connect(place);
        let hello = raw.ask(&hello(1, 1, json!({"as": "serve"})));
        assert_eq!(hello["answer"], "hello", "{hello}");
        raw
    }

    fn ask(&mut self, request: &Value) -> Value {
        write_frame(&mut self.0, request.to_string().as_bytes()).unwrap();
        self.answer()
    }

    fn answer(&mut self) -> Value {
        let body = read_frame(&mut self.0, ANSWER_BYTES_MAX).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 64]), Ok(0) | Err(_))
    }
}

fn hello(min: u32, version: u32, role: Value) -> Value {
    json!({"id": 1, "ask": "hello", "version_min": min, "version": version, "role": role})
}

fn because(answer: &Value) -> &str {
    answer["refusal"]["because"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_does_what_the_launcher_offers() {
    let Some(place) = Installation::new("the_driver_does_what_the_launcher_offers") else { return };
    let _service = serve(&place);
    let driver = LauncherDriver::connect(&data(&place)).await.unwrap();
    assert_eq!(driver.image("default").await.unwrap().id.as_str(), "image");
    let error = driver.image("other").await.unwrap_err();
    assert!(matches!(error, DriverError::NoSuchImage(name) if name == "other"));

    let spec = first();
    let lost = SandboxSpec { volume_exists: true, ..spec.clone() };
    let error = driver.create(&lost).await.unwrap_err();
    assert!(matches!(error, CreateError::VolumeGone(volume) if volume == spec.volume));
    assert_eq!(driver.create(&spec).await.unwrap().restored_from, RestoredFrom::Nothing);
    let ended = driver.ended(&spec.sandbox, spec.epoch);
    tokio::pin!(ended);
    assert!(futures::poll!(&mut ended).is_pending());
    assert_eq!(driver.create(&next(&spec)).await.unwrap().restored_from, RestoredFrom::SameVolume);
    let vitality = timeout(LONG, ended).await.unwrap().unwrap();
    assert!(matches!(vitality, Vitality::Stopped { epoch: Epoch(1), .. }), "{vitality:?}");
    let error = driver.create(&spec).await.unwrap_err();
    assert!(matches!(error, CreateError::OlderEpoch { running: Epoch(2), .. }), "{error}");

    assert_eq!(driver.list().await.unwrap().len(), 1);
    driver.stop(&spec.sandbox).await.unwrap();
    driver.destroy(&spec.sandbox, &spec.volume).await.unwrap();
    assert_eq!(driver.status(&spec.sandbox).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_given_up_costs_nothing_and_can_be_taken_up_again() {
    let name = "a_wait_that_is_given_up_costs_nothing_and_can_be_taken_up_again";
    let Some(place) = Installation::new(name) else { return };
    let _service = serve(&place);
    let driver = LauncherDriver::connect(&data(&place)).await.unwrap();
    let spec = first();
    driver.create(&spec).await.unwrap();
    for _ in 0..100 {
        let ended = driver.ended(&spec.sandbox, spec.epoch);
        assert!(timeout(Duration::from_millis(1), ended).await.is_err());
    }
    place.world.end(&spec.sandbox);
    let vitality = timeout(LONG, driver.ended(&spec.sandbox, spec.epoch)).await.unwrap().unwrap();
    assert!(matches!(vitality, Vitality::Stopped { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_serve_takes_over_and_the_old_one_is_told() {
    let name = "a_new_serve_takes_over_and_the_old_one_is_told";
    let Some(place) = Installation::new(name) else { return };
    let _service = serve(&place);
    let old = LauncherDriver::connect(&data(&place)).await.unwrap();
    let spec = first();
    old.create(&spec).await.unwrap();
    let observer = LauncherDriver::observe(&data(&place)).await.unwrap();
    old.list().await.expect("an observer takes nothing over");

    let new = LauncherDriver::connect(&data(&place)).await.unwrap();
    let again = new.create(&spec).await.unwrap();
    assert_eq!(again.restored_from, RestoredFrom::StillRunning, "it is re-attached");
    for _ in 0..2 {
        let error = old.list().await.unwrap_err();
        assert!(matches!(error, DriverError::Superseded { theirs: 2 }), "{error}");
    }
    let error = old.create(&first()).await.unwrap_err();
    let superseded = matches!(error, CreateError::Driver(DriverError::Superseded { theirs: 2 }));
    assert!(superseded, "{error}");
    let error = observer.create(&first()).await.unwrap_err();
    assert!(error.to_string().contains("an observer changes nothing"), "{error}");
    assert_eq!(new.list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_strangers_come_to_nothing() {
    let Some(place) = Installation::new("requests_of_strangers_come_to_nothing") else { return };
    let _service = serve(&place);
    // Nothing before hello, and hello only once.
    let mut raw = Raw::connect(&place);
    assert_eq!(because(&raw.ask(&json!({"id": 1, "ask": "list", "after": null}))), "bad");
    assert_eq!(because(&raw.ask(&hello(7, 9, json!({"as": "serve"})))), "version");
    assert_eq!(raw.ask(&hello(1, 9, json!({"as": "serve"})))["version"], 1);
    assert_eq!(because(&raw.ask(&hello(1, 1, json!({"as": "serve"})))), "bad");
    // An id is an id; a request has the shape of one.
    let ids = ["../../../etc/passwd", "/etc", "", "sbx_../x", "sbx_\u{0}"];
    for id in ids {
        for ask in ["stop", "status"] {
            assert_eq!(because(&raw.ask(&json!({"id": 2, "ask": ask, "sandbox": id}))), "bad");
        }
        let request = json!({"id": 2, "ask": "destroy", "volume": id,
            "sandbox": SandboxId::generate()});
        assert_eq!(because(&raw.ask(&request)), "bad");
        let request = json!({"id": 2, "ask": "watch_ended", "sandbox": id, "epoch": 1});
        assert_eq!(because(&raw.ask(&request)), "bad");
    }
    assert_eq!(because(&raw.ask(&json!({"id": 3, "ask": "mount", "path": "/etc"}))), "bad");
    assert_eq!(because(&raw.ask(&json!({"id": 3, "ask": "create", "spec": {"root": "/"}}))), "bad");
    assert_eq!(because(&raw.ask(&json!({"id": 3, "ask": "stop", "sandbox": 7}))), "bad");
    // What has no number cannot be answered.
    write_frame(&mut raw.0, b"\xff\xfe").unwrap();
    assert!(raw.is_closed());

    // A frame of 4 GiB is not waited for.
    let mut raw = Raw::serving(&place);
    raw.0.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert!(raw.is_closed());
    let driver = LauncherDriver::connect(&data(&place)).await.unwrap();
    assert_eq!(driver.list().await.unwrap(), []);
}

/// Clients that hang do not keep others out, and the newest are served.
#[tokio::test(flavor = "multi_thread")]
async fn hanging_clients_keep_nobody_out() {
    let Some(place) = Installation::new("hanging_clients_keep_nobody_out") else { return };
    let _service = serve(&place);
    let _hanging: Vec<_> = (0..100).map(|_| Raw::connect(&place)).collect();
    let driver = timeout(LONG, LauncherDriver::connect(&data(&place))).await.unwrap().unwrap();
    assert_eq!(driver.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_leaves_what_it_is_told_to() {
    let Some(place) = Installation::new("a_shutdown_leaves_what_it_is_told_to") else { return };
    let mut service = serve(&place);
    let mut raw = Raw::serving(&place);
    let (one, two) = (first(), first());
    for spec in [&one, &two] {
        let created = raw.ask(&json!({"id": 5, "ask": "create", "spec": spec}));
        assert_eq!(created["answer"], "created", "{created}");
    }
    let done = raw.ask(&json!({"id": 6, "ask": "shutdown", "leave": Leave::Nothing}));
    assert_eq!(done["answer"], "done", "{done}");
    timeout(LONG, service.exit.recv()).await.unwrap().expect("the launcher is told to exit");
    assert!(crate::lock(&place.world.volumes).is_empty());
    assert!(crate::lock(&place.world.processes).is_empty());
    let refused = raw.ask(&json!({"id": 7, "ask": "create", "spec": first()}));
    assert_eq!(because(&refused), "shutting_down");
    service.server.leave();
}
