//! A configuration of one test: a file, variables, flags.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use base_config::{Config, ConfigErrors, Overrides, Sources, load};

/// Begins as a real one does; must never be seen in any message.
pub const KEY: &str = "sk-ant-oat01-never-print-this";

/// A data directory with a `sinew.toml`, and the variables and flags of one start.
pub struct Setup {
    pub folder: tempfile::TempDir,
    pub variables: Vec<(&'static str, String)>,
    pub overrides: Overrides,
}

impl Setup {
    pub fn new(file: &str) -> Setup {
        let setup = Setup::without_file();
        fs::write(setup.path("sinew.toml"), file).expect("write the file");
        setup
    }

    pub fn without_file() -> Setup {
        let folder = tempfile::tempdir().expect("make a folder");
        let data = Some(folder.path().to_owned());
        let overrides = Overrides { data, ..Overrides::default() };
        Setup { folder, variables: vec![], overrides }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn variable(mut self, name: &'static str, value: impl Into<String>) -> Setup {
        self.variables.push((name, value.into()));
        self
    }

    pub fn file(self, name: &str, content: &str, mode: u32) -> Setup {
        fs::write(self.path(name), content).expect("write a file");
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).expect("chmod");
        self
    }

    pub fn sources(&self) -> Sources {
        let variables =
            self.variables.iter().map(|(name, value)| (OsString::from(name), value.into()));
        Sources::new(self.overrides.clone(), variables, true)
    }

    #[track_caller]
    pub fn accepted(&self) -> Config {
        load(&self.sources()).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// The problems as an operator reads them, without the folder's name.
    #[track_caller]
    pub fn refused(&self) -> Vec<String> {
        let Err(ConfigErrors { problems }) = load(&self.sources()) else {
            panic!("the configuration should be refused")
        };
        let folder = format!("{}/", self.folder.path().display());
        let problems = problems.iter().map(|problem| problem.to_string().replace(&folder, ""));
        let problems: Vec<String> = problems.collect();
        assert!(problems.iter().all(|problem| !problem.contains("never-print-this")));
        problems
    }
}

/// One configuration refused for exactly one thing.
#[track_caller]
pub fn refused_for(file: &str, expected: &str) {
    let problems = Setup::new(file).refused();
    assert_eq!(problems, [format!("sinew.toml:{expected}")], "{file}");
}
