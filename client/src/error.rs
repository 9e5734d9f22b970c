//! What can go wrong between a client and a network, told so that a person can act on it.
//!
//! Owns one error for each operation: reaching a network, storing a chunk, reading a chunk. Each
//! names the chunk, what is there and what is needed, and the nodes with their reasons.

use std::fmt;

use copse_core::{
    capability::OtherNetworkError,
    geometry::Geometry,
    ids::{ChunkId, NetworkId, NodeId},
    layout::LayoutError,
    seal::OpenError,
    tree,
    units::{counted, one_or},
    wire::WireError,
};
use copse_proto::status::{Reason, Refusal};

/// Nodes named for one reason, and reasons named, in a message; the rest is counted.
const NODES_SHOWN: usize = 4;

/// Nodes and why each did not do what it was asked. Printed by reason: of many full nodes one says
/// what all of them say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals(pub Vec<(NodeId, Refusal)>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no node was asked");
        }
        let mut reasons: Vec<(&Refusal, Vec<NodeId>)> = Vec::new();
        for (node, refusal) in &self.0 {
            match reasons.iter_mut().find(|(first, _)| first.reason() == refusal.reason()) {
                Some((_, nodes)) => nodes.push(*node),
                None => reasons.push((refusal, vec![*node])),
            }
        }
        for (at, (refusal, nodes)) in reasons.iter().take(NODES_SHOWN).enumerate() {
            let named: Vec<_> = nodes.iter().take(NODES_SHOWN).map(NodeId::short).collect();
            write!(
                f,
                "{}node{} {}{}: {} ({})",
                if at == 0 { "" } else { "; " },
                if nodes.len() == 1 { "" } else { "s" },
                named.join(", "),
                if nodes.len() > named.len() { ", ..." } else { "" },
                without_node(refusal.message(), &nodes[0]),
                refusal.reason()
            )?;
        }
        Ok(())
    }
}

impl Refusals {
    /// Whether any node refused for this reason.
    pub fn any(&self, reason: Reason) -> bool {
        self.0.iter().any(|(_, refusal)| refusal.reason() == reason)
    }
}

/// A node's sentence without the node, which is named in front of it.
pub(crate) fn without_node<'a>(message: &'a str, node: &NodeId) -> &'a str {
    let Some(rest) = message.strip_prefix("node ") else { return message };
    let rest = rest.strip_prefix(&node.to_string()).or_else(|| rest.strip_prefix(&node.short()));
    rest.map_or(message, |rest| rest.trim_start_matches([':', ' ']))
}

/// A network that could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetworkError {
    /// No door answered.
    #[error(
        "no node of network {} can be reached ({}); check that this machine is online and the nodes \
         are running, or join again with a fresh token", .network.short(), Refusals(.refused.clone())
    )]
    Unreachable {
        /// The network.
        network: NetworkId,
        /// The doors tried.
        refused: Vec<(NodeId, Refusal)>,
    },
}

/// A chunk that could not be stored safely.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    /// Fewer distinct shards than the write quorum are on disk.
    #[error(
        "chunk {}: only {have} of its {total} shards could be stored so that they count, {need} are needed \
         before it is safe ({refusals}); start or free nodes and run the same command again, nothing that is \
         stored is sent twice", .chunk.short()
    )]
    Quorum {
        /// The chunk.
        chunk: ChunkId,
        /// Distinct shards on disk, of those on one node no more than count (w−k).
        have: usize,
        /// The write quorum.
        need: usize,
        /// All shards of the chunk.
        total: usize,
        /// Which nodes refused, and why.
        refusals: Refusals,
    },
    /// The network, as far as it is known, is so small that the loss of one node would lose the chunk.
    #[error(
        "chunk {}: nodes that this client knows: {nodes}; with {geometry} on so few the loss of one would \
         lose it; wait until the others can be reached and run the same command again, or start more nodes",
        .chunk.short()
    )]
    Fragile {
        /// The chunk.
        chunk: ChunkId,
        /// Its code.
        geometry: Geometry,
        /// Nodes on the ring that this client knows.
        nodes: usize,
    },
    /// The directory has no node that takes shards.
    #[error("the network has no active nodes; start some, or join another network")]
    NoNodes,
    /// The session takes no more, or its background tasks are gone: the program is shutting down.
    #[error("the upload was stopped before chunk {} was safe", .0.short())]
    Stopped(ChunkId),
}

/// Plaintext or a body that could not be made into a chunk.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EncodeError {
    /// It does not fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The thread that encoded it died.
    #[error("a chunk could not be encoded: its thread stopped; this is a fault of this program")]
    Thread,
}

/// A range that could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GetError {
    /// Too few shards are left, or can be reached now.
    #[error(
        "have {have} of the {need} shards needed of chunk {}; {}", .chunk.short(), DataLossAdvice(.unreachable, .refusals)
    )]
    DataLoss {
        /// The chunk.
        chunk: ChunkId,
        /// Distinct good shards found.
        have: usize,
        /// How many are needed.
        need: usize,
        /// Nodes that may hold more but could not be asked.
        unreachable: usize,
        /// What the nodes said.
        refusals: Refusals,
    },
    /// The range is not in the item.
    #[error("bytes {start} to {end} are outside an item of {length} bytes")]
    OutOfRange {
        /// First byte asked for.
        start: usize,
        /// Behind the last.
        end: usize,
        /// How long the item is.
        length: usize,
    },
    /// The shards are what the chunk id says, but the key does not open them: the reference is
    /// false, not the data.
    #[error(
        "chunk {} does not open with the key of its reference: the capability or the tree that \
         names it is damaged", .chunk.short()
    )]
    Open {
        /// The chunk.
        chunk: ChunkId,
        /// What the cipher says.
        #[source]
        source: OpenError,
    },
    /// The reference does not describe the chunk that its id names.
    #[error("a reference to chunk {} is false: {what}", .chunk.short())]
    Reference {
        /// The chunk.
        chunk: ChunkId,
        /// What does not fit.
        what: &'static str,
    },
    /// The directory has no nodes.
    #[error("the network has no nodes; start some, or join another network")]
    NoNodes,
    /// A thread that decoded died.
    #[error("a chunk could not be decoded: its thread stopped; this is a fault of this program")]
    Thread,
}

struct DataLossAdvice<'a>(&'a usize, &'a Refusals);

impl fmt::Display for DataLossAdvice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str(
                "every node that may hold more has answered: they come back only with a node that has left, was \
                 given up or set them aside as damaged; if you have another copy, put it again",
            )?,
            n => write!(
                f,
                "{} that may hold more did not answer: try again when {} back",
                counted(*n as u64, "node"),
                one_or(*n as u64, "it is", "they are")
            )?,
        }
        if self.1.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.1) }
    }
}

impl GetError {
    /// Whether another try may succeed when more nodes answer. Not so when all that may hold what is missing
    /// have answered, or when what was stored is damaged.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::DataLoss { unreachable, .. } => *unreachable > 0,
            Self::NoNodes | Self::Thread => true,
            Self::OutOfRange { .. } | Self::Open { .. } | Self::Reference { .. } => false,
        }
    }
}

/// A file, directory or link that could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Its data could not be had.
    #[error(transparent)]
    Get(#[from] GetError),
    /// It is not there, is something else than was asked for, or the tree is damaged.
    #[error(transparent)]
    Tree(#[from] tree::ReadError),
    /// The tree is in another network.
    #[error(transparent)]
    Network(#[from] OtherNetworkError),
    /// What a verify capability names is no list of chunks.
    #[error("the capability is false: what it names is no list of chunks ({0})")]
    Manifest(#[from] WireError),
    /// Directories in directories without an end in sight.
    #[error(
        "directories lie more than {depth} deep in each other; read a part of them by its path"
    )]
    TooDeep {
        /// How deep one may be.
        depth: usize,
    },
    /// The program is shutting down.
    #[error("the reading was stopped")]
    Stopped,
}

impl ReadError {
    /// Whether another try may succeed, see [`GetError::may_pass`].
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Get(error) => error.may_pass(),
            Self::Stopped => true,
            Self::Tree(_) | Self::Network(_) | Self::Manifest(_) | Self::TooDeep { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_says_whether_waiting_helps() {
        let loss = |unreachable| GetError::DataLoss {
            chunk: ChunkId::new([1; 32]),
            have: 2,
            need: 3,
            unreachable,
            refusals: Refusals::default(),
        };
        for (unreachable, may_pass, words) in [
            (0, false, "every node that may hold more has answered"),
            (1, true, "1 node that may hold more did not answer: try again when it is back"),
            (2, true, "2 nodes that may hold more did not answer: try again when they are back"),
        ] {
            let loss = loss(unreachable);
            assert!(
                loss.to_string().starts_with("have 2 of the 3 shards needed of chunk 01010101; ")
            );
            assert!(loss.to_string().contains(words), "{loss}");
            assert_eq!(loss.may_pass(), may_pass);
        }
    }

    #[test]
    fn nodes_that_refuse_for_one_reason_are_told_together() {
        let node = |byte| NodeId::new([byte; 32]);
        let full = |byte: u8| {
            let message = format!("node {}: the disk is full", node(byte).short());
            (node(byte), Refusal::new(Reason::StoreFull, message))
        };
        let away = format!("node {} cannot be reached: no answer within 5s", node(9));
        let mut refusals: Vec<_> = (0..6).map(full).collect();
        refusals.push((node(9), Refusal::new(Reason::NodeUnreachable, away)));
        assert_eq!(
            Refusals(refusals).to_string(),
            "nodes 00000000, 01010101, 02020202, 03030303, ...: the disk is full (STORE_FULL); \
             node 09090909: cannot be reached: no answer within 5s (NODE_UNREACHABLE)"
        );
        assert_eq!(Refusals::default().to_string(), "no node was asked");
    }
}
