//! From the configuration to the journal it names.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use base_config::{DatabaseHost, PostgresConfig, StoreConfig};
use store_sql::{Encryption, Host, PostgresOptions, SqlStore};

use crate::installation::Installation;

/// A CA bundle is some hundred kilobytes.
const CA_BYTES_MAX: u64 = 4 << 20;

/// A journal that is known and not yet open: what only root may read has been read.
#[derive(Clone, Debug)]
pub enum Journal {
    File,
    Postgres(PostgresOptions),
}

impl Journal {
    pub fn of(config: &StoreConfig) -> anyhow::Result<Journal> {
        Ok(match config {
            StoreConfig::File => Journal::File,
            StoreConfig::Postgres(config) => Journal::Postgres(options(config)?),
        })
    }

    pub async fn open(&self, installation: &Installation) -> anyhow::Result<SqlStore> {
        Ok(match self {
            Journal::File => SqlStore::open_sqlite(&installation.journal()).await?,
            Journal::Postgres(options) => SqlStore::open_postgres(options).await?,
        })
    }
}

/// What leaves this machine is encrypted for a server that proves who it is, unless the operator
/// allows otherwise.
fn options(config: &PostgresConfig) -> anyhow::Result<PostgresOptions> {
    let url = &config.url;
    let ca_pem = config.ca_file.as_deref().map(read_authorities).transpose()?;
    let trusts_all = config.allow_plain || url.host.is_local();
    Ok(PostgresOptions {
        host: match &url.host {
            DatabaseHost::Tcp(host) => Host::Tcp(host.clone()),
            DatabaseHost::Socket(directory) => Host::Socket(directory.clone()),
        },
        port: url.port,
        user: url.user.clone(),
        database: url.database.clone(),
        password: config.password.clone(),
        encryption: match ca_pem {
            None if trusts_all => Encryption::IfOffered,
            ca_pem => Encryption::Verified { ca_pem },
        },
        schema: config.schema.clone(),
        connections: config.connections,
        patience: store_sql::PATIENCE,
    })
}

pub fn read_authorities(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(CA_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().with_context(|| format!("read the CA file {}", path.display()))
}
