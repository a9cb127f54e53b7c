//! The container's network namespace, made and configured outside, so that guest root holds no
//! capability over it. It holds loopback and nothing else.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::{StartError, system};
use crate::spec::ID_RANGE;
use crate::sys;

/// Keeps the namespace alive, with or without processes in it.
#[derive(Debug)]
pub struct NetworkNamespace(OwnedFd);

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A new namespace whose loopback is up, where every port and ping are open to the sandbox with
/// this id range.
pub fn loopback_only(id_base: u32) -> Result<NetworkNamespace, StartError> {
    // `unshare` moves one thread, which then must not serve anything else: a thread of its own.
    let made = std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || make(id_base))
        .map_err(system("start a thread"))?
        .join();
    made.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        .map(NetworkNamespace)
        .map_err(system("make a network namespace"))
}

fn make(id_base: u32) -> io::Result<OwnedFd> {
    sys::unshare(libc::CLONE_NEWNET)?;
    raise_loopback()?;
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    let last = id_base.saturating_add(ID_RANGE - 1);
    fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{id_base} {last}"))?;
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn raise_loopback() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: plain numbers and bytes; all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    use std::os::fd::AsRawFd;
    // SAFETY: `request` is a whole `struct ifreq` with a terminated name.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
