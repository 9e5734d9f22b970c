//! What can go wrong between a client and a network, told so that a person can act on it.
//!
//! Owns one error for each operation: reaching a network, storing a chunk, reading a chunk. Each
//! names the chunk, what is there and what is needed, and the nodes with their reasons.

use std::{cmp::Reverse, fmt, net::SocketAddr};

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

/// Nodes named for one reason in a message; the rest is counted.
const NODES_SHOWN: usize = 4;

/// Reasons named in a message: those of most nodes. The nodes that have others are counted.
const REASONS_SHOWN: usize = 3;

/// Nodes and why each did not do what it was asked. Printed by reason, so that many full nodes say it once: of
/// several no more is told than is true of all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals(pub Vec<(NodeId, Refusal)>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no node was asked");
        }
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (node, refusal) in &self.0 {
            let own = told(node, refusal);
            let shared = without_particulars(&own);
            let is_same =
                |group: &&mut Group<'_>| group.reason == refusal.reason() && group.shared == shared;
            match groups.iter_mut().find(is_same) {
                Some(group) => {
                    group.nodes.push(node);
                    group.is_one_word &= group.first == own;
                }
                None => groups.push(Group {
                    reason: refusal.reason(),
                    nodes: vec![node],
                    first: own,
                    shared,
                    is_one_word: true,
                }),
            }
        }
        groups.sort_by_key(|group| Reverse(group.nodes.len()));
        for (at, group) in groups.iter().take(REASONS_SHOWN).enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{group}")?;
        }
        match groups.iter().skip(REASONS_SHOWN).map(|group| group.nodes.len() as u64).sum::<u64>() {
            0 => Ok(()),
            others => write!(f, "; and {} for other reasons", counted(others, "node")),
        }
    }
}

/// Nodes that say the same, but for particulars.
struct Group<'a> {
    reason: Reason,
    nodes: Vec<&'a NodeId>,
    /// What the first of them said.
    first: String,
    /// What is true of all.
    shared: String,
    /// Whether all said it in the same words.
    is_one_word: bool,
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.nodes.iter().take(NODES_SHOWN).map(|node| node.short()).collect();
        let more = self.nodes.len() - named.len();
        write!(
            f,
            "node{} {}{}: {} ({})",
            if self.nodes.len() == 1 { "" } else { "s" },
            named.join(", "),
            if more > 0 { format!(" and {more} more") } else { String::new() },
            if self.is_one_word { &self.first } else { &self.shared },
            self.reason
        )
    }
}

/// What a node said, for a person who reads it when all is over: when it will be tried next is for who goes on,
/// and what to do with its shard for programs.
fn told(node: &NodeId, refusal: &Refusal) -> String {
    if refusal.reason() == Reason::ShardDamaged {
        return "what it held of it is damaged".to_owned();
    }
    let said = without_node(refusal.message(), node);
    match said.split_once("; next try in ") {
        Some((said, _)) => said.to_owned(),
        None => said.to_owned(),
    }
}

/// Words that may be true of other nodes: without addresses, and without figures in brackets.
fn without_particulars(said: &str) -> String {
    let mut rest = said;
    let mut kept = String::new();
    while let Some((before, behind)) = rest.split_once('(') {
        let Some((inside, after)) = behind.split_once(')') else { break };
        if inside.contains(|c: char| c.is_ascii_digit()) {
            kept += before.trim_end();
        } else {
            kept += &format!("{before}({inside})");
        }
        rest = after;
    }
    kept += rest;
    let is_address = |word: &&str| word.trim_end_matches([':', ',']).parse::<SocketAddr>().is_ok();
    kept.split(' ').filter(|word| !is_address(word)).collect::<Vec<_>>().join(" ")
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
        "chunk {}: {have} of its {} could be stored so as to count, and {need} must be before it is safe \
         ({refusals}); start or free nodes and run the same command again, nothing that is stored is sent twice",
        .chunk.short(), counted(*.total as u64, "shard")
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
    /// What nodes said, as it stands in brackets at the end of the message.
    pub fn nodes(&self) -> Option<String> {
        match self {
            Self::Get(GetError::DataLoss { refusals, .. }) if !refusals.0.is_empty() => {
                Some(refusals.to_string())
            }
            _ => None,
        }
    }

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
            "nodes 00000000, 01010101, 02020202, 03030303 and 2 more: the disk is full (STORE_FULL); \
             node 09090909: cannot be reached: no answer within 5s (NODE_UNREACHABLE)"
        );
        assert_eq!(Refusals::default().to_string(), "no node was asked");
    }
    #[test]
    fn no_node_is_given_the_reason_of_another() {
        let said = |all: &[(u8, Reason, &str)]| {
            let refusal = |(byte, reason, words): &(u8, Reason, &str)| {
                (NodeId::new([*byte; 32]), Refusal::new(*reason, (*words).to_owned()))
            };
            Refusals(all.iter().map(refusal).collect()).to_string()
        };
        let gone = |port: u16| {
            format!("could not be reached: 127.0.0.1:{port}: no answer within 5s; next try in 4 s")
        };
        let (one, two) = (gone(9501), gone(9506));
        use Reason::{NodeUnreachable, Overloaded, ShardDamaged, StoreFailed, StoreFull};
        assert_eq!(
            said(&[(1, NodeUnreachable, &one), (2, NodeUnreachable, &two)]),
            "nodes 01010101, 02020202: could not be reached: no answer within 5s (NODE_UNREACHABLE)"
        );
        assert_eq!(
            said(&[(1, NodeUnreachable, &one)]),
            "node 01010101: could not be reached: 127.0.0.1:9501: no answer within 5s (NODE_UNREACHABLE)"
        );
        let full = |why: &str, used: u32| {
            format!("it is full: {why} (its shards take {used} B of 10.0 GiB); make room")
        };
        let (reserve, small, large) =
            (full("no reserve", 0), full("used up", 5), full("used up", 7));
        assert_eq!(
            said(&[(1, StoreFull, &reserve), (2, StoreFull, &small), (3, StoreFull, &large)]),
            "nodes 02020202, 03030303: it is full: used up; make room (STORE_FULL); \
             node 01010101: it is full: no reserve (its shards take 0 B of 10.0 GiB); make room (STORE_FULL)"
        );
        let damaged = |index: u8| {
            format!(
                "shard 04228f41/{index} is damaged on this disk; read another shard and put this one again"
            )
        };
        let (first, second) = (damaged(0), damaged(1));
        assert_eq!(
            said(&[(1, ShardDamaged, &first), (2, ShardDamaged, &second)]),
            "nodes 01010101, 02020202: what it held of it is damaged (SHARD_DAMAGED)"
        );
        let many = said(&[
            (1, NodeUnreachable, "a"),
            (2, Overloaded, "b"),
            (3, StoreFailed, "c"),
            (4, StoreFailed, "d"),
            (5, StoreFailed, "d"),
        ]);
        assert!(
            many.starts_with("nodes 04040404, 05050505: d (STORE_FAILED); node 01010101"),
            "{many}"
        );
        assert!(many.ends_with("; and 1 node for other reasons"), "{many}");
    }

    #[test]
    fn what_could_be_stored_of_a_chunk_is_told_in_any_number() {
        let said = |have, need, total| {
            let (chunk, refusals) = (ChunkId::new([1; 32]), Refusals::default());
            PutError::Quorum { chunk, have, need, total, refusals }.to_string()
        };
        for (said, words) in [
            (said(0, 1, 1), "0 of its 1 shard could be stored so as to count, and 1 must be"),
            (said(1, 3, 4), "1 of its 4 shards could be stored so as to count, and 3 must be"),
        ] {
            assert!(said.contains(words), "{said}");
        }
    }
}
