//! The launcher's client: a [`SandboxDriver`] whose other half is a process.
//!
//! Requests share one connection and may be many at once. When the connection breaks (the launcher
//! was restarted) the client makes a new one and asks again: every request is idempotent. A `serve`
//! that was superseded gets [`DriverError::Superseded`] from then on.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base_tasks::TaskKind;
use base_types::{Chain, Epoch, SandboxId, VolumeId};
use guest_protocol::client::GuestClient;
use sandbox_api::{
    ConnectError, CreateError, DestroyError, DriverError, Image, Sandbox, SandboxDriver,
    SandboxSpec, SandboxStatus, StopError, Tier, Vitality,
};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::layout::Layout;
use crate::link::{Link, Lost};
use crate::wire::{
    Answer, Ask, Leave, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, REQUEST_BYTES_MAX, Refusal, Role,
    encode,
};

/// How long a launcher may be away, as it is during its restart, before calls fail.
const AWAY_MAX: Duration = Duration::from_secs(10);

/// Between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// How often a request is sent again because its connection broke. One that takes the launcher
/// down must not do so for ever.
const LOST_MAX: u32 = 3;

/// For one request: starts take milliseconds, a stuck process tree is given up before this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Leaves room in a request for its number.
const ASK_BYTES_MAX: usize = REQUEST_BYTES_MAX - 64;

/// What this side calls itself to guest agents.
const BUILD: &str = concat!("sinew ", env!("CARGO_PKG_VERSION"));

/// The launcher of one data directory.
#[derive(Clone)]
pub struct LauncherDriver {
    shared: Arc<Shared>,
}

struct Shared {
    layout: Layout,
    state: Mutex<State>,
}

struct State {
    link: Option<Link>,
    /// How the next connection introduces itself.
    role: Role,
    superseded_by: Option<u64>,
}

/// What a request comes to, if not to an answer.
enum Failed {
    Refused(Refusal),
    Driver(DriverError),
}

// === impl LauncherDriver ===

impl LauncherDriver {
    /// Takes over from the `serve` before, if there is one.
    pub async fn connect(data: &Path) -> Result<Self, DriverError> {
        Self::with_role(data, Role::Serve).await
    }

    /// May look and shut down, and disturbs no `serve`.
    pub async fn observe(data: &Path) -> Result<Self, DriverError> {
        Self::with_role(data, Role::Observe).await
    }

    /// The launcher ends; `leave` says what it leaves. Returns when its process is gone.
    pub async fn shutdown(&self, leave: Leave) -> Result<(), DriverError> {
        let link = self.link().await.map_err(into_driver)?;
        match link.ask(Ask::Shutdown { leave }).await {
            Ok(Answer::Refused { refusal }) => Err(into_driver(Failed::Refused(refusal))),
            Ok(_) => {
                link.closed().await;
                Ok(())
            }
            Err(lost) => Err(DriverError::Unreachable(lost.into())),
        }
    }

    async fn with_role(data: &Path, role: Role) -> Result<Self, DriverError> {
        let state = State { link: None, role, superseded_by: None };
        let driver = Self {
            shared: Arc::new(Shared { layout: Layout::at(data), state: Mutex::new(state) }),
        };
        driver.link().await.map_err(into_driver)?;
        Ok(driver)
    }

    /// The connection; makes one where there is none, for as long as a restart takes.
    async fn link(&self) -> Result<Link, Failed> {
        let end = Instant::now() + AWAY_MAX;
        let mut state = self.shared.state.lock().await;
        if let Some(theirs) = state.superseded_by {
            return Err(Failed::Driver(DriverError::Superseded { theirs }));
        }
        if let Some(link) = state.link.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        loop {
            match self.introduce(&mut state).await {
                Ok(link) => {
                    state.link = Some(link.clone());
                    return Ok(link);
                }
                Err(Failed::Driver(DriverError::Unreachable(error))) if Instant::now() >= end => {
                    return Err(Failed::Driver(DriverError::Unreachable(error)));
                }
                Err(Failed::Driver(DriverError::Unreachable(_))) => {
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
                Err(other) => return Err(other),
            }
        }
    }

    async fn introduce(&self, state: &mut State) -> Result<Link, Failed> {
        let unreachable = |error| Failed::Driver(DriverError::Unreachable(error));
        let stream = self.shared.layout.connect().and_then(from_std).map_err(unreachable)?;
        let (link, driver) = Link::over(stream);
        base_tasks::spawn(TaskKind::Launcher, driver);
        let ask = Ask::Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version: PROTOCOL_VERSION,
            role: state.role,
        };
        match timed(link.ask(ask)).await.map_err(unreachable)? {
            Answer::Hello { generation, .. } => {
                if state.role != Role::Observe {
                    state.role = Role::Resume { generation };
                }
                Ok(link)
            }
            Answer::Refused { refusal: Refusal::Superseded { generation } } => {
                state.superseded_by = Some(generation);
                Err(Failed::Driver(DriverError::Superseded { theirs: generation }))
            }
            Answer::Refused { refusal: Refusal::Version { max, .. } } => {
                let ours = PROTOCOL_VERSION;
                Err(Failed::Driver(DriverError::Version { theirs: max, ours }))
            }
            Answer::Refused { refusal } => Err(Failed::Refused(refusal)),
            _ => Err(unreachable(wrong_answer())),
        }
    }

    /// Asks, and asks again on a new connection when the one it went out on is lost.
    async fn ask(&self, ask: Ask) -> Result<Answer, Failed> {
        if encode(&ask).len() > ASK_BYTES_MAX {
            let why = "it is too long".to_owned();
            return Err(Failed::Refused(Refusal::Bad { why }));
        }
        let mut lost = 0;
        loop {
            let link = self.link().await?;
            match timed(link.ask(ask.clone())).await {
                Ok(Answer::Refused { refusal: Refusal::Superseded { generation } }) => {
                    self.shared.state.lock().await.superseded_by = Some(generation);
                    return Err(Failed::Driver(DriverError::Superseded { theirs: generation }));
                }
                Ok(Answer::Refused { refusal }) => return Err(Failed::Refused(refusal)),
                Ok(answer) => return Ok(answer),
                Err(error) if error.kind() == io::ErrorKind::TimedOut || lost == LOST_MAX => {
                    return Err(Failed::Driver(DriverError::Unreachable(error)));
                }
                Err(_) => lost += 1,
            }
        }
    }
}

#[async_trait]
impl SandboxDriver for LauncherDriver {
    fn tier(&self) -> Tier {
        Tier::Container
    }

    async fn image(&self, name: &str) -> Result<Image, DriverError> {
        match self.ask(Ask::Image { name: name.to_owned() }).await {
            Ok(Answer::Image { image }) => Ok(image),
            Err(Failed::Refused(Refusal::NoSuchImage)) => {
                Err(DriverError::NoSuchImage(name.to_owned()))
            }
            other => Err(unexpected(other)),
        }
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Sandbox, CreateError> {
        let refusal = match self.ask(Ask::Create { spec: spec.clone() }).await {
            Ok(Answer::Created { sandbox }) => return Ok(sandbox),
            Err(Failed::Refused(refusal)) => refusal,
            other => return Err(unexpected(other).into()),
        };
        let sandbox = spec.sandbox.clone();
        Err(match refusal {
            Refusal::NoSuchImage => CreateError::NoSuchImage(spec.image.clone()),
            Refusal::NoSuchProfile => CreateError::NoSuchProfile(spec.profile.clone()),
            Refusal::VolumeGone => CreateError::VolumeGone(spec.volume.clone()),
            Refusal::OlderEpoch { reached } => {
                CreateError::OlderEpoch { sandbox, running: reached, asked: spec.epoch }
            }
            Refusal::NoRoom { why } => CreateError::NoRoom(why),
            other => CreateError::Start { sandbox, why: other.to_string() },
        })
    }

    async fn connect(
        &self,
        sandbox: &SandboxId,
        epoch: Epoch,
    ) -> Result<GuestClient, ConnectError> {
        let not_running = || ConnectError::NotRunning { sandbox: sandbox.clone(), epoch };
        let agent = |source| ConnectError::Agent { sandbox: sandbox.clone(), source };
        if SandboxId::parse(sandbox.as_str()).is_none() {
            return Err(not_running());
        }
        let stream = match self.shared.layout.connect_agent(sandbox).and_then(from_std) {
            Ok(stream) => stream,
            Err(error) => {
                return Err(match error.kind() {
                    // No socket, or nobody behind it.
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => not_running(),
                    _ => DriverError::Unreachable(error).into(),
                });
            }
        };
        let (client, driver) = GuestClient::connect(stream, BUILD).await.map_err(agent)?;
        if client.peer().epoch != epoch {
            return Err(not_running());
        }
        base_tasks::spawn(TaskKind::GuestConnection, driver);
        Ok(client)
    }

    async fn stop(&self, sandbox: &SandboxId) -> Result<(), StopError> {
        match self.ask(Ask::Stop { sandbox: sandbox.clone() }).await {
            Ok(Answer::Done) => Ok(()),
            Err(Failed::Refused(Refusal::Stuck { why })) => {
                Err(StopError::Stuck { sandbox: sandbox.clone(), why })
            }
            other => Err(unexpected(other).into()),
        }
    }

    async fn destroy(&self, sandbox: &SandboxId, volume: &VolumeId) -> Result<(), DestroyError> {
        let ask = Ask::Destroy { sandbox: sandbox.clone(), volume: volume.clone() };
        match self.ask(ask).await {
            Ok(Answer::Done) => Ok(()),
            Err(Failed::Refused(Refusal::Stuck { why })) => {
                Err(DestroyError::Stuck { sandbox: sandbox.clone(), why })
            }
            Err(Failed::Refused(Refusal::Volume { why })) => {
                Err(DestroyError::Volume { volume: volume.clone(), why })
            }
            other => Err(unexpected(other).into()),
        }
    }

    async fn status(&self, sandbox: &SandboxId) -> Result<Option<SandboxStatus>, DriverError> {
        match self.ask(Ask::Status { sandbox: sandbox.clone() }).await {
            Ok(Answer::Status { status }) => Ok(status),
            other => Err(unexpected(other)),
        }
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, DriverError> {
        let mut all: Vec<SandboxStatus> = Vec::new();
        loop {
            let after = all.last().map(|status| status.sandbox.clone());
            match self.ask(Ask::List { after }).await {
                Ok(Answer::List { page, more }) => {
                    let ends = !more || page.is_empty();
                    all.extend(page);
                    if ends {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(other)),
            }
        }
    }

    async fn ended(&self, sandbox: &SandboxId, epoch: Epoch) -> Result<Vitality, DriverError> {
        loop {
            let link = self.link().await.map_err(into_driver)?;
            match link.ask_shared(sandbox, epoch).await {
                Ok(Answer::Ended { vitality }) => return Ok(vitality),
                Ok(Answer::Refused { refusal }) => {
                    return Err(into_driver(Failed::Refused(refusal)));
                }
                Ok(_) => return Err(DriverError::Unreachable(wrong_answer())),
                // The launcher is away: ask the next one.
                Err(Lost) => {}
            }
        }
    }
}

fn into_driver(failed: Failed) -> DriverError {
    match failed {
        Failed::Driver(error) => error,
        Failed::Refused(Refusal::Superseded { generation }) => {
            DriverError::Superseded { theirs: generation }
        }
        Failed::Refused(refusal) => DriverError::Launcher(Chain(&refusal).to_string()),
    }
}

fn unexpected(result: Result<Answer, Failed>) -> DriverError {
    match result {
        Ok(_) => DriverError::Unreachable(wrong_answer()),
        Err(failed) => into_driver(failed),
    }
}

fn wrong_answer() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the launcher answered another question")
}

async fn timed(answer: impl Future<Output = Result<Answer, Lost>>) -> io::Result<Answer> {
    match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn from_std(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
