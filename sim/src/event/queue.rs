//! What happens next: events by time, those of one instant in the order in which they were made.
//!
//! Owns a binary heap: O(log pending) for each event. Cancels nothing; who is woken in vain sees
//! that by a number that no longer fits.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Milliseconds since the start.
pub(super) type Time = u64;

/// From hours; never before the next millisecond for a positive duration.
pub(super) fn from_hours(hours: f64) -> Time {
    // Saturates: 500 million years.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let time = (hours * 3.6e6).ceil() as Time;
    time
}

pub(super) fn to_hours(time: Time) -> f64 {
    time as f64 / 3.6e6
}

/// Something that will happen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Event {
    /// A node loses all it holds.
    Death(u32),
    /// A new node comes, in this zone.
    Join(u16),
    /// A node goes out of reach for a while.
    Outage { node: u32, epoch: u32 },
    /// It comes back.
    Return { node: u32, epoch: u32 },
    /// It was out of reach for long enough to count as down.
    Down { node: u32, epoch: u32 },
    /// It was out of reach for long enough to count as dead.
    Declare { node: u32, epoch: u32 },
    /// An audit finds that it threw its shards away.
    Caught(u32),
    /// A shard of the stripe has been missing for as long as patience lasts.
    Overdue { stripe: u32 },
    /// A repair is done.
    Repaired { stripe: u32, job: u32 },
    /// The bandwidth of repair is free for the next one.
    Dispatch,
    /// A calamity of the scenario's list strikes.
    Calamity(u32),
    /// Many join at once.
    Storm,
    /// A look at all margins.
    Sample,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<(Time, u64, Event)>>,
    made: u64,
    longest: usize,
    steps: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: Time, event: Event) {
        self.made += 1;
        self.heap.push(Reverse((at, self.made, event)));
        self.longest = self.longest.max(self.heap.len());
        self.steps += levels(self.heap.len());
    }

    pub(super) fn pop(&mut self) -> Option<(Time, Event)> {
        self.steps += levels(self.heap.len());
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }

    /// Levels of the heap that were gone through, at most.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// The most that ever waited.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

/// Of a heap of so many.
fn levels(length: usize) -> u64 {
    u64::from(usize::BITS - length.leading_zeros())
}
