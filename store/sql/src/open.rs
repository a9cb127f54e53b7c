//! Why a journal could not be opened, and what to do about it.

use std::io;

use sqlx::migrate::{MigrateError, Migrator};
use store_api::Outage;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// `place` is a file, or the address of a database without its password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot create or open the journal {place}")]
    File {
        place: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "the journal {place} is not a database, or is damaged: restore it from a backup, or move it away to start empty"
    )]
    NotADatabase { place: String },
    #[error(
        "the journal {place} was written by a later version (schema {found}; this one knows {known}): run that version, or use another journal"
    )]
    Newer { place: String, found: i64, known: i64 },
    #[error(
        "schema step {step} of the journal {place} is not the one this version made: it was changed by hand or by a build that was never released"
    )]
    Foreign { place: String, step: i64 },
    #[error("cannot bring the journal {place} to this version's schema")]
    Migrate {
        place: String,
        #[source]
        source: Source,
    },
    #[error("cannot open the journal {place}")]
    Connect {
        place: String,
        #[source]
        source: Source,
    },
    #[error("cannot open the journal {place}: {outage}")]
    Unavailable {
        place: String,
        outage: Outage,
        #[source]
        source: Source,
    },
    #[error(
        "the database {place} refuses user `{user}`: set its password with `password_file` or SINEW_STORE_PASSWORD, or let it in by the server's pg_hba.conf"
    )]
    LoginRefused {
        place: String,
        user: String,
        #[source]
        source: Source,
    },
    #[error(
        "there is no database `{database}` at {place}: make it with `createdb -O {user} {database}`"
    )]
    NoDatabase { place: String, database: String, user: String },
    #[error(
        "user `{user}` may not make the journal's tables at {place}: as the owner of the database, run `CREATE SCHEMA {schema} AUTHORIZATION {user}`"
    )]
    NoRights {
        place: String,
        user: String,
        schema: String,
        #[source]
        source: Source,
    },
    #[error(
        "the server at {place} is PostgreSQL {found}, and {needed} is the oldest that can hold a journal: upgrade it, or use another server"
    )]
    TooOld { place: String, found: String, needed: u32 },
    #[error(
        "the database {place} is encoded in {encoding}: make one with `createdb -E UTF8 -T template0`"
    )]
    Encoding { place: String, encoding: String },
    #[error(
        "no secure connection to {place}: name the certificates to trust with `ca_file`, or accept a readable connection with `allow_plain`"
    )]
    Insecure {
        place: String,
        #[source]
        source: Source,
    },
}

/// What a failed migration says about the schema that was found.
pub(crate) fn schema_error(place: String, known: &Migrator, error: MigrateError) -> OpenError {
    match error {
        MigrateError::VersionMissing(found) => {
            let known = known.iter().map(|migration| migration.version).max().unwrap_or(0);
            OpenError::Newer { place, found, known }
        }
        MigrateError::VersionMismatch(step) => OpenError::Foreign { place, step },
        source => OpenError::Migrate { place, source: Box::new(source) },
    }
}
