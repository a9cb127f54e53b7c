//! Entry points for coverage-guided fuzzing: any bytes, never a panic, and never more than the
//! limits allow.

use std::io::Read;

use crate::unpack::documents::{Config, DockerImage, Index, Manifest, parse};
use crate::unpack::error::UnpackError;
use crate::unpack::limits::ImportLimits;
use crate::unpack::place::EntryPath;
use crate::unpack::stream::Unpacked;
use crate::unpack::tar::{Archive, End, Entry};
use crate::unpack::users::Users;
use crate::unpack::whiteouts::Whiteouts;

/// Small, so that a fuzzer finds what happens at them.
const LIMITS: ImportLimits = ImportLimits { bytes: 4 << 20, entries: 1000 };

/// What the unpacker does with an archive, except for the tree: the first byte chooses the part.
pub fn fuzz_import(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, rest)) => drop(fuzz_archive(rest, End::Marked)),
        Some((1, rest)) => drop(fuzz_archive(rest, End::Any)),
        Some((2, rest)) => fuzz_document(rest),
        Some((_, rest)) => fuzz_users(rest),
        None => {}
    }
}

fn fuzz_archive(bytes: &[u8], end: End) -> Result<(), UnpackError> {
    let mut stream = Unpacked::new(Box::new(bytes), "the input", LIMITS)?;
    let mut archive = Archive::new(&mut stream as &mut dyn Read, end);
    let mut whiteouts = Whiteouts::default();
    let mut buffer = [0; 512];
    while let Some(entry) = archive.next()? {
        check_pieces(&entry);
        // Either may refuse the name, and then the archive.
        let _ = EntryPath::parse(&entry.path);
        whiteouts.collect(&entry)?;
        // Some of the content; the rest is for `next` to skip.
        archive.content().read(&mut buffer).map_err(UnpackError::reading("the input"))?;
    }
    let (_, unpacked) = stream.finish()?;
    assert!(unpacked.bytes() <= LIMITS.stream_bytes(), "more than the limit came out");
    Ok(())
}

/// Whoever writes them relies on it.
fn check_pieces(entry: &Entry) {
    let mut reached = 0;
    for (offset, length) in entry.pieces.iter().flatten() {
        assert!(*offset >= reached && *length > 0, "pieces overlap");
        reached = offset + length;
    }
    assert!(reached <= entry.length, "a piece lies beyond the file");
}

fn fuzz_document(bytes: &[u8]) {
    let _ = parse::<Index>("index", bytes);
    let _ = parse::<Manifest>("manifest", bytes);
    let _ = parse::<Config>("configuration", bytes);
    let _ = parse::<Vec<DockerImage>>("manifest.json", bytes);
}

fn fuzz_users(bytes: &[u8]) {
    let users = Users::new(bytes.to_vec(), bytes.to_vec());
    for name in [&b"app"[..], b"1000:app", bytes.split(|byte| *byte == b':').next().unwrap_or(b"")]
    {
        if let Ok(user) = users.resolve(&String::from_utf8_lossy(name)) {
            let ids = [user.uid, user.gid];
            assert!(ids.iter().chain(&user.groups).all(|id| *id <= 65_535), "{user:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Valid archives to spoil: every kind of header that is read.
    fn seed() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        let long = "long/".repeat(50);
        builder.append_data(&mut header, long, &b"hello"[..]).unwrap();
        let records = [("SCHILY.xattr.user.a", &b"b"[..]), ("GNU.sparse.map", b"0,2,5,3")];
        builder.append_pax_extensions(records).unwrap();
        builder.append_pax_extensions([("GNU.sparse.size", &b"9"[..])]).unwrap();
        builder.append_data(&mut header, "sparse", &b"hello"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn the_seed_is_valid() {
        fuzz_archive(&seed(), End::Marked).unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            fuzz_import(&bytes);
        }

        /// With the checksums mended, so that what is behind them is reached.
        #[test]
        fn spoilt_archives_never_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = seed();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            for block in bytes.chunks_exact_mut(512) {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            bytes.truncate(cut.index(bytes.len() + 1).max(512));
            let _ = fuzz_archive(&bytes, End::Any);
        }

        #[test]
        fn users_never_get_an_id_out_of_range(text in "([a-z]{0,4}:?[0-9]{0,6}:?){0,6}\n?") {
            fuzz_users(text.as_bytes());
        }
    }
}
