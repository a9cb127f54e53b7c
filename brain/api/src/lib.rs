//! brain-api
