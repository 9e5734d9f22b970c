//! What the tests of several modules share.
//!
//! Owns made-up bytes, geometries and nodes. Is not compiled outside tests. The idea: bytes that differ
//! everywhere and are the same in each run.

use std::sync::LazyLock;

use proptest::prelude::*;

use crate::{
    directory::{NodeRecord, NodeState, SignedRecord},
    eviction::{Observation, SignedObservation},
    geometry::Geometry,
    identity::NodeKey,
    ids::{NetworkId, NodeId},
};

/// The network of the made-up nodes.
pub(crate) const NETWORK: NetworkId = NetworkId::new([0x11; 32]);

/// The key of a made-up node. Those of the first hundred are made once: properties ask for them
/// thousands of times.
pub(crate) fn node_key(number: u32) -> NodeKey {
    static FIRST: LazyLock<Vec<NodeKey>> = LazyLock::new(|| (0..100).map(made_up_key).collect());
    FIRST.get(number as usize).cloned().unwrap_or_else(|| made_up_key(number))
}

fn made_up_key(number: u32) -> NodeKey {
    NodeKey::from_seed(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// Its id.
pub(crate) fn node_id(number: u32) -> NodeId {
    node_key(number).id()
}

/// Its record: active, with 1 TiB.
pub(crate) fn node_record(number: u32, seq: u64, zone: &str) -> NodeRecord {
    NodeRecord {
        network: NETWORK,
        node: node_id(number),
        seq,
        addresses: vec!["192.0.2.1:7400".parse().expect("an address")],
        grpc: vec![],
        relays: vec![],
        zone: zone.to_owned(),
        capacity_bytes: 1 << 40,
        state: NodeState::Active,
        version: "0.1.0".into(),
    }
}

/// The same, signed.
pub(crate) fn signed_record(number: u32, seq: u64, zone: &str) -> SignedRecord {
    SignedRecord::sign(node_record(number, seq, zone), &node_key(number)).expect("a record")
}

/// What a made-up node says of another's record `seq` at a time.
pub(crate) fn observed(observer: u32, subject: u32, seq: u64, at: u64) -> SignedObservation {
    let observation = Observation {
        network: NETWORK,
        observer: node_id(observer),
        subject: node_id(subject),
        subject_seq: seq,
        silent_seconds: 14_400,
        observed_at: at,
    };
    SignedObservation::sign(observation, &node_key(observer)).expect("an observation")
}

/// `count` bytes that look random and depend on `seed` only.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; count];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// The geometry written so.
pub(crate) fn geometry(text: &str) -> Geometry {
    text.parse().expect("a geometry")
}

/// Geometries with up to so many data and parity shards.
pub(crate) fn geometries(data: usize, parity: usize) -> impl Strategy<Value = Geometry> {
    (1..=data, 0..=parity)
        .prop_map(|(data, parity)| Geometry::new(data, parity).expect("a geometry"))
}
