//! The database that holds the journal, where that is not a file.

use std::time::Duration;

use base_config::StoreConfig;
use base_types::Chain;
use store_sql::{PostgresOptions, ServerFacts};

use super::Check;
use crate::output;
use crate::store::Journal;

/// Each tool call waits for some ten round trips: with more than this they are felt.
const ROUND_TRIP_SPARE: Duration = Duration::from_millis(3);
/// Leases and liveness go by the database's clock; what people read, by this one's too.
const CLOCK_SPARE_MS: u64 = 5_000;
/// What other nodes, backups and people need.
const CONNECTIONS_SPARE: u32 = 10;

const NAME: &str = "store";

pub async fn examine(config: &StoreConfig) -> Vec<Check> {
    let options = match Journal::of(config) {
        Ok(Journal::File) => {
            return vec![Check::ok(NAME, "SQLite, in a file of the data directory")];
        }
        Ok(Journal::Postgres(options)) => options,
        Err(error) => {
            return vec![Check::fail(NAME, format!("{error:#}"), "check `ca_file` of [store]")];
        }
    };
    match store_sql::inspect(&options).await {
        Ok(facts) => of_server(&options, &facts),
        Err(error) => {
            let fix = "mend what it says; `sinew serve` does not start without its journal";
            vec![Check::fail(NAME, Chain(&error).to_string(), fix)]
        }
    }
}

fn of_server(options: &PostgresOptions, facts: &ServerFacts) -> Vec<Check> {
    let holds = match facts.schema_step {
        Some(step) => format!("schema `{}` at step {step}", options.schema),
        None => format!("no schema `{}` yet, `sinew serve` makes it", options.schema),
    };
    let tls = if facts.encrypted { "encrypted" } else { "not encrypted" };
    let found = format!(
        "PostgreSQL {} at {options}, {tls}, {holds}, a round trip takes {}",
        facts.version,
        output::duration(facts.round_trip)
    );
    let mut checks = vec![Check::ok(NAME, found)];
    checks.extend(troubles(options, facts));
    checks
}

fn troubles(options: &PostgresOptions, facts: &ServerFacts) -> Vec<Check> {
    let mut checks = Vec::new();
    if facts.in_recovery {
        let fix = "name the primary, or an address that follows it";
        checks.push(Check::fail(NAME, "the server is a standby and takes no writes", fix));
    } else if facts.read_only {
        let fix = "set default_transaction_read_only to off for this user and database";
        checks.push(Check::fail(NAME, "transactions there take no writes", fix));
    }
    if facts.encoding != "UTF8" {
        let found = format!("the database is encoded in {}", facts.encoding);
        let fix = "make one with `createdb -E UTF8 -T template0`";
        checks.push(Check::fail(NAME, found, fix));
    }
    if !facts.fsync || !facts.full_page_writes {
        let found = "the server does not sync what it commits: a power cut may damage the journal";
        let fix = "set fsync and full_page_writes to on in postgresql.conf";
        checks.push(Check::warn(NAME, found, fix));
    }
    if facts.round_trip > ROUND_TRIP_SPARE {
        let took = output::duration(facts.round_trip);
        let found = format!("a round trip takes {took}, and a tool call waits for some ten");
        checks.push(Check::warn(NAME, found, "have the database nearer"));
    }
    if facts.clock_ahead_ms.unsigned_abs() > CLOCK_SPARE_MS {
        let found = format!("its clock differs from this machine's by {} ms", facts.clock_ahead_ms);
        checks.push(Check::warn(NAME, found, "keep both by NTP"));
    }
    if facts.max_connections < options.connections.saturating_add(CONNECTIONS_SPARE) {
        let (has, wanted) = (facts.max_connections, options.connections);
        let found = format!("it takes {has} connections, and this node alone may use {wanted}");
        let fix = "raise max_connections of the server, or lower `connections` of [store]";
        checks.push(Check::warn(NAME, found, fix));
    }
    checks
}

#[cfg(test)]
mod tests {
    use store_sql::{Encryption, Host};

    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_server_that_endangers_the_journal_is_told() {
        let options = PostgresOptions {
            host: Host::Tcp("db.example".into()),
            port: 5432,
            user: "sinew".into(),
            database: "journal".into(),
            password: Some(base_types::Secret::new("never-print-this")),
            encryption: Encryption::IfOffered,
            schema: "sinew".into(),
            connections: 10,
            patience: store_sql::PATIENCE,
        };
        let well = ServerFacts {
            version: "15.1".into(),
            fsync: true,
            full_page_writes: true,
            synchronous_commit: "on".into(),
            in_recovery: false,
            read_only: false,
            encoding: "UTF8".into(),
            max_connections: 100,
            encrypted: true,
            round_trip: Duration::from_micros(100),
            clock_ahead_ms: 3,
            schema_step: Some(2),
        };
        let checks = of_server(&options, &well);
        assert_eq!(checks.len(), 1, "{checks:?}");
        assert!(!checks[0].found.contains("never-print-this"));
        for (facts, verdict, expected) in [
            (ServerFacts { in_recovery: true, ..well.clone() }, Verdict::Fail, "standby"),
            (ServerFacts { read_only: true, ..well.clone() }, Verdict::Fail, "take no writes"),
            (ServerFacts { encoding: "LATIN1".into(), ..well.clone() }, Verdict::Fail, "LATIN1"),
            (ServerFacts { fsync: false, ..well.clone() }, Verdict::Warn, "power cut"),
            (
                ServerFacts { round_trip: Duration::from_millis(40), ..well.clone() },
                Verdict::Warn,
                "round trip",
            ),
            (ServerFacts { clock_ahead_ms: -60_000, ..well.clone() }, Verdict::Warn, "-60000 ms"),
            (ServerFacts { max_connections: 15, ..well }, Verdict::Warn, "15 connections"),
        ] {
            let [_, trouble] = &of_server(&options, &facts)[..] else { panic!("one trouble") };
            assert_eq!(trouble.verdict, verdict);
            assert!(trouble.found.contains(expected), "{}", trouble.found);
        }
    }
}
