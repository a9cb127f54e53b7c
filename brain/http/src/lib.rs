//! brain-http
