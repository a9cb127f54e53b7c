//! Tests of the built binary with real clients and real sandboxes; they are in `tests/`.

#![forbid(unsafe_code)]
