//! control-server
