//! Messages to core values and back, field by field.
//!
//! Owns every check between the wire and [`copse_core`]: lengths, ranges, signatures. A value that
//! comes out of here is well formed. The one idea: core types know no protobuf, messages know no
//! rules, and they meet only here.

use std::fmt;

use copse_core::{
    descriptor::{DESCRIPTOR_BYTES_MAX, Descriptor},
    directory::{BUCKETS, Directory, SignedRecord},
    eviction::SignedObservation,
    identity::signature_from_slice,
    ids::{ChunkId, NetworkId, NodeId, ShardId, ShardIndex},
    limits::SHARDS_MAX,
    receipt::{ReceiptError, SignedReceipt},
};

use crate::{
    door, peer,
    status::{Reason, Refusal},
};

/// Chunks in one Has request, at most: with their answers they fit a peer message's header, if no node holds
/// more than some 50 shards of each.
pub const HAS_CHUNKS_MAX: usize = 1024;

/// Why a message is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field has the wrong length or no valid value.
    #[error("field {field}: {problem}")]
    Field {
        /// Its name in the .proto file.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A field that must be there is not.
    #[error("field {0} is missing")]
    Missing(&'static str),
}

impl ConvertError {
    /// A field and what is wrong with it.
    pub fn field(field: &'static str, problem: impl ToString) -> Self {
        Self::Field { field, problem: problem.to_string() }
    }
}

impl From<ConvertError> for Refusal {
    fn from(error: ConvertError) -> Self {
        Self::new(Reason::Malformed, error.to_string())
    }
}

/// A chunk's id.
///
/// # Errors
/// When it is not 32 bytes.
pub fn chunk_id(bytes: &[u8]) -> Result<ChunkId, ConvertError> {
    ChunkId::from_slice(bytes).map_err(|error| ConvertError::field("chunk_id", error))
}

/// A node's id.
///
/// # Errors
/// When it is not 32 bytes.
pub fn node_id(bytes: &[u8]) -> Result<NodeId, ConvertError> {
    NodeId::from_slice(bytes).map_err(|error| ConvertError::field("node_id", error))
}

/// A network's id.
///
/// # Errors
/// When it is not 32 bytes.
pub fn network_id(bytes: &[u8]) -> Result<NetworkId, ConvertError> {
    NetworkId::from_slice(bytes).map_err(|error| ConvertError::field("network_id", error))
}

/// The node a request is for; none for the asked node itself.
///
/// # Errors
/// When it is neither empty nor 32 bytes.
pub fn target(bytes: &[u8]) -> Result<Option<NodeId>, ConvertError> {
    match bytes {
        [] => Ok(None),
        _ => NodeId::from_slice(bytes)
            .map(Some)
            .map_err(|error| ConvertError::field("target", error)),
    }
}

/// The field for a request's target; empty for the asked node itself.
pub fn target_field(target: Option<NodeId>) -> Vec<u8> {
    target.map_or_else(Vec::new, |id| id.as_bytes().to_vec())
}

/// A shard's index.
///
/// # Errors
/// When it is over any chunk's last.
pub fn shard_index(index: u32) -> Result<ShardIndex, ConvertError> {
    match u8::try_from(index) {
        Ok(small) if usize::from(small) < SHARDS_MAX => Ok(ShardIndex(small)),
        _ => Err(ConvertError::field(
            "index",
            format_args!("{index} is over the last, {}", SHARDS_MAX - 1),
        )),
    }
}

/// A shard's id from its two fields.
///
/// # Errors
/// When one of them is not valid.
pub fn shard_id(chunk: &[u8], index: u32) -> Result<ShardId, ConvertError> {
    Ok(ShardId { chunk: chunk_id(chunk)?, index: shard_index(index)? })
}

/// Chunks of one MarkChunks request, at most: they fit a peer message's header.
pub const MARK_CHUNKS_MAX: usize = 256;

/// The chunks that are abandoned, and those that are settled, of a MarkChunks request.
///
/// # Errors
/// When there are more than [`MARK_CHUNKS_MAX`] or one is not 32 bytes.
pub fn mark_chunks(
    request: &peer::MarkChunks,
) -> Result<(Vec<ChunkId>, Vec<ChunkId>), ConvertError> {
    let count = request.abandoned.len() + request.settled.len();
    if count > MARK_CHUNKS_MAX {
        let problem = format!("{count} are over the limit of {MARK_CHUNKS_MAX}");
        return Err(ConvertError::Field { field: "abandoned", problem });
    }
    let ids = |all: &[Vec<u8>]| all.iter().map(|id| chunk_id(id)).collect::<Result<Vec<_>, _>>();
    Ok((ids(&request.abandoned)?, ids(&request.settled)?))
}

/// The chunks of a Has request.
///
/// # Errors
/// When there are more than [`HAS_CHUNKS_MAX`] or one is not 32 bytes.
pub fn has_chunks(request: &door::HasRequest) -> Result<Vec<ChunkId>, ConvertError> {
    if request.chunk_ids.len() > HAS_CHUNKS_MAX {
        let problem = format!("{} are over the limit of {HAS_CHUNKS_MAX}", request.chunk_ids.len());
        return Err(ConvertError::Field { field: "chunk_ids", problem });
    }
    request.chunk_ids.iter().map(|id| chunk_id(id)).collect()
}

/// One chunk's part of the answer to Has.
pub fn held(indices: &[ShardIndex], unsettled: bool) -> door::Held {
    let mut indices: Vec<u8> = indices.iter().map(|index| index.0).collect();
    indices.sort_unstable();
    door::Held { indices, unsettled }
}

/// What a node says that it holds of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holding {
    /// The shards.
    pub indices: Vec<ShardIndex>,
    /// All of them came by puts that are not settled.
    pub unsettled: bool,
}

/// The answer to Has about `asked` chunks.
///
/// # Errors
/// When it answers another number of chunks or an index is not valid.
pub fn has_reply(reply: &door::HasReply, asked: usize) -> Result<Vec<Holding>, ConvertError> {
    if reply.held.len() != asked {
        let problem = format!("{} answers to {asked} chunks", reply.held.len());
        return Err(ConvertError::Field { field: "held", problem });
    }
    let holding = |held: &door::Held| {
        let indices = held.indices.iter().map(|&index| shard_index(index.into()));
        Ok(Holding { indices: indices.collect::<Result<_, _>>()?, unsettled: held.unsettled })
    };
    reply.held.iter().map(holding).collect()
}

/// A chunk's descriptor.
///
/// # Errors
/// When it is too long for one or does not decode.
pub fn descriptor(bytes: &[u8]) -> Result<Descriptor, ConvertError> {
    if bytes.len() > DESCRIPTOR_BYTES_MAX {
        let problem = format!("{} bytes are over the limit of {DESCRIPTOR_BYTES_MAX}", bytes.len());
        return Err(ConvertError::Field { field: "descriptor", problem });
    }
    Descriptor::decode(bytes).map_err(|error| ConvertError::field("descriptor", error))
}

/// The shard that a put names: its chunk by the descriptor, and its index, which the chunk must
/// have.
///
/// # Errors
/// When the descriptor or the index is not valid.
pub fn shard_of_descriptor(
    descriptor_bytes: &[u8],
    index: u32,
) -> Result<(ShardId, Descriptor), ConvertError> {
    let descriptor = descriptor(descriptor_bytes)?;
    let index = shard_index(index)?;
    let total = descriptor.geometry().total();
    if index.as_usize() >= total {
        let problem = format!("the chunk has {total} shards, none of index {index}");
        return Err(ConvertError::Field { field: "index", problem });
    }
    Ok((ShardId { chunk: descriptor.id(), index }, descriptor))
}

/// A node's record as it travels.
pub fn signed_record(record: &SignedRecord) -> door::SignedRecord {
    door::SignedRecord {
        record: record.record_bytes().to_vec(),
        signature: record.signature().to_vec(),
    }
}

/// A node's observation as it travels.
pub fn signed_observation(observation: &SignedObservation) -> door::SignedObservation {
    door::SignedObservation {
        observation: observation.observation_bytes(),
        signature: observation.signature().to_vec(),
    }
}

/// (bytes, signature) of each observation, for those who check them.
pub fn unverified_observations(
    observations: &[door::SignedObservation],
) -> impl Iterator<Item = (&[u8], &[u8])> {
    observations.iter().map(|signed| (&signed.observation[..], &signed.signature[..]))
}

/// A node's record, its signature checked.
///
/// # Errors
/// When it is not a record of `network` that its node signed.
pub fn verify_record(
    message: &door::SignedRecord,
    network: NetworkId,
) -> Result<SignedRecord, ConvertError> {
    let signature = signature_from_slice(&message.signature)
        .map_err(|error| ConvertError::field("signature", error))?;
    SignedRecord::verify(&message.record, &signature, network)
        .map_err(|error| ConvertError::field("record", error))
}

/// Takes in what a door or a file lists of a directory, each after its signature was checked. Whether
/// there was any news. What is not genuine is told to `refused` and left out: the rest may be good, and one
/// bad record must not hide a network. The observations count as much: without them, who was evicted would
/// still be on the ring.
pub fn admit(
    directory: &mut Directory,
    list: &door::ListReply,
    refused: impl FnMut(&dyn fmt::Display),
) -> bool {
    let (records, observations) = (&list.records, &list.observations);
    directory.admit_all(unverified(records), unverified_observations(observations), refused)
}

/// Records not yet checked, as [`copse_core::gossip::Gossip`] takes them in.
pub fn unverified(records: &[door::SignedRecord]) -> impl Iterator<Item = (&[u8], &[u8])> {
    records.iter().map(|message| (&message.record[..], &message.signature[..]))
}

/// A receipt as it travels; whether the node waits until the chunk is settled.
pub fn receipt(signed: &SignedReceipt, unsettled: bool) -> door::Receipt {
    let (receipt, signature) = (signed.receipt().encode(), signed.signature().to_vec());
    door::Receipt { receipt, signature, unsettled }
}

/// Checks that this node signed that it has stored this very shard.
///
/// # Errors
/// When it is no receipt that its node signed, or that of another node, shard or length.
pub fn check_receipt(
    message: &door::Receipt,
    network: NetworkId,
    node: NodeId,
    shard: ShardId,
    shard_bytes: usize,
) -> Result<(), ReceiptError> {
    let shard_bytes = u32::try_from(shard_bytes).unwrap_or(u32::MAX);
    SignedReceipt::verify(&message.receipt, &message.signature)?.covers(
        network,
        node,
        shard,
        shard_bytes,
    )
}

/// The digests of a directory as they travel: 8 bytes each, little-endian.
pub fn digests(digests: &[u64; BUCKETS]) -> Vec<u8> {
    digests.iter().flat_map(|digest| digest.to_le_bytes()).collect()
}

/// The digests of a peer's directory.
///
/// # Errors
/// When they are not 256 of 8 bytes.
pub fn digests_of(bytes: &[u8]) -> Result<[u64; BUCKETS], ConvertError> {
    let (digests, rest) = bytes.as_chunks::<8>();
    if digests.len() != BUCKETS || !rest.is_empty() {
        let problem = format!("{} bytes, expected {}", bytes.len(), BUCKETS * 8);
        return Err(ConvertError::Field { field: "digests", problem });
    }
    Ok(core::array::from_fn(|bucket| u64::from_le_bytes(digests[bucket])))
}

#[cfg(test)]
mod tests {
    use copse_core::{
        directory::{NodeRecord, NodeState},
        identity::NodeKey,
        receipt::Receipt,
    };

    use super::*;

    fn key() -> NodeKey {
        NodeKey::from_seed([1; 32])
    }

    #[test]
    fn a_record_comes_back_only_as_its_node_signed_it() {
        let network = NetworkId::new([2; 32]);
        let record = NodeRecord {
            network,
            node: key().id(),
            seq: 1,
            addresses: vec![([127, 0, 0, 1], 7400).into()],
            grpc: Vec::new(),
            relays: Vec::new(),
            zone: "here".to_owned(),
            capacity_bytes: 1,
            state: NodeState::Active,
            version: "1".to_owned(),
        };
        let signed = SignedRecord::sign(record, &key()).expect("a valid record");
        let message = signed_record(&signed);
        let back = verify_record(&message, network).expect("as it was signed");
        assert_eq!(back.record(), signed.record());
        verify_record(&message, NetworkId::new([3; 32])).expect_err("another network");
        let mut bent = message.clone();
        bent.record[50] ^= 1;
        verify_record(&bent, network).expect_err("changed on the way");
        let short = door::SignedRecord { signature: vec![0; 63], ..message };
        verify_record(&short, network).expect_err("a short signature");
    }

    #[test]
    fn a_receipt_counts_only_as_its_node_signed_it() {
        let (network, node) = (NetworkId::new([2; 32]), key().id());
        let shard = ShardId { chunk: ChunkId::new([3; 32]), index: ShardIndex(4) };
        let receipt_of = Receipt { network, node, shard, shard_bytes: 5, stored_at: 6 };
        let mut message = receipt(&SignedReceipt::sign(receipt_of, &key()), true);
        assert_eq!(check_receipt(&message, network, node, shard, 5), Ok(()));
        check_receipt(&message, network, node, shard, 6).expect_err("of another length");
        message.receipt[40] ^= 1;
        check_receipt(&message, network, node, shard, 5).expect_err("changed on the way");
    }

    #[test]
    fn digests_have_one_length() {
        let all = core::array::from_fn(|bucket| bucket as u64 * 3);
        assert_eq!(digests_of(&digests(&all)), Ok(all));
        assert!(digests_of(&digests(&all)[1..]).is_err());
        assert!(digests_of(&[]).is_err());
    }

    #[test]
    fn a_descriptor_is_bounded_and_its_index_checked() {
        descriptor(&vec![0; DESCRIPTOR_BYTES_MAX + 1]).expect_err("too long");
        descriptor(b"CPSD").expect_err("torn");
        let geometry = "2+1".parse().expect("a geometry");
        let hash = copse_core::ids::ShardHash::new([1; 32]);
        let known = Descriptor::new(geometry, 16 << 10, vec![hash; 3]).expect("a descriptor");
        let (id, back) = shard_of_descriptor(&known.encode(), 2).expect("index 2 of 3");
        assert_eq!((id.chunk, back), (known.id(), known.clone()));
        shard_of_descriptor(&known.encode(), 3).expect_err("index 3 of 3");
    }

    #[test]
    fn ids_of_wrong_length_are_refused_with_their_field() {
        let error = shard_id(&[1; 31], 0).expect_err("31 bytes are no id");
        assert!(error.to_string().contains("chunk_id"), "{error}");
        let error = shard_id(&[1; 32], 255).expect_err("255 is no index");
        assert!(error.to_string().contains("254"), "{error}");
        assert_eq!(Refusal::from(error).reason(), Reason::Malformed);
        assert_eq!(shard_id(&[1; 32], 254).map(|id| id.index), Ok(ShardIndex(254)));
    }

    #[test]
    fn an_empty_target_is_the_asked_node() {
        let id = NodeId::new([7; 32]);
        assert_eq!(target(&[]), Ok(None));
        assert_eq!(target(&target_field(Some(id))), Ok(Some(id)));
        assert!(target(&[1]).is_err());
        assert!(target_field(None).is_empty());
    }

    #[test]
    fn has_is_bounded_and_answers_each_chunk() {
        let request =
            |count| door::HasRequest { target: Vec::new(), chunk_ids: vec![vec![0; 32]; count] };
        assert_eq!(has_chunks(&request(HAS_CHUNKS_MAX)).map(|all| all.len()), Ok(HAS_CHUNKS_MAX));
        assert!(has_chunks(&request(HAS_CHUNKS_MAX + 1)).is_err());
        let reply = door::HasReply { held: vec![held(&[ShardIndex(3), ShardIndex(1)], true)] };
        let holding = Holding { indices: vec![ShardIndex(1), ShardIndex(3)], unsettled: true };
        assert_eq!(has_reply(&reply, 1), Ok(vec![holding]));
        assert!(has_reply(&reply, 2).is_err());
    }
}
