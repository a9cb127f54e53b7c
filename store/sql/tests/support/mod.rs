//! What the tests on PostgreSQL share.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod proxy;
mod writer;

use store_sql::{Encryption, Host, PATIENCE, PostgresOptions};
use testkit::Postgres;

pub use proxy::Proxy;
pub use writer::{Owned, Writers};

/// The journal of a test, in a schema of its own on its server.
pub fn options(server: &Postgres) -> PostgresOptions {
    at_port(server, server.port())
}

/// The same, by way of another port.
pub fn at_port(server: &Postgres, port: u16) -> PostgresOptions {
    PostgresOptions { user: server.user().into(), ..of_server(port) }
}

/// The journal on a test's server, for who knows no more than its port.
pub fn of_server(port: u16) -> PostgresOptions {
    PostgresOptions {
        host: Host::Tcp("127.0.0.1".into()),
        port,
        user: "sinew".into(),
        database: "postgres".into(),
        password: None,
        encryption: Encryption::IfOffered,
        schema: "journal".into(),
        connections: 8,
        patience: PATIENCE,
    }
}
