//! guest-protocol
