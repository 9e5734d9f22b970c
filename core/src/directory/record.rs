//! The record: what a node says about itself, and its signature.
//!
//! Owns the record's bytes and their check. Refuses to compare it with anything else that is known.
//! The one idea: only the node itself can sign its record, so anyone may pass it on.
//!
//! ```text
//! record = "CPSN" | version 1 u8 | network id 32 | node id 32 | seq u64 LE
//!        | QUIC addresses | gRPC addresses | relays: count varint, then 32 each
//!        | zone: length varint, UTF-8 | capacity in bytes u64 LE | state u8 | software version
//! address list = count varint, then per address: 4 or 6 u8 | ip 4 or 16 | port u16 LE
//! state = 1 active, 2 leaving, 3 left
//! signature = Ed25519("copse node record v1\0" ‖ record)
//! ```

use core::net::SocketAddr;
use std::sync::Arc;

use crate::{
    addresses,
    identity::{self, NodeKey, SIGNATURE_BYTES, SignatureError},
    ids::{NetworkId, NodeId},
    limits::{ADDRESSES_MAX, ZONE_BYTES_MAX},
    wire::{Reader, WireError, Writer},
};

const MAGIC: &[u8; 4] = b"CPSN";
const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"copse node record v1\0";

/// The text of a software version, in bytes: "1.22.333-alpha.4+commit" fits.
pub const VERSION_BYTES_MAX: usize = 32;

/// What a node says about its own membership.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NodeState {
    /// Stores and serves.
    Active,
    /// Serves, takes nothing new and hands its shards over.
    Leaving,
    /// Gone for good; the record remains so that an older one cannot bring it back.
    Left,
}

impl NodeState {
    const fn code(self) -> u8 {
        match self {
            Self::Active => 1,
            Self::Leaving => 2,
            Self::Left => 3,
        }
    }
}

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The network it belongs to.
    pub network: NetworkId,
    /// Its public key.
    pub node: NodeId,
    /// Grows with every change; of two records of a node the larger one counts.
    pub seq: u64,
    /// Where it speaks QUIC to other nodes.
    pub addresses: Vec<SocketAddr>,
    /// Where it speaks gRPC to clients.
    pub grpc: Vec<SocketAddr>,
    /// Nodes through which it can be reached when it cannot be dialled.
    pub relays: Vec<NodeId>,
    /// What fails together (a house, a provider); empty: the node is a zone of its own.
    pub zone: String,
    /// How many bytes of shards it offers to hold.
    pub capacity_bytes: u64,
    /// Whether it takes part.
    pub state: NodeState,
    /// The version of its program, for people.
    pub version: String,
}

/// A record that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are not a record's.
    #[error("the node record cannot be read: {0}")]
    Format(#[from] WireError),
    /// Not signed by the node it names.
    #[error("the node record is not genuine: {0}")]
    Signature(#[from] SignatureError),
    /// A node of another network.
    #[error(
        "node {node} belongs to network {got}, not to {expected}: use a join token of this one"
    )]
    OtherNetwork {
        /// The node.
        node: NodeId,
        /// Our network.
        expected: NetworkId,
        /// Its network.
        got: NetworkId,
    },
    /// The record names another node than the key that should sign it.
    #[error("a record of node {record} cannot be signed with the key of node {key}")]
    OtherKey {
        /// Whom the record names.
        record: NodeId,
        /// Whose key it is.
        key: NodeId,
    },
}

fn plain(what: &'static str, bytes: &[u8]) -> Result<String, WireError> {
    // It is printed in tables and logs of other people's machines.
    match core::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(WireError::Invalid(what)),
    }
}

impl NodeRecord {
    /// The bytes that are signed.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .bytes(MAGIC)
            .u8(VERSION)
            .bytes(self.network.as_bytes())
            .bytes(self.node.as_bytes())
            .u64(self.seq);
        addresses::write(&mut writer, &self.addresses);
        addresses::write(&mut writer, &self.grpc);
        writer.varint(self.relays.len() as u64);
        for relay in &self.relays {
            writer.bytes(relay.as_bytes());
        }
        writer
            .prefixed(self.zone.as_bytes())
            .u64(self.capacity_bytes)
            .u8(self.state.code())
            .prefixed(self.version.as_bytes());
        writer.finish()
    }

    /// Reads the bytes of a record. Proves nothing: see [`SignedRecord::verify`].
    ///
    /// # Errors
    /// When the bytes are not a record's, or a list or text in it is over its limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.magic("a node record", MAGIC, VERSION)?;
        let network = NetworkId::new(reader.array()?);
        let node = NodeId::new(reader.array()?);
        let seq = reader.u64()?;
        let addresses = addresses::read(&mut reader)?;
        let grpc = addresses::read(&mut reader)?;
        let relays = reader.bounded("the number of relays", ADDRESSES_MAX as u64)?;
        let relays = (0..relays)
            .map(|_| reader.array().map(NodeId::new))
            .collect::<Result<Vec<_>, WireError>>()?;
        let zone = plain("the zone's name", reader.prefixed("the zone's name", ZONE_BYTES_MAX)?)?;
        let capacity_bytes = reader.u64()?;
        let state = match reader.u8()? {
            1 => NodeState::Active,
            2 => NodeState::Leaving,
            3 => NodeState::Left,
            _ => return Err(WireError::Invalid("the state of a node")),
        };
        let version = reader.prefixed("the software version", VERSION_BYTES_MAX)?;
        let version = plain("the software version", version)?;
        reader.end()?;
        Ok(Self {
            network,
            node,
            seq,
            addresses,
            grpc,
            relays,
            zone,
            capacity_bytes,
            state,
            version,
        })
    }
}

/// A record and its node's signature, which was checked. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRecord(Arc<Signed>);

#[derive(Debug, PartialEq, Eq)]
struct Signed {
    record: NodeRecord,
    bytes: Vec<u8>,
    /// BLAKE3 of the bytes, for the digests.
    hash: blake3::Hash,
    signature: [u8; SIGNATURE_BYTES],
}

impl SignedRecord {
    /// Signs a record.
    ///
    /// # Errors
    /// When it names another node than the key's, or a list or text in it is over its limit.
    pub fn sign(record: NodeRecord, key: &NodeKey) -> Result<Self, RecordError> {
        if record.node != key.id() {
            return Err(RecordError::OtherKey { record: record.node, key: key.id() });
        }
        let bytes = record.encode();
        // What others will read: without IPv6 scopes, and within the limits.
        let record = NodeRecord::decode(&bytes)?;
        let signature = key.sign(&[DOMAIN, &bytes].concat());
        Ok(Self::new(record, bytes, signature))
    }

    /// Reads a record and checks that the node it names signed it, for this network.
    ///
    /// # Errors
    /// When any of that does not hold.
    pub fn verify(
        bytes: &[u8],
        signature: &[u8; SIGNATURE_BYTES],
        network: NetworkId,
    ) -> Result<Self, RecordError> {
        let record = NodeRecord::decode(bytes)?;
        if record.network != network {
            return Err(RecordError::OtherNetwork {
                node: record.node,
                expected: network,
                got: record.network,
            });
        }
        identity::verify(record.node, &[DOMAIN, bytes].concat(), signature)?;
        Ok(Self::new(record, bytes.to_vec(), *signature))
    }

    fn new(record: NodeRecord, bytes: Vec<u8>, signature: [u8; SIGNATURE_BYTES]) -> Self {
        Self(Arc::new(Signed { record, hash: blake3::hash(&bytes), bytes, signature }))
    }

    /// What the node says.
    pub fn record(&self) -> &NodeRecord {
        &self.0.record
    }

    /// The signed bytes.
    pub fn record_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The signature over them.
    pub fn signature(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.0.signature
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.0.record.node
    }

    /// BLAKE3 of the signed bytes.
    pub(super) fn hash(&self) -> &blake3::Hash {
        &self.0.hash
    }

    /// What decides between two records of a node. A node that signs two records with one number
    /// is at fault, but all must still choose the same one.
    pub(super) fn rank(&self) -> (u64, &[u8]) {
        (self.0.record.seq, &self.0.bytes)
    }
}
