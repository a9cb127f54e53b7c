//! The launcher's service: accepts connections of root and of `serve`'s user, and answers each
//! request from a worker thread.
//!
//! One `serve` is served at a time. A new one takes over by its `Hello`: the generation counts up
//! and the connections of the one before are closed.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use base_types::{Epoch, SandboxId};
use sandbox_api::Vitality;
use tokio::sync::mpsc::UnboundedSender;

use crate::connection::{Connection, Standing};
use crate::jobs::Jobs;
use crate::layout::{Layout, replace};
use crate::lock;
use crate::sandboxes::{Sandboxes, Waiter, check_sandbox, check_volume};
use crate::wire::{
    Answer, Ask, Leave, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal, Request, Role, agree,
};

/// Connections at once. `serve` uses one and a command-line tool now and then another; when one
/// more comes, the oldest is closed, so that hanging clients never keep a new `serve` out.
const CONNECTIONS_MAX: usize = 32;

/// Pause after a failed `accept`: without descriptors it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub struct Server {
    sandboxes: Arc<Sandboxes>,
    jobs: Jobs,
    layout: Layout,
    /// Besides root, whose requests are answered.
    serve_uid: u32,
    generation: Mutex<u64>,
    connections: Mutex<Connections>,
    /// Held for reading while a sandbox is started; true once the launcher is leaving.
    leaving: RwLock<bool>,
    exit: UnboundedSender<()>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: BTreeMap<u64, Arc<Connection>>,
}

pub struct ServerSettings {
    pub layout: Layout,
    pub serve_uid: u32,
    pub exit: UnboundedSender<()>,
}

// === impl Server ===

impl Server {
    pub fn new(sandboxes: Arc<Sandboxes>, jobs: Jobs, settings: ServerSettings) -> Arc<Self> {
        let ServerSettings { layout, serve_uid, exit } = settings;
        let generation = std::fs::read_to_string(layout.generation())
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_default();
        Arc::new(Self {
            sandboxes,
            jobs,
            layout,
            serve_uid,
            generation: Mutex::new(generation),
            connections: Mutex::default(),
            leaving: RwLock::new(false),
            exit,
        })
    }

    /// Accepts until the process ends.
    pub fn accept(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Starts nothing new, waits for the starts that are under way, and keeps nothing for others.
    pub fn leave(&self) {
        *self.leaving.write().unwrap_or_else(PoisonError::into_inner) = true;
        self.sandboxes.close_stock();
    }

    fn is_leaving(&self) -> bool {
        *self.leaving.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn welcome(self: &Arc<Self>, stream: UnixStream) {
        let admitted = self.admit(stream);
        let (number, connection) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                tracing::warn!(%error, "a connection was refused");
                return;
            }
        };
        let server = self.clone();
        let reader = connection.clone();
        let spawned =
            std::thread::Builder::new().name(format!("client-{number}")).spawn(move || {
                let why = reader.read_requests(|request| server.take(&reader, request));
                tracing::debug!(number, why = %base_types::Chain(&why), "a connection has ended");
                reader.close();
                lock(&server.connections).open.remove(&number);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a connection");
            connection.close();
            lock(&self.connections).open.remove(&number);
        }
    }

    fn admit(&self, stream: UnixStream) -> io::Result<(u64, Arc<Connection>)> {
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        let uid = peer.uid.as_raw();
        if uid != 0 && uid != self.serve_uid {
            let why = format!("user {uid} is neither root nor {}", self.serve_uid);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let connection = Arc::new(Connection::new(stream)?);
        let mut connections = lock(&self.connections);
        if connections.open.len() >= CONNECTIONS_MAX
            && let Some((_, oldest)) = connections.open.pop_first()
        {
            oldest.close();
        }
        connections.next += 1;
        let number = connections.next;
        connections.open.insert(number, connection.clone());
        Ok((number, connection))
    }

    /// Answers on the spot what costs nothing and hands the rest to a worker.
    fn take(self: &Arc<Self>, connection: &Arc<Connection>, request: Request) {
        let Request { id, ask } = request;
        if let Ask::Hello { version_min, version, role } = ask {
            let answer = self.hello(connection, (version_min, version), role);
            connection.answer(id, answer);
            return;
        }
        if let Err(refusal) = self.may(connection, &ask) {
            connection.answer(id, Answer::Refused { refusal });
            return;
        }
        let (server, connection) = (self.clone(), connection.clone());
        self.jobs.run(move || server.work(&connection, id, ask));
    }

    fn hello(&self, connection: &Arc<Connection>, theirs: (u32, u32), role: Role) -> Answer {
        let refused = |refusal| Answer::Refused { refusal };
        if connection.standing() != Standing::Unknown {
            return refused(Refusal::Bad { why: "a second hello".to_owned() });
        }
        let Some(version) = agree(theirs.0, theirs.1) else {
            return refused(Refusal::Version { min: PROTOCOL_VERSION_MIN, max: PROTOCOL_VERSION });
        };
        let mut generation = lock(&self.generation);
        let standing = match role {
            Role::Observe => Standing::Observer,
            Role::Resume { generation: theirs } if theirs == *generation => {
                Standing::Serve { generation: theirs }
            }
            Role::Resume { .. } => {
                return refused(Refusal::Superseded { generation: *generation });
            }
            Role::Serve => {
                let next = *generation + 1;
                if let Err(error) = replace(&self.layout.generation(), next.to_string().as_bytes())
                {
                    let why = format!("write the generation down: {error}");
                    return refused(Refusal::Failed { why });
                }
                *generation = next;
                Standing::Serve { generation: next }
            }
        };
        connection.stand(standing);
        let generation = *generation;
        self.close_superseded(generation);
        Answer::Hello { version, generation, pid: std::process::id() }
    }

    fn close_superseded(&self, current: u64) {
        for connection in lock(&self.connections).open.values() {
            if let Standing::Serve { generation } = connection.standing()
                && generation != current
            {
                connection.close();
            }
        }
    }

    /// Whether this connection may ask for this.
    fn may(&self, connection: &Connection, ask: &Ask) -> Result<(), Refusal> {
        let looks = matches!(
            ask,
            Ask::Image { .. } | Ask::Status { .. } | Ask::List { .. } | Ask::Shutdown { .. }
        );
        match connection.standing() {
            Standing::Unknown => Err(Refusal::Bad { why: "say hello first".to_owned() }),
            Standing::Observer if looks => Ok(()),
            Standing::Observer => {
                Err(Refusal::Bad { why: "an observer changes nothing".to_owned() })
            }
            Standing::Serve { generation } => {
                let current = *lock(&self.generation);
                if generation == current {
                    Ok(())
                } else {
                    Err(Refusal::Superseded { generation: current })
                }
            }
        }
    }

    fn work(self: &Arc<Self>, connection: &Arc<Connection>, id: u64, ask: Ask) {
        if let Ask::WatchEnded { sandbox, epoch } = ask {
            let refusal = self.watch(connection, id, &sandbox, epoch).err();
            if let Some(refusal) = refusal {
                connection.answer(id, Answer::Refused { refusal });
            }
            return;
        }
        let is_shutdown = matches!(ask, Ask::Shutdown { .. });
        // A client is not left waiting by a defect of ours; the panic has been printed.
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer(ask))).unwrap_or_else(|_| {
            Err(Refusal::Failed { why: "the launcher failed inside: see its log".to_owned() })
        });
        // Nothing is served any more: it was done, or everything has ended and something that all
        // share could not be let go of.
        let exits = is_shutdown && self.is_leaving();
        connection.answer(id, answer.unwrap_or_else(|refusal| Answer::Refused { refusal }));
        if exits {
            // Fails when the launcher is ending already.
            let _ = self.exit.send(());
        }
    }

    fn answer(&self, ask: Ask) -> Result<Answer, Refusal> {
        let sandboxes = &self.sandboxes;
        match ask {
            Ask::Image { name } => Ok(Answer::Image { image: sandboxes.image(&name)? }),
            Ask::Create { spec } => {
                let leaving = self.leaving.read().unwrap_or_else(PoisonError::into_inner);
                if *leaving {
                    return Err(Refusal::ShuttingDown);
                }
                Ok(Answer::Created { sandbox: sandboxes.create(&spec)? })
            }
            Ask::Stop { sandbox } => {
                check_sandbox(&sandbox)?;
                sandboxes.stop(&sandbox).map(|()| Answer::Done)
            }
            Ask::Destroy { sandbox, volume } => {
                check_sandbox(&sandbox)?;
                check_volume(&volume)?;
                sandboxes.destroy(&sandbox, &volume).map(|()| Answer::Done)
            }
            Ask::Status { sandbox } => {
                check_sandbox(&sandbox)?;
                Ok(Answer::Status { status: sandboxes.status(&sandbox) })
            }
            Ask::List { after } => {
                let (page, more) = sandboxes.list(after.as_ref())?;
                Ok(Answer::List { page, more })
            }
            Ask::Shutdown { leave } => self.shut_down(leave).map(|()| Answer::Done),
            // Both are answered before they come here.
            Ask::Hello { .. } | Ask::WatchEnded { .. } => {
                Err(Refusal::Bad { why: "not here".to_owned() })
            }
        }
    }

    fn watch(
        &self,
        connection: &Arc<Connection>,
        id: u64,
        sandbox: &SandboxId,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        check_sandbox(sandbox)?;
        let waiter = EndOnConnection { connection: connection.clone(), id };
        self.sandboxes.when_ended(sandbox, epoch, Box::new(waiter))
    }

    fn shut_down(&self, leave: Leave) -> Result<(), Refusal> {
        self.leave();
        let failed = match leave {
            Leave::Running => return Ok(()),
            Leave::Volumes => self.sandboxes.stop_all(),
            Leave::Nothing => self.sandboxes.destroy_all(),
        };
        if failed.is_empty() {
            return self.sandboxes.close();
        }
        // It stays to be asked again, so it may as well serve.
        *self.leaving.write().unwrap_or_else(PoisonError::into_inner) = false;
        Err(Refusal::Failed { why: first_few(&failed) })
    }
}

/// An answer that is owed to a connection until a sandbox ends.
struct EndOnConnection {
    connection: Arc<Connection>,
    id: u64,
}

impl Waiter for EndOnConnection {
    fn is_gone(&self) -> bool {
        self.connection.is_closed()
    }

    fn tell(self: Box<Self>, vitality: Vitality) {
        self.connection.answer(self.id, Answer::Ended { vitality });
    }
}

/// An answer names a few of many failures; the log has them all.
fn first_few(failures: &[String]) -> String {
    const NAMED_MAX: usize = 5;
    for failure in failures {
        tracing::error!(failure, "left behind");
    }
    let named = failures.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
    match failures.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}
