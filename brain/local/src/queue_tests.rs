//! The queue's rules, with a clock of the test's own.

use super::*;

struct World {
    queue: Queue,
    stamps: Stamps,
    timings: Timings,
    switches: Switches,
    at: Instant,
}

const ENV: &str = "env_1";

impl World {
    fn new() -> Self {
        let timings = Timings { lease_ttl: Duration::from_secs(10), ..Timings::default() };
        let (queue, stamps) = (Queue::default(), Stamps::default());
        Self { queue, stamps, timings, switches: Switches::default(), at: Instant::now() }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Queue, &mut Now<'_>) -> T) -> T {
        let mut now = Now {
            at: self.at,
            stamps: &mut self.stamps,
            timings: &self.timings,
            switches: &self.switches,
        };
        act(&mut self.queue, &mut now)
    }

    fn pass(&mut self, seconds: u64) {
        self.at += Duration::from_secs(seconds);
    }

    fn add(&mut self, session: &str) -> String {
        let new = NewItem { environment: ENV, data_type: "session", data_id: session };
        self.with(|queue, now| queue.add(new, now).unwrap().id.clone())
    }

    fn poll(&mut self) -> Option<String> {
        let poll = Poll { environment: ENV, worker: Some("w"), reclaim: None };
        self.with(|queue, now| queue.poll(&poll, now))
            .map(|item| item["id"].as_str().unwrap().to_owned())
    }

    fn ack(&mut self, id: &str) -> Result<Value, ApiError> {
        self.with(|queue, now| queue.ack(ENV, id, now))
    }

    fn beat(&mut self, id: &str, expected: &str) -> Result<Value, ApiError> {
        let beat = Beat { expected: Some(expected), desired_ttl: None };
        self.with(|queue, now| queue.heartbeat((ENV, id), &beat, now))
    }

    fn expire(&mut self) -> bool {
        self.with(|queue, now| queue.expire(now))
    }

    fn claimed(&mut self) -> (String, String) {
        let id = self.add("sesn_1");
        self.poll().unwrap();
        self.ack(&id).unwrap();
        let beat = self.beat(&id, NO_HEARTBEAT).unwrap();
        (id, beat["last_heartbeat"].as_str().unwrap().to_owned())
    }
}

#[test]
fn items_are_offered_in_order_and_once() {
    let mut world = World::new();
    let (first, second) = (world.add("a"), world.add("b"));
    assert_eq!(world.poll(), Some(first));
    assert_eq!(world.poll(), Some(second));
    assert_eq!(world.poll(), None);
}

#[test]
fn a_polled_item_is_offered_again_after_the_reclaim_time_unless_it_was_acknowledged() {
    let mut world = World::new();
    let id = world.add("a");
    world.poll().unwrap();
    world.pass(4);
    assert_eq!(world.poll(), None);
    world.pass(2);
    assert_eq!(world.poll(), Some(id.clone()));
    world.ack(&id).unwrap();
    world.pass(3600);
    assert_eq!(world.poll(), None);
}

#[test]
fn the_secret_is_in_the_poll_answer_only() {
    let mut world = World::new();
    let id = world.add("a");
    let poll = Poll { environment: ENV, worker: None, reclaim: None };
    let offered = world.with(|queue, now| queue.poll(&poll, now)).unwrap();
    let secret = offered["secret"].as_str().unwrap();
    assert!(!secret.contains('='));
    let json: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(secret).unwrap()).unwrap();
    let token = json["sessions_token"].as_str().unwrap().to_owned();
    assert_eq!(world.ack(&id).unwrap()["secret"], Value::Null);
    assert_eq!(world.queue.by_token(&token, &world.switches).unwrap().id, id);
}

#[test]
fn beats_must_name_the_last_one() {
    let mut world = World::new();
    let (id, first) = world.claimed();
    let second = world.beat(&id, &first).unwrap();
    assert_eq!((&second["state"], &second["lease_extended"]), (&json!("active"), &json!(true)));
    for stale in [first.as_str(), NO_HEARTBEAT] {
        let error = world.beat(&id, stale).unwrap_err();
        assert_eq!(error.status.as_u16(), 412);
        let details = error.details.unwrap();
        assert_eq!(details["error_code"], "heartbeat_precondition_failed");
        assert_eq!(details["current_state"]["last_heartbeat"], second["last_heartbeat"]);
    }
}

#[test]
fn a_lease_that_nobody_beats_for_goes_back_to_the_queue_and_the_old_worker_gets_412() {
    let mut world = World::new();
    let (id, last) = world.claimed();
    world.pass(9);
    assert!(!world.expire());
    let expiry = world.queue.next_expiry(&world.switches);
    assert_eq!(expiry, Some(world.at + Duration::from_secs(1)));
    world.pass(1);
    assert!(world.expire());
    let error = world.beat(&id, &last).unwrap_err();
    assert_eq!(error.details.unwrap()["current_state"]["last_heartbeat"], Value::Null);
    assert_eq!(world.poll(), Some(id.clone()));
    world.ack(&id).unwrap();
    assert_eq!(world.beat(&id, &last).unwrap_err().status.as_u16(), 412);
    assert!(world.beat(&id, NO_HEARTBEAT).is_ok());
}

#[test]
fn an_acknowledged_item_without_a_beat_is_given_back_only_by_the_switch() {
    let mut world = World::new();
    let id = world.add("a");
    world.poll();
    world.ack(&id).unwrap();
    world.pass(3600);
    assert!(!world.expire());
    world.switches.requeue_unbeaten = true;
    assert!(world.expire());
    assert_eq!(world.poll(), Some(id));
}

#[test]
fn a_polite_stop_is_told_with_the_next_beat_and_confirmed_by_force() {
    let mut world = World::new();
    let (id, last) = world.claimed();
    let stopping = world.with(|queue, now| queue.stop((ENV, &id), false, now)).unwrap();
    assert_eq!(stopping["state"], "stopping");
    let beat = world.beat(&id, "anything at all").unwrap();
    assert_eq!((&beat["state"], &beat["lease_extended"]), (&json!("stopping"), &json!(false)));
    assert_eq!(beat["last_heartbeat"], last.as_str());
    let stopped = world.with(|queue, now| queue.stop((ENV, &id), true, now)).unwrap();
    assert_eq!(stopped["state"], "stopped");
    let again = world.with(|queue, now| queue.stop((ENV, &id), true, now)).unwrap_err();
    assert_eq!(again.status.as_u16(), 409);
    assert!(world.queue.live_item("sesn_1").is_none());
}

#[test]
fn a_stop_that_nobody_confirms_ends_by_itself_and_never_goes_back_to_the_queue() {
    let mut world = World::new();
    let (id, _) = world.claimed();
    world.with(|queue, now| queue.stop((ENV, &id), false, now)).unwrap();
    world.pass(60);
    world.expire();
    assert_eq!(world.queue.get(ENV, &id).unwrap().phase.name(), "stopping");
    world.pass(60);
    assert!(!world.expire());
    assert_eq!(world.queue.get(ENV, &id).unwrap().phase, Phase::Stopped);
}

#[test]
fn a_replayed_ack_changes_nothing_and_one_of_an_active_item_is_a_conflict() {
    let mut world = World::new();
    let id = world.add("a");
    world.poll();
    let first = world.ack(&id).unwrap();
    assert_eq!(world.ack(&id).unwrap(), first);
    world.beat(&id, NO_HEARTBEAT).unwrap();
    assert_eq!(world.ack(&id).unwrap_err().status.as_u16(), 409);
    assert_eq!(world.ack("work_none").unwrap_err().status.as_u16(), 404);
}

#[test]
fn statistics_count_what_can_be_claimed_and_what_is_only_polled() {
    let mut world = World::new();
    world.add("a");
    world.add("b");
    world.poll();
    let stats = world.with(|queue, now| queue.stats(ENV, now));
    assert_eq!((&stats["depth"], &stats["pending"]), (&json!(1), &json!(1)));
    assert_eq!(stats["workers_polling"], 1);
    world.pass(31);
    let stats = world.with(|queue, now| queue.stats(ENV, now));
    assert_eq!((&stats["depth"], &stats["workers_polling"]), (&json!(2), &json!(0)));
}

#[test]
fn a_token_ends_with_its_item_when_the_switch_says_so() {
    let mut world = World::new();
    let (id, _) = world.claimed();
    let token = world.queue.get(ENV, &id).unwrap().token.clone().unwrap();
    world.with(|queue, now| queue.stop((ENV, &id), true, now)).unwrap();
    assert!(world.queue.by_token(&token, &world.switches).is_some());
    world.switches.tokens_end_with_item = true;
    assert!(world.queue.by_token(&token, &world.switches).is_none());
}

#[test]
fn a_requeued_item_gets_a_new_token_when_tokens_end_with_items() {
    let mut world = World::new();
    world.switches.tokens_end_with_item = true;
    let (id, _) = world.claimed();
    let old = world.queue.get(ENV, &id).unwrap().token.clone().unwrap();
    world.with(|queue, now| queue.expire_now("sesn_1", now));
    let new = world.queue.get(ENV, &id).unwrap().token.clone().unwrap();
    assert!(world.queue.by_token(&old, &world.switches).is_none());
    assert_eq!(world.queue.by_token(&new, &world.switches).unwrap().id, id);
}
