//! The receipt: a node's signed word that a shard is on its disk.
//!
//! Owns its bytes and their check. A receipt is given after fsync and never before; it says
//! nothing about how long the node will keep its word.
//!
//! ```text
//! "CPSR" | version 1 u8 | network id 32 | node id 32 | chunk id 32 | index u8
//!        | shard bytes u32 LE | stored at u64 LE (seconds since 1970)
//! signature = Ed25519("copse receipt v1\0" ‖ bytes)
//! ```

use crate::{
    identity::{self, NodeKey, SIGNATURE_BYTES, SignatureError},
    ids::{ChunkId, NetworkId, NodeId, ShardId, ShardIndex},
    wire::{Reader, WireError, Writer},
};

const MAGIC: &[u8; 4] = b"CPSR";
const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"copse receipt v1\0";

/// What a node says about one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The network.
    pub network: NetworkId,
    /// The node that has the shard.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// Its length in bytes.
    pub shard_bytes: u32,
    /// When it was on disk, in seconds since 1970 by the node's clock.
    pub stored_at: u64,
}

/// A receipt and its node's signature, which was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedReceipt {
    receipt: Receipt,
    signature: [u8; SIGNATURE_BYTES],
}

/// A receipt that does not count: the shard is not stored as far as anyone can prove.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// The bytes are not a receipt's.
    #[error("the receipt cannot be read: {0}")]
    Format(#[from] WireError),
    /// Not signed by the node it names.
    #[error("the receipt is not genuine: {0}")]
    Signature(#[from] SignatureError),
    /// It speaks of something else than what was asked for.
    #[error("the receipt is for another {what}: expected {expected}, got {got}; do not count it")]
    Other {
        /// The field that differs.
        what: &'static str,
        /// What was sent.
        expected: String,
        /// What the receipt says.
        got: String,
    },
}

fn same<T: PartialEq + ToString>(
    what: &'static str,
    expected: T,
    got: T,
) -> Result<(), ReceiptError> {
    if expected == got {
        return Ok(());
    }
    Err(ReceiptError::Other { what, expected: expected.to_string(), got: got.to_string() })
}

impl Receipt {
    /// The bytes that are signed.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .bytes(MAGIC)
            .u8(VERSION)
            .bytes(self.network.as_bytes())
            .bytes(self.node.as_bytes())
            .bytes(self.shard.chunk.as_bytes())
            .u8(self.shard.index.0)
            .u32(self.shard_bytes)
            .u64(self.stored_at);
        writer.finish()
    }

    /// Reads the bytes of a receipt. Proves nothing: see [`SignedReceipt::verify`].
    ///
    /// # Errors
    /// When the bytes are not a receipt's.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.magic("a receipt", MAGIC, VERSION)?;
        let receipt = Self {
            network: NetworkId::new(reader.array()?),
            node: NodeId::new(reader.array()?),
            shard: ShardId {
                chunk: ChunkId::new(reader.array()?),
                index: ShardIndex(reader.u8()?),
            },
            shard_bytes: reader.u32()?,
            stored_at: reader.u64()?,
        };
        reader.end()?;
        Ok(receipt)
    }
}

impl SignedReceipt {
    /// Signs a receipt.
    ///
    /// # Panics
    /// When the receipt names another node than the key's: a node only speaks for itself.
    pub fn sign(receipt: Receipt, key: &NodeKey) -> Self {
        assert_eq!(receipt.node, key.id(), "a receipt is signed by the node that it names");
        Self { receipt, signature: key.sign(&[DOMAIN, &receipt.encode()].concat()) }
    }

    /// Reads a receipt and checks that the node it names signed it.
    ///
    /// # Errors
    /// When the bytes are not a receipt's or the signature does not fit.
    pub fn verify(bytes: &[u8], signature: &[u8]) -> Result<Self, ReceiptError> {
        let receipt = Receipt::decode(bytes)?;
        let signature = identity::signature_from_slice(signature)?;
        identity::verify(receipt.node, &[DOMAIN, bytes].concat(), &signature)?;
        Ok(Self { receipt, signature })
    }

    /// Checks that the receipt is from this node for this shard, and not an older one's or a
    /// neighbour's.
    ///
    /// # Errors
    /// When any of them differs.
    pub fn covers(
        &self,
        network: NetworkId,
        node: NodeId,
        shard: ShardId,
        shard_bytes: u32,
    ) -> Result<(), ReceiptError> {
        let receipt = &self.receipt;
        same("network", network, receipt.network)?;
        same("node", node, receipt.node)?;
        same("chunk", shard.chunk, receipt.shard.chunk)?;
        same("shard index", shard.index, receipt.shard.index)?;
        same("shard length", shard_bytes, receipt.shard_bytes)
    }

    /// What the node says.
    pub const fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// The signature over its bytes.
    pub const fn signature(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.signature
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn key() -> NodeKey {
        NodeKey::from_seed([1; 32])
    }

    fn receipt() -> Receipt {
        Receipt {
            network: NetworkId::new([0x11; 32]),
            node: key().id(),
            shard: ShardId { chunk: ChunkId::new([0x33; 32]), index: ShardIndex(15) },
            shard_bytes: 786_624,
            stored_at: 1_800_000_000,
        }
    }

    #[test]
    fn the_bytes_of_a_receipt() {
        let expected = [
            "43505352",
            "01",
            &"11".repeat(32),
            &key().id().to_string(),
            &"33".repeat(32),
            "0f",
            "c0000c00",
            "00d2496b00000000",
        ];
        assert_eq!(HEXLOWER.encode(&receipt().encode()), expected.concat());
        let signed = SignedReceipt::sign(receipt(), &key());
        assert_eq!(
            HEXLOWER.encode(signed.signature()),
            "d5960be416d42334b0eb9e5b2c045c46b013c2131a00657601a8d205671b1298ff2ffe73fdc5c118d51d07e9e45ee47c44856536bd44911ce292e96705519d06"
        );
    }

    #[test]
    fn a_signed_receipt_comes_back() {
        let signed = SignedReceipt::sign(receipt(), &key());
        let back = SignedReceipt::verify(&receipt().encode(), signed.signature());
        assert_eq!(back, Ok(signed));
    }

    #[test]
    fn a_receipt_for_something_else_does_not_count() {
        let signed = SignedReceipt::sign(receipt(), &key());
        let Receipt { network, node, shard, shard_bytes, .. } = receipt();
        assert_eq!(signed.covers(network, node, shard, shard_bytes), Ok(()));
        let neighbour = ShardId { index: ShardIndex(14), ..shard };
        let error = signed.covers(network, node, neighbour, shard_bytes).expect_err("index 14");
        assert_eq!(
            error.to_string(),
            "the receipt is for another shard index: expected 14, got 15; do not count it"
        );
        assert!(signed.covers(NetworkId::new([0; 32]), node, shard, shard_bytes).is_err());
        assert!(signed.covers(network, NodeId::new([0; 32]), shard, shard_bytes).is_err());
        assert!(signed.covers(network, node, shard, 1).is_err());
    }

    #[test]
    fn a_signature_for_another_purpose_is_no_receipt() {
        let bytes = receipt().encode();
        let signature = key().sign(&[b"copse node record v1\0", &bytes[..]].concat());
        assert!(matches!(
            SignedReceipt::verify(&bytes, &signature),
            Err(ReceiptError::Signature(SignatureError::Mismatch(_)))
        ));
        assert_eq!(
            SignedReceipt::verify(&bytes, &signature[1..]),
            Err(ReceiptError::Signature(SignatureError::Length(63)))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(tail in prop::collection::vec(any::<u8>(), 100..120)) {
            let bytes = [&b"CPSR\x01"[..], &tail].concat();
            if let Ok(receipt) = Receipt::decode(&bytes) {
                prop_assert_eq!(receipt.encode(), bytes);
            }
        }
    }
}
