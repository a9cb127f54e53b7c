//! Running a program in a session's sandbox: the request, and the frames that follow the upgrade.
//!
//! `POST …/exec` carries an [`ExecRequest`] and asks to upgrade to [`UPGRADE_PROTOCOL`]. After
//! `101` both sides send frames: one byte for the kind, four for the length (big endian), then
//! the payload. The server's last frame is [`Frame::Exit`] or [`Frame::Failed`]. A client that
//! closes the connection before it kills the program.
//!
//! A terminal ([`super::TerminalRequest`]) speaks the same frames, and three of its own.

use base_types::Epoch;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Fault, OutputGap, TerminalAttached};

pub const UPGRADE_PROTOCOL: &str = "sinew-exec/1";

/// The longest payload of one frame; longer output is sent in several.
pub const FRAME_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program and its arguments. A name without a slash is looked for in `PATH`.
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: Vec<(String, String)>,
    #[serde(default)]
    pub cwd: Option<String>,
    /// As root of the sandbox's own user namespace, instead of the tools' user.
    #[serde(default)]
    pub root: bool,
    #[serde(default)]
    pub tty: Option<TerminalSize>,
    /// Whether input will be sent; otherwise the program reads end of file.
    #[serde(default)]
    pub stdin: bool,
    /// The program is killed after this long; `None` is a day.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// How the program ended, and the exit code that a shell would show for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExit {
    pub code: i32,
    /// What a person should know beyond the code: "killed by signal 9", "timed out".
    pub note: Option<String>,
    pub epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Client to server: input of the program.
    Stdin(Vec<u8>),
    /// Client to server: the input ends.
    StdinEnd,
    /// Client to server: the terminal has another size.
    Resize(TerminalSize),
    /// Client to server: send this signal.
    Signal(i32),
    /// Server to client: output, stdout and stderr as they were written.
    Output(Vec<u8>),
    /// Server to client, last.
    Exit(ExecExit),
    /// Server to client, last: the program's end is not known.
    Failed(Fault),
    /// Server to client, first: the terminal that is shown.
    Attached(TerminalAttached),
    /// Server to client: what was shown before ends here, what follows happens now.
    Live,
    /// Server to client: output before what follows is missing.
    Gap(OutputGap),
    /// Server to client: nothing happens.
    Idle,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("frame kind {0} is not known")]
    UnknownKind(u8),
    #[error("a frame of kind {kind}")]
    Payload {
        kind: u8,
        #[source]
        source: serde_json::Error,
    },
}

const STDIN: u8 = 1;
const STDIN_END: u8 = 2;
const RESIZE: u8 = 3;
const SIGNAL: u8 = 4;
const OUTPUT: u8 = 16;
const EXIT: u8 = 17;
const FAILED: u8 = 18;
const ATTACHED: u8 = 19;
const LIVE: u8 = 20;
const GAP: u8 = 21;
const IDLE: u8 = 22;

/// `None` when the other side has closed between two frames.
///
/// # Cancel safety
/// Not cancel-safe: a frame half read is lost.
pub async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<Frame>, FrameError> {
    let mut kind = [0; 1];
    if reader.read(&mut kind).await? == 0 {
        return Ok(None);
    }
    let length = reader.read_u32().await? as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    decode(kind[0], payload).map(Some)
}

/// Writes one frame, or several where the bytes are too many for one.
///
/// # Cancel safety
/// Not cancel-safe: a frame half written breaks the connection.
pub async fn write_frame<W: AsyncWrite + Unpin>(
    writer: &mut W,
    frame: &Frame,
) -> Result<(), FrameError> {
    let json = |kind: u8, text: serde_json::Result<Vec<u8>>| {
        text.map_err(|source| FrameError::Payload { kind, source })
    };
    match frame {
        Frame::Stdin(bytes) => return write_bytes(writer, STDIN, bytes).await,
        Frame::Output(bytes) => return write_bytes(writer, OUTPUT, bytes).await,
        Frame::StdinEnd => write_one(writer, STDIN_END, &[]).await?,
        Frame::Resize(size) => {
            write_one(writer, RESIZE, &json(RESIZE, serde_json::to_vec(size))?).await?;
        }
        Frame::Signal(number) => {
            write_one(writer, SIGNAL, &json(SIGNAL, serde_json::to_vec(number))?).await?;
        }
        Frame::Exit(exit) => {
            write_one(writer, EXIT, &json(EXIT, serde_json::to_vec(exit))?).await?
        }
        Frame::Failed(fault) => {
            write_one(writer, FAILED, &json(FAILED, serde_json::to_vec(fault))?).await?;
        }
        Frame::Attached(attached) => {
            write_one(writer, ATTACHED, &json(ATTACHED, serde_json::to_vec(attached))?).await?;
        }
        Frame::Live => write_one(writer, LIVE, &[]).await?,
        Frame::Gap(gap) => write_one(writer, GAP, &json(GAP, serde_json::to_vec(gap))?).await?,
        Frame::Idle => write_one(writer, IDLE, &[]).await?,
    }
    Ok(writer.flush().await?)
}

async fn write_bytes<W: AsyncWrite + Unpin>(
    writer: &mut W,
    kind: u8,
    bytes: &[u8],
) -> Result<(), FrameError> {
    for piece in bytes.chunks(FRAME_BYTES_MAX) {
        write_one(writer, kind, piece).await?;
    }
    Ok(writer.flush().await?)
}

async fn write_one<W: AsyncWrite + Unpin>(
    writer: &mut W,
    kind: u8,
    payload: &[u8],
) -> Result<(), FrameError> {
    if payload.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(payload.len()));
    }
    let mut whole = Vec::with_capacity(payload.len() + 5);
    whole.push(kind);
    whole.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    whole.extend_from_slice(payload);
    Ok(writer.write_all(&whole).await?)
}

fn decode(kind: u8, payload: Vec<u8>) -> Result<Frame, FrameError> {
    fn json<T: serde::de::DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, FrameError> {
        serde_json::from_slice(payload).map_err(|source| FrameError::Payload { kind, source })
    }
    Ok(match kind {
        STDIN => Frame::Stdin(payload),
        STDIN_END => Frame::StdinEnd,
        RESIZE => Frame::Resize(json(kind, &payload)?),
        SIGNAL => Frame::Signal(json(kind, &payload)?),
        OUTPUT => Frame::Output(payload),
        EXIT => Frame::Exit(json(kind, &payload)?),
        FAILED => Frame::Failed(json(kind, &payload)?),
        ATTACHED => Frame::Attached(json(kind, &payload)?),
        LIVE => Frame::Live,
        GAP => Frame::Gap(json(kind, &payload)?),
        IDLE => Frame::Idle,
        unknown => return Err(FrameError::UnknownKind(unknown)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::FaultCode;

    #[tokio::test]
    async fn frames_round_trip_and_long_output_is_cut_into_pieces() {
        let frames = [
            Frame::Stdin(b"in".to_vec()),
            Frame::StdinEnd,
            Frame::Resize(TerminalSize { rows: 24, columns: 80 }),
            Frame::Signal(2),
            Frame::Exit(ExecExit { code: 3, note: Some("x".into()), epoch: Epoch(2) }),
            Frame::Failed(Fault::new(FaultCode::ExecRefused, "no")),
            Frame::Attached(TerminalAttached {
                name: "main".into(),
                id: 1,
                root: false,
                created: true,
                started_at: base_types::Timestamp(5),
                viewers: 1,
                epoch: Epoch(2),
            }),
            Frame::Live,
            Frame::Gap(OutputGap { skipped_bytes: 9, modes: 1 << 63 }),
            Frame::Idle,
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            write_frame(&mut wire, frame).await.unwrap();
        }
        let long = vec![7; FRAME_BYTES_MAX + 10];
        write_frame(&mut wire, &Frame::Output(long.clone())).await.unwrap();

        let mut reader = wire.as_slice();
        for frame in frames {
            assert_eq!(read_frame(&mut reader).await.unwrap(), Some(frame));
        }
        let mut output = Vec::new();
        while let Some(frame) = read_frame(&mut reader).await.unwrap() {
            let Frame::Output(bytes) = frame else { panic!("{frame:?}") };
            assert!(bytes.len() <= FRAME_BYTES_MAX);
            output.extend(bytes);
        }
        assert_eq!(output, long);
    }

    #[tokio::test]
    async fn a_wrong_frame_is_an_error() {
        let too_long = [OUTPUT, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(read_frame(&mut &too_long[..]).await, Err(FrameError::TooLong(_))));
        let unknown = [99, 0, 0, 0, 0];
        assert!(matches!(read_frame(&mut &unknown[..]).await, Err(FrameError::UnknownKind(99))));
        let garbage = [EXIT, 0, 0, 0, 1, b'{'];
        assert!(matches!(read_frame(&mut &garbage[..]).await, Err(FrameError::Payload { .. })));
        let cut = [OUTPUT, 0, 0, 0, 9, 1];
        assert!(matches!(read_frame(&mut &cut[..]).await, Err(FrameError::Io(_))));
    }
}
