//! What goes wrong, and leaves nothing half-done.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::room::{Listing, Room, for_everybody, text};
use crate::service::INSTALL;

/// Files, links and who is a user; directories are copied up by looking for something in them.
fn state(room: &Room) -> (Listing, String) {
    let mut listing = room.changes();
    listing.retain(|path, kind| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        !kind.starts_with("directory") && !name.ends_with('-') && name != ".pwd.lock"
    });
    // Rewritten in place by the tools; their content is what counts.
    listing.retain(|path, _| {
        !["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid"]
            .iter()
            .any(|file| path.as_os_str() == *file)
    });
    (listing, room.shell("cat /etc/passwd /etc/group /etc/shadow /etc/gshadow"))
}

/// The manual pages do not fit.
fn fill_up(room: &Room) {
    room.shell("mkdir -p /usr/local/share && mount -t tmpfs -o size=100k tmpfs /usr/local/share");
}

#[test]
fn a_first_installation_that_fails_in_the_middle_leaves_nothing() {
    let test = "a_first_installation_that_fails_in_the_middle_leaves_nothing";
    let Some(room) = Room::new(test) else { return };
    fill_up(&room);
    let before = state(&room);
    let said = room.fails(1, &INSTALL);
    assert!(said.contains("every step was undone") && said.contains("/usr/local/share"), "{said}");
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(state(&room), before);
    assert!(!room.exists("/etc/sinew") && !room.exists("/var/lib/sinew"));
    assert_eq!(room.shell("find /usr/local/share -type f | wc -l").trim(), "0");
    room.shell("umount /usr/local/share");
    room.works(&INSTALL);
}

#[test]
fn an_upgrade_that_fails_in_the_middle_brings_the_old_one_back() {
    let test = "an_upgrade_that_fails_in_the_middle_brings_the_old_one_back";
    let Some(room) = Room::new(test) else { return };
    room.works(&INSTALL);
    room.shell("printf '#!/bin/sh\\necho the old one\\n' > /usr/local/bin/sinew");
    room.shell("sed -i s/WatchdogSec=60s/WatchdogSec=5s/ /etc/systemd/system/sinew.service");
    fill_up(&room);
    let before = state(&room);
    room.fails(1, &INSTALL);
    assert_eq!(state(&room), before);
    assert_eq!(text(&room.run("/usr/local/bin/sinew", &[]).stdout), "the old one\n");
    assert!(room.read("/etc/systemd/system/sinew.service").contains("WatchdogSec=5s"));
}

/// Something happens to the installation while the system's tool makes the user.
fn installs_while(room: &Room, happens: &str) -> std::process::Output {
    with_tool(room, "useradd", &format!("/usr/sbin/useradd \"$@\"; {happens}"), &INSTALL)
}

/// The program, with a script in the place of one of the system's tools.
fn with_tool(room: &Room, tool: &str, script: &str, args: &[&str]) -> std::process::Output {
    let path = format!("/usr/local/sbin/{tool}");
    std::fs::write(room.inside(&path), format!("#!/bin/sh\n{script}\n")).unwrap();
    room.shell(&format!("chmod +x {path}"));
    let mut sinew = room.command(env!("CARGO_BIN_EXE_sinew"));
    sinew.env("PATH", "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin");
    let output = sinew.args(args).output().unwrap();
    room.shell(&format!("rm {path}"));
    output
}

const PURGE: [&str; 4] = ["install", "--uninstall", "--purge", "--yes"];

/// While root reads the plan, the service's user still owns the data directory.
#[test]
fn a_link_put_in_the_place_of_a_planned_directory_is_not_followed() {
    let test = "a_link_put_in_the_place_of_a_planned_directory_is_not_followed";
    let Some(room) = Room::new(test) else { return };
    room.shell("useradd --system --user-group sinew; mkdir -p /var/lib/sinew/serve /etc/victim");
    room.shell("chmod 0750 /var/lib/sinew/serve; chown -R sinew:sinew /var/lib/sinew");
    let swap = "setpriv --reuid sinew --regid sinew --clear-groups sh -c \
                'cd /var/lib/sinew && rmdir serve && ln -s /etc/victim serve' 2>/dev/null
                exec /usr/bin/systemctl \"$@\"";
    let output = with_tool(&room, "systemctl", swap, &INSTALL);
    let said = text(&output.stderr);
    assert_eq!(room.shell("stat -c '%a %U' /etc/victim").trim(), "755 root", "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("every step was undone"), "{said}");
    assert!(said.contains("/var/lib/sinew/serve, which must be a directory"), "{said}");
    assert_eq!(room.shell("stat -c %U /var/lib/sinew").trim(), "sinew", "as it was");
}

#[test]
fn what_a_killed_run_left_beside_files_goes_with_them() {
    let test = "what_a_killed_run_left_beside_files_goes_with_them";
    let Some(room) = Room::new(test) else { return };
    let before = state(&room);
    room.works(&INSTALL);
    room.shell("ln -s /etc/passwd /usr/local/bin/.sinew.sinew-new");
    room.shell("echo > /etc/sinew/.sinew.toml.sinew-old; rm /etc/sinew/sinew.toml");
    room.works(&PURGE);
    assert_eq!(state(&room), before);
    assert!(!room.exists("/etc/sinew"));
}

#[test]
fn a_purge_that_fails_can_be_done_again() {
    let Some(room) = Room::new("a_purge_that_fails_can_be_done_again") else { return };
    let before = state(&room);
    room.works(&INSTALL);
    let output = with_tool(&room, "userdel", "echo 'user is used' >&2; exit 8", &PURGE);
    assert!(text(&output.stderr).contains("user is used"), "{}", text(&output.stderr));
    room.works(&PURGE);
    assert_eq!(state(&room), before);
}

/// `serve` writes there, and it may be somebody else's by now.
#[test]
fn a_purge_removes_what_is_nested_however_deep() {
    let Some(room) = Room::new("a_purge_removes_what_is_nested_however_deep") else { return };
    room.works(&INSTALL);
    room.shell("ln -s /etc/passwd /var/lib/sinew/serve/link; ln -s /etc /var/lib/sinew/api/link");
    let nest = "for (1..1500) { mkdir 'd'; chdir 'd' or die }";
    room.shell(&format!("cd /var/lib/sinew/serve; perl -e \"{nest}\""));
    // As many descriptors as a login has.
    let purge = format!("ulimit -S -n 1024; {} {}", env!("CARGO_BIN_EXE_sinew"), PURGE.join(" "));
    room.shell(&purge);
    assert!(!room.exists("/var/lib/sinew"));
    assert!(room.exists("/etc/passwd"));
}

/// After an uninstallation that keeps the data there is no launcher to ask.
#[test]
fn what_an_uninstallation_left_can_be_purged_later() {
    let test = "what_an_uninstallation_left_can_be_purged_later";
    let Some(room) = Room::new(test) else { return };
    room.works(&INSTALL);
    room.works(&["install", "--uninstall", "--yes"]);
    room.shell("mkdir -p /var/lib/sinew/launcher/pool /run/systemd/system");
    let systemctl = "[ \"$1\" != start ] || { echo 'Unit not found.' >&2; exit 5; }";
    let output = with_tool(&room, "systemctl", systemctl, &PURGE);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!room.exists("/var/lib/sinew"));
}

#[test]
fn an_interrupted_installation_is_undone() {
    let Some(room) = Room::new("an_interrupted_installation_is_undone") else { return };
    let before = state(&room);
    let output = installs_while(&room, "kill -INT $PPID");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("every step was undone") && said.contains("SIGINT"), "{said}");
    assert_eq!(state(&room), before);
}

#[test]
fn a_killed_installation_is_taken_up_or_taken_back() {
    for after in ["up", "back"] {
        let test = "a_killed_installation_is_taken_up_or_taken_back";
        let Some(room) = Room::new(test) else { return };
        let before = state(&room);
        let output = installs_while(&room, "kill -KILL $PPID");
        assert_eq!(output.status.code(), None, "it was killed");
        assert_ne!(state(&room), before);
        if after == "up" {
            room.works(&INSTALL);
            assert!(room.exists("/usr/local/bin/sinew"));
        }
        room.works(&["install", "--uninstall", "--purge", "--yes"]);
        assert_eq!(state(&room), before, "{after}: the user is known to be ours");
    }
}

/// Whatever a killed run left beside the files is neither used nor in the way.
#[test]
fn what_a_killed_run_left_is_replaced() {
    let Some(room) = Room::new("what_a_killed_run_left_is_replaced") else { return };
    room.shell("ln -s /etc/passwd /usr/local/bin/.sinew.sinew-new");
    room.shell("echo half > /usr/local/bin/.sinew.sinew-old");
    let passwd = room.read("/etc/passwd");
    room.works(&INSTALL);
    assert!(room.read("/etc/passwd").starts_with(&passwd), "no link was followed");
    let left = room.shell("find /usr/local /etc -name '.*.sinew-*' | wc -l");
    assert_eq!(left.trim(), "0");
}

#[test]
fn what_is_in_the_way_is_named_and_left_alone() {
    let Some(room) = Room::new("what_is_in_the_way_is_named_and_left_alone") else { return };
    room.shell("ln -s /dev/null /etc/systemd/system/sinew.service");
    let before = state(&room);
    let said = room.fails(1, &INSTALL);
    assert!(
        said.contains("/etc/systemd/system/sinew.service") && said.contains("unmask"),
        "{said}"
    );
    assert_eq!(state(&room), before);
    room.shell("rm /etc/systemd/system/sinew.service; mkdir -p /var/lib/sinew/serve");
    room.shell("chown 1234 /var/lib/sinew/serve");
    let said = room.fails(1, &INSTALL);
    assert!(said.contains("belongs to user 1234") && said.contains("chown -R"), "{said}");
    room.shell("rm -r /var/lib/sinew; mkdir -p /var/lib; echo > /var/lib/sinew");
    assert!(room.fails(1, &INSTALL).contains("not a directory"));
    room.shell("rm /var/lib/sinew; echo 'toor:x:0:0::/:/bin/sh' >> /etc/passwd");
    let mut args = INSTALL.to_vec();
    args.extend(["--user", "toor"]);
    assert!(room.fails(1, &args).contains("root by another name"));
}

#[test]
fn directories_that_are_too_closed_or_too_open_are_told() {
    let test = "directories_that_are_too_closed_or_too_open_are_told";
    let Some(room) = Room::new(test) else { return };
    room.shell("mkdir -m 0700 /var/lib/closed");
    let mut args = INSTALL.to_vec();
    args.extend(["--data", "/var/lib/closed/sinew"]);
    let said = room.fails(1, &args);
    assert!(
        said.contains("could not reach") && said.contains("chmod o+x /var/lib/closed"),
        "{said}"
    );
    let look = ["install", "--systemd", "--no-start", "--dry-run"];
    room.shell("chmod 0755 /usr/local /usr/local/bin");
    assert!(!room.works(&look).contains("others than root can write"));
    room.shell("chmod 0775 /usr/local/bin");
    assert!(room.works(&look).contains("! others than root can write in /usr/local/bin"));
    room.shell("chmod 0755 /usr/local/bin; mkdir -m 0777 /var/lib/open");
    let said = room.works(&[&look[..], &["--data", "/var/lib/open/sinew"]].concat());
    assert!(said.contains("can write in /var/lib/open, and with it replace what root"), "{said}");
}

#[test]
fn a_record_that_others_could_have_written_removes_nothing() {
    let test = "a_record_that_others_could_have_written_removes_nothing";
    let Some(room) = Room::new(test) else { return };
    room.works(&INSTALL);
    let uninstall = ["install", "--uninstall", "--yes"];
    room.shell("chmod 666 /etc/sinew/installed.json");
    assert!(room.fails(1, &uninstall).contains("changed by others"));
    room.shell("chmod 644 /etc/sinew/installed.json");
    let record = room.read("/etc/sinew/installed.json");
    for (from, to) in [
        ("\"/usr/local/bin/sinew\"", "\"../../etc/passwd\""),
        ("\"/usr/local/bin/sinew\"", "\"/usr/local/../../etc/passwd\""),
        ("\"format\": 1", "\"format\": 2"),
        ("{", "["),
        ("\"user\": \"sinew\"", "\"user\": \"root\""),
        ("\"data\": \"/var/lib/sinew\"", "\"data\": \"/\""),
    ] {
        let damaged = record.replacen(from, to, 1);
        assert_ne!(damaged, record, "{from}");
        std::fs::write(room.inside("/etc/sinew/installed.json"), damaged).unwrap();
        room.fails(1, &uninstall);
        assert!(room.exists("/etc/passwd") && room.exists("/usr/local/bin/sinew"));
    }
}

#[test]
fn who_may_not_and_what_cannot_be_is_told_at_once() {
    let Some(room) = Room::new("who_may_not_and_what_cannot_be_is_told_at_once") else { return };
    let before = state(&room);
    let said = room.fails(2, &["install", "--systemd", "--yes"]);
    assert!(said.contains("systemd does not manage this machine"), "{said}");
    let said = room.fails(2, &["install", "--systemd", "--no-start"]);
    assert!(said.contains("say --yes"), "{said}");
    for args in [
        &["install"][..],
        &["install", "--systemd", "--purge"],
        &["install", "--uninstall", "--prefix", "/usr"],
        &["install", "--systemd", "--uninstall"],
        &["install", "--systemd", "--yes", "--prefix", "relative"],
        &["install", "--systemd", "--yes", "--data", "/"],
        &["install", "--systemd", "--yes", "--user", "root"],
    ] {
        room.fails(2, args);
    }
    assert_eq!(state(&room), before);

    let dir = tempfile::tempdir().unwrap();
    let mut stranger = Command::new(for_everybody(dir.path()));
    let output = stranger.args(["install", "--systemd"]).uid(65_533).gid(65_533).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("run `sudo sinew install --systemd`"), "{said}");
}
