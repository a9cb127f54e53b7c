//! A journal in one schema of a PostgreSQL database, which several nodes share.

mod inspect;
mod open;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base_types::Secret;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

pub use inspect::{ServerFacts, inspect};
pub use open::drop_schema;

/// Where the database is, and who we are there.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub database: String,
    /// `None`: the server lets the user in without one.
    pub password: Option<Secret>,
    pub encryption: Encryption,
    /// Made if it does not exist. Two installations in one database have two.
    pub schema: String,
    /// At most this many connections at once.
    pub connections: u32,
    /// How long an outage is waited out before the caller is told; [`crate::PATIENCE`] unless there
    /// is a reason.
    pub patience: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The directory of the server's socket.
    Socket(PathBuf),
}

#[derive(Clone, Debug)]
pub enum Encryption {
    /// Where the server offers it, without knowing who the server is: for this machine's own.
    IfOffered,
    /// By a server whose certificate is its name's, from one of the public authorities or of `ca_pem`.
    Verified { ca_pem: Option<Vec<u8>> },
}

impl PostgresOptions {
    fn connect_options(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .port(self.port)
            .username(&self.user)
            .database(&self.database)
            .application_name("sinew");
        let options = match &self.host {
            Host::Tcp(host) => options.host(host),
            Host::Socket(directory) => options.socket(directory),
        };
        let options = match &self.encryption {
            Encryption::IfOffered => options.ssl_mode(PgSslMode::Prefer),
            Encryption::Verified { ca_pem: None } => options.ssl_mode(PgSslMode::VerifyFull),
            Encryption::Verified { ca_pem: Some(pem) } => {
                options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert_from_pem(pem.clone())
            }
        };
        let options = match &self.password {
            Some(password) => options.password(password.expose()),
            None => options,
        };
        options.disable_statement_logging()
    }
}

/// The address, for messages: never the password.
impl fmt::Display for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, port, database, .. } = self;
        match &self.host {
            Host::Tcp(host) if host.contains(':') => {
                write!(f, "postgres://{user}@[{host}]:{port}/{database}")
            }
            Host::Tcp(host) => write!(f, "postgres://{user}@{host}:{port}/{database}"),
            Host::Socket(directory) => {
                write!(f, "postgres://{user}@/{database}?host={}&port={port}", directory.display())
            }
        }
    }
}

/// A name as it stands in a statement.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
