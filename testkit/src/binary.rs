//! The binary under test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// The built `sinew`, never a stale one: `SINEW_BIN`, else what cargo says is up to date.
///
/// # Panics
/// When it does not build: without it no test here means anything.
pub fn sinew_binary() -> PathBuf {
    BINARY.get_or_init(find).clone()
}

fn find() -> PathBuf {
    if let Some(binary) = std::env::var_os("SINEW_BIN") {
        return PathBuf::from(binary);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", "sinew", "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run cargo");
    let errors = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "cargo build -p sinew: {errors}");
    let messages = String::from_utf8_lossy(&built.stdout);
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == "sinew";
        message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
    });
    executable.expect("cargo names the binary it built")
}
