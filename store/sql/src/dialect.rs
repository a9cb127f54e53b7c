//! What SQLite and PostgreSQL spell differently, as literals that statements are put together
//! from: no statement contains text that was computed at run time.

/// The database's clock, in milliseconds since 1970.
macro_rules! now_ms {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}

pub(crate) use now_ms;
