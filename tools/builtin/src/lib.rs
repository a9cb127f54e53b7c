//! tools-builtin
