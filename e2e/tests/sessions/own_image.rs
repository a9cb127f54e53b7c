//! An image that somebody else made: without bash, with a user, a work directory, variables and a
//! service of its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use testkit::{Installation, Options, can_run_sandboxes, sinew_binary};

use crate::SCENE;

/// What `docker save` would write for a small image: `sh` and a few programs of this machine.
const SAVE: &str = r#"
set -e
cd "$1"
mkdir -p rootfs/bin rootfs/etc rootfs/srv/web
for program in sh id sleep cat; do
    file=$(readlink -f "/bin/$program")
    cp "$file" "rootfs/bin/$program"
    ldd "$file" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "rootfs$(dirname "$library")"
        cp -L "$library" "rootfs$library"
    done
done
printf 'root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv/web:/bin/sh\n' > rootfs/etc/passwd
printf 'root:x:0:\nweb:x:34:\nextra:x:35:web\n' > rootfs/etc/group
tar --numeric-owner --owner=0 --group=0 -C rootfs -cf layer.tar .
cat > config.json <<END
{"architecture": "$2", "os": "linux",
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum layer.tar | cut -d ' ' -f 1)"]},
 "config": {"User": "web", "WorkingDir": "/srv/app", "Env": ["PATH=/bin", "GREETING=from the image"],
  "Entrypoint": ["sh", "-c"], "Cmd": ["echo up in \$PWD as \$(id -u); exec sleep 7777"]}}
END
echo '[{"Config": "config.json", "RepoTags": ["own:1"], "Layers": ["layer.tar"]}]' > manifest.json
tar -cf own.tar manifest.json config.json layer.tar
"#;

const CONFIG: &str = r#"
[[profile]]
name = "default"
image = "team/own:1"
entrypoint = true
env = { ADDED = "by the profile" }

[limits]
agent_silence = "2s"
"#;

const SCENARIO: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo hi" }
expect = { is_error = true, contains = "no bash in this sandbox's image" }

[[step]]
[[step.call]]
tool = "write"
input = { file_path = "a.txt", content = "alpha\n" }
expect = { is_error = false, contains = "wrote 6 bytes" }

[[step]]
[[step.call]]
tool = "grep"
input = { pattern = "^al" }
expect = { is_error = false, contains = "/srv/app/a.txt:1:alpha" }

[[step]]
end_turn = "end_turn"
"#;

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

fn import(directory: &Path, images: &Path) {
    let save = ["-c", SAVE, "sh", directory.to_str().unwrap(), architecture()];
    let saved = Command::new("sh").args(save).output().unwrap();
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let mut import = Command::new(sinew_binary());
    import.args(["image", "import", "--name", "team/own:1", "--images"]).arg(images);
    let imported = import.arg(directory.join("own.tar")).output().unwrap();
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_image_is_served_as_its_configuration_says() {
    let name = "an_imported_image_is_served_as_its_configuration_says";
    if can_run_sandboxes(name).is_none() {
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let images = directory.path().join("images");
    let scenarios = vec![("own", SCENARIO.to_owned())];
    let options = Options { config: CONFIG.to_owned(), scenarios };
    let mut installation = Installation::without_serve(&images, options);
    import(directory.path(), &images);
    installation.start_serve();
    let brain = &installation.brain;
    let session = brain.start_session("own", "Look around").await;
    let played = brain.wait_played(&session, 1, SCENE).await;
    assert!(played.passed, "{played:#?}");

    let sh = |args: &[&str], script: &str| {
        let args = [&["exec"], args, &[session.as_str(), "--", "sh", "-c", script]].concat();
        String::from_utf8_lossy(&installation.sinew(&args).stdout).into_owned()
    };
    assert_eq!(
        sh(&[], "id -u; id -g; id -G; pwd; echo $GREETING, $ADDED; echo $HOME $USER"),
        "33\n34\n34 35\n/srv/app\nfrom the image, by the profile\n/srv/web web\n"
    );
    let show = || installation.json(&["session", "show", "--json", session.as_str()]);
    let entrypoint = show()["sandbox"]["entrypoint"].clone();
    assert_eq!(entrypoint["state"], "running", "{entrypoint}");
    assert_eq!(entrypoint["output_tail"], "up in /srv/app as 33\n", "{entrypoint}");
    assert_eq!(
        sh(&[], &format!("cat {}", entrypoint["log"].as_str().unwrap())),
        "up in /srv/app as 33\n"
    );
    let text = installation.sinew(&["session", "show", session.as_str()]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("entrypoint   sh -c echo up"), "{text}");

    // It ends, which the operator is told, and is not started again.
    sh(
        &["--root"],
        "for p in /proc/[0-9]*; do read c < $p/comm && [ $c = sleep ] && kill ${p#/proc/}; done",
    );
    let until = Instant::now() + SCENE;
    let log = loop {
        let log = installation.sinew(&["session", "log", session.as_str()]);
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        if log.contains("warning  the entrypoint `sh -c echo up") {
            break log;
        }
        assert!(Instant::now() < until, "the log does not tell of it: {log}");
        tokio::task::yield_now().await;
    };
    assert!(log.contains("was ended by signal 15, and is not started again"), "{log}");
    let entrypoint = show()["sandbox"]["entrypoint"].clone();
    assert_eq!((&entrypoint["state"], &entrypoint["signal"]), (&"ended".into(), &15.into()));
    assert_eq!(log.matches("the entrypoint `").count(), 1, "{log}");
}
