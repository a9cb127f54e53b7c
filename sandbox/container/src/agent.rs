//! The guest agent as a sealed anonymous file: no path leads to it and nobody can write it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, memfd_create};

/// `MFD_EXEC` and `MFD_NOEXEC_SEAL` of `linux/memfd.h`.
const EXECUTABLE: MemfdFlags = MemfdFlags::from_bits_retain(0x10);
const NEVER_EXECUTABLE: MemfdFlags = MemfdFlags::from_bits_retain(0x8);

/// Puts a static executable into a sealed memfd. One serves every container.
pub fn sealed_agent(program: &[u8]) -> io::Result<OwnedFd> {
    sealed("sinew-agent", program, EXECUTABLE)
}

/// Bytes for a process that inherits the descriptor.
pub(crate) fn sealed_data(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    sealed(name, bytes, NEVER_EXECUTABLE)
}

fn sealed(name: &str, bytes: &[u8], mode: MemfdFlags) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the two modes, and need none.
    let fd = memfd_create(name, flags | mode).or_else(|_| memfd_create(name, flags))?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}
