//! What the planner is told: of each node what we think of it, of a chunk who says to hold what.
//!
//! Owns these values and nothing else: how they are found out is the node's business. The one idea:
//! a plan depends on nothing but these, the ring and the policy.

use core::{fmt, time::Duration};
use std::collections::BTreeMap;

use crate::{
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardIndex},
};

/// How a node stands in our eyes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Standing {
    /// Answers.
    Alive,
    /// Has not answered for seconds. Its shards count, it may be asked, it may be given its own.
    Suspect,
    /// Has not answered for minutes. Its shards count as present unless the chunk is thin; it
    /// cannot be asked for them and gets nothing.
    Down,
    /// Evicted: what it held is lost.
    Dead,
    /// Answers, but wants to go: its shards count and can be read, and have to be elsewhere soon.
    /// A leaving node that does not answer is [`Down`](Self::Down).
    Leaving,
    /// Gone for good, by its own word.
    Left,
    /// The directory has no record of it: it cannot be reached. Of a node with a record that was
    /// not looked at yet, say [`Suspect`](Self::Suspect).
    Unknown,
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Alive,
        Self::Suspect,
        Self::Down,
        Self::Dead,
        Self::Leaving,
        Self::Left,
        Self::Unknown,
    ];

    /// The word, as it is printed and as nodes tell it to their clients.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Dead => "dead",
            Self::Leaving => "leaving",
            Self::Left => "left",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it can be asked for its shards now.
    pub const fn is_reachable(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect | Self::Leaving)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much more a node takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Room {
    /// Anything.
    Free,
    /// What the ring gives it, and in an emergency what is meant for others.
    Tight,
    /// Nothing.
    Full,
}

/// What we think of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeFacts {
    /// How it stands.
    pub standing: Standing,
    /// How much more it takes.
    pub room: Room,
    /// False when it was caught serving wrong bytes, or without what it claims to hold. Its claims
    /// do not count and it gets nothing.
    pub trusted: bool,
}

impl NodeFacts {
    /// Of a node that nobody has heard of.
    pub const UNKNOWN: Self = Self { standing: Standing::Unknown, room: Room::Full, trusted: true };

    /// Of an honest node with room.
    pub const fn standing(standing: Standing) -> Self {
        Self { standing, room: Room::Free, trusted: true }
    }
}

/// Where the planner looks nodes up.
pub trait Nodes {
    /// What we think of a node; [`NodeFacts::UNKNOWN`] of one we never heard of.
    fn facts(&self, node: &NodeId) -> NodeFacts;

    /// Whether a node can plan for others, as far as it says so itself: one that can write nothing down
    /// cannot.
    fn plans(&self, _node: &NodeId) -> bool {
        true
    }

    /// Whether we ourselves are cut off from most of the network. Nothing is planned then.
    fn cut_off(&self) -> bool {
        false
    }

    /// Whether many went silent together, so that they will likely come back together. Only chunks
    /// that one more silent node would make unreadable are rebuilt around those that are down then.
    fn frozen(&self) -> bool {
        false
    }

    /// Whether a node that was down came back a moment ago: then for how long it is waited until all
    /// others hear it, too. Who does not hear it yet would make again what is dropped for it, so
    /// nothing is dropped meanwhile.
    fn returning(&self) -> Option<Duration> {
        None
    }
}

impl Nodes for BTreeMap<NodeId, NodeFacts> {
    fn facts(&self, node: &NodeId) -> NodeFacts {
        self.get(node).copied().unwrap_or(NodeFacts::UNKNOWN)
    }
}

/// A node says that it holds this shard of the chunk in question.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Claim {
    /// Who says so.
    pub node: NodeId,
    /// Which shard.
    pub index: ShardIndex,
}

/// What is known of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkFacts {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its geometry, from its descriptor.
    pub geometry: Geometry,
    /// Bytes of each shard.
    pub shard_bytes: u64,
    /// Who says to hold what; of nodes that do not answer, what they said last. In any order;
    /// repetitions and impossible indices are ignored.
    pub claims: Vec<Claim>,
    /// For how long at least one index has been missing everywhere, if one is.
    pub missing_for: Option<Duration>,
}
