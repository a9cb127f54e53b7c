//! Installing, installing again, changing, removing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::room::{Listing, Room, text};

pub const INSTALL: [&str; 4] = ["install", "--systemd", "--no-start", "--yes"];

/// What the tools that make users leave behind, whatever happens to the user.
fn without_user_files(mut listing: Listing) -> Listing {
    let of_users = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.trim_end_matches('-');
        path.parent() == Some(Path::new("/etc"))
            && ["passwd", "group", "shadow", "gshadow", "subuid", "subgid", ".pwd.lock"]
                .contains(&name)
    };
    // A directory that was looked into and written is copied up and stays, empty.
    listing.retain(|path, kind| !of_users(path) && !kind.starts_with("directory"));
    listing
}

fn json(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn paths(answer: &Value, what: &str) -> BTreeSet<PathBuf> {
    let changes = answer["changes"].as_array().unwrap().iter();
    let of_kind = changes.filter(|change| change["do"] == what);
    of_kind.map(|change| change["path"].as_str().unwrap().into()).collect()
}

#[test]
fn it_does_what_it_showed_and_the_second_time_nothing() {
    let test = "it_does_what_it_showed_and_the_second_time_nothing";
    let Some(room) = Room::new(test) else { return };
    let seen = room.works(&["install", "--systemd", "--no-start", "--dry-run"]);
    for shown in [
        "+ system user and group `sinew`",
        "+ /usr/local/bin/sinew (0755 root:root, this program)",
        "+ /etc/systemd/system/sinew.service (0644 root:root)",
        "    ExecStart=/usr/local/bin/sinew serve --data /var/lib/sinew",
        "    KillMode=process",
        "+ /etc/sinew/sinew.toml (0640 root:sinew)",
        "    data = \"/var/lib/sinew\"",
        "+ /var/lib/sinew/serve/ (0700 sinew:sinew)",
        "$ systemctl enable sinew-launcher.service",
        "nothing was done",
    ] {
        assert!(seen.contains(shown), "{shown}: {seen}");
    }
    assert!(without_user_files(room.changes()).is_empty(), "{:?}", room.changes());

    let planned = json(&room.works(&["install", "--systemd", "--no-start", "--dry-run", "--json"]));
    assert_eq!((&planned["action"], &planned["done"]), (&"install".into(), &false.into()));
    let mut args = INSTALL.to_vec();
    args.push("--json");
    let done = json(&room.works(&args));
    assert_eq!(done["changes"], planned["changes"], "what it showed is what it did");
    let written: BTreeSet<PathBuf> = without_user_files(room.changes())
        .into_iter()
        .filter(|(_, kind)| kind.starts_with("file"))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(written, paths(&done, "write"), "and nothing else");

    let again = json(&room.works(&args));
    assert_eq!(again["changes"], Value::Array(Vec::new()));
    assert_eq!(again["action"], "upgrade");
}

#[test]
fn everything_has_its_owner_its_mode_and_its_place() {
    let Some(room) = Room::new("everything_has_its_owner_its_mode_and_its_place") else { return };
    room.works(&INSTALL);
    let stat = |path: &str| room.shell(&format!("stat -c '%A %U:%G' {path}")).trim().to_owned();
    for (path, expected) in [
        ("/usr/local/bin/sinew", "-rwxr-xr-x root:root"),
        ("/etc/systemd/system/sinew.service", "-rw-r--r-- root:root"),
        ("/etc/sinew", "drwxr-xr-x root:root"),
        ("/etc/sinew/sinew.toml", "-rw-r----- root:sinew"),
        ("/etc/sinew/keys", "drwx--x--- root:sinew"),
        ("/etc/sinew/installed.json", "-rw-r--r-- root:root"),
        ("/var/lib/sinew", "drwxr-xr-x root:root"),
        ("/var/lib/sinew/serve", "drwx------ sinew:sinew"),
        ("/var/lib/sinew/api", "drwxr-xr-x sinew:sinew"),
        ("/usr/local/share/man/man1/sinew-serve.1", "-rw-r--r-- root:root"),
        ("/usr/local/share/zsh/site-functions/_sinew", "-rw-r--r-- root:root"),
        ("/usr/local/share/fish/vendor_completions.d/sinew.fish", "-rw-r--r-- root:root"),
        ("/usr/local/share/bash-completion/completions/sinew", "-rw-r--r-- root:root"),
    ] {
        assert_eq!(stat(path), expected, "{path}");
    }
    let user = room.shell("getent passwd sinew");
    assert!(user.contains(":/var/lib/sinew:/usr/sbin/nologin"), "{user}");
    assert!(room.exists("/etc/systemd/system/multi-user.target.wants/sinew.service"));
    // The configuration is a right one as it stands, and root's commands find the data by it.
    let checked = room.run("/usr/local/bin/sinew", &["profile", "check"]);
    let said = text(&checked.stdout) + &text(&checked.stderr);
    assert!(!said.contains("is not a key") && said.contains("/var/lib/sinew/images"), "{said}");
    // Files that stood wrong are put right again.
    room.shell("chmod 4755 /usr/local/bin/sinew; chown sinew /var/lib/sinew");
    let mended = room.works(&INSTALL);
    assert!(mended.contains("~ /var/lib/sinew/ becomes 0755 root:root"), "{mended}");
    assert_eq!(stat("/usr/local/bin/sinew"), "-rwxr-xr-x root:root");
}

#[test]
fn an_uninstallation_removes_exactly_what_was_made() {
    let Some(room) = Room::new("an_uninstallation_removes_exactly_what_was_made") else { return };
    let before = without_user_files(room.changes());
    room.works(&INSTALL);
    room.shell(
        "echo precious > /var/lib/sinew/serve/journal.sqlite; echo x > /usr/local/bin/other",
    );
    let said = room.works(&["install", "--uninstall", "--yes"]);
    assert!(said.contains("/var/lib/sinew stays"), "{said}");
    assert!(said.contains("user `sinew` stays"), "{said}");
    assert_eq!(room.read("/var/lib/sinew/serve/journal.sqlite"), "precious\n");
    assert!(!room.exists("/etc/sinew/sinew.toml"), "an unchanged configuration goes");
    assert!(
        !room.exists("/usr/local/bin/sinew") && !room.exists("/usr/local/share/man/man1/sinew.1")
    );
    assert!(!room.exists("/etc/systemd/system/multi-user.target.wants/sinew.service"));
    assert!(room.exists("/usr/local/bin/other"), "it is not ours");
    let again = room.works(&["install", "--uninstall", "--yes"]);
    assert!(again.contains("uninstall: nothing to do"), "{again}");

    // What stayed is taken up again, and a purge leaves nothing of it.
    room.works(&INSTALL);
    assert_eq!(room.read("/var/lib/sinew/serve/journal.sqlite"), "precious\n");
    room.shell("echo k > /etc/sinew/keys/production; echo '# mine' >> /etc/sinew/sinew.toml");
    let said = room.works(&["install", "--uninstall", "--purge", "--yes"]);
    assert!(said.contains("- /var/lib/sinew/serve and everything in it"), "{said}");
    room.shell("rm /usr/local/bin/other");
    assert_eq!(without_user_files(room.changes()), before);
    assert!(!room.exists("/var/lib/sinew"));
    assert!(!room.run("getent", &["passwd", "sinew"]).status.success());
    assert!(!room.run("getent", &["group", "sinew"]).status.success());
}

#[test]
fn what_the_operator_changed_is_the_operators() {
    let Some(room) = Room::new("what_the_operator_changed_is_the_operators") else { return };
    room.shell("useradd --system --user-group sinew");
    room.works(&INSTALL);
    room.shell("echo '# mine' >> /etc/sinew/sinew.toml");
    room.shell("sed -i s/WatchdogSec=60s/WatchdogSec=5s/ /etc/systemd/system/sinew.service");
    room.shell("mkdir /etc/systemd/system/sinew.service.d");
    room.shell("echo '[Service]' > /etc/systemd/system/sinew.service.d/override.conf");
    let said = room.works(&INSTALL);
    // A unit is ours, and the difference is shown before it is put back.
    assert!(said.contains("    - WatchdogSec=5s\n    + WatchdogSec=60s"), "{said}");
    assert!(room.read("/etc/sinew/sinew.toml").ends_with("# mine\n"));
    let said = room.works(&["install", "--uninstall", "--purge", "--yes"]);
    assert!(!said.contains("user and group"), "{said}");
    assert!(room.run("getent", &["passwd", "sinew"]).status.success(), "it was there before us");
    assert!(room.exists("/etc/systemd/system/sinew.service.d/override.conf"));
}

#[test]
fn another_prefix_and_another_user_replace_the_ones_before() {
    let Some(room) = Room::new("another_prefix_and_another_user_replace_the_ones_before") else {
        return;
    };
    room.works(&INSTALL);
    let mut args = INSTALL.to_vec();
    args.extend(["--prefix", "/usr/local/sinew-2", "--data", "/var/lib/other", "--user", "_hands"]);
    let said = room.works(&args);
    assert!(said.contains("- /usr/local/bin/sinew\n"), "{said}");
    assert!(said.contains("/var/lib/sinew stays as it is"), "{said}");
    assert!(!room.exists("/usr/local/bin/sinew") && room.exists("/usr/local/sinew-2/bin/sinew"));
    let unit = room.read("/etc/systemd/system/sinew.service");
    assert!(unit.contains("User=_hands\n") && unit.contains("/var/lib/other/serve"), "{unit}");
    room.works(&["install", "--uninstall", "--yes"]);
    assert!(!room.exists("/usr/local/sinew-2"));
}

#[test]
fn the_units_are_right_and_the_service_is_closed_in() {
    let Some(room) = Room::new("the_units_are_right_and_the_service_is_closed_in") else { return };
    room.works(&INSTALL);
    let units = ["sinew.service", "sinew-launcher.service", "sinew-sandboxes.service"]
        .map(|name| format!("/etc/systemd/system/{name}"));
    let mut args = vec!["verify", "--man=no"];
    args.extend(units.iter().map(String::as_str));
    let verified = room.run("systemd-analyze", &args);
    // Units of the machine may be wrong for all we know.
    let said = text(&verified.stderr);
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("sinew")).collect();
    assert!(verified.status.success() && of_ours.is_empty(), "{said}");
    room.shell("sed -i s/^Type=.*/Type=nonsense/ /etc/systemd/system/sinew.service");
    let verified = room.run("systemd-analyze", &args);
    assert!(text(&verified.stderr).contains("nonsense"), "a mistake would be seen");
    room.works(&INSTALL);

    // 0 is closed in, 10 is open; `threshold` is in tenths.
    let exposed = room.run(
        "systemd-analyze",
        &["security", "--offline=yes", "--threshold=20", "--no-pager", &units[0]],
    );
    assert!(exposed.status.success(), "{}", text(&exposed.stdout));
}
