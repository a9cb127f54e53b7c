//! `--destdir`: the files alone, for whoever makes a package of them.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::room::text;

#[test]
fn a_package_is_made_by_anybody_and_is_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let stage = |name: &str| {
        let into = dir.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sinew"));
        command.args(["install", "--systemd", "--yes", "--prefix", "/usr", "--destdir"]).arg(&into);
        if nix::unistd::geteuid().is_root() {
            let open = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(dir.path(), open).unwrap();
            command.uid(65_533).gid(65_533);
        }
        let output = command.output().unwrap();
        if text(&output.stderr).contains("Permission denied") && !into.exists() {
            eprintln!("SKIP a_package_is_made_by_anybody: the program is in a private directory");
            return None;
        }
        assert!(output.status.success(), "{}", text(&output.stderr));
        Some(into)
    };
    let Some(one) = stage("one") else { return };
    for path in [
        "usr/bin/sinew",
        "usr/lib/systemd/system/sinew.service",
        "usr/lib/systemd/system/sinew-launcher.service",
        "usr/lib/systemd/system/sinew-sandboxes.service",
        "usr/lib/sysusers.d/sinew.conf",
        "usr/lib/tmpfiles.d/sinew.conf",
        "usr/share/man/man1/sinew-install.1",
        "etc/sinew/sinew.toml",
    ] {
        assert!(one.join(path).is_file(), "{path}");
    }
    assert!(!one.join("etc/sinew/installed.json").exists(), "a package manager keeps its own");
    assert!(!one.join("var").exists(), "the data directory is made where the package is installed");
    for (declares, of) in [("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")] {
        let file = one.join("usr/lib").join(of).join("sinew.conf");
        // Only read: without a root of its own it would act on this machine.
        let declared = std::fs::read_to_string(&file).unwrap();
        assert!(declared.contains("sinew") && declared.contains("/var/lib/sinew"), "{declares}");
        assert!(!declared.contains('@'), "{declared}");
    }
    let Some(other) = stage("other") else { return };
    let same = Command::new("diff").arg("-r").args([&one, &other]).output().unwrap();
    assert!(same.status.success(), "{}", text(&same.stdout));
    let nothing_more = stage("one").map(|_| listing(&one));
    assert_eq!(nothing_more, Some(listing(&other)));
}

fn listing(root: &Path) -> Vec<String> {
    let found = Command::new("find").arg(root).args(["-printf", "%P %m\n"]).output().unwrap();
    let mut lines: Vec<String> = text(&found.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
