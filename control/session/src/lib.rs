//! control-session
