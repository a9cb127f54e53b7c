//! The launcher's life: take the installation, find what is there, serve, leave.

use std::io;
use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::jobs::Jobs;
use crate::layout::{InstallationLock, Layout, OpenLayoutError};
use crate::parts::Parts;
use crate::privilege;
use crate::ranges::{RANGE_COUNT, RANGE_FIRST, RANGES_DIR, Ranges};
use crate::sandboxes::{RecoverError, Sandboxes, Settings};
use crate::server::{Server, ServerSettings};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the launcher must run as root: start it with `sudo`, or let `sinew serve` start it")]
    NotRoot,
    #[error("give up capabilities that are not needed")]
    Privilege(#[source] io::Error),
    #[error("take the data directory")]
    Layout(#[from] OpenLayoutError),
    #[error("open the ranges of user ids in {RANGES_DIR}")]
    Ranges(#[source] io::Error),
    #[error("find the sandboxes of an earlier launcher")]
    Recover(#[from] RecoverError),
    #[error("listen on the launcher's socket")]
    Listen(#[source] io::Error),
    #[error("start the launcher's threads")]
    Threads(#[source] io::Error),
}

/// Whom the launcher answers besides root, and who may reach its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeUser {
    pub uid: u32,
    pub gid: u32,
}

impl ServeUser {
    /// A user that needs no entry in `/etc/passwd`.
    pub fn of_same_number(number: u32) -> Self {
        Self { uid: number, gid: number }
    }
}

/// An installation that is ours alone: its parts may be opened now.
pub struct Prepared {
    layout: Layout,
    user: ServeUser,
    lock: InstallationLock,
}

// === impl Prepared ===

impl Prepared {
    /// Call it first, while the process has one thread. `user` is what `sinew serve` runs as.
    pub fn take(data: &Path, user: ServeUser) -> Result<Self, RunError> {
        if !rustix::process::geteuid().is_root() {
            return Err(RunError::NotRoot);
        }
        privilege::load_modules();
        privilege::keep_what_is_needed().map_err(|errno| RunError::Privilege(errno.into()))?;
        privilege::allow_many_descriptors();
        // Whatever the caller's: what is to be readable by others is given to them explicitly.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let layout = Layout::open(data, user.gid)?;
        let lock = layout.lock()?;
        Ok(Self { layout, user, lock })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Serves until it is told to leave; `ready` is called once it answers. Sandboxes go on, unless
    /// the request said otherwise.
    pub fn serve(self, parts: Parts, ready: impl FnOnce()) -> Result<(), RunError> {
        let Prepared { layout, user, lock: _held } = self;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(RunError::Threads)?;
        runtime.block_on(async {
            // Before the first sandbox is touched: from here on a signal asks and does not kill.
            let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Threads)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Threads)?;
            let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Threads)?;
            let (exit, mut asked) = mpsc::unbounded_channel();
            let server = start(layout, user, parts, exit)?;
            ready();
            let why = loop {
                tokio::select! {
                    _ = asked.recv() => break "asked to",
                    _ = terminate.recv() => break "terminated",
                    _ = interrupt.recv() => break "interrupted",
                    // A closed terminal is no reason to leave.
                    _ = hangup.recv() => {}
                }
            };
            server.leave();
            tracing::info!(why, "the launcher leaves");
            Ok(())
        })
    }
}

fn start(
    layout: Layout,
    user: ServeUser,
    parts: Parts,
    exit: mpsc::UnboundedSender<()>,
) -> Result<std::sync::Arc<Server>, RunError> {
    let jobs = Jobs::start().map_err(RunError::Threads)?;
    let ranges =
        Ranges::open(Path::new(RANGES_DIR), RANGE_FIRST, RANGE_COUNT).map_err(RunError::Ranges)?;
    let settings = Settings { layout: layout.clone(), serve_gid: user.gid, ranges, parts };
    let (sandboxes, found) = Sandboxes::open(settings, jobs.clone())?;
    for warning in &found.warnings {
        tracing::warn!(warning, "found at start");
    }
    for what in &found.swept {
        tracing::info!(what, "removed a left-over");
    }
    let listener = layout.bind(user.gid).map_err(RunError::Listen)?;
    let server = Server::new(sandboxes, jobs, ServerSettings { layout, serve_uid: user.uid, exit });
    let accepting = server.clone();
    std::thread::Builder::new()
        .name("accept".into())
        .spawn(move || accepting.accept(&listener))
        .map_err(RunError::Threads)?;
    let (running, ended, stopped) = (found.running, found.ended, found.stopped);
    tracing::info!(running, ended, stopped, pid = std::process::id(), "the launcher serves");
    Ok(server)
}
