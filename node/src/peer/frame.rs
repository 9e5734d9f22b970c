//! One message on a QUIC stream: a length, a header, raw bytes.
//!
//! Owns the bytes of the peer protocol. Refuses headers and bodies over their limits before memory
//! is taken for them, messages that end early or go on after their end, and headers that do not
//! decode. Bulk bytes are never inside protobuf, so they are not copied by it.
//!
//! ```text
//!  0        4            4+h               4+h+b
//!  ┌────────┬─────────────┬──────────────────┐
//!  │ h: u32 │ header      │ body             │ FIN
//!  │ BE     │ Request or  │ b = the header's │
//!  │        │ Reply       │ body_length      │
//!  └────────┴─────────────┴──────────────────┘
//! ```

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use copse_core::limits::SHARD_BYTES_MAX;
use copse_proto::status::{Reason, Refusal};
use prost::Message;
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};

use crate::spares::{Spare, Spares};

/// A header, in bytes, at most: a Has of 1024 chunks, or about 150 node records.
pub const HEADER_BYTES_MAX: usize = 64 << 10;

/// A body, in bytes, at most: the largest shard.
pub const BODY_BYTES_MAX: usize = SHARD_BYTES_MAX;

/// Read from a stream at once, in bytes, at most. quinn hands out what one packet brought, so this
/// only has to be more.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// Time for a message that has no body: a few round trips over a bad path.
const TRANSFER_TIME_BASE: Duration = Duration::from_secs(20);

/// The slowest transfer of a body that is borne, in bytes per second: half a megabit. A peer that
/// trickles would otherwise hold its buffers for ever.
const TRANSFER_BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// Bytes of the length in front of a header.
const LENGTH_BYTES: usize = 4;

/// Why a stream is reset or stopped, as QUIC's application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum StreamCode {
    /// The asker no longer wants the answer.
    Cancelled = 1,
    /// The message was refused; the reply says why.
    Refused = 2,
}

impl From<StreamCode> for VarInt {
    fn from(code: StreamCode) -> Self {
        Self::from_u32(code as u32)
    }
}

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length in front says more than a header may have.
    #[error("a header of {got} bytes is over the limit of {HEADER_BYTES_MAX}")]
    HeaderOversized {
        /// What it says.
        got: usize,
    },
    /// The header says more than a body may have.
    #[error("a body of {got} bytes is over the limit of {limit}")]
    BodyOversized {
        /// What it says.
        got: u64,
        /// What is allowed here.
        limit: usize,
    },
    /// The stream ended inside the message.
    #[error("the message ends early: {missing} bytes of its {part} are missing")]
    Torn {
        /// Length, header or body.
        part: &'static str,
        /// How many bytes are missing.
        missing: usize,
    },
    /// The stream goes on behind the message.
    #[error("there are bytes behind the end of the message")]
    Trailing,
    /// The header is no protobuf of the expected kind.
    #[error("the header does not decode")]
    Undecodable(#[from] prost::DecodeError),
    /// The other side gave up, or the connection is gone.
    #[error("reading from the stream failed")]
    Read(#[from] ReadError),
    /// The other side does not want it, or the connection is gone.
    #[error("writing to the stream failed")]
    Write(#[from] WriteError),
    /// The transfer was slower than is borne.
    #[error("the message took longer than {0:?}")]
    TooSlow(Duration),
}

impl FrameError {
    /// Whether the other side broke the protocol, in contrast to a path that broke or an asker
    /// that changed its mind.
    pub const fn is_misbehaviour(&self) -> bool {
        !matches!(self, Self::Read(_) | Self::Write(_) | Self::TooSlow(_))
    }
}

impl From<&FrameError> for Refusal {
    fn from(error: &FrameError) -> Self {
        let reason = match error {
            FrameError::HeaderOversized { .. } | FrameError::BodyOversized { .. } => {
                Reason::Oversized
            }
            FrameError::Torn { .. } => Reason::Torn,
            FrameError::Trailing | FrameError::Undecodable(_) => Reason::Malformed,
            FrameError::TooSlow(_) => Reason::TimedOut,
            FrameError::Read(_) | FrameError::Write(_) => Reason::Cancelled,
        };
        Self::new(reason, error.to_string())
    }
}

/// How long the transfer of a message with a body of `body_bytes` may take.
pub const fn transfer_time(body_bytes: u64) -> Duration {
    TRANSFER_TIME_BASE
        .saturating_add(Duration::from_secs(body_bytes / TRANSFER_BYTES_PER_SECOND_MIN))
}

/// The length and the header of a message.
///
/// # Errors
/// [`FrameError::HeaderOversized`].
pub fn encode_header(header: &impl Message) -> Result<Bytes, FrameError> {
    let got = header.encoded_len();
    let length = match u32::try_from(got) {
        Ok(length) if got <= HEADER_BYTES_MAX => length,
        _ => return Err(FrameError::HeaderOversized { got }),
    };
    let mut out = BytesMut::with_capacity(LENGTH_BYTES + got);
    out.put_u32(length);
    out.put_slice(&header.encode_to_vec());
    Ok(out.freeze())
}

/// Writes a whole message and ends the stream's direction. The header's `body_length` must be the
/// body's length.
///
/// # Errors
/// When the header is too long, the other side stopped the stream or the connection is gone.
pub async fn write(
    stream: &mut SendStream,
    header: &impl Message,
    body: Bytes,
) -> Result<(), FrameError> {
    let limit = transfer_time(body.len() as u64);
    let mut chunks = [encode_header(header)?, body];
    tokio::time::timeout(limit, stream.write_all_chunks(&mut chunks))
        .await
        .map_err(|_| FrameError::TooSlow(limit))??;
    // Fails only on a stream that we ourselves ended.
    let _ = stream.finish();
    Ok(())
}

/// Reads a header that must be here within `limit`.
///
/// # Errors
/// When it is over a limit, torn, or does not decode; when the stream or connection is gone.
pub async fn read_header<M: Message + Default>(
    stream: &mut RecvStream,
    limit: Duration,
) -> Result<M, FrameError> {
    tokio::time::timeout(limit, read_header_unlimited(stream))
        .await
        .map_err(|_| FrameError::TooSlow(limit))?
}

async fn read_header_unlimited<M: Message + Default>(
    stream: &mut RecvStream,
) -> Result<M, FrameError> {
    let length = read_length_unlimited(stream).await?;
    read_header_of_unlimited(stream, length).await
}

/// Reads the length in front of a header, which must be here within `limit`.
///
/// # Errors
/// When it is over the limit or torn; when the stream or connection is gone.
pub async fn read_length(stream: &mut RecvStream, limit: Duration) -> Result<usize, FrameError> {
    tokio::time::timeout(limit, read_length_unlimited(stream))
        .await
        .map_err(|_| FrameError::TooSlow(limit))?
}

async fn read_length_unlimited(stream: &mut RecvStream) -> Result<usize, FrameError> {
    let mut length = [0; LENGTH_BYTES];
    read_exact(stream, &mut length, "length").await?;
    let got = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if got > HEADER_BYTES_MAX {
        return Err(FrameError::HeaderOversized { got });
    }
    Ok(got)
}

/// Reads the header behind a length that [`read_length`] gave; it must be here within `limit`.
///
/// # Errors
/// When it is torn, or does not decode; when the stream or connection is gone.
pub async fn read_header_of<M: Message + Default>(
    stream: &mut RecvStream,
    length: usize,
    limit: Duration,
) -> Result<M, FrameError> {
    tokio::time::timeout(limit, read_header_of_unlimited(stream, length))
        .await
        .map_err(|_| FrameError::TooSlow(limit))?
}

async fn read_header_of_unlimited<M: Message + Default>(
    stream: &mut RecvStream,
    length: usize,
) -> Result<M, FrameError> {
    let mut header = vec![0; length];
    read_exact(stream, &mut header, "header").await?;
    Ok(M::decode(&header[..])?)
}

/// Checks a header's `body_length` against what is allowed, before memory is taken for it.
///
/// # Errors
/// [`FrameError::BodyOversized`].
pub fn check_body_length(got: u64, limit: usize) -> Result<usize, FrameError> {
    match usize::try_from(got) {
        Ok(length) if length <= limit => Ok(length),
        _ => Err(FrameError::BodyOversized { got, limit }),
    }
}

/// Reads a body of exactly `length` bytes and the end of the stream.
///
/// # Errors
/// When the stream ends before or goes on after it; when it or the connection is gone.
pub async fn read_body(
    stream: &mut RecvStream,
    length: usize,
    spares: &Spares,
) -> Result<Bytes, FrameError> {
    let limit = transfer_time(length as u64);
    tokio::time::timeout(limit, read_body_unlimited(stream, spares.take(length), length))
        .await
        .map_err(|_| FrameError::TooSlow(limit))?
}

async fn read_body_unlimited(
    stream: &mut RecvStream,
    mut body: Spare,
    length: usize,
) -> Result<Bytes, FrameError> {
    // Until the FIN and not only until the length: a stream that was read to its end needs no
    // message to close it.
    while let Some(chunk) = stream.read_chunk(PIECE_BYTES_MAX, true).await? {
        if chunk.bytes.len() > length - body.filled() {
            return Err(FrameError::Trailing);
        }
        body.extend(&chunk.bytes);
    }
    match length - body.filled() {
        0 => Ok(body.freeze()),
        missing => Err(FrameError::Torn { part: "body", missing }),
    }
}

async fn read_exact(
    stream: &mut RecvStream,
    buffer: &mut [u8],
    part: &'static str,
) -> Result<(), FrameError> {
    let length = buffer.len();
    stream.read_exact(buffer).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(read) => FrameError::Torn { part, missing: length - read },
        ReadExactError::ReadError(error) => FrameError::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use copse_proto::{
        door::GetRequest,
        peer::{Request, request::Op},
    };

    use super::*;

    #[test]
    fn the_bytes_of_a_header_do_not_change() {
        let request = Request {
            body_length: 300,
            op: Some(Op::GetShard(GetRequest {
                target: Vec::new(),
                chunk_id: vec![0xab; 32],
                index: 7,
                offset: 0,
                length: 4096,
                counted_on: false,
            })),
            background: false,
        };
        let golden = concat!(
            "0000002c",
            "08ac02",
            "2a27",
            "1220abababababababababababababababababababababababababababababababab",
            "1807",
            "288020"
        );
        let bytes = encode_header(&request).expect("short enough");
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), golden);
    }

    #[test]
    fn limits_are_kept_before_memory_is_taken() {
        let request = Request {
            body_length: 0,
            op: Some(Op::GetShard(GetRequest {
                target: vec![0; HEADER_BYTES_MAX],
                ..Default::default()
            })),
            background: false,
        };
        assert!(matches!(encode_header(&request), Err(FrameError::HeaderOversized { .. })));
        assert_eq!(check_body_length(8, 8).ok(), Some(8));
        let error = check_body_length(u64::MAX, BODY_BYTES_MAX).expect_err("too long");
        assert_eq!(Refusal::from(&error).reason(), Reason::Oversized);
    }

    #[test]
    fn a_large_body_gets_more_time() {
        assert_eq!(transfer_time(0), TRANSFER_TIME_BASE);
        assert_eq!(transfer_time(8 << 20), Duration::from_secs(20 + 128));
    }
}
