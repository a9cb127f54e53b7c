//! `sinew image import|ls|inspect|rm` on small archives of the test's own.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{sinew, stderr, stdout};

fn is_root(test: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("SKIP {test}: needs root");
    }
    is_root
}

/// On a disk, since older kernels cannot map the ids of a file system in memory.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn archive(dir: &Path, name: &str) -> PathBuf {
    let tree = dir.join(format!("tree-{name}"));
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/motd"), name).unwrap();
    let path = dir.join(format!("{name}.tar"));
    let mut tar = Command::new("tar");
    tar.args(["--owner", "0", "--group", "0", "-C"]).arg(&tree).arg("-cf").arg(&path).arg(".");
    assert!(tar.status().unwrap().success());
    path
}

fn json(data: &Path, args: &[&str]) -> Value {
    let output = sinew(data, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn an_image_is_imported_shown_and_removed() {
    if !is_root("an_image_is_imported_shown_and_removed") {
        return;
    }
    let dir = place();
    let data = dir.path();
    let path = archive(data, "one");
    let source = path.to_str().unwrap();
    let imported = json(data, &["image", "import", source, "--name", "app:1", "--json"]);
    let id = imported["id"].as_str().unwrap();
    assert_eq!(imported["source"]["kind"], "rootfs");
    json(data, &["image", "import", source, "--name", "also", "--json"]);

    let list = json(data, &["image", "ls", "--json"]);
    assert_eq!(list["images"].as_array().unwrap().len(), 1);
    assert_eq!(list["images"][0]["names"], serde_json::json!(["app:1", "also"]));
    let table = stdout(&sinew(data, &["image", "ls"]));
    assert!(table.contains("app:1, also") && table.contains("root filesystem archive"), "{table}");

    let shown = json(data, &["image", "inspect", "also", "--json"]);
    assert_eq!(shown["id"], id);
    assert_eq!((&shown["in_use"], &shown["config"]), (&Value::Bool(false), &Value::Null));
    assert!(shown["source"]["digest"].as_str().unwrap().starts_with("sha256:"));
    let text = stdout(&sinew(data, &["image", "inspect", id]));
    assert!(text.contains("names        app:1, also") && text.contains(source), "{text}");

    let removed = json(data, &["image", "rm", "app:1", "--json"]);
    assert_eq!(
        (&removed["removed"], &removed["names_left"][0]),
        (&Value::Bool(false), &"also".into())
    );
    let removed = json(data, &["image", "rm", "also", "--json"]);
    assert_eq!((&removed["id"], &removed["removed"]), (&id.into(), &Value::Bool(true)));
    assert_eq!(json(data, &["image", "ls", "--json"])["images"], serde_json::json!([]));
    for args in [["image", "rm", "also"], ["image", "inspect", id]] {
        let output = sinew(data, &args);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("there is no image"), "{}", stderr(&output));
    }
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    if !is_root("mistakes_are_told_with_what_to_do") {
        return;
    }
    let dir = place();
    let data = dir.path();
    let path = archive(data, "one");
    let path = path.to_str().unwrap();
    for (args, code, text) in [
        (&["image", "import", path, "--name", "../x"][..], 2, "is no name for an image"),
        (&["image", "import", path], 2, "--name"),
        (&["image", "import", path, "--name", "x", "--max-entries", "0"], 2, "max-entries"),
        (&["image", "import", path, "--name", "x", "--max-size", "many"], 2, "is not a size"),
        (&["image", "import", path, "--name", "x", "--max-entries", "1"], 1, "--max-entries"),
        (&["image", "import", path, "--name", "x", "--ref", "y"], 1, "--ref"),
        (&["image", "import", "/nowhere", "--name", "x"], 1, "open /nowhere"),
        (&["image", "import", "/etc", "--name", "x"], 1, "tar -C /etc"),
        (&["image", "import", "/etc/passwd", "--name", "x"], 1, "neither a tar archive"),
    ] {
        let output = sinew(data, args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{args:?}: {}", stderr(&output));
    }
    let left = fs::read_dir(data.join("images")).unwrap().flatten();
    assert_eq!(left.map(|entry| entry.file_name()).collect::<Vec<_>>(), ["build.lock"]);
}

#[test]
fn an_import_from_standard_input_works_and_ctrl_c_leaves_nothing() {
    if !is_root("an_import_from_standard_input_works_and_ctrl_c_leaves_nothing") {
        return;
    }
    let dir = place();
    let data = dir.path();
    let bytes = fs::read(archive(data, "one")).unwrap();
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sinew"));
        command.args(["image", "import", "-", "--name", "piped", "--data"]).arg(data);
        command.env_remove("SINEW_IMAGES").env_remove("SINEW_DATA");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut import = start();
    import.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = import.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    sinew(data, &["image", "rm", "piped"]);

    let mut import = start();
    let mut stdin = import.stdin.take().unwrap();
    stdin.write_all(&bytes[..600]).unwrap();
    let images = data.join("images");
    let begun = || {
        let names = fs::read_dir(&images).into_iter().flatten().flatten();
        names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".building-"))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !begun() {
        assert!(std::time::Instant::now() < deadline, "it does not begin");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    kill(Pid::from_raw(import.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let output = import.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("interrupted, and nothing of it is left"),
        "{}",
        stderr(&output)
    );
    let left = fs::read_dir(&images).unwrap().flatten();
    assert_eq!(left.map(|entry| entry.file_name()).collect::<Vec<_>>(), ["build.lock"]);
    drop(stdin);
}
