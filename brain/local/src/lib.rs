//! brain-local
