//! sandbox-image
