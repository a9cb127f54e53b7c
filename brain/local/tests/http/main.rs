//! The development brain over real HTTP.

mod session;
mod support;
mod wire;
