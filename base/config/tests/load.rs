//! Configurations as operators write them, right and wrong.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base_config::{
    Config, ConfigErrors, DatabaseHost, Entrypoint, Fallback, KEYS, Overrides, Place, Section,
    Sources, StoreConfig, Tier, ToolsAs, load, load_without_environments, paths,
};
use base_types::ByteSize;

/// Begins as a real one does; must never be seen in any message.
const KEY: &str = "sk-ant-oat01-never-print-this";

/// A data directory with a `sinew.toml`, and the variables and flags of one start.
struct Setup {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
    overrides: Overrides,
}

impl Setup {
    fn new(file: &str) -> Setup {
        let setup = Setup::without_file();
        fs::write(setup.path("sinew.toml"), file).expect("write the file");
        setup
    }

    fn without_file() -> Setup {
        let folder = tempfile::tempdir().expect("make a folder");
        let data = Some(folder.path().to_owned());
        let overrides = Overrides { data, ..Overrides::default() };
        Setup { folder, variables: vec![], overrides }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn variable(mut self, name: &'static str, value: impl Into<String>) -> Setup {
        self.variables.push((name, value.into()));
        self
    }

    fn file(self, name: &str, content: &str, mode: u32) -> Setup {
        fs::write(self.path(name), content).expect("write a file");
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).expect("chmod");
        self
    }

    fn sources(&self) -> Sources {
        let variables =
            self.variables.iter().map(|(name, value)| (OsString::from(name), value.into()));
        Sources::new(self.overrides.clone(), variables, true)
    }

    #[track_caller]
    fn accepted(&self) -> Config {
        load(&self.sources()).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// The problems as an operator reads them, without the folder's name.
    #[track_caller]
    fn refused(&self) -> Vec<String> {
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
fn refused_for(file: &str, expected: &str) {
    let problems = Setup::new(file).refused();
    assert_eq!(problems, [format!("sinew.toml:{expected}")], "{file}");
}

const EVERYTHING: &str = r#"
data = "data"
images = "/somewhere/images"
user = 1234
worker_id = "worker-7"

[[environment]]
id = "env_1"
key_file = "key"
base_url = "http://brain.example:8080/prefix"
allow_plain_http = true
ca_file = "ca.pem"
tenant = "blue"
tenant_metadata_key = "team"
concurrency = 5

[[environment]]
id = "env_2"
key_env = "SECOND_KEY"

[[profile]]
name = "big"
tier = "container"
image = "rust"
cpus = 2.5
memory = "8GiB"
pids = 2_000
disk = "16GiB"
tools_as = "root"
workdir = "/srv/work"
entrypoint = ["redis-server", "--save", ""]
env = { RUST_LOG = "debug", LANG = "C.UTF-8" }
bash_timeout = "5min"
bash_timeout_max = "2h"
tool_timeout = "90s"
keep_running = "0s"
retain = "1d"

[[profile.match]]
environment = "env_1"
agent = "agent_1"
tenant = "blue"
metadata = { size = "big", "odd key" = "" }

[[profile.match]]
metadata = { size = "huge" }

[limits]
agent_silence = "11s"
idle = "61s"
shutdown_drain = "31s"
log_retention = "31d"
node_ttl = "62s"
brain_connect = "6s"
brain_request = "601s"
beat_attempt = "4s"
stream_silence = "602s"

[pool]
initial = "5GiB"
step = "3GiB"
max = "65GiB"
reserve = "513MiB"

[store]
url = "postgres://sinew@db.example:6432/journal"
password_file = "password"
schema = "blue"
ca_file = "ca.pem"
allow_plain = true
connections = 20
"#;

fn everything() -> Setup {
    Setup::new(EVERYTHING)
        .file("key", &format!("  {KEY}\n"), 0o600)
        .file("ca.pem", "", 0o644)
        .file("password", "a pass wörd\n", 0o600)
        .variable("SECOND_KEY", "second")
}

/// The file above must name every key there is, so that a new one cannot be forgotten here.
#[test]
fn every_key_is_read() {
    let config = everything().accepted();
    for key in KEYS {
        let written = [format!("\n{} = ", key.name), format!("{}]]", key.name)];
        assert!(written.iter().any(|text| EVERYTHING.contains(text)), "{}", key.name);
    }
    let folder = config.file.as_deref().and_then(Path::parent).expect("a file").to_owned();
    assert_eq!(config.images, Path::new("/somewhere/images"));
    assert_eq!((config.user, config.worker_id.as_deref()), (1234, Some("worker-7")));
    assert_eq!(config.warnings, []);

    let [first, second] = &config.environments[..] else { panic!("two environments") };
    assert_eq!(first.id.as_str(), "env_1");
    assert_eq!(first.key.expose(), KEY);
    assert_eq!(first.key_file, Some(folder.join("key")));
    assert_eq!(first.base_url, "http://brain.example:8080/prefix");
    assert!(first.allow_plain_http);
    assert_eq!(first.ca_file, Some(folder.join("ca.pem")));
    assert_eq!(first.tenant.as_str(), "blue");
    assert_eq!(first.tenant_metadata_key.as_deref(), Some("team"));
    assert_eq!(first.concurrency, 5);
    assert_eq!((second.id.as_str(), second.key.expose()), ("env_2", "second"));
    assert_eq!(second.base_url, "https://api.anthropic.com");
    assert_eq!((second.tenant.as_str(), second.concurrency), ("env_2", 32));

    let [big, default] = &config.profiles[..] else { panic!("two profiles") };
    assert_eq!((big.name.as_str(), big.tier, big.image.as_str()), ("big", Tier::Container, "rust"));
    assert_eq!((big.cpu_millis, big.memory, big.pids), (2_500, ByteSize::gib(8), 2_000));
    assert_eq!((big.disk, big.tools_as), (ByteSize::gib(16), Some(ToolsAs::Root)));
    assert_eq!(big.workdir.as_deref(), Some("/srv/work"));
    let words = ["redis-server", "--save", ""].map(str::to_owned).to_vec();
    assert_eq!(big.entrypoint, Entrypoint::Command(words));
    assert_eq!(big.env.get("RUST_LOG").map(String::as_str), Some("debug"));
    assert_eq!(big.env.len(), 2);
    let seconds = [big.bash_timeout, big.bash_timeout_max, big.tool_timeout].map(|d| d.as_secs());
    assert_eq!(seconds, [300, 7_200, 90]);
    assert_eq!((big.keep_running, big.retain), (Duration::ZERO, Duration::from_secs(86_400)));
    let [one, two] = &big.matches[..] else { panic!("two matches") };
    assert_eq!(one.environment.as_ref().map(|id| id.as_str()), Some("env_1"));
    assert_eq!(one.agent.as_ref().map(|id| id.as_str()), Some("agent_1"));
    assert_eq!(one.tenant.as_ref().map(|id| id.as_str()), Some("blue"));
    assert_eq!(one.metadata.get("odd key").map(String::as_str), Some(""));
    assert_eq!((two.environment.as_ref(), two.metadata.len()), (None, 1));
    assert_eq!(default.name.as_str(), "default");

    let limits = config.limits;
    let seconds = [
        limits.agent_silence,
        limits.idle,
        limits.shutdown_drain,
        limits.log_retention,
        limits.node_ttl,
        limits.brain_connect,
        limits.brain_request,
        limits.beat_attempt,
        limits.stream_silence,
    ];
    let expected = [11, 61, 31, 31 * 86_400, 62, 6, 601, 4, 602];
    assert_eq!(seconds.map(|duration| duration.as_secs()), expected);
    let pool = config.pool;
    let [five, three, most] = [5, 3, 65].map(ByteSize::gib);
    assert_eq!((pool.initial, pool.step, pool.max), (five, three, most));
    assert_eq!(pool.reserve, ByteSize::mib(513));
    let StoreConfig::Postgres(store) = &config.store else { panic!("PostgreSQL") };
    assert_eq!(store.url.host, DatabaseHost::Tcp("db.example".into()));
    assert_eq!((store.url.user.as_str(), store.url.port), ("sinew", 6432));
    assert_eq!((store.url.database.as_str(), store.schema.as_str()), ("journal", "blue"));
    assert_eq!(store.password.as_ref().map(|word| word.expose()), Some("a pass wörd"));
    assert_eq!(store.ca_file, Some(folder.join("ca.pem")));
    assert_eq!((store.allow_plain, store.connections), (true, 20));
}

#[test]
fn nothing_has_to_be_configured() {
    let setup = Setup::without_file();
    let config = setup.accepted();
    assert_eq!(config.file, None);
    assert_eq!(config.data, setup.folder.path());
    assert_eq!(config.images, setup.path("images"));
    assert_eq!((config.user, config.worker_id), (64_500, None));
    assert!(config.environments.is_empty());
    let [profile] = &config.profiles[..] else { panic!("the built-in profile") };
    assert_eq!(profile.name.as_str(), "default");
    assert_eq!((profile.cpu_millis, profile.memory), (1_000, ByteSize::gib(1)));
    assert_eq!((profile.tools_as, profile.env.len()), (None, 0));
    assert_eq!((&profile.workdir, &profile.entrypoint), (&None, &Entrypoint::None));
    assert_eq!(profile.bash_timeout, Duration::from_secs(120));
    assert_eq!(config.limits.idle, Duration::from_secs(60));
    assert_eq!(config.pool.max, ByteSize::gib(64));
}

#[test]
fn the_official_workers_variables_are_enough() {
    let setup = Setup::without_file()
        .variable("ANTHROPIC_ENVIRONMENT_ID", "env_1")
        .variable("ANTHROPIC_ENVIRONMENT_KEY", KEY)
        .variable("ANTHROPIC_BASE_URL", "http://127.0.0.1:8123")
        .variable("ANTHROPIC_WORKER_ID", "worker-1");
    let config = setup.accepted();
    let [environment] = &config.environments[..] else { panic!("one environment") };
    assert_eq!((environment.id.as_str(), environment.key.expose()), ("env_1", KEY));
    assert_eq!(environment.base_url, "http://127.0.0.1:8123");
    assert_eq!(environment.tenant.as_str(), "env_1");
    assert_eq!(config.worker_id.as_deref(), Some("worker-1"));
    assert!(!format!("{config:?}").contains("never-print-this"));

    let without_key = Setup::without_file().variable("ANTHROPIC_ENVIRONMENT_ID", "env_1");
    assert_eq!(
        without_key.refused(),
        ["ANTHROPIC_ENVIRONMENT_ID: environment `env_1` has no key: set ANTHROPIC_ENVIRONMENT_KEY"]
    );
    let without_id = Setup::without_file().variable("ANTHROPIC_ENVIRONMENT_KEY", KEY);
    assert_eq!(
        without_id.refused(),
        ["ANTHROPIC_ENVIRONMENT_KEY: is set without ANTHROPIC_ENVIRONMENT_ID: set \
          ANTHROPIC_ENVIRONMENT_ID too, or name the variable with `key_env`"]
    );
}

#[test]
fn variables_lay_over_the_files_environments() {
    let file = r#"
        [[environment]]
        id = "env_1"
        key_env = "FIRST"
        base_url = "https://one.example"
        concurrency = 7
        [[environment]]
        id = "env_2"
        key_env = "ANTHROPIC_ENVIRONMENT_KEY"
    "#;
    let setup = Setup::new(file)
        .variable("FIRST", "first")
        .variable("ANTHROPIC_ENVIRONMENT_KEY", KEY)
        .variable("ANTHROPIC_BASE_URL", "https://two.example");
    let urls = |config: &Config| {
        let all = config.environments.iter();
        all.map(|e| (e.key.expose().to_owned(), e.base_url.clone())).collect::<Vec<_>>()
    };
    let [one, two] = ["https://one.example", "https://two.example"].map(str::to_owned);
    assert_eq!(urls(&setup.accepted()), [("first".into(), one.clone()), (KEY.into(), two.clone())]);

    let setup = setup.variable("ANTHROPIC_ENVIRONMENT_ID", "env_1");
    let config = setup.accepted();
    assert_eq!(urls(&config), [(KEY.into(), two.clone()), (KEY.into(), two.clone())]);
    assert_eq!(config.environments[0].concurrency, 7);

    let other = Setup::new(file)
        .variable("FIRST", "first")
        .variable("ANTHROPIC_ENVIRONMENT_ID", "env_3")
        .variable("ANTHROPIC_ENVIRONMENT_KEY", KEY);
    let config = other.accepted();
    assert_eq!(config.environments.len(), 3);
    assert_eq!(config.environments[0].base_url, one);
    assert_eq!(config.environments[2].base_url, "https://api.anthropic.com");
}

#[test]
fn flags_override_variables_and_variables_the_file() {
    let file = "user = 1\nimages = \"of-file\"\nworker_id = \"of-file\"\n[limits]\nidle = \"1s\"\n";
    let mut setup = Setup::new(file);
    let config = setup.accepted();
    assert_eq!((config.user, config.limits.idle), (1, Duration::from_secs(1)));
    assert_eq!(config.images, setup.path("of-file"));

    setup = setup
        .variable("SINEW_USER", "2")
        .variable("SINEW_IMAGES", "/of-variable")
        .variable("SINEW_LIMITS_IDLE", "2s")
        .variable("SINEW_POOL_MAX", "8GiB")
        .variable("ANTHROPIC_WORKER_ID", "official")
        .variable("SINEW_DATA", "/not/this/one");
    let config = setup.accepted();
    assert_eq!((config.user, config.limits.idle), (2, Duration::from_secs(2)));
    assert_eq!(config.images, Path::new("/of-variable"));
    assert_eq!(config.pool.max, ByteSize::gib(8));
    assert_eq!(config.worker_id.as_deref(), Some("official"));
    assert_eq!(config.data, setup.folder.path());

    setup.overrides.user = Some(3);
    setup.overrides.images = Some("/of-flag".into());
    setup.overrides.worker_id = Some("of-flag".into());
    let setup = setup.variable("SINEW_WORKER_ID", "of-variable");
    let config = setup.accepted();
    assert_eq!((config.user, config.images.as_path()), (3, Path::new("/of-flag")));
    assert_eq!(config.worker_id.as_deref(), Some("of-flag"));

    let wrong = Setup::without_file()
        .variable("SINEW_USER", "root")
        .variable("SINEW_LIMITS_IDLE", "0s")
        .variable("SINEW_POOL_STEP", "");
    assert_eq!(
        wrong.refused(),
        [
            "SINEW_LIMITS_IDLE: 0B is out of range: from 100ms to 365d".replace("0B", "0ms"),
            "SINEW_USER: is a text: a whole number from 1 to 65533".into(),
        ]
    );
}

/// What the operator reads after a bad day with an editor.
#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let file = r#"usr = 64500
images = 5
[limits]
idle = 60
brain_connect = "5 parsecs"
tenant = "blue"
[[environment]]
id = "env_1"
key = "sk-ant-oat01-never-print-this"
concurency = 5
concurrency = 0
[[environment]]
id = "env_1"
key_file = "a"
key_env = "B"
base_url = "http://brain.example"
[[profile]]
name = "../big"
tier = "microvm"
cpus = -1
memory = "1.5GiB"
pids = "many"
env = { ANTHROPIC_API_KEY = "x", "1st" = "y", N = 1 }
bash_timeout = "31min"
[[profile.match]]
[[profile]]
image = "sk-ant-oat01-never-print-this"
disk = "65GiB"
[pool]
initial = "100GiB"
[[pools]]
"#;
    let expected = [
        "sinew.toml:1:1: `usr` is not a key of the top of the file: did you mean `user`?",
        "sinew.toml:2:10: `images` is a whole number: a path, like \"/var/lib/sinew\"",
        "sinew.toml:4:8: `idle` has no unit: a duration: a whole number with a unit, like \"90s\", \"10min\" or \"7d\"",
        "sinew.toml:5:17: `brain_connect` `5 parsecs` cannot be read: a duration: a whole number with a unit, like \"90s\", \"10min\" or \"7d\"",
        "sinew.toml:6:1: `tenant` is not a key of [limits]: it belongs to [[environment]]",
        "sinew.toml:9:1: `key`: a credential does not stand in this file: put it in a file of mode 0600 and name that with `key_file`, or name a variable with `key_env`; if this file was shared, replace the key",
        "sinew.toml:10:1: `concurency` is not a key of [[environment]]: did you mean `concurrency`?",
        "sinew.toml:11:15: `concurrency` 0 is out of range: from 1 to 10000",
        "sinew.toml:13:6: environment `env_1` stands in the file twice: remove one of them",
        "sinew.toml:15:11: both `key_file` and `key_env` are set: keep one of them",
        "sinew.toml:16:12: the base URL sends the environment key readable to another host: use https, or set `allow_plain_http = true` for this environment",
        "sinew.toml:18:8: `name` is not a name: use letters, digits, `.`, `_` and `-`, at most 128, and no `.` in front",
        "sinew.toml:19:8: `tier` is not one of the choices: \"container\"",
        "sinew.toml:20:8: `cpus` -1 is out of range: from 0.05 to 1024",
        "sinew.toml:21:10: `memory` `1.5GiB` cannot be read: a size: a whole number with a unit, like \"512MiB\" or \"2GiB\"",
        "sinew.toml:22:8: `pids` is a text: a whole number from 16 to 4000000",
        "sinew.toml:23:7: `env` `N` is a whole number: every value in it is a text",
        "sinew.toml:24:16: `bash_timeout` (31min) is longer than `bash_timeout_max` (30min): shorten it, or set `bash_timeout_max`",
        "sinew.toml:25:1: [[profile.match]] names nothing: name `environment`, `agent`, `tenant` or `metadata`; a profile for every session has no [[profile.match]]",
        "sinew.toml:26:1: [[profile]] without `name`: set name to a name",
        "sinew.toml:27:9: `image` looks like a key; keys do not stand in the configuration: name a file or a variable that holds it, with `key_file` or `key_env` of an [[environment]]",
        "sinew.toml:28:8: `disk` (65GiB) is larger than the pool may become (64GiB): make it smaller, or set `max` of [pool]",
        "sinew.toml:30:11: `initial` (100GiB) is larger than `max` (64GiB): make it smaller, or set `max`",
        "sinew.toml:31:3: `pools` is not a key of the top of the file: did you mean `pool`?",
    ];
    let found = Setup::new(file).refused();
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

/// A line that cannot be read hides neither the lines after it nor the mistakes in them, and
/// nothing is made up about what it may have said.
#[test]
fn broken_lines_hide_nothing() {
    let file = r#"user =
images = "żółć
idle
[[environment]]
id =
concurency = 5
[pool]
max = "5GiB"
max = "6GiB"
[limits
idle = 5
shutdown_drain = 5
[pool]
[[profile]]
name = "a"
pids = 1
"#;
    let problems = Setup::new(file).refused();
    let expected = [
        "sinew.toml:1:7: string values must be quoted, expected literal string",
        "sinew.toml:2:15: invalid basic string, expected `\"`",
        "sinew.toml:3:5: key with no value, expected `=`",
        "sinew.toml:5:5: string values must be quoted, expected literal string",
        "sinew.toml:6:1: `concurency` is not a key of [[environment]]: did you mean `concurrency`?",
        "sinew.toml:9:1: duplicate key",
        "sinew.toml:10:8: unclosed table, expected `]`",
        "sinew.toml:13:2: duplicate key",
        "sinew.toml:16:8: `pids` 1 is out of range: from 16 to 4000000",
    ];
    for (found, expected) in problems.iter().zip(expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn profiles_contradict_nothing() {
    refused_for(
        "[[profile]]\nname = \"a\"\n[[profile]]\nname = \"b\"\n",
        "4:8: profile `b` is never chosen: profile `a` before it matches every session: put the \
         one without [[profile.match]] last",
    );
    refused_for(
        "[[profile]]\nname = \"default\"\n[[profile.match]]\nagent = \"a\"\n",
        "2:8: profile `default` is what no other profile's match holds for; it has none: remove \
         its [[profile.match]], or rename it",
    );
    refused_for(
        "[[profile]]\nname = \"a\"\n[[profile.match]]\nagent = \"a\"\n[[profile]]\nname = \"a\"\n",
        "6:8: profile `a` stands in the file twice: remove or rename one of them",
    );
    refused_for(
        "[[profile]]\nname = \"a\"\nkeep_running = \"8d\"\n",
        "3:16: `keep_running` (8d) is longer than `retain` (7d): shorten it, or set `retain`",
    );
    refused_for(
        "[[profile]]\nname = \"a\"\nenv = { ANTHROPIC_KEY = \"x\" }\n",
        "3:7: variable `ANTHROPIC_KEY` of `env`: ANTHROPIC_* does not enter a sandbox: credentials \
         of the control plane stay outside it",
    );
    refused_for(
        "[[profile]]\nname = \"a\"\nenv = { \"A=B\" = \"x\" }\n",
        "3:7: `A=B` of `env` is not a variable's name: use letters, digits and `_`, and no digit \
         in front",
    );
    refused_for("profile = 5\n", "1:1: `profile` is a whole number: write [[profile]]");
    refused_for("[profile]\nname = \"a\"\n", "1:2: `profile` is a table: write [[profile]]");
    refused_for("[[pool]]\n", "1:3: `pool` is an array: write [pool]");
}

#[test]
fn what_runs_inside_is_told_in_words_that_fit() {
    let profile = |line: &str| format!("[[profile]]\nname = \"p\"\n{line}\n");
    let image = "registry.example/team/python:3.12-slim";
    let own = Setup::new(&profile(&format!("image = \"{image}\""))).accepted();
    assert_eq!(own.profiles[0].image, image);
    let read = |line: &str| Setup::new(&profile(line)).accepted().profiles[0].clone();
    assert_eq!(read("tools_as = \"user\"").tools_as, Some(ToolsAs::User));
    assert_eq!(read("entrypoint = true").entrypoint, Entrypoint::OfImage);
    assert_eq!(read("entrypoint = false").entrypoint, Entrypoint::None);
    let long = format!("entrypoint = [{}\"x\"]", "\"x\", ".repeat(256));
    let words = "`true`, `false`, or words, like [\"redis-server\", \"--save\", \"\"]";
    let path = "an absolute path inside the sandbox, like \"/srv/app\"";
    for (line, expected) in [
        (
            "image = \"../debian\"",
            "9: `image` is not an image's name: use letters, digits and `._:/-`, at most 128, and \
             a letter or digit in front"
                .into(),
        ),
        ("workdir = \"srv\"", format!("11: `workdir` is not an absolute path: {path}")),
        ("workdir = \"\"", format!("11: `workdir` is not an absolute path: {path}")),
        (
            "workdir = \"/a/../../etc\"",
            "11: `workdir` leads upwards: write the path without `..`".into(),
        ),
        (
            &format!("workdir = \"{}\"", "/a".repeat(65)),
            "11: `workdir` is too long for a path: write a shorter one".into(),
        ),
        ("entrypoint = []", format!("14: `entrypoint` names no program: {words}")),
        ("entrypoint = [\"\", \"x\"]", format!("14: `entrypoint` names no program: {words}")),
        (
            "entrypoint = [\"x\", 5]",
            "14: `entrypoint` has a word that is a whole number: every word is a text".into(),
        ),
        ("entrypoint = \"nginx\"", format!("14: `entrypoint` is a text: {words}")),
        (&long, "14: `entrypoint` is too long: put it into a script in the image".into()),
    ] {
        refused_for(&profile(line), &format!("3:{expected}"));
    }
    let key = Setup::new(&profile("entrypoint = [\"sk-ant-oat01-never-print-this\"]")).refused();
    assert!(key[0].contains("looks like a key"), "{key:?}");
}

#[test]
fn the_base_url_is_a_plain_url() {
    let with = |url: &str| {
        let file = format!("[[environment]]\nid = \"e\"\nkey_env = \"K\"\nbase_url = \"{url}\"\n");
        Setup::new(&file).variable("K", "key")
    };
    for url in ["https://a.example", "http://localhost:1", "http://127.0.0.9/x", "http://[::1]:5/"]
    {
        with(url).accepted();
    }
    for (url, expected) in [
        ("", "is not a URL"),
        ("brain.example", "has no scheme or no host"),
        ("/path", "has no scheme or no host"),
        ("https://", "is not a URL"),
        ("https://a b/", "is not a URL"),
        ("ftp://a.example", "is neither https nor http"),
        ("https://u:never-print-this@a.example", "has a user, a query or a fragment"),
        ("https://a.example/?key=never-print-this", "has a user, a query or a fragment"),
        ("https://a.example/#x", "has a user, a query or a fragment"),
        ("http://localhost.example", "sends the environment key readable"),
        ("http://10.0.0.1", "sends the environment key readable"),
    ] {
        let [problem] = &with(url).refused()[..] else { panic!("one problem with `{url}`") };
        assert!(problem.contains(expected), "`{url}`: {problem}");
    }
}

#[test]
fn a_key_file_is_its_owners_alone() {
    let file = "[[environment]]\nid = \"e\"\nkey_file = \"key\"\n";
    let with = |content: &str, mode| Setup::new(file).file("key", content, mode);
    assert_eq!(with(KEY, 0o400).accepted().environments[0].key.expose(), KEY);
    for mode in [0o640, 0o604, 0o660, 0o602] {
        let problems = with(KEY, mode).refused();
        let expected = format!(
            "sinew.toml:3:12: key file key may be read by others (mode {mode:04o}): chmod 600 key"
        );
        assert_eq!(problems, [expected]);
    }
    for (content, expected) in [
        ("", "is empty"),
        (" \n", "is empty"),
        ("sk-ant-never-print-this two", "does not hold a key"),
        ("never-print-this\nnever-print-this", "does not hold a key"),
        (&"x".repeat(20_000), "does not hold a key"),
    ] {
        let [problem] = &with(content, 0o600).refused()[..] else { panic!("one problem") };
        assert!(problem.contains(expected), "{problem}");
    }
    let [missing] = &Setup::new(file).refused()[..] else { panic!("one problem") };
    assert!(missing.contains("key file key cannot be read"), "{missing}");
    let folder = Setup::new(file);
    fs::create_dir(folder.path("key")).expect("make a folder");
    assert_eq!(folder.refused(), ["sinew.toml:3:12: key file key is not a file"]);
    refused_for(
        "[[environment]]\nid = \"e\"\nkey_env = \"NOBODY_SET_THIS\"\n",
        "3:11: variable NOBODY_SET_THIS is not set: set NOBODY_SET_THIS to the environment key",
    );
}

/// The database's password stands in a file of its own or in a variable, and in no message.
#[test]
fn a_database_password_is_never_in_the_configuration() {
    const URL: &str = "[store]\nurl = \"postgres://sinew@localhost/journal\"\n";
    let password = |setup: Setup| match setup.accepted().store {
        StoreConfig::Postgres(store) => store.password,
        StoreConfig::File => panic!("PostgreSQL"),
    };
    assert!(password(Setup::new(URL)).is_none());
    let file = format!("{URL}password_file = \"word\"\n");
    let both = Setup::new(&file).file("word", "from the file", 0o600);
    let both = both.variable("SINEW_STORE_PASSWORD", "from the variable");
    assert_eq!(
        password(both).map(|word| word.expose().to_owned()).as_deref(),
        Some("from the variable")
    );
    let by_variable = Setup::without_file()
        .variable("SINEW_STORE_URL", "postgres://sinew@localhost/journal")
        .variable("SINEW_STORE_PASSWORD", "word");
    assert!(password(by_variable).is_some());

    let open = Setup::new(&file).file("word", "never-print-this", 0o644);
    let expected =
        "sinew.toml:3:17: password file word may be read by others (mode 0644): chmod 600 word";
    assert_eq!(open.refused(), [expected]);
    for (store, expected) in [
        ("url = \"postgres://u:never-print-this@h/d\"", "2:7: `url` holds a password: take it out"),
        ("url = \"postgres://u@h/d?password=never-print-this\"", "`url` holds a password"),
        (
            "url = \"mysql://never-print-this\"",
            "does not begin with postgres://: write `postgres://",
        ),
        ("password = \"never-print-this\"", "`password`: a credential does not stand in this file"),
        ("schema = \"blue\"", "2:10: `schema` without `url`: set `url`, or remove it"),
        ("url = \"postgres://u@h/d\"\nschema = \"pg_x\"", "3:10: `schema` is longer than"),
        ("url = \"postgres://u@h/d\"\nca_file = \"missing\"", "`ca_file` missing cannot be read"),
    ] {
        let [problem] = &Setup::new(&format!("[store]\n{store}\n")).refused()[..] else {
            panic!("one problem with {store}")
        };
        assert!(problem.contains(expected), "{problem}");
        assert!(!problem.contains("never-print-this"), "{problem}");
    }
    // Who has no business with passwords does not read it.
    let without = load_without_environments(&Setup::new(&file).sources()).expect("accepted");
    assert!(matches!(without.store, StoreConfig::Postgres(store) if store.password.is_none()));
}

/// Whoever has no business with keys does not open them, and still sees every other mistake.
#[test]
fn without_environments_no_key_is_opened() {
    let file = "[[environment]]\nid = \"e\"\nkey_file = \"missing\"\n[[environment]]\nid = \"f\"\n";
    let setup = Setup::new(file);
    assert_eq!(setup.refused().len(), 2);
    let config = load_without_environments(&setup.sources()).expect("nothing else is wrong");
    assert!(config.environments.is_empty());
    let wrong = Setup::new("[[environment]]\nid = \"e\"\nkey_file = 5\n");
    assert!(load_without_environments(&wrong.sources()).is_err());
}

/// A key pasted anywhere is refused and not repeated.
#[test]
fn no_message_repeats_a_key() {
    for template in [
        "data = \"{}\"",
        "worker_id = \"{}\"",
        "user = \"{}\"",
        "{} = 1",
        "\"{}\" = 1",
        "[{}]",
        "[[environment]]\nid = \"{}\"",
        "[[environment]]\nid = \"e\"\nkey_env = \"{}\"",
        "[[environment]]\nid = \"e\"\nkey_file = \"{}\"",
        "[[environment]]\nid = \"e\"\napi_key = \"{}\"",
        "[[environment]]\nid = \"e\"\nkey_env = {}",
        "[[profile]]\nname = \"p\"\nenv = { TOKEN = \"{}\" }",
        "[[profile]]\nname = \"p\"\nenv = { {} = \"x\" }",
        "[[profile]]\nname = \"p\"\nmemory = \"{}\"",
        "[limits]\nidle = \"{}\"",
        "[limits]\nidle = {}\nidle = {}",
        "{} = \"{}\"\n{} = \"{}\"",
        "[[profile]]\nname = \"p\"\n[[profile.match]]\nmetadata = { a = \"{}\" }",
    ] {
        let problems = Setup::new(&template.replace("{}", KEY)).refused();
        assert!(!problems.is_empty(), "{template}");
    }
}

#[test]
fn a_named_file_must_exist_and_another_need_not() {
    let mut setup = Setup::without_file();
    setup.overrides.config = Some(setup.path("none.toml"));
    let [problem] = &setup.refused()[..] else { panic!("one problem") };
    assert!(problem.starts_with("--config: configuration none.toml cannot be read"), "{problem}");

    let other = Setup::without_file().file("other.toml", "user = 5", 0o644);
    let path = other.path("other.toml").display().to_string();
    let other = other.variable("SINEW_CONFIG", path);
    assert_eq!(other.accepted().user, 5);

    let folder = Setup::without_file();
    fs::create_dir(folder.path("sinew.toml")).expect("make a folder");
    assert!(folder.refused()[0].contains("it is not a file"));
    let binary = Setup::without_file();
    fs::write(binary.path("sinew.toml"), [0xff, 0xfe]).expect("write");
    assert!(binary.refused()[0].contains("it is not UTF-8"));
    let large = Setup::new(&"#".repeat((1 << 20) + 1));
    assert!(large.refused()[0].contains("larger than 1 MiB"));
}

/// A command that only looks for the socket is not kept from it by a mistake elsewhere.
#[test]
fn the_directories_are_found_in_a_wrong_file() {
    let setup = Setup::new("images = \"cache\"\nusr = 1\n[limits]\nidle = 5\n");
    let found = paths(&setup.sources()).expect("the directories are right");
    assert_eq!((found.data.as_path(), found.images), (setup.folder.path(), setup.path("cache")));
    assert_eq!(found.file, Some(setup.path("sinew.toml")));
    let wrong = Setup::new("images = 5\n");
    assert_eq!(paths(&wrong.sources()).expect_err("wrong images").problems.len(), 1);

    // Where the file itself would say which directory, a line that cannot be read matters.
    let broken = Setup::new("data = \"open\n");
    assert!(paths(&broken.sources()).is_ok());
    let elsewhere = Setup {
        overrides: Overrides { config: Some(broken.path("sinew.toml")), ..Overrides::default() },
        ..Setup::without_file()
    };
    assert!(paths(&elsewhere.sources()).is_err());
}

#[test]
fn default_directories_are_the_users_own() {
    let of = |root, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let sources = Sources::new(Overrides::default(), variables, root);
        paths(&sources).map(|paths| paths.data)
    };
    assert_eq!(of(true, &[]).as_deref(), Ok(Path::new("/var/lib/sinew")));
    let home = ("HOME", "/nobody/here");
    let expected = Path::new("/nobody/here/.local/share/sinew");
    assert_eq!(of(false, &[home]).as_deref(), Ok(expected));
    let xdg = ("XDG_DATA_HOME", "/nobody/data");
    assert_eq!(of(false, &[home, xdg]).as_deref(), Ok(Path::new("/nobody/data/sinew")));
    assert_eq!(of(false, &[("SINEW_DATA", "/else")]).as_deref(), Ok(Path::new("/else")));
    assert!(of(false, &[]).is_err());
}

#[test]
fn paths_are_taken_as_they_are() {
    use std::os::unix::ffi::OsStringExt;
    let mut setup = Setup::without_file();
    let odd = PathBuf::from(OsString::from_vec(b"/images/\xff".to_vec()));
    setup.overrides.images = Some(odd.clone());
    assert_eq!(setup.accepted().images, odd);
    setup.overrides.images = Some("relative".into());
    assert!(setup.accepted().images.is_absolute());
    setup.overrides.images = Some("".into());
    assert_eq!(setup.refused(), ["--images: is empty: write a path"]);
    refused_for(
        "images = \"~/images\"\n",
        "1:10: `images` begins with `~`, which only a shell knows: write the path out",
    );
}

#[test]
fn the_launcher_takes_no_file_that_others_can_write() {
    let setup = Setup::new("user = 5\n").file("sinew.toml", "user = 5\n", 0o644);
    if fs::metadata(setup.path("sinew.toml")).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).ok()
        != Some(0)
    {
        eprintln!("SKIP the_launcher_takes_no_file_that_others_can_write: needs root");
        return;
    }
    assert_eq!(load(&setup.sources().only_roots_own_file()).map(|config| config.user), Ok(5));
    for mode in [0o664, 0o646] {
        let setup = setup_with_mode(mode);
        let errors = load(&setup.sources().only_roots_own_file()).expect_err("others may write");
        assert!(errors.to_string().contains("others than root may write it: chown root"));
        assert!(load(&setup.sources()).is_ok());
    }
    std::os::unix::fs::chown(setup.path("sinew.toml"), Some(1000), None).expect("chown");
    assert!(load(&setup.sources().only_roots_own_file()).is_err());
}

fn setup_with_mode(mode: u32) -> Setup {
    Setup::without_file().file("sinew.toml", "user = 5\n", mode)
}

#[test]
fn a_slip_in_a_variables_name_is_a_warning() {
    let setup = Setup::without_file()
        .variable("SINEW_IMAGE", "/x")
        .variable("SINEW_TEST_HARNESS", "1")
        .variable("SINEW_LIMITS_IDEL", "1s");
    let warnings: Vec<String> = setup.accepted().warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "SINEW_IMAGE: sets nothing: did you mean SINEW_IMAGES?",
            "SINEW_LIMITS_IDEL: sets nothing: did you mean SINEW_LIMITS_IDLE?",
        ]
    );
    let file = "[[environment]]\nid = \"env_1\"\nkey_env = \"K\"\n[[profile]]\nname = \"p\"\n\
                [[profile.match]]\nenvironment = \"env1\"\n";
    let config = Setup::new(file).variable("K", "key").accepted();
    let [rule, profile] = &config.warnings[..] else { panic!("two warnings") };
    assert!(rule.to_string().ends_with(
        "sinew.toml:6:1: profile `p`, match 1 never decides here: environment `env1` is not served: \
         did you mean `env_1`?"
    ));
    assert!(matches!(rule.place, Place::At { line: 6, column: 1, .. }));
    assert!(matches!(profile.place, Place::At { line: 4, column: 1, .. }));
}

/// Whatever an editor leaves behind is read or refused, never worse.
#[test]
fn no_file_makes_it_panic() {
    let setup = everything();
    let mut tried = 0;
    let mut tries = |text: &str| {
        fs::write(setup.path("sinew.toml"), text).expect("write");
        if let Err(errors) = load(&setup.sources()) {
            assert!(!errors.to_string().contains("never-print-this"));
        }
        tried += 1;
    };
    for cut in (0..EVERYTHING.len()).step_by(11) {
        tries(&EVERYTHING[..cut]);
        tries(&format!("{}{}", &EVERYTHING[..cut], &EVERYTHING[cut + 1..]));
        for noise in ["\"", "[", "]]", "=", "\u{0}", "ż", "{", "'''"] {
            tries(&format!("{}{noise}{}", &EVERYTHING[..cut], &EVERYTHING[cut..]));
        }
    }
    tries(&"[".repeat(10_000));
    tries(&format!("a = {}", "[".repeat(10_000)));
    tries(&format!("a = {}", "{a=".repeat(10_000)));
    tries(&"a.".repeat(10_000));
    assert!(tried > 500, "{tried}");
}

#[test]
fn every_default_is_a_value_of_its_key() {
    // Reading everything from nothing reads each default that is a fixed value.
    Setup::without_file()
        .variable("ANTHROPIC_ENVIRONMENT_ID", "e")
        .variable("ANTHROPIC_ENVIRONMENT_KEY", KEY)
        .accepted();
    for key in KEYS {
        assert!(!key.doc.is_empty() && key.doc.ends_with('.'), "{}", key.name);
        let required = key.default == Fallback::Required;
        assert!(!required || matches!(key.section, Section::Environment | Section::Profile));
    }
}

#[test]
fn the_reference_has_a_row_for_every_key() {
    let reference = base_config::reference();
    for section in Section::ALL {
        let rows = section.keys().map(|key| format!("\n| `{}` | ", key.name));
        for row in rows {
            assert!(reference.contains(&row), "{row}");
        }
    }
    assert!(reference.contains("| `SINEW_LIMITS_IDLE` |"));
    assert!(reference.contains("`\"512MiB\"`"));
}
