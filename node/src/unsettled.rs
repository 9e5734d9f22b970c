//! Chunks of puts that nobody said are safe: those that clients are at, and those that they left.
//!
//! Owns which shards of this node came by such a put, and the marks at chunks whose put was broken off.
//! Refuses to mark a chunk of which it holds anything that came otherwise. The one idea: who puts a chunk
//! says when it is safe (`Settled`); until then the node remembers it in memory, and writes it down only
//! when the client goes away before. So a put that goes well writes nothing, and a node that crashes
//! marks nothing: what is not marked counts as lost when too few of its shards exist.
//!
//! A mark goes when the chunk is settled, when a shard comes that is not of such a put, when no shard is
//! held any more, and when enough shards are seen elsewhere (`repair::marks`): it says "too few exist, and
//! nobody was told otherwise".
//!
//! ```text
//! row in the ledger        value
//! "ua" ‖ chunk id 32       1 u8 ‖ k u8 ‖ n u8
//! ```

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use copse_core::{
    geometry::Geometry,
    ids::{ChunkId, NodeId, ShardId, ShardIndex},
};
use tokio::time::Instant;

use crate::{
    beside::beside,
    store::{Ledger, ShardStore},
};

const ROW_PREFIX: &[u8] = b"ua";
const ROW_VERSION: u8 = 1;

/// Chunks of one stream that are not settled, at most; a client has 64 on their way. With more the oldest
/// counts as broken off.
pub(crate) const STREAM_CHUNKS_MAX: usize = 1024;

/// Chunks that one node forwarded, at most; with more the oldest is forgotten.
const PEER_CHUNKS_MAX: usize = 8192;

/// Chunks of all, at most: some 10 MB. What comes beyond is not waited for, and never marked.
const CHUNKS_MAX: usize = 1 << 16;

/// Marks, at most: some 5 MB. A chunk beyond gets none.
const MARKS_MAX: usize = 1 << 16;

/// What a node forwarded and never spoke of again is forgotten after this time: it crashed.
const PEER_FORGETS_AFTER: Duration = Duration::from_secs(3600);

/// By which way a put came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A client's stream at this door.
    Stream(u64),
    /// Another node's door.
    Peer(NodeId),
}

/// How a shard comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coming {
    /// By a put whose end will be told.
    Settling(Origin),
    /// From a holder that has a mark at its chunk.
    Abandoned,
    /// In any other way: it is not of a put that may be broken off.
    Otherwise,
}

/// A chunk on a node; none: this one.
pub(crate) type Place = (Option<NodeId>, ChunkId);

/// What is not settled. Clones are the same.
#[derive(Clone)]
pub struct Unsettled(Arc<Inner>);

struct Inner {
    store: Arc<dyn ShardStore>,
    ledger: Arc<dyn Ledger>,
    state: Mutex<State>,
    /// Held while rows are written, so that marks and rows agree.
    writing: tokio::sync::Mutex<()>,
    streams: AtomicU64,
}

#[derive(Default)]
struct State {
    origins: BTreeMap<Origin, Puts>,
    chunks: usize,
    marks: BTreeMap<ChunkId, Mark>,
    /// The mark that was looked at last of those that are not new.
    looked_at: Option<ChunkId>,
}

/// A chunk that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) geometry: Geometry,
    /// Whether it was looked for elsewhere since the start.
    is_new: bool,
}

/// The puts of one origin.
#[derive(Default)]
struct Puts {
    places: BTreeMap<Place, Came>,
    /// The oldest first.
    order: BTreeMap<u64, Place>,
    next: u64,
}

/// What came of a chunk.
struct Came {
    number: u64,
    since: Instant,
    geometry: Geometry,
    indices: Vec<ShardIndex>,
}

impl Puts {
    fn take(&mut self, place: &Place) -> Option<Came> {
        let came = self.places.remove(place)?;
        self.order.remove(&came.number);
        Some(came)
    }
}

impl State {
    fn forget(&mut self, origin: Origin, place: &Place) -> bool {
        let Some(puts) = self.origins.get_mut(&origin) else { return false };
        let forgotten = puts.take(place).is_some();
        if puts.places.is_empty() {
            self.origins.remove(&origin);
        }
        self.chunks -= usize::from(forgotten);
        forgotten
    }

    fn came_of<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = &'a Came> {
        self.origins.values().filter_map(|puts| puts.places.get(place))
    }
}

impl Unsettled {
    /// Reads the marks. Blocks on the ledger.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(store: Arc<dyn ShardStore>) -> io::Result<Self> {
        let (ledger, mut marks) = (store.ledger(), BTreeMap::new());
        ledger.scan(ROW_PREFIX, &mut |key, value| {
            if let Some((chunk, geometry)) = read_row(key, value) {
                marks.insert(chunk, Mark { geometry, is_new: true });
            }
            true
        })?;
        let state = Mutex::new(State { marks, ..State::default() });
        let (writing, streams) = (tokio::sync::Mutex::default(), AtomicU64::default());
        Ok(Self(Arc::new(Inner { store, ledger, state, writing, streams })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream of a client.
    pub(crate) fn stream(&self) -> Origin {
        Origin::Stream(self.0.streams.fetch_add(1, Relaxed))
    }

    /// A shard that was not held before is on the disk of `target`, and its put is not settled. One chunk
    /// that is to count as broken off, if the origin has too many.
    pub(crate) fn came(
        &self,
        origin: Origin,
        target: Option<NodeId>,
        id: ShardId,
        geometry: Geometry,
    ) -> Option<Place> {
        let (mut state, place) = (self.lock(), (target, id.chunk));
        let is_room = state.chunks < CHUNKS_MAX;
        let puts = match is_room {
            true => state.origins.entry(origin).or_default(),
            false => state.origins.get_mut(&origin)?,
        };
        if let Some(came) = puts.places.get_mut(&place) {
            if !came.indices.contains(&id.index) {
                came.indices.push(id.index);
            }
            return None;
        }
        if !is_room {
            return None;
        }
        let number = puts.next;
        puts.next += 1;
        let came = Came { number, since: Instant::now(), geometry, indices: vec![id.index] };
        puts.places.insert(place, came);
        puts.order.insert(number, place);
        let (count, oldest) = (puts.places.len(), puts.order.first_key_value().map(|(_, it)| *it));
        state.chunks += 1;
        match origin {
            Origin::Stream(_) => oldest.filter(|_| count > STREAM_CHUNKS_MAX),
            Origin::Peer(_) => {
                if count > PEER_CHUNKS_MAX
                    && let Some(oldest) = oldest
                {
                    state.forget(origin, &oldest);
                }
                None
            }
        }
    }

    /// A chunk is safe, whoever put it: nothing of it waits any more, and the mark goes.
    ///
    /// # Errors
    /// When the ledger fails: the mark stays.
    pub(crate) async fn settle(&self, place: Place) -> io::Result<()> {
        {
            let mut state = self.lock();
            let origins: Vec<Origin> = state.origins.keys().copied().collect();
            for origin in origins {
                state.forget(origin, &place);
            }
        }
        match place {
            (None, chunk) => self.unmark(vec![chunk]).await,
            (Some(_), _) => Ok(()),
        }
    }

    /// What of an origin is not settled.
    pub(crate) fn of(&self, origin: Origin) -> Vec<Place> {
        let state = self.lock();
        let puts = state.origins.get(&origin);
        puts.into_iter().flat_map(|puts| puts.order.values()).copied().collect()
    }

    /// Forgets it.
    pub(crate) fn forget(&self, origin: Origin, place: &Place) {
        self.lock().forget(origin, place);
    }

    /// Forgets what nodes forwarded long ago.
    pub(crate) fn forget_old(&self) {
        let mut state = self.lock();
        let old = |(origin, puts): (&Origin, &Puts)| {
            let (origin, is_peer) = (*origin, matches!(origin, Origin::Peer(_)));
            let is_old = |came: &Came| is_peer && came.since.elapsed() >= PEER_FORGETS_AFTER;
            let old = puts.places.iter().filter(|(_, came)| is_old(came));
            old.map(|(place, _)| (origin, *place)).collect::<Vec<_>>()
        };
        let old: Vec<_> = state.origins.iter().flat_map(old).collect();
        for (origin, place) in old {
            state.forget(origin, &place);
        }
    }

    /// The client went away: marks these chunks, as far as they are not settled by now and all that is held
    /// of them came by puts that are not.
    pub(crate) async fn abandon(&self, origin: Origin, chunks: &[ChunkId]) {
        let mut left = Vec::new();
        for &chunk in chunks {
            // A chunk whose shards cannot be looked for gets no mark.
            let held = self.0.store.held(chunk).await.unwrap_or_default();
            left.push((chunk, held));
        }
        let _writing = self.0.writing.lock().await;
        let (mut marks, mut rows) = (Vec::new(), Vec::new());
        {
            let mut state = self.lock();
            for (chunk, held) in left {
                let place = (None, chunk);
                let knows = |index| state.came_of(&place).any(|came| came.indices.contains(index));
                let all_new = !held.is_empty() && held.iter().all(knows);
                let geometry = state.came_of(&place).next().map(|came| came.geometry);
                let waits = state.forget(origin, &place);
                let room = state.marks.len() < MARKS_MAX && !state.marks.contains_key(&chunk);
                if let (true, true, true, Some(geometry)) = (all_new, waits, room, geometry) {
                    state.marks.insert(chunk, Mark { geometry, is_new: true });
                    marks.push(chunk);
                    rows.push((row_key(&chunk), Some(row_value(geometry))));
                }
            }
        }
        if rows.is_empty() {
            return;
        }
        tracing::debug!(chunks = rows.len(), "a put was broken off");
        if let Err(error) = self.write(rows).await {
            tracing::warn!(%error, "that a put was broken off cannot be written down");
            let mut state = self.lock();
            for chunk in &marks {
                state.marks.remove(chunk);
            }
        }
    }

    /// A shard came that is not of a put which may be broken off, or one with a mark: `was_held` says
    /// whether anything of the chunk was held before.
    pub(crate) async fn moved(
        &self,
        id: ShardId,
        geometry: Geometry,
        coming: Coming,
        was_held: bool,
    ) -> io::Result<()> {
        match coming {
            Coming::Settling(_) => Ok(()),
            Coming::Otherwise => self.unmark(vec![id.chunk]).await,
            Coming::Abandoned if was_held => Ok(()),
            Coming::Abandoned => {
                let _writing = self.0.writing.lock().await;
                if self.lock().marks.len() >= MARKS_MAX {
                    return Ok(());
                }
                self.write(vec![(row_key(&id.chunk), Some(row_value(geometry)))]).await?;
                self.lock().marks.insert(id.chunk, Mark { geometry, is_new: true });
                Ok(())
            }
        }
    }

    /// Takes marks away.
    ///
    /// # Errors
    /// When the ledger fails: they stay.
    pub(crate) async fn unmark(&self, mut chunks: Vec<ChunkId>) -> io::Result<()> {
        chunks.retain(|chunk| self.is_marked(chunk));
        if chunks.is_empty() {
            return Ok(());
        }
        let _writing = self.0.writing.lock().await;
        self.write(chunks.iter().map(|chunk| (row_key(chunk), None)).collect()).await?;
        let mut state = self.lock();
        for chunk in &chunks {
            state.marks.remove(chunk);
        }
        Ok(())
    }

    async fn write(&self, rows: Vec<crate::store::LedgerChange>) -> io::Result<()> {
        let ledger = Arc::clone(&self.0.ledger);
        beside(move || ledger.apply(rows)).await.map_err(io::Error::other)?
    }

    /// Whether the put of a chunk was broken off, as far as this node's shards tell.
    pub(crate) fn is_marked(&self, chunk: &ChunkId) -> bool {
        self.lock().marks.contains_key(chunk)
    }

    /// Whether nobody has said yet that the chunk is safe, of a put that goes on or was broken off.
    pub(crate) fn is_unsettled(&self, chunk: &ChunkId) -> bool {
        let state = self.lock();
        state.marks.contains_key(chunk) || state.came_of(&(None, *chunk)).next().is_some()
    }

    /// Marks to look at: those that nobody looked at since the start, or the next few of the others.
    pub(crate) fn to_look_at(&self, new_max: usize, others_max: usize) -> Vec<(ChunkId, Geometry)> {
        let mut state = self.lock();
        let new = state.marks.iter_mut().filter(|(_, mark)| mark.is_new).take(new_max);
        let new: Vec<_> = new
            .map(|(chunk, mark)| {
                mark.is_new = false;
                (*chunk, mark.geometry)
            })
            .collect();
        if !new.is_empty() {
            return new;
        }
        let behind = |chunk: &ChunkId| state.looked_at.is_none_or(|last| *chunk > last);
        let others = state.marks.iter().filter(|(chunk, _)| behind(chunk));
        let others: Vec<_> =
            others.take(others_max).map(|(chunk, mark)| (*chunk, mark.geometry)).collect();
        // At the end it begins anew.
        state.looked_at = others.last().map(|(chunk, _)| *chunk);
        others
    }
}

fn row_key(chunk: &ChunkId) -> Vec<u8> {
    [ROW_PREFIX, chunk.as_bytes()].concat()
}

fn row_value(geometry: Geometry) -> Vec<u8> {
    let [k, n] = geometry.to_bytes();
    vec![ROW_VERSION, k, n]
}

fn read_row(key: &[u8], value: &[u8]) -> Option<(ChunkId, Geometry)> {
    let chunk = ChunkId::from_slice(key.get(ROW_PREFIX.len()..)?).ok()?;
    let [ROW_VERSION, k, n] = value else { return None };
    Some((chunk, Geometry::from_bytes([*k, *n]).ok()?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use copse_core::{descriptor::Descriptor, shard_tree};

    use super::*;
    use crate::store::{MemoryStore, VerifiedShard};

    const STREAM: Origin = Origin::Stream(7);

    fn shard(seed: u8, index: u8) -> VerifiedShard {
        let data = Bytes::from(vec![seed; 1000]);
        let descriptor = Descriptor::new(geometry(), 1000, vec![shard_tree::hash(&data); 3]);
        let descriptor = descriptor.expect("a descriptor").encode().into();
        VerifiedShard::check(descriptor, ShardIndex(index), data).expect("a sound shard")
    }

    fn geometry() -> Geometry {
        Geometry::new(1, 2).expect("a geometry")
    }

    struct Node {
        store: Arc<MemoryStore>,
        unsettled: Unsettled,
    }

    impl Node {
        fn new() -> Self {
            let store = Arc::new(MemoryStore::new(1 << 24));
            let unsettled = Unsettled::load(Arc::clone(&store) as Arc<dyn ShardStore>);
            Self { unsettled: unsettled.expect("a ledger"), store }
        }

        /// What its ledger says after a restart.
        fn marks(&self) -> Vec<ChunkId> {
            let again = Unsettled::load(Arc::clone(&self.store) as Arc<dyn ShardStore>);
            let again = again.expect("a ledger").lock().marks.keys().copied().collect::<Vec<_>>();
            assert_eq!(again, self.unsettled.lock().marks.keys().copied().collect::<Vec<_>>());
            again
        }

        /// Stores a shard that comes by a put; its chunk.
        async fn put(&self, origin: Origin, seed: u8, index: u8) -> ChunkId {
            let id = self.hold(seed, index).await;
            assert_eq!(self.unsettled.came(origin, None, id, geometry()), None);
            id.chunk
        }

        async fn hold(&self, seed: u8, index: u8) -> ShardId {
            let shard = shard(seed, index);
            let id = shard.id();
            self.store.put(shard).await.expect("a put");
            id
        }
    }

    #[test]
    fn a_row_has_these_bytes_and_reads_back() {
        let chunk = ChunkId::new([5; 32]);
        let (key, value) = (row_key(&chunk), row_value("10+6".parse().expect("a geometry")));
        assert_eq!(key, [&b"ua"[..], &[5; 32]].concat());
        assert_eq!(value, [1, 10, 16]);
        let back = read_row(&key, &value).expect("a row");
        assert_eq!(back, (chunk, "10+6".parse().expect("a geometry")));
        assert_eq!(read_row(&key[..30], &value), None);
        assert_eq!(read_row(&key, &[2, 10, 16]), None, "of another version");
    }

    #[tokio::test]
    async fn what_is_settled_leaves_nothing_and_what_is_left_leaves_a_mark() {
        let node = Node::new();
        let (safe, left) = (node.put(STREAM, 1, 0).await, node.put(STREAM, 2, 0).await);
        assert!(node.unsettled.is_unsettled(&safe) && node.unsettled.is_unsettled(&left));
        assert_eq!(node.unsettled.of(STREAM), [(None, safe), (None, left)]);
        node.unsettled.settle((None, safe)).await.expect("no mark");
        assert!(!node.unsettled.is_unsettled(&safe));
        assert_eq!(node.marks(), []);
        node.unsettled.abandon(STREAM, &[safe, left]).await;
        assert_eq!(node.marks(), [left]);
        assert_eq!((node.unsettled.of(STREAM).len(), node.unsettled.lock().chunks), (0, 0));
        // The put is made again: until it is settled, the mark stays.
        node.put(Origin::Stream(8), 2, 1).await;
        assert_eq!(node.marks(), [left]);
        node.unsettled.settle((None, left)).await.expect("a ledger");
        assert_eq!(node.marks(), []);
        assert!(!node.unsettled.is_unsettled(&left));
    }

    #[tokio::test]
    async fn what_was_held_before_is_never_marked() {
        let node = Node::new();
        // Of a put that was settled long ago; then another index of it comes, and that put ends.
        node.hold(1, 0).await;
        let chunk = node.put(STREAM, 1, 1).await;
        node.unsettled.abandon(STREAM, &[chunk]).await;
        assert_eq!(node.marks(), []);
        // What nobody put by that way is not marked at anybody's word.
        let other = node.put(Origin::Peer(NodeId::new([1; 32])), 2, 0).await;
        node.unsettled.abandon(Origin::Peer(NodeId::new([2; 32])), &[other, chunk]).await;
        assert_eq!(node.marks(), []);
        // Nor what was settled before the node that forwarded it says that its client went away.
        node.unsettled.settle((None, other)).await.expect("no mark");
        node.unsettled.abandon(Origin::Peer(NodeId::new([1; 32])), &[other]).await;
        assert_eq!(node.marks(), []);
    }

    #[tokio::test]
    async fn two_clients_that_leave_the_same_chunk_leave_a_mark_and_one_that_ends_takes_it_away() {
        let node = Node::new();
        let chunk = node.put(STREAM, 1, 0).await;
        node.put(Origin::Stream(8), 1, 1).await;
        node.unsettled.abandon(STREAM, &[chunk]).await;
        assert_eq!(node.marks(), [chunk]);
        node.unsettled.settle((None, chunk)).await.expect("a ledger");
        node.unsettled.abandon(Origin::Stream(8), &[chunk]).await;
        assert_eq!(node.marks(), []);
    }

    #[tokio::test]
    async fn a_mark_goes_with_a_shard_and_not_with_one_beside_another() {
        let node = Node::new();
        let moved = async |seed, coming, was_held| {
            let id = node.hold(seed, 0).await;
            node.unsettled.moved(id, geometry(), coming, was_held).await.expect("a ledger");
            id.chunk
        };
        let marked = moved(1, Coming::Abandoned, false).await;
        moved(2, Coming::Abandoned, true).await;
        moved(3, Coming::Otherwise, false).await;
        assert_eq!(node.marks(), [marked]);
        // A shard of it that is no such one: somebody knows better.
        moved(1, Coming::Otherwise, true).await;
        assert_eq!(node.marks(), []);
    }

    #[tokio::test]
    async fn over_the_bound_the_oldest_of_a_stream_counts_as_broken_off() {
        let node = Node::new();
        let id = |number: usize| ShardId {
            chunk: ChunkId::new(*blake3::hash(&number.to_le_bytes()).as_bytes()),
            index: ShardIndex(0),
        };
        for number in 0..STREAM_CHUNKS_MAX {
            assert_eq!(node.unsettled.came(STREAM, None, id(number), geometry()), None);
        }
        let more = node.unsettled.came(STREAM, None, id(STREAM_CHUNKS_MAX), geometry());
        assert_eq!(more, Some((None, id(0).chunk)));
        node.unsettled.abandon(STREAM, &[id(0).chunk]).await;
        assert_eq!(node.unsettled.of(STREAM).len(), STREAM_CHUNKS_MAX);
        // Of another node's the oldest is forgotten; of all together what comes last is not waited for.
        let peer = Origin::Peer(NodeId::new([1; 32]));
        for number in 0..=PEER_CHUNKS_MAX {
            assert_eq!(node.unsettled.came(peer, None, id(number), geometry()), None);
        }
        let first = node.unsettled.of(peer)[0];
        assert_eq!((first, node.unsettled.of(peer).len()), ((None, id(1).chunk), PEER_CHUNKS_MAX));
        for number in 0..CHUNKS_MAX {
            let origin = Origin::Stream(100 + number as u64 / 1000);
            node.unsettled.came(origin, None, id(number), geometry());
        }
        assert_eq!(node.unsettled.lock().chunks, CHUNKS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_node_forwarded_and_never_spoke_of_again_is_forgotten() {
        let node = Node::new();
        let (peer, chunk) = (Origin::Peer(NodeId::new([1; 32])), node.put(STREAM, 1, 0).await);
        let forwarded = node.put(peer, 2, 0).await;
        tokio::time::advance(PEER_FORGETS_AFTER - Duration::from_secs(1)).await;
        node.unsettled.forget_old();
        assert!(node.unsettled.is_unsettled(&forwarded));
        tokio::time::advance(Duration::from_secs(1)).await;
        node.unsettled.forget_old();
        assert!(!node.unsettled.is_unsettled(&forwarded));
        assert!(node.unsettled.is_unsettled(&chunk), "its client is there");
    }

    #[tokio::test]
    async fn new_marks_are_looked_at_once_and_then_all_in_turn() {
        let node = Node::new();
        let mut chunks = Vec::new();
        for seed in 0..5 {
            chunks.push(node.put(STREAM, seed, 0).await);
        }
        node.unsettled.abandon(STREAM, &chunks).await;
        chunks.sort_unstable();
        let looked = || -> Vec<ChunkId> {
            let marks = node.unsettled.to_look_at(4, 2);
            marks.into_iter().map(|(chunk, _)| chunk).collect()
        };
        assert_eq!(looked(), chunks[..4]);
        for expected in [4..5, 0..2, 2..4, 4..5, 0..0, 0..2] {
            assert_eq!(looked(), chunks[expected]);
        }
    }
}
