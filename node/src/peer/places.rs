//! Who has a place among the connections that others dialled, and who makes room when none is left.
//!
//! Owns the table of them, by age. Closes nothing itself: a place tells its holder when it is wanted by
//! another. The one idea: keys cost nothing, so a stranger has a place for as long as nobody needs it, and
//! only nodes of the network keep theirs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use copse_core::{ids::NodeId, limits::ADDRESSES_MAX};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections of one peer, at most; its oldest goes first. One is enough, but a peer that dials may do so
/// at all of this node's addresses at once, and one that restarted still has those from before.
pub(super) const PLACES_PER_PEER_MAX: usize = ADDRESSES_MAX;

/// The table.
pub(super) struct Places {
    places_max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// By age.
    taken: BTreeMap<u64, Taken>,
}

struct Taken {
    /// None until the handshake has shown it.
    peer: Option<Peer>,
    wanted: CancellationToken,
}

#[derive(Clone)]
struct Peer {
    id: NodeId,
    gossip: Arc<Semaphore>,
}

/// A place; free again when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    wanted: CancellationToken,
}

impl Places {
    pub(super) fn new(places_max: usize) -> Arc<Self> {
        Arc::new(Self { places_max, table: Mutex::default() })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().taken.len()
    }

    /// A place for a newcomer: when all are taken, the oldest of those whose peer is not `known`, or has
    /// not yet shown who it is. None when all are nodes of the network.
    pub(super) fn take(self: &Arc<Self>, known: impl Fn(&NodeId) -> bool) -> Option<Place> {
        let mut table = self.lock();
        if table.taken.len() >= self.places_max {
            let stranger = |taken: &Taken| !taken.peer.as_ref().is_some_and(|peer| known(&peer.id));
            let oldest = table.taken.iter().find(|(_, taken)| stranger(taken));
            let oldest = oldest.map(|(number, _)| *number)?;
            table.clear(oldest);
        }
        let (number, wanted) = (table.next, CancellationToken::new());
        table.next += 1;
        table.taken.insert(number, Taken { peer: None, wanted: wanted.clone() });
        Some(Place { places: Arc::clone(self), number, wanted })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn clear(&mut self, number: u64) {
        if let Some(taken) = self.taken.remove(&number) {
            taken.wanted.cancel();
        }
    }
}

impl Place {
    /// Says whose it is. What comes back is shared by all connections of this peer: its one turn to
    /// exchange records.
    pub(super) fn belongs_to(&self, id: NodeId) -> Arc<Semaphore> {
        let mut table = self.places.lock();
        let of_peer = |taken: &Taken| taken.peer.clone().filter(|peer| peer.id == id);
        let others: Vec<(u64, Peer)> = table
            .taken
            .iter()
            .filter_map(|(number, taken)| Some((*number, of_peer(taken)?)))
            .collect();
        let gossip = others
            .first()
            .map_or_else(|| Arc::new(Semaphore::new(1)), |(_, peer)| Arc::clone(&peer.gossip));
        if let Some(taken) = table.taken.get_mut(&self.number) {
            taken.peer = Some(Peer { id, gossip: Arc::clone(&gossip) });
        }
        let over = (others.len() + 1).saturating_sub(PLACES_PER_PEER_MAX);
        for (number, _) in others.into_iter().take(over) {
            table.clear(number);
        }
        gossip
    }

    /// Returns when another needs it.
    pub(super) async fn wanted(&self) {
        self.wanted.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 32])
    }

    fn known(id: &NodeId) -> bool {
        id.as_bytes()[0] < 100
    }

    fn taken_by(places: &Arc<Places>, number: u8) -> Option<Place> {
        let place = places.take(known)?;
        place.belongs_to(node(number));
        Some(place)
    }

    fn is_wanted(place: &Place) -> bool {
        place.wanted().now_or_never().is_some()
    }

    #[test]
    fn strangers_make_room_the_oldest_first_and_nodes_of_the_network_do_not() {
        let places = Places::new(3);
        let first = taken_by(&places, 100).expect("free");
        let known_one = taken_by(&places, 1).expect("free");
        let second = taken_by(&places, 101).expect("free");
        let third = taken_by(&places, 102).expect("the first stranger's");
        assert!(is_wanted(&first) && !is_wanted(&known_one) && !is_wanted(&second));
        let fourth = taken_by(&places, 2).expect("the second stranger's");
        assert!(is_wanted(&second));
        // Nobody has shown yet who this is.
        let nameless = places.take(known).expect("the third stranger's");
        assert!(is_wanted(&third));
        let fifth = taken_by(&places, 3).expect("of the one without a name");
        assert!(is_wanted(&nameless));
        assert!(places.take(known).is_none(), "all are nodes of the network");
        // Whoever had to go gives nothing back that is another's now.
        drop((first, second, third, nameless));
        assert_eq!(places.taken(), 3);
        drop((known_one, fourth, fifth));
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn a_peer_has_so_many_places_and_one_turn_to_exchange_records() {
        let places = Places::new(100);
        let other = taken_by(&places, 2).expect("free");
        let all: Vec<Place> = (0..20).filter_map(|_| taken_by(&places, 1)).collect();
        let left: Vec<bool> = all.iter().map(|place| !is_wanted(place)).collect();
        assert_eq!(
            left,
            [[false; 20 - PLACES_PER_PEER_MAX].as_slice(), &[true; PLACES_PER_PEER_MAX]].concat()
        );
        assert_eq!(places.taken(), 1 + PLACES_PER_PEER_MAX);
        assert!(!is_wanted(&other));
        let (place, stranger) =
            (places.take(known).expect("free"), places.take(known).expect("free"));
        let held = place.belongs_to(node(1)).try_acquire_owned().expect("nobody else has it");
        assert!(stranger.belongs_to(node(3)).try_acquire_owned().is_ok());
        assert!(all[19].belongs_to(node(1)).try_acquire_owned().is_err());
        drop(held);
    }
}
