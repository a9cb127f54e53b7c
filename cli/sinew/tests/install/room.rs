//! A place to install into that is this machine as far as a program can see, and nothing of which
//! is left afterwards: `/etc`, `/usr`, `/var/lib` and `/run` are copies on write in a mount
//! namespace of their own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Making namespaces and mounts takes milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(20);

const COPIED: [&str; 3] = ["/etc", "/usr", "/var/lib"];

/// Mounts what the arguments say and stays until its input ends.
const SCRIPT: &str = r#"set -euo pipefail
for name in /etc /usr /var/lib; do
    mkdir -p "$1$name".{upper,work}
    mount -t overlay overlay -o "lowerdir=$name,upperdir=$1$name.upper,workdir=$1$name.work" "$name"
done
mount -t tmpfs tmpfs /run
touch "$1/ready"
read -r _ || true
"#;

pub struct Room {
    dir: tempfile::TempDir,
    holder: Child,
}

/// What a file or directory is, as far as an installation cares.
pub type Listing = BTreeMap<PathBuf, String>;

impl Room {
    /// `None`, with the reason on stderr, where this machine cannot make one.
    pub fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP {test}: needs root");
            return None;
        }
        if Command::new("systemctl").arg("--version").output().is_err() {
            eprintln!("SKIP {test}: no systemd: run `scripts/setup.sh test`");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("sinew-room-").tempdir_in("/var/tmp").unwrap();
        fs::create_dir_all(dir.path().join("var")).unwrap();
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "bash", "-c", SCRIPT, "room"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let end = Instant::now() + READY_WITHIN;
        while !dir.path().join("ready").exists() {
            if holder.try_wait().unwrap().is_some() || Instant::now() > end {
                holder.kill().unwrap();
                let output = holder.wait_with_output().unwrap();
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                eprintln!("SKIP {test}: no namespace with overlays: {}", why.trim());
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(Self { dir, holder })
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg("--target").arg(self.holder.id().to_string());
        command.args(["--wd=/", "--", program]).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SINEW_") {
                command.env_remove(name);
            }
        }
        command
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program).args(args).output().unwrap()
    }

    /// The program under test, from where it was built.
    pub fn sinew(&self, args: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_sinew"), args)
    }

    /// Runs it and expects it to work.
    #[track_caller]
    pub fn works(&self, args: &[&str]) -> String {
        let output = self.sinew(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs it and expects it to fail with this code. What it said.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.sinew(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        said
    }

    pub fn shell(&self, script: &str) -> String {
        let output = self.run("bash", &["-euc", script]);
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.inside(path)).is_ok()
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.inside(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A path of the room as a process outside of it reaches it.
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// Everything that differs from the machine: kind, mode, owner, and of a file its length.
    pub fn changes(&self) -> Listing {
        let mut found = Listing::new();
        for copied in COPIED {
            let upper = self.dir.path().join(format!("{}.upper", copied.trim_start_matches('/')));
            walk(&upper, &upper, Path::new(copied), &mut found);
        }
        found
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // It may have ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn walk(root: &Path, directory: &Path, seen_as: &Path, found: &mut Listing) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = seen_as.join(path.strip_prefix(root).unwrap());
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => "directory".to_owned(),
            kind if kind.is_symlink() => "link".to_owned(),
            kind if kind.is_file() => format!("file of {}", metadata.len()),
            _ => "removed".to_owned(),
        };
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        found.insert(name, format!("{kind} {mode:04o} {uid}:{gid}"));
        if metadata.is_dir() {
            walk(root, &path, seen_as, found);
        }
    }
}

/// A copy of the program in a directory that every user may walk into: a clone may be in one that
/// is closed to others.
pub fn for_everybody(dir: &Path) -> PathBuf {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.join("sinew");
    fs::copy(env!("CARGO_BIN_EXE_sinew"), &copy).unwrap();
    copy
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
