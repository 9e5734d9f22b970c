//! Who has a place among the connections that others dialled, and who makes room when none is left.
//!
//! Owns the table of them, by age, and what all connections of one peer share. Closes nothing itself: a
//! place tells its holder when it is wanted by another. The one idea: keys cost nothing, and so do records
//! of them. A stranger has a place for as long as nobody needs it; of the others those who have most share
//! with those who have least.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use copse_core::{ids::NodeId, limits::ADDRESSES_MAX};
use tokio_util::sync::CancellationToken;

/// Connections of one peer, at most; its oldest goes first. One is enough, but a peer that dials may do so
/// at all of this node's addresses at once, and one that restarted still has those from before.
pub(super) const PLACES_PER_PEER_MAX: usize = ADDRESSES_MAX;

/// One in so many places is for those who have not shown yet who they are, before nodes of the network make
/// room for them: two who come at the same time must not take each other's.
const NAMELESS_SHARE: usize = 16;

/// The table; `Shared` is what all connections of a peer have together.
pub(super) struct Places<Shared> {
    places_max: usize,
    table: Mutex<Table<Shared>>,
}

struct Table<Shared> {
    /// Counts places and requests: the order of both.
    next: u64,
    /// By age.
    taken: BTreeMap<u64, Taken<Shared>>,
}

struct Taken<Shared> {
    /// None until the handshake has shown it.
    peer: Option<Peer<Shared>>,
    /// When its peer asked something, or came.
    asked: u64,
    wanted: CancellationToken,
}

struct Peer<Shared> {
    id: NodeId,
    shared: Arc<Shared>,
}

/// A place; free again when dropped.
pub(super) struct Place<Shared> {
    places: Arc<Places<Shared>>,
    number: u64,
    wanted: CancellationToken,
}

impl<Shared> Places<Shared> {
    pub(super) fn new(places_max: usize) -> Arc<Self> {
        let table = Mutex::new(Table { next: 0, taken: BTreeMap::new() });
        Arc::new(Self { places_max, table })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().taken.len()
    }

    /// A place for a newcomer. When all are taken another makes room; who is `known` goes last.
    pub(super) fn take(self: &Arc<Self>, known: impl Fn(&NodeId) -> bool) -> Place<Shared> {
        let mut table = self.lock();
        if table.taken.len() >= self.places_max
            && let Some(gone) = table.dispensable(self.places_max, known)
        {
            table.clear(gone);
        }
        let (number, wanted) = (table.count(), CancellationToken::new());
        table.taken.insert(number, Taken { peer: None, asked: number, wanted: wanted.clone() });
        Place { places: Arc::clone(self), number, wanted }
    }

    fn lock(&self) -> MutexGuard<'_, Table<Shared>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Shared> Table<Shared> {
    const fn count(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn clear(&mut self, number: u64) {
        if let Some(taken) = self.taken.remove(&number) {
            taken.wanted.cancel();
        }
    }

    /// Who makes room for a newcomer: the oldest stranger; the oldest without a name, if there are many; the
    /// oldest of the peer that has most; when each has one, the one whose last request is longest ago.
    fn dispensable(&self, places_max: usize, known: impl Fn(&NodeId) -> bool) -> Option<u64> {
        let named = || {
            let taken = self.taken.iter();
            taken
                .filter_map(|(number, taken)| Some((*number, taken.peer.as_ref()?.id, taken.asked)))
        };
        let stranger = named().find(|(_, id, _)| !known(id)).map(|(number, ..)| number);
        let nameless = || {
            let nameless = || self.taken.iter().filter(|(_, taken)| taken.peer.is_none());
            let many = nameless().count() > places_max / NAMELESS_SHARE;
            nameless().next().filter(|_| many).map(|(number, _)| *number)
        };
        let crowded = || {
            let mut of_peer: BTreeMap<NodeId, usize> = BTreeMap::new();
            for (_, id, _) in named() {
                *of_peer.entry(id).or_default() += 1;
            }
            let most = of_peer.values().copied().max().filter(|most| *most > 1)?;
            named().find(|(_, id, _)| of_peer.get(id) == Some(&most)).map(|(number, ..)| number)
        };
        let silent = || named().min_by_key(|(.., asked)| *asked).map(|(number, ..)| number);
        stranger.or_else(nameless).or_else(crowded).or_else(silent)
    }
}

impl<Shared> Place<Shared> {
    /// Says whose it is. What comes back is shared by all connections of this peer; it is made for the first.
    pub(super) fn belongs_to(&self, id: NodeId, make: impl FnOnce() -> Arc<Shared>) -> Arc<Shared> {
        let mut table = self.places.lock();
        let others: Vec<(u64, Arc<Shared>)> = table
            .taken
            .iter()
            .filter_map(|(number, taken)| {
                let peer = taken.peer.as_ref().filter(|peer| peer.id == id)?;
                Some((*number, Arc::clone(&peer.shared)))
            })
            .collect();
        let shared = others.first().map_or_else(make, |(_, shared)| Arc::clone(shared));
        if let Some(taken) = table.taken.get_mut(&self.number) {
            taken.peer = Some(Peer { id, shared: Arc::clone(&shared) });
        }
        let over = (others.len() + 1).saturating_sub(PLACES_PER_PEER_MAX);
        for (number, _) in others.into_iter().take(over) {
            table.clear(number);
        }
        shared
    }

    /// Notes that its peer asks something.
    pub(super) fn asks(&self) {
        let mut table = self.places.lock();
        let now = table.count();
        if let Some(taken) = table.taken.get_mut(&self.number) {
            taken.asked = now;
        }
    }

    /// Returns when another needs it.
    pub(super) async fn wanted(&self) {
        self.wanted.cancelled().await;
    }
}

impl<Shared> Drop for Place<Shared> {
    fn drop(&mut self) {
        self.places.lock().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    type Table = Arc<Places<()>>;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    fn known(id: &NodeId) -> bool {
        id.as_bytes()[0] < 100
    }

    fn taken_by(places: &Table, number: u8) -> Place<()> {
        let place = places.take(known);
        place.belongs_to(node(number), Arc::default);
        place
    }

    fn is_wanted(place: &Place<()>) -> bool {
        place.wanted().now_or_never().is_some()
    }

    #[test]
    fn strangers_make_room_the_oldest_first_and_nodes_of_the_network_go_last() {
        let places = Places::new(3);
        let first = taken_by(&places, 100);
        let known_one = taken_by(&places, 1);
        let second = taken_by(&places, 101);
        let third = taken_by(&places, 102);
        assert!(is_wanted(&first) && !is_wanted(&known_one) && !is_wanted(&second));
        let fourth = taken_by(&places, 2);
        assert!(is_wanted(&second));
        // Nobody has shown yet who this is.
        let nameless = places.take(known);
        assert!(is_wanted(&third));
        let fifth = taken_by(&places, 3);
        assert!(is_wanted(&nameless));
        assert!(![&known_one, &fourth, &fifth].into_iter().any(is_wanted));
        // Whoever had to go gives nothing back that is another's now.
        drop((first, second, third, nameless));
        assert_eq!(places.taken(), 3);
        drop((known_one, fourth, fifth));
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn of_nodes_of_the_network_those_who_have_most_make_room_and_then_who_is_silent() {
        let places = Places::new(5);
        let crowd: Vec<_> = (0..3).map(|_| taken_by(&places, 1)).collect();
        let pair: Vec<_> = (0..2).map(|_| taken_by(&places, 2)).collect();
        let gone = || -> Vec<bool> { crowd.iter().chain(&pair).map(is_wanted).collect() };
        let third = taken_by(&places, 3);
        assert_eq!(gone(), [true, false, false, false, false]);
        // Of two that have as many the oldest.
        let fourth = taken_by(&places, 4);
        assert_eq!(gone(), [true, true, false, false, false]);
        let fifth = taken_by(&places, 5);
        assert_eq!(gone(), [true, true, false, true, false]);
        // Each has one now. The oldest has asked something since, the next has not.
        crowd[2].asks();
        let _sixth = taken_by(&places, 6);
        assert_eq!(gone(), [true, true, false, true, true]);
        assert!(![&third, &fourth, &fifth].into_iter().any(is_wanted));
    }

    #[test]
    fn those_who_come_together_do_not_take_each_others_place() {
        let places = Places::new(32);
        let nodes: Vec<_> = (0..32).map(|number| taken_by(&places, number)).collect();
        let first = places.take(known);
        let _second = places.take(known);
        assert!(!is_wanted(&first) && is_wanted(&nodes[0]) && is_wanted(&nodes[1]));
        // Nor do more of them cost the nodes of the network more than that.
        let _third = places.take(known);
        let _fourth = places.take(known);
        assert!(is_wanted(&first) && !is_wanted(&nodes[3]));
        assert_eq!(nodes.iter().filter(|place| is_wanted(place)).count(), 3);
    }

    #[test]
    fn a_peer_has_so_many_places_and_one_share() {
        let places: Arc<Places<u32>> = Places::new(100);
        let taken_by = |number: u8, made: u32| {
            let place = places.take(known);
            let shared = place.belongs_to(node(number), || Arc::new(made));
            (place, *shared)
        };
        let (other, of_other) = taken_by(2, 2);
        let all: Vec<(Place<u32>, u32)> = (0..20).map(|made| taken_by(1, made)).collect();
        let wanted = |place: &Place<u32>| place.wanted().now_or_never().is_some();
        let left: Vec<bool> = all.iter().map(|(place, _)| !wanted(place)).collect();
        assert_eq!(
            left,
            [[false; 20 - PLACES_PER_PEER_MAX].as_slice(), &[true; PLACES_PER_PEER_MAX]].concat()
        );
        assert_eq!(places.taken(), 1 + PLACES_PER_PEER_MAX);
        assert!(!wanted(&other) && of_other == 2);
        assert!(all.iter().all(|(_, shared)| *shared == 0), "the first one's");
    }
}
