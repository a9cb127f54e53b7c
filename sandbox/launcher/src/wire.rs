//! What `sinew serve` and the launcher say to each other.
//!
//! A frame is a little-endian `u32` length and that many bytes of JSON. Requests carry a number of
//! the client's choice and are answered under it, in any order. Everything names things by id;
//! nothing here is a path, a uid, an option or a command.
//!
//! `Hello` and its answers keep their shape for ever: they are how two versions find out about
//! each other. Fields that one side does not know are ignored.

use std::io::{self, Read, Write};

use base_types::{Epoch, SandboxId, VolumeId};
use sandbox_api::{Image, Sandbox, SandboxSpec, SandboxStatus, Vitality};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// The oldest version it still accepts: always the one before, from version 2 on.
pub const PROTOCOL_VERSION_MIN: u32 = 1;

/// The largest request: a `Create` is under 2 KiB.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The largest answer: a page of a `List` is under 512 KiB.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Sandboxes on one page of a `List`, so that an answer stays under its limit.
pub const LIST_PAGE_MAX: usize = 500;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    pub id: u64,
    #[serde(flatten)]
    pub ask: Ask,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Must come first, once.
    Hello {
        version_min: u32,
        version: u32,
        role: Role,
    },
    Image {
        name: String,
    },
    Create {
        spec: SandboxSpec,
    },
    Stop {
        sandbox: SandboxId,
    },
    Destroy {
        sandbox: SandboxId,
        volume: VolumeId,
    },
    Status {
        sandbox: SandboxId,
    },
    /// One page: the sandboxes whose ids come after `after`.
    List {
        after: Option<SandboxId>,
    },
    /// Answered when no process of the epoch is left.
    WatchEnded {
        sandbox: SandboxId,
        epoch: Epoch,
    },
    /// Answered when it is done; then the launcher exits.
    Shutdown {
        leave: Leave,
    },
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "snake_case")]
pub enum Role {
    /// A new `sinew serve`: takes over from the one before.
    Serve,
    /// The same `sinew serve` on a new connection, under the generation it was given.
    Resume { generation: u64 },
    /// Looks, and may shut the launcher down; takes nothing over.
    Observe,
}

/// What a shutdown leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leave {
    /// Sandboxes go on; the next launcher finds them.
    Running,
    /// Processes end, volumes stay.
    Volumes,
    /// Everything this installation has is removed.
    Nothing,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    pub id: u64,
    #[serde(flatten)]
    pub answer: Answer,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// `version` is what both speak from now on.
    Hello {
        version: u32,
        generation: u64,
        pid: u32,
    },
    Image {
        image: Image,
    },
    Created {
        sandbox: Sandbox,
    },
    Done,
    Status {
        status: Option<SandboxStatus>,
    },
    List {
        page: Vec<SandboxStatus>,
        more: bool,
    },
    Ended {
        vitality: Vitality,
    },
    Refused {
        refusal: Refusal,
    },
}

/// Why the launcher did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Refusal {
    #[error("another `sinew serve` has taken over (generation {generation})")]
    Superseded { generation: u64 },
    #[error("protocol versions {min} to {max} are spoken here")]
    Version { min: u32, max: u32 },
    #[error("no such image")]
    NoSuchImage,
    #[error("no such profile")]
    NoSuchProfile,
    #[error("the volume is gone")]
    VolumeGone,
    #[error("epoch {reached} has been reached already")]
    OlderEpoch { reached: Epoch },
    #[error("no room: {why}")]
    NoRoom { why: String },
    #[error("it does not end: {why}")]
    Stuck { why: String },
    #[error("the volume cannot be removed: {why}")]
    Volume { why: String },
    #[error("not a request that is answered here: {why}")]
    Bad { why: String },
    #[error("{why}")]
    Failed { why: String },
    #[error("the launcher is shutting down")]
    ShuttingDown,
    /// What a later version says.
    #[error("the launcher refuses, for a reason that this version does not know")]
    #[serde(other)]
    Unknown,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReadFrameError {
    #[error("the other side closed the connection")]
    Closed,
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLong { length: usize, limit: usize },
    #[error("read from the connection")]
    Io(#[source] io::Error),
}

/// Reads one frame. Memory for it is taken only after its length was checked.
pub fn read_frame(from: &mut impl Read, limit: usize) -> Result<Vec<u8>, ReadFrameError> {
    let mut prefix = [0; 4];
    match from.read_exact(&mut prefix) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ReadFrameError::Closed);
        }
        Err(error) => return Err(ReadFrameError::Io(error)),
    }
    let length = u32::from_le_bytes(prefix) as usize;
    if length > limit {
        return Err(ReadFrameError::TooLong { length, limit });
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).map_err(ReadFrameError::Io)?;
    Ok(body)
}

pub fn write_frame(to: &mut impl Write, body: &[u8]) -> io::Result<()> {
    to.write_all(&framed(body)?)
}

/// Length and body in one piece, so that a frame is one write.
pub fn framed(body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(body.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the frame is over 4 GiB"))?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(body);
    Ok(frame)
}

pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // Our own types: strings, numbers and enums with named fields always become JSON.
    serde_json::to_vec(message).unwrap_or_default()
}

pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body)
}

/// The version both sides speak, if there is one.
pub fn agree(their_min: u32, theirs: u32) -> Option<u32> {
    let version = theirs.min(PROTOCOL_VERSION);
    (version >= PROTOCOL_VERSION_MIN && version >= their_min).then_some(version)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn versions_meet_at_the_lower_of_the_two_newest() {
        assert_eq!(agree(1, 1), Some(1));
        assert_eq!(agree(1, 7), Some(PROTOCOL_VERSION));
        assert_eq!(agree(PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 2), None);
        assert_eq!(agree(0, 0), None);
    }

    #[test]
    fn a_frame_says_its_length_and_a_huge_one_is_refused_unread() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, b"{}").unwrap();
        assert_eq!(read_frame(&mut bytes.as_slice(), 2).unwrap(), b"{}");
        let error = read_frame(&mut [0xff, 0xff, 0xff, 0xff].as_slice(), 64).unwrap_err();
        assert!(matches!(error, ReadFrameError::TooLong { length: 0xffff_ffff, limit: 64 }));
        assert!(matches!(read_frame(&mut [1u8, 0].as_slice(), 64), Err(ReadFrameError::Closed)));
    }

    #[test]
    fn requests_and_answers_survive_the_wire_and_unknown_fields_are_ignored() {
        let text = r#"{"id":7,"ask":"hello","version_min":1,"version":3,"later":true,
            "role":{"as":"resume","generation":4,"mood":"good"}}"#;
        let request: Request = decode(text.as_bytes()).unwrap();
        assert_eq!(request.id, 7);
        let Ask::Hello { version: 3, role: Role::Resume { generation: 4 }, .. } = request.ask
        else {
            panic!("{request:?}");
        };
        let refused = Answer::Refused { refusal: Refusal::OlderEpoch { reached: Epoch(3) } };
        let response: Response = decode(&encode(&Response { id: 1, answer: refused })).unwrap();
        assert!(matches!(
            response.answer,
            Answer::Refused { refusal: Refusal::OlderEpoch { reached: Epoch(3) } }
        ));
    }

    /// What a launcher of version 1 and its client said to each other, recorded from the first
    /// release.
    const VERSION_1: &str = include_str!("../golden/version-1.jsonl");

    /// Everything that was said is read, and what is written in its place has all of it: the other
    /// side may be of that version.
    #[test]
    fn what_the_first_version_said_is_read_and_said_again() {
        let mut count = 0;
        for line in VERSION_1.lines() {
            let recorded: Value = serde_json::from_str(line).unwrap();
            let frame = &recorded["frame"];
            let again = match recorded["to"].as_str() {
                Some("launcher") => {
                    encode(&decode::<Request>(frame.to_string().as_bytes()).unwrap())
                }
                _ => {
                    let response: Response = decode(frame.to_string().as_bytes()).unwrap();
                    let unknown = Answer::Refused { refusal: Refusal::Unknown };
                    assert_ne!(encode(&response.answer), encode(&unknown), "{line}");
                    encode(&response)
                }
            };
            let again: Value = serde_json::from_slice(&again).unwrap();
            assert!(contains(&again, frame), "{frame} became {again}");
            count += 1;
        }
        assert!(count > 30, "{count}");
    }

    fn contains(whole: &Value, part: &Value) -> bool {
        match (whole, part) {
            (Value::Object(whole), Value::Object(part)) => part
                .iter()
                .all(|(name, value)| whole.get(name).is_some_and(|found| contains(found, value))),
            (Value::Array(whole), Value::Array(part)) => {
                whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| contains(w, p))
            }
            _ => whole == part,
        }
    }

    #[test]
    fn a_later_versions_refusal_is_a_refusal() {
        let text = r#"{"id":1,"answer":"refused","refusal":{"because":"moon","phase":"full"}}"#;
        let response: Response = decode(text.as_bytes()).unwrap();
        assert!(matches!(response.answer, Answer::Refused { refusal: Refusal::Unknown }));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic() {
        let mut state = 0x9e37_79b9_u32;
        for length in 0..600 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            let _ = decode::<Request>(&bytes);
            let _ = read_frame(&mut bytes.as_slice(), REQUEST_BYTES_MAX);
        }
    }
}
