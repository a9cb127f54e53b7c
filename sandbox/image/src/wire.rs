//! What the jailed unpacker and the process that started it say to each other: JSON in frames of a
//! known length, with descriptors in one direction only.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{ImageConfig, ImageSource};
use crate::manifest::Package;
use crate::unpack::error::UnpackError;
use crate::unpack::limits::ImportLimits;

/// The largest report has every package and label that their limits allow.
const FRAME_BYTES_MAX: usize = 16 << 20;
const LENGTH_BYTES: usize = 4;
/// The tree and the archive.
const DESCRIPTORS_MAX: usize = 2;

#[derive(Debug, Serialize, Deserialize)]
pub enum ToHost {
    /// In a user namespace that has no ids yet, with nothing of the host in sight.
    Separated,
    /// A file of the layout's directory.
    Open {
        name: String,
    },
    /// `total` is 0 while nobody knows it.
    Progress {
        done: u64,
        total: u64,
    },
    Done(Box<Report>),
    Failed(UnpackError),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum ToUnpacker {
    /// With the tree's root, and for an archive its file.
    Go(Job),
    /// With the file, if there is one.
    Opened { found: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub limits: ImportLimits,
    pub reference: Option<String>,
    /// In OCI's words.
    pub architecture: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub source: ImageSource,
    pub config: Option<ImageConfig>,
    pub packages: Vec<Package>,
}

/// Descriptors travel with the length, which is never empty.
pub fn send(
    socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?.to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(socket, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
    let rest = length.get(sent..).unwrap_or_default();
    let mut socket = socket;
    socket.write_all(rest)?;
    socket.write_all(&body)
}

/// Without descriptors: those that came along are closed by the kernel.
pub fn receive<T: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<T> {
    let mut length = [0; LENGTH_BYTES];
    socket.read_exact(&mut length)?;
    body(socket, length)
}

pub fn receive_with<T: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0; LENGTH_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut length)], &mut control, flags)?.bytes;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    socket.read_exact(length.get_mut(got..).unwrap_or_default())?;
    Ok((body(socket, length)?, descriptors))
}

fn body<T: DeserializeOwned>(mut socket: &UnixStream, length: [u8; 4]) -> io::Result<T> {
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other("the message is too long"));
    }
    let mut body = Vec::new();
    // Grows with what arrives, not with what was announced.
    let got = Read::take(&mut socket, length as u64).read_to_end(&mut body)?;
    if got != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_arrive_with_their_descriptors() {
        let (one, two) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&one, &ToUnpacker::Opened { found: true }, &[file.as_fd()]).unwrap();
        send(&one, &ToUnpacker::Opened { found: false }, &[]).unwrap();
        let (first, descriptors) = receive_with::<ToUnpacker>(&two).unwrap();
        assert!(matches!(first, ToUnpacker::Opened { found: true }) && descriptors.len() == 1);
        let (_, descriptors) = receive_with::<ToUnpacker>(&two).unwrap();
        assert!(descriptors.is_empty());
        drop(one);
        assert!(receive_with::<ToUnpacker>(&two).is_err());
    }

    #[test]
    fn a_huge_length_and_nonsense_are_refused() {
        for bytes in [&[0xff; 4][..], &[3, 0, 0, 0, b'{', b'}', b'}'], &[9, 0, 0, 0, b'{']] {
            let (mut one, two) = UnixStream::pair().unwrap();
            one.write_all(bytes).unwrap();
            drop(one);
            assert!(receive::<ToHost>(&two).is_err());
        }
    }
}
