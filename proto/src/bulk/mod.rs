//! gRPC messages that carry shards, to and from HTTP/2 without copying the shards.
//!
//! Owns the framing of gRPC over HTTP/2 for the calls that move shards: five bytes before each message,
//! the status behind the last. Other calls are left to tonic, which copies each message once into a buffer
//! of its own on either side; for shards that is a good part of what a transfer costs. The one idea: the
//! bytes of a shard stand at the end of their message, so they can go out as they lie in memory, and come
//! in as the connection read them, in parts.
//!
//! ```text
//! message:  0 │ length u32, big-endian │ 0x12 │ length, varint │ bytes of a shard …      field 2, bytes
//!           0 │ length u32, big-endian │ any other message of Protocol Buffers
//! ```
//!
//! Source of the framing: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use bytes::Bytes;
use prost::Message;

use crate::door;

mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;

pub use incoming::{Arrived, Incoming};
pub use outgoing::{answer, call};

/// The path of a Put stream.
pub const PUT: &str = "/copse.door.v1.Shards/Put";

/// The path of a Get.
pub const GET: &str = "/copse.door.v1.Shards/Get";

/// The path of a Has.
pub const HAS: &str = "/copse.door.v1.Shards/Has";

/// Bytes of one message at the door, at most, either way: a piece of a shard is half of it.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Bytes of a message that is no data, at most, where there is data too, and of all that is asked at the
/// door: a descriptor has 8 KiB, a Has of 1,024 chunks 35. What has begun is kept in memory until it is
/// complete.
pub const PLAIN_BYTES_MAX: usize = 128 << 10;

/// Flag and length before each message.
const PREFIX_BYTES: usize = 5;

/// The key of field 2 with the wire type of bytes.
const DATA_KEY: u8 = 0x12;

/// Key and length of the data, at most: the length of a message is a u32.
const OPENING_BYTES_MAX: usize = 1 + 5;

/// A message of a call that moves shards.
pub trait Carried: Message + Default + Send + Unpin + 'static {
    /// Whether its field 2 is the bytes of a shard, and alone in its message.
    const HAS_DATA: bool;

    /// These bytes, if it is such a message.
    ///
    /// # Errors
    /// The message itself, if it is another.
    fn into_data(self) -> Result<Bytes, Self>;
}

macro_rules! carried {
    ($($message:ty: $data:pat => $bytes:expr;)*) => {$(
        impl Carried for $message {
            const HAS_DATA: bool = true;

            fn into_data(self) -> Result<Bytes, Self> {
                match self.part {
                    $data => Ok($bytes),
                    part => Err(Self { part }),
                }
            }
        }
    )*};
}

carried! {
    door::PutRequest: Some(door::put_request::Part::Data(data)) => data;
    door::GetReply: Some(door::get_reply::Part::Data(data)) => data;
}

macro_rules! plain {
    ($($message:ty,)*) => {$(
        impl Carried for $message {
            const HAS_DATA: bool = false;

            fn into_data(self) -> Result<Bytes, Self> {
                Err(self)
            }
        }
    )*};
}

plain! { door::PutReply, door::GetRequest, door::HasRequest, door::HasReply, }
