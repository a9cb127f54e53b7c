//! The work queue: poll, ack, heartbeat, stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base_types::{EnvironmentId, Secret, SessionId, WorkId};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use brain_api::{
    BrainError, BrainErrorKind, ExpectedBeat, Heartbeat, ItemToken, WorkItem, WorkState,
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use zeroize::Zeroizing;

use crate::answer::{garbage, printable};
use crate::client::{Call, Client, Rules};
use crate::config::{bearer, fits_a_path};
use crate::fields::{Fields, body_text};

/// The most the brain allows: it holds an empty poll for this long.
const BLOCK_MS: &str = "999";
/// A work item is under 2 KiB; its `secret` and metadata may grow.
const WORK_BYTES_MAX: usize = 1024 * 1024;
/// The envelope of a token; those seen are under 1 KiB.
const SECRET_BYTES_MAX: usize = 64 * 1024;
/// A heartbeat string is stored with every beat.
const BEAT_BYTES_MAX: usize = 1024;
/// A lease longer than this would outlive every reason to hold it.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
const FORCE_STOP: &[u8] = br#"{"force":true}"#;

const POLL: &str = "poll for work";
const STATS: &str = "ask for the state of the queue";
const BEAT: &str = "send a heartbeat";

/// URL-safe base64, with or without padding and stray bits: a brain that adds either means the
/// same.
const ENVELOPE: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// One entry of the queue, and what speaks for it.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a> {
    pub environment: &'a EnvironmentId,
    pub work: &'a WorkId,
    pub token: Option<&'a ItemToken>,
}

pub(crate) async fn poll(
    client: &Client,
    environment: &EnvironmentId,
) -> Result<Option<WorkItem>, BrainError> {
    let mut url = client.url(&["v1", "environments", environment.as_str(), "work", "poll"]);
    url.query_pairs_mut().append_pair("block_ms", BLOCK_MS);
    if let Some(reclaim) = client.reclaim {
        let millis = reclaim.as_millis().to_string();
        url.query_pairs_mut().append_pair("reclaim_older_than_ms", &millis);
    }
    let mut headers = HeaderMap::new();
    headers.insert("anthropic-worker-id", client.worker_id.clone());
    let rules =
        Rules { attempt_timeout: client.timeouts.poll_attempt, ..client.rules(WORK_BYTES_MAX) };
    let call = Call {
        request: POLL,
        method: Method::GET,
        url,
        credential: client.key(),
        headers,
        body: Bytes::new(),
        rules,
        unanswered: None,
    };
    decode_work(&client.call(call).await?, environment)
}

pub(crate) async fn ack(
    client: &Client,
    environment: &EnvironmentId,
    work: &WorkId,
) -> Result<(), BrainError> {
    let item = Item { environment, work, token: None };
    let call = Call { credential: client.key(), ..post("ack a work item", client, item, "ack") };
    client.call(call).await.map(drop)
}

/// What the attempts to beat once came to.
pub(crate) struct Beaten {
    pub result: Result<Heartbeat, BrainError>,
    /// One of them may have arrived although it was not answered.
    pub unanswered: bool,
}

pub(crate) async fn heartbeat(client: &Client, item: Item<'_>, expected: &ExpectedBeat) -> Beaten {
    let credential = client.credential(item.token);
    let unanswered = AtomicBool::new(false);
    let mut call =
        Call { credential, unanswered: Some(&unanswered), ..post(BEAT, client, item, "heartbeat") };
    call.url.query_pairs_mut().append_pair(
        "expected_last_heartbeat",
        match expected {
            ExpectedBeat::None => "NO_HEARTBEAT",
            ExpectedBeat::Last(last) => last,
        },
    );
    call.rules = client.beat_rules(WORK_BYTES_MAX);
    let result = match client.call(call).await {
        Ok(body) => {
            let beat = decode_heartbeat(&body);
            // It arrived, and what the brain made of it we cannot read.
            unanswered.fetch_or(beat.is_err(), Ordering::Relaxed);
            beat
        }
        Err(error) if error.kind == (BrainErrorKind::Fatal { status: 412 }) => {
            Err(BrainError { kind: BrainErrorKind::LeaseLost, ..error })
        }
        Err(error) => Err(error),
    };
    Beaten { result, unanswered: unanswered.into_inner() }
}

pub(crate) async fn stop(client: &Client, item: Item<'_>) -> Result<(), BrainError> {
    let credential = client.credential(item.token);
    let mut call = Call { credential, ..post("stop a work item", client, item, "stop") };
    call.body = Bytes::from_static(FORCE_STOP);
    call.rules.settled = Some(StatusCode::CONFLICT);
    client.call(call).await.map(drop)
}

/// What the queue says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStats {
    /// Items that can be claimed.
    pub depth: u64,
    /// Items polled and not yet acknowledged.
    pub pending: u64,
    /// Workers seen in the last half minute, where the brain counts them.
    pub workers_polling: Option<u64>,
}

pub(crate) async fn stats(
    client: &Client,
    environment: &EnvironmentId,
) -> Result<QueueStats, BrainError> {
    let call = Call {
        request: STATS,
        method: Method::GET,
        url: client.url(&["v1", "environments", environment.as_str(), "work", "stats"]),
        credential: client.key(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        // Somebody waits at a terminal: one attempt, as long as a beat may take.
        rules: Rules { attempts: 1, ..client.beat_rules(WORK_BYTES_MAX) },
        unanswered: None,
    };
    let body = client.call(call).await?;
    let text = body_text(&body);
    let fields = Fields::parse(text.trim());
    let stats = fields.and_then(|fields| {
        Some(QueueStats {
            depth: fields.read("depth")?,
            pending: fields.read("pending").unwrap_or_default(),
            workers_polling: fields.read("workers_polling"),
        })
    });
    stats.ok_or_else(|| garbage(STATS, "the answer is not the state of a queue"))
}

fn post<'a>(request: &'static str, client: &'a Client, item: Item<'_>, action: &str) -> Call<'a> {
    let (environment, work) = (item.environment.as_str(), item.work.as_str());
    Call {
        request,
        method: Method::POST,
        url: client.url(&["v1", "environments", environment, "work", work, action]),
        credential: client.key(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        rules: client.rules(WORK_BYTES_MAX),
        unanswered: None,
    }
}

pub(crate) fn decode_work(
    body: &[u8],
    environment: &EnvironmentId,
) -> Result<Option<WorkItem>, BrainError> {
    let text = body_text(body);
    let text = text.trim();
    if text.is_empty() || text == "null" {
        return Ok(None);
    }
    let Some(fields) = Fields::parse(text) else {
        return Err(garbage(POLL, "the answer is not a work item"));
    };
    let Some(id) = fields.id("id").filter(|id| fits_a_path(id)) else {
        return Err(garbage(POLL, "the work item has no usable id"));
    };
    let id = WorkId::new(id);
    let data = fields.object("data");
    let word = |name| data.as_ref().and_then(|data| data.id(name));
    let data_type = word("type").map(|t| printable(&t, 64)).unwrap_or_default();
    let session = word("id").filter(|id| data_type == "session" && fits_a_path(id));
    if data_type == "session" && session.is_none() {
        tracing::warn!(work = %id, "a work item for a session names none that can be served");
    }
    // Which environment an item belongs to decides its tenant and policy: the configuration
    // says it, not the item.
    if let Some(other) = fields.id("environment_id").filter(|e| e != environment.as_str()) {
        tracing::warn!(work = %id, %environment, said = %printable(&other, 64),
            "a work item names another environment than the one it was polled from");
    }
    Ok(Some(WorkItem {
        token: token(&fields, &id),
        id,
        environment: environment.clone(),
        session: session.map(SessionId::new),
        data_type,
    }))
}

/// The item's token out of its envelope. An envelope that cannot be read leaves the environment
/// key, with a warning that names neither.
fn token(fields: &Fields<'_>, work: &WorkId) -> Option<ItemToken> {
    fields.raw("secret")?;
    let token = fields.text("secret").map(Zeroizing::new).and_then(|text| open_envelope(&text));
    if token.is_none() {
        tracing::warn!(%work, "the work item's credential cannot be read: using the environment key");
    }
    token
}

fn open_envelope(text: &str) -> Option<ItemToken> {
    if text.len() > SECRET_BYTES_MAX {
        return None;
    }
    let bytes = Zeroizing::new(ENVELOPE.decode(text.trim()).ok()?);
    let json = std::str::from_utf8(&bytes).ok()?;
    let token = Secret::new(Fields::parse(json)?.text("sessions_token")?);
    bearer(&token).is_some().then_some(ItemToken(token))
}

pub(crate) fn decode_heartbeat(body: &[u8]) -> Result<Heartbeat, BrainError> {
    let text = body_text(body);
    let Some(fields) = Fields::parse(text.trim()) else {
        return Err(garbage(BEAT, "the answer is not a heartbeat"));
    };
    let Some(last) = fields.text("last_heartbeat").filter(|last| last.len() <= BEAT_BYTES_MAX)
    else {
        return Err(garbage(BEAT, "the answer has no usable last_heartbeat"));
    };
    let state = match fields.text("state").unwrap_or_default().as_str() {
        "queued" => WorkState::Queued,
        "starting" => WorkState::Starting,
        "active" => WorkState::Active,
        "stopping" => WorkState::Stopping,
        "stopped" => WorkState::Stopped,
        other => WorkState::Other(printable(other, 64)),
    };
    let ttl = fields.read::<f64>("ttl_seconds").filter(|seconds| *seconds > 0.0);
    Ok(Heartbeat {
        last,
        // Only a brain that says so ends an item.
        extended: fields.read("lease_extended").unwrap_or(true),
        state,
        ttl: ttl.map(|s| Duration::try_from_secs_f64(s).unwrap_or(TTL_MAX).min(TTL_MAX)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(body: &str) -> Result<Option<WorkItem>, BrainError> {
        decode_work(body.as_bytes(), &EnvironmentId::new("env_1"))
    }

    fn item(body: &str) -> WorkItem {
        decode(body).unwrap().unwrap()
    }

    fn with_secret(secret: &str) -> Option<String> {
        let body =
            format!(r#"{{"id":"work_1","data":{{"type":"session","id":"s"}},"secret":{secret}}}"#);
        item(&body).token.map(|token| token.0.expose().to_owned())
    }

    #[test]
    fn an_empty_poll_has_many_forms_and_garbage_is_transient() {
        for empty in ["null", "", " \n", "\u{feff}null"] {
            assert!(decode(empty).unwrap().is_none(), "{empty:?}");
        }
        for bad in
            ["<html>", "[]", "7", "{}", "nullx", r#"{"id":".."}"#, r#"{"id":""}"#, r#"{"id":5}"#]
        {
            assert!(decode(bad).unwrap_err().is_transient(), "{bad}");
        }
        assert!(decode_work(b"\xff\xfe", &EnvironmentId::new("e")).unwrap_err().is_transient());
    }

    #[test]
    fn only_an_item_for_a_session_names_one() {
        let health = item(r#"{"id":"work_1","data":{"type":"healthcheck","id":"x"},"new":1}"#);
        assert_eq!((health.session, health.data_type.as_str()), (None, "healthcheck"));
        let later = item(r#"{"id":"work_1","data":[1]}"#);
        assert_eq!((later.session, later.data_type.as_str()), (None, ""));
        assert_eq!(item(r#"{"id":"w","data":{"type":"session","id":".."}}"#).session, None);
        let other = item(r#"{"id":"w","environment_id":"env_2","data":{}}"#);
        assert_eq!(other.environment.as_str(), "env_1");
    }

    #[test]
    fn the_token_comes_out_of_its_envelope_and_nothing_else_is_taken_for_one() {
        // {"sessions_token": "sk-ant-sesstok-FAKE"}, as recorded; and with padding.
        let recorded = "eyJzZXNzaW9uc190b2tlbiI6ICJzay1hbnQtc2Vzc3Rvay1GQUtFIn0";
        for secret in [recorded.to_owned(), format!("{recorded}=")] {
            assert_eq!(
                with_secret(&format!("\"{secret}\"")).as_deref(),
                Some("sk-ant-sesstok-FAKE")
            );
        }
        let encode = |json: &str| format!("\"{}\"", ENVELOPE.encode(json));
        for bad in [
            "null",
            "7",
            "\"\"",
            "\"not base64!\"",
            &encode("[]"),
            &encode(r#"{"sessions_token":""}"#),
            &encode(r#"{"sessions_token":7}"#),
            &encode(r#"{"sessions_token":"a\nb"}"#),
            &encode(r#"{"session_ingress_token":"x"}"#),
        ] {
            assert_eq!(with_secret(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_heartbeat_keeps_its_string_byte_for_byte() {
        let beat = |body: &str| decode_heartbeat(body.as_bytes());
        let full = beat(r#"{"type":"work_heartbeat","last_heartbeat":"2026-11-24T11:40:19.954111Z","lease_extended":true,"state":"active","ttl_seconds":4}"#).unwrap();
        assert_eq!(full.last, "2026-11-24T11:40:19.954111Z");
        assert_eq!((full.ttl, full.asks_to_stop()), (Some(Duration::from_secs(4)), false));
        for stop in [r#""state":"stopping""#, r#""state":"active","lease_extended":false"#] {
            assert!(beat(&format!(r#"{{"last_heartbeat":"x",{stop}}}"#)).unwrap().asks_to_stop());
        }
        for ttl in ["0", "-1", "\"4\"", "null", "[]"] {
            let body = format!(r#"{{"last_heartbeat":"x","state":"later","ttl_seconds":{ttl}}}"#);
            let beat = beat(&body).unwrap();
            assert_eq!((beat.ttl, beat.asks_to_stop()), (None, false), "{ttl}");
        }
        assert_eq!(
            beat(r#"{"last_heartbeat":"x","ttl_seconds":1e300}"#).unwrap().ttl,
            Some(TTL_MAX)
        );
        for bad in ["", "null", "{}", r#"{"last_heartbeat":7}"#] {
            assert!(beat(bad).unwrap_err().is_transient(), "{bad}");
        }
    }
}
