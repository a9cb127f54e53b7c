//! The golden transcript against `sinew serve`: every recorded scenario is an environment of one
//! process, served at the same time, in real sandboxes. `e2e/golden/scenarios.toml` says what each
//! holds us to; a scenario without a check here fails the run.

mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use replay::{Kind, Replay, Seen};
use testkit::{Installation, Options, can_run_sandboxes};

const TRANSCRIPT: &str = include_str!("../../golden/transcript.jsonl");
const SCENARIOS: &str = include_str!("../../golden/scenarios.toml");
const KEY: &str = "sk-ant-oat01-golden";
/// What the recorded secrets hold.
const TOKEN: &str = "Bearer sk-ant-sesstok-FAKE";
/// The longest recorded scenario takes 13 s at its own pace; the machine may be busy.
const WAIT: Duration = Duration::from_secs(90);

/// Scenarios that end the whole process: each has a test of its own.
const ALONE: [&str; 2] = ["poll_401", "cancel_mid_tool"];

#[derive(serde::Deserialize)]
struct Entry {
    verdict: String,
}

fn entries() -> BTreeMap<String, Entry> {
    toml::from_str(SCENARIOS).expect("the list of scenarios")
}

/// What one scenario must have shown. `Err` says what is missing, and is asked again until the
/// time is over.
type Check = fn(&[Seen]) -> Result<(), String>;

const CHECKS: [(&str, Check); 22] = [
    ("recovery_history", recovery_history),
    ("parallel_and_permissions", parallel_and_permissions),
    ("ordering", ordering),
    ("no_secret_env_key_only", no_secret),
    ("terminated_session", nothing_runs),
    ("healthcheck_item", healthcheck),
    ("status_terminated", status_terminated),
    ("lease_lost_412", lease_lost),
    ("stopping_by_operator", stopping),
    ("heartbeat_404", heartbeat_404),
    ("send_409_400_503", sends),
    ("sse_reconnect", sse_reconnect),
    ("duplicate_event_and_sse_error", duplicates),
    ("sse_event_name_type", one_answer),
    ("sse_event_name_none", one_answer),
    ("interrupt_while_tool_runs", interrupt),
    ("unknown_events", unknown_events),
    ("minimal_session_object", one_answer),
    ("empty_poll_204", goes_on_polling),
    ("ack_404", ack_404),
    ("ack_409", ack_409),
    ("poll_429", goes_on_polling),
];

#[test]
fn the_list_of_scenarios_is_complete() {
    let recorded: BTreeSet<String> = Replay::load(TRANSCRIPT).scenarios().into_iter().collect();
    let listed: BTreeSet<String> = entries()
        .into_iter()
        .filter(|(_, e)| e.verdict != "not-run")
        .map(|(name, _)| name)
        .collect();
    assert_eq!(recorded, listed, "the transcript and the list name the same scenarios");
    let checked: BTreeSet<String> =
        CHECKS.iter().map(|(name, _)| *name).chain(ALONE).map(str::to_owned).collect();
    assert_eq!(listed, checked, "every scenario that is run has a check");
}

#[tokio::test]
async fn serve_replays_the_recorded_scenarios() {
    let Some(images) = can_run_sandboxes("serve_replays_the_recorded_scenarios") else { return };
    let replay = Replay::load(TRANSCRIPT);
    let port = replay.listen().await.unwrap();
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    let world = World::start(&images, port, &names);
    let began = Instant::now();
    let mut open: Vec<(&str, Check)> = CHECKS.to_vec();
    let mut last = BTreeMap::new();
    while !open.is_empty() && began.elapsed() < WAIT {
        open.retain(|(name, check)| match check(&replay.seen(name)) {
            Ok(()) => false,
            Err(why) => {
                last.insert(*name, why);
                true
            }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let failed: Vec<String> = open
        .iter()
        .map(|(name, _)| format!("{name}: {}\n{}", last[name], listing(&replay.seen(name))))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));

    // What must not happen may still happen later: each is looked at again at the end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (name, check) in CHECKS {
        let seen = replay.seen(name);
        if let Err(why) = check(&seen) {
            panic!("{name}, looked at again: {why}\n{}", listing(&seen));
        }
        credentials(name, &seen);
    }
    drop(world);
}

/// The environment's key is refused: the process ends, and says why.
#[tokio::test]
async fn a_refused_key_ends_serve() {
    let Some(images) = can_run_sandboxes("a_refused_key_ends_serve") else { return };
    let replay = Replay::load(TRANSCRIPT);
    let port = replay.listen().await.unwrap();
    let mut world = World::start(&images, port, &["poll_401"]);
    let status = tokio::task::spawn_blocking(move || world.serve.wait()).await.unwrap().unwrap();
    assert!(!status.success());
    assert_eq!(replay.seen("poll_401").iter().filter(|seen| seen.kind == Kind::Poll).count(), 1);
}

/// SIGTERM in the middle of a call: it is finished and posted, and the item is not stopped, because
/// the turn goes on.
#[tokio::test]
async fn a_shutdown_posts_the_running_call_and_leaves_the_item_to_its_lease() {
    let name = "a_shutdown_posts_the_running_call_and_leaves_the_item_to_its_lease";
    let Some(images) = can_run_sandboxes(name) else { return };
    let replay = Replay::load(TRANSCRIPT);
    let port = replay.listen().await.unwrap();
    let mut world = World::start(&images, port, &["cancel_mid_tool"]);
    let session = Replay::session_id("cancel_mid_tool");
    let began = Instant::now();
    loop {
        let log = world.installation.sinew(&["session", "log", &session, "--json"]);
        if String::from_utf8_lossy(&log.stdout).contains("call_started") {
            break;
        }
        assert!(began.elapsed() < WAIT, "the call did not start");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.terminate();
    let status = tokio::task::spawn_blocking(move || {
        let status = world.serve.wait();
        drop(world);
        status
    });
    assert!(status.await.unwrap().unwrap().success());
    let seen = replay.seen("cancel_mid_tool");
    let results = results(&seen);
    assert_eq!(results.len(), 1, "{}", listing(&seen));
    assert!(results[0].2.contains("finished-anyway"));
    assert_eq!(count(&seen, Kind::Stop), 0, "{}", listing(&seen));
}

// === the checks ===

fn recovery_history(seen: &[Seen]) -> Result<(), String> {
    answered_in_order(seen, &["sevt_h1", "sevt_h3", "sevt_h5", "sevt_h7"])?;
    let pages = seen.iter().filter(|s| s.kind == Kind::List && s.query.contains("page=")).count();
    expect(pages >= 4, "four more pages are listed")?;
    ended_with_stop(seen)
}

fn parallel_and_permissions(seen: &[Seen]) -> Result<(), String> {
    // 4 web_fetch, 5 denied, 6 ask, 7 unknown tool; 8 and 9 have wrong inputs and are answered.
    let id = |n: u32| format!("sevt_{n:024}");
    let ids: Vec<String> = results(seen).into_iter().map(|(id, ..)| id).collect();
    let must: Vec<String> = [1, 2, 3, 8, 9, 10].map(id).to_vec();
    let first: Vec<String> = ids.iter().take(must.len()).cloned().collect();
    expect(first == must, &format!("the calls in order, held ones left out: {ids:?}"))?;
    for never in [id(4), id(5), id(7)] {
        expect(!ids.contains(&never), &format!("{never} is left alone"))?;
    }
    let wrong = |n: u32| results(seen).iter().any(|(of, error, _)| *of == id(n) && *error);
    expect(wrong(8) && wrong(9), "wrong inputs are answered with an error")?;
    unique(&ids)
}

fn ordering(seen: &[Seen]) -> Result<(), String> {
    let ids: Vec<String> = results(seen).into_iter().map(|(id, ..)| id).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    expect(ids.len() >= 3 && ids == sorted, &format!("results in the order of events: {ids:?}"))?;
    unique(&ids)
}

fn no_secret(seen: &[Seen]) -> Result<(), String> {
    expect(!results(seen).is_empty(), "a result")?;
    let key = format!("Bearer {KEY}");
    expect(seen.iter().all(|s| s.authorization == key), "the environment key on every call")
}

fn nothing_runs(seen: &[Seen]) -> Result<(), String> {
    ended_with_stop(seen)?;
    expect(count(seen, Kind::Stream) == 0, "no stream is opened")?;
    expect(count(seen, Kind::Send) == 0, "nothing is posted")
}

fn healthcheck(seen: &[Seen]) -> Result<(), String> {
    expect(count(seen, Kind::Ack) == 1, "it is acknowledged")?;
    ended_with_stop(seen)?;
    expect(count(seen, Kind::Retrieve) == 0, "no session is asked for")
}

fn status_terminated(seen: &[Seen]) -> Result<(), String> {
    ended_with_stop(seen)?;
    answered_in_order(seen, &["sevt_000000000000000000000001"])
}

fn lease_lost(seen: &[Seen]) -> Result<(), String> {
    expect(count(seen, Kind::Heartbeat) >= 3, "the third beat is refused")?;
    expect(count(seen, Kind::Send) == 0, "nothing is posted after the loss")?;
    expect(count(seen, Kind::Stop) == 0, "the item is not stopped")
}

fn stopping(seen: &[Seen]) -> Result<(), String> {
    ended_with_stop(seen)?;
    expect(count(seen, Kind::Send) == 0, "the killed call is not posted")
}

fn heartbeat_404(seen: &[Seen]) -> Result<(), String> {
    ended_with_stop(seen)
}

fn sends(seen: &[Seen]) -> Result<(), String> {
    ended_with_stop(seen)?;
    let all = results(seen);
    let of = |n: u32| all.iter().filter(|(id, ..)| *id == format!("sevt_{n:024}")).count();
    expect(of(7) == 1, "the refused result is posted once and not computed again")?;
    let ids: BTreeSet<&String> = all.iter().map(|(id, ..)| id).collect();
    expect(ids.len() == 5, &format!("five calls are answered: {ids:?}"))?;
    // Between two posts of one result the history is read.
    let mut before: Option<&Seen> = None;
    for request in seen.iter().filter(|s| matches!(s.kind, Kind::Send | Kind::List)) {
        let repeated = before.is_some_and(|b| b.kind == Kind::Send && b.body == request.body);
        expect(request.kind != Kind::Send || !repeated, "no post is repeated blindly")?;
        before = Some(request);
    }
    Ok(())
}

fn sse_reconnect(seen: &[Seen]) -> Result<(), String> {
    answered_in_order(seen, &["sevt_gap"])?;
    expect(count(seen, Kind::Stream) >= 3, "it connects again after every end of the stream")?;
    ended_with_stop(seen)
}

fn duplicates(seen: &[Seen]) -> Result<(), String> {
    let ids = ["sevt_dup", "sevt_000000000000000000000002"];
    answered_in_order(seen, &ids)?;
    expect(count(seen, Kind::Stream) >= 2, "an error frame leads to a reconnect")?;
    ended_with_stop(seen)
}

fn one_answer(seen: &[Seen]) -> Result<(), String> {
    expect(results(seen).len() == 1, "one result")?;
    ended_with_stop(seen)
}

fn interrupt(seen: &[Seen]) -> Result<(), String> {
    let all = results(seen);
    expect(all.len() == 1, "one result")?;
    expect(all[0].1 && all[0].2.contains("cancelled by interrupt"), &format!("{all:?}"))?;
    ended_with_stop(seen)
}

fn unknown_events(seen: &[Seen]) -> Result<(), String> {
    answered_in_order(seen, &["sevt_000000000000000000000003"])?;
    ended_with_stop(seen)
}

fn goes_on_polling(seen: &[Seen]) -> Result<(), String> {
    expect(count(seen, Kind::Poll) >= 3, "polling goes on")
}

fn ack_404(seen: &[Seen]) -> Result<(), String> {
    expect(count(seen, Kind::Stop) == 1, "the item is stopped once")?;
    expect(count(seen, Kind::Heartbeat) == 0, "no lease is claimed")?;
    expect(count(seen, Kind::Poll) >= 2, "polling goes on")
}

fn ack_409(seen: &[Seen]) -> Result<(), String> {
    expect(count(seen, Kind::Ack) >= 2, "the request is tried again")?;
    expect(count(seen, Kind::Poll) >= 2, "polling goes on")
}

// === what the checks are made of ===

fn expect(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("expected: {what}")) }
}

fn count(seen: &[Seen], kind: Kind) -> usize {
    seen.iter().filter(|s| s.kind == kind).count()
}

fn results(seen: &[Seen]) -> Vec<(String, bool, String)> {
    seen.iter().filter(|s| s.kind == Kind::Send).flat_map(Seen::results).collect()
}

fn unique(ids: &[String]) -> Result<(), String> {
    let distinct: BTreeSet<_> = ids.iter().collect();
    expect(distinct.len() == ids.len(), &format!("one post for each call: {ids:?}"))
}

fn answered_in_order(seen: &[Seen], must: &[&str]) -> Result<(), String> {
    let ids: Vec<String> = results(seen).into_iter().map(|(id, ..)| id).collect();
    expect(ids == must, &format!("{must:?} are answered, in this order, once; got {ids:?}"))
}

/// The item is force-stopped once, and no beat follows.
fn ended_with_stop(seen: &[Seen]) -> Result<(), String> {
    let stops: Vec<usize> = (0..seen.len()).filter(|at| seen[*at].kind == Kind::Stop).collect();
    expect(stops.len() == 1, &format!("one stop, got {}", stops.len()))?;
    let last = stops[0];
    expect(seen[last].body.contains(r#""force":true"#), "the stop is forced")?;
    let later = seen[last..].iter().any(|s| s.kind == Kind::Heartbeat);
    expect(!later, "no beat follows the stop")
}

/// The protocol's table (§1.3): the key for poll and ack, the item's token for the rest.
fn credentials(name: &str, seen: &[Seen]) {
    let key = format!("Bearer {KEY}");
    for request in seen {
        let by_key = matches!(request.kind, Kind::Poll | Kind::Ack)
            || name == "no_secret_env_key_only"
            // A refused acknowledgement: there is no lease to use the token for.
            || (name == "ack_404" && request.kind == Kind::Stop);
        let must = if by_key { key.as_str() } else { TOKEN };
        assert_eq!(request.authorization, must, "{name}: {:?}", request.kind);
    }
}

fn listing(seen: &[Seen]) -> String {
    let line = |s: &Seen| format!("  {:?} {} {}", s.kind, s.query, s.body);
    seen.iter().map(line).collect::<Vec<_>>().join("\n")
}

// === the world ===

struct World {
    serve: Child,
    installation: Installation,
    _keys: tempfile::TempDir,
}

impl World {
    fn start(images: &Path, port: u16, names: &[&str]) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let key = keys.path().join("key");
        std::fs::write(&key, KEY).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut config = String::from("[limits]\nidle = \"1500ms\"\nshutdown_drain = \"10s\"\n");
        for name in names {
            config.push_str(&format!(
                "[[environment]]\nid = \"{}\"\nkey_file = \"{}\"\n\
                 base_url = \"http://127.0.0.1:{port}/{name}\"\n",
                Replay::environment_id(name),
                key.display(),
            ));
        }
        let installation =
            Installation::without_serve(images, Options { config, ..Options::default() });
        let mut command = installation.serve_command();
        let log = installation.data().parent().unwrap().join("serve.log");
        command.stderr(std::fs::File::create(log).unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut serve = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(serve.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "{line:?}\n{}", installation.log("serve.log"));
        Self { serve, installation, _keys: keys }
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.serve.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.serve.kill();
        let _ = self.serve.wait();
    }
}
