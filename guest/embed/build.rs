//! Builds the guest agent with a cargo of its own: another target directory (so that it does not
//! wait for the lock of the build it is part of), another profile, and flags that must not touch
//! proc-macros, which is why `--target` is given.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

const BINARY: &str = "sinew-guest-agent";
const PROFILE: &str = "guest";
/// What the agent is made of, from the root of the workspace.
const INPUTS: [&str; 7] = [
    "guest/agent/src",
    "guest/agent/Cargo.toml",
    "guest/protocol/src",
    "guest/protocol/Cargo.toml",
    "base/types/src",
    "Cargo.lock",
    "Cargo.toml",
];
/// Set by the build around us for its own compilations: they would change ours.
const NOT_INHERITED: [&str; 8] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "CLIPPY_ARGS",
];

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let agent = build(&workspace, &target_directory(&out));
    let bytes = std::fs::read(&agent).unwrap_or_else(|e| panic!("{}: {e}", agent.display()));
    std::fs::write(out.join(BINARY), &bytes).expect("write into OUT_DIR");
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    println!("cargo::rustc-env=SINEW_GUEST_BUILD_ID={digest}");
}

fn build(workspace: &Path, target_directory: &Path) -> PathBuf {
    let triple = variable("TARGET");
    let mut cargo = Command::new(variable("CARGO"));
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    cargo
        .current_dir(workspace)
        .args(["build", "--locked", "--package", "guest-agent", "--bin", BINARY])
        .args(["--profile", PROFILE, "--target", &triple])
        .arg("--target-dir")
        .arg(target_directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    let output = cargo.output().expect("run cargo");
    if !output.status.success() {
        panic!("building the guest agent:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    target_directory.join(triple).join(PROFILE).join(BINARY)
}

/// `guest` beside `debug` and `release`, so that all profiles share one build of the agent.
fn target_directory(out: &Path) -> PathBuf {
    let root = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").exists());
    root.unwrap_or(out).join("guest")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
