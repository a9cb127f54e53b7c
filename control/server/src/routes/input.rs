//! Reading paths, queries and bodies so that a wrong one is a fault in our words.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::REQUEST_BYTES_MAX;
use crate::api::FaultCode;
use crate::fault::Refusal;

/// A query string as a type with known fields only.
pub(crate) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        let wrong = |error: QueryRejection| Refusal::new(FaultCode::BadRequest, error.body_text());
        Ok(Self(query.map_err(wrong)?.0))
    }
}

/// A JSON body; an empty one is the type's default.
pub(crate) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        // Before it is sent, so that the client gets to read the answer.
        let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let announced = announced.and_then(|text| text.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > REQUEST_BYTES_MAX as u64) {
            let message = format!("the request body is longer than {REQUEST_BYTES_MAX} bytes");
            return Err(Refusal::new(FaultCode::RequestTooLarge, message));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(unreadable)?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Refusal::new(FaultCode::BadRequest, format!("the request body: {error}"))
        })
    }
}

fn unreadable(error: BytesRejection) -> Refusal {
    let code = match error.status().as_u16() {
        413 => FaultCode::RequestTooLarge,
        _ => FaultCode::BadRequest,
    };
    Refusal::new(code, error.body_text())
}
