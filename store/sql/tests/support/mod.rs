//! What the tests on PostgreSQL share.

use store_sql::{Encryption, Host, PostgresOptions};
use testkit::Postgres;

/// The journal of a test, in a schema of its own on its server.
pub fn options(server: &Postgres) -> PostgresOptions {
    PostgresOptions {
        host: Host::Tcp("127.0.0.1".into()),
        port: server.port(),
        user: server.user().into(),
        database: "postgres".into(),
        password: None,
        encryption: Encryption::IfOffered,
        schema: "journal".into(),
        connections: 8,
    }
}
