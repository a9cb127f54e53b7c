//! Every route as a value: what a request is, and which credential may make it.
//!
//! The access matrix, fault rules and the request log all speak of a [`Route`]; a path that is
//! not here does not exist.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    Banner,
    AgentCreate,
    AgentList,
    AgentGet,
    AgentUpdate,
    AgentVersions,
    AgentArchive,
    EnvironmentCreate,
    EnvironmentList,
    EnvironmentGet,
    EnvironmentUpdate,
    EnvironmentDelete,
    EnvironmentArchive,
    WorkPoll,
    WorkList,
    WorkStats,
    WorkGet,
    WorkUpdate,
    WorkAck,
    WorkHeartbeat,
    WorkStop,
    SessionCreate,
    SessionList,
    SessionGet,
    SessionUpdate,
    SessionDelete,
    SessionArchive,
    ResourceList,
    ResourceAdd,
    ResourceGet,
    ResourceDelete,
    EventList,
    EventSend,
    EventStream,
    ThreadList,
    ThreadGet,
    ThreadArchive,
    ThreadEvents,
    ThreadStream,
    DevRequests,
    DevSession,
    DevCounters,
    DevFaults,
    DevQueueItem,
    DevEmit,
    DevRotateKey,
}

/// Who is asking. It carries what the credential is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Nobody,
    ApiKey,
    EnvironmentKey { environment: String },
    SessionsToken { work: String, session: String },
}

/// The same without the scope, for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    None,
    ApiKey,
    EnvironmentKey,
    SessionsToken,
}

impl Caller {
    pub(crate) fn kind(&self) -> CredentialKind {
        match self {
            Caller::Nobody => CredentialKind::None,
            Caller::ApiKey => CredentialKind::ApiKey,
            Caller::EnvironmentKey { .. } => CredentialKind::EnvironmentKey,
            Caller::SessionsToken { .. } => CredentialKind::SessionsToken,
        }
    }
}

/// The ids in a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub agent: String,
    pub environment: String,
    pub work: String,
    pub session: String,
    pub thread: String,
    pub resource: String,
}

impl Route {
    /// `protocol.md` §1.3, and the API key alone where it says nothing.
    pub fn allows(self, kind: CredentialKind) -> bool {
        use CredentialKind::{ApiKey, EnvironmentKey, SessionsToken};
        match self {
            Route::Banner => true,
            Route::WorkPoll | Route::WorkAck | Route::WorkList => kind == EnvironmentKey,
            Route::WorkStats => matches!(kind, EnvironmentKey | ApiKey),
            Route::WorkHeartbeat => matches!(kind, EnvironmentKey | SessionsToken),
            Route::WorkStop
            | Route::SessionGet
            | Route::EventList
            | Route::EventSend
            | Route::EventStream => matches!(kind, EnvironmentKey | SessionsToken | ApiKey),
            _ => kind == ApiKey,
        }
    }

    /// Whether the request concerns one session's content: there a request that carries both
    /// kinds of header is refused.
    pub fn is_per_session(self) -> bool {
        use Route::*;
        matches!(
            self,
            SessionGet
                | SessionUpdate
                | SessionDelete
                | SessionArchive
                | EventList
                | EventSend
                | EventStream
                | ThreadList
                | ThreadGet
                | ThreadArchive
                | ThreadEvents
                | ThreadStream
                | ResourceList
                | ResourceAdd
                | ResourceGet
                | ResourceDelete
        )
    }

    /// Routes of the real API, which wants a beta header on them.
    pub fn is_gated(self) -> bool {
        !matches!(self, Route::Banner) && !self.is_dev()
    }

    pub fn is_dev(self) -> bool {
        use Route::*;
        matches!(
            self,
            DevRequests
                | DevSession
                | DevCounters
                | DevFaults
                | DevQueueItem
                | DevEmit
                | DevRotateKey
        )
    }
}

/// Why a request has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    UnknownPath,
    WrongMethod,
}

/// Finds the route of a request.
pub(crate) fn classify(method: &str, path: &str) -> Result<(Route, Target), NoRoute> {
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let mut found_path = false;
    for (route_method, pattern, route) in TABLE {
        let Some(target) = matches(pattern, &segments) else { continue };
        if *route_method == method {
            return Ok((*route, target));
        }
        found_path = true;
    }
    Err(if found_path { NoRoute::WrongMethod } else { NoRoute::UnknownPath })
}

fn matches(pattern: &str, segments: &[&str]) -> Option<Target> {
    let mut target = Target::default();
    let mut rest = segments.iter();
    for part in pattern.split('/').filter(|s| !s.is_empty()) {
        let segment = rest.next()?;
        let slot = match part {
            "{agent}" => &mut target.agent,
            "{environment}" => &mut target.environment,
            "{work}" => &mut target.work,
            "{session}" => &mut target.session,
            "{thread}" => &mut target.thread,
            "{resource}" => &mut target.resource,
            literal if literal == *segment => continue,
            _ => return None,
        };
        *slot = (*segment).to_owned();
    }
    rest.next().is_none().then_some(target)
}

/// First match wins, so that a literal (`poll`, `stats`) stands before an id.
const TABLE: &[(&str, &str, Route)] = &[
    ("GET", "/", Route::Banner),
    ("POST", "/v1/agents", Route::AgentCreate),
    ("GET", "/v1/agents", Route::AgentList),
    ("GET", "/v1/agents/{agent}", Route::AgentGet),
    ("POST", "/v1/agents/{agent}", Route::AgentUpdate),
    ("GET", "/v1/agents/{agent}/versions", Route::AgentVersions),
    ("POST", "/v1/agents/{agent}/archive", Route::AgentArchive),
    ("POST", "/v1/environments", Route::EnvironmentCreate),
    ("GET", "/v1/environments", Route::EnvironmentList),
    ("GET", "/v1/environments/{environment}", Route::EnvironmentGet),
    ("POST", "/v1/environments/{environment}", Route::EnvironmentUpdate),
    ("DELETE", "/v1/environments/{environment}", Route::EnvironmentDelete),
    ("POST", "/v1/environments/{environment}/archive", Route::EnvironmentArchive),
    ("GET", "/v1/environments/{environment}/work/poll", Route::WorkPoll),
    ("GET", "/v1/environments/{environment}/work/stats", Route::WorkStats),
    ("GET", "/v1/environments/{environment}/work", Route::WorkList),
    ("GET", "/v1/environments/{environment}/work/{work}", Route::WorkGet),
    ("POST", "/v1/environments/{environment}/work/{work}", Route::WorkUpdate),
    ("POST", "/v1/environments/{environment}/work/{work}/ack", Route::WorkAck),
    ("POST", "/v1/environments/{environment}/work/{work}/heartbeat", Route::WorkHeartbeat),
    ("POST", "/v1/environments/{environment}/work/{work}/stop", Route::WorkStop),
    ("POST", "/v1/sessions", Route::SessionCreate),
    ("GET", "/v1/sessions", Route::SessionList),
    ("GET", "/v1/sessions/{session}", Route::SessionGet),
    ("POST", "/v1/sessions/{session}", Route::SessionUpdate),
    ("DELETE", "/v1/sessions/{session}", Route::SessionDelete),
    ("POST", "/v1/sessions/{session}/archive", Route::SessionArchive),
    ("GET", "/v1/sessions/{session}/resources", Route::ResourceList),
    ("POST", "/v1/sessions/{session}/resources", Route::ResourceAdd),
    ("GET", "/v1/sessions/{session}/resources/{resource}", Route::ResourceGet),
    ("DELETE", "/v1/sessions/{session}/resources/{resource}", Route::ResourceDelete),
    ("GET", "/v1/sessions/{session}/events", Route::EventList),
    ("POST", "/v1/sessions/{session}/events", Route::EventSend),
    ("GET", "/v1/sessions/{session}/events/stream", Route::EventStream),
    ("GET", "/v1/sessions/{session}/threads", Route::ThreadList),
    ("GET", "/v1/sessions/{session}/threads/{thread}", Route::ThreadGet),
    ("POST", "/v1/sessions/{session}/threads/{thread}/archive", Route::ThreadArchive),
    ("GET", "/v1/sessions/{session}/threads/{thread}/events", Route::ThreadEvents),
    ("GET", "/v1/sessions/{session}/threads/{thread}/stream", Route::ThreadStream),
    ("GET", "/dev/requests", Route::DevRequests),
    ("GET", "/dev/counters", Route::DevCounters),
    ("GET", "/dev/sessions/{session}", Route::DevSession),
    ("POST", "/dev/sessions/{session}/emit", Route::DevEmit),
    ("POST", "/dev/faults", Route::DevFaults),
    ("POST", "/dev/environments/{environment}/items", Route::DevQueueItem),
    ("POST", "/dev/environments/{environment}/key", Route::DevRotateKey),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_win_over_ids_and_ids_land_in_their_slots() {
        let (route, target) = classify("GET", "/v1/environments/env_1/work/poll").unwrap();
        assert_eq!((route, target.environment.as_str()), (Route::WorkPoll, "env_1"));
        let (route, target) = classify("GET", "/v1/environments/env_1/work/work_2").unwrap();
        assert_eq!((route, target.work.as_str()), (Route::WorkGet, "work_2"));
        let (route, target) = classify("GET", "/v1/sessions/s/threads/t/stream").unwrap();
        assert_eq!(route, Route::ThreadStream);
        assert_eq!((target.session.as_str(), target.thread.as_str()), ("s", "t"));
    }

    #[test]
    fn an_unknown_path_and_a_wrong_method_are_told_apart() {
        assert_eq!(classify("GET", "/v1/nothing"), Err(NoRoute::UnknownPath));
        assert_eq!(classify("GET", "/v1/sessions/s/events/x"), Err(NoRoute::UnknownPath));
        assert_eq!(classify("PUT", "/v1/sessions/s/events"), Err(NoRoute::WrongMethod));
    }

    /// The rows of `protocol.md` §1.3: environment key, sessions token, API key.
    #[test]
    fn the_matrix_is_the_protocols() {
        let rows = [
            (Route::WorkPoll, [true, false, false]),
            (Route::WorkAck, [true, false, false]),
            (Route::WorkList, [true, false, false]),
            (Route::WorkGet, [false, false, true]),
            (Route::WorkUpdate, [false, false, true]),
            (Route::WorkStats, [true, false, true]),
            (Route::WorkHeartbeat, [true, true, false]),
            (Route::WorkStop, [true, true, true]),
            (Route::SessionGet, [true, true, true]),
            (Route::EventList, [true, true, true]),
            (Route::EventSend, [true, true, true]),
            (Route::EventStream, [true, true, true]),
            (Route::SessionCreate, [false, false, true]),
            (Route::AgentCreate, [false, false, true]),
            (Route::DevRequests, [false, false, true]),
        ];
        for (route, [environment, token, api]) in rows {
            assert_eq!(route.allows(CredentialKind::EnvironmentKey), environment, "{route:?}");
            assert_eq!(route.allows(CredentialKind::SessionsToken), token, "{route:?}");
            assert_eq!(route.allows(CredentialKind::ApiKey), api, "{route:?}");
            assert!(!route.allows(CredentialKind::None), "{route:?}");
        }
    }
}
