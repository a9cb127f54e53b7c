//! Where an installed service has its files, and which names are fit for that.

use std::path::{Component, Path, PathBuf};

use crate::exit::UsageError;

/// The units, in the order in which they start.
pub const SANDBOXES_UNIT: &str = "sinew-sandboxes.service";
pub const LAUNCHER_UNIT: &str = "sinew-launcher.service";
pub const SERVE_UNIT: &str = "sinew.service";

const CONFIG: &str = "/etc/sinew/sinew.toml";
const KEYS: &str = "/etc/sinew/keys";
/// What this program wrote, for its own later runs: one service a machine, wherever its program is.
const RECORD: &str = "/etc/sinew/installed.json";

/// `useradd` takes no longer name.
const USER_CHARS_MAX: usize = 32;

/// Everything about a service that its user chooses. Paths are as the service sees them.
#[derive(Clone, Debug)]
pub struct Target {
    pub prefix: PathBuf,
    pub data: PathBuf,
    pub user: String,
    /// In front of every path, for a package: nothing of this machine is looked at or changed.
    pub destdir: Option<PathBuf>,
}

// === impl Target ===

impl Target {
    /// Refuses what could not stand in a unit or would not be what it seems.
    pub fn checked(self) -> Result<Self, UsageError> {
        check_path("--prefix", &self.prefix)?;
        check_path("--data", &self.data)?;
        if self.data.components().count() < 3 {
            let text = format!(
                "--data {} is a directory of the system: name one below it, like /var/lib/sinew",
                self.data.display()
            );
            return Err(UsageError(text));
        }
        if !is_user_name(&self.user) {
            let text = format!(
                "--user {:?} is no name for a system user: write lower-case letters, digits, \
                 hyphens and underscores, and not `root`",
                self.user
            );
            return Err(UsageError(text));
        }
        let destdir = self.destdir.as_ref().map(std::path::absolute).transpose();
        let destdir = destdir.map_err(|error| UsageError(format!("--destdir: {error}")))?;
        Ok(Self { destdir, ..self })
    }

    pub fn program(&self) -> PathBuf {
        self.prefix.join("bin/sinew")
    }

    pub fn share(&self) -> PathBuf {
        self.prefix.join("share")
    }

    pub fn config(&self) -> PathBuf {
        CONFIG.into()
    }

    pub fn keys(&self) -> PathBuf {
        KEYS.into()
    }

    pub fn record(&self) -> PathBuf {
        RECORD.into()
    }

    /// A package's units belong to the vendor, ours to the administrator.
    pub fn units(&self) -> PathBuf {
        match self.prefix == Path::new("/usr") {
            true => "/usr/lib/systemd/system".into(),
            false => "/etc/systemd/system".into(),
        }
    }

    /// Where a path of the service is written.
    pub fn place(&self, path: &Path) -> PathBuf {
        match &self.destdir {
            None => path.to_owned(),
            Some(destdir) => destdir.join(path.strip_prefix("/").unwrap_or(path)),
        }
    }
}

/// Absolute, without detours, and of characters that mean themselves in a unit, a shell and TOML.
fn check_path(flag: &str, path: &Path) -> Result<(), UsageError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    let text = path.to_string_lossy();
    let is_straight =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && is_straight && text.chars().all(is_plain) && !text.ends_with('/') {
        return Ok(());
    }
    Err(UsageError(format!(
        "{flag} {text:?} cannot stand in a unit: write an absolute path without `..`, of letters, \
         digits and `._+-`"
    )))
}

fn is_user_name(name: &str) -> bool {
    let is_first = |c: char| c.is_ascii_lowercase() || c == '_';
    let is_later = |c: char| is_first(c) || c.is_ascii_digit() || c == '-';
    name.starts_with(is_first)
        && name.len() <= USER_CHARS_MAX
        && name.chars().all(is_later)
        && !["root", "nobody"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(prefix: &str, data: &str, user: &str) -> Result<Target, UsageError> {
        let target =
            Target { prefix: prefix.into(), data: data.into(), user: user.into(), destdir: None };
        target.checked()
    }

    #[test]
    fn names_that_would_mean_something_else_in_a_unit_are_refused() {
        target("/usr/local", "/var/lib/sinew", "sinew").unwrap();
        target("/opt/sinew-0.2+x", "/srv/a/b.c", "_sinew-2").unwrap();
        for prefix in ["", "usr", "/usr/../etc", "/usr/%h", "/a b", "/a\nb", "/a;b", "/$A", "/ü"] {
            let error = target(prefix, "/var/lib/sinew", "sinew").unwrap_err().to_string();
            assert!(error.contains("--prefix") && error.contains("absolute path"), "{error}");
        }
        for data in ["/", "/var", "data", "/var/lib/../lib/x", "/var/lib/\"x"] {
            let error = target("/usr/local", data, "sinew").unwrap_err().to_string();
            assert!(error.contains("--data"), "{error}");
        }
        for user in ["", "root", "nobody", "Sinew", "si new", "0", "-x", "a:b", &"x".repeat(33)] {
            let error = target("/usr/local", "/var/lib/sinew", user).unwrap_err().to_string();
            assert!(error.contains("--user"), "{error}");
        }
    }
}
