//! sandbox-volume
