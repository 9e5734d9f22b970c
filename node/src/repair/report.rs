//! What repair says of itself: counts of chunks, counters of work, the last decisions.
//!
//! Owns the sums; decides nothing. Every list is bounded: a status must fit in one message.
//!
//! ```text
//! tally = whole u64 ‖ displaced u64 ‖ waiting u64 ‖ lost u64 ‖ unfinished u64
//!       ‖ survives nodes u32 ‖ zones u32 (u32::MAX: no chunk)
//!       ‖ count varint ‖ count × (margin + 256 u16 ‖ chunks varint)          all little-endian
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use copse_core::{
    repair::{Action, ChunkPlan, Skip},
    wire::{Reader, WireError, Writer},
};
use copse_proto::door;

/// Decisions that are kept for the status.
const EVENTS_MAX: usize = 64;

/// Margins that are told apart, at most: there are 255 shards at most.
const MARGINS_MAX: u64 = 512;

/// Chunks, counted by what is left of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) by_margin: BTreeMap<i16, u64>,
    pub(super) whole: u64,
    pub(super) displaced: u64,
    pub(super) waiting: u64,
    pub(super) lost: u64,
    /// Shards seem to be missing, and nothing is lost or thin: the put goes on or was never completed, or the
    /// rest is there and not listed yet.
    pub(super) unfinished: u64,
    pub(super) survives: Option<(u32, u32)>,
}

impl Tally {
    /// Counts one chunk; whether it is unfinished, if not all of its shards are known.
    pub(super) fn add(&mut self, plan: &ChunkPlan, unfinished: bool) {
        let strength = &plan.strength;
        *self.by_margin.entry(strength.sure_margin()).or_default() += 1;
        self.whole += u64::from(strength.sure == strength.geometry.total());
        self.displaced += u64::from(is_displaced(plan));
        let said = |wanted: fn(&Skip) -> bool| u64::from(plan.skips.iter().any(wanted));
        self.waiting += said(|skip| matches!(skip, Skip::WaitingForDown { .. }));
        if unfinished {
            // There was nothing that could be lost.
            self.unfinished += 1;
            return;
        }
        self.lost += u64::from(has_too_few(plan));
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX - 1);
        self.survive((small(strength.survives.nodes), small(strength.survives.zones)));
    }

    fn survive(&mut self, (nodes, zones): (u32, u32)) {
        let (least_nodes, least_zones) = self.survives.unwrap_or((nodes, zones));
        self.survives = Some((least_nodes.min(nodes), least_zones.min(zones)));
    }

    /// The sum of two.
    pub(super) fn plus(mut self, other: &Self) -> Self {
        for (&margin, &chunks) in &other.by_margin {
            *self.by_margin.entry(margin).or_default() += chunks;
        }
        self.whole += other.whole;
        self.displaced += other.displaced;
        self.waiting += other.waiting;
        self.lost += other.lost;
        self.unfinished += other.unfinished;
        if let Some(survives) = other.survives {
            self.survive(survives);
        }
        self
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (nodes, zones) = self.survives.unwrap_or((u32::MAX, u32::MAX));
        let mut writer = Writer::new();
        writer.u64(self.whole).u64(self.displaced).u64(self.waiting).u64(self.lost);
        writer.u64(self.unfinished);
        writer.u32(nodes).u32(zones);
        writer.varint(self.by_margin.len() as u64);
        for (&margin, &chunks) in &self.by_margin {
            let shifted = u16::try_from(i32::from(margin) + 256).unwrap_or_default();
            let [low, high] = shifted.to_le_bytes();
            writer.u8(low).u8(high).varint(chunks);
        }
        writer.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let (whole, displaced) = (reader.u64()?, reader.u64()?);
        let (waiting, lost, unfinished) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let survives = (reader.u32()?, reader.u32()?);
        let count = reader.bounded("the number of margins", MARGINS_MAX)?;
        let mut by_margin = BTreeMap::new();
        for _ in 0..count {
            let shifted = i32::from(u16::from_le_bytes([reader.u8()?, reader.u8()?]));
            let margin =
                i16::try_from(shifted - 256).map_err(|_| WireError::Invalid("a margin"))?;
            by_margin.insert(margin, reader.varint()?);
        }
        reader.end()?;
        let survives = (survives.0 != u32::MAX).then_some(survives);
        Ok(Self { by_margin, whole, displaced, waiting, lost, unfinished, survives })
    }
}

/// Whether too few shards of a chunk are known: it is lost, or unfinished.
pub(super) fn has_too_few(plan: &ChunkPlan) -> bool {
    plan.skips.iter().any(|skip| matches!(skip, Skip::NotEnough { .. }))
}

/// Whether a shard is not where it belongs, or also somewhere else.
fn is_displaced(plan: &ChunkPlan) -> bool {
    plan.actions.iter().any(|action| matches!(action, Action::Copy { .. } | Action::Drop { .. }))
        || plan.skips.iter().any(|skip| {
            matches!(
                skip,
                Skip::StaysDisplaced { .. } | Skip::SurplusKept { .. } | Skip::SurplusWaits { .. }
            )
        })
}

/// Counts by margin as they travel.
pub(super) fn margins(counts: &BTreeMap<i16, u64>) -> Vec<door::MarginCount> {
    let count =
        |(&margin, &count): (&i16, &u64)| door::MarginCount { margin: margin.into(), count };
    counts.iter().map(count).collect()
}

/// The last decisions. Clones are the same ones.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<VecDeque<(u64, String)>>>);

impl Events {
    /// Notes a decision and logs it; the same one again is not repeated.
    pub(crate) fn note(&self, unix_seconds: u64, text: String) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.iter().any(|(_, known)| *known == text) {
            return;
        }
        tracing::info!("{text}");
        if events.len() >= EVENTS_MAX {
            events.pop_front();
        }
        events.push_back((unix_seconds, text));
    }

    /// All of them, the newest last.
    pub(crate) fn list(&self) -> Vec<door::Event> {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let event = |(unix_seconds, text): &(u64, String)| door::Event {
            unix_seconds: *unix_seconds,
            text: text.clone(),
        };
        events.iter().map(event).collect()
    }
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// What was done since the start.
        #[derive(Debug, Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64,)* }

        impl Counters {
            /// As they travel.
            pub(super) fn told(&self) -> door::RepairCounters {
                door::RepairCounters { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    jobs_done, jobs_failed, jobs_cancelled, rebuilt_shards, rebuilt_bytes, rebuild_read_bytes,
    moved_shards, moved_bytes, released_shards, audits, audits_failed, chunks_planned,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        Tally {
            by_margin: BTreeMap::from([(-3, 1), (6, 400)]),
            whole: 400,
            displaced: 3,
            waiting: 0,
            lost: 1,
            unfinished: 2,
            survives: Some((4, 2)),
        }
    }

    #[test]
    fn a_tally_has_these_bytes_and_reads_back() {
        let bytes = tally().encode();
        let expected = [
            &400u64.to_le_bytes()[..],
            &3u64.to_le_bytes(),
            &[0; 8],
            &1u64.to_le_bytes(),
            &2u64.to_le_bytes(),
            &[4, 0, 0, 0, 2, 0, 0, 0],
            &[2, 253, 0, 1, 6, 1],
            &bytes[bytes.len() - 2..],
        ]
        .concat();
        assert_eq!(bytes, expected);
        assert_eq!(Tally::decode(&bytes), Ok(tally()));
        assert_eq!(Tally::decode(&Tally::default().encode()), Ok(Tally::default()));
        for end in 0..bytes.len() {
            assert!(Tally::decode(&bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn sums_take_the_weakest() {
        let weak = Tally { survives: Some((1, 9)), ..Tally::default() };
        let sum = tally().plus(&weak).plus(&Tally::default());
        assert_eq!((sum.whole, sum.survives), (400, Some((1, 2))));
    }

    #[test]
    fn decisions_are_bounded_and_not_repeated() {
        let events = Events::default();
        for number in 0..100 {
            events.note(number, format!("decision {number}"));
            events.note(number, format!("decision {number}"));
        }
        let list = events.list();
        assert_eq!(list.len(), EVENTS_MAX);
        assert_eq!(list.last().map(|event| event.text.as_str()), Some("decision 99"));
    }
}
