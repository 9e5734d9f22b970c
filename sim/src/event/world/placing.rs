//! Stripes: where their shards go, and when they are lost.
//!
//! Owns placement on the walk with its zone caps, the copies that newcomers take over, and the losses.
//! Decides no repair.

use core::ops::ControlFlow;

use super::{LIAR, ON_RING, ONLINE, World};
use crate::event::{
    queue::{Time, to_hours},
    stripes::{GONE, NONE, NUMBER},
};

impl World<'_> {
    /// Places a stripe that holds nothing, or that starts again after its loss.
    pub(super) fn store_anew(&mut self, stripe: usize) {
        let arc = self.stripes.each[stripe].arc as usize;
        let total = self.stripes.total;
        self.fill_target(arc, ONLINE);
        let target = core::mem::take(&mut self.target);
        self.stripes.each[stripe].live = 0;
        self.stripes.each[stripe].counted = 0;
        self.stripes.each[stripe].job = 0;
        self.stripes.each[stripe].missing_since = Time::MAX;
        for index in 0..total {
            let slot = stripe * total + index;
            self.stripes.holders[slot] = NONE;
            if let Some(&node) = target.get(index) {
                self.give(slot, node);
                self.stripes.each[stripe].counted += 1;
            }
        }
        self.target = target;
        self.note_thinness(stripe);
    }

    /// Hands a shard to a node: `live` grows unless it throws it away.
    pub(super) fn give(&mut self, slot: usize, node: u32) {
        // Below chunks × n, which was checked.
        self.nodes.slots[node as usize].push(u32::try_from(slot).unwrap_or(u32::MAX));
        if self.has(node, LIAR) {
            self.stripes.holders[slot] = node | GONE;
        } else {
            self.stripes.holders[slot] = node;
            self.stripes.each[slot / self.stripes.total].live += 1;
        }
    }

    /// The first n nodes of the arc's walk that are on the ring and have all of `flags`, zone caps
    /// applied, into `target`.
    pub(super) fn fill_target(&mut self, arc: usize, flags: u8) {
        let wanted = ON_RING | flags;
        let mut target = core::mem::take(&mut self.target);
        target.clear();
        let shown = self.view.walk(arc, |node| {
            let known = self.nodes.flags.get(node as usize).copied().unwrap_or(0);
            if known & wanted == wanted && self.zone_has_room(&target, node) {
                target.push(node);
                if target.len() == self.stripes.total {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        self.out.steps += shown;
        self.target = target;
    }

    pub(super) fn zone_has_room(&self, held: &[u32], node: u32) -> bool {
        if self.scenario.zones == 0 {
            return true;
        }
        let zone = self.nodes.zone[node as usize];
        let in_zone = held.iter().filter(|&&other| self.nodes.zone[other as usize] == zone).count();
        in_zone < self.zone_cap
    }

    /// A newborn gets its places: one shard from each stripe whose set it joins, from a holder
    /// that left the set.
    pub(super) fn take_over(&mut self, node: u32) {
        for at in self.view.places(node) {
            self.out.steps += 1;
            let (arc, before) = self.view.place(at);
            // With zones those before it may be passed over for their zone's cap.
            if before >= self.stripes.total && self.scenario.zones == 0 {
                continue;
            }
            self.fill_target(arc, 0);
            let target = core::mem::take(&mut self.target);
            if target.contains(&node) {
                for stripe in self.stripes.of_arc(arc) {
                    self.replace_outsider(stripe, node, &target);
                }
            }
            self.target = target;
        }
    }

    pub(super) fn replace_outsider(&mut self, stripe: usize, node: u32, target: &[u32]) {
        self.out.touches += 1;
        let outsider = self.stripes.slots(stripe).find(|&slot| {
            let holder = self.stripes.holders[slot];
            holder <= NUMBER && !target.contains(&holder) && self.has(holder, ONLINE)
        });
        self.out.steps += self.stripes.total as u64;
        if let Some(slot) = outsider {
            self.stripes.each[stripe].live -= 1;
            self.give(slot, node);
            self.out.join_bytes += self.shard_bytes * f64::from(self.stripes.each[stripe].weight);
            if self.has(node, LIAR) {
                self.check_loss(stripe);
            }
        }
    }

    pub(super) fn lose_shard(&mut self, stripe: usize) {
        self.stripes.each[stripe].live -= 1;
        self.check_loss(stripe);
    }

    pub(super) fn check_loss(&mut self, stripe: usize) {
        if usize::from(self.stripes.each[stripe].live) >= self.scenario.scheme.data() {
            self.note_thinness(stripe);
            return;
        }
        self.out.losses += 1;
        self.out.lost_chunks += u64::from(self.stripes.each[stripe].weight);
        self.end_job(stripe);
        if self.scenario.renew {
            self.store_anew(stripe);
        } else {
            for slot in self.stripes.slots(stripe) {
                self.stripes.holders[slot] = NONE;
            }
            self.stripes.each[stripe].live = 0;
            self.stripes.each[stripe].counted = 0;
            self.end_thinness(stripe);
        }
    }

    pub(super) fn note_thinness(&mut self, stripe: usize) {
        if usize::from(self.stripes.each[stripe].live) > self.scenario.scheme.data() + 2 {
            self.end_thinness(stripe);
        } else if self.stripes.each[stripe].thin_since == Time::MAX {
            self.stripes.each[stripe].thin_since = self.now;
        }
    }

    pub(super) fn end_thinness(&mut self, stripe: usize) {
        let since = core::mem::replace(&mut self.stripes.each[stripe].thin_since, Time::MAX);
        if since != Time::MAX {
            let chunks = f64::from(self.stripes.each[stripe].weight);
            self.out.thin_chunk_hours += to_hours(self.now - since) * chunks;
        }
    }

    pub(super) fn reachable(&self, stripe: usize) -> usize {
        let slots = &self.stripes.holders[self.stripes.slots(stripe)];
        slots.iter().filter(|&&holder| holder <= NUMBER && self.has(holder, ONLINE)).count()
    }
}
