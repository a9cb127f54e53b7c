//! Tests that cannot run here say so, loudly: a line that the test runner counts.

use std::path::PathBuf;

/// The image cache that tests share with `make test`.
pub const SHARED_IMAGES: &str = "/var/cache/sinew/images";

/// Says that `test` did not run. The caller returns.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIP {test}: {reason}");
}

/// The shared image cache, if sandboxes can be started on this machine; else the test is skipped.
pub fn can_run_sandboxes(test: &str) -> Option<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "needs root");
        return None;
    }
    let images =
        std::env::var_os("SINEW_IMAGES").map_or_else(|| SHARED_IMAGES.into(), PathBuf::from);
    let has_default = std::fs::read_dir(&images).into_iter().flatten().flatten().any(|entry| {
        let manifest = std::fs::read_to_string(entry.path().join("manifest.json"));
        let manifest = manifest.ok().and_then(|text| serde_json::from_str(&text).ok());
        manifest.is_some_and(|manifest: serde_json::Value| manifest["name"] == "debian")
    });
    if !has_default {
        skip(test, &format!("no default image in {}: run `sinew image build`", images.display()));
        return None;
    }
    Some(images)
}
