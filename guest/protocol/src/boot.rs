//! How the agent is started: an argument vector and inherited descriptors, nothing else.
//!
//! Whoever starts the sandbox builds a [`BootArgs`] and passes [`BootArgs::to_args`]; the agent
//! reads it back with [`BootArgs::parse`].

use std::fmt;
use std::str::FromStr;

/// Words of an entrypoint: far over any service's command line, far under what `exec` takes.
pub const ENTRYPOINT_WORDS_MAX: usize = 256;
/// All of them together.
pub const ENTRYPOINT_BYTES_MAX: usize = 32 << 10;
/// Supplementary groups of the tool's user; an image names a handful.
pub const TOOL_GROUPS_MAX: usize = 64;

/// Everything the agent needs to know. Descriptors are numbers in the agent's own table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootArgs {
    /// A listening unix socket; the host connects to its path from outside.
    pub listen_fd: i32,
    /// The directory for outputs, writable through this descriptor.
    pub output_fd: i32,
    /// `NAME=VALUE` texts, each ended by NUL: the profile's environment of tools.
    pub env_fd: Option<i32>,
    /// Open files of the leaf for payload, `cgroup.procs` or for each hierarchy of cgroup v1
    /// `tasks` (the argument is repeated): what the agent starts writes `0` there while it has one
    /// thread, and has moved.
    pub payload_procs_fds: Vec<i32>,
    pub epoch: u64,
    pub tool_uid: u32,
    pub tool_gid: u32,
    /// Supplementary groups of the tool's user. Root has none.
    pub tool_groups: Vec<u32>,
    pub tools_as: ToolsAs,
    pub workdir: String,
    /// Where tools see the directory of `output_fd`, read-only.
    pub output_path: String,
    /// `HOME` of the tool's user.
    pub home: String,
    /// `USER` of the tool's user.
    pub user_name: String,
    /// What the agent runs once, as the tool's user, beside the tools. Without a word it was asked
    /// for and the image names none.
    pub entrypoint: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolsAs {
    /// `tool_uid` and `tool_gid`, no capabilities.
    User,
    /// Root of the sandbox's own user namespace, for profiles that install packages.
    Root,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BootError {
    #[error("argument {0} is not known")]
    Unknown(String),
    #[error("argument {0} has no value")]
    NoValue(String),
    #[error("argument {name} has the value `{value}`, which does not fit")]
    BadValue { name: String, value: String },
    #[error("argument {0} is missing")]
    Missing(&'static str),
    #[error("argument {0} stands there too often or too seldom, or is too long")]
    Count(&'static str),
}

const LISTEN_FD: &str = "--listen-fd";
const OUTPUT_FD: &str = "--output-fd";
const ENV_FD: &str = "--env-fd";
const PAYLOAD_PROCS_FD: &str = "--payload-procs-fd";
const EPOCH: &str = "--epoch";
const TOOL_UID: &str = "--tool-uid";
const TOOL_GID: &str = "--tool-gid";
const TOOLS_AS: &str = "--tools-as";
const WORKDIR: &str = "--workdir";
const OUTPUT_PATH: &str = "--output-path";
const HOME: &str = "--home";
const TOOL_GROUP: &str = "--tool-group";
const USER_NAME: &str = "--user-name";
const ENTRYPOINT_WORDS: &str = "--entrypoint-words";
const ENTRYPOINT_WORD: &str = "--entrypoint-word";

// === impl BootArgs ===

impl BootArgs {
    /// With what is the same in every sandbox filled in.
    pub fn new(listen_fd: i32, output_fd: i32, epoch: u64) -> Self {
        Self {
            listen_fd,
            output_fd,
            env_fd: None,
            payload_procs_fds: Vec::new(),
            epoch,
            tool_uid: 1000,
            tool_gid: 1000,
            tool_groups: Vec::new(),
            tools_as: ToolsAs::User,
            workdir: "/workspace".to_owned(),
            output_path: crate::OUTPUT_PATH.to_owned(),
            home: "/home/agent".to_owned(),
            user_name: "agent".to_owned(),
            entrypoint: None,
        }
    }

    /// The arguments after the program's name.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut put = |name: &str, value: &dyn fmt::Display| {
            args.push(name.to_owned());
            args.push(value.to_string());
        };
        put(LISTEN_FD, &self.listen_fd);
        put(OUTPUT_FD, &self.output_fd);
        if let Some(fd) = self.env_fd {
            put(ENV_FD, &fd);
        }
        for fd in &self.payload_procs_fds {
            put(PAYLOAD_PROCS_FD, fd);
        }
        put(EPOCH, &self.epoch);
        put(TOOL_UID, &self.tool_uid);
        put(TOOL_GID, &self.tool_gid);
        put(TOOLS_AS, &self.tools_as);
        put(WORKDIR, &self.workdir);
        put(OUTPUT_PATH, &self.output_path);
        put(HOME, &self.home);
        put(USER_NAME, &self.user_name);
        for group in &self.tool_groups {
            put(TOOL_GROUP, group);
        }
        if let Some(words) = &self.entrypoint {
            put(ENTRYPOINT_WORDS, &words.len());
            for word in words {
                put(ENTRYPOINT_WORD, word);
            }
        }
        args
    }

    /// Reads what [`Self::to_args`] made. Epoch and the two descriptors must be there.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, BootError> {
        let mut args = args.into_iter();
        let mut boot = Self::new(-1, -1, 0);
        let mut words_wanted = None;
        let mut words = Vec::new();
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| BootError::NoValue(name.clone()))?;
            match name.as_str() {
                LISTEN_FD => boot.listen_fd = number(&name, &value)?,
                OUTPUT_FD => boot.output_fd = number(&name, &value)?,
                ENV_FD => boot.env_fd = Some(number(&name, &value)?),
                PAYLOAD_PROCS_FD => boot.payload_procs_fds.push(number(&name, &value)?),
                EPOCH => boot.epoch = number(&name, &value)?,
                TOOL_UID => boot.tool_uid = number(&name, &value)?,
                TOOL_GID => boot.tool_gid = number(&name, &value)?,
                TOOLS_AS => boot.tools_as = number(&name, &value)?,
                WORKDIR => boot.workdir = absolute(&name, value)?,
                OUTPUT_PATH => boot.output_path = absolute(&name, value)?,
                HOME => boot.home = absolute(&name, value)?,
                USER_NAME => boot.user_name = value,
                TOOL_GROUP => boot.tool_groups.push(number(&name, &value)?),
                ENTRYPOINT_WORDS => words_wanted = Some(number(&name, &value)?),
                ENTRYPOINT_WORD => words.push(value),
                _ => return Err(BootError::Unknown(name)),
            }
        }
        for (name, missing) in [
            (LISTEN_FD, boot.listen_fd < 0),
            (OUTPUT_FD, boot.output_fd < 0),
            (EPOCH, boot.epoch == 0),
        ] {
            if missing {
                return Err(BootError::Missing(name));
            }
        }
        if boot.tool_groups.len() > TOOL_GROUPS_MAX {
            return Err(BootError::Count(TOOL_GROUP));
        }
        if words.len() != words_wanted.unwrap_or(0) || !entrypoint_fits(&words) {
            return Err(BootError::Count(ENTRYPOINT_WORD));
        }
        boot.entrypoint = words_wanted.map(|_| words);
        Ok(boot)
    }
}

/// Whether an entrypoint is within its bounds.
pub fn entrypoint_fits(words: &[String]) -> bool {
    let bytes: usize = words.iter().map(String::len).sum();
    words.len() <= ENTRYPOINT_WORDS_MAX && bytes <= ENTRYPOINT_BYTES_MAX
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, BootError> {
    value.parse().map_err(|_| bad(name, value))
}

fn absolute(name: &str, value: String) -> Result<String, BootError> {
    if value.starts_with('/') { Ok(value) } else { Err(bad(name, &value)) }
}

fn bad(name: &str, value: &str) -> BootError {
    BootError::BadValue { name: name.to_owned(), value: value.to_owned() }
}

// === impl ToolsAs ===

impl fmt::Display for ToolsAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ToolsAs::User => "user",
            ToolsAs::Root => "root",
        })
    }
}

impl FromStr for ToolsAs {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "user" => Ok(ToolsAs::User),
            "root" => Ok(ToolsAs::Root),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_round_trip() {
        let mut boot = BootArgs::new(3, 4, 7);
        assert_eq!(BootArgs::parse(boot.to_args()), Ok(boot.clone()));
        boot.env_fd = Some(5);
        boot.payload_procs_fds = vec![6, 7];
        boot.tools_as = ToolsAs::Root;
        boot.workdir = "/srv/w".into();
        boot.tool_groups = vec![5, 65_535];
        boot.user_name = "web server".into();
        boot.entrypoint = Some(Vec::new());
        assert_eq!(BootArgs::parse(boot.to_args()), Ok(boot.clone()));
        boot.entrypoint = Some(vec!["nginx".into(), String::new(), "--epoch".into(), "9".into()]);
        assert_eq!(BootArgs::parse(boot.to_args()), Ok(boot));
    }

    #[test]
    fn a_wrong_argument_is_named() {
        let parse = |text: &str| BootArgs::parse(text.split_whitespace().map(str::to_owned));
        assert_eq!(parse("--nope 1"), Err(BootError::Unknown("--nope".into())));
        assert_eq!(parse("--epoch"), Err(BootError::NoValue("--epoch".into())));
        assert_eq!(parse("--epoch x"), Err(bad("--epoch", "x")));
        assert_eq!(parse("--workdir w"), Err(bad("--workdir", "w")));
        assert_eq!(parse("--listen-fd 3 --epoch 1"), Err(BootError::Missing("--output-fd")));
        assert_eq!(parse("--listen-fd 3 --output-fd 4"), Err(BootError::Missing("--epoch")));
        let base = "--listen-fd 3 --output-fd 4 --epoch 1";
        let count = Err(BootError::Count("--entrypoint-word"));
        assert_eq!(parse(&format!("{base} --entrypoint-words 2 --entrypoint-word a")), count);
        assert_eq!(parse(&format!("{base} --entrypoint-word a")), count);
        let words = "--entrypoint-word a ".repeat(ENTRYPOINT_WORDS_MAX + 1);
        assert_eq!(parse(&format!("{base} --entrypoint-words 257 {words}")), count);
        let groups = "--tool-group 1 ".repeat(TOOL_GROUPS_MAX + 1);
        assert_eq!(parse(&format!("{base} {groups}")), Err(BootError::Count("--tool-group")));
    }
}
