//! Why a container did not start or end.

use std::fmt;
use std::io;
use std::path::PathBuf;

use base_types::SandboxId;

/// The machine cannot carry containers.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("cgroup controller `{0}` is not available: mount it, or have it delegated")]
    NoController(&'static str),
    #[error("no cgroup file system is mounted at /sys/fs/cgroup")]
    NoCgroups,
    #[error("a cgroup prefix is made of letters, digits, dashes and underscores, not `{0}`")]
    BadPrefix(String),
    #[error("{what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    BadSpec(String),
    #[error("{what} {path}")]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// After a power cut or a kernel crash the upper layer may be older than what was promised.
    #[error("volume {0} was in use when the machine stopped: its last writes may be missing")]
    NotSynced(PathBuf),
    /// Two mounts of one volume would destroy each other's files.
    #[error("processes of sandbox {0} are still there")]
    StillRunning(SandboxId),
    #[error("make the cgroups of sandbox {sandbox}")]
    Cgroup {
        sandbox: SandboxId,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// The new process reported it, before the agent ran.
    #[error("{0}")]
    Child(Step, #[source] io::Error),
    #[error("the new process ended before the agent ran")]
    Died,
    #[error("the new process was not ready within {0} s")]
    TimedOut(u64),
}

#[derive(Debug, thiserror::Error)]
pub enum StopError {
    #[error("processes of sandbox {sandbox} are still there after {seconds} s")]
    Stuck { sandbox: SandboxId, seconds: u64 },
    #[error("{what} of sandbox {sandbox}")]
    Io {
        what: &'static str,
        sandbox: SandboxId,
        #[source]
        source: io::Error,
    },
}

/// What the child was doing. One byte on the way to the parent.
macro_rules! steps {
    ($($name:ident = $text:literal),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Step { $($name),* }

        impl Step {
            pub const ALL: &[Step] = &[$(Step::$name),*];
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Step::$name => $text),* })
            }
        }
    };
}

steps! {
    Control = "talk to the launcher",
    Cgroups = "enter the cgroups",
    OomScore = "raise the oom score",
    EnterNetwork = "enter the network namespace",
    CgroupNamespace = "make the cgroup namespace",
    PrivateMounts = "make mounts private",
    Scratch = "mount a scratch file system on /tmp",
    Layers = "attach image and volume",
    DropResource = "drop CAP_SYS_RESOURCE",
    Overlay = "mount the overlay",
    OverlayReadOnly = "mount the overlay writable",
    Directories = "make the standard directories",
    EtcFiles = "write the files in /etc",
    Proc = "mount /proc",
    ProcMasks = "mask parts of /proc",
    Dev = "mount /dev",
    DevNodes = "bind the device nodes",
    Run = "mount /run",
    Output = "bind the output directory",
    PivotRoot = "enter the new root",
    Hostname = "set the host name",
    Rlimits = "set resource limits",
    UserNamespace = "make the user namespace",
    Identity = "become root of the user namespace",
    NamespaceLimits = "forbid further namespaces",
    Descriptors = "arrange descriptors",
    Capabilities = "limit capabilities",
    NoNewPrivileges = "set no_new_privs",
    Seccomp = "load the system call filter",
    Exec = "run the guest agent",
}

/// Attaches a path to an I/O error.
pub(crate) fn at(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> StartError {
    let path = path.into();
    move |source| StartError::Path { what, path, source }
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}
