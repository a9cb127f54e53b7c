//! Starting a launcher by hand: `sinew serve`, run as root where no unit starts one, makes it a
//! process of its own before it gives its privileges up.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::layout::{Layout, OpenLayoutError, open_log};
use crate::wire::{
    ANSWER_BYTES_MAX, Answer, Ask, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, ReadFrameError, Request,
    Response, Role, decode, encode, read_frame, write_frame,
};

/// The first start allocates and formats the pool of volumes, which on a slow disk takes a while.
const READY_WAIT: Duration = Duration::from_secs(120);

/// How often a starting launcher is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(5);

/// A launcher that is ready answers a hello at once.
const HELLO_WAIT: Duration = Duration::from_secs(5);

/// How much of the log an error shows.
const LOG_TAIL_BYTES: u64 = 2048;

/// Of our environment, what a launcher is given: settings. Keys of the brain are not for it.
const SETTINGS_PREFIX: &str = "SINEW_";

pub struct EnsureRunning<'a> {
    pub data: &'a Path,
    pub images: &'a Path,
    pub config: Option<&'a Path>,
    /// The user, and the group of the same number, that `serve` will run as.
    pub serve_uid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launched {
    Already { pid: u32 },
    Now { pid: u32 },
}

#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    #[error("ready the data directory")]
    Layout(#[from] OpenLayoutError),
    #[error("open the launcher's log {path}")]
    Log { path: PathBuf, source: io::Error },
    #[error("start the launcher")]
    Spawn(#[source] io::Error),
    #[error("the launcher ended at once ({status}); the end of its log:\n{log}")]
    Ended { status: ExitStatus, log: String },
    #[error("the launcher was not ready within {} s; the end of its log:\n{log}", READY_WAIT.as_secs())]
    NotReady { log: String },
}

/// Finds the launcher of this data directory, or starts it and waits until it answers.
///
/// A launcher started here has a session of its own and is told to end by nobody's end. Blocks.
pub fn ensure_running(wanted: &EnsureRunning<'_>) -> Result<Launched, EnsureError> {
    let layout = Layout::at(wanted.data);
    if let Ok(pid) = probe(&layout) {
        return Ok(Launched::Already { pid });
    }
    let layout = Layout::open(wanted.data, wanted.serve_uid)?;
    let log_from = std::fs::metadata(layout.log()).map_or(0, |log| log.len());
    let mut child = spawn(wanted, &layout)?;
    let end = Instant::now() + READY_WAIT;
    while Instant::now() < end {
        if let Ok(pid) = probe(&layout) {
            reap(child);
            return Ok(Launched::Now { pid });
        }
        if let Some(status) = child.try_wait().map_err(EnsureError::Spawn)? {
            return another(&layout, end)
                .ok_or_else(|| EnsureError::Ended { status, log: tail(&layout, log_from) });
        }
        std::thread::sleep(READY_POLL);
    }
    // Ours, and it never served: nothing of it is worth keeping.
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::warn!(%error, "cannot end a launcher that does not start");
    }
    Err(EnsureError::NotReady { log: tail(&layout, log_from) })
}

/// Asks whoever listens for its process id.
pub(crate) fn probe(layout: &Layout) -> Result<u32, ProbeError> {
    let mut stream = layout.connect().map_err(ProbeError::Connect)?;
    stream.set_read_timeout(Some(HELLO_WAIT)).map_err(ProbeError::Connect)?;
    let ask = Ask::Hello {
        version_min: PROTOCOL_VERSION_MIN,
        version: PROTOCOL_VERSION,
        role: Role::Observe,
    };
    write_frame(&mut stream, &encode(&Request { id: 1, ask })).map_err(ProbeError::Connect)?;
    let body = read_frame(&mut stream, ANSWER_BYTES_MAX).map_err(ProbeError::Read)?;
    match decode::<Response>(&body) {
        Ok(Response { answer: Answer::Hello { pid, .. }, .. }) => Ok(pid),
        _ => Err(ProbeError::NotOurs),
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("connect to the launcher")]
    Connect(#[source] io::Error),
    #[error("hear from the launcher")]
    Read(#[source] ReadFrameError),
    #[error("what listens does not answer as a launcher of this version does")]
    NotOurs,
}

fn spawn(wanted: &EnsureRunning<'_>, layout: &Layout) -> Result<Child, EnsureError> {
    let log = || {
        open_log(layout, wanted.serve_uid)
            .map_err(|source| EnsureError::Log { path: layout.log(), source })
    };
    let mut command = Command::new("/proc/self/exe");
    command.arg("launcher").arg("--detached");
    command.arg("--data").arg(absolute(wanted.data)?);
    command.arg("--images").arg(absolute(wanted.images)?);
    if let Some(config) = wanted.config {
        command.arg("--config").arg(absolute(config)?);
    }
    command.arg("--user").arg(wanted.serve_uid.to_string());
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let is_setting =
        |name: &OsString| name.as_encoded_bytes().starts_with(SETTINGS_PREFIX.as_bytes());
    command.envs(std::env::vars_os().filter(|(name, _)| is_setting(name)));
    command.current_dir("/").stdin(Stdio::null()).stdout(log()?).stderr(log()?);
    command.spawn().map_err(EnsureError::Spawn)
}

/// The launcher's working directory is another.
fn absolute(path: &Path) -> Result<PathBuf, EnsureError> {
    std::path::absolute(path).map_err(EnsureError::Spawn)
}

/// Ours ended. If that was because another `serve` started one at the same moment, that one does.
fn another(layout: &Layout, end: Instant) -> Option<Launched> {
    while matches!(layout.lock(), Err(OpenLayoutError::AlreadyRunning { .. })) {
        if let Ok(pid) = probe(layout) {
            return Some(Launched::Already { pid });
        }
        if Instant::now() > end {
            break;
        }
        std::thread::sleep(READY_POLL);
    }
    None
}

/// Waits for it for as long as we live, so that it does not stay as a zombie, and says that it has
/// ended.
fn reap(mut child: Child) {
    let wait = move || match child.wait() {
        Ok(status) if status.success() => tracing::info!("the launcher has left"),
        Ok(status) => tracing::warn!(%status, "the launcher has ended"),
        Err(error) => tracing::debug!(%error, "cannot wait for the launcher"),
    };
    if let Err(error) = std::thread::Builder::new().name("launcher-end".into()).spawn(wait) {
        tracing::debug!(%error, "nobody waits for the launcher's end");
    }
}

/// What the log says since we began, at most its end.
fn tail(layout: &Layout, from: u64) -> String {
    let read = || -> io::Result<String> {
        let mut log = File::open(layout.log())?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL_BYTES))))?;
        let mut text = Vec::new();
        log.take(LOG_TAIL_BYTES).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    };
    read().unwrap_or_else(|error| format!("(cannot be read: {error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_that_does_not_start_is_reported_with_the_end_of_its_log() {
        if !nix::unistd::geteuid().is_root() {
            let test = "a_launcher_that_does_not_start_is_reported_with_the_end_of_its_log";
            eprintln!("SKIP {test}: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let wanted = EnsureRunning {
            data: &dir.path().join("data"),
            images: dir.path(),
            config: None,
            serve_uid: 64_500,
        };
        // This program is not `sinew`: it does not know the arguments, says so, and ends.
        let EnsureError::Ended { status, log } = ensure_running(&wanted).unwrap_err() else {
            panic!("it cannot have started");
        };
        assert!(!status.success());
        assert!(log.contains("--detached") || log.contains("detached"), "{log}");
    }
}
