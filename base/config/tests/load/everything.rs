//! A file that sets every key there is.

use std::path::Path;
use std::time::Duration;

use base_config::{Config, DatabaseHost, Entrypoint, KEYS, StoreConfig, Tier, ToolsAs};
use base_types::ByteSize;

use crate::setup::{KEY, Setup};

pub const EVERYTHING: &str = r#"
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
starts_ahead = 7

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

pub fn setup() -> Setup {
    Setup::new(EVERYTHING)
        .file("key", &format!("  {KEY}\n"), 0o600)
        .file("ca.pem", "", 0o644)
        .file("password", "a pass wörd\n", 0o600)
        .variable("SECOND_KEY", "second")
}

/// The file above must name every key there is, so that a new one cannot be forgotten here.
#[test]
fn every_key_is_read() {
    let config = setup().accepted();
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

    profiles_are_read(&config);
    limits_are_read(&config);
    let StoreConfig::Postgres(store) = &config.store else { panic!("PostgreSQL") };
    assert_eq!(store.url.host, DatabaseHost::Tcp("db.example".into()));
    assert_eq!((store.url.user.as_str(), store.url.port), ("sinew", 6432));
    assert_eq!((store.url.database.as_str(), store.schema.as_str()), ("journal", "blue"));
    assert_eq!(store.password.as_ref().map(|word| word.expose()), Some("a pass wörd"));
    assert_eq!(store.ca_file, Some(folder.join("ca.pem")));
    assert_eq!((store.allow_plain, store.connections), (true, 20));
}

fn profiles_are_read(config: &Config) {
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
}

fn limits_are_read(config: &Config) {
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
    assert_eq!(limits.starts_ahead, 7);
    let pool = config.pool;
    let [five, three, most] = [5, 3, 65].map(ByteSize::gib);
    assert_eq!((pool.initial, pool.step, pool.max), (five, three, most));
    assert_eq!(pool.reserve, ByteSize::mib(513));
}
