//! guest-embed
