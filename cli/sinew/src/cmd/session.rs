//! `sinew session ls|show|stop|log`

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use base_types::{CallId, Clock, SystemClock, Timestamp};
use control_server::api::{EntrypointView, LogQuery, SessionQuery, SessionView, StopRequest};
use control_server::client::ApiClient;
use futures::StreamExt;
use store_api::{LogEntry, LogEvent, Phase, SandboxState};

use crate::args::{
    SessionCommand, SessionLogArgs, SessionLsArgs, SessionShowArgs, SessionStopArgs, Since,
};
use crate::cmd::block_on;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::output::{self, ago, one_line, or_dash};

/// Entries asked for at a time.
const LOG_PAGE: u32 = 500;
const TITLE_WIDTH: usize = 40;
const INPUT_WIDTH: usize = 100;

pub fn run(command: SessionCommand) -> anyhow::Result<Exit> {
    match command {
        SessionCommand::Ls(args) => block_on(ls(args)),
        SessionCommand::Show(args) => block_on(show(args)),
        SessionCommand::Stop(args) => block_on(stop(args)),
        SessionCommand::Log(args) => block_on(log(args)),
    }
}

async fn ls(args: SessionLsArgs) -> anyhow::Result<Exit> {
    let client = ApiClient::new(Installation::of(&args.data)?.data());
    let query = SessionQuery { open: args.open, limit: Some(args.limit) };
    let list = client.sessions(&query).await.context("list sessions")?;
    if args.json.json {
        output::json(&list)?;
        return Ok(Exit::Ok);
    }
    let now = SystemClock.now();
    let row = |session: SessionView| {
        vec![
            session.id.to_string(),
            session.phase,
            or_dash(session.profile),
            or_dash(session.tenant),
            or_dash(session.sandbox.map(|sandbox| sandbox.epoch)),
            ago(session.updated_at, now),
            one_line(&session.title.unwrap_or_default(), TITLE_WIDTH),
        ]
    };
    let head = ["session", "phase", "profile", "tenant", "epoch", "activity", "title"];
    output::table(&head, list.sessions.into_iter().map(row).collect())?;
    for environment in &list.ill {
        let trouble = environment.trouble.as_deref().unwrap_or_default();
        let text = format!("environment {}: {trouble}", environment.environment);
        output::line(&format!("warning: {}", output::printable(&text)))?;
    }
    Ok(Exit::Ok)
}

async fn show(args: SessionShowArgs) -> anyhow::Result<Exit> {
    let client = ApiClient::new(Installation::of(&args.data)?.data());
    let session = client.session(&args.session).await.context("show a session")?;
    if args.json.json {
        output::json(&session)?;
        return Ok(Exit::Ok);
    }
    for (name, value) in facts(&session, SystemClock.now()) {
        output::line(&format!("{name:<12} {}", output::printable(&value)))?;
    }
    for warning in warnings(&session) {
        output::line(&format!("warning: {}", output::printable(&warning)))?;
    }
    Ok(Exit::Ok)
}

fn facts(session: &SessionView, now: Timestamp) -> Vec<(&'static str, String)> {
    let phase = match &session.reason {
        Some(reason) => format!("{}: {reason}", session.phase),
        None => format!("{} (since {})", session.phase, session.phase_at),
    };
    let mut facts = vec![
        ("session", session.id.to_string()),
        ("phase", phase),
        ("environment", session.environment.to_string()),
        ("tenant", or_dash(session.tenant.as_ref())),
        ("title", session.title.clone().unwrap_or_default()),
    ];
    if let Some(profile) = &session.profile {
        let by = session.profile_chosen_by.as_deref().unwrap_or("-");
        facts.push(("profile", format!("{profile} (chosen by {by})")));
    }
    if let Some(agent) = &session.agent {
        let name = session.agent_name.as_deref().unwrap_or("-");
        let version = or_dash(session.agent_version);
        facts.push(("agent", format!("{agent} version {version} ({name})")));
    }
    for (key, value) in &session.metadata {
        facts.push(("metadata", format!("{key} = {value}")));
    }
    facts.push(("created", ago(session.created_at, now)));
    facts.push(("activity", ago(session.updated_at, now)));
    let here = if session.served_here { " (in hand now)" } else { "" };
    facts.push(("node", format!("{}{here}", or_dash(session.owner.as_ref()))));
    sandbox_facts(session, &mut facts);
    if let Some(calls) = &session.calls {
        let more = if calls.truncated { " (counted so far)" } else { "" };
        let text = format!("{}, {} open, {} failed{more}", calls.total, calls.open, calls.failed);
        facts.push(("calls", text));
    }
    facts
}

fn sandbox_facts(session: &SessionView, facts: &mut Vec<(&'static str, String)>) {
    let Some(sandbox) = &session.sandbox else {
        facts.push(("sandbox", "none yet".to_owned()));
        return;
    };
    let state = state_name(sandbox.state);
    facts.push(("sandbox", format!("{} ({}, {state})", sandbox.id, sandbox.tier)));
    facts.push(("epoch", format!("{}, files from: {}", sandbox.epoch, sandbox.restored_from)));
    let on = sandbox.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    facts.push(("volume", format!("{}{on}", sandbox.volume)));
    facts.push(("image", sandbox.image.to_string()));
    if let Some(usage) = &sandbox.usage {
        let bytes = |value: Option<u64>| or_dash(value.map(output::bytes));
        let text = format!(
            "memory {}, disk {}, processes {}",
            bytes(usage.memory_bytes),
            bytes(usage.disk_bytes),
            or_dash(usage.pids)
        );
        facts.push(("usage", text));
    }
    if let Some(entrypoint) = &sandbox.entrypoint {
        facts.push(("entrypoint", entrypoint_text(entrypoint)));
    }
}

fn entrypoint_text(entrypoint: &EntrypointView) -> String {
    let EntrypointView { command, exit_code, signal, reason, ended_at, .. } = entrypoint;
    let at = ended_at.map(|at| format!(" at {}", output::clock(at))).unwrap_or_default();
    let state = match (entrypoint.state.as_str(), exit_code, signal) {
        ("running", ..) => format!("runs since {}", output::clock(entrypoint.started_at)),
        (_, Some(code), _) => format!("ended{at} with exit code {code}"),
        (_, _, Some(signal)) => format!("was ended{at} by signal {signal}"),
        _ => format!("did not start: {}", reason.as_deref().unwrap_or("it did not say why")),
    };
    let output = match entrypoint.output_bytes {
        0 => "no output".to_owned(),
        bytes => {
            format!("{} of output, the last of it in {}", output::bytes(bytes), entrypoint.log)
        }
    };
    format!("{} {state}; {output}", one_line(command, INPUT_WIDTH))
}

fn warnings(session: &SessionView) -> Vec<String> {
    let mut warnings: Vec<String> = session
        .unserved
        .iter()
        .map(|what| format!("attached but not served by this version: {what}"))
        .collect();
    if let Some(untold) = session.sandbox.as_ref().and_then(|sandbox| sandbox.untold.as_ref()) {
        let text = match untold {
            store_api::Untold::Processes { why } => format!("its processes are gone: {why}"),
            store_api::Untold::Files { why } => format!("its files are gone: {why}"),
        };
        warnings.push(format!("{text} (the model is told with its next result)"));
    }
    warnings
}

async fn stop(args: SessionStopArgs) -> anyhow::Result<Exit> {
    let client = ApiClient::new(Installation::of(&args.data)?.data());
    let request = StopRequest { forget: args.forget };
    let answer = client.stop(&args.session, &request).await.context("stop a session")?;
    if args.json.json {
        output::json(&answer)?;
    } else if answer.forgotten {
        output::line(&format!("{} is stopped; its sandbox and files are removed", answer.session))?;
    } else {
        output::line(&format!("{} is stopped; its files are kept", answer.session))?;
    }
    Ok(Exit::Ok)
}

async fn log(args: SessionLogArgs) -> anyhow::Result<Exit> {
    let client = ApiClient::new(Installation::of(&args.data)?.data());
    let since = args.since.map(|since| match since {
        Since::At(at) => at,
        Since::Ago(ago) => {
            let ago = i64::try_from(ago.0.as_millis()).unwrap_or(i64::MAX);
            Timestamp(SystemClock.now().0.saturating_sub(ago))
        }
    });
    let mut query = LogQuery { after: None, limit: Some(LOG_PAGE), since, follow: false };
    let mut running = Running::default();
    let mut print = |entry: &LogEntry| {
        if args.json {
            return output::json_line(entry);
        }
        output::line(&log_line(entry, running.time(entry)))
    };
    if args.follow {
        let entries = client.follow(&args.session, &query).await.context("read the log")?;
        let mut entries = Box::pin(entries);
        while let Some(entry) = entries.next().await {
            print(&entry.context("follow the log")?)?;
        }
        return Ok(Exit::Ok);
    }
    loop {
        let page = client.log(&args.session, &query).await.context("read the log")?;
        page.entries.iter().try_for_each(&mut print)?;
        match page.next_after {
            Some(after) => query.after = Some(after),
            None => return Ok(Exit::Ok),
        }
    }
}

/// When the calls began that have not ended yet, as far as the log was read.
#[derive(Default)]
struct Running(HashMap<CallId, Timestamp>);

impl Running {
    /// How long the call ran whose end this entry is.
    fn time(&mut self, entry: &LogEntry) -> Option<Duration> {
        match &entry.event {
            LogEvent::CallStarted { call, .. } => {
                self.0.insert(call.clone(), entry.at);
                None
            }
            LogEvent::CallFinished { call, .. } => {
                self.0.remove(call).map(|began| entry.at.since(began))
            }
            _ => None,
        }
    }
}

fn log_line(entry: &LogEntry, ran: Option<Duration>) -> String {
    let text = output::one_line(&event_text(&entry.event), INPUT_WIDTH * 2);
    let ran = ran.map(|ran| format!(" (ran {})", output::duration(ran))).unwrap_or_default();
    format!("{}  {text}{ran}", output::clock(entry.at))
}

fn event_text(event: &LogEvent) -> String {
    match event {
        LogEvent::WorkClaimed { work } => format!("work     {work} claimed"),
        LogEvent::WorkEnded { work, why } => format!("work     {work} ended: {}", words(why)),
        LogEvent::Identified { profile, tenant, unserved } => {
            let without = match unserved.len() {
                0 => String::new(),
                _ => format!("; served without {}", unserved.join(", ")),
            };
            format!("session  profile {profile}, tenant {tenant}{without}")
        }
        LogEvent::Phase(phase) => format!("session  {}", phase_text(phase)),
        LogEvent::Sandbox { sandbox, epoch, state } => {
            format!("sandbox  {sandbox} epoch {epoch}: {}", state_name(*state))
        }
        LogEvent::CallReceived { call, tool, input, .. } => {
            format!("call     {call} {tool} {}", one_line(input, INPUT_WIDTH))
        }
        LogEvent::CallStarted { call, epoch } => {
            format!("call     {call} started in epoch {}", or_dash(*epoch))
        }
        LogEvent::CallFinished { call, is_error, summary, .. } => {
            let mark = if *is_error { "error: " } else { "" };
            format!("call     {call} finished: {mark}{summary}")
        }
        LogEvent::CallSettled { call, refused: None } => format!("call     {call} posted"),
        LogEvent::CallSettled { call, refused: Some(status) } => {
            format!("call     {call} refused by the brain with {status}")
        }
        LogEvent::CallHeld { tool_use, tool } => {
            format!("call     {tool} waits for a confirmation ({tool_use})")
        }
        LogEvent::CallNotRun { tool_use, tool, why } => {
            format!("call     {tool} is not run: {why} ({tool_use})")
        }
        LogEvent::Interrupted { cancelled } => {
            format!("session  interrupted by the user; {} calls cancelled", cancelled.len())
        }
        LogEvent::BrainTrouble { what } => format!("brain    {what}"),
        LogEvent::OperatorExec { argv, exit_code } => {
            format!("operator exec {}: exit code {}", argv.join(" "), or_dash(*exit_code))
        }
        LogEvent::OperatorTerminal { name, uid, root, action } => {
            let whose = if *root { "root's shell" } else { "shell" };
            format!("operator {whose} {name} {} by uid {uid}", terminal_action(action))
        }
        LogEvent::Warning { text } => format!("warning  {text}"),
    }
}

fn terminal_action(action: &store_api::TerminalAction) -> String {
    match action {
        store_api::TerminalAction::Opened => "opened".to_owned(),
        store_api::TerminalAction::Attached => "attached".to_owned(),
        store_api::TerminalAction::Detached => "left running".to_owned(),
        store_api::TerminalAction::Ended { exit_code } => {
            format!("ended with code {exit_code}, watched")
        }
        store_api::TerminalAction::Closed => "ended".to_owned(),
    }
}

fn phase_text(phase: &Phase) -> String {
    match phase {
        Phase::Ended { reason } | Phase::Failed { reason } => format!("{}: {reason}", phase.name()),
        _ => phase.name().to_owned(),
    }
}

fn state_name(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Creating => "being created",
        SandboxState::Running => "running",
        SandboxState::Stopped => "stopped, files kept",
        SandboxState::Gone => "gone",
    }
}

fn words(why: &store_api::WorkEnd) -> &'static str {
    match why {
        store_api::WorkEnd::Stopped => "stopped by us",
        store_api::WorkEnd::StopRequested => "stop requested",
        store_api::WorkEnd::LeaseLost => "lease lost",
        store_api::WorkEnd::Refused => "refused by the brain",
        store_api::WorkEnd::NotRun => "not ours to run",
    }
}
