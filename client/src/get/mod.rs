//! Reading ranges of sealed items: from as few nodes as possible, from others when those fail.
//!
//! Owns a reader's habits: how long answers usually take, how much hedging it may do, what it knows
//! of chunks. Hands out only bytes that were verified twice: against the shard's hash tree, and by
//! the cipher.
//!
//! ```text
//! extent, range ─▶ ranges of data shards ─ gather ─▶ sealed frames ─ open ─▶ plaintext
//!                                            │
//!                      late, wrong, missing ─┴─▶ the same columns of k others ─▶ rebuild
//! ```

mod cache;
pub(crate) mod facts;
pub(crate) mod fetch;
mod gather;
mod search;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use copse_core::{
    extent::Extent,
    ids::{ChunkId, NodeId, ShardIndex},
    limits::TAG_BYTES,
    seal::{FrameSpan, OpenError, open_span_into},
};

pub use self::search::Search;
use self::{
    cache::Cache,
    facts::{ChunkFacts, FactBook},
    gather::{Want, gather},
    search::Searches,
};
use crate::{buffers::Pool, error::GetError, latency::Latency, network::Network, task::beside};

/// A hedge is not sent earlier than this: below, the network's own jitter would send it.
const PATIENCE_MIN: Duration = Duration::from_millis(20);

/// Patience before there are enough answers to know better, for small and for large ranges.
const PATIENCE_FIRST: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// Ranges of shards up to this size are timed apart from larger ones, in bytes.
const SMALL_BYTES: usize = 64 << 10;

/// Reads that may be hedged in a row; each read earns a tenth of one, so in the long run one in ten
/// is hedged, as the 90th percentile says. This keeps hedging from making a jam worse.
const HEDGES_MAX: i64 = 20;

/// Reads in a row that waited for shards in vain. After these a reader no longer waits: a tree of
/// which many chunks are gone shall say so soon.
const VAIN_LOOKS_MAX: u32 = 2;

/// A reader that no longer waits does not ask a node either that failed within this time: each time it may take
/// [some seconds](crate::network) to find out that a node is still gone, and a tree has many chunks.
const GONE_FOR: Duration = Duration::from_secs(10);

/// Plaintext of more than this is opened on a thread of its own: below, it takes less than a tenth
/// of a millisecond.
const OPEN_INLINE_BYTES: usize = 64 << 10;

/// Idle buffers for shards, in bytes: those of three full chunks.
const SHARDS_KEPT_BYTES_MAX: usize = 24 << 20;

/// Idle buffers for plaintext, in bytes: those of four full chunks. Apart from those for shards, which a few
/// of these would leave no room for.
const PLAIN_KEPT_BYTES_MAX: usize = 32 << 20;

/// Items up to this size, read one after the other, are read ahead of: a tree's small files and
/// nodes lie side by side in packs, and a request for each would take a round trip for each.
const NEIGHBOUR_BYTES: usize = 64 << 10;

/// How much of a shard is fetched for a neighbour that will be asked for next.
const READ_THROUGH_BYTES: usize = 256 << 10;

/// Pieces of shards kept for their neighbours, in bytes.
const PIECES_BYTES_MAX: usize = 8 << 20;

/// Tree nodes kept, in bytes of plaintext: the upper levels of a large directory or file, so that a
/// look-up costs one or two requests.
const NODES_BYTES_MAX: usize = 8 << 20;

/// Reads items. Cheap to clone; all clones share what they learn.
#[derive(Clone)]
pub struct Downloader {
    reader: Arc<Reader>,
}

struct Reader {
    network: Network,
    book: FactBook,
    small: Latency,
    large: Latency,
    // In tenths of a hedge.
    hedges: AtomicI64,
    vain_looks: AtomicU32,
    counters: Counters,
    searches: Arc<Searches>,
    /// For what comes of shards, and what is rebuilt of them.
    shards: Arc<Pool>,
    /// For what is opened of them.
    plain: Arc<Pool>,
    pieces: Cache<(ChunkId, ShardIndex)>,
    nodes: Cache<Extent>,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    hedged: AtomicU64,
    rebuilt: AtomicU64,
}

/// What a reader has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GetCounts {
    /// Requests for ranges of shards.
    pub requests: u64,
    /// Requests that were late, so that others were asked too.
    pub hedged: u64,
    /// Ranges of shards that were rebuilt from others.
    pub rebuilt: u64,
}

impl Counters {
    fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn count_hedged(&self) {
        self.hedged.fetch_add(1, Ordering::Relaxed);
    }

    fn count_rebuilt(&self, shards: usize) {
        self.rebuilt.fetch_add(shards as u64, Ordering::Relaxed);
    }
}

impl Reader {
    /// How long an answer of this size may take before others are asked: longer than nine of ten
    /// did. With large ranges a hedge costs as much as the answer itself, and in a read of k of them
    /// one is nearly always among the slowest tenth: there, twice that long.
    fn patience(&self, bytes: usize) -> Duration {
        let (p90, first) = if bytes <= SMALL_BYTES {
            (self.small.p90(), PATIENCE_FIRST[0])
        } else {
            (self.large.p90().map(|p90| p90 * 2), PATIENCE_FIRST[1])
        };
        p90.map_or(first, |patience| patience.max(PATIENCE_MIN))
    }

    /// An answer of this size took so long.
    fn record(&self, bytes: usize, took: Duration) {
        let latency = if bytes <= SMALL_BYTES { &self.small } else { &self.large };
        latency.record(took);
    }

    /// A read is done; ten of them earn a hedge.
    fn earn_hedge(&self) {
        let earn = |hedges: i64| (hedges < HEDGES_MAX * 10).then_some(hedges + 1);
        // Refused when it is full already.
        let _ = self.hedges.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earn);
    }

    /// Whether waiting for shards to come back may be worth it.
    fn may_wait_to_look(&self) -> bool {
        self.vain_looks.load(Ordering::Relaxed) < VAIN_LOOKS_MAX
    }

    /// Whether this node need not be asked now, since it was found to be gone a moment ago and this reader no
    /// longer waits for such.
    fn passes_over(&self, node: NodeId) -> bool {
        !self.may_wait_to_look() && self.network.holder(node).has_failed_within(GONE_FOR)
    }

    /// A read is done that looked again so often.
    fn looked(&self, looks: usize, found: bool) {
        if found {
            if looks > 0 {
                self.vain_looks.store(0, Ordering::Relaxed);
            }
        } else {
            let more = |vain: u32| Some(vain.saturating_add(1));
            // Never refused.
            let _ = self.vain_looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
    }

    fn may_hedge(&self) -> bool {
        let spend = |hedges: i64| (hedges >= 10).then_some(hedges - 10);
        self.hedges.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

impl Downloader {
    /// A reader of this network.
    pub fn new(network: Network) -> Self {
        Self {
            reader: Arc::new(Reader {
                network,
                book: FactBook::default(),
                small: Latency::default(),
                large: Latency::default(),
                hedges: AtomicI64::new(HEDGES_MAX * 10),
                vain_looks: AtomicU32::new(0),
                counters: Counters::default(),
                searches: Arc::default(),
                shards: Pool::new(SHARDS_KEPT_BYTES_MAX),
                plain: Pool::new(PLAIN_KEPT_BYTES_MAX),
                pieces: Cache::new(PIECES_BYTES_MAX),
                nodes: Cache::new(NODES_BYTES_MAX),
            }),
        }
    }

    /// The network it reads from.
    pub fn network(&self) -> &Network {
        &self.reader.network
    }

    /// What it has done so far.
    pub fn counts(&self) -> GetCounts {
        let counters = &self.reader.counters;
        GetCounts {
            requests: counters.requests.load(Ordering::Relaxed),
            hedged: counters.hedged.load(Ordering::Relaxed),
            rebuilt: counters.rebuilt.load(Ordering::Relaxed),
        }
    }

    /// The chunk that is looked for longest at the moment: too few of those who should have shards of it gave one.
    pub fn searching(&self) -> Option<Search> {
        self.reader.searches.oldest()
    }

    /// The whole plaintext of an item.
    ///
    /// # Errors
    /// As [`read_extent_range`](Self::read_extent_range).
    pub async fn read_extent(&self, extent: &Extent) -> Result<Bytes, GetError> {
        self.read_extent_range(extent, 0..extent.plaintext_bytes as usize).await
    }

    /// The plaintext of a node of a tree, which is kept for a while.
    ///
    /// # Errors
    /// As [`read_extent_range`](Self::read_extent_range).
    pub async fn read_node(&self, extent: &Extent) -> Result<Bytes, GetError> {
        let whole = 0..extent.plaintext_bytes as usize;
        if let Some(node) = self.reader.nodes.get(extent, &whole) {
            return Ok(node);
        }
        let node = self.read_extent(extent).await?;
        self.reader.nodes.insert(extent.clone(), whole, node.clone());
        Ok(node)
    }

    /// A range of an item's plaintext: all of it, verified, or an error. A small range of a
    /// healthy chunk costs one request to one node.
    ///
    /// # Errors
    /// [`GetError::OutOfRange`] when the range is not within the item, [`GetError::DataLoss`] when
    /// fewer shards than needed can be had, [`GetError::Open`] and [`GetError::Reference`] when the
    /// extent does not fit the chunk.
    pub async fn read_extent_range(
        &self,
        extent: &Extent,
        range: Range<usize>,
    ) -> Result<Bytes, GetError> {
        let length = extent.plaintext_bytes as usize;
        if range.start > range.end || range.end > length {
            return Err(GetError::OutOfRange { start: range.start, end: range.end, length });
        }
        let what = "it leads outside the chunk";
        extent.check().map_err(|_| GetError::Reference { chunk: extent.chunk, what })?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (span, wants) = extent.shard_ranges(range.clone());
        let facts = self.reader.book.of(extent);
        let sealed = self.sealed(extent, &facts, wants).await?;
        let within = range.start - span.plaintext.start..range.end - span.plaintext.start;
        let open = {
            let (extent, buffers) = (extent.clone(), Arc::clone(&self.reader.plain));
            move || open(&extent, &span, &sealed, &buffers)
        };
        let opened = if within.len() > OPEN_INLINE_BYTES {
            beside(open).await.map_err(|_| GetError::Thread)?
        } else {
            open()
        };
        let plaintext = opened.map_err(|source| GetError::Open { chunk: extent.chunk, source })?;
        Ok(plaintext.slice(within))
    }

    /// The sealed bytes of ranges of shards, from the pieces kept or from the network.
    async fn sealed(
        &self,
        extent: &Extent,
        facts: &Arc<ChunkFacts>,
        wants: Vec<Want>,
    ) -> Result<Vec<Bytes>, GetError> {
        let start = extent.offset as usize;
        let body = start..start + extent.sealed_bytes();
        if body.len() > NEIGHBOUR_BYTES {
            return gather(&self.reader, facts, &wants).await;
        }
        let read_through = facts.is_next_to_the_last(&body);
        let pieces = &self.reader.pieces;
        let kept: Vec<Option<Bytes>> =
            wants.iter().map(|(index, range)| pieces.get(&(facts.id, *index), range)).collect();
        let missing: Vec<Want> = wants
            .iter()
            .zip(&kept)
            .filter(|(_, kept)| kept.is_none())
            .map(|((index, range), _)| {
                let more = (range.start + READ_THROUGH_BYTES).min(facts.shard_bytes);
                let end = if read_through { range.end.max(more) } else { range.end };
                (*index, range.start..end)
            })
            .collect();
        if missing.is_empty() {
            return Ok(kept.into_iter().flatten().collect());
        }
        let fetched = gather(&self.reader, facts, &missing).await?;
        let mut fetched = missing.into_iter().zip(fetched);
        let mut all = Vec::with_capacity(wants.len());
        for ((_, wanted), kept) in wants.iter().zip(kept) {
            match kept {
                Some(bytes) => all.push(bytes),
                None => {
                    // One for each that was not kept, in order.
                    let Some(((index, range), bytes)) = fetched.next() else { break };
                    all.push(bytes.slice(..wanted.len()));
                    if read_through {
                        pieces.insert((facts.id, index), range, bytes);
                    }
                }
            }
        }
        Ok(all)
    }
}

/// Opens the frames of a span, which lie in pieces one after the other.
fn open(
    extent: &Extent,
    span: &FrameSpan,
    sealed: &[Bytes],
    buffers: &Arc<Pool>,
) -> Result<Bytes, OpenError> {
    let bytes = span.plaintext.len();
    let (mut buffer, begin) = buffers.placed(bytes);
    let out = &mut buffer[begin..begin + bytes];
    let frame_bytes = extent.frame_bytes as usize;
    let plaintext_bytes = extent.plaintext_bytes as usize;
    let sealed_frame = frame_bytes + TAG_BYTES;
    // In a bulk chunk no frame lies across two shards: each piece is opened where it is.
    let (last, before) = match sealed.split_last() {
        Some(split) => split,
        None => return Ok(Bytes::new()),
    };
    if before.iter().all(|piece| piece.len() % sealed_frame == 0) {
        let mut first_frame = span.first_frame;
        let (mut from, mut at) = (span.sealed.start, span.plaintext.start);
        for piece in before.iter().chain([last]) {
            let frames = piece.len().div_ceil(sealed_frame);
            let text = piece.len() - frames * TAG_BYTES;
            let part = FrameSpan {
                first_frame,
                sealed: from..from + piece.len(),
                plaintext: at..at + text,
            };
            let place = at - span.plaintext.start..at - span.plaintext.start + text;
            open_span_into(
                &extent.key,
                frame_bytes,
                plaintext_bytes,
                &part,
                piece,
                &mut out[place],
            )?;
            first_frame += frames as u64;
            from += piece.len();
            at += text;
        }
    } else {
        let joined = sealed.concat();
        open_span_into(&extent.key, frame_bytes, plaintext_bytes, span, &joined, out)?;
    }
    Ok(buffers.share(buffer).slice(begin..begin + bytes))
}
