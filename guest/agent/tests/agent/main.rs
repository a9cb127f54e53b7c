//! The real agent, as PID 1 of a PID namespace of its own, spoken to as the host does.

mod entrypoint;
mod exec;
mod files;
mod harness;
mod measure;
mod shell;
mod terminal;
mod wire;
