//! Server-sent events, read from chunks that may be cut anywhere.
//!
//! Invariant: the frames depend on the bytes only, never on where they were cut; and never more
//! than [`FRAME_BYTES_MAX`] of an unfinished frame is held.

use std::collections::VecDeque;

use memchr::memchr2;

/// The brain's own limit on a request is 32 MiB, and a frame echoes at most one event of one:
/// the rest is room for the escapes and for what the brain adds.
pub(crate) const FRAME_BYTES_MAX: usize = 40 * 1024 * 1024;

/// A buffer that grew beyond this for one large frame is given back after it.
const BUFFER_KEPT_BYTES: usize = 64 * 1024;

const BOM: &[u8] = b"\xef\xbb\xbf";

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub name: Vec<u8>,
    pub data: Vec<u8>,
    /// A comment: no event, but a sign of life.
    pub comment: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a frame of the stream is larger than {FRAME_BYTES_MAX} bytes")]
pub(crate) struct FrameTooLarge;

pub(crate) struct FrameReader {
    line: Vec<u8>,
    frame: Frame,
    ready: VecDeque<Frame>,
    /// The line before ended in a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    at_start: bool,
    bytes_max: usize,
}

impl FrameReader {
    pub fn new() -> Self {
        Self::with_limit(FRAME_BYTES_MAX)
    }

    fn with_limit(bytes_max: usize) -> Self {
        Self {
            line: Vec::new(),
            frame: Frame::default(),
            ready: VecDeque::new(),
            after_cr: false,
            at_start: true,
            bytes_max,
        }
    }

    pub fn next_frame(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }

    /// Takes the next bytes of the stream. After an error the reader is of no more use.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), FrameTooLarge> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', bytes) else {
                return self.extend_line(bytes);
            };
            self.extend_line(&bytes[..end])?;
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.end_line();
        }
        Ok(())
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), FrameTooLarge> {
        let held = self.line.len() + self.frame.data.len() + self.frame.name.len();
        if held + bytes.len() > self.bytes_max {
            return Err(FrameTooLarge);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self) {
        let mut buffer = std::mem::take(&mut self.line);
        let mut line = buffer.as_slice();
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(BOM).unwrap_or(line);
        }
        if line.is_empty() {
            self.end_frame();
        } else {
            self.take_field(line);
        }
        if buffer.capacity() <= BUFFER_KEPT_BYTES {
            buffer.clear();
            self.line = buffer;
        }
    }

    fn take_field(&mut self, line: &[u8]) {
        let (field, value) = match memchr::memchr(b':', line) {
            Some(0) => {
                self.ready.push_back(Frame { comment: true, ..Frame::default() });
                return;
            }
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.frame.name = value.to_vec(),
            b"data" => {
                // The line feed that joins two data lines. A first empty line leaves none: JSON
                // does not mind.
                if !self.frame.data.is_empty() {
                    self.frame.data.push(b'\n');
                }
                self.frame.data.extend_from_slice(value);
            }
            // `id` and `retry` are not used by this protocol; others are to be ignored.
            _ => {}
        }
    }

    fn end_frame(&mut self) {
        let frame = std::mem::take(&mut self.frame);
        if !frame.name.is_empty() || !frame.data.is_empty() {
            self.ready.push_back(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(chunks: &[&[u8]], limit: usize) -> Result<Vec<Frame>, FrameTooLarge> {
        let mut reader = FrameReader::with_limit(limit);
        let mut frames = Vec::new();
        for chunk in chunks {
            reader.push(chunk)?;
            while let Some(frame) = reader.next_frame() {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[track_caller]
    fn check(stream: &str, expected: &[(&str, &str)]) {
        let frames = read(&[stream.as_bytes()], 1 << 20).unwrap();
        let seen: Vec<_> = frames
            .iter()
            .map(|f| match f.comment {
                true => (":", ""),
                false => {
                    (std::str::from_utf8(&f.name).unwrap(), std::str::from_utf8(&f.data).unwrap())
                }
            })
            .collect();
        assert_eq!(seen, expected, "{stream:?}");
    }

    #[test]
    fn frames_are_read_with_any_line_ending_name_and_shape() {
        check("event: a\ndata: {}\n\n", &[("a", "{}")]);
        check("event: a\r\ndata: {}\r\n\r\n", &[("a", "{}")]);
        check("event: a\rdata: {}\r\r", &[("a", "{}")]);
        check("data: {}\n\n", &[("", "{}")]);
        check("\u{feff}data:{}\n\n", &[("", "{}")]);
        check("data: {\ndata: }\n\n", &[("", "{\n}")]);
        check(": hello\n\nevent: ping\n\n", &[(":", ""), ("ping", "")]);
        check("id: 7\nretry: 3\nnonsense\ndata: 1\n\n", &[("", "1")]);
        check("event: a\nevent: b\ndata: 1\n\n", &[("b", "1")]);
        check("\n\n\n", &[]);
        check("data: unfinished\n", &[]);
    }

    #[test]
    fn a_frame_beyond_the_limit_is_an_error_whether_in_one_line_or_in_many() {
        assert_eq!(read(&[b"data: ", &[b'x'; 100]], 64), Err(FrameTooLarge));
        let lines = "data: 0123456789\n".repeat(8);
        assert_eq!(read(&[lines.as_bytes()], 64), Err(FrameTooLarge));
        let frames = "data: 0123456789\n\n".repeat(100);
        assert_eq!(read(&[frames.as_bytes()], 64).unwrap().len(), 100);
    }

    #[test]
    fn a_large_frame_does_not_leave_its_buffer_behind() {
        let mut reader = FrameReader::new();
        reader.push(b"data: ").unwrap();
        reader.push(&vec![b'x'; 1 << 20]).unwrap();
        reader.push(b"\n\n").unwrap();
        assert_eq!(reader.next_frame().unwrap().data.len(), 1 << 20);
        assert!(reader.line.capacity() <= BUFFER_KEPT_BYTES);
    }

    /// Bytes that are mostly stream syntax, so that the interesting states are reached.
    fn stream_like() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"data: ".to_vec()),
            Just(b"event:".to_vec()),
            Just(b":".to_vec()),
            Just(BOM.to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn chunking_never_changes_the_frames(
            bytes in stream_like(),
            sizes in proptest::collection::vec(1usize..7, 1..20),
        ) {
            let whole = read(&[&bytes], 1 << 20).unwrap();
            let mut rest = bytes.as_slice();
            let mut chunks = Vec::new();
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, tail) = rest.split_at((*size).min(rest.len()));
                chunks.push(chunk);
                rest = tail;
            }
            prop_assert_eq!(read(&chunks, 1 << 20).unwrap(), whole);
        }

        #[test]
        fn what_is_held_stays_within_the_limit(bytes in stream_like()) {
            let mut reader = FrameReader::with_limit(48);
            for chunk in bytes.chunks(5) {
                if reader.push(chunk).is_err() {
                    break;
                }
                let held = reader.line.len() + reader.frame.data.len() + reader.frame.name.len();
                prop_assert!(held <= 48 + chunk.len());
                while reader.next_frame().is_some() {}
            }
        }

        #[test]
        fn no_bytes_make_the_whole_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            crate::fuzz_sse(&bytes);
        }
    }
}
