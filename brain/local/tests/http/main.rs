//! The development brain over real HTTP.

mod session;
mod support;
mod transcript;
mod wire;
