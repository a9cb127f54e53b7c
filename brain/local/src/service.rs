//! One request from its first byte to its answer: recorded, spoiled by a fault if a test wants
//! that, authorised by the matrix, and handed to its route.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Query, State as Extract};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde_json::Value;

use crate::api::{Request, agents, dev, environments, sessions, threads, work};
use crate::connection::Cut;
use crate::fault::{BodyFault, Fault, StreamFault};
use crate::record::Recorded;
use crate::reply::{ApiError, json_response, new_id};
use crate::route::{Caller, CredentialKind, NoRoute, Route, Target, classify};
use crate::state::{Shared, State};
use crate::stream::EventStream;

/// The general limit of the real API.
const MAX_REQUEST_BYTES: usize = 32 << 20;
/// A worker id longer than this is not kept.
const MAX_WORKER_ID: usize = 256;

const BETA_HEADER: &str = "anthropic-beta";
const WORKER_HEADER: &str = "anthropic-worker-id";

/// What `/` answers, and what `sinew brain` prints.
pub const BANNER: &str = "Sinew development brain: it serves the Managed Agents API from memory \
    and plays scripts instead of a model.\nIt is for development and tests: nothing is stored, \
    and it must not be reachable from a network.\n";

/// What was decided about a request before its route runs.
struct Plan {
    fault: Option<Fault>,
    stream_fault: Option<StreamFault>,
    body_fault: Option<BodyFault>,
}

pub(crate) async fn serve(
    Extract(shared): Extract<Arc<Shared>>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Infallible> {
    let request_id = new_id("req");
    let (number, answer) = handle(&shared, &cut, (method, uri, headers), body).await;
    let mut response = answer.unwrap_or_else(|error| error.into_response(&request_id));
    if let Ok(value) = HeaderValue::try_from(&request_id) {
        response.headers_mut().insert("request-id", value);
    }
    shared.recorder.answered(number, response.status().as_u16());
    shared.touched();
    Ok(response)
}

type Head = (Method, Uri, HeaderMap);

async fn handle(
    shared: &Arc<Shared>,
    cut: &Cut,
    (method, uri, headers): Head,
    body: Body,
) -> (u64, Result<Response, ApiError>) {
    let found = classify(method.as_str(), uri.path());
    let read = axum::body::to_bytes(body, MAX_REQUEST_BYTES).await;
    let (caller, credential_error) = caller_of(shared, &headers);
    let body = read.as_ref().map(Bytes::clone).unwrap_or_default();
    let worker = header_text(&headers, WORKER_HEADER)
        .filter(|id| id.len() <= MAX_WORKER_ID)
        .map(str::to_owned);
    let number = shared.recorder.add(Recorded {
        number: 0,
        at: jiff::Timestamp::now().to_string(),
        method: method.to_string(),
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        route: found.as_ref().ok().map(|(route, _)| *route),
        credential: caller.kind(),
        worker: worker.clone(),
        body: body.clone(),
        status: None,
    });
    let (route, target) = match found {
        Ok(found) => found,
        Err(NoRoute::UnknownPath) => return (number, Err(ApiError::no_route("no such path"))),
        Err(NoRoute::WrongMethod) => {
            return (number, Err(ApiError::no_route("this path has no such method")));
        }
    };
    if read.is_err() {
        return (number, Err(ApiError::too_large("the request is larger than 32 MB, or was cut")));
    }
    let query = Query::<Vec<(String, String)>>::try_from_uri(&uri);
    let answer = match (query, credential_error) {
        (Err(_), _) => Err(ApiError::invalid("the query cannot be read")),
        (_, Some(error)) if route != Route::Banner => Err(error),
        (Ok(Query(query)), _) => {
            let request = Request { route, target, query, body, caller, worker };
            answer(shared, cut, &request, &headers).await
        }
    };
    (number, answer)
}

async fn answer(
    shared: &Arc<Shared>,
    cut: &Cut,
    request: &Request,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let plan = match before(shared, cut, request.route).await {
        Ok(plan) => plan,
        Err(answer) => return answer,
    };
    shared.read(|state| authorise(state, request, headers))?;
    let answer = match request.route {
        Route::EventStream | Route::ThreadStream => open_stream(shared, request, plan.stream_fault),
        route => dispatch(shared, request).await.map(|body| {
            let status = StatusCode::OK;
            if route == Route::Banner {
                return BANNER.into_response();
            }
            json_response(status, &body)
        }),
    };
    match plan.fault {
        Some(Fault::DropAnswer) => {
            shared.change(|state| state.counters.dropped_answers += 1);
            cut.now();
        }
        Some(Fault::DelayAnswer { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
        _ => {}
    }
    match (answer, plan.body_fault) {
        (Ok(response), Some(fault)) => spoil_body(response, fault).await,
        (answer, _) => answer,
    }
}

/// Applies what a fault does instead of the route, or remembers what it does afterwards.
async fn before(
    shared: &Shared,
    cut: &Cut,
    route: Route,
) -> Result<Plan, Result<Response, ApiError>> {
    let mut plan = Plan { fault: None, stream_fault: None, body_fault: None };
    match shared.faults.take(route) {
        None => {}
        Some(Fault::Status { status, retry_after }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Err(Err(ApiError::injected(status, retry_after)));
        }
        Some(Fault::Garbage) => {
            let headers = [(header::CONTENT_TYPE, "application/json")];
            return Err(Ok((headers, "<html>not JSON").into_response()));
        }
        Some(Fault::NoContent) => return Err(Ok(StatusCode::NO_CONTENT.into_response())),
        Some(Fault::DropBefore) => {
            cut.now();
            return Err(Ok(StatusCode::NO_CONTENT.into_response()));
        }
        Some(Fault::DelayBefore { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
        Some(Fault::SlowBody { piece, pause_ms }) => {
            let pause = Duration::from_millis(pause_ms);
            plan.body_fault = Some(BodyFault::Slow { piece: piece.max(1), pause });
        }
        Some(Fault::CutBody { after }) => plan.body_fault = Some(BodyFault::Cut { after }),
        Some(Fault::Stream { stream }) => plan.stream_fault = Some(stream),
        Some(fault) => plan.fault = Some(fault),
    }
    Ok(plan)
}

async fn spoil_body(response: Response, fault: BodyFault) -> Result<Response, ApiError> {
    let (parts, body) = response.into_parts();
    // The body is an answer of this server and already in memory.
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let (pieces, pause, broken) = match fault {
        BodyFault::Slow { piece, pause } => (pieces(&bytes, piece), pause, false),
        BodyFault::Cut { after } => {
            (vec![bytes.slice(..after.min(bytes.len()))], Duration::ZERO, true)
        }
    };
    let spoiled = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok::<Bytes, io::Error>(piece)
    });
    let cut = stream::iter(broken.then_some(())).then(|()| async {
        // What came before must be written out first.
        tokio::task::yield_now().await;
        Err(io::Error::other("cut by a fault rule"))
    });
    let mut response = Response::from_parts(parts, Body::from_stream(spoiled.chain(cut)));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    Ok(response)
}

fn pieces(bytes: &Bytes, length: usize) -> Vec<Bytes> {
    (0..bytes.len())
        .step_by(length)
        .map(|start| bytes.slice(start..(start + length).min(bytes.len())))
        .collect()
}

fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whose request this is, and what is wrong with its credentials.
fn caller_of(shared: &Shared, headers: &HeaderMap) -> (Caller, Option<ApiError>) {
    let bearer = header_text(headers, "authorization").map(|text| {
        let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("bearer") { token.trim() } else { "" }
    });
    let key = header_text(headers, "x-api-key");
    let Some(credential) = bearer.or(key) else {
        return (Caller::Nobody, Some(ApiError::unauthenticated("no credential was given")));
    };
    match shared.read(|state| state.identify(credential)) {
        Some(caller) => (caller, None),
        None => (Caller::Nobody, Some(ApiError::unauthenticated("the credential is not valid"))),
    }
}

/// The access matrix, and the scope of each credential.
fn authorise(state: &State, request: &Request, headers: &HeaderMap) -> Result<(), ApiError> {
    let route = request.route;
    let both = headers.contains_key("authorization") && headers.contains_key("x-api-key");
    if both && route.is_per_session() {
        return Err(ApiError::unauthenticated("two credentials were given"));
    }
    if !route.allows(request.caller.kind()) {
        let kind = request.caller.kind();
        return Err(ApiError::forbidden(format!("{} may not do this", kind_name(kind))));
    }
    if state.switches.require_beta_header && route.is_gated() && !headers.contains_key(BETA_HEADER)
    {
        return Err(ApiError::no_route("no such path without a beta header"));
    }
    let Target { environment, work, session, .. } = &request.target;
    let in_scope = match &request.caller {
        Caller::Nobody | Caller::ApiKey => true,
        Caller::EnvironmentKey { environment: own } => {
            let of_session = state.sessions.get(session).map(|session| &session.environment);
            (environment.is_empty() || environment == own) && of_session.is_none_or(|of| of == own)
        }
        Caller::SessionsToken { work: own_work, session: own_session } => {
            (work.is_empty() || work == own_work) && (session.is_empty() || session == own_session)
        }
    };
    match in_scope {
        true => Ok(()),
        false => Err(ApiError::forbidden("the credential belongs to something else")),
    }
}

fn kind_name(kind: CredentialKind) -> &'static str {
    match kind {
        CredentialKind::None => "nobody without a credential",
        CredentialKind::ApiKey => "an API key",
        CredentialKind::EnvironmentKey => "an environment key",
        CredentialKind::SessionsToken => "a sessions token",
    }
}

fn open_stream(
    shared: &Arc<Shared>,
    request: &Request,
    fault: Option<StreamFault>,
) -> Result<Response, ApiError> {
    let permit = shared.streams.clone().try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::full("too many streams are open"))?;
    let (events, ping) = shared.change_silently(|state| {
        let ping = state.timings.ping;
        let (play, _) = state.play(&request.target.session)?;
        let session = play.session;
        if request.route == Route::ThreadStream {
            let id = &request.target.thread;
            session.thread_by_id(id).ok_or_else(|| ApiError::not_found("thread", id))?;
        }
        Ok::<_, ApiError>((session.history.subscribe(), ping))
    })?;
    let of_thread = request.route == Route::ThreadStream;
    let thread = of_thread.then(|| request.target.thread.clone());
    let stop = shared.stop.clone();
    let stream = EventStream { events, thread, ping, fault, stop, _permit: permit };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, Body::from_stream(stream.into_body())).into_response())
}

type Look = fn(&State, &Request) -> Result<Value, ApiError>;
type Change = fn(&mut State, &Request) -> Result<Value, ApiError>;

/// How a route is run.
enum Action {
    Look(Look),
    Change(Change),
    /// Changes nothing that somebody waits for; spared the wake-up.
    Beat(Change),
}

async fn dispatch(shared: &Shared, request: &Request) -> Result<Value, ApiError> {
    let action = match request.route {
        Route::WorkPoll => return work::poll(shared, request).await,
        Route::DevRequests => return dev::requests(shared, request),
        Route::DevFaults => return dev::faults(shared, request),
        route => action_of(route),
    };
    match action {
        Action::Look(look) => shared.read(|state| look(state, request)),
        Action::Change(change) => shared.change(|state| change(state, request)),
        Action::Beat(change) => shared.change_silently(|state| change(state, request)),
    }
}

fn action_of(route: Route) -> Action {
    use Action::{Beat, Change, Look};
    match route {
        Route::AgentCreate => Change(agents::create),
        Route::AgentList => Look(agents::list),
        Route::AgentGet => Look(agents::get),
        Route::AgentUpdate => Change(agents::update),
        Route::AgentVersions => Look(agents::versions),
        Route::AgentArchive => Change(agents::archive),
        Route::EnvironmentCreate => Change(environments::create),
        Route::EnvironmentList => Look(environments::list),
        Route::EnvironmentGet => Look(environments::get),
        Route::EnvironmentUpdate => Change(environments::update),
        Route::EnvironmentDelete => Change(environments::delete),
        Route::EnvironmentArchive => Change(environments::archive),
        Route::WorkList => Look(work::list),
        Route::WorkStats => Beat(work::stats),
        Route::WorkGet => Look(work::get),
        Route::WorkUpdate => Change(work::update),
        Route::WorkAck => Change(work::ack),
        Route::WorkHeartbeat => Change(work::heartbeat),
        Route::WorkStop => Change(work::stop),
        Route::SessionCreate => Change(sessions::create),
        Route::SessionList => Look(sessions::list),
        Route::SessionGet => Look(sessions::get),
        Route::SessionUpdate => Change(sessions::update),
        Route::SessionDelete => Change(sessions::delete),
        Route::SessionArchive => Change(sessions::archive),
        Route::ResourceList => Look(sessions::resource_list),
        Route::ResourceAdd => Change(sessions::resource_add),
        Route::ResourceGet => Look(sessions::resource_get),
        Route::ResourceDelete => Change(sessions::resource_delete),
        Route::EventList => Look(sessions::event_list),
        Route::EventSend => Change(sessions::event_send),
        Route::ThreadList => Look(threads::list),
        Route::ThreadGet => Look(threads::get),
        Route::ThreadArchive => Change(threads::archive),
        Route::ThreadEvents => Look(threads::events),
        Route::DevSession => Look(dev::session),
        Route::DevCounters => Look(|state, _| Ok(dev::counters(state))),
        Route::DevQueueItem => Change(work::queue_item),
        Route::DevEmit => Change(dev::emit),
        Route::DevRotateKey => Change(environments::rotate_key),
        // Answered before they get here: they wait, stream, or need no state.
        Route::Banner
        | Route::WorkPoll
        | Route::EventStream
        | Route::ThreadStream
        | Route::DevRequests
        | Route::DevFaults => Look(|_, _| Ok(Value::Null)),
    }
}
