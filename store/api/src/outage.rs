//! Why a database that worked before does not work at the moment.

use std::fmt;

/// It may pass by itself, so whoever asked may ask again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Nothing answers, or the connection broke.
    Unreachable,
    /// It is starting up or going down.
    Restarting,
    /// It takes no writes: a standby, or set so.
    ReadOnly,
    /// Its disk is full.
    DiskFull,
    /// It has no connection or no memory left for us.
    Overloaded,
    /// It did not answer in time.
    Slow,
    /// Two transactions stood in each other's way.
    Conflict,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outage::Unreachable => "the database cannot be reached",
            Outage::Restarting => "the database is starting up or going down",
            Outage::ReadOnly => "the database takes no writes: it is a standby or set read-only",
            Outage::DiskFull => "the database's disk is full",
            Outage::Overloaded => "the database has no connection or no memory left",
            Outage::Slow => "the database did not answer in time",
            Outage::Conflict => "another transaction was in the way",
        })
    }
}
