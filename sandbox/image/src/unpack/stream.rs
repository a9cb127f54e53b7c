//! Bytes on their way from a blob to the tar reader: counted, hashed, decompressed, and stopped
//! where they become too many.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};

use crate::unpack::error::UnpackError;
use crate::unpack::limits::{
    BUFFER_BYTES, ImportLimits, RATIO_FROM_BYTES, RATIO_MAX, WINDOW_BYTES_MAX,
};

/// As many bytes as tell the kind of a file.
pub const MAGIC_BYTES: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
}

impl Compression {
    /// From a file's first bytes, never from its name or what a manifest says.
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A frame that holds no data, as parallel compressors write first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Compression::Xz,
            _ => Compression::None,
        }
    }
}

/// Counts and hashes what goes through a [`Metered`] reader.
#[derive(Clone, Default)]
pub struct Meter {
    bytes: Rc<Cell<u64>>,
    hasher: Rc<RefCell<Sha256>>,
}

impl Meter {
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// In the form that manifests write.
    pub fn digest(&self) -> String {
        digest_text(&self.hasher.borrow().clone().finalize())
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    digest_text(&Sha256::digest(bytes))
}

fn digest_text(digest: &[u8]) -> String {
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub struct Metered<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> Metered<R> {
    pub fn new(inner: R) -> (Self, Meter) {
        let meter = Meter::default();
        (Self { inner, meter: meter.clone() }, meter)
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.meter.hasher.borrow_mut().update(buffer.get(..count).unwrap_or_default());
        self.meter.bytes.set(self.meter.bytes.get() + count as u64);
        Ok(count)
    }
}

/// A blob's content, decompressed if it is compressed.
pub struct Unpacked<'a> {
    decoder: Decoder<'a>,
    /// What the blob itself was, and what came out of it.
    pub packed: Meter,
    pub unpacked: Meter,
    what: String,
    limits: ImportLimits,
}

type Input<'a> = BufReader<Metered<Box<dyn Read + 'a>>>;

enum Decoder<'a> {
    Plain(Input<'a>),
    Gzip(Box<MultiGzDecoder<Input<'a>>>),
    Zstd(Box<Zstd<Input<'a>>>),
    Xz(Box<XzReader<Input<'a>>>),
}

// === impl Unpacked ===

impl<'a> Unpacked<'a> {
    pub fn new(
        blob: Box<dyn Read + 'a>,
        what: &str,
        limits: ImportLimits,
    ) -> Result<Self, UnpackError> {
        let (metered, packed) = Metered::new(blob);
        let mut input = BufReader::with_capacity(BUFFER_BYTES, metered);
        let start = input.fill_buf().map_err(UnpackError::reading(what))?;
        let decoder = match Compression::of(start) {
            Compression::None => Decoder::Plain(input),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => Decoder::Zstd(Box::new(Zstd::new(input))),
            Compression::Xz => {
                let memory_kib = u32::try_from(WINDOW_BYTES_MAX >> 10).unwrap_or(u32::MAX);
                Decoder::Xz(Box::new(XzReader::new_mem_limit(input, true, memory_kib)))
            }
        };
        let unpacked = Meter::default();
        Ok(Self { decoder, packed, unpacked, what: what.to_owned(), limits })
    }

    pub fn is_compressed(&self) -> bool {
        !matches!(self.decoder, Decoder::Plain(_))
    }

    /// Reads what is left, so that both digests are those of the whole.
    pub fn finish(mut self) -> Result<(Meter, Meter), UnpackError> {
        let what = self.what.clone();
        drain(&mut self, &what)?;
        match &mut self.decoder {
            Decoder::Plain(input) => drain(input, &what)?,
            Decoder::Gzip(decoder) => drain(decoder.get_mut(), &what)?,
            Decoder::Zstd(decoder) => drain(&mut decoder.input, &what)?,
            // It reads to the end of its input, or fails.
            Decoder::Xz(_) => {}
        }
        Ok((self.packed, self.unpacked))
    }

    fn check(&self) -> Result<(), UnpackError> {
        let bytes = self.unpacked.bytes();
        if bytes > self.limits.stream_bytes() {
            return Err(UnpackError::TooLarge { limit: self.limits.bytes });
        }
        let is_bomb = self.is_compressed()
            && bytes > RATIO_FROM_BYTES
            && bytes / RATIO_MAX > self.packed.bytes();
        if is_bomb {
            return Err(UnpackError::Bomb { what: self.what.clone(), ratio: RATIO_MAX, bytes });
        }
        Ok(())
    }
}

impl Read for Unpacked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.decoder {
            Decoder::Plain(input) => input.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
            Decoder::Xz(decoder) => decoder.read(buffer),
        }?;
        self.unpacked.hasher.borrow_mut().update(buffer.get(..count).unwrap_or_default());
        self.unpacked.bytes.set(self.unpacked.bytes.get() + count as u64);
        self.check()?;
        Ok(count)
    }
}

/// All frames of a zstd file, with those passed over that hold no data.
struct Zstd<R> {
    input: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

const SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184d_2a50..=0x184d_2a5f;

impl<R: BufRead> Zstd<R> {
    fn new(input: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_BYTES_MAX);
        Self { input, decoder, is_in_frame: false }
    }

    /// Whether there is another frame with data.
    fn begin_frame(&mut self) -> io::Result<bool> {
        loop {
            let mut start = [0; 4];
            if self.input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            self.input.read_exact(&mut start)?;
            if !SKIPPABLE.contains(&u32::from_le_bytes(start)) {
                let whole = (&start[..]).chain(&mut self.input);
                self.decoder.reset(whole).map_err(io::Error::other)?;
                self.is_in_frame = true;
                return Ok(true);
            }
            let mut length = [0; 4];
            self.input.read_exact(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            let skipped = io::copy(&mut (&mut self.input).take(length), &mut io::sink())?;
            if skipped != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.is_in_frame = false;
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(stored), Some(found)) if stored != found => {
                Err(io::Error::other("a zstd checksum is wrong"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_in_frame && !self.begin_frame()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                if let Err(error) = self.decoder.decode_blocks(&mut self.input, one) {
                    // The decoder does not tell a cut file from a damaged one.
                    let at_end = self.input.fill_buf()?.is_empty();
                    return Err(match at_end {
                        true => io::ErrorKind::UnexpectedEof.into(),
                        false => io::Error::other(error),
                    });
                }
            }
            match self.decoder.read(buffer)? {
                0 if self.decoder.is_finished() => self.end_frame()?,
                count => return Ok(count),
            }
        }
    }
}

fn drain(reader: &mut dyn Read, what: &str) -> Result<(), UnpackError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(UnpackError::reading(what)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn read(bytes: &[u8], bytes_max: u64) -> Result<(Vec<u8>, Meter), UnpackError> {
        let limits = ImportLimits { bytes: bytes_max, entries: 0 };
        let mut stream = Unpacked::new(Box::new(bytes), "layer", limits)?;
        let mut out = Vec::new();
        stream.read_to_end(&mut out).map_err(UnpackError::reading("layer"))?;
        let (packed, _) = stream.finish()?;
        Ok((out, packed))
    }

    #[test]
    fn every_compression_gives_the_bytes_back_and_the_digest_is_the_files() {
        let text = b"all work and no play ".repeat(5_000);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(&text)].concat();
        for packed in [text.clone(), gzip(&text), zstd(&text), skippable] {
            let (out, meter) = read(&packed, u64::MAX).unwrap();
            assert!(out == text);
            assert_eq!(meter.digest(), sha256(&packed));
            assert_eq!(meter.bytes(), packed.len() as u64);
        }
        for twice in [[gzip(&text), gzip(&text)].concat(), [zstd(&text), zstd(&text)].concat()] {
            assert_eq!(read(&twice, u64::MAX).unwrap().0.len(), 2 * text.len());
        }
    }

    #[test]
    fn a_cut_file_is_told_from_its_end() {
        let text = b"all work and no play ".repeat(5_000);
        for packed in [gzip(&text), zstd(&text)] {
            for cut in [packed.len() - 1, packed.len() / 2, 12] {
                let error = read(&packed[..cut], u64::MAX).err().unwrap();
                assert!(matches!(error, UnpackError::Truncated { .. }), "{cut}: {error}");
            }
        }
    }

    #[test]
    fn zeros_and_too_much_are_stopped() {
        let zeros = vec![0; 1 << 20];
        let bomb = gzip(&zeros).repeat(1 + (RATIO_FROM_BYTES >> 20) as usize);
        let error = read(&bomb, u64::MAX).err().unwrap();
        assert!(matches!(error, UnpackError::Bomb { .. }), "{error}");
        let error = read(&gzip(&zeros), 1 << 19).err().unwrap();
        assert_eq!(error, UnpackError::TooLarge { limit: 1 << 19 });
    }
}
