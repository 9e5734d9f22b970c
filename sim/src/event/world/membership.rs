//! Nodes: how they are born, go away, come back, die and are declared dead.
//!
//! Owns their flags and counts, and what each of these events does to the shards of one node. Moves
//! no shard: that is `placing` and `repairs`. The one idea: what is and what is believed are apart; a
//! death is an event, its declaration another.

use super::{AGAIN_HOURS, LIAR, LOST, ON_RING, ONLINE, World};
use crate::{
    event::{
        HOURS_PER_YEAR,
        queue::{Event, from_hours},
        ringview::RingView,
        stripes::{ABSENT, GONE, NONE},
    },
    policy::{self, Down},
};

impl World<'_> {
    pub(super) fn zone_of(&self, number: usize) -> u16 {
        u16::try_from(number % self.scenario.zones.max(1)).unwrap_or(0)
    }

    pub(super) fn birth(&mut self, zone: u16, age: f64) -> u32 {
        let node = self.next_unborn;
        self.next_unborn += 1;
        let liar = self.streams.lives.chance(self.scenario.malicious);
        self.nodes.flags.push(ONLINE | if liar { LIAR } else { 0 });
        self.nodes.zone.push(zone);
        self.nodes.epoch.push(0);
        self.nodes.frozen_since.push(0);
        self.nodes.slots.push(Vec::new());
        self.nodes.position.push(u32::try_from(self.nodes.living.len()).unwrap_or(u32::MAX));
        self.nodes.living.push(node);
        self.put_on_ring(node, true);
        let rest = self.scenario.life.rest(age, &mut self.streams.lives);
        self.queue.push(self.after(rest), Event::Death(node));
        if liar {
            let hours = self.streams.lives.exponential(self.scenario.audit_hours);
            self.queue.push(self.after(hours), Event::Caught(node));
        }
        self.schedule_outage(node);
        node
    }

    pub(super) fn join(&mut self, zone: u16) {
        if self.next_unborn == self.unborn_end {
            self.renew_view();
        }
        let node = self.birth(zone, 0.0);
        self.take_over(node);
    }

    /// All unborn of the view are born: the next view has as many again.
    pub(super) fn renew_view(&mut self) {
        let unborn = u32::try_from(self.scenario.nodes).unwrap_or(u32::MAX).max(16);
        let arcs = self.view.take_arcs();
        let total = self.scenario.scheme.total();
        // The living, also those who are declared dead but may return, and the dead who still
        // count: flags decide.
        let mut born = self.nodes.living.clone();
        let still_count =
            self.on_ring - born.iter().filter(|&&node| self.has(node, ON_RING)).count();
        let is_dead_and_counts = |node: &u32| self.has(*node, LOST) && self.has(*node, ON_RING);
        born.extend((0..self.next_unborn).rev().filter(is_dead_and_counts).take(still_count));
        let flags = &self.nodes.flags;
        let is_on_ring = |node: u32| flags[node as usize] & ON_RING != 0;
        self.view = RingView::build(arcs, born, self.next_unborn, unborn, total, is_on_ring);
        self.out.steps += self.view.steps_of_build();
        self.unborn_end = self.next_unborn + unborn;
    }

    pub(super) fn has(&self, node: u32, flag: u8) -> bool {
        self.nodes.flags[node as usize] & flag != 0
    }

    pub(super) fn set(&mut self, node: u32, flag: u8, on: bool) {
        let flags = &mut self.nodes.flags[node as usize];
        *flags = if on { *flags | flag } else { *flags & !flag };
    }

    pub(super) fn put_on_ring(&mut self, node: u32, on: bool) {
        self.set(node, ON_RING, on);
        self.out.steps += self.view.put_on_ring(node, on);
        let change = |count: &mut usize| *count = if on { *count + 1 } else { *count - 1 };
        change(&mut self.on_ring);
        let zone = usize::from(self.nodes.zone[node as usize]);
        if let Some(count) = self.zone_on_ring.get_mut(zone) {
            change(count);
        }
    }

    pub(super) fn count_down(&mut self, node: u32, on: bool) {
        let change = |count: &mut usize| *count = if on { *count + 1 } else { *count - 1 };
        change(&mut self.down);
        let zone = usize::from(self.nodes.zone[node as usize]);
        if let Some(count) = self.zone_down.get_mut(zone) {
            change(count);
        }
    }

    /// The node's disk is gone. Its shards do not exist from now on; others notice later.
    pub(super) fn death(&mut self, node: u32) {
        if self.has(node, LOST) {
            return;
        }
        self.out.deaths += 1;
        let declared = !self.has(node, ON_RING);
        if self.has(node, ONLINE) {
            self.count_down(node, true);
        }
        self.set(node, LOST, true);
        self.set(node, ONLINE, false);
        self.bury(node);
        let slots = core::mem::take(&mut self.nodes.slots[node as usize]);
        self.stripes.warm(&slots);
        for &slot in &slots {
            self.out.touches += 1;
            let holder = &mut self.stripes.holders[slot as usize];
            let stripe = slot as usize / self.stripes.total;
            if *holder == node {
                *holder = node | GONE;
                self.lose_shard(stripe);
            } else if *holder == node | ABSENT {
                *holder = NONE;
                self.lose_shard(stripe);
            }
        }
        if !declared {
            self.nodes.slots[node as usize] = slots;
            let epoch = self.next_epoch(node);
            if self.scenario.dead_after_hours == 0.0 {
                self.declare(node, epoch);
            } else {
                self.schedule_down(node, epoch, self.scenario.dead_after_hours);
                let at = self.after(self.scenario.dead_after_hours);
                self.queue.push(at, Event::Declare { node, epoch });
            }
        }
        let zone = self.nodes.zone[node as usize];
        self.queue.push(self.after(self.scenario.replace_hours), Event::Join(zone));
    }

    /// Takes the node off the list of the living.
    pub(super) fn bury(&mut self, node: u32) {
        let position = self.nodes.position[node as usize] as usize;
        self.nodes.living.swap_remove(position);
        if let Some(&moved) = self.nodes.living.get(position) {
            self.nodes.position[moved as usize] = u32::try_from(position).unwrap_or(u32::MAX);
        }
    }

    pub(super) fn next_epoch(&mut self, node: u32) -> u32 {
        let epoch = &mut self.nodes.epoch[node as usize];
        *epoch += 1;
        *epoch
    }

    pub(super) fn schedule_outage(&mut self, node: u32) {
        if let Some(outages) = self.scenario.outages {
            let hours = self.streams.outages.exponential(HOURS_PER_YEAR / outages.per_year);
            let epoch = self.nodes.epoch[node as usize];
            self.queue.push(self.after(hours), Event::Outage { node, epoch });
        }
    }

    pub(super) fn outage(&mut self, node: u32, epoch: u32) {
        if self.nodes.epoch[node as usize] != epoch || !self.has(node, ONLINE) {
            return;
        }
        if let Some(outages) = self.scenario.outages {
            let hours = self.streams.outages.lognormal(outages.median_hours, outages.sigma);
            self.go_away(node, hours);
        }
    }

    pub(super) fn go_away(&mut self, node: u32, hours: f64) {
        self.set(node, ONLINE, false);
        self.count_down(node, true);
        let epoch = self.next_epoch(node);
        self.queue.push(self.after(hours), Event::Return { node, epoch });
        self.schedule_down(node, epoch, hours);
        if hours >= self.scenario.dead_after_hours {
            // Nobody knows yet that it will be so long; a shorter absence would only make an event
            // that its return voids.
            let at = self.after(self.scenario.dead_after_hours);
            self.queue.push(at, Event::Declare { node, epoch });
        }
    }

    /// What is thin without the node is repaired once it is down, if it is away for as long as that.
    fn schedule_down(&mut self, node: u32, epoch: u32, hours: f64) {
        if let Some(after) = self.scenario.down_after_hours.filter(|after| *after < hours) {
            self.queue.push(self.after(after), Event::Down { node, epoch });
        }
    }

    pub(super) fn goes_down(&mut self, node: u32, epoch: u32) {
        if self.nodes.epoch[node as usize] == epoch && self.has(node, ON_RING) {
            self.consider_all(node);
        }
    }

    /// Asks the policy about all stripes that the node has shards of.
    fn consider_all(&mut self, node: u32) {
        let slots = core::mem::take(&mut self.nodes.slots[node as usize]);
        self.stripes.warm(&slots);
        for &slot in &slots {
            self.out.touches += 1;
            let holder = self.stripes.holders[slot as usize];
            if holder == node || holder == node | GONE {
                self.consider(slot as usize / self.stripes.total);
            }
        }
        self.nodes.slots[node as usize] = slots;
    }

    /// The node is back, with all its shards: what was not made again elsewhere counts again.
    pub(super) fn come_back(&mut self, node: u32, epoch: u32) {
        if self.nodes.epoch[node as usize] != epoch || self.has(node, LOST) {
            return;
        }
        self.next_epoch(node);
        self.set(node, ONLINE, true);
        self.nodes.frozen_since[node as usize] = 0;
        if self.has(node, ON_RING) {
            self.count_down(node, false);
        } else {
            self.out.false_deaths += 1;
            self.put_on_ring(node, true);
        }
        let slots = core::mem::take(&mut self.nodes.slots[node as usize]);
        self.stripes.warm(&slots);
        for &slot in &slots {
            self.out.touches += 1;
            let holder = &mut self.stripes.holders[slot as usize];
            if *holder == node | ABSENT {
                *holder = node;
                let stripe = slot as usize / self.stripes.total;
                self.stripes.each[stripe].counted += 1;
                self.forget_missing(stripe);
            }
        }
        self.nodes.slots[node as usize] = slots;
        self.schedule_outage(node);
    }

    /// An audit shows that a node has nothing: it is out at once.
    pub(super) fn caught(&mut self, node: u32) {
        if self.has(node, LOST) {
            return;
        }
        if self.has(node, ONLINE) {
            self.count_down(node, true);
        }
        let declared = !self.has(node, ON_RING);
        self.set(node, LOST, true);
        self.set(node, ONLINE, false);
        self.bury(node);
        self.next_epoch(node);
        if !declared {
            self.strike_off(node);
        }
        let zone = self.nodes.zone[node as usize];
        self.queue.push(self.after(self.scenario.replace_hours), Event::Join(zone));
    }

    /// The node was away for long enough: dead, unless too many are.
    pub(super) fn declare(&mut self, node: u32, epoch: u32) {
        if self.nodes.epoch[node as usize] != epoch || !self.has(node, ON_RING) {
            return;
        }
        if self.is_frozen(node) {
            self.out.frozen += 1;
            if self.scenario.down_after_hours.is_some() {
                self.consider_all(node);
            }
            let at = self.after(AGAIN_HOURS);
            self.queue.push(at, Event::Declare { node, epoch });
        } else {
            self.strike_off(node);
        }
    }

    pub(super) fn is_frozen(&mut self, node: u32) -> bool {
        let Some(share) = self.scenario.freeze_share else { return false };
        let zone = usize::from(self.nodes.zone[node as usize]);
        let down = Down {
            nodes: self.down,
            of_nodes: self.on_ring,
            in_zone: self.zone_down.get(zone).copied().unwrap_or(0),
            of_zone: self.zone_on_ring.get(zone).copied().unwrap_or(0),
        };
        if !policy::is_frozen(down, share) {
            return false;
        }
        let since = &mut self.nodes.frozen_since[node as usize];
        if *since == 0 {
            *since = self.now.max(1);
        }
        self.now - *since < from_hours(self.scenario.freeze_hours)
    }

    /// Whether many are silent together, as a steward sees it that plans a stripe. However long.
    pub(super) fn many_are_silent(&self) -> bool {
        let Some(share) = self.scenario.freeze_share else { return false };
        let down = Down { nodes: self.down, of_nodes: self.on_ring, in_zone: 0, of_zone: 0 };
        let mut zones = self.zone_down.iter().zip(&self.zone_on_ring);
        policy::is_frozen(down, share) || zones.any(|(down, of)| *of > 1 && down >= of)
    }

    pub(super) fn strike_off(&mut self, node: u32) {
        self.put_on_ring(node, false);
        self.count_down(node, false);
        let slots = core::mem::take(&mut self.nodes.slots[node as usize]);
        self.stripes.warm(&slots);
        for &slot in &slots {
            self.out.touches += 1;
            self.discount(slot, node);
        }
        if !self.has(node, LOST) {
            self.nodes.slots[node as usize] = slots;
        }
    }

    /// The node's shard in this slot does not count any more.
    pub(super) fn discount(&mut self, slot: u32, node: u32) {
        let holder = &mut self.stripes.holders[slot as usize];
        if *holder == node {
            *holder = node | ABSENT;
        } else if *holder == node | GONE {
            *holder = NONE;
        } else {
            return;
        }
        let stripe = slot as usize / self.stripes.total;
        self.stripes.each[stripe].counted -= 1;
        self.consider(stripe);
    }
}
