//! Programs of the host that we start.

use std::path::PathBuf;

use super::Check;

pub fn examine() -> Vec<Check> {
    vec![
        program("mkfs.btrfs", "the pool of volumes is made with it", "apt-get install btrfs-progs"),
        program("unshare", "images are built in its namespaces", "apt-get install util-linux"),
        optional("mmdebstrap", "only `sinew image build` needs it", "apt-get install mmdebstrap"),
    ]
}

fn program(name: &'static str, why: &str, fix: &str) -> Check {
    match find(name) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::fail(name, format!("not installed: {why}"), fix),
    }
}

fn optional(name: &'static str, why: &str, fix: &str) -> Check {
    match find(name) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::warn(name, format!("not installed: {why}"), fix),
    }
}

/// Root's programs count even where the caller's `PATH` is a user's.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}
