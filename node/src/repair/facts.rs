//! What the planner is told of nodes: how they stand, whether they have room, whether they are
//! trusted.
//!
//! Owns the memory of who has no room, and of who says that it cannot read its disk. The one idea: a [`View`] is one moment
//! of the directory and of who answers; plan and answer go by one and the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::{
    directory::NodeState,
    ids::NodeId,
    repair::{NodeFacts, Nodes, Room, Standing},
    ring::Ring,
};
use copse_proto::holdings::{CANNOT_PLAN, CANNOT_READ};
use tokio::time::Instant;

use super::{proofs::Proofs, trust::Trust};
use crate::store::{StoreStats, Writes};

/// How long what is known of a node's room counts. Everybody tells it at each round of asking.
const ROOM_FOR: Duration = Duration::from_secs(300);

/// The part of the capacity under which the rest is kept for what the ring gives this node.
const TIGHT_BELOW: u64 = 20;

/// Nodes whose room is remembered, at most.
const ROOMS_MAX: usize = 1 << 16;

/// One moment of the network, as this node sees it.
#[derive(Debug)]
pub struct View {
    /// The ring of the directory.
    pub ring: Arc<Ring>,
    /// Equal for equal rings, also after a restart.
    pub ring_id: [u8; 16],
    /// What this node says of itself.
    pub own_state: NodeState,
    /// How all nodes of the directory stand.
    pub standings: BTreeMap<NodeId, Standing>,
    /// This node sees less than half of the weight.
    pub cut_off: bool,
    /// Nobody is evicted: many went silent together.
    pub frozen: bool,
}

/// Where the present view comes from.
pub type Views = Arc<dyn Looks>;

/// Gives the present view.
pub trait Looks: Send + Sync + 'static {
    /// The network as it is now.
    fn now(&self) -> Arc<View>;

    /// Why nobody is evicted or nothing is planned, with the times of now; empty when all is as
    /// usual.
    fn guard(&self) -> String;

    /// A node that was down came back a moment ago, and more may follow: for how long they are
    /// waited for.
    fn returning(&self) -> Option<Duration>;
}

/// What this node itself found out about others. Clones are the same.
#[derive(Clone)]
pub(super) struct Opinions {
    trust: Trust,
    proofs: Proofs,
    /// What nodes say that they cannot do, until they say something else.
    unable: Arc<Mutex<BTreeMap<NodeId, u32>>>,
    rooms: Arc<Mutex<BTreeMap<NodeId, (Room, Instant)>>>,
}

impl Opinions {
    pub(super) fn new(trust: Trust, proofs: Proofs) -> Self {
        Self { trust, proofs, unable: Arc::default(), rooms: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, (Room, Instant)>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, node: NodeId, room: Room) {
        let mut rooms = self.lock();
        if room == Room::Free {
            rooms.remove(&node);
            return;
        }
        if rooms.len() >= ROOMS_MAX {
            rooms.retain(|_, (_, since)| since.elapsed() < ROOM_FOR);
        }
        if rooms.len() < ROOMS_MAX {
            rooms.insert(node, (room, Instant::now()));
        }
    }

    /// Notes that a node refused for want of room.
    pub(super) fn full(&self, node: NodeId) {
        self.note(node, Room::Full);
    }

    /// Notes what a node says about its room (see `ArcChangesReply`).
    pub(super) fn fullness(&self, node: NodeId, said: u32) {
        let room = match said {
            0 => Room::Free,
            1 => Room::Tight,
            _ => Room::Full,
        };
        self.note(node, room);
    }

    fn unables(&self) -> MutexGuard<'_, BTreeMap<NodeId, u32>> {
        self.unable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a node says that it cannot do (see `ArcChangesReply`).
    pub(super) fn unable(&self, node: NodeId, said: u32) {
        let mut unable = self.unables();
        if said == 0 {
            unable.remove(&node);
        } else if unable.len() < ROOMS_MAX || unable.contains_key(&node) {
            unable.insert(node, said);
        }
    }

    /// Whose holdings do not count though nobody caught them, of so many nodes, and why.
    pub(super) fn unreadable(&self, nodes: usize) -> BTreeMap<NodeId, &'static str> {
        let dumb = self.proofs.dumb(nodes).into_iter();
        let dumb = dumb.map(|node| (node, "has proved nothing of what it holds for an hour"));
        let unable = self.unables();
        let told = unable.iter().filter(|(_, said)| **said & CANNOT_READ != 0);
        dumb.chain(told.map(|(&node, _)| (node, "says that its disk cannot be read"))).collect()
    }

    /// A view and these opinions, for the planner.
    pub(super) fn with(&self, view: &View) -> Facts {
        let rooms = self.lock().clone();
        let unreadable = self.unreadable(view.standings.len());
        let room = |node: &NodeId| match rooms.get(node) {
            Some((room, since)) if since.elapsed() < ROOM_FOR => *room,
            _ => Room::Free,
        };
        let facts = |(&node, &standing): (&NodeId, &Standing)| {
            let trusted = self.trust.trusts(&node) && !unreadable.contains_key(&node);
            (node, NodeFacts { standing, room: room(&node), trusted })
        };
        let nodes = view.standings.iter().map(facts).collect();
        let unable = self.unables();
        let planless = unable.iter().filter(|(_, said)| **said & CANNOT_PLAN != 0);
        let planless = planless.map(|(&node, _)| node).collect();
        Facts { nodes, planless, cut_off: view.cut_off, frozen: view.frozen, returning: None }
    }
}

/// The facts of one moment.
#[derive(Clone)]
pub(super) struct Facts {
    nodes: BTreeMap<NodeId, NodeFacts>,
    /// Those that can plan nothing, as they say themselves.
    planless: BTreeSet<NodeId>,
    cut_off: bool,
    frozen: bool,
    returning: Option<Duration>,
}

impl Facts {
    /// Notes whether nodes are coming back just now (see [`Looks::returning`]): a view does not know,
    /// for it does not change when that is over.
    pub(super) fn with_returning(self, returning: Option<Duration>) -> Self {
        Self { returning, ..self }
    }

    /// Notes that a node does not answer just now.
    pub(super) fn silent(&mut self, node: NodeId) {
        if let Some(facts) = self.nodes.get_mut(&node) {
            facts.standing = Standing::Down;
        }
    }
}

/// How much more this node takes, as it travels: nothing when the store refuses; when less than a
/// twentieth is free, only what the ring gives it.
pub(super) fn fullness_of(stats: &StoreStats) -> u32 {
    let free = stats.capacity_bytes.saturating_sub(stats.used_bytes);
    match stats.writes {
        Writes::Accepted if free >= stats.capacity_bytes / TIGHT_BELOW => 0,
        Writes::Accepted => 1,
        Writes::Full(_) | Writes::Refused => 2,
    }
}

impl Nodes for Facts {
    fn facts(&self, node: &NodeId) -> NodeFacts {
        self.nodes.facts(node)
    }

    fn plans(&self, node: &NodeId) -> bool {
        !self.planless.contains(node)
    }

    fn cut_off(&self) -> bool {
        self.cut_off
    }

    fn frozen(&self) -> bool {
        self.frozen
    }

    fn returning(&self) -> Option<Duration> {
        self.returning
    }
}

#[cfg(test)]
mod tests {
    use copse_core::{directory::Directory, ids::NetworkId, repair::may_be_steward};

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    /// A view of so many nodes, all alive.
    fn view(nodes: u8) -> View {
        View {
            ring: Arc::new(Directory::new(NetworkId::new([1; 32])).ring()),
            ring_id: [0; 16],
            own_state: NodeState::Active,
            standings: (0..nodes).map(|number| (node(number), Standing::Alive)).collect(),
            cut_off: false,
            frozen: false,
        }
    }

    /// Whether what a node holds counts, and whether it can be a steward.
    fn thought(opinions: &Opinions, of: NodeId) -> (bool, bool) {
        let facts = opinions.with(&view(16));
        (facts.facts(&of).trusted, may_be_steward(&facts, &of))
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_plan_is_no_steward_and_what_cannot_be_read_does_not_count() {
        let proofs = Proofs::default();
        let opinions = Opinions::new(Trust::default(), proofs.clone());
        for (said, counts, plans) in [
            (0, true, true),
            (CANNOT_PLAN, true, false),
            (CANNOT_READ, false, false),
            (CANNOT_PLAN | CANNOT_READ, false, false),
            // Of a newer version.
            (1 << 9, true, true),
            (0, true, true),
        ] {
            opinions.unable(node(3), said);
            assert_eq!(thought(&opinions, node(3)), (counts, plans), "{said}");
            assert_eq!(thought(&opinions, node(4)), (true, true));
        }
        for _ in 0..=60 {
            proofs.failed(node(5));
            proofs.given(node(4));
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert_eq!(thought(&opinions, node(5)), (false, false));
        assert_eq!(opinions.unreadable(16).len(), 1);
    }
}
