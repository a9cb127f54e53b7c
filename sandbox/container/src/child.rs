//! What the new process does between clone and exec: system calls, and nothing that allocates,
//! locks or panics, because the launcher's other threads may have held any lock when it was made.

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::error::Step;
use crate::spec::{ENV_FD, LISTEN_FD, OUTPUT_FD, PAYLOAD_FD};
use crate::{caps, proc_tree, rootfs, sys};

/// Beside failures, the only message to the parent: the user namespace wants its ids.
pub const WANTS_IDS: u8 = 0xFF;

/// The parent hands over descriptors with numbers from here on, above every final number.
pub const PARKED_FROM: RawFd = 64;

/// Guests go first when the machine is short of memory: the reference machine does not let us
/// lower anyone's score, so theirs are raised.
const OOM_SCORE_ADJ: &[u8] = b"500";

/// More would be a leak; what a program asks for is bounded by pids and memory anyway.
const OPEN_FILES_SOFT: u64 = 1024;
const OPEN_FILES_HARD: u64 = 20_000;
const LOCKED_BYTES: u64 = 8 << 20;
/// Where crashes go to a program of the host's, the kernel runs it as host root whatever the limit
/// is, but for this one.
const CORE_BYTES: u64 = 1;

/// Everything the child needs, computed before it exists.
pub struct Plan<'a> {
    pub control: BorrowedFd<'a>,
    /// Written to before anything else is done.
    pub groups: &'a [OwnedFd],
    pub network: BorrowedFd<'a>,
    pub image: BorrowedFd<'a>,
    pub volume: BorrowedFd<'a>,
    pub agent: BorrowedFd<'a>,
    pub listener: BorrowedFd<'a>,
    pub env: BorrowedFd<'a>,
    pub payload_procs: &'a [OwnedFd],
    pub id_base: u32,
    /// User and group of the tool's user, on the host.
    pub tool_owner: (u32, u32),
    /// The names on the way to the work directory.
    pub workdir: Vec<CString>,
    pub root_id: CString,
    pub tty_group: CString,
    pub shm_bytes: CString,
    pub hostname: CString,
    pub etc_files: Vec<EtcFile>,
    pub argv: Pointers,
    pub envp: Pointers,
    pub filter: &'a [libc::sock_filter],
}

pub struct EtcFile {
    pub name: &'static CStr,
    /// Its place in the volume.
    pub in_upper: &'static CStr,
    pub content: Vec<u8>,
}

/// Texts for exec, with the null-terminated list of their addresses.
pub struct Pointers {
    _texts: Vec<CString>,
    addresses: Vec<*const c_char>,
}

impl Pointers {
    pub fn new(texts: Vec<CString>) -> Self {
        // The texts' own allocations do not move with the vector that owns them.
        let addresses = texts.iter().map(|text| text.as_ptr());
        let addresses = addresses.chain([std::ptr::null()]).collect();
        Self { _texts: texts, addresses }
    }
}

/// Becomes the agent, or reports why not and ends.
pub fn run(plan: &Plan<'_>) -> ! {
    let (step, errno) = match become_agent(plan) {
        Ok(errno) => (Step::Exec, errno),
        Err(failure) => failure,
    };
    let [a, b, c, d] = errno.raw_os_error().to_le_bytes();
    let _ = rustix::io::write(plan.control, &[step as u8, a, b, c, d]);
    sys::exit_now(1)
}

/// Returns only the failure of exec.
fn become_agent(plan: &Plan<'_>) -> Result<Errno, (Step, Errno)> {
    sys::reset_signals();
    enter_groups(plan).map_err(|e| (Step::Cgroups, e))?;
    close_strangers(plan).map_err(|e| (Step::Descriptors, e))?;
    raise_oom_score().map_err(|e| (Step::OomScore, e))?;
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::empty());
    sys::enter_network(plan.network).map_err(|e| (Step::EnterNetwork, e))?;
    sys::unshare(libc::CLONE_NEWCGROUP).map_err(|e| (Step::CgroupNamespace, e))?;
    let entered = rootfs::enter(plan)?;
    rustix::system::sethostname(plan.hostname.to_bytes()).map_err(|e| (Step::Hostname, e))?;
    limit_resources().map_err(|e| (Step::Rlimits, e))?;

    user_namespace_of(plan.id_base).map_err(|e| (Step::UserNamespace, e))?;
    let asked = rustix::io::write(plan.control, &[WANTS_IDS]);
    asked.map_err(|e| (Step::Control, e))?;
    wait_for_parent(plan)?;
    become_root_inside().map_err(|e| (Step::Identity, e))?;
    proc_tree::forbid_namespaces(entered.namespace_limits.as_fd())
        .map_err(|e| (Step::NamespaceLimits, e))?;

    let inherited = arrange_descriptors(plan, &entered.output);
    inherited.map_err(|e| (Step::Descriptors, e))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    caps::limit().map_err(|e| (Step::Capabilities, e))?;
    // So that a filter may be loaded without CAP_SYS_ADMIN, and no setuid file of the image or of
    // a package raises anyone. Installing such a file works; `su` from user to root does not.
    rustix::thread::set_no_new_privs(true).map_err(|e| (Step::NoNewPrivileges, e))?;
    sys::load_seccomp(plan.filter).map_err(|e| (Step::Seccomp, e))?;
    Ok(sys::exec(plan.agent.as_raw_fd(), &plan.argv.addresses, &plan.envp.addresses))
}

/// So that whatever is done from here on is accounted, and ends with the group.
fn enter_groups(plan: &Plan<'_>) -> Result<(), Errno> {
    plan.groups.iter().try_for_each(|group| rustix::io::write(group, b"0").map(drop))
}

fn raise_oom_score() -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let score = rustix::fs::openat(CWD, c"/proc/self/oom_score_adj", flags, Mode::empty())?;
    rustix::io::write(&score, OOM_SCORE_ADJ).map(drop)
}

/// Closes what the plan does not name: this is a copy of the launcher, lock of the installation,
/// connections and the parent's end of the control socket included. While that end is open here,
/// the launcher's death goes unnoticed.
fn close_strangers(plan: &Plan<'_>) -> Result<(), Errno> {
    let fixed = [plan.control, plan.network, plan.image, plan.volume];
    let fixed = fixed.into_iter().chain([plan.agent, plan.listener, plan.env]);
    let kept = fixed.map(|fd| fd.as_raw_fd());
    let kept = kept.chain(plan.payload_procs.iter().map(|fd| fd.as_raw_fd()));
    let mut from = LISTEN_FD;
    while let Some(next) = kept.clone().filter(|fd| *fd >= from).min() {
        sys::close_between(from, next - 1)?;
        from = next + 1;
    }
    sys::close_between(from, RawFd::MAX)
}

fn wait_for_parent(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    match rustix::io::read(plan.control, &mut [0_u8]) {
        Ok(1..) => Ok(()),
        // The launcher is gone, and nobody wants this container.
        Ok(0) => Err((Step::Control, Errno::PIPE)),
        Err(errno) => Err((Step::Control, errno)),
    }
}

fn limit_resources() -> Result<(), Errno> {
    let open_files = sys::hard_rlimit(libc::RLIMIT_NOFILE)?.min(OPEN_FILES_HARD);
    sys::set_rlimit(libc::RLIMIT_NOFILE, OPEN_FILES_SOFT.min(open_files), open_files)?;
    sys::set_rlimit(libc::RLIMIT_CORE, CORE_BYTES, CORE_BYTES)?;
    let locked = sys::hard_rlimit(libc::RLIMIT_MEMLOCK)?.min(LOCKED_BYTES);
    sys::set_rlimit(libc::RLIMIT_MEMLOCK, locked, locked)?;
    sys::set_rlimit(libc::RLIMIT_RTPRIO, 0, 0)?;
    sys::set_rlimit(libc::RLIMIT_NICE, 0, 0)
}

/// The kernel counts what a user namespace holds (inotify instances and watches, pending signals,
/// message queues) against the user that made it, too. Made by root, all sandboxes and the host's
/// own root would share one count, and one sandbox could use it up.
fn user_namespace_of(id_base: u32) -> Result<(), Errno> {
    let root = Uid::ROOT;
    rustix::thread::set_thread_res_uid(root, Uid::from_raw(id_base), root)?;
    // The change has emptied the effective set, and some hosts let only a privileged process make
    // user namespaces.
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets)?;
    sys::unshare(libc::CLONE_NEWUSER)
}

fn become_root_inside() -> Result<(), Errno> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// The agent's descriptors at the numbers its arguments name, and nothing else.
fn arrange_descriptors(plan: &Plan<'_>, output: &OwnedFd) -> Result<(), Errno> {
    let output = sys::lift_descriptor(output.as_raw_fd(), PARKED_FROM)?;
    let null =
        rustix::fs::openat(CWD, c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // Never closed by its owner: its number is about to be another descriptor's.
    let null = sys::lift_descriptor(null.into_raw_fd(), PARKED_FROM)?;
    for standard in 0..LISTEN_FD {
        sys::place_descriptor(null, standard)?;
    }
    sys::place_descriptor(plan.listener.as_raw_fd(), LISTEN_FD)?;
    sys::place_descriptor(output, OUTPUT_FD)?;
    sys::place_descriptor(plan.env.as_raw_fd(), ENV_FD)?;
    let mut next = PAYLOAD_FD;
    for procs in plan.payload_procs {
        sys::place_descriptor(procs.as_raw_fd(), next)?;
        next += 1;
    }
    sys::close_on_exec_from(next)
}
