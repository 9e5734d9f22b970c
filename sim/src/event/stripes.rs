//! Who holds what: a row of n holders for each stripe, and the counts that decide.
//!
//! Owns the truth (live shards) beside what is believed (counted shards). Decides nothing.

use super::queue::Time;

/// No node: the shard is known to be missing.
pub(super) const NONE: u32 = u32::MAX;
/// The holder is declared dead but may come back with the shard.
pub(super) const ABSENT: u32 = 1 << 31;
/// The holder has lost the shard, and nobody knows yet.
pub(super) const GONE: u32 = 1 << 30;
/// What remains is the node's number.
pub(super) const NUMBER: u32 = GONE - 1;

/// What is known of a stripe beside its holders. Together, because an event needs most of it: half a
/// cache line, where seven tables would be seven lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stripe {
    /// Since when a shard is known to be missing; `Time::MAX`: none is, or nobody counts the time.
    pub(super) missing_since: Time,
    /// Since when its margin is two or less.
    pub(super) thin_since: Time,
    /// Chunks that it stands for.
    pub(super) weight: u32,
    /// Its arc, as a position in the list of arcs.
    pub(super) arc: u32,
    /// The number of its repair under way; 0: none.
    pub(super) job: u32,
    /// Shards that exist.
    pub(super) live: u8,
    /// Shards that are believed to exist.
    pub(super) counted: u8,
}

const _: () = assert!(size_of::<Stripe>() == 32, "two to a cache line");

#[derive(Debug)]
pub(super) struct Stripes {
    pub(super) total: usize,
    /// n for each stripe.
    pub(super) holders: Vec<u32>,
    /// By number of the stripe.
    pub(super) each: Vec<Stripe>,
    /// Stripes of each arc: `arc_starts[a]..arc_starts[a + 1]`.
    pub(super) arc_starts: Vec<u32>,
}

impl Stripes {
    /// `weights`: for each stripe in the order of arcs, (position of its arc, chunks).
    pub(super) fn new(total: usize, weights: &[(u32, u32)], arcs: usize) -> Self {
        let mut arc_starts = vec![0u32; arcs + 1];
        for (arc, _) in weights {
            arc_starts[*arc as usize + 1] += 1;
        }
        for at in 1..arc_starts.len() {
            arc_starts[at] += arc_starts[at - 1];
        }
        let empty = |&(arc, weight): &(u32, u32)| Stripe {
            missing_since: Time::MAX,
            thin_since: Time::MAX,
            weight,
            arc,
            job: 0,
            live: 0,
            counted: 0,
        };
        Self {
            total,
            holders: vec![NONE; weights.len() * total],
            each: weights.iter().map(empty).collect(),
            arc_starts,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.each.len()
    }

    /// The positions of its holders.
    pub(super) fn slots(&self, stripe: usize) -> core::ops::Range<usize> {
        stripe * self.total..(stripe + 1) * self.total
    }

    /// Reads a word of each cache line that these slots need and does nothing with it: the processor fetches
    /// lines that nothing waits for side by side, where an event that goes from slot to slot waits for each. A
    /// fifth to a quarter of an event's time from 10,000 nodes on, when the tables leave the nearer caches.
    pub(super) fn warm(&self, slots: &[u32]) {
        let words = slots.iter().map(|&slot| {
            let slot = slot as usize;
            self.holders[slot].wrapping_add(self.each[slot / self.total].arc)
        });
        core::hint::black_box(words.fold(0, u32::wrapping_add));
    }

    pub(super) fn of_arc(&self, arc: usize) -> core::ops::Range<usize> {
        self.arc_starts[arc] as usize..self.arc_starts[arc + 1] as usize
    }
}
