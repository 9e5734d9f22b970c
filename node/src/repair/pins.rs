//! Which shards are being given away, and which others count on.
//!
//! Owns both marks, so that of two holders that each drop a shard on the other's proof at the same
//! moment one at least keeps it. The one idea: a shard that is being given away proves nothing to who
//! wants to drop its own, and one that proved it stays for two minutes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use copse_core::ids::{ShardId, ShardIndex};
use copse_proto::status::{Reason, Refusal};
use tokio::time::Instant;

/// How long a shard stays on which another node dropped its own.
const PINNED_FOR: Duration = Duration::from_secs(120);

/// How long after it asked for a proof a node may still drop its own on it. The rest is for the
/// removal, which waits for the disk.
pub(super) const PROOF_HOLDS: Duration = Duration::from_secs(60);

/// Pinned shards, at most: 5 MiB. Who finds no place keeps its own for now.
const PINNED_MAX: usize = 1 << 16;

/// The marks. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Pins(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    giving: BTreeSet<ShardId>,
    pinned: BTreeMap<ShardId, Instant>,
    /// The pins as they were made, each with its end.
    order: VecDeque<(Instant, ShardId)>,
}

/// A shard is being given away, until this is dropped.
pub(super) struct Giving {
    pins: Pins,
    id: ShardId,
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a shard as being given away.
    ///
    /// # Errors
    /// When somebody counts on it, with for how long; or it is being given away already.
    pub(super) fn give(&self, id: ShardId) -> Result<Giving, Refusal> {
        let mut state = self.lock();
        state.forget_old();
        let keeps = |why| Refusal::new(Reason::KeepsShard, format!("shard {id} {why}"));
        if let Some(until) = state.pinned.get(&id) {
            let stays = keeps("stays for now: another node dropped its own, since it is here");
            return Err(stays.retry_after(until.saturating_duration_since(Instant::now())));
        }
        if !state.giving.insert(id) {
            return Err(keeps("is being given away already"));
        }
        Ok(Giving { pins: self.clone(), id })
    }

    /// How many other shards of its chunk are being given away.
    pub(super) fn others_given(&self, id: ShardId) -> usize {
        let of_chunk = |index| ShardId { chunk: id.chunk, index: ShardIndex(index) };
        let state = self.lock();
        let given = state.giving.range(of_chunk(0)..=of_chunk(u8::MAX));
        given.filter(|given| **given != id).count()
    }

    /// Another node wants to drop its own, since this one has it: it stays for a while.
    ///
    /// # Errors
    /// When it is being given away itself, or too many are pinned: to be tried later.
    pub(super) fn pin(&self, id: ShardId) -> Result<(), Refusal> {
        let mut state = self.lock();
        state.forget_old();
        let later = |why| {
            let text = format!("shard {id} is not to be counted on now: {why}");
            Err(Refusal::new(Reason::Overloaded, text).retry_after(PINNED_FOR))
        };
        if state.giving.contains(&id) {
            return later("it is being given away");
        }
        if state.order.len() >= PINNED_MAX {
            return later("too many others are counted on");
        }
        let until = Instant::now() + PINNED_FOR;
        state.pinned.insert(id, until);
        state.order.push_back((until, id));
        Ok(())
    }
}

impl Giving {
    /// Which shard.
    pub(super) const fn id(&self) -> ShardId {
        self.id
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        self.pins.lock().giving.remove(&self.id);
    }
}

impl State {
    fn forget_old(&mut self) {
        let now = Instant::now();
        while let Some(&(until, id)) = self.order.front()
            && until <= now
        {
            self.order.pop_front();
            // It may have been pinned again.
            if self.pinned.get(&id).is_some_and(|last| *last <= now) {
                self.pinned.remove(&id);
            }
        }
    }
}

const _: () = assert!(PROOF_HOLDS.as_secs() < PINNED_FOR.as_secs());

#[cfg(test)]
mod tests {
    use copse_core::ids::ChunkId;
    use tokio::time::advance;

    use super::*;

    fn shard(number: u64) -> ShardId {
        let mut chunk = [0; 32];
        chunk[..8].copy_from_slice(&number.to_be_bytes());
        ShardId { chunk: ChunkId::new(chunk), index: ShardIndex(0) }
    }

    /// Two holders are told at once to drop a shard since the other has it. `order` says whose step is
    /// next: the first marks its own, the second has the other prove its.
    fn who_drops(order: [usize; 4]) -> [bool; 2] {
        let pins = [Pins::default(), Pins::default()];
        let (mut given, mut drops) = ([None, None], [false, false]);
        for who in order {
            match &given[who] {
                None => given[who] = Some(pins[who].give(shard(1))),
                Some(mark) => drops[who] = mark.is_ok() && pins[1 - who].pin(shard(1)).is_ok(),
            }
        }
        drops
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_who_drop_on_each_others_proof_one_at_least_keeps_it() {
        assert_eq!(who_drops([0, 0, 1, 1]), [true, false]);
        assert_eq!(who_drops([1, 1, 0, 0]), [false, true]);
        for order in [[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0]] {
            assert_eq!(who_drops(order), [false, false], "{order:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pin_lasts_two_minutes_from_the_last_time() {
        let pins = Pins::default();
        pins.pin(shard(1)).expect("it stays");
        advance(PINNED_FOR / 2).await;
        pins.pin(shard(1)).expect("it stays longer");
        advance(PINNED_FOR / 2).await;
        let refusal = pins.give(shard(1)).err().expect("it is counted on");
        assert_eq!(refusal.reason(), Reason::KeepsShard);
        assert_eq!(refusal.retry_delay(), Some(PINNED_FOR / 2));
        advance(PINNED_FOR / 2).await;
        let giving = pins.give(shard(1)).expect("nobody counts on it any more");
        assert!(pins.give(shard(1)).is_err(), "twice at once");
        let refusal = pins.pin(shard(1)).expect_err("it is being given away");
        assert!(refusal.reason() == Reason::Overloaded && refusal.retry_delay().is_some());
        drop(giving);
        pins.pin(shard(1)).expect("it was kept");
        assert!(pins.give(shard(2)).is_ok(), "others are their own affair");
        let sibling = ShardId { index: ShardIndex(1), ..shard(1) };
        assert_eq!(pins.others_given(sibling), 0);
        let _giving = pins.give(sibling).expect("nobody counts on it");
        assert_eq!((pins.others_given(sibling), pins.others_given(shard(1))), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn pins_are_bounded_and_make_room_when_they_are_over() {
        let pins = Pins::default();
        for number in 0..PINNED_MAX as u64 {
            pins.pin(shard(number)).expect("room");
        }
        assert!(pins.pin(shard(1 << 40)).is_err());
        advance(PINNED_FOR).await;
        pins.pin(shard(1 << 40)).expect("room again");
        assert_eq!(pins.lock().pinned.len(), 1);
    }
}
