//! sandbox-container
