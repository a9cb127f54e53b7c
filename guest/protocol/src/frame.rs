//! Frames: a `u32` little-endian length, then one message. Pure; both ends use it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// The length in front of each message.
pub const PREFIX_BYTES: usize = 4;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a message of {bytes} bytes is longer than the limit of {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("a message cannot be decoded")]
    Undecodable(#[source] prost::DecodeError),
}

/// Takes the next whole frame out of `buffer`, if it is there. The length is checked before any
/// byte of the message has arrived, so nothing is held for a message that is refused.
pub fn take_frame(buffer: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let bytes = u32::from_le_bytes(*prefix) as usize;
    if bytes > limit {
        return Err(FrameError::TooLong { bytes, limit });
    }
    if buffer.len() < PREFIX_BYTES + bytes {
        return Ok(None);
    }
    buffer.advance(PREFIX_BYTES);
    Ok(Some(buffer.split_to(bytes).freeze()))
}

/// Whether [`take_frame`] would answer something else than "not yet".
pub fn has_frame(buffer: &BytesMut, limit: usize) -> bool {
    buffer.first_chunk::<PREFIX_BYTES>().is_some_and(|prefix| {
        let bytes = u32::from_le_bytes(*prefix) as usize;
        bytes > limit || buffer.len() >= PREFIX_BYTES + bytes
    })
}

/// [`take_frame`] and decode.
pub fn take_message<M: Message + Default>(
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<Option<M>, FrameError> {
    match take_frame(buffer, limit)? {
        Some(frame) => M::decode(frame).map(Some).map_err(FrameError::Undecodable),
        None => Ok(None),
    }
}

/// Appends `message` as one frame.
pub fn put_message(
    buffer: &mut BytesMut,
    message: &impl Message,
    limit: usize,
) -> Result<(), FrameError> {
    let bytes = message.encoded_len();
    if bytes > limit {
        return Err(FrameError::TooLong { bytes, limit });
    }
    buffer.reserve(PREFIX_BYTES + bytes);
    buffer.put_u32_le(bytes as u32);
    message.encode(buffer).expect("a BytesMut grows");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::CallRef;

    #[test]
    fn a_message_comes_back_however_it_is_cut() {
        let message = CallRef { call_id: "call_x".into() };
        let mut whole = BytesMut::new();
        put_message(&mut whole, &message, 100).unwrap();
        put_message(&mut whole, &message, 100).unwrap();
        let mut fed = BytesMut::new();
        let mut seen = 0;
        for byte in whole {
            fed.put_u8(byte);
            if let Some(got) = take_message::<CallRef>(&mut fed, 100).unwrap() {
                assert_eq!(got, message);
                seen += 1;
            }
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn a_huge_length_is_refused_before_its_bytes_arrive() {
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        let refused = take_frame(&mut buffer, 1 << 20);
        assert_eq!(refused, Err(FrameError::TooLong { bytes: u32::MAX as usize, limit: 1 << 20 }));
        let long = CallRef { call_id: "x".repeat(101) };
        assert!(put_message(&mut BytesMut::new(), &long, 100).is_err());
    }
}
