//! Both databases behind one small face: a query of four kinds of values, and its rows.
//!
//! The rest of the crate is written once, against this. It is not a general abstraction: it knows
//! what the journal's statements use, and nothing else (docs/decisions/0009).

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, PgConnection, Postgres, Row as _, Sqlite, SqliteConnection, Type};

use crate::dialect::Statement;

/// A connection to either, for as long as one transaction or one question takes.
pub(crate) enum Connection<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

/// A statement and what is bound to it.
pub(crate) struct Query<'q> {
    statement: Statement,
    values: Vec<Value<'q>>,
}

/// What a column can hold.
pub(crate) enum Value<'q> {
    Int(Option<i64>),
    Flag(bool),
    Text(Option<&'q str>),
    Made(Option<String>),
    Bytes(Option<&'q [u8]>),
}

pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// A type that both databases give back.
pub(crate) trait Column<'r>:
    Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>
{
}

impl<'r, T> Column<'r> for T where
    T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>
{
}

pub(crate) fn query<'q>(statement: Statement) -> Query<'q> {
    Query { statement, values: Vec::new() }
}

/// The query in the words of one database, with its values bound.
macro_rules! prepared {
    ($query:expr, $database:ident) => {
        $query.values.into_iter().fold(sqlx::query($query.statement.$database), |query, value| {
            match value {
                Value::Int(value) => query.bind(value),
                Value::Flag(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Made(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
            }
        })
    };
}

impl<'q> Query<'q> {
    /// PostgreSQL holds no NUL in a text. Neither do we, so that both stores take the same.
    fn check(&self) -> sqlx::Result<()> {
        let holds_nul = |value: &Value<'_>| match value {
            Value::Text(Some(text)) => text.contains('\0'),
            Value::Made(Some(text)) => text.contains('\0'),
            _ => false,
        };
        match self.values.iter().any(holds_nul) {
            true => Err(sqlx::Error::Encode("a text holds a NUL character".into())),
            false => Ok(()),
        }
    }

    pub fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Returns how many rows it changed.
    pub async fn execute(self, connection: &mut Connection<'_>) -> sqlx::Result<u64> {
        self.check()?;
        Ok(match connection {
            Connection::Sqlite(connection) => {
                prepared!(self, sqlite).execute(&mut **connection).await?.rows_affected()
            }
            Connection::Postgres(connection) => {
                prepared!(self, postgres).execute(&mut **connection).await?.rows_affected()
            }
        })
    }

    pub async fn optional(self, connection: &mut Connection<'_>) -> sqlx::Result<Option<Row>> {
        self.check()?;
        Ok(match connection {
            Connection::Sqlite(connection) => {
                prepared!(self, sqlite).fetch_optional(&mut **connection).await?.map(Row::Sqlite)
            }
            Connection::Postgres(connection) => prepared!(self, postgres)
                .fetch_optional(&mut **connection)
                .await?
                .map(Row::Postgres),
        })
    }

    pub async fn one(self, connection: &mut Connection<'_>) -> sqlx::Result<Row> {
        self.optional(connection).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Row by row, so that a reader can stop early.
    pub fn rows<'c>(self, connection: &'c mut Connection<'_>) -> BoxStream<'c, sqlx::Result<Row>>
    where
        'q: 'c,
    {
        if let Err(error) = self.check() {
            return futures::stream::once(std::future::ready(Err(error))).boxed();
        }
        match connection {
            Connection::Sqlite(connection) => {
                prepared!(self, sqlite).fetch(&mut **connection).map_ok(Row::Sqlite).boxed()
            }
            Connection::Postgres(connection) => {
                prepared!(self, postgres).fetch(&mut **connection).map_ok(Row::Postgres).boxed()
            }
        }
    }
}

impl Row {
    pub fn get<'r, T: Column<'r>>(&'r self, column: &'static str) -> sqlx::Result<T> {
        match self {
            Row::Sqlite(row) => row.try_get(column),
            Row::Postgres(row) => row.try_get(column),
        }
    }

    /// How much a text or bytes column holds; of another type, nothing.
    pub fn size(&self, column: &'static str) -> usize {
        let bytes: Option<&[u8]> = match self {
            Row::Sqlite(row) => row.try_get_unchecked(column).ok().flatten(),
            Row::Postgres(row) => row.try_get_unchecked(column).ok().flatten(),
        };
        bytes.map_or(0, <[u8]>::len)
    }
}

macro_rules! value_from {
    ($($type:ty => $variant:ident($make:expr)),* $(,)?) => { $(
        impl<'q> From<$type> for Value<'q> {
            fn from(value: $type) -> Self {
                Value::$variant($make(value))
            }
        }
    )* };
}

value_from! {
    i64 => Int(Some),
    Option<i64> => Int(std::convert::identity),
    bool => Flag(std::convert::identity),
    &'q str => Text(Some),
    Option<&'q str> => Text(std::convert::identity),
    String => Made(Some),
    Option<String> => Made(std::convert::identity),
    &'q [u8] => Bytes(Some),
    Option<&'q [u8]> => Bytes(std::convert::identity),
}
