//! The output of one call: beginning and end in memory, the rest in a file that the guest pays
//! for and the agent writes.
//!
//! Short output never becomes a file. A file that cannot be written (the disk is full) is given
//! up with a note, and the call goes on.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use guest_protocol::{CHUNK_BYTES_MAX, CallId, Note, OutputChunk, OutputLimits};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::payload::describe;

#[derive(Debug)]
pub struct Spool {
    directory: Rc<OwnedFd>,
    id: CallId,
    limits: OutputLimits,
    total_bytes: u64,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    disk: Disk,
}

#[derive(Debug)]
enum Disk {
    /// Head and tail still hold everything.
    Unused,
    Open {
        file: File,
        bytes: u64,
        full: bool,
    },
    /// Nothing more is written; what was can still be read.
    Failed {
        file: Option<File>,
        bytes: u64,
        reason: String,
    },
}

/// The file's name in the directory of outputs.
pub fn file_name(id: &CallId) -> String {
    format!("{id}.out")
}

// === impl Spool ===

impl Spool {
    pub fn new(directory: Rc<OwnedFd>, id: CallId, limits: OutputLimits) -> Self {
        Self {
            directory,
            id,
            limits,
            total_bytes: 0,
            head: Vec::new(),
            tail: VecDeque::new(),
            disk: Disk::Unused,
        }
    }

    pub fn push(&mut self, data: &[u8]) {
        let memory = u64::from(self.limits.head_bytes) + u64::from(self.limits.tail_bytes);
        if self.total_bytes + data.len() as u64 > memory {
            self.spill();
        }
        self.write(data);
        self.total_bytes += data.len() as u64;
        let room = (self.limits.head_bytes as usize).saturating_sub(self.head.len());
        let (to_head, to_tail) = data.split_at(room.min(data.len()));
        self.head.extend_from_slice(to_head);
        let tail_max = self.limits.tail_bytes as usize;
        let kept = &to_tail[to_tail.len().saturating_sub(tail_max)..];
        let surplus = (self.tail.len() + kept.len()).saturating_sub(tail_max);
        self.tail.drain(..surplus);
        self.tail.extend(kept);
    }

    /// From now on everything goes to the file, what was written before included.
    pub fn spill(&mut self) {
        if !matches!(self.disk, Disk::Unused) {
            return;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o644);
        let name = file_name(&self.id);
        match rustix::fs::openat(&*self.directory, name, flags | OFlags::CLOEXEC, mode) {
            Ok(fd) => {
                self.disk = Disk::Open { file: fd.into(), bytes: 0, full: false };
                let before: Vec<u8> = self.head.iter().chain(&self.tail).copied().collect();
                self.write(&before);
            }
            Err(error) => {
                let reason = describe(nix::errno::Errno::from_raw(error.raw_os_error()));
                self.disk = Disk::Failed { file: None, bytes: 0, reason };
            }
        }
    }

    fn write(&mut self, data: &[u8]) {
        let Disk::Open { file, bytes, full } = &mut self.disk else { return };
        let room = self.limits.spool_bytes.saturating_sub(*bytes);
        let mut rest = &data[..data.len().min(room as usize)];
        *full |= rest.len() < data.len();
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(written) => {
                    *bytes += written as u64;
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
                    let (file, bytes) = (file.try_clone().ok(), *bytes);
                    self.disk = Disk::Failed { file, bytes, reason: describe(errno) };
                    return;
                }
            }
        }
    }

    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// How much can be read back.
    pub fn spooled_bytes(&self) -> u64 {
        match &self.disk {
            Disk::Unused => self.total_bytes,
            Disk::Open { bytes, .. } => *bytes,
            Disk::Failed { file: Some(_), bytes, .. } => *bytes,
            Disk::Failed { file: None, .. } => self.head.len() as u64,
        }
    }

    pub fn read(&self, offset: u64, max_bytes: u64, finished: bool) -> OutputChunk {
        let available = self.spooled_bytes().saturating_sub(offset);
        let length = available.min(max_bytes).min(CHUNK_BYTES_MAX as u64) as usize;
        let mut data = vec![0; length];
        match &self.disk {
            Disk::Open { file, .. } | Disk::Failed { file: Some(file), .. } => {
                if file.read_exact_at(&mut data, offset).is_err() {
                    data.clear();
                }
            }
            Disk::Unused | Disk::Failed { file: None, .. } => {
                let whole = self.head.iter().chain(&self.tail).copied();
                data = whole.skip(offset as usize).take(length).collect();
            }
        }
        OutputChunk { offset, data, spooled_bytes: self.spooled_bytes(), finished }
    }

    pub fn head(&self) -> Vec<u8> {
        self.head.clone()
    }

    pub fn tail(&self) -> Vec<u8> {
        self.tail.iter().copied().collect()
    }

    /// Whether there is a file, and the guest may find more in it than the outcome says.
    pub fn has_file(&self) -> bool {
        matches!(self.disk, Disk::Open { .. } | Disk::Failed { file: Some(_), .. })
    }

    /// The size of the file, for the keeping of outputs.
    pub fn file_bytes(&self) -> u64 {
        match &self.disk {
            Disk::Open { bytes, .. } | Disk::Failed { bytes, .. } => *bytes,
            Disk::Unused => 0,
        }
    }

    pub fn notes(&self) -> Option<Note> {
        match &self.disk {
            Disk::Open { full: true, bytes, .. } => Some(Note::SpoolLimit { kept_bytes: *bytes }),
            Disk::Failed { reason, .. } => Some(Note::SpoolError(reason.clone())),
            Disk::Unused | Disk::Open { .. } => None,
        }
    }

    /// Takes the file out of the guest's sight.
    pub fn remove_file(&self) {
        if self.has_file() {
            let name = file_name(&self.id);
            let _ = rustix::fs::unlinkat(&*self.directory, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(head_bytes: u32, tail_bytes: u32, spool_bytes: u64) -> (tempfile::TempDir, Spool) {
        let directory = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(directory.path()).unwrap();
        let limits = OutputLimits { spool_bytes, head_bytes, tail_bytes };
        let spool = Spool::new(Rc::new(fd.into()), CallId::generate(), limits);
        (directory, spool)
    }

    #[test]
    fn short_output_stays_in_memory_and_long_output_is_whole_in_the_file() {
        let (directory, mut spool) = spool(4, 4, 1000);
        spool.push(b"abc");
        spool.push(b"defgh");
        assert_eq!((spool.head(), spool.tail()), (b"abcd".to_vec(), b"efgh".to_vec()));
        assert!(!spool.has_file());
        assert_eq!(spool.read(2, 4, false).data, b"cdef");

        spool.push(b"ijklmnop");
        assert_eq!((spool.head(), spool.tail()), (b"abcd".to_vec(), b"mnop".to_vec()));
        assert_eq!(spool.read(0, 100, true).data, b"abcdefghijklmnop");
        let file = directory.path().join(file_name(&spool.id));
        assert_eq!(std::fs::read(&file).unwrap(), b"abcdefghijklmnop");
        spool.remove_file();
        assert!(!file.exists());
    }

    #[test]
    fn beyond_the_limit_is_counted_and_dropped_but_the_tail_is_the_true_end() {
        let (_directory, mut spool) = spool(2, 2, 5);
        for byte in b'a'..=b'z' {
            spool.push(&[byte]);
        }
        assert_eq!(spool.total_bytes(), 26);
        assert_eq!(spool.spooled_bytes(), 5);
        assert_eq!(spool.read(0, 100, true).data, b"abcde");
        assert_eq!(spool.tail(), b"yz");
        assert_eq!(spool.notes(), Some(Note::SpoolLimit { kept_bytes: 5 }));
        assert_eq!(spool.read(99, 100, true).data, b"");
    }

    #[test]
    fn a_disk_that_fills_up_costs_a_note_and_no_more() {
        let (_directory, mut spool) = spool(2, 2, 100);
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        spool.disk = Disk::Open { file, bytes: 0, full: false };
        spool.push(b"0123456789");
        spool.push(b"ab");
        assert_eq!(spool.notes(), Some(Note::SpoolError("no space left on device".into())));
        assert_eq!((spool.head(), spool.tail()), (b"01".to_vec(), b"ab".to_vec()));
        assert_eq!(spool.total_bytes(), 12);
    }

    #[test]
    fn a_file_that_cannot_be_made_costs_a_note_and_no_more() {
        let (directory, mut spool) = spool(3, 3, 100);
        std::fs::write(directory.path().join(file_name(&spool.id)), b"in the way").unwrap();
        spool.push(b"0123456789");
        assert_eq!(spool.notes(), Some(Note::SpoolError("file exists".into())));
        assert_eq!((spool.head(), spool.tail()), (b"012".to_vec(), b"789".to_vec()));
        assert_eq!(spool.read(0, 100, true).data, b"012");
    }
}
