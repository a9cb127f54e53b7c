//! `--destdir`: the files alone, for whoever makes a package of them.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::room::{for_everybody, text};

#[test]
fn a_package_is_made_by_anybody_and_is_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let program = for_everybody(dir.path());
    let stage = |name: &str| {
        let into = dir.path().join(name);
        let mut command = Command::new(&program);
        command.args(["install", "--systemd", "--yes", "--prefix", "/usr", "--destdir"]).arg(&into);
        if nix::unistd::geteuid().is_root() {
            let open = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(dir.path(), open).unwrap();
            command.uid(65_533).gid(65_533);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        into
    };
    let one = stage("one");
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
    let other = stage("other");
    let same = Command::new("diff").arg("-r").args([&one, &other]).output().unwrap();
    assert!(same.status.success(), "{}", text(&same.stdout));
    stage("one");
    assert_eq!(listing(&one), listing(&other), "nothing is added the second time");
}

fn listing(root: &Path) -> Vec<String> {
    let found = Command::new("find").arg(root).args(["-printf", "%P %m\n"]).output().unwrap();
    let mut lines: Vec<String> = text(&found.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
