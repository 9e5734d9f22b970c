//! The identifiers of the network: fixed-size values with checked constructors.
//!
//! Owns how an id is written and parsed. An id says nothing about where a thing is; the ring does.

use core::fmt;

use data_encoding::HEXLOWER;

/// Length in bytes of every hash and public key used as an id.
pub const ID_BYTES: usize = 32;

/// A text or byte string that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: expected {ID_BYTES} bytes (64 hexadecimal digits), got {got}")]
pub struct ParseIdError {
    /// Which id was expected.
    pub kind: &'static str,
    /// What was there instead, described.
    pub got: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; ID_BYTES]);

        impl $name {
            /// Wraps the 32 bytes of the id.
            pub const fn new(bytes: [u8; ID_BYTES]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; ID_BYTES] {
                &self.0
            }

            /// Reads an id from a byte string.
            ///
            /// # Errors
            /// When the length is not 32.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, ParseIdError> {
                <[u8; ID_BYTES]>::try_from(bytes).map(Self).map_err(|_| ParseIdError {
                    kind: $kind,
                    got: format!("{} bytes", bytes.len()),
                })
            }

            /// The first four bytes in hexadecimal, for logs and tables.
            pub fn short(&self) -> String {
                HEXLOWER.encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl core::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let bytes = HEXLOWER
                    .decode(text.trim().to_ascii_lowercase().as_bytes())
                    .map_err(|_| ParseIdError { kind: $kind, got: format!("{text:?}") })?;
                Self::from_slice(&bytes)
            }
        }
    };
}

id!(
    /// A node: its Ed25519 public key.
    NodeId,
    "node id"
);
id!(
    /// A network: 32 random bytes chosen by its founder. Nodes of other networks are refused.
    NetworkId,
    "network id"
);
id!(
    /// A chunk: BLAKE3 of its [descriptor](crate::descriptor::Descriptor).
    ChunkId,
    "chunk id"
);
id!(
    /// BLAKE3 of a shard's bytes: the root of its hash tree.
    ShardHash,
    "shard hash"
);

/// Which of a chunk's n shards: `0..n`. Indices below k are slices of the chunk itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardIndex(pub u8);

impl ShardIndex {
    /// The index as a position in a slice.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ShardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One shard of one chunk: the key under which a node stores it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId {
    /// The chunk.
    pub chunk: ChunkId,
    /// Which of its shards.
    pub index: ShardIndex,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.chunk.short(), self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_being_written_and_parsed() {
        let id = NodeId::new(core::array::from_fn(|i| u8::try_from(i).expect("below 32")));
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert_eq!(format!("{id:?}"), "NodeId(00010203)");
    }

    #[test]
    fn a_wrong_length_names_what_was_expected() {
        let error = ChunkId::from_slice(&[1, 2, 3]).expect_err("three bytes are no id");
        assert_eq!(
            error.to_string(),
            "not a chunk id: expected 32 bytes (64 hexadecimal digits), got 3 bytes"
        );
        assert!("zz".parse::<NodeId>().is_err());
    }
}
