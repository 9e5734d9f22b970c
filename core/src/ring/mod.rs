//! The consistent-hash ring: where the shards of a chunk belong, as a pure function of the members.
//!
//! Owns tokens, arcs and the walk; [`placement`](self) with its zone caps and small networks is in
//! `placement.rs`. Knows nothing of who is reachable just now. The ring names a *set* of nodes: a
//! shard keeps its index when the set changes, and a new member takes the index that is missing.
//!
//! ```text
//! tokens of a node  = BLAKE3-XOF(derive_key "copse ring token v1", node id), 8 bytes each, BE
//! how many          = clamp(round(64 · capacity / unit), 1, 4096)
//! unit              = a power of two near the members' typical capacity
//! arc of a chunk    = first 2 bytes of its id, BE; it starts at position arc · 2^48
//! walk of an arc    = the owners of the tokens from there on clockwise, each node once
//! ```

mod placement;

pub(crate) use placement::losses_borne;
pub use placement::{CANDIDATES_PER_SHARD, HELD_WITHIN_PER_SHARD, Survival, equal_zone_cap};

use crate::{
    ids::{ChunkId, NodeId},
    limits::ARCS,
};

/// Tokens of a node of one unit of capacity. The relative spread of load is 1/√(n·tokens): 3 % for
/// n = 16.
pub const TOKENS_PER_UNIT: usize = 64;

/// Tokens of one node, at most: 64 typical nodes' worth. What a node claims to have beyond that
/// does not count, or one lie would take the whole ring (and its memory).
pub const TOKENS_MAX: usize = 4096;

/// A node as the ring sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingMember {
    /// The node.
    pub id: NodeId,
    /// How many bytes of shards it offers to hold. With 0 it is not on the ring.
    pub capacity_bytes: u64,
    /// What fails together; empty: the node is a zone of its own.
    pub zone: String,
}

/// The ring of one set of members. Immutable: a new set is a new ring.
#[derive(Clone, Debug)]
pub struct Ring {
    /// By id.
    members: Vec<RingMember>,
    /// Their ids alone: a placement touches half as much memory.
    ids: Vec<NodeId>,
    /// For each member, the number of its zone: indices into the zone tables.
    zone_of: Vec<u32>,
    /// Zones by their number of members: (members, zones that have so many), ascending.
    zone_sizes: Vec<(u32, u32)>,
    /// Members of the largest zone.
    zone_members_max: usize,
    /// Tokens of the heaviest zone.
    zone_tokens_max: usize,
    /// Owners of the tokens, clockwise. The tokens themselves are not needed once sorted.
    owners: Vec<u32>,
    /// For each arc, the first token at or behind its start: one look-up, no search.
    starts: Vec<u32>,
}

impl Ring {
    /// Builds the ring of a set of members. Their order does not matter.
    ///
    /// Takes about 30 ms for 10,000 nodes with 64 tokens each.
    pub fn build(mut members: Vec<RingMember>) -> Self {
        members.retain(|member| member.capacity_bytes > 0);
        members.sort_unstable();
        // One node twice is a mistake of the caller's; the smaller claim counts.
        members.dedup_by_key(|member| member.id);

        let unit = unit(&members);
        let counts: Vec<usize> =
            members.iter().map(|member| token_count(member.capacity_bytes, unit)).collect();
        let mut tokens = tokens(&members, &counts);
        // Equal tokens of two nodes (2^-64) are ordered by node id.
        tokens.sort_unstable();

        let (zone_of, zones) = number_zones(&members);
        let mut zone_members = vec![0u32; zones];
        let mut zone_tokens = vec![0; zones];
        for (&zone, &count) in zone_of.iter().zip(&counts) {
            zone_members[zone as usize] += 1;
            zone_tokens[zone as usize] += count;
        }
        Self {
            ids: members.iter().map(|member| member.id).collect(),
            zone_of,
            zone_members_max: zone_members.iter().copied().max().unwrap_or(0) as usize,
            zone_sizes: run_lengths(zone_members),
            zone_tokens_max: zone_tokens.into_iter().max().unwrap_or(0),
            starts: starts(&tokens),
            owners: tokens.into_iter().map(|(_, owner)| owner).collect(),
            members,
        }
    }

    /// The arc that a chunk belongs to.
    pub fn arc(chunk: &ChunkId) -> u16 {
        let id = chunk.as_bytes();
        u16::from_be_bytes([id[0], id[1]])
    }

    /// How many nodes are on the ring.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is on the ring.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The members, by node id.
    pub fn members(&self) -> &[RingMember] {
        &self.members
    }

    /// The member with this id.
    pub fn get(&self, node: &NodeId) -> Option<&RingMember> {
        self.ids.binary_search(node).ok().map(|at| &self.members[at])
    }

    /// The number of this member's zone on this ring; nodes without a zone have one each.
    pub(crate) fn zone_number(&self, node: &NodeId) -> Option<u32> {
        self.ids.binary_search(node).ok().map(|at| self.zone_of[at])
    }

    /// All nodes, each once, in the order in which they are met clockwise from the arc's start.
    pub fn walk(&self, arc: u16) -> impl Iterator<Item = NodeId> {
        self.walk_members(arc).map(|member| self.ids[member as usize])
    }

    /// Whether two arcs begin at the same token, so that their walks are the same. In a network of a
    /// hundred nodes ten arcs in a row do.
    pub fn have_same_walk(&self, one: u16, other: u16) -> bool {
        self.starts[usize::from(one)] == self.starts[usize::from(other)]
    }

    /// The walk as positions in `members`.
    fn walk_members(&self, arc: u16) -> impl Iterator<Item = u32> {
        let mut seen = vec![0u64; self.members.len().div_ceil(64)];
        self.owners_from(arc)
            .filter(move |&member| {
                let (word, bit) = (&mut seen[member as usize / 64], 1 << (member % 64));
                let first = *word & bit == 0;
                *word |= bit;
                first
            })
            .take(self.members.len())
    }

    /// The owners of all tokens clockwise from the arc's start, as positions in `members`.
    fn owners_from(&self, arc: u16) -> impl Iterator<Item = u32> {
        let (before, after) = self.owners.split_at(self.starts[usize::from(arc)] as usize);
        after.iter().chain(before).copied()
    }
}

/// The capacity that is worth [`TOKENS_PER_UNIT`]: a power of two.
///
/// When it doubles, every node has half the tokens and about half of all placements change, so it
/// must hardly ever move when nodes come and go. Hence the mean of the middle half of the members
/// (a median jumps between two kinds of disks, a plain mean is at the mercy of one liar), and a
/// boundary at 1.7 units, far from the sizes that disks are sold in and people type.
fn unit(members: &[RingMember]) -> u64 {
    let mut sizes: Vec<u64> = members.iter().map(|member| member.capacity_bytes).collect();
    sizes.sort_unstable();
    let quarter = sizes.len() / 4;
    let middle = &sizes[quarter..sizes.len() - quarter];
    if middle.is_empty() {
        return 1;
    }
    let sum: u128 = middle.iter().map(|&size| u128::from(size)).sum();
    let mean = sum / middle.len() as u128;
    (0..u64::BITS)
        .map(|bit| 1 << bit)
        .find(|&unit| mean * 10 < u128::from(unit) * 17)
        .unwrap_or(1 << 63)
}

fn token_count(capacity_bytes: u64, unit: u64) -> usize {
    let (capacity, unit) = (u128::from(capacity_bytes), u128::from(unit));
    let rounded = (TOKENS_PER_UNIT as u128 * capacity + unit / 2) / unit;
    usize::try_from(rounded).unwrap_or(TOKENS_MAX).clamp(1, TOKENS_MAX)
}

/// (token, owner) of all members, unsorted. A node with more capacity has the same first tokens
/// and further ones.
fn tokens(members: &[RingMember], counts: &[usize]) -> Vec<(u64, u32)> {
    let mut tokens = Vec::with_capacity(counts.iter().sum());
    let mut bytes = vec![0; 8 * TOKENS_MAX];
    let hasher = blake3::Hasher::new_derive_key("copse ring token v1");
    for ((owner, member), &count) in (0u32..).zip(members).zip(counts) {
        let bytes = &mut bytes[..8 * count];
        hasher.clone().update(member.id.as_bytes()).finalize_xof().fill(bytes);
        tokens.extend(bytes.as_chunks().0.iter().map(|&token| (u64::from_be_bytes(token), owner)));
    }
    tokens
}

/// The first of the sorted tokens at or behind each arc's start. Behind the last one, it goes on at
/// the first: 0.
fn starts(tokens: &[(u64, u32)]) -> Vec<u32> {
    let mut starts = Vec::with_capacity(ARCS);
    let mut clockwise = (0u32..).zip(tokens).peekable();
    for arc in 0..ARCS as u64 {
        while clockwise.next_if(|(_, (token, _))| *token < arc << 48).is_some() {}
        starts.push(clockwise.peek().map_or(0, |(at, _)| *at));
    }
    starts
}

/// Numbers the zones: for each member its zone's number, and how many zones there are.
fn number_zones(members: &[RingMember]) -> (Vec<u32>, usize) {
    let mut named = std::collections::BTreeMap::new();
    let mut zones = 0;
    let mut next = || {
        zones += 1;
        zones - 1
    };
    let zone_of = members
        .iter()
        .map(|member| match member.zone.as_str() {
            "" => next(),
            zone => *named.entry(zone).or_insert_with(&mut next),
        })
        .collect();
    (zone_of, zones as usize)
}

/// (value, how often) in ascending order.
fn run_lengths(mut values: Vec<u32>) -> Vec<(u32, u32)> {
    values.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for value in values {
        match runs.last_mut() {
            Some((last, count)) if *last == value => *count += 1,
            _ => runs.push((value, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
