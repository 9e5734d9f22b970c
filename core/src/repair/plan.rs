//! The plan of one chunk: what to rebuild, copy and drop; and who plans for an arc.
//!
//! Owns every decision about moving shards. Refuses to drop the only shard within reach of an
//! index, or any while its keeper does not answer. The one idea: rebuild late and together, move
//! 1:1 and at once, drop last.
//!
//! | shard | what happens |
//! |---|---|
//! | missing everywhere | rebuilt with all others when few are left, or after long |
//! | on a node that is down | nothing; when the chunk is thin, just enough of them are rebuilt |
//! | where it does not belong, or on a leaving node | copied to where it belongs |
//! | with too many others of its chunk, and its own node cannot take it | copied to another node |
//! | twice | dropped where it does not belong, when its keeper answers, and all others hear it, too |

use core::time::Duration;
use std::collections::BTreeMap;

use super::{
    assign::{Homes, home_is_unfit},
    facts::{ChunkFacts, Nodes, Standing},
    held::{Held, Holdings},
    policy::Policy,
    skip::{Skip, Unfit},
    strength::{Strength, measure},
    target::{Need, Targets},
};
use crate::{
    geometry::Geometry,
    ids::{NodeId, ShardIndex},
    ring::{HELD_WITHIN_PER_SHARD, Ring},
};

/// How soon something is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Thin chunks: before everything else, with the whole uplink.
    Emergency,
    /// Within the background's share.
    Normal,
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Read k shards once and make several.
    Rebuild {
        /// How soon.
        lane: Lane,
        /// All shards that can be read, the best first: the first k are of different indices, then
        /// come the rest, and second holders of an index at the end. Any k different ones will do.
        sources: Vec<(ShardIndex, NodeId)>,
        /// What to make, and who gets it.
        make: Vec<(ShardIndex, NodeId)>,
    },
    /// Bring a shard where it belongs.
    Copy {
        /// The shard.
        index: ShardIndex,
        /// Who has it.
        from: NodeId,
        /// Who gets it.
        to: NodeId,
    },
    /// Delete a shard that is held twice.
    Drop {
        /// The shard.
        index: ShardIndex,
        /// Who deletes it.
        node: NodeId,
        /// Who must prove, just before, that it has it.
        kept_by: NodeId,
    },
}

/// What to do with a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkPlan {
    /// What is left of it.
    pub strength: Strength,
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// What is not done, and why. A chunk that is as it should be has neither.
    pub skips: Vec<Skip>,
}

/// Bytes over the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Bytes of shards read from their holders.
    pub read_bytes: u64,
    /// Bytes of shards stored at others.
    pub written_bytes: u64,
}

impl ChunkPlan {
    /// What the plan moves.
    pub fn traffic(&self, chunk: &ChunkFacts) -> Traffic {
        let (mut read, mut written) = (0, 0);
        for action in &self.actions {
            match action {
                Action::Rebuild { make, .. } => {
                    read += chunk.geometry.data() as u64;
                    written += make.len() as u64;
                }
                Action::Copy { .. } => {
                    read += 1;
                    written += 1;
                }
                Action::Drop { .. } => {}
            }
        }
        let bytes = |shards: u64| shards.saturating_mul(chunk.shard_bytes);
        Traffic { read_bytes: bytes(read), written_bytes: bytes(written) }
    }
}

/// Who plans for an arc: the first of its [`stewards`].
pub fn steward(ring: &Ring, arc: u16, nodes: &impl Nodes) -> Option<NodeId> {
    stewards(ring, arc, nodes).next()
}

/// Who may plan for an arc, whoever comes first does: the nodes of its walk that answer, that we trust,
/// and that can plan. If there are none, one that says that it cannot does what it can: last come those.
pub fn stewards(ring: &Ring, arc: u16, nodes: &impl Nodes) -> impl Iterator<Item = NodeId> {
    let unable = move || ring.walk(arc).filter(|node| is_well(nodes, node) && !nodes.plans(node));
    ring.walk(arc)
        .filter(|node| may_be_steward(nodes, node))
        .chain(core::iter::once_with(unable).flatten())
}

/// Whether a node can plan for others: it answers, we trust it, and it does not say that it cannot.
pub fn may_be_steward(nodes: &impl Nodes, node: &NodeId) -> bool {
    is_well(nodes, node) && nodes.plans(node)
}

fn is_well(nodes: &impl Nodes, node: &NodeId) -> bool {
    let facts = nodes.facts(node);
    facts.trusted && matches!(facts.standing, Standing::Alive | Standing::Suspect)
}

/// Plans what to do with a chunk. Depends on nothing but its arguments, and not on the order of the
/// claims. Takes some microseconds.
pub fn plan_chunk(
    ring: &Ring,
    nodes: &impl Nodes,
    chunk: &ChunkFacts,
    policy: &Policy,
) -> ChunkPlan {
    let arc = Ring::arc(&chunk.chunk);
    let placement = ring.placement(arc, chunk.geometry);
    let holdings = Holdings::of(chunk, nodes);
    let strength = measure(ring, nodes, chunk.geometry, &placement, &holdings);
    let nothing = |skip| ChunkPlan { strength, actions: Vec::new(), skips: vec![skip] };
    if nodes.cut_off() {
        return nothing(Skip::CutOff);
    }
    if placement.is_empty() {
        return nothing(Skip::EmptyRing);
    }
    let homes = Homes::assign(&placement, &holdings, nodes);
    let facts = Facts { nodes, geometry: chunk.geometry, holdings: &holdings, homes: &homes };
    let mut skips = Vec::new();

    let rebuild = facts.what_to_rebuild(&strength, chunk.missing_for, policy, &mut skips);
    let moves = facts.what_to_move(&mut skips);
    let mut actions = Vec::new();
    if rebuild.is_some() || !moves.is_empty() {
        let is_emergency = rebuild.as_ref().is_some_and(|wish| wish.lane == Lane::Emergency);
        let targets = Targets::new(ring, nodes, arc, chunk.geometry, &holdings, is_emergency);
        actions = facts.with_targets(targets, rebuild.as_ref(), &moves, &mut skips);
    }
    if let Some(wish) = &rebuild {
        facts.say_what_waits(wish, &strength, &actions, policy, &mut skips);
    } else {
        facts.drop_surplus(&mut actions, &mut skips);
        let around = ring.around(arc, chunk.geometry, HELD_WITHIN_PER_SHARD);
        facts.drop_surplus_of_displaced(around, &mut actions, &mut skips);
    }
    facts.name_the_untrusted(&mut skips);
    ChunkPlan { strength, actions, skips }
}

/// What is known, put in order.
struct Facts<'a, N> {
    nodes: &'a N,
    geometry: Geometry,
    holdings: &'a Holdings,
    homes: &'a Homes<'a>,
}

/// What should be rebuilt.
struct Wish {
    lane: Lane,
    /// All of these, which nobody holds.
    all: Vec<ShardIndex>,
    /// And of these as many as it takes, in this order.
    some: Vec<(ShardIndex, Need)>,
    /// To have so many of them.
    some_count: usize,
    /// Indices that nobody holds.
    missing: Vec<ShardIndex>,
}

/// A shard that should be somewhere else.
struct Move {
    index: ShardIndex,
    from: NodeId,
    /// Why the node that it belongs on cannot take it.
    unfit: Option<Unfit>,
    /// How far it is worth to go to another one then.
    need: Need,
}

/// How many shards nodes will have given away.
#[derive(Default)]
struct Given(BTreeMap<NodeId, usize>);

impl Given {
    fn by(&self, node: &NodeId) -> usize {
        self.0.get(node).copied().unwrap_or(0)
    }

    fn note(&mut self, node: NodeId) {
        *self.0.entry(node).or_default() += 1;
    }
}

impl<N: Nodes> Facts<'_, N> {
    /// Rebuild now, or the reason why not.
    fn what_to_rebuild(
        &self,
        strength: &Strength,
        missing_for: Option<Duration>,
        policy: &Policy,
        skips: &mut Vec<Skip>,
    ) -> Option<Wish> {
        let &Strength { geometry, sure, hoped, presumed, .. } = strength;
        let (needed, total) = (geometry.data(), geometry.total());
        if sure == total {
            return None;
        }
        if sure < needed {
            skips.push(if hoped < needed {
                Skip::NotEnough { exist: hoped, needed }
            } else {
                Skip::WaitingForDown { sure, needed, nodes: self.down_nodes() }
            });
            return None;
        }
        let not_sure = || geometry.indices().filter(|index| self.holdings.source(*index).is_none());
        let is_missing = |index: &ShardIndex| self.holdings.holders(*index).is_empty();
        let missing: Vec<ShardIndex> = not_sure().filter(is_missing).collect();
        let lines = policy.lines(geometry);
        let threshold = lines.threshold;
        let thin_line = lines.thin_now(hoped, self.nodes.frozen());
        let is_thin = sure <= thin_line;
        // Of which no claim is known need not be gone: a node that is down may have it.
        let is_due = missing.len() > presumed && lines.is_due(hoped, missing_for);
        if !is_thin && !is_due {
            if !missing.is_empty() {
                skips.push(Skip::AboveThreshold { missing: missing.len(), hoped, threshold });
            }
            self.say_who_is_down(|_| true, skips);
            return None;
        }
        let all = if is_due { missing.clone() } else { Vec::new() };
        let mut some: Vec<(ShardIndex, Need)> = not_sure()
            .filter(|index| !all.contains(index))
            .map(|index| match is_missing(&index) {
                true => (index, Need::Otherwise),
                false => (index, Need::Apart),
            })
            .collect();
        // What nobody holds before what may come back.
        some.sort_by_key(|(_, need)| *need);
        let lane = if is_thin { Lane::Emergency } else { Lane::Normal };
        let some_count = if is_thin { (thin_line + 1).saturating_sub(sure + all.len()) } else { 0 };
        Some(Wish { lane, all, some, some_count, missing })
    }

    /// Whether a node holds more of the chunk than the ring gives it, and than one node should hold while
    /// there are others, also without what it will have given away.
    fn is_crowded(&self, node: &NodeId, given: &Given) -> bool {
        let limit = self.homes.slots(node).max(self.geometry.apart());
        self.holdings.count_on(node) > limit + given.by(node)
    }

    /// Shards that can be read and are not where they should be.
    fn what_to_move(&self, skips: &mut Vec<Skip>) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut given = Given::default();
        for index in self.geometry.indices() {
            let Some(source) = self.holdings.source(index) else { continue };
            let home = *self.homes.of(index);
            let holders = self.holdings.holders(index);
            let is_home = self.homes.is_home(index);
            if is_home && holders.iter().any(|held| held.node == home && held.is_sure()) {
                continue;
            }
            let stays = |held: &&Held| held.is_sure() && held.standing != Standing::Leaving;
            let mut staying = holders.iter().filter(stays);
            let first = staying.clone().next().map(|held| held.node);
            let unfit = home_is_unfit(self.homes, index, self.nodes);
            match (first, unfit) {
                // Its own node has it and is down.
                (Some(_), _) if is_home => {}
                // It cannot go home; but not all need stay together where they are.
                (Some(from), Some(_))
                    if staying.all(|held| self.is_crowded(&held.node, &given)) =>
                {
                    given.note(from);
                    moves.push(Move { index, from, unfit, need: Need::Apart });
                }
                (Some(_), Some(because)) => {
                    let holder = source.node;
                    skips.push(Skip::StaysDisplaced { index, holder, home, because });
                }
                _ => moves.push(Move { index, from: source.node, unfit, need: Need::Otherwise }),
            }
        }
        // What has to go before what is better elsewhere.
        moves.sort_by_key(|shard| shard.need);
        moves
    }

    /// Finds a node for each shard that is rebuilt or moved: first those that their own nodes
    /// take, so that nobody else is put in these places.
    fn with_targets(
        &self,
        mut targets: Targets<'_, N>,
        rebuild: Option<&Wish>,
        moves: &[Move],
        skips: &mut Vec<Skip>,
    ) -> Vec<Action> {
        let all = || rebuild.into_iter().flat_map(|wish| &wish.all).copied();
        let own = |index: ShardIndex| {
            home_is_unfit(self.homes, index, self.nodes).is_none().then(|| *self.homes.of(index))
        };
        let mut make = Vec::new();
        let mut copies = Vec::new();
        for (index, node) in all().filter_map(|index| Some((index, own(index)?))) {
            targets.place(index, node);
            make.push((index, node));
        }
        for Move { index, from, .. } in moves.iter().filter(|shard| shard.unfit.is_none()) {
            let to = *self.homes.of(*index);
            targets.place(*index, to);
            copies.push(Action::Copy { index: *index, from: *from, to });
        }

        let mut homeless = Vec::new();
        for index in all().filter(|index| own(*index).is_none()) {
            match targets.substitute(index, Need::Otherwise) {
                Some(node) => make.push((index, node)),
                None => homeless.push(index),
            }
        }
        if let Some(wish) = rebuild {
            let wanted = make.len() + wish.some_count;
            for &(index, need) in &wish.some {
                if make.len() == wanted {
                    break;
                }
                let node = match own(index) {
                    Some(node) => {
                        targets.place(index, node);
                        Some(node)
                    }
                    None => targets.substitute(index, need),
                };
                match node {
                    Some(node) => make.push((index, node)),
                    None => homeless.push(index),
                }
            }
        }
        for &Move { index, from, unfit, need } in moves {
            let Some(because) = unfit else { continue };
            match targets.substitute(index, need) {
                Some(to) => copies.push(Action::Copy { index, from, to }),
                None if need == Need::Apart => {
                    let home = *self.homes.of(index);
                    skips.push(Skip::StaysDisplaced { index, holder: from, home, because });
                }
                None => homeless.push(index),
            }
        }
        if let Some(&first) = homeless.first() {
            let because = home_is_unfit(self.homes, first, self.nodes).expect("it has no target");
            let home = *self.homes.of(first);
            skips.push(Skip::NoTarget { indices: homeless, home, because });
        }

        let mut actions = Vec::new();
        if let Some(wish) = rebuild.filter(|_| !make.is_empty()) {
            make.sort_unstable();
            actions.push(Action::Rebuild { lane: wish.lane, sources: self.sources(), make });
        }
        actions.extend(copies);
        actions
    }

    /// All shards that can be read: each index once, from its best holder, those of alive nodes
    /// and data shards first (they need no decoding); then the other holders.
    fn sources(&self) -> Vec<(ShardIndex, NodeId)> {
        let data = self.geometry.data();
        let mut sources: Vec<_> = self
            .geometry
            .indices()
            .flat_map(|index| self.holdings.holders(index).iter().enumerate())
            .filter(|(_, held)| held.is_sure())
            .collect();
        sources.sort_by_key(|(nth, held)| {
            let is_parity = held.index.as_usize() >= data;
            (*nth, held.rank(), is_parity, held.index, held.node)
        });
        sources.into_iter().map(|(_, held)| (held.index, held.node)).collect()
    }

    /// Shards that are held twice go from nodes that hold more of this chunk than the ring gives
    /// them, as far as the shard's own node has it and answers. Not while nodes are coming back: one
    /// that plans next and does not hear the shard's own node yet would make it again.
    fn drop_surplus(&self, actions: &mut Vec<Action>, skips: &mut Vec<Skip>) {
        let mut dropped: Vec<NodeId> = Vec::new();
        for index in self.geometry.indices().filter(|index| self.homes.is_home(*index)) {
            let holders = self.holdings.holders(index);
            if holders.len() < 2 {
                continue;
            }
            let home = *self.homes.of(index);
            let keeper = holders.iter().find(|held| held.node == home);
            let is_kept = keeper.is_some_and(|held| held.standing == Standing::Alive);
            for held in holders.iter().filter(|held| held.node != home && held.is_sure()) {
                let node = held.node;
                let gone = dropped.iter().filter(|dropped| **dropped == node).count();
                // The holder checks the same by its own ring before it deletes anything.
                if self.holdings.count_on(&node) <= self.homes.slots(&node) + gone {
                    continue;
                }
                match self.nodes.returning() {
                    _ if !is_kept => skips.push(Skip::SurplusKept { index, holder: node, home }),
                    Some(settle) => {
                        skips.push(Skip::SurplusWaits { index, holder: node, home, settle });
                    }
                    None => {
                        dropped.push(node);
                        actions.push(Action::Drop { index, node, kept_by: home });
                    }
                }
            }
        }
    }

    /// The same for shards that their own node cannot take, so that it will not keep them: the first of
    /// the walk that holds one does, if there is one, of those that hold no more than they should. Else a
    /// node that leaves would wait for the own node's room with a shard that others hold.
    fn drop_surplus_of_displaced(
        &self,
        around: impl Iterator<Item = NodeId>,
        actions: &mut Vec<Action>,
        skips: &mut Vec<Skip>,
    ) {
        // One that moves on has another keeper soon.
        let moves = |index: &ShardIndex| {
            let copied =
                |action: &Action| matches!(action, Action::Copy { index: it, .. } if it == index);
            actions.iter().any(copied)
        };
        let is_doubled = |index: &ShardIndex| {
            !self.homes.is_home(*index)
                && !moves(index)
                && self.holdings.holders(*index).len() > 1
                && home_is_unfit(self.homes, *index, self.nodes).is_some()
        };
        let doubled: Vec<ShardIndex> = self.geometry.indices().filter(is_doubled).collect();
        if doubled.is_empty() {
            return;
        }
        let around: Vec<NodeId> = around.collect();
        let mut given = Given::default();
        for index in doubled {
            let holders = self.holdings.holders(index);
            let holds = |node: &&NodeId| {
                holders.iter().any(|held| held.node == **node && held.standing == Standing::Alive)
            };
            let uncrowded = |node: &&NodeId| !self.is_crowded(node, &given);
            let mut keepers = around.iter().filter(holds);
            let Some(&keeper) = keepers.clone().find(uncrowded).or_else(|| keepers.next()) else {
                continue;
            };
            for held in holders.iter().filter(|held| held.node != keeper && held.is_sure()) {
                let (node, home) = (held.node, keeper);
                match self.nodes.returning() {
                    Some(settle) => {
                        skips.push(Skip::SurplusWaits { index, holder: node, home, settle });
                    }
                    None => {
                        given.note(node);
                        actions.push(Action::Drop { index, node, kept_by: keeper });
                    }
                }
            }
        }
    }

    /// What is not rebuilt although something is.
    fn say_what_waits(
        &self,
        wish: &Wish,
        strength: &Strength,
        actions: &[Action],
        policy: &Policy,
        skips: &mut Vec<Skip>,
    ) {
        let made: &[(ShardIndex, NodeId)] = match actions.first() {
            Some(Action::Rebuild { make, .. }) => make,
            _ => &[],
        };
        let is_made = |index: ShardIndex| made.iter().any(|made| made.0 == index);
        let missing = wish.missing.iter().filter(|index| !is_made(**index)).count();
        if wish.all.is_empty() && missing > 0 {
            let threshold = policy.threshold.shards(self.geometry);
            skips.push(Skip::AboveThreshold { missing, hoped: strength.hoped, threshold });
        }
        self.say_who_is_down(|index| !is_made(index), skips);
    }

    /// Names the nodes that are down and hold the only shards of some of these indices.
    fn say_who_is_down(&self, of: impl Fn(ShardIndex) -> bool, skips: &mut Vec<Skip>) {
        let nodes = sorted(self.only_holders().filter(|held| of(held.index)).map(|held| held.node));
        if !nodes.is_empty() {
            skips.push(Skip::DownCounts { nodes });
        }
    }

    /// Nodes that are down and hold the only shard of an index, or should hold one and never said.
    fn down_nodes(&self) -> Vec<NodeId> {
        let slots = self.geometry.indices().map(|index| *self.homes.of(index));
        let silent = slots.filter(|node| {
            let facts = self.nodes.facts(node);
            facts.trusted && facts.standing == Standing::Down && self.holdings.count_on(node) == 0
        });
        sorted(self.only_holders().map(|held| held.node).chain(silent))
    }

    /// What is on nodes that are down and nowhere else.
    fn only_holders(&self) -> impl Iterator<Item = &Held> {
        self.holdings.iter().filter(|held| self.holdings.source(held.index).is_none())
    }

    /// Nodes whose claims were not counted, or that were not given what belongs on them.
    fn name_the_untrusted(&self, skips: &mut Vec<Skip>) {
        let empty = self.geometry.indices().filter(|index| !self.homes.is_home(*index));
        let passed_over =
            empty.map(|index| *self.homes.of(index)).filter(|node| !self.nodes.facts(node).trusted);
        let nodes = sorted(self.holdings.untrusted.iter().copied().chain(passed_over));
        if !nodes.is_empty() {
            skips.push(Skip::Untrusted { nodes });
        }
    }
}

fn sorted(nodes: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = nodes.collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}
