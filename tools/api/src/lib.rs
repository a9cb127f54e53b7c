//! tools-api
