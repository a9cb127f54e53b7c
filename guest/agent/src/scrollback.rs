//! The last part of what a terminal showed, by absolute offsets: a ring in memory, because a
//! terminal's output has no end and only its end is of use.
//!
//! **Invariant:** it begins between two control sequences and at a whole character, as far as one
//! can be found, and knows which modes everything before left on.

use std::collections::VecDeque;

use guest_protocol::terminal::{SCROLLBACK_BYTES, TERMINAL_CHUNK_BYTES_MAX, TerminalChunk};
use guest_protocol::vt::{Modes, Scanner};

/// How much more is dropped to begin in a good place. Longer than a sequence anybody draws with.
const CLEAN_BYTES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub struct Scrollback {
    kept: VecDeque<u8>,
    total_bytes: u64,
    /// Has followed everything before `kept`.
    before: Scanner,
}

// === impl Scrollback ===

impl Scrollback {
    pub fn push(&mut self, data: &[u8]) {
        let data_start = data.len().saturating_sub(SCROLLBACK_BYTES);
        let (lost, data) = data.split_at(data_start);
        let surplus = (self.kept.len() + data.len()).saturating_sub(SCROLLBACK_BYTES);
        self.drop_first(surplus);
        // Only if one piece is larger than everything that is kept.
        self.before.scan(lost);
        self.make_room(data.len());
        self.kept.extend(data);
        self.total_bytes += (lost.len() + data.len()) as u64;
        if surplus > 0 {
            self.clean_start();
        }
    }

    /// Grows as a vector does, but never beyond what is kept.
    fn make_room(&mut self, bytes: usize) {
        let needed = self.kept.len() + bytes;
        if needed > self.kept.capacity() {
            let room = (2 * self.kept.capacity()).clamp(needed, SCROLLBACK_BYTES.max(needed));
            self.kept.reserve_exact(room - self.kept.len());
        }
    }

    fn drop_first(&mut self, count: usize) {
        let (first, second) = self.kept.as_slices();
        let (of_first, of_second) = (count.min(first.len()), count.saturating_sub(first.len()));
        self.before.scan(first.get(..of_first).unwrap_or_default());
        self.before.scan(second.get(..of_second).unwrap_or_default());
        self.kept.drain(..count.min(self.kept.len()));
    }

    fn clean_start(&mut self) {
        for _ in 0..CLEAN_BYTES_MAX {
            let inside_character = self.kept.front().is_some_and(|byte| byte & 0xc0 == 0x80);
            if self.before.between_sequences() && !inside_character {
                return;
            }
            self.drop_first(1);
        }
    }

    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    fn start(&self) -> u64 {
        self.total_bytes - self.kept.len() as u64
    }

    /// What is kept from `offset` on, at most `max_bytes` of it.
    pub fn read(&self, offset: u64, max_bytes: u64) -> TerminalChunk {
        let start = self.start();
        let from = offset.max(start);
        let skip = (from - start).min(self.kept.len() as u64) as usize;
        let length = max_bytes.min(TERMINAL_CHUNK_BYTES_MAX as u64) as usize;
        TerminalChunk {
            offset: from,
            data: self.kept.range(skip..).take(length).copied().collect(),
            modes: if from > offset { self.before.modes() } else { Modes::default() },
            total_bytes: self.total_bytes,
            exit: None,
        }
    }

    /// Whether `bytes` more would push out something from `offset` on.
    pub fn would_lose(&self, offset: u64, bytes: usize) -> bool {
        self.total_bytes.saturating_sub(offset) + bytes as u64 > SCROLLBACK_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(scrollback: &Scrollback) -> Vec<u8> {
        let mut offset = 0;
        let mut whole = Vec::new();
        loop {
            let chunk = scrollback.read(offset, u64::MAX);
            if chunk.data.is_empty() {
                return whole;
            }
            offset = chunk.offset + chunk.data.len() as u64;
            whole.extend(chunk.data);
        }
    }

    #[test]
    fn the_end_is_kept_and_a_late_reader_is_told_where_it_begins() {
        let mut scrollback = Scrollback::default();
        scrollback.push(b"hello");
        assert_eq!(whole(&scrollback), b"hello");
        assert_eq!(scrollback.read(2, 2).data, b"ll");
        assert!(!scrollback.would_lose(0, SCROLLBACK_BYTES - 5));
        assert!(scrollback.would_lose(0, SCROLLBACK_BYTES - 4));

        for _ in 0..SCROLLBACK_BYTES {
            scrollback.push(b"ab");
        }
        let chunk = scrollback.read(0, 2);
        assert_eq!(chunk.total_bytes, 5 + 2 * SCROLLBACK_BYTES as u64);
        assert_eq!(chunk.offset, chunk.total_bytes - SCROLLBACK_BYTES as u64);
        assert_eq!(whole(&scrollback).len(), SCROLLBACK_BYTES);
        assert!(scrollback.kept.capacity() <= SCROLLBACK_BYTES);
        let beyond = scrollback.read(chunk.total_bytes + 9, 10);
        assert!(beyond.data.is_empty());

        let mut large = vec![b'x'; 3 * SCROLLBACK_BYTES];
        large.extend(b"the end");
        scrollback.push(&large);
        let kept = whole(&scrollback);
        assert_eq!(kept.len(), SCROLLBACK_BYTES);
        assert!(kept.ends_with(b"the end"));
    }

    #[test]
    fn it_begins_at_a_whole_character_and_knows_the_modes_that_are_on() {
        let mut scrollback = Scrollback::default();
        scrollback.push(b"\x1b[?1049h");
        for _ in 0..SCROLLBACK_BYTES / 4 {
            scrollback.push("\u{1b}[1mü".as_bytes());
        }
        let chunk = scrollback.read(0, 100);
        assert!(chunk.data.starts_with(b"\x1b[1m") || chunk.data.starts_with("ü".as_bytes()));
        assert_eq!(chunk.modes.enter(), b"\x1b[?1049h");
        let late = scrollback.read(chunk.offset, 100);
        assert!(late.modes.is_default(), "only where output is missing");

        // A sequence without an end costs no more than a bounded part.
        scrollback.push(b"\x1b]0;");
        scrollback.push(&vec![b'x'; 2 * SCROLLBACK_BYTES]);
        assert_eq!(whole(&scrollback).len(), SCROLLBACK_BYTES - CLEAN_BYTES_MAX);
    }
}
