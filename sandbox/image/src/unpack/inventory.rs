//! What the finished tree tells of itself: its packages, and the machine its programs are for.

use std::os::fd::BorrowedFd;

use crate::manifest::Package;
use crate::unpack::error::UnpackError;
use crate::unpack::limits::{
    PACKAGE_BYTES_MAX, PACKAGE_FILE_BYTES_MAX, PACKAGE_WORD_BYTES_MAX, PACKAGES_MAX,
};
use crate::unpack::users::image_file;

/// Debian's and Alpine's records; other distributions keep theirs in databases.
const RECORDS: [(&str, &str, &str); 2] =
    [("var/lib/dpkg/status", "Package: ", "Version: "), ("lib/apk/db/installed", "P:", "V:")];

/// Programs that nearly every image has one of.
const PROGRAMS: [&str; 5] = ["bin/sh", "bin/busybox", "usr/bin/env", "sbin/init", "bin/bash"];
/// As far as the machine's number.
const ELF_HEADER_BYTES: usize = 20;
const PROGRAM_BYTES_MAX: usize = 64 << 20;
const ELF_LITTLE_ENDIAN: u8 = 1;

pub fn packages(root: BorrowedFd<'_>) -> Vec<Package> {
    let mut packages = Vec::new();
    for (path, name, version) in RECORDS {
        if let Some(record) = image_file(root, path, PACKAGE_FILE_BYTES_MAX) {
            read_record(&String::from_utf8_lossy(&record), (name, version), &mut packages);
        }
    }
    packages
}

fn read_record(record: &str, (name, version): (&str, &str), packages: &mut Vec<Package>) {
    let word = |text: &str| {
        let plain = text.len() <= PACKAGE_WORD_BYTES_MAX && !text.chars().any(char::is_control);
        plain.then(|| text.to_owned())
    };
    let bytes_of = |package: &Package| package.name.len() + package.version.len();
    let mut bytes: usize = packages.iter().map(bytes_of).sum();
    for stanza in record.split("\n\n") {
        let field = |key| stanza.lines().find_map(|line| line.strip_prefix(key)).and_then(word);
        if packages.len() < PACKAGES_MAX
            && let (Some(name), Some(version)) = (field(name), field(version))
        {
            let package = Package { name, version };
            bytes += bytes_of(&package);
            if bytes > PACKAGE_BYTES_MAX {
                return;
            }
            packages.push(package);
        }
    }
}

/// A root filesystem carries no word about its machine, but its programs do.
pub fn check_machine(root: BorrowedFd<'_>, architecture: &str) -> Result<(), UnpackError> {
    for program in PROGRAMS {
        let Some(bytes) = image_file(root, program, PROGRAM_BYTES_MAX) else { continue };
        let Some(found) = machine(&bytes) else { continue };
        if found != architecture {
            return Err(UnpackError::Foreign {
                found: format!("linux/{found} (so says its /{program})"),
                wanted: format!("linux/{architecture}"),
            });
        }
        return Ok(());
    }
    Ok(())
}

/// In OCI's words.
fn machine(program: &[u8]) -> Option<&'static str> {
    let header = program.get(..ELF_HEADER_BYTES)?;
    if !header.starts_with(b"\x7fELF") || header[5] != ELF_LITTLE_ENDIAN {
        return None;
    }
    match u16::from_le_bytes([header[18], header[19]]) {
        3 => Some("386"),
        40 => Some("arm"),
        62 => Some("amd64"),
        183 => Some("arm64"),
        243 => Some("riscv64"),
        _ => None,
    }
}

/// This machine, in OCI's words.
pub fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_and_nonsense_is_passed_over() {
        let mut packages = Vec::new();
        let record = "Package: bash\nVersion: 5.2\n\nPackage: x\n\nVersion: 1\n\nPackage: \u{1b}[2J\nVersion: 1\n";
        read_record(record, ("Package: ", "Version: "), &mut packages);
        read_record("P:musl\nV:1.2\n", ("P:", "V:"), &mut packages);
        let names: Vec<_> = packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["bash", "musl"]);
    }

    #[test]
    fn this_program_is_for_this_machine() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(machine(&bytes), Some(this_architecture()));
        assert_eq!(machine(b"#!/bin/sh\n"), None);
    }
}
