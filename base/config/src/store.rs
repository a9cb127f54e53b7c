//! Where the journal is: in a file of the data directory, or in PostgreSQL.

use std::net::IpAddr;
use std::path::PathBuf;

use base_types::Secret;

use crate::credential::{self, KeyError};
use crate::layers::Variables;
use crate::problem::{Place, Report};
use crate::section::Table;

/// The variable that holds the database's password. There is no key for it: what stands in the
/// file is read by more people than should know it.
pub(crate) const PASSWORD: &str = "SINEW_STORE_PASSWORD";

const PORT: u16 = 5432;
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// Longer names are cut short by the server, so that two could become one.
const NAME_BYTES_MAX: usize = 63;

#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// SQLite, in the data directory.
    File,
    Postgres(PostgresConfig),
}

#[derive(Clone, Debug)]
pub struct PostgresConfig {
    pub url: PostgresUrl,
    /// `None`: the server lets the user in without one.
    pub password: Option<Secret>,
    pub schema: String,
    /// PEM certificates trusted besides the public authorities.
    pub ca_file: Option<PathBuf>,
    /// Lets everything travel readable to a host that is not this one.
    pub allow_plain: bool,
    pub connections: u32,
}

/// Where a database is and who we are there. Never a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresUrl {
    pub user: String,
    pub host: DatabaseHost,
    pub port: u16,
    pub database: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseHost {
    /// A name or an address.
    Tcp(String),
    /// The directory of the server's socket.
    Socket(PathBuf),
}

impl DatabaseHost {
    /// What travels there does not leave this machine.
    pub fn is_local(&self) -> bool {
        match self {
            DatabaseHost::Socket(_) => true,
            DatabaseHost::Tcp(host) => {
                host == "localhost" || host.parse().is_ok_and(|host: IpAddr| host.is_loopback())
            }
        }
    }
}

/// Why a text is not the address of a database. It never shows the text: a password may be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostgresUrlError {
    #[error("does not begin with postgres://")]
    Scheme,
    #[error("holds a password")]
    Password,
    #[error("names no {0}")]
    Missing(&'static str),
    #[error("has a {0} that cannot be read")]
    Unreadable(&'static str),
    #[error("has a parameter other than `host`")]
    Parameter,
}

impl PostgresUrlError {
    /// What to do about it.
    pub fn fix(self) -> &'static str {
        match self {
            PostgresUrlError::Password => {
                "take it out, and put it into a file of mode 0600 that `password_file` names, or \
                 into the variable SINEW_STORE_PASSWORD; if others could read it, change it"
            }
            PostgresUrlError::Parameter => {
                "the other things have keys of their own; see docs/user/config.md"
            }
            _ => {
                "write `postgres://USER@HOST:PORT/DATABASE`, or \
                 `postgres://USER@/DATABASE?host=/DIRECTORY` for a socket"
            }
        }
    }
}

impl PostgresUrl {
    pub fn parse(text: &str) -> Result<PostgresUrl, PostgresUrlError> {
        let rest = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.ok_or(PostgresUrlError::Scheme)?;
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        if user.contains(':') {
            return Err(PostgresUrlError::Password);
        }
        let (host, port) = address_of(address)?;
        let port = match port {
            "" => PORT,
            port => port.parse().ok().filter(|port| *port > 0).ok_or(Unreadable("port"))?,
        };
        let directory = socket_of(parameters)?;
        Ok(PostgresUrl {
            user: part(user, "user")?,
            host: match directory {
                Some(directory) => DatabaseHost::Socket(directory),
                None => host_of(part(host, "host")?)?,
            },
            port,
            database: part(database, "database")?,
        })
    }
}

use PostgresUrlError::Unreadable;

/// Host and port, an IPv6 address in its brackets.
fn address_of(address: &str) -> Result<(&str, &str), PostgresUrlError> {
    let (host, rest) = match address.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or(Unreadable("host"))?,
        None => address.split_at(address.find(':').unwrap_or(address.len())),
    };
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, port)),
        None if rest.is_empty() => Ok((host, "")),
        None => Err(Unreadable("host")),
    }
}

fn host_of(host: String) -> Result<DatabaseHost, PostgresUrlError> {
    if host.starts_with('/') {
        return Ok(DatabaseHost::Socket(host.into()));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    match host.bytes().all(is_plain) {
        true => Ok(DatabaseHost::Tcp(host)),
        false => Err(Unreadable("host")),
    }
}

/// `host=/DIRECTORY` is the only parameter there is.
fn socket_of(parameters: &str) -> Result<Option<PathBuf>, PostgresUrlError> {
    match parameters.strip_prefix("host=") {
        None if parameters.is_empty() => Ok(None),
        Some(value) if !value.contains('&') => {
            let directory = PathBuf::from(part(value, "host")?);
            directory.is_absolute().then_some(Some(directory)).ok_or(Unreadable("host"))
        }
        _ if parameters.contains("password") => Err(PostgresUrlError::Password),
        _ => Err(PostgresUrlError::Parameter),
    }
}

/// A part that must be there, with its `%XX` resolved.
fn part(text: &str, name: &'static str) -> Result<String, PostgresUrlError> {
    if text.is_empty() {
        return Err(PostgresUrlError::Missing(name));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || (rest.next()? as char).to_digit(16);
                let both = digit().zip(digit()).map(|(high, low)| high * 16 + low);
                both.and_then(|byte| u8::try_from(byte).ok()).ok_or(Unreadable(name))?
            }
            byte => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| Unreadable(name))?;
    match text.chars().any(char::is_control) {
        true => Err(Unreadable(name)),
        false => Ok(text),
    }
}

/// With `keys` the password is read too.
pub(crate) fn read(
    table: &Table<'_>,
    variables: &Variables,
    keys: bool,
    report: &mut Report,
) -> StoreConfig {
    let Some(text) = table.get::<String>("url") else {
        for name in ["schema", "password_file", "ca_file", "allow_plain", "connections"] {
            if table.is_set(name) && !table.is_set("url") && !report.has_syntax_errors() {
                let what = format!("`{name}` without `url`");
                report.problem(table.place_of(name), what, "set `url`, or remove it");
            }
        }
        return StoreConfig::File;
    };
    let url = match PostgresUrl::parse(&text) {
        Ok(url) => url,
        Err(error) => {
            report.problem(table.place_of("url"), format!("`url` {error}"), error.fix());
            return StoreConfig::File;
        }
    };
    let schema: String = table.get_or_default("schema");
    if schema.len() > NAME_BYTES_MAX || schema.starts_with("pg_") {
        let what = format!("`schema` is longer than {NAME_BYTES_MAX} bytes, or begins with `pg_`");
        report.problem(table.place_of("schema"), what, "choose another name");
    }
    let ca_file: Option<PathBuf> = table.get("ca_file");
    if let Some(file) = &ca_file
        && keys
        && let Err(error) = std::fs::File::open(file)
    {
        let what = format!("`ca_file` {} cannot be read ({error})", file.display());
        report.problem(table.place_of("ca_file"), what, "");
    }
    StoreConfig::Postgres(PostgresConfig {
        url,
        password: if keys { password(table, variables, report) } else { None },
        schema,
        ca_file,
        allow_plain: table.get_or_default("allow_plain"),
        connections: table.get_or_default("connections"),
    })
}

/// The variable overrides the file, as everywhere.
fn password(table: &Table<'_>, variables: &Variables, report: &mut Report) -> Option<Secret> {
    if let Some(password) = variables.get(PASSWORD) {
        return match credential::parse_password(password) {
            Ok(password) => Some(password),
            Err(error) => {
                report.problem(&Place::Variable(PASSWORD.into()), error.to_string(), "");
                None
            }
        };
    }
    let path: PathBuf = table.get("password_file")?;
    match credential::read_password(&path) {
        Ok(password) => Some(password),
        Err(error) => {
            let what = format!("password file {} {error}", path.display());
            let fix = match error {
                KeyError::Open(_) => format!("chmod 600 {}", path.display()),
                _ => String::new(),
            };
            report.problem(table.place_of("password_file"), what, fix);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let tcp = |host: &str| DatabaseHost::Tcp(host.into());
        let socket = DatabaseHost::Socket("/run/postgresql".into());
        for (text, user, host, port, database) in [
            ("postgres://sinew@db.example/journal", "sinew", tcp("db.example"), 5432, "journal"),
            ("postgresql://a%40b@10.0.0.1:6432/j%2Fk", "a@b", tcp("10.0.0.1"), 6432, "j/k"),
            ("postgres://sinew@[::1]:1/journal", "sinew", tcp("::1"), 1, "journal"),
            ("postgres://sinew@%2Frun%2Fpostgresql/j", "sinew", socket.clone(), 5432, "j"),
            ("postgres://sinew@:7/j?host=/run/postgresql", "sinew", socket, 7, "j"),
        ] {
            let expected = PostgresUrl { user: user.into(), host, port, database: database.into() };
            assert_eq!(PostgresUrl::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        use PostgresUrlError::*;
        for (text, error) in [
            ("", Scheme),
            ("mysql://u@h/d", Scheme),
            ("postgres://u:secret@h/d", Password),
            ("postgres://u:@h/d", Password),
            ("postgres://u@h/d?password=secret", Password),
            ("postgres://u@h/d?user=x&password=secret", Password),
            ("postgres://h/d", Missing("user")),
            ("postgres://u@/d", Missing("host")),
            ("postgres://u@h", Missing("database")),
            ("postgres://u@h/", Missing("database")),
            ("postgres://u@h:0/d", Unreadable("port")),
            ("postgres://u@h:70000/d", Unreadable("port")),
            ("postgres://u@[::1/d", Unreadable("host")),
            ("postgres://u@[::1]x/d", Unreadable("host")),
            ("postgres://u@a b/d", Unreadable("host")),
            ("postgres://u%0@h/d", Unreadable("user")),
            ("postgres://u@h/%ff", Unreadable("database")),
            ("postgres://u@h/d%00", Unreadable("database")),
            ("postgres://u@h/d?sslmode=disable", Parameter),
            ("postgres://u@/d?host=relative", Unreadable("host")),
        ] {
            assert_eq!(PostgresUrl::parse(text), Err(error), "{text}");
            let message = format!("{error} {}", error.fix());
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn what_stays_on_this_machine_is_told() {
        let local = |text: &str| PostgresUrl::parse(text).unwrap().host.is_local();
        for text in ["postgres://u@localhost/d", "postgres://u@127.1.2.3/d", "postgres://u@[::1]/d"]
        {
            assert!(local(text), "{text}");
        }
        assert!(local("postgres://u@/d?host=/run"));
        for text in ["postgres://u@localhost.evil/d", "postgres://u@10.0.0.1/d"] {
            assert!(!local(text), "{text}");
        }
    }
}
