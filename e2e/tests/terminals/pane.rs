//! A terminal that a test types into and looks at: a tmux of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{Installation, sinew_binary};

/// For a failing test only.
const WAIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub fn has_tmux() -> bool {
    let version = Command::new("tmux").arg("-V").stdout(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// One pane with a shell of the host, in which `sinew` is the built binary.
pub struct Pane {
    dir: tempfile::TempDir,
}

impl Pane {
    pub fn open(installation: &Installation) -> Self {
        let pane = Self { dir: tempfile::tempdir().unwrap() };
        let binary = sinew_binary();
        let shell = format!(
            "env PS1='outer> ' SINEW_DATA={} PATH={}:$PATH bash --norc --noprofile -i",
            installation.data().display(),
            binary.parent().unwrap().display()
        );
        pane.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", &shell]);
        pane.tmux(&["set-option", "-g", "history-limit", "20000"]);
        pane.wait_for("outer>");
        pane
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux")
            .arg("-S")
            .arg(self.dir.path().join("tmux"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "tmux {args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types a line and Enter.
    pub fn run(&self, line: &str) {
        self.keys(line);
        self.tmux(&["send-keys", "Enter"]);
    }

    /// Types the text as it is.
    pub fn keys(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// By tmux's names: `C-c`, `Escape`.
    pub fn key(&self, name: &str) {
        self.tmux(&["send-keys", name]);
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// What is on the screen now.
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen with what has scrolled out of it.
    pub fn all(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J", "-S", "-"])
    }

    /// Whether a program has taken the whole screen.
    pub fn is_full_screen(&self) -> bool {
        self.tmux(&["display-message", "-p", "#{alternate_on}"]).trim() == "1"
    }

    /// Terminal modes that a full-screen program sets.
    pub fn modes(&self) -> String {
        let format = "#{alternate_on}#{keypad_flag}#{keypad_cursor_flag}#{mouse_any_flag}\
                      #{mouse_sgr_flag}#{cursor_flag}";
        self.tmux(&["display-message", "-p", format]).trim().to_owned()
    }

    /// Waits for the host's own prompt: until then, keys go into the sandbox.
    #[track_caller]
    pub fn wait_for_outer(&self) {
        self.wait_until("the outer prompt", |screen| screen.trim_end().ends_with("outer>"));
    }

    #[track_caller]
    pub fn wait_for(&self, wanted: &str) -> String {
        self.wait_until(wanted, |screen| screen.contains(wanted))
    }

    /// Waits until the screen is as wanted, and answers with it.
    #[track_caller]
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + WAIT;
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < until, "never: {what}\n{}", self.all());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for a file, which a shell writes when it is so far.
    #[track_caller]
    pub fn wait_for_file(&self, path: &Path) -> String {
        let until = Instant::now() + WAIT;
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text,
                _ => assert!(Instant::now() < until, "no {}\n{}", path.display(), self.all()),
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Pane {
    fn drop(&mut self) {
        // It may have ended with its shell.
        let _ = Command::new("tmux")
            .arg("-S")
            .arg(self.dir.path().join("tmux"))
            .arg("kill-server")
            .stderr(Stdio::null())
            .status();
    }
}

/// What stands between two marks, the last time they are there.
pub fn between(text: &str, before: &str, after: &str) -> String {
    let rest = text.rsplit_once(before).map_or("", |(_, rest)| rest);
    rest.split_once(after).map_or(rest, |(found, _)| found).to_owned()
}
