//! Chunks of puts that nobody said are safe: those that clients are at, and those that they left.
//!
//! Owns which shards of this node came by such a put, and the marks at chunks whose put was broken off.
//! Refuses to call a chunk unsettled of which it holds anything that came otherwise: such a shard is all
//! that tells that the chunk was stored once. The one idea: who puts a chunk
//! says when it is safe (`Settled`); until then the node remembers it in memory, and writes it down only
//! when the client goes away before. So a put that goes well writes nothing, and a node that crashes
//! marks nothing: what is not marked counts as lost when too few of its shards exist.
//!
//! A mark goes when the chunk is settled, when a shard comes that is not of such a put, when no shard is
//! held any more, and when enough shards are seen elsewhere (`repair::marks`): it says "too few exist, and
//! nobody was told otherwise". It speaks for the shards that it names, and for no other that came since.
//!
//! ```text
//! row in the ledger        value
//! "ua" ‖ chunk id 32       2 u8 ‖ k u8 ‖ n u8 ‖ the shards' indices, u8 each, ascending
//! ```
//!
//! Version 1 named no indices. Its rows say nothing: what they were about counts as lost.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
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
    store::{Ledger, ShardStore, Stored},
};

const ROW_PREFIX: &[u8] = b"ua";
const ROW_VERSION: u8 = 2;

/// Chunks of one stream that are not settled, at most; a client has 64 on their way. With more the oldest
/// counts as broken off.
pub(crate) const STREAM_CHUNKS_MAX: usize = 1024;

/// Chunks that one node forwarded, at most; with more the oldest is forgotten.
const PEER_CHUNKS_MAX: usize = 8192;

/// Chunks of all, at most: some 10 MB. What comes beyond is not waited for, and never marked.
const CHUNKS_MAX: usize = 1 << 16;

/// Marks, at most: some 5 MB, of the widest codes 20. A chunk beyond gets none.
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
    places: BTreeMap<Place, BTreeMap<Origin, Came>>,
    origins: BTreeMap<Origin, Puts>,
    /// How many there are in `places`, of all origins.
    chunks: usize,
    marks: BTreeMap<ChunkId, Mark>,
    /// The mark that was looked at last of those that are new, and of the others.
    looked_at: (Option<ChunkId>, Option<ChunkId>),
}

/// A chunk that was left.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    geometry: Geometry,
    /// The shards that were held when it was left: it speaks for no others.
    indices: Vec<ShardIndex>,
    /// Whether it was not looked for elsewhere yet since the start.
    is_new: bool,
}

/// A mark to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) chunk: ChunkId,
    pub(crate) geometry: Geometry,
    /// Nobody may have looked at it since the start.
    pub(crate) is_new: bool,
}

/// A chunk that was marked, and the mark that it had before.
type Marked = (ChunkId, Option<Mark>);

/// The puts of one origin, the oldest first.
#[derive(Default)]
struct Puts {
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

impl State {
    fn forget(&mut self, origin: Origin, place: &Place) -> bool {
        let Some(by) = self.places.get_mut(place) else { return false };
        let Some(came) = by.remove(&origin) else { return false };
        if by.is_empty() {
            self.places.remove(place);
        }
        if let Some(puts) = self.origins.get_mut(&origin) {
            puts.order.remove(&came.number);
            if puts.order.is_empty() {
                self.origins.remove(&origin);
            }
        }
        self.chunks -= 1;
        true
    }

    fn came_of(&self, place: &Place) -> impl Iterator<Item = &Came> {
        self.places.get(place).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether these shards of this node's all came by puts that nobody has called safe.
    fn knows(&self, chunk: &ChunkId, held: &[ShardIndex]) -> bool {
        let mark = self.marks.get(chunk);
        held.iter().all(|index| {
            mark.is_some_and(|mark| mark.indices.contains(index))
                || self.came_of(&(None, *chunk)).any(|came| came.indices.contains(index))
        })
    }

    /// Marks a chunk of which these shards are held, if there is room.
    fn mark(
        &mut self,
        chunk: ChunkId,
        geometry: Geometry,
        mut indices: Vec<ShardIndex>,
    ) -> Option<Marked> {
        let before = self.marks.get(&chunk).cloned();
        if before.is_none() && self.marks.len() >= MARKS_MAX {
            return None;
        }
        indices.sort_unstable();
        self.marks.insert(chunk, Mark { geometry, indices, is_new: true });
        Some((chunk, before))
    }
}

impl Unsettled {
    /// Reads the marks. Blocks on the ledger.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(store: Arc<dyn ShardStore>) -> io::Result<Self> {
        let ledger = store.ledger();
        Self::with(store, ledger)
    }

    /// The same, with the marks in a ledger that is not the store's.
    pub(crate) fn with(store: Arc<dyn ShardStore>, ledger: Arc<dyn Ledger>) -> io::Result<Self> {
        let mut marks = BTreeMap::new();
        ledger.scan(ROW_PREFIX, &mut |key, value| {
            marks.extend(read_row(key, value));
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
        let State { places, origins, chunks, .. } = &mut *state;
        if let Some(came) = places.get_mut(&place).and_then(|by| by.get_mut(&origin)) {
            if !came.indices.contains(&id.index) {
                came.indices.push(id.index);
            }
            return None;
        }
        if *chunks >= CHUNKS_MAX {
            return None;
        }
        let puts = origins.entry(origin).or_default();
        let number = puts.next;
        puts.next += 1;
        puts.order.insert(number, place);
        let came = Came { number, since: Instant::now(), geometry, indices: vec![id.index] };
        places.entry(place).or_default().insert(origin, came);
        *chunks += 1;
        let (count, oldest) = (puts.order.len(), puts.order.first_key_value().map(|(_, it)| *it));
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
            let by = state.places.get(&place);
            let by: Vec<Origin> = by.into_iter().flat_map(BTreeMap::keys).copied().collect();
            for origin in by {
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
        let old = |(origin, came): &(&Origin, &Came)| {
            matches!(origin, Origin::Peer(_)) && came.since.elapsed() >= PEER_FORGETS_AFTER
        };
        let of_place = |(place, by): (&Place, &BTreeMap<Origin, Came>)| {
            let old = by.iter().filter(old).map(|(origin, _)| (*origin, *place));
            old.collect::<Vec<_>>()
        };
        let old: Vec<(Origin, Place)> = state.places.iter().flat_map(of_place).collect();
        for (origin, place) in old {
            state.forget(origin, &place);
        }
    }

    /// The client went away: marks these chunks, as far as they are not settled by now and all that is held
    /// of them came by puts that are not.
    pub(crate) async fn abandon(&self, origin: Origin, chunks: &[ChunkId]) {
        let _writing = self.0.writing.lock().await;
        let mut marked = Vec::new();
        for &chunk in chunks {
            // A chunk whose shards cannot be looked for gets no mark.
            let held = self.0.store.held(chunk).await.unwrap_or_default();
            let (mut state, place) = (self.lock(), (None, chunk));
            let is_unsettled = !held.is_empty() && state.knows(&chunk, &held);
            let geometry = state.came_of(&place).next().map(|came| came.geometry);
            // Settled meanwhile, or of another origin: then this one has no say.
            let waits = state.forget(origin, &place);
            if let Some(geometry) = geometry.filter(|_| is_unsettled && waits) {
                marked.extend(state.mark(chunk, geometry, held));
            }
        }
        tracing::debug!(chunks = marked.len(), "a put was broken off");
        if let Err(error) = self.write_marks(marked).await {
            tracing::warn!(%error, "that a put was broken off cannot be written down");
        }
    }

    /// A shard is on the disk that is not of a put which goes on: it speaks for the chunk.
    ///
    /// # Errors
    /// When the ledger fails: the marks are as they were.
    pub(crate) async fn moved(
        &self,
        id: ShardId,
        geometry: Geometry,
        coming: Coming,
        stored: Stored,
    ) -> io::Result<()> {
        match (coming, stored) {
            (Coming::Settling(_), _) => Ok(()),
            // Whoever gave it knows that the chunk was stored once; this node knew too little, also of the
            // very same shard.
            (Coming::Otherwise, _) => self.settle((None, id.chunk)).await,
            // It was held before: somebody knows better, or it is marked already.
            (Coming::Abandoned, Stored::AlreadyHeld) => Ok(()),
            (Coming::Abandoned, Stored::New) => {
                let _writing = self.0.writing.lock().await;
                let held = self.0.store.held(id.chunk).await.unwrap_or_default();
                let others: Vec<ShardIndex> =
                    held.iter().copied().filter(|index| *index != id.index).collect();
                let marked = {
                    let mut state = self.lock();
                    let knows = others.len() < held.len() && state.knows(&id.chunk, &others);
                    knows.then(|| state.mark(id.chunk, geometry, held)).flatten()
                };
                self.write_marks(marked.into_iter().collect()).await
            }
        }
    }

    /// Writes marks down, while `writing` is held; if that fails they are as they were before.
    async fn write_marks(&self, marked: Vec<Marked>) -> io::Result<()> {
        if marked.is_empty() {
            return Ok(());
        }
        let rows = {
            let state = self.lock();
            let row = |(chunk, _): &Marked| {
                let mark = state.marks.get(chunk)?;
                Some((row_key(chunk), Some(row_value(mark.geometry, &mark.indices))))
            };
            marked.iter().filter_map(row).collect()
        };
        let written = self.write(rows).await;
        if written.is_err() {
            let mut state = self.lock();
            for (chunk, before) in marked {
                match before {
                    Some(mark) => state.marks.insert(chunk, mark),
                    None => state.marks.remove(&chunk),
                };
            }
        }
        written
    }

    /// Takes marks away.
    ///
    /// # Errors
    /// When the ledger fails: they stay.
    pub(crate) async fn unmark(&self, mut chunks: Vec<ChunkId>) -> io::Result<()> {
        {
            let state = self.lock();
            chunks.retain(|chunk| state.marks.contains_key(chunk));
        }
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

    /// Whether these shards, which are all that is held of a chunk, came by puts that nobody has called safe,
    /// whether they go on or were broken off.
    pub(crate) fn is_unsettled(&self, chunk: &ChunkId, held: &[ShardIndex]) -> bool {
        !held.is_empty() && self.lock().knows(chunk, held)
    }

    /// Whether it is to be told when the chunk is safe: it has a mark, or a put of it goes on.
    pub(crate) fn waits(&self, chunk: &ChunkId) -> bool {
        let state = self.lock();
        state.marks.contains_key(chunk) || state.places.contains_key(&(None, *chunk))
    }

    /// Marks to look at, in turn: so many of those for which not all who were asked have answered since the
    /// start, and of the others.
    pub(crate) fn to_look_at(&self, new_max: usize, others_max: usize) -> Vec<Look> {
        let mut state = self.lock();
        let State { marks, looked_at, .. } = &mut *state;
        let mut looks = Vec::new();
        for (is_new, most, last) in
            [(true, new_max, &mut looked_at.0), (false, others_max, &mut looked_at.1)]
        {
            let behind = (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
            let such = marks.range(behind).filter(|(_, mark)| mark.is_new == is_new);
            let look = |(chunk, mark): (&ChunkId, &Mark)| Look {
                chunk: *chunk,
                geometry: mark.geometry,
                is_new,
            };
            let next: Vec<Look> = such.take(most).map(look).collect();
            // At the end it begins anew.
            *last = next.last().map(|look| look.chunk);
            looks.extend(next);
        }
        looks
    }

    /// All who were asked about the shards of these chunks have answered.
    pub(crate) fn looked_at(&self, chunks: impl Iterator<Item = ChunkId>) {
        let mut state = self.lock();
        for chunk in chunks {
            if let Some(mark) = state.marks.get_mut(&chunk) {
                mark.is_new = false;
            }
        }
    }
}

fn row_key(chunk: &ChunkId) -> Vec<u8> {
    [ROW_PREFIX, chunk.as_bytes()].concat()
}

fn row_value(geometry: Geometry, indices: &[ShardIndex]) -> Vec<u8> {
    let [k, n] = geometry.to_bytes();
    let indices = indices.iter().map(|index| index.0);
    [ROW_VERSION, k, n].into_iter().chain(indices).collect()
}

fn read_row(key: &[u8], value: &[u8]) -> Option<(ChunkId, Mark)> {
    let chunk = ChunkId::from_slice(key.get(ROW_PREFIX.len()..)?).ok()?;
    let [ROW_VERSION, k, n, indices @ ..] = value else { return None };
    let geometry = Geometry::from_bytes([*k, *n]).ok()?;
    let indices = indices.iter().map(|index| ShardIndex(*index)).collect();
    Some((chunk, Mark { geometry, indices, is_new: true }))
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

        /// Whether what it holds of a chunk is said to be of no settled put.
        async fn is_unsettled(&self, chunk: ChunkId) -> bool {
            let held = self.store.held(chunk).await.expect("a store");
            self.unsettled.is_unsettled(&chunk, &held)
        }

        /// Stores a shard that comes in some other way; its chunk.
        async fn moved(&self, seed: u8, index: u8, coming: Coming) -> ChunkId {
            let shard = shard(seed, index);
            let id = shard.id();
            let stored = self.store.put(shard).await.expect("a put");
            let moved = self.unsettled.moved(id, geometry(), coming, stored);
            moved.await.expect("a ledger");
            id.chunk
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
        let (geometry, indices) = ("10+6".parse().expect("a geometry"), [3, 15].map(ShardIndex));
        let (key, value) = (row_key(&chunk), row_value(geometry, &indices));
        assert_eq!(key, [&b"ua"[..], &[5; 32]].concat());
        assert_eq!(value, [2, 10, 16, 3, 15]);
        let back = read_row(&key, &value).expect("a row");
        assert_eq!(back, (chunk, Mark { geometry, indices: indices.to_vec(), is_new: true }));
        assert_eq!(read_row(&key[..30], &value), None);
        assert_eq!(read_row(&key, &[3, 10, 16, 3]), None, "of another version");
        assert_eq!(read_row(&key, &[1, 10, 16]), None, "it does not say of which shards");
    }

    #[tokio::test]
    async fn what_is_settled_leaves_nothing_and_what_is_left_leaves_a_mark() {
        let node = Node::new();
        let (safe, left) = (node.put(STREAM, 1, 0).await, node.put(STREAM, 2, 0).await);
        assert!(node.is_unsettled(safe).await && node.is_unsettled(left).await);
        assert_eq!(node.unsettled.of(STREAM), [(None, safe), (None, left)]);
        node.unsettled.settle((None, safe)).await.expect("no mark");
        assert!(!node.is_unsettled(safe).await);
        assert_eq!(node.marks(), []);
        node.unsettled.abandon(STREAM, &[safe, left]).await;
        assert_eq!(node.marks(), [left]);
        assert_eq!((node.unsettled.of(STREAM).len(), node.unsettled.lock().chunks), (0, 0));
        // The put is made again: until it is settled, the mark stays, also when that one is broken off.
        for (stream, index) in [(8, 1), (9, 2)] {
            node.put(Origin::Stream(stream), 2, index).await;
            assert!(node.is_unsettled(left).await);
            node.unsettled.abandon(Origin::Stream(stream), &[left]).await;
            assert!(node.is_unsettled(left).await);
        }
        assert_eq!(node.marks(), [left]);
        node.unsettled.settle((None, left)).await.expect("a ledger");
        assert_eq!(node.marks(), []);
        assert!(!node.is_unsettled(left).await);
        assert_eq!(node.unsettled.lock().places.len(), 0);
    }

    #[tokio::test]
    async fn what_was_held_before_is_never_marked() {
        let node = Node::new();
        // Of a put that was settled long ago; then another index of it comes, and that put ends.
        node.hold(1, 0).await;
        let chunk = node.put(STREAM, 1, 1).await;
        assert!(node.unsettled.waits(&chunk), "its client is to say when it is safe");
        assert!(!node.is_unsettled(chunk).await, "nor is it said while the put goes on");
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
        let marked = node.moved(1, 0, Coming::Abandoned).await;
        assert!(node.is_unsettled(marked).await);
        // Beside one that was there before.
        node.hold(2, 1).await;
        let beside = node.moved(2, 0, Coming::Abandoned).await;
        node.hold(3, 0).await;
        node.moved(3, 0, Coming::Abandoned).await;
        node.moved(4, 0, Coming::Otherwise).await;
        assert_eq!(node.marks(), [marked]);
        assert!(!node.is_unsettled(beside).await);
        // Another one with a mark, beside one whose put goes on.
        node.put(STREAM, 1, 1).await;
        node.moved(1, 2, Coming::Abandoned).await;
        assert!(node.is_unsettled(marked).await);
        // A shard of it that is no such one, be it the same: somebody knows better.
        node.moved(1, 1, Coming::Otherwise).await;
        assert_eq!(node.marks(), []);
        assert!(!node.is_unsettled(marked).await);
        node.unsettled.abandon(STREAM, &[marked]).await;
        assert_eq!(node.marks(), []);
        // Also while the put goes on that the same one came by, and nothing else is held.
        let same = node.put(STREAM, 5, 0).await;
        node.moved(5, 0, Coming::Otherwise).await;
        assert!(!node.is_unsettled(same).await);
        node.unsettled.abandon(STREAM, &[same]).await;
        assert_eq!(node.marks(), []);
    }

    #[tokio::test]
    async fn a_mark_speaks_for_no_shard_that_came_beside_it() {
        let node = Node::new();
        let chunk = node.moved(1, 0, Coming::Abandoned).await;
        // It came otherwise, and the ledger failed before it could take the mark away.
        node.hold(1, 1).await;
        assert_eq!(node.marks(), [chunk]);
        assert!(!node.is_unsettled(chunk).await && node.unsettled.waits(&chunk));
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
        assert!(node.unsettled.waits(&forwarded));
        tokio::time::advance(Duration::from_secs(1)).await;
        node.unsettled.forget_old();
        assert!(!node.unsettled.waits(&forwarded));
        assert!(node.unsettled.waits(&chunk), "its client is there");
    }

    #[tokio::test]
    async fn new_marks_are_looked_at_until_all_have_answered_and_all_in_turn() {
        let node = Node::new();
        let mut chunks = Vec::new();
        for seed in 0..5 {
            chunks.push(node.put(STREAM, seed, 0).await);
        }
        node.unsettled.abandon(STREAM, &chunks).await;
        chunks.sort_unstable();
        let looked = |is_new| -> Vec<ChunkId> {
            let looks = node.unsettled.to_look_at(if is_new { 3 } else { 0 }, 2);
            looks.iter().filter(|look| look.is_new == is_new).map(|look| look.chunk).collect()
        };
        for expected in [0..3, 3..5, 0..0, 0..3] {
            assert_eq!(looked(true), chunks[expected]);
        }
        assert_eq!(looked(false), []);
        node.unsettled.looked_at(chunks[1..].iter().copied());
        assert_eq!(looked(true), chunks[..1]);
        node.unsettled.looked_at(chunks[..1].iter().copied());
        while !looked(false).is_empty() {}
        for expected in [0..2, 2..4, 4..5, 0..0, 0..2] {
            assert_eq!(looked(false), chunks[expected]);
        }
    }
}
