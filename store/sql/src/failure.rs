//! What a failure of the database means: a passing outage, damage, or anything else.

use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;
use store_api::{Outage, StoreError};

/// Names what was being done when the database failed.
pub(crate) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |error| match (outage(&error), error) {
        (Some(outage), source) => {
            StoreError::Unavailable { action, outage, source: Box::new(source) }
        }
        // Neither database takes it, or only one of them.
        (None, sqlx::Error::Encode(why)) => {
            StoreError::Refused { change: action, why: why.to_string() }
        }
        (None, source) => StoreError::Database { action, source: Box::new(source) },
    }
}

/// `None`: it will not pass by itself.
pub(crate) fn outage(error: &sqlx::Error) -> Option<Outage> {
    match error {
        // What was received is not what it should be, a certificate for one.
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
        sqlx::Error::Io(_) => Some(Outage::Unreachable),
        // The pool tries until then, whatever the reason: all are in use, or none can be made.
        sqlx::Error::PoolTimedOut => Some(Outage::Slow),
        sqlx::Error::Database(error) => {
            if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
                return of_sqlstate(error.code());
            }
            let sqlite = error.try_downcast_ref::<SqliteError>()?;
            of_sqlite(sqlx::error::DatabaseError::code(sqlite)?.parse().ok()?)
        }
        _ => None,
    }
}

/// Class and code: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
pub(crate) fn of_sqlstate(code: &str) -> Option<Outage> {
    Some(match code {
        // admin_shutdown, crash_shutdown, cannot_connect_now, database dropped or idle session ended
        "57P01" | "57P02" | "57P03" | "57P05" => Outage::Restarting,
        "25006" => Outage::ReadOnly,
        "53100" => Outage::DiskFull,
        "53000" | "53200" | "53300" | "53400" => Outage::Overloaded,
        // query_canceled (statement_timeout), lock_not_available (lock_timeout), and the limit on
        // a transaction that stands still
        "57014" | "55P03" | "25P03" => Outage::Slow,
        "40001" | "40P01" => Outage::Conflict,
        code if code.starts_with("08") => Outage::Unreachable,
        _ => return None,
    })
}

/// The first byte of an extended code is the code itself.
fn of_sqlite(code: u32) -> Option<Outage> {
    match code & 0xff {
        // SQLITE_BUSY, SQLITE_LOCKED
        5 | 6 => Some(Outage::Slow),
        // SQLITE_FULL
        13 => Some(Outage::DiskFull),
        _ => None,
    }
}

/// SQLITE_CORRUPT and SQLITE_NOTADB, in their extended forms too.
pub(crate) fn is_damage(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| {
        let sqlite = error.try_downcast_ref::<SqliteError>()?;
        sqlx::error::DatabaseError::code(sqlite)?.parse::<u32>().ok()
    });
    matches!(code.map(|code| code & 0xff), Some(11 | 26))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_does_not() {
        let passing = [
            ("57P03", Outage::Restarting),
            ("25006", Outage::ReadOnly),
            ("53100", Outage::DiskFull),
            ("53300", Outage::Overloaded),
            ("57014", Outage::Slow),
            ("40P01", Outage::Conflict),
            ("08006", Outage::Unreachable),
        ];
        for (code, expected) in passing {
            assert_eq!(of_sqlstate(code), Some(expected), "{code}");
        }
        // A wrong password, no right, a missing table, a duplicate, damage.
        for code in ["28P01", "42501", "42P01", "23505", "XX001"] {
            assert_eq!(of_sqlstate(code), None, "{code}");
        }
    }
}
