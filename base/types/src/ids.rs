//! Every id is a type of its own; passing one for another does not compile.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An id that the brain chose. It is opaque: never parsed, never validated beyond its length.
macro_rules! brain_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);
        string_id!($name);
    )* };
}

/// An id that an operator chose, or that this program made.
macro_rules! string_id {
    ($name:ident) => {
        impl $name {
            pub fn new(value: impl Into<String>) -> Self {
                Self(value.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }

            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(value: &str) -> Self {
                Self(value.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(value: String) -> Self {
                Self(value)
            }
        }
    };
}

brain_id! {
    /// A queue of work at the brain, with a key of its own.
    EnvironmentId,
    /// One entry of that queue: "serve this session".
    WorkId,
    /// One conversation of an agent.
    SessionId,
    AgentId,
    /// One event of a session's history.
    EventId,
    /// What a result answers: the id of the tool-use event.
    ToolUseId,
    /// One agent's context inside a session.
    ThreadId,
    /// The unit that shares nothing with another. Comes from configuration, or from session
    /// metadata as the brain reports it; never from a guest or a model.
    TenantId,
    /// A named sandbox shape.
    ProfileName,
    /// One machine running `sinew serve`, by the data directory it serves from.
    NodeId,
    /// A root filesystem, by the digest of its content.
    ImageId,
}

/// An id this program makes: a prefix for the reader and 128 random bits.
macro_rules! made_id {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal),* $(,)?) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);
        string_id!($name);

        impl $name {
            pub const PREFIX: &str = $prefix;

            /// A new, unguessable id.
            pub fn generate() -> Self {
                Self(format!("{}{}", $prefix, uuid::Uuid::new_v4().simple()))
            }

            /// Accepts only what [`Self::generate`] makes, so that an id is safe as a file name.
            pub fn parse(text: &str) -> Option<Self> {
                let hex = text.strip_prefix($prefix)?;
                let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                (hex.len() == 32 && hex.bytes().all(lower_hex)).then(|| Self(text.to_owned()))
            }
        }
    )* };
}

made_id! {
    /// One execution of one tool call. The guest agent's idempotency key.
    CallId = "call_",
    /// One session's place to run, across all of its epochs.
    SandboxId = "sbx_",
    /// The disk of a sandbox.
    VolumeId = "vol_",
    /// Something made ahead that is not a sandbox's yet.
    PartId = "part_",
}

/// One incarnation of a sandbox: its processes began together. Counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    pub const FIRST: Epoch = Epoch(1);

    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who owns a session's row: every write about the session names it and fails if it moved on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_id_parses_and_nothing_path_like_does() {
        let id = CallId::generate();
        assert_eq!(CallId::parse(id.as_str()), Some(id));
        for bad in ["", "call_", "call_../../etc/passwd", "sbx_00000000000000000000000000000000"] {
            assert_eq!(CallId::parse(bad), None, "{bad}");
        }
        assert_eq!(CallId::parse(&format!("call_{}", "A".repeat(32))), None);
    }
}
