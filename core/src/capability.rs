//! Capabilities: the strings that are handed out, each all that is needed to read one tree, or to
//! check and repair it.
//!
//! Owns their bytes and their text. Refuses texts with a typo. One idea: a capability names the
//! extent of a root item, key included, so knowing it is the permission; nobody is asked.
//!
//! ```text
//! payload  version u8 = 1 │ kind u8 │ first 8 bytes of the network id │ extent
//! kind     1 read: the extent is a tree's root item           text "copse1r" and the payload
//!          3 verify: it is that of a tree's manifest          text "copse1v" and the payload
//! ```
//! Text is as in [`crate::text`]. Kind 2 (write) is kept for volumes.
//!
//! A verify capability follows from a read capability and never leads back: the manifest is sealed
//! under a secret that is derived from the read capability, and lists no key.

use core::{fmt, str::FromStr};

use crate::{
    extent::Extent,
    ids::NetworkId,
    seal::ConvergenceSecret,
    text::{self, READ_CAPABILITY, TextError, VERIFY_CAPABILITY},
    tree::node::ROOT_BYTES_MAX,
    wire::{Reader, WireError, Writer},
};

/// How much of the network id a capability has, in bytes: enough to say "another network" instead of
/// searching this one in vain.
pub const NETWORK_BYTES: usize = 8;

const VERSION: u8 = 1;
const KIND_READ: u8 = 1;
const KIND_VERIFY: u8 = 3;

/// Context of the secret that a tree's manifest is sealed under.
const MANIFEST_CONTEXT: &str = "copse manifest secret v1";

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

/// Check and repair an immutable tree, without reading it. Whoever has the text may do it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VerifyCapability {
    network: [u8; NETWORK_BYTES],
    manifest: Extent,
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
        Self::Read { network: start_of(network), root }
    }

    /// The root item of its tree.
    pub const fn root(&self) -> &Extent {
        let Self::Read { root, .. } = self;
        root
    }

    /// The secret that the manifest of its tree is sealed under: whoever may read the tree makes
    /// the same manifest of it, and so the same verify capability.
    pub fn manifest_secret(&self) -> ConvergenceSecret {
        let secret = blake3::derive_key(MANIFEST_CONTEXT, &self.root().encode());
        ConvergenceSecret::new(secret)
    }

    /// Checks that it is of a network.
    ///
    /// # Errors
    /// When it is of another one.
    pub fn check_network(&self, joined: NetworkId) -> Result<(), OtherNetworkError> {
        let Self::Read { network, .. } = *self;
        check_network(network, joined)
    }

    fn encode(&self) -> Vec<u8> {
        let Self::Read { network, root } = self;
        encode(KIND_READ, network, root)
    }

    fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let (network, root) = decode(KIND_READ, payload)?;
        Ok(Self::Read { network, root })
    }
}

impl VerifyCapability {
    /// The capability of a tree whose manifest has this root item.
    pub fn new(network: NetworkId, manifest: Extent) -> Self {
        Self { network: start_of(network), manifest }
    }

    /// The root item of the manifest: a file whose content is as in [`crate::manifest`].
    pub const fn manifest(&self) -> &Extent {
        &self.manifest
    }

    /// Checks that it is of a network.
    ///
    /// # Errors
    /// When it is of another one.
    pub fn check_network(&self, joined: NetworkId) -> Result<(), OtherNetworkError> {
        check_network(self.network, joined)
    }
}

fn start_of(network: NetworkId) -> [u8; NETWORK_BYTES] {
    let mut start = [0; NETWORK_BYTES];
    start.copy_from_slice(&network.as_bytes()[..NETWORK_BYTES]);
    start
}

fn check_network(found: [u8; NETWORK_BYTES], joined: NetworkId) -> Result<(), OtherNetworkError> {
    if joined.as_bytes().starts_with(&found) {
        Ok(())
    } else {
        Err(OtherNetworkError { found, joined })
    }
}

fn encode(kind: u8, network: &[u8; NETWORK_BYTES], root: &Extent) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(VERSION).u8(kind).bytes(network);
    root.encode_to(&mut out);
    out.finish()
}

fn decode(kind: u8, payload: &[u8]) -> Result<([u8; NETWORK_BYTES], Extent), WireError> {
    let mut reader = Reader::new(payload);
    reader.magic("a capability", b"", VERSION)?;
    if reader.u8()? != kind {
        return Err(WireError::Invalid("the kind of the capability"));
    }
    let network = reader.array()?;
    let root = Extent::decode_from(&mut reader)?;
    reader.end()?;
    let (got, limit) = (root.plaintext_bytes.into(), ROOT_BYTES_MAX as u64);
    if got > limit {
        return Err(WireError::OverLimit { what: "the root item", got, limit });
    }
    Ok((network, root))
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::encode(READ_CAPABILITY, &self.encode()))
    }
}

impl fmt::Display for VerifyCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = encode(KIND_VERIFY, &self.network, &self.manifest);
        f.write_str(&text::encode(VERIFY_CAPABILITY, &payload))
    }
}

impl fmt::Debug for Capability {
    /// Without the key: a log must not grant anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capability::Read({})", self.root().chunk.short())
    }
}

impl fmt::Debug for VerifyCapability {
    /// Without the key, as above.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyCapability({})", self.manifest.chunk.short())
    }
}

impl FromStr for Capability {
    type Err = CapabilityError;

    fn from_str(text: &str) -> Result<Self, CapabilityError> {
        Ok(Self::decode(&text::decode(READ_CAPABILITY, text)?)?)
    }
}

impl FromStr for VerifyCapability {
    type Err = CapabilityError;

    fn from_str(text: &str) -> Result<Self, CapabilityError> {
        let (network, manifest) = decode(KIND_VERIFY, &text::decode(VERIFY_CAPABILITY, text)?)?;
        Ok(Self { network, manifest })
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
            shard_bytes: 786_624,
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
            "copse1raeaqgaydambqgaydaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaquegaqeykyasnbibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibafrmotpaa"
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

    fn verify() -> VerifyCapability {
        VerifyCapability::new(NetworkId::new([3; 32]), capability().root().clone())
    }

    #[test]
    fn the_text_of_a_verify_capability() {
        let text = verify().to_string();
        assert_eq!(
            text,
            "copse1vaebqgaydambqgaydaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaquegaqeykyasnbibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibafxqi4vea"
        );
        assert_eq!(text.parse(), Ok(verify()));
        assert_eq!(format!("{:?}", verify()), "VerifyCapability(01010101)");
        assert!(verify().check_network(NetworkId::new([3; 32])).is_ok());
        assert!(verify().check_network(NetworkId::new([4; 32])).is_err());
        let typo = text.replacen("ambq", "ambr", 1);
        let error = typo.parse::<VerifyCapability>().expect_err("a typo");
        assert!(error.to_string().contains("a verify capability with a typo"), "{error}");
    }

    #[test]
    fn neither_kind_is_taken_for_the_other() {
        let error = verify().to_string().parse::<Capability>().expect_err("no key to read");
        assert!(error.to_string().contains("can check and repair, not read"), "{error}");
        let error = capability().to_string().parse::<VerifyCapability>().expect_err("too much");
        assert!(error.to_string().contains("this is a read capability"), "{error}");
        // Not even when only the prefix, and the checksum with it, is another.
        let payload = encode(KIND_READ, &[3; 8], capability().root());
        let forged = text::encode(VERIFY_CAPABILITY, &payload);
        assert!(forged.parse::<VerifyCapability>().is_err());
        let payload = encode(KIND_VERIFY, &[3; 8], capability().root());
        assert!(text::encode(READ_CAPABILITY, &payload).parse::<Capability>().is_err());
    }

    #[test]
    fn the_secret_of_a_manifest_is_the_read_capability_s() {
        let secret = data_encoding::HEXLOWER.encode(capability().manifest_secret().as_bytes());
        assert_eq!(secret, "acc5428d59bef480d317f12389a1da8668bb9ce32e6fa39436bc12a981760e0b");
        let mut root = capability().root().clone();
        root.key = ContentKey::new([9; 32]);
        let other = Capability::read(NetworkId::new([3; 32]), root);
        assert!(other.manifest_secret() != capability().manifest_secret());
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(
            payload in prop::collection::vec(any::<u8>(), 0..120),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let _ = text::encode(READ_CAPABILITY, &payload).parse::<Capability>();
            let _ = text::encode(VERIFY_CAPABILITY, &payload).parse::<VerifyCapability>();
            let mut payload = capability().encode();
            for (at, value) in changes {
                let at = at.index(payload.len());
                payload[at] = value;
            }
            // Whatever is read is written the same: each capability has one text.
            if let Ok(read) = Capability::decode(&payload) {
                prop_assert_eq!(read.encode(), &payload[..]);
            }
            payload[1] = KIND_VERIFY;
            let text = text::encode(VERIFY_CAPABILITY, &payload);
            if let Ok(read) = text.parse::<VerifyCapability>() {
                prop_assert_eq!(read.to_string(), text);
            }
        }
    }
}
