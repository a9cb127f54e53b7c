//! Starts one container: the parent's half, and everything the child must not do itself.
//!
//! Each step that outlives its process has a guard that undoes it, so that whatever fails, the
//! machine is as it was.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base_types::{Epoch, SandboxId};
use guest_protocol::boot::BootArgs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal};

use crate::agent::sealed_data;
use crate::cgroup::{self, Cgroups};
use crate::child::{self, EtcFile, PARKED_FROM, Plan, Pointers, WANTS_IDS};
use crate::error::{ContainerError, StartError, Step, system};
use crate::idmap::{self, Layers};
use crate::prepared::Prepared;
use crate::spec::{ContainerSpec, ENV_FD, ID_RANGE, LISTEN_FD, OUTPUT_FD, PAYLOAD_FD, Started};
use crate::stop::{reap, start_time_of};
use crate::sys::{self, Cloned};
use crate::{seccomp, volatile};

/// A start takes milliseconds; one that hangs (a dead disk) must not hang the launcher.
const READY_WITHIN: Duration = Duration::from_secs(10);

const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// Largest /dev/shm; a quarter of a small sandbox's memory.
const SHM_BYTES_MAX: u64 = 256 << 20;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts and ends the containers of one installation.
pub struct Containers {
    pub(crate) cgroups: Arc<dyn Cgroups>,
    filter: Vec<libc::sock_filter>,
}

impl Containers {
    /// `prefix` names this installation's cgroups; another installation has another.
    pub fn new(prefix: &str) -> Result<Self, ContainerError> {
        Ok(Self { cgroups: cgroup::detect(prefix)?.into(), filter: seccomp::filter() })
    }

    pub fn cgroups(&self) -> &dyn Cgroups {
        &*self.cgroups
    }

    /// Returns when the agent has been executed. On failure nothing of the attempt is left, and
    /// nothing of what was prepared.
    pub fn start(
        &self,
        prepared: Prepared,
        spec: &ContainerSpec<'_>,
    ) -> Result<Started, StartError> {
        let Prepared { id_base, network, maps, groups } = prepared;
        spec.check().map_err(StartError::BadSpec)?;
        let others = self.cgroups.members(&spec.sandbox);
        let others = others.map_err(system("look for an earlier epoch's processes"))?;
        if !others.is_empty() {
            return Err(StartError::StillRunning(spec.sandbox.clone()));
        }
        volatile::prepare(&spec.volume)?;
        let layers = Layers::open(&spec.image_root, &spec.volume, &maps)?;
        let group = Group { cgroups: &*self.cgroups, sandbox: spec.sandbox.clone(), undo: true };
        let given = groups.give_to(&spec.sandbox, &spec.limits);
        given.map_err(|source| group.failed(source))?;
        let entry = self.cgroups.agent_entry(&spec.sandbox);
        let entry = entry.map_err(|source| group.failed(source))?;
        let procs = self.cgroups.payload_procs(&spec.sandbox);
        let procs = procs.map_err(|source| group.failed(source))?;
        let procs = procs.iter().map(|fd| park(fd.as_fd())).collect::<Result<Vec<_>, _>>()?;
        let env = sealed_data("sinew-env", &spec.env_block())
            .map_err(system("hand over the environment"))?;

        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| system("make a socket pair")(errno.into()))?;
        let parked = [theirs.as_fd(), spec.agent, spec.listener, env.as_fd()].map(park);
        // Each of these must be gone when its copy is: a closed socket is how exec shows.
        drop((theirs, env));
        let [theirs, agent, listener, env] = parked;
        let (theirs, agent, listener, env) = (theirs?, agent?, listener?, env?);
        let plan = Plan {
            control: theirs.as_fd(),
            groups: &entry.tasks,
            network: network.as_fd(),
            image: layers.image.as_fd(),
            volume: layers.volume.as_fd(),
            agent: agent.as_fd(),
            listener: listener.as_fd(),
            env: env.as_fd(),
            payload_procs: &procs,
            id_base,
            tool_owner: (id_base + spec.tool.uid, id_base + spec.tool.gid),
            workdir: spec.workdir_names().into_iter().map(|name| text(name.to_owned())).collect(),
            root_id: text(id_base.to_string()),
            tty_group: text((id_base + 5).to_string()),
            shm_bytes: text((spec.limits.memory.bytes() / 4).min(SHM_BYTES_MAX).to_string()),
            hostname: text(spec.hostname.clone()),
            etc_files: etc_files(&spec.hostname),
            argv: argv(spec, procs.len()),
            envp: Pointers::new(vec![text(PATH.to_owned())]),
            filter: &self.filter,
        };
        let child = Child::clone(&plan, entry.born_in.as_ref())?;
        drop(plan);
        drop((theirs, layers));
        guide(id_base, &child, ours.as_fd())?;
        group.keep();
        child.keep()
    }
}

/// Gives the new process what only its parent can, and waits until it runs the agent.
fn guide(id_base: u32, child: &Child, control: BorrowedFd<'_>) -> Result<(), StartError> {
    let deadline = Instant::now() + READY_WITHIN;
    match next_message(control, deadline)? {
        Message::WantsIds => {}
        Message::Failed(step, error) => return Err(StartError::Child(step, error)),
        Message::Closed => return Err(StartError::Died),
    }
    idmap::write_maps(child.pid, &format!("0 {id_base} {ID_RANGE}\n"))
        .map_err(system("write the sandbox's id map"))?;
    proceed(control)?;

    // The socket closes with exec, or with the end of the process.
    match next_message(control, deadline)? {
        Message::Closed if child.has_ended() => Err(StartError::Died),
        Message::Closed => Ok(()),
        Message::Failed(step, error) => Err(StartError::Child(step, error)),
        Message::WantsIds => Err(StartError::Died),
    }
}

// === what is undone ===

struct Group<'a> {
    cgroups: &'a dyn Cgroups,
    sandbox: SandboxId,
    undo: bool,
}

impl Group<'_> {
    fn failed(&self, source: io::Error) -> StartError {
        StartError::Cgroup { sandbox: self.sandbox.clone(), source }
    }

    fn keep(mut self) {
        self.undo = false;
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if self.undo
            && let Err(error) = self.cgroups.remove(&self.sandbox)
        {
            // The next sweep tries again.
            tracing::warn!(sandbox = %self.sandbox, %error, "cgroups of a failed start stay");
        }
    }
}

struct Child {
    pid: Pid,
    pidfd: Option<OwnedFd>,
}

impl Child {
    fn clone(plan: &Plan<'_>, group: Option<&OwnedFd>) -> Result<Self, StartError> {
        // SAFETY: the child goes straight into `child::run`, which makes system calls only and
        // ends in exec or exit.
        match unsafe { sys::clone_into(NAMESPACES as u64, group.map(AsFd::as_fd)) } {
            Ok(Cloned::Child) => child::run(plan),
            Ok(Cloned::Parent { pid, pidfd }) => Ok(Self { pid, pidfd: Some(pidfd) }),
            Err(errno) => Err(system("make a process in new namespaces")(errno.into())),
        }
    }

    fn has_ended(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return true };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(1..))
    }

    fn keep(mut self) -> Result<Started, StartError> {
        let start_time = start_time_of(self.pid).ok_or(StartError::Died)?;
        let pidfd = self.pidfd.take().ok_or(StartError::Died)?;
        Ok(Started { init: self.pid, pidfd, start_time })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(pidfd) = self.pidfd.take() else { return };
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let _ = poll(&mut fds, Timespec::try_from(READY_WITHIN).ok().as_ref());
        reap(pidfd.as_fd());
    }
}

// === the conversation with the child ===

enum Message {
    WantsIds,
    Failed(Step, io::Error),
    Closed,
}

fn proceed(control: BorrowedFd<'_>) -> Result<(), StartError> {
    let sent = rustix::net::send(control, &[1], rustix::net::SendFlags::NOSIGNAL);
    match sent {
        Ok(_) => Ok(()),
        // It has failed meanwhile, and its message says why.
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
        Err(errno) => Err(system("talk to the new process")(errno.into())),
    }
}

fn next_message(control: BorrowedFd<'_>, deadline: Instant) -> Result<Message, StartError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(&control, PollFlags::IN)];
    let ready = poll(&mut fds, Timespec::try_from(left).ok().as_ref())
        .map_err(|errno| system("wait for the new process")(errno.into()))?;
    if ready == 0 {
        return Err(StartError::TimedOut(READY_WITHIN.as_secs()));
    }
    let mut buffer = [0_u8; 16];
    let length = match rustix::io::read(control, &mut buffer) {
        Ok(length) => length,
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(errno) => return Err(system("listen to the new process")(errno.into())),
    };
    match buffer.get(..length) {
        Some([WANTS_IDS]) => Ok(Message::WantsIds),
        Some([step, a, b, c, d]) => {
            let errno = i32::from_le_bytes([*a, *b, *c, *d]);
            let step = Step::ALL.get(usize::from(*step)).copied().unwrap_or(Step::Control);
            Ok(Message::Failed(step, io::Error::from_raw_os_error(errno)))
        }
        _ => Ok(Message::Closed),
    }
}

// === what the child is given ===

/// A copy with a number above every number that the agent's descriptors will have.
fn park(fd: BorrowedFd<'_>) -> Result<OwnedFd, StartError> {
    rustix::io::fcntl_dupfd_cloexec(fd, PARKED_FROM)
        .map_err(|errno| system("copy a descriptor")(errno.into()))
}

fn argv(spec: &ContainerSpec<'_>, payload_procs: usize) -> Pointers {
    let Epoch(epoch) = spec.epoch;
    let mut boot = BootArgs::new(LISTEN_FD, OUTPUT_FD, epoch);
    boot.env_fd = Some(ENV_FD);
    boot.payload_procs_fds = (PAYLOAD_FD..).take(payload_procs).collect();
    boot.tools_as = spec.tools_as;
    (boot.tool_uid, boot.tool_gid) = (spec.tool.uid, spec.tool.gid);
    boot.tool_groups = spec.tool.groups.clone();
    boot.user_name = spec.tool.name.clone();
    boot.home = spec.tool.home.clone();
    boot.workdir = spec.workdir.clone();
    boot.entrypoint = spec.entrypoint.clone();
    let arguments = std::iter::once("sinew-guest-agent".to_owned()).chain(boot.to_args());
    Pointers::new(arguments.map(text).collect())
}

fn etc_files(hostname: &str) -> Vec<EtcFile> {
    let hosts = format!(
        "127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n"
    );
    // Nobody answers there yet, and is known at once not to: a query fails without a wait.
    let resolv = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n".to_owned();
    let file =
        |name, in_upper, content: String| EtcFile { name, in_upper, content: content.into_bytes() };
    vec![
        file(c"hosts", c"u/etc/hosts", hosts),
        file(c"hostname", c"u/etc/hostname", format!("{hostname}\n")),
        file(c"resolv.conf", c"u/etc/resolv.conf", resolv),
    ]
}

/// What goes in has been checked to hold no NUL; should one slip through, the text ends there.
fn text(value: String) -> CString {
    let bytes: Vec<u8> = value.into_bytes().into_iter().take_while(|byte| *byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}
