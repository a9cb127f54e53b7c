//! One statement in the words of each database. They differ in few places, which are named here;
//! no statement contains text that was computed at run time.

/// The same statement for SQLite and for PostgreSQL. Made by [`sql!`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statement {
    pub sqlite: &'static str,
    pub postgres: &'static str,
}

/// A [`Statement`] from pieces: texts that both databases take, `now_ms` for the database's clock,
/// and `(postgres …)` around a piece that only PostgreSQL needs.
macro_rules! sql {
    ($($piece:tt),+ $(,)?) => {
        $crate::dialect::Statement {
            sqlite: concat!($($crate::dialect::sqlite_piece!($piece)),+),
            postgres: concat!($($crate::dialect::postgres_piece!($piece)),+),
        }
    };
}

/// The clock is in milliseconds since 1970.
macro_rules! sqlite_piece {
    (now_ms) => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
    ((postgres $piece:tt)) => {
        ""
    };
    ($text:literal) => {
        $text
    };
}

/// The time at which the row is written, not the one at which the transaction began: that one may
/// have waited for another owner in between.
macro_rules! postgres_piece {
    (now_ms) => {
        "CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp()) * 1000) AS BIGINT)"
    };
    ((postgres $piece:tt)) => {
        $crate::dialect::postgres_piece!($piece)
    };
    ($text:literal) => {
        $text
    };
}

pub(crate) use {postgres_piece, sql, sqlite_piece};
