//! The development brain over real HTTP.

mod live;
mod sdk;
mod session;
mod support;
mod transcript;
mod wire;
