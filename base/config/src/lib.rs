//! base-config
