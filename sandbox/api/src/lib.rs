//! sandbox-api
