//! What goes wrong with a store in memory: reads and writes that fail or miss the place, ends of the
//! process, rot.
//!
//! Owns what each of them does to what is stored. When any of it happens its user decides.

use std::{io, ops::Bound, sync::Arc, time::Duration};

use copse_core::ids::ShardId;

use super::{
    super::{segment::Removal, shard},
    Condition, Held, MemoryStore, State,
};

/// What goes wrong, until it is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Each new shard is refused as if by ENOSPC.
    pub no_space: bool,
    /// Writing fails with EIO.
    pub fail_writes: bool,
    /// Syncing fails with EIO: what was written is not acknowledged and is gone.
    pub fail_syncs: bool,
    /// Reading fails with EIO.
    pub fail_reads: bool,
    /// Reading this shard fails with EIO.
    pub fail_reads_of: Option<ShardId>,
    /// A disk that lies: says "synced" and did not, so that a crash takes acknowledged shards. No
    /// store survives this; it is there to see that a checker notices.
    pub lie_about_syncs: bool,
    /// One write in so many goes to the place of another shard; 0: none. What lay there is gone, and
    /// what was written is not where it is looked for.
    pub misdirect_writes: u64,
    /// One read in so many comes from the place of another shard; 0: none.
    pub misdirect_reads: u64,
    /// So many of the newest batches of the ledger are gone after a crash; 64 at most.
    pub forgotten_batches: usize,
    /// Time that each write takes.
    pub write_delay: Duration,
    /// Time that each sync takes. A crash ends it.
    pub sync_delay: Duration,
    /// Time that each read takes.
    pub read_delay: Duration,
}

/// How often what goes wrong had an effect on a store so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effects {
    /// Written shards of which an end of the process left a part.
    pub torn: u64,
    /// Written shards and removals that an end of the process took back.
    pub unsynced_lost: u64,
    /// Shards of which bits flipped.
    pub rotted: u64,
    /// Shards that were written to the place of another.
    pub misdirected_writes: u64,
    /// Reads that came from the place of another.
    pub misdirected_reads: u64,
    /// Batches of the ledger that are gone.
    pub forgotten_batches: u64,
    /// Segments that were deleted, since what was needed of them was copied.
    pub segments_deleted: u64,
    /// Indexes that were lost, with the ledger.
    pub indexes_lost: u64,
}

impl core::ops::AddAssign for Effects {
    fn add_assign(&mut self, other: Self) {
        self.torn += other.torn;
        self.unsynced_lost += other.unsynced_lost;
        self.rotted += other.rotted;
        self.misdirected_writes += other.misdirected_writes;
        self.misdirected_reads += other.misdirected_reads;
        self.forgotten_batches += other.forgotten_batches;
        self.segments_deleted += other.segments_deleted;
        self.indexes_lost += other.indexes_lost;
    }
}

/// What an end of the process finds of a record that was written and not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// All of it.
    Whole,
    /// Its header and some of the rest.
    Torn,
    /// Nothing.
    Gone,
}

impl State {
    /// Whether this write or read, 0 or 1, goes to a wrong place; and the shard that lies there.
    pub(super) fn wrong_place(&mut self, id: ShardId, which: usize) -> Option<ShardId> {
        let one_in = [self.faults.misdirect_writes, self.faults.misdirect_reads][which];
        self.aimed[which] += 1;
        if one_in == 0 || !self.aimed[which].is_multiple_of(one_in) {
            return None;
        }
        let behind = self.shards.range((Bound::Excluded(id), Bound::Unbounded));
        let mut others = behind.chain(self.shards.range(..id));
        others.find(|(_, held)| held.is_live()).map(|(&other, _)| other)
    }

    /// The record of a new shard lands on that of another; in its own place is what was there. That may be
    /// the right one, when such a write went the other way before.
    pub(super) fn misdirect(&mut self, id: ShardId, held: &mut Held, onto: ShardId) {
        let Some(victim) = self.shards.get_mut(&onto) else { return };
        self.effects.misdirected_writes += 1;
        std::mem::swap(&mut victim.descriptor, &mut held.descriptor);
        std::mem::swap(&mut victim.groups, &mut held.groups);
        std::mem::swap(&mut victim.data, &mut held.data);
        for (id, held) in [(onto, victim), (id, held)] {
            held.damaged = shard::sound(id, &held.descriptor, &held.groups, &held.data).is_none();
        }
    }
}

pub(super) fn eio() -> Arc<io::Error> {
    Arc::new(rustix::io::Errno::IO.into())
}

impl MemoryStore {
    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// How often what goes wrong had an effect so far.
    pub fn effects(&self) -> Effects {
        self.state().effects
    }

    /// What goes wrong now.
    pub fn faults(&self) -> Faults {
        self.state().faults.clone()
    }

    /// Power cut and restart: what was not synced is gone, puts under way are never acknowledged. A
    /// closed store is open again.
    pub fn crash(&self) {
        self.end(true, || Unsynced::Gone);
    }

    /// The process ends, and another opens the store: with a power cut, or because it was killed. What
    /// becomes of records that were written and not synced, `fate` says, the oldest first; a kill
    /// leaves them whole. Gives the shards that nobody was promised and that are there all the same.
    ///
    /// As the store on a disk does when it is opened: a whole record counts, acknowledged or not; what
    /// is torn behind the last whole one is cut; and what is torn before it is damage, the shard is
    /// set apart.
    pub fn end(&self, power: bool, mut fate: impl FnMut() -> Unsynced) -> Vec<(ShardId, u32)> {
        let mut state = self.state();
        state.crashes += 1;
        state.closed = false;
        let records = std::mem::take(&mut state.unsynced);
        let fates: Vec<Unsynced> = records.iter().map(|_| fate()).collect();
        let last = fates.iter().rposition(|&fate| fate == Unsynced::Whole).unwrap_or(0);
        let mut kept = Vec::new();
        for (place, ((id, removal), fate)) in records.into_iter().zip(fates).enumerate() {
            let Some(held) = state.shards.get(&id) else { continue };
            match (held.condition, removal, fate) {
                (Condition::Written, None, Unsynced::Whole) => {
                    kept.push((id, held.shard_bytes));
                    state.set(id, Some(Condition::Live { lied: false }));
                }
                (Condition::Written, None, Unsynced::Torn) => {
                    state.effects.torn += 1;
                    if place < last {
                        state.set(id, Some(Condition::Quarantined));
                    }
                }
                (Condition::Live { .. }, Some(reason), Unsynced::Whole) => {
                    let removal = Removal { since: self.trash.now(), reason };
                    state.set(id, Some(Condition::Trashed { removal, lied: false }));
                }
                (Condition::Written, None, Unsynced::Gone)
                | (Condition::Live { .. }, Some(_), _) => {
                    state.effects.unsynced_lost += 1;
                }
                _ => {}
            }
        }
        let conditions: Vec<_> =
            state.shards.iter().map(|(&id, held)| (id, held.condition)).collect();
        for (id, condition) in conditions {
            match condition {
                Condition::Written => state.set(id, None),
                Condition::Live { lied: true } if power => state.set(id, None),
                Condition::Trashed { lied: true, .. } if power => {
                    state.set(id, Some(Condition::Live { lied: false }));
                }
                _ => {}
            }
        }
        state.arcs.now.epoch = state.arcs.now.epoch.wrapping_add(1);
        let batches = if power { state.faults.forgotten_batches } else { 0 };
        state.effects.forgotten_batches += self.ledger.forget(batches);
        drop(state);
        self.crashed.notify_waiters();
        kept
    }

    /// Flips bits of one byte of a stored shard. Says whether it is held.
    pub fn rot(&self, id: ShardId, byte: usize, mask: u8) -> bool {
        let mut state = self.state();
        let Some(held) = state.shards.get_mut(&id) else { return false };
        let mut data = held.data.to_vec();
        let at = byte % data.len().max(1);
        if let Some(byte) = data.get_mut(at) {
            *byte ^= mask;
        }
        held.data = data.into();
        held.damaged = true;
        state.effects.rotted += 1;
        true
    }

    /// A stored shard lies on bad sectors from now on, or on good ones again: reading it fails with EIO
    /// until it is written anew. Says whether it is held.
    pub fn break_sectors(&self, id: ShardId, are_bad: bool) -> bool {
        let mut state = self.state();
        let Some(held) = state.shards.get_mut(&id).filter(|held| held.is_live()) else {
            return false;
        };
        held.bad_sectors = are_bad;
        true
    }

    /// Waits as the faults say, or until a crash.
    pub(super) async fn delay(&self, of: fn(&Faults) -> Duration) {
        let delay = of(&self.state().faults);
        if !delay.is_zero() {
            tokio::select! {
                biased;
                () = self.crashed.notified() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
    }
}
