//! Capabilities: the strings that are handed out, each all that is needed to read one tree.
//!
//! Owns their bytes and their text. Refuses texts with a typo. One idea: a capability names the
//! extent of a tree's root item, key included, so knowing it is the permission; nobody is asked.
//!
//! ```text
//! payload  version u8 = 1 │ kind u8 = 1 (read) │ first 8 bytes of the network id │ extent
//! text     "copse1r" and the payload as in `text`
//! ```
//! Kinds 2 (write) and 3 (verify) are kept for volumes.

use core::{fmt, str::FromStr};

use crate::{
    extent::Extent,
    ids::NetworkId,
    text::{self, READ_CAPABILITY, TextError},
    tree::node::ROOT_BYTES_MAX,
    wire::{Reader, WireError, Writer},
};

/// How much of the network id a capability has, in bytes: enough to say "another network" instead of
/// searching this one in vain.
pub const NETWORK_BYTES: usize = 8;

const VERSION: u8 = 1;
const KIND_READ: u8 = 1;

/// What may be done with what. Whoever has the text may do it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Capability {
    /// Read an immutable tree.
    Read {
        /// First bytes of the id of the network that holds it.
        network: [u8; NETWORK_BYTES],
        /// The root item.
        root: Extent,
    },
}

/// Why a text is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// The text is damaged or another kind of text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The text is as it was printed, but not understood.
    #[error("this capability cannot be used here: {0}; is there a newer version of copse?")]
    Payload(#[from] WireError),
}

/// A capability of one network used in another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the capability is of the network {}..., but this client has joined {joined}: join the other network (`copse join TOKEN`, with a token of one of its nodes) and try again",
    data_encoding::HEXLOWER.encode(.found)
)]
pub struct OtherNetworkError {
    /// What the capability says.
    pub found: [u8; NETWORK_BYTES],
    /// Where it was used.
    pub joined: NetworkId,
}

impl Capability {
    /// A read capability.
    pub fn read(network: NetworkId, root: Extent) -> Self {
        let mut start = [0; NETWORK_BYTES];
        start.copy_from_slice(&network.as_bytes()[..NETWORK_BYTES]);
        Self::Read { network: start, root }
    }

    /// The root item of its tree.
    pub const fn root(&self) -> &Extent {
        let Self::Read { root, .. } = self;
        root
    }

    /// Checks that it is of a network.
    ///
    /// # Errors
    /// When it is of another one.
    pub fn check_network(&self, joined: NetworkId) -> Result<(), OtherNetworkError> {
        let Self::Read { network: found, .. } = *self;
        if joined.as_bytes().starts_with(&found) {
            Ok(())
        } else {
            Err(OtherNetworkError { found, joined })
        }
    }

    fn encode(&self) -> Vec<u8> {
        let Self::Read { network, root } = self;
        let mut out = Writer::new();
        out.u8(VERSION).u8(KIND_READ).bytes(network);
        root.encode_to(&mut out);
        out.finish()
    }

    fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        reader.magic("a capability", b"", VERSION)?;
        if reader.u8()? != KIND_READ {
            return Err(WireError::Invalid("the kind of the capability"));
        }
        let network = reader.array()?;
        let root = Extent::decode_from(&mut reader)?;
        reader.end()?;
        let (got, limit) = (root.plaintext_bytes.into(), ROOT_BYTES_MAX as u64);
        if got > limit {
            return Err(WireError::OverLimit { what: "the root item", got, limit });
        }
        Ok(Self::Read { network, root })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::encode(READ_CAPABILITY, &self.encode()))
    }
}

impl fmt::Debug for Capability {
    /// Without the key: a log must not grant anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capability::Read({})", self.root().chunk.short())
    }
}

impl FromStr for Capability {
    type Err = CapabilityError;

    fn from_str(text: &str) -> Result<Self, CapabilityError> {
        Ok(Self::decode(&text::decode(READ_CAPABILITY, text)?)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ids::ChunkId, seal::ContentKey};

    fn capability() -> Capability {
        let root = Extent {
            chunk: ChunkId::new([1; 32]),
            geometry: "10+6".parse().expect("a geometry"),
            shard_bytes: 787_000,
            offset: 300,
            plaintext_bytes: 77,
            frame_bytes: 1024,
            key: ContentKey::new([2; 32]),
        };
        Capability::read(NetworkId::new([3; 32]), root)
    }

    #[test]
    fn the_text_of_a_capability() {
        let text = capability().to_string();
        assert_eq!(
            text,
            "copse1raeaqgaydambqgaydaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaquefyqqykyasnbibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibafm6tcb6a"
        );
        assert_eq!(text.parse(), Ok(capability()));
        assert_eq!(format!(" {}\n", text.to_ascii_uppercase()).parse(), Ok(capability()));
        assert_eq!(format!("{:?}", capability()), "Capability::Read(01010101)");
    }

    #[test]
    fn a_typo_and_another_network_are_told_with_what_to_do() {
        let text = capability().to_string();
        let typo = text.replacen("ambq", "ambr", 1);
        assert_ne!(typo, text);
        let error = typo.parse::<Capability>().expect_err("a typo");
        assert!(error.to_string().contains("copy"), "{error}");
        let error = "copse1taa".parse::<Capability>().expect_err("a token");
        assert!(error.to_string().contains("join token"), "{error}");
        assert_eq!(capability().check_network(NetworkId::new([3; 32])), Ok(()));
        let error = capability().check_network(NetworkId::new([4; 32])).expect_err("another");
        assert!(error.to_string().contains("copse join"), "{error}");
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(
            payload in prop::collection::vec(any::<u8>(), 0..120),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let _ = text::encode(READ_CAPABILITY, &payload).parse::<Capability>();
            let mut payload = capability().encode();
            for (at, value) in changes {
                let at = at.index(payload.len());
                payload[at] = value;
            }
            // Whatever is read is written the same: each capability has one text.
            if let Ok(read) = Capability::decode(&payload) {
                prop_assert_eq!(read.encode(), payload);
            }
        }
    }
}
