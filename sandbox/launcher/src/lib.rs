//! sandbox-launcher
