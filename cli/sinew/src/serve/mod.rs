//! The composition of `sinew serve`: implementations, and the adapters between the crates.

mod control;
mod identity;
mod key;
pub mod node;
mod privilege;
mod profiles;

/// Must come before the first TLS connection of the process.
pub fn install_tls() {
    // It fails when a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
