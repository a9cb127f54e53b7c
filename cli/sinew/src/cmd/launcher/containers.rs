//! Containers as the launcher uses them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use base_types::SandboxId;
use guest_protocol::boot;
use sandbox_api::{Limits, SandboxUse};
use sandbox_container::cgroup::{MemoryNotice, NoticeBy};
use sandbox_container::{ContainerSpec, Containers, Prepared, ToolUser};
use sandbox_launcher::parts::{
    self, Init, OomReady, OomWatch, PartError, PreparedContainer, StartContainer, Started,
};

use super::failed;

/// How much of a sandbox's random id its host name shows.
const HOSTNAME_ID_CHARS: usize = 12;

pub struct ContainerParts(Arc<Shared>);

struct Shared {
    containers: Containers,
    /// The guest agent's program, shared by all sandboxes.
    agent: OwnedFd,
}

impl ContainerParts {
    pub fn new(installation: &str) -> anyhow::Result<Self> {
        let containers = Containers::new(installation)?;
        let agent = sandbox_container::sealed_agent(guest_embed::AGENT)?;
        Ok(Self(Arc::new(Shared { containers, agent })))
    }
}

/// What one container will be started from.
struct Ready {
    shared: Arc<Shared>,
    prepared: Prepared,
}

impl Shared {
    fn oom_watch(&self, sandbox: &SandboxId) -> Result<OomWatch, PartError> {
        let notice = MemoryNotice::of(self.containers.cgroups(), sandbox)
            .map_err(|error| PartError::Failed(format!("watch the memory: {error}")))?;
        let by = notice.how;
        Ok(OomWatch {
            ready: notice.ready,
            how: match by {
                NoticeBy::Counter => OomReady::Readable,
                NoticeBy::Change => OomReady::Priority,
            },
            happened: Box::new(move |ready| MemoryNotice::happened(ready, by)),
        })
    }
}

impl PreparedContainer for Ready {
    fn start(self: Box<Self>, start: StartContainer<'_>) -> Result<Started, PartError> {
        let Self { shared, prepared } = *self;
        shared.start(prepared, start)
    }
}

impl Shared {
    fn start(&self, prepared: Prepared, start: StartContainer<'_>) -> Result<Started, PartError> {
        let started = self
            .containers
            .start(
                prepared,
                &ContainerSpec {
                    sandbox: start.sandbox.clone(),
                    epoch: start.epoch,
                    image_root: start.image,
                    volume: start.volume,
                    limits: start.shape.limits,
                    hostname: hostname(start.sandbox),
                    agent: self.agent.as_fd(),
                    listener: start.listener.as_fd(),
                    tools_as: match start.guest.tools_as {
                        parts::ToolsAs::User => boot::ToolsAs::User,
                        parts::ToolsAs::Root => boot::ToolsAs::Root,
                    },
                    tool: tool_user(&start.guest.user),
                    workdir: start.guest.workdir.clone(),
                    env: start.guest.env.clone(),
                    entrypoint: start.guest.entrypoint.clone(),
                },
            )
            .map_err(|error| failed(&error))?;
        let oom = match self.oom_watch(start.sandbox) {
            Ok(oom) => Some(oom),
            Err(error) => {
                let init = Some(started.pidfd.as_fd());
                if let Err(error) = self.containers.kill(start.sandbox, init) {
                    tracing::error!(sandbox = %start.sandbox, %error, "cannot undo a start");
                }
                return Err(error);
            }
        };
        let pid = started.init.as_raw_pid().unsigned_abs();
        let init = Init { pid, start_time: started.start_time };
        Ok(Started { init, pidfd: started.pidfd, oom })
    }
}

impl parts::Containers for ContainerParts {
    fn prepare(&self, id_base: u32) -> Result<Box<dyn PreparedContainer>, PartError> {
        let prepared = self.0.containers.prepare(id_base).map_err(|error| failed(&error))?;
        Ok(Box::new(Ready { shared: self.0.clone(), prepared }))
    }

    fn attach(&self, sandbox: &SandboxId, _limits: &Limits) -> Result<Option<OomWatch>, PartError> {
        self.0.oom_watch(sandbox).map(Some)
    }

    fn end(&self, sandbox: &SandboxId, init: Option<BorrowedFd<'_>>) -> Result<(), PartError> {
        self.0.containers.kill(sandbox, init).map_err(|error| failed(&error))
    }

    fn used(&self, sandbox: &SandboxId) -> SandboxUse {
        let usage = self.0.containers.cgroups().usage(sandbox);
        SandboxUse {
            memory_bytes: usage.memory_bytes,
            disk_bytes: None,
            pids: usage.pids,
            cpu_usec: usage.cpu_usec,
        }
    }

    fn sweep(&self, keep: &[SandboxId]) -> Result<Vec<String>, PartError> {
        let keep: BTreeSet<SandboxId> = keep.iter().cloned().collect();
        let ended = self.0.containers.sweep(&keep).map_err(|error| failed(&error))?;
        Ok(ended.into_iter().map(|sandbox| format!("processes of {sandbox}")).collect())
    }

    fn close(&self) -> Result<(), PartError> {
        let closed = self.0.containers.cgroups().close();
        closed.map_err(|error| PartError::Failed(format!("remove the control groups: {error}")))
    }
}

fn tool_user(user: &parts::User) -> ToolUser {
    ToolUser {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        name: user.name.clone(),
        home: user.home.clone(),
    }
}

/// `sbx_0123…` as `sbx-0123…`, which a host name may be.
fn hostname(sandbox: &SandboxId) -> String {
    let id = sandbox.as_str().trim_start_matches(SandboxId::PREFIX);
    format!("sbx-{}", id.chars().take(HOSTNAME_ID_CHARS).collect::<String>())
}
