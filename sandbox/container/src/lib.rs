//! Starts and ends containers: the privileged mechanism behind the container tier.
//!
//! A container is one process tree in namespaces of its own, over an id-mapped overlay of an
//! image and a volume, behind a system-call allow-list, in cgroups of its own. Whoever calls this
//! crate (the launcher) has checked what it passes: nothing here decides who may have what.
//!
//! Three properties shape the code:
//!
//! - **Guest root holds no capability over its own mounts.** Mount, pid, ipc, uts and cgroup
//!   namespaces are made before the user namespace, by host root, and belong to the initial user
//!   namespace. What is mounted read-only or masked stays so even for a guest that got past the
//!   system-call filter.
//! - **A failed start leaves nothing.** All mounts live in the child's own mount namespace and go
//!   with it; only cgroups outlive a process, and a guard removes those.
//! - **The child of a threaded process may not allocate.** Everything it needs is computed before
//!   it exists ([`start`]); between clone and exec it makes system calls only ([`child`]).
//!
//! Everything here blocks: callers run it off their event loop.

mod agent;
mod caps;
pub mod cgroup;
mod child;
mod device_tree;
mod error;
mod idmap;
mod mounts;
mod network;
mod prepared;
mod proc_tree;
mod rootfs;
mod seccomp;
mod spec;
mod start;
mod stop;
mod sys;
mod volatile;

pub use agent::sealed_agent;
pub use error::{ContainerError, StartError, Step, StopError};
pub use idmap::map_ids;
pub use prepared::Prepared;
pub use spec::{ContainerSpec, ID_RANGE, LISTEN_FD, OUTPUT_FD, Started, ToolUser};
pub use start::Containers;
pub use volatile::settle;
