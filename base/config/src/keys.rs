//! Every key there is: what it takes, what it is when it is not set, and what it means.

use crate::value::Kind;

/// Where a key stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Before the first header.
    Top,
    Environment,
    Profile,
    Match,
    Limits,
    Pool,
    Store,
}

#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub section: Section,
    pub name: &'static str,
    pub kind: Kind,
    pub default: Fallback,
    pub doc: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// As it would be written in the file, a text without its quotes.
    Is(&'static str),
    /// Not a fixed value; this is how it is found.
    Computed(&'static str),
    None,
    Required,
}

use Fallback::{Computed, Is, None, Required};
use Kind::{
    Choice, Count, Cpus, Duration, Entrypoint, Flag, GuestPath, Id, Image, Map, Name, Path, Size,
    Tables, Text,
};
use Section::{Environment, Limits, Match, Pool, Profile, Store, Top};

const fn key(
    section: Section,
    name: &'static str,
    kind: Kind,
    default: Fallback,
    doc: &'static str,
) -> Key {
    Key { section, name, kind, default, doc }
}

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 86_400_000;

/// A wait of an operator's choice: from a tenth of a second, so that zero does not turn a check
/// off, to a year.
const WAIT: Kind = Duration { min_ms: 100, max_ms: 365 * DAY_MS };
/// A run of one tool: at least a second, at most a day.
const RUN: Kind = Duration { min_ms: 1_000, max_ms: DAY_MS };
/// Sizes of disks: a file system of less than 16 MiB does not start.
const DISK: Kind = Size { min: 16 << 20, max: 64 << 40 };

pub const KEYS: &[Key] = &[
    key(
        Top,
        "data",
        Path,
        Computed("`/var/lib/sinew` for root, else `~/.local/share/sinew`"),
        "The installation: store, sockets and volumes. Two installations on one machine have two directories.",
    ),
    key(
        Top,
        "images",
        Path,
        Computed("`images` in the data directory"),
        "The image cache. Several installations may share one.",
    ),
    key(
        Top,
        "user",
        // Ids from 65,536 on are the sandboxes'.
        Count { min: 1, max: 65_533 },
        Is("64500"),
        "The numeric user that `sinew serve` becomes once the launcher runs. It needs no entry in `/etc/passwd`.",
    ),
    key(
        Top,
        "worker_id",
        Name,
        Computed("made from the host's name and the data directory"),
        "How this worker names itself to the brain.",
    ),
    key(
        Top,
        "environment",
        Tables,
        None,
        "The queues of work to serve, one `[[environment]]` each.",
    ),
    key(Top, "profile", Tables, None, "The sandbox shapes, one `[[profile]]` each."),
    key(Environment, "id", Id, Required, "The environment's id at the brain."),
    key(
        Environment,
        "key_file",
        Path,
        None,
        "The file that holds the environment key. Nobody but its owner may read it (mode 0600). Either this or `key_env`.",
    ),
    key(
        Environment,
        "key_env",
        Name,
        None,
        "The variable of `sinew serve` that holds the environment key. Either this or `key_file`.",
    ),
    key(
        Environment,
        "base_url",
        Text,
        Is("https://api.anthropic.com"),
        "The brain. May carry a path prefix.",
    ),
    key(
        Environment,
        "allow_plain_http",
        Flag,
        Is("false"),
        "Allows `http://` to a host that is not this machine. The key then travels readable.",
    ),
    key(
        Environment,
        "ca_file",
        Path,
        None,
        "PEM certificates that are trusted for this brain besides the system's own.",
    ),
    key(
        Environment,
        "tenant",
        Id,
        Computed("the environment's id"),
        "The tenant of the environment's sessions. Tenants share nothing.",
    ),
    key(
        Environment,
        "tenant_metadata_key",
        Id,
        None,
        "The session-metadata key whose value is the tenant; a session without it belongs to `tenant`.",
    ),
    key(
        Environment,
        "concurrency",
        Count { min: 1, max: 10_000 },
        Is("32"),
        "Sessions of this environment served at the same time.",
    ),
    key(
        Profile,
        "name",
        Name,
        Required,
        "The profile's name. `default` is the built-in one; a profile of this name replaces it.",
    ),
    key(
        Profile,
        "match",
        Tables,
        None,
        "Which sessions get the profile, one `[[profile.match]]` each; one of them must hold. Without any, every session does.",
    ),
    key(
        Profile,
        "tier",
        Choice(&["container"]),
        Is("container"),
        "How the sandbox is made. `container` shares the host's kernel: the weaker wall.",
    ),
    key(
        Profile,
        "image",
        Image,
        Is("debian"),
        "The image's name in the image cache (`sinew image ls`).",
    ),
    key(
        Profile,
        "cpus",
        Cpus { min_millis: 50, max_millis: 1_024_000 },
        Is("1.0"),
        "Processors' worth of time; may be a fraction.",
    ),
    key(
        Profile,
        "memory",
        Size { min: 16 << 20, max: 64 << 40 },
        Is("1GiB"),
        "Memory of all processes and of the page cache they cause. What exceeds it ends the sandbox's processes.",
    ),
    key(
        Profile,
        "pids",
        Count { min: 16, max: 4_000_000 },
        Is("512"),
        "Processes and threads at the same time.",
    ),
    key(Profile, "disk", DISK, Is("4GiB"), "What the sandbox may write, tool output included."),
    key(
        Profile,
        "tools_as",
        Choice(&["user", "root"]),
        Computed("the image's user, else `user`"),
        "Tools run as `agent` (uid 1000), or as root of the sandbox's own user namespace, which may install packages.",
    ),
    key(
        Profile,
        "workdir",
        GuestPath,
        Computed("the image's work directory, else `/workspace`"),
        "Where tools work. It is made for their user where it is missing, and left as it is where it is there.",
    ),
    key(
        Profile,
        "entrypoint",
        Entrypoint,
        Is("false"),
        "What runs beside the tools, once each time the sandbox starts: `true` is the image's entrypoint with its command, words are a program with its arguments.",
    ),
    key(
        Profile,
        "env",
        Map,
        None,
        "Variables of every process in the sandbox, over those of the image. Never a credential: the guest is hostile.",
    ),
    key(
        Profile,
        "bash_timeout",
        RUN,
        Is("120s"),
        "A `bash` call that names no time-out of its own.",
    ),
    key(Profile, "bash_timeout_max", RUN, Is("30min"), "What a `bash` call may ask for at most."),
    key(Profile, "tool_timeout", RUN, Is("150s"), "Any other tool call."),
    key(
        Profile,
        "keep_running",
        Duration { min_ms: 0, max_ms: 365 * DAY_MS },
        Is("10min"),
        "How long processes outlive the work item.",
    ),
    key(
        Profile,
        "retain",
        Duration { min_ms: MINUTE_MS, max_ms: 3_650 * DAY_MS },
        Is("7d"),
        "How long the files outlive the last activity.",
    ),
    key(Match, "environment", Id, None, "The session's environment."),
    key(Match, "agent", Id, None, "The id of the session's agent."),
    key(Match, "tenant", Id, None, "The session's tenant."),
    key(
        Match,
        "metadata",
        Map,
        None,
        "Entries of the session's metadata, each exactly as written.",
    ),
    key(
        Limits,
        "agent_silence",
        WAIT,
        Is("10s"),
        "A guest agent that says nothing for this long is dead; the sandbox gets a new epoch.",
    ),
    key(
        Limits,
        "idle",
        WAIT,
        Is("60s"),
        "A turn is over and nothing is outstanding for this long: the work item is stopped.",
    ),
    key(Limits, "shutdown_drain", WAIT, Is("30s"), "How long a shutdown waits for running calls."),
    key(
        Limits,
        "log_retention",
        Duration { min_ms: MINUTE_MS, max_ms: 36_500 * DAY_MS },
        Is("30d"),
        "How long sessions that are over, and log entries of live ones, are kept in the journal.",
    ),
    key(
        Limits,
        "node_ttl",
        Duration { min_ms: 5_000, max_ms: DAY_MS },
        Is("60s"),
        "Where several nodes share a store: a node that gives no sign of life for this long is gone, \
         and its sessions go on elsewhere, without their files.",
    ),
    key(Limits, "brain_connect", WAIT, Is("5s"), "Connecting to the brain."),
    key(
        Limits,
        "brain_request",
        WAIT,
        Is("600s"),
        "One request to the brain, its answer included.",
    ),
    key(
        Limits,
        "beat_attempt",
        WAIT,
        Is("5s"),
        "One try of a heartbeat; a lost one is repeated well before the lease ends.",
    ),
    key(
        Limits,
        "stream_silence",
        WAIT,
        Is("600s"),
        "An event stream that says nothing for this long is opened again.",
    ),
    key(
        Limits,
        "starts_ahead",
        Count { min: 0, max: 256 },
        Is("8"),
        "For so many sandboxes the launcher makes namespaces, volume and cgroups ahead, so that they start sooner. Each is used once. 0 makes none. Read when the launcher starts.",
    ),
    key(
        Pool,
        "initial",
        Size { min: 256 << 20, max: 64 << 40 },
        Is("4GiB"),
        "The size of a new pool. It is allocated in full.",
    ),
    key(Pool, "step", DISK, Is("2GiB"), "The pool grows by this much at a time."),
    key(
        Pool,
        "max",
        Size { min: 256 << 20, max: 64 << 40 },
        Is("64GiB"),
        "The pool never grows beyond this.",
    ),
    key(
        Pool,
        "reserve",
        DISK,
        Is("512MiB"),
        "No guest can use this part of the pool; at least a twentieth is kept in any case.",
    ),
    key(
        Store,
        "url",
        Text,
        Computed("none: SQLite, in a file of the data directory"),
        "The PostgreSQL database (13 or later) that holds the journal: `postgres://USER@HOST:PORT/DATABASE`, or `postgres://USER@/DATABASE?host=/DIRECTORY` for a socket. Never with a password in it. Several `serve` may share one.",
    ),
    key(
        Store,
        "password_file",
        Path,
        None,
        "The file that holds the database user's password (mode 0600). The variable `SINEW_STORE_PASSWORD` overrides it.",
    ),
    key(
        Store,
        "schema",
        Name,
        Is("sinew"),
        "The schema in that database; it is made if it does not exist. Nodes that serve together name the same one.",
    ),
    key(
        Store,
        "ca_file",
        Path,
        None,
        "PEM certificates that are trusted for the database besides the public authorities'.",
    ),
    key(
        Store,
        "allow_plain",
        Flag,
        Is("false"),
        "Allows a connection without verified TLS to a host that is not this machine. What agents do, and their sealed credentials, then travel readable.",
    ),
    key(
        Store,
        "connections",
        Count { min: 2, max: 1_000 },
        Is("10"),
        "Connections to the database at the same time.",
    ),
];

impl Section {
    pub const ALL: [Section; 7] = [Top, Environment, Profile, Match, Limits, Pool, Store];

    /// As it is written in the file.
    pub fn header(self) -> &'static str {
        match self {
            Top => "the top of the file",
            Environment => "[[environment]]",
            Profile => "[[profile]]",
            Match => "[[profile.match]]",
            Limits => "[limits]",
            Pool => "[pool]",
            Store => "[store]",
        }
    }

    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        KEYS.iter().filter(move |key| key.section == self)
    }
}

impl Key {
    /// The variable that sets this key, where one can: those that exist once.
    pub fn variable(&self) -> Option<String> {
        if matches!(self.kind, Tables) {
            return Option::None;
        }
        let name = self.name.to_uppercase();
        match self.section {
            Top => Some(format!("SINEW_{name}")),
            Limits => Some(format!("SINEW_LIMITS_{name}")),
            Pool => Some(format!("SINEW_POOL_{name}")),
            Store => Some(format!("SINEW_STORE_{name}")),
            Environment | Profile | Match => Option::None,
        }
    }
}

/// The key of that name. Only names written in this crate are looked up, and a test reads every
/// key, so that a missing one cannot get past the tests.
pub(crate) fn find(section: Section, name: &str) -> &'static Key {
    match section.keys().find(|key| key.name == name) {
        Some(key) => key,
        Option::None => unreachable!("{name} is not a key of {}", section.header()),
    }
}
