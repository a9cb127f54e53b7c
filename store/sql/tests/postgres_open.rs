//! What opening a journal in PostgreSQL makes, what it refuses, and what it says.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base_types::{Chain, Secret};
use store_api::Store;
use store_sql::{Encryption, Host, OpenError, PostgresOptions, SqlStore, drop_schema, inspect};
use testkit::{Postgres, PostgresSettings};

use support::{Owned, options};

async fn refused(options: &PostgresOptions) -> (OpenError, String) {
    let error = SqlStore::open_postgres(options).await.expect_err("it is refused");
    let text = format!("{} {error:?}", Chain(&error));
    assert!(!text.contains("never-print-this"), "{text}");
    (error, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_for_the_first_time_together_make_one_schema() {
    let test = "nodes_that_start_for_the_first_time_together_make_one_schema";
    let Some(server) = Postgres::start(test) else { return };
    let mut nodes = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let options = options(&server);
        nodes.spawn(async move { SqlStore::open_postgres(&options).await.expect("open") });
    }
    let stores = nodes.join_all().await;
    let owned = Owned::new(&stores[0], "session_1").await;
    let seen = stores[5].session(&owned.session).await.expect("read session");
    assert!(seen.is_some());

    // An installation with a schema of its own sees nothing of it, and leaves nothing.
    let other = PostgresOptions { schema: "other \"quoted\"".into(), ..options(&server) };
    let store = SqlStore::open_postgres(&other).await.expect("open");
    assert_eq!(store.session(&owned.session).await.expect("read session"), None);
    store.close().await;
    drop_schema(&other).await.expect("drop the schema");
    drop_schema(&other).await.expect("drop a schema that is gone");
    let left = server.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'other%'");
    assert_eq!(left, "");
    assert!(stores[1].session(&owned.session).await.expect("read session").is_some());
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_repeated() {
    let test = "a_wrong_password_is_refused_and_not_repeated";
    let hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256";
    let settings = PostgresSettings { hba: hba.into(), ..PostgresSettings::default() };
    let Some(server) = Postgres::start_with(test, settings) else { return };
    server.sql("ALTER ROLE sinew PASSWORD 'right-never-print-this'");
    let with = |password: Option<&str>| PostgresOptions {
        password: password.map(Secret::new),
        ..options(&server)
    };
    for password in [Some("wrong-never-print-this"), None] {
        let (error, text) = refused(&with(password)).await;
        if password.is_some() {
            assert!(matches!(error, OpenError::LoginRefused { .. }), "{error:?}");
            assert!(text.contains("password_file") && text.contains("pg_hba.conf"), "{text}");
        }
    }
    let right = with(Some("right-never-print-this"));
    let store = SqlStore::open_postgres(&right).await.expect("open");
    let shown = format!("{right:?} {right} {store:?}");
    assert!(!shown.contains("never-print-this"), "{shown}");
}

#[tokio::test]
async fn what_is_missing_is_said_with_how_to_make_it() {
    let Some(server) = Postgres::start("what_is_missing_is_said_with_how_to_make_it") else {
        return;
    };
    let nowhere = PostgresOptions { database: "nowhere".into(), ..options(&server) };
    let (error, text) = refused(&nowhere).await;
    assert!(matches!(error, OpenError::NoDatabase { .. }), "{error:?}");
    assert!(text.contains("createdb -O sinew nowhere"), "{text}");

    server.sql("CREATE ROLE clerk LOGIN");
    let clerk = PostgresOptions { user: "clerk".into(), ..options(&server) };
    let (error, text) = refused(&clerk).await;
    assert!(matches!(error, OpenError::NoRights { .. }), "{error:?}");
    let fix = "CREATE SCHEMA journal AUTHORIZATION clerk";
    assert!(text.contains(fix), "{text}");
    server.sql(fix);
    let store = SqlStore::open_postgres(&clerk).await.expect("what it said was enough");
    Owned::new(&store, "session_1").await;

    server.sql(
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    );
    let latin = PostgresOptions { database: "latin".into(), ..options(&server) };
    let (error, _) = refused(&latin).await;
    assert!(matches!(&error, OpenError::Encoding { encoding, .. } if encoding == "LATIN1"));
}

#[tokio::test]
async fn another_versions_schema_is_refused() {
    let Some(server) = Postgres::start("another_versions_schema_is_refused") else { return };
    SqlStore::open_postgres(&options(&server)).await.expect("open").close().await;
    server.sql(
        "INSERT INTO journal._sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (999, 'from the future', TRUE, '', 0)",
    );
    let (error, text) = refused(&options(&server)).await;
    assert!(matches!(error, OpenError::Newer { found: 999, known: 2, .. }), "{error:?}");
    assert!(text.contains("later version") && text.contains("run that version"), "{text}");
    server.sql("DELETE FROM journal._sqlx_migrations WHERE version = 999");
    server.sql("UPDATE journal._sqlx_migrations SET checksum = '\\x00' WHERE version = 1");
    let (error, _) = refused(&options(&server)).await;
    assert!(matches!(error, OpenError::Foreign { step: 1, .. }), "{error:?}");
}

/// A server that greets as that version does, in the protocol's own bytes.
fn greet_as(version: &'static str) -> u16 {
    use std::io::{Read, Write};
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut request = [0; 1_024];
            // The request for TLS is answered with no; what follows is the request to start.
            let count = client.read(&mut request).unwrap_or(0);
            if request[..count].starts_with(&[0, 0, 0, 8]) {
                let _ = client.write_all(b"N");
                let _ = client.read(&mut request);
            }
            let mut answer = vec![b'R', 0, 0, 0, 8, 0, 0, 0, 0];
            let mut parameter = b"server_version\0".to_vec();
            parameter.extend_from_slice(version.as_bytes());
            parameter.push(0);
            answer.push(b'S');
            answer.extend(u32::try_from(parameter.len() + 4).expect("small").to_be_bytes());
            answer.extend(parameter);
            answer.extend([b'K', 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 1]);
            answer.extend([b'Z', 0, 0, 0, 5, b'I']);
            let _ = client.write_all(&answer);
            let _ = client.read(&mut request);
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    for (version, shown) in [("12.22 (Debian 12.22-1)", "12.22"), ("9.6.24", "9.6.24")] {
        let old = PostgresOptions {
            host: Host::Tcp("127.0.0.1".into()),
            port: greet_as(version),
            user: "sinew".into(),
            database: "journal".into(),
            password: Some(Secret::new("never-print-this")),
            encryption: Encryption::IfOffered,
            schema: "journal".into(),
            connections: 1,
            patience: Duration::ZERO,
        };
        let (error, text) = refused(&old).await;
        assert!(matches!(error, OpenError::TooOld { needed: 13, .. }), "{error:?}");
        assert!(text.contains(&format!("PostgreSQL {shown}, and 13 is the oldest")), "{text}");
    }
}

#[tokio::test]
async fn nobody_there_is_said() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.expect("a free port").port();
    let Some(server) = Postgres::start("nobody_there_is_said") else { return };
    let nobody = PostgresOptions { port, patience: Duration::ZERO, ..options(&server) };
    let (error, text) = refused(&nobody).await;
    assert!(matches!(error, OpenError::Unavailable { .. }), "{error:?}");
    assert!(text.contains("cannot be reached") && text.contains(&port.to_string()), "{text}");
}

#[tokio::test]
async fn a_server_is_looked_at_without_a_trace() {
    let Some(server) = Postgres::start("a_server_is_looked_at_without_a_trace") else { return };
    let facts = inspect(&options(&server)).await.expect("inspect");
    assert!(facts.fsync && facts.full_page_writes && !facts.in_recovery && !facts.read_only);
    assert_eq!((facts.encoding.as_str(), facts.schema_step), ("UTF8", None));
    assert!(facts.clock_ahead_ms.abs() < 1_000, "{facts:?}");
    assert!(facts.round_trip > Duration::ZERO && facts.version.contains('.'), "{facts:?}");
    let schemas = server.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'journal'");
    assert_eq!(schemas, "0");
    SqlStore::open_postgres(&options(&server)).await.expect("open").close().await;
    let facts = inspect(&options(&server)).await.expect("inspect");
    assert_eq!(facts.schema_step, Some(2));
}

/// A certificate authority, and a server's certificate from it.
fn certificates(folder: &Path) -> bool {
    let run = |arguments: &[&str]| {
        let done = Command::new("openssl").args(arguments).current_dir(folder).output();
        done.is_ok_and(|output| output.status.success())
    };
    fs::write(folder.join("extensions"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        .expect("write");
    let make = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["-x509", "-days", "2", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.pem"];
    let request = ["-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"];
    run(&[&make[..], &ca[..]].concat())
        && run(&[&make[..], &request[..]].concat())
        && run(&[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "extensions",
            "-out",
            "server.pem",
        ])
}

#[tokio::test]
async fn a_server_proves_who_it_is_or_is_refused() {
    let test = "a_server_proves_who_it_is_or_is_refused";
    let folder = tempfile::tempdir().expect("make a folder");
    let stranger = tempfile::tempdir().expect("make a folder");
    if !certificates(folder.path()) || !certificates(stranger.path()) {
        eprintln!("SKIP {test}: openssl makes no certificates");
        return;
    }
    let Some(server) = Postgres::start(test) else { return };
    let verified = |folder: &Path, host: &str| PostgresOptions {
        host: Host::Tcp(host.into()),
        encryption: Encryption::Verified {
            ca_pem: Some(fs::read(folder.join("ca.pem")).expect("read the certificate")),
        },
        ..options(&server)
    };
    // A server that offers none.
    let (error, text) = refused(&verified(folder.path(), "localhost")).await;
    assert!(matches!(error, OpenError::Insecure { .. }), "{error:?}");
    assert!(text.contains("ca_file") && text.contains("allow_plain"), "{text}");

    for name in ["server.pem", "server.key"] {
        server.put(&folder.path().join(name), name);
    }
    server.sql("ALTER SYSTEM SET ssl_cert_file = 'server.pem'");
    server.sql("ALTER SYSTEM SET ssl_key_file = 'server.key'");
    server.sql("ALTER SYSTEM SET ssl = on");
    server.reload();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    let right = verified(folder.path(), "localhost");
    let facts = loop {
        match inspect(&right).await {
            Ok(facts) => break facts,
            Err(error) => assert!(std::time::Instant::now() < until, "{}", Chain(&error)),
        }
    };
    assert!(facts.encrypted);
    SqlStore::open_postgres(&right).await.expect("open").close().await;
    let (error, _) = refused(&verified(stranger.path(), "localhost")).await;
    assert!(matches!(error, OpenError::Insecure { .. }), "{error:?}");
    // The certificate of this server is not the one of that name.
    let other_name = PostgresOptions { host: Host::Tcp("127.0.0.2".into()), ..right };
    server.sql("ALTER SYSTEM SET listen_addresses = '127.0.0.1,127.0.0.2'");
    let mut server = server;
    server.end(testkit::Ending::Fast);
    server.start_again();
    let (error, _) = refused(&other_name).await;
    assert!(matches!(error, OpenError::Insecure { .. }), "{error:?}");
}
