//! Configurations as operators write them, right and wrong.

mod everything;
mod files;
mod profiles;
mod setup;

use std::fs;
use std::path::Path;
use std::time::Duration;

use base_config::{
    Config, Entrypoint, Fallback, KEYS, Place, Section, StoreConfig, load,
    load_without_environments,
};
use base_types::ByteSize;
use setup::{KEY, Setup, refused_for};

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
    let setup = everything::setup();
    let mut tried = 0;
    let mut tries = |text: &str| {
        fs::write(setup.path("sinew.toml"), text).expect("write");
        if let Err(errors) = load(&setup.sources()) {
            assert!(!errors.to_string().contains("never-print-this"));
        }
        tried += 1;
    };
    for cut in (0..everything::EVERYTHING.len()).step_by(11) {
        tries(&everything::EVERYTHING[..cut]);
        tries(&format!("{}{}", &everything::EVERYTHING[..cut], &everything::EVERYTHING[cut + 1..]));
        for noise in ["\"", "[", "]]", "=", "\u{0}", "ż", "{", "'''"] {
            tries(&format!(
                "{}{noise}{}",
                &everything::EVERYTHING[..cut],
                &everything::EVERYTHING[cut..]
            ));
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
