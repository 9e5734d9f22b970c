//! The events of a simulation, one function for each.
//!
//! Owns the state of nodes and the order of things. The threshold is not decided here but in
//! [`policy`](crate::policy). The one idea: an event touches the shards of one node, or one
//! stripe; nothing ever looks at all of them, save for the samples that were asked for.

use super::{
    HOURS_PER_YEAR,
    outcome::{Margin, Outcome},
    queue::{Event, Queue, Time, from_hours, to_hours},
    ringview::{RingView, zone_cap},
    scenario::{Scenario, ScenarioError, Unit, Victims},
    stripes::{ABSENT, GONE, NONE, NUMBER, Stripes},
};
use crate::{
    law::RepairLaw,
    policy::{self, Down, Facts, Verdict},
    random::Xoshiro,
};
use copse_core::limits::ARCS;
use core::{cmp::Reverse, ops::ControlFlow};
use std::collections::BinaryHeap;

/// On the ring: born, and not declared dead.
const ON_RING: u8 = 1;
/// Answers.
const ONLINE: u8 = 2;
/// Has lost all it held.
const LOST: u8 = 4;
/// Throws away what it is given.
const LIAR: u8 = 8;

/// A repair that found too few shards, or a death that was frozen, is looked at again after this.
const AGAIN_HOURS: f64 = 1.0;

/// Simulates the scenario from its seed.
///
/// # Errors
/// When [`Scenario::check`] finds the scenario impossible.
pub fn run(scenario: &Scenario) -> Result<Outcome, ScenarioError> {
    scenario.check()?;
    let mut world = World::new(scenario);
    world.begin();
    let end = from_hours(scenario.years * HOURS_PER_YEAR);
    while let Some((at, event)) = world.queue.pop() {
        if at >= end {
            break;
        }
        world.now = at;
        world.out.events += 1;
        world.handle(event);
    }
    world.now = end;
    Ok(world.finish())
}

/// Independent streams, so that a change of one law leaves the others' draws alone.
struct Streams {
    lives: Xoshiro,
    outages: Xoshiro,
    repairs: Xoshiro,
    calamities: Xoshiro,
}

/// All nodes that ever were, by number.
#[derive(Default)]
struct Nodes {
    flags: Vec<u8>,
    zone: Vec<u16>,
    /// Grows when the node goes or comes: an event made before is void.
    epoch: Vec<u32>,
    /// When its declaration of death was first put off; 0: never.
    frozen_since: Vec<Time>,
    /// Slots that it was given; the holder's table says which it still has.
    slots: Vec<Vec<u32>>,
    /// Those that answer or are away, without the lost ones.
    living: Vec<u32>,
    /// Where they are in `living`.
    position: Vec<u32>,
}

struct World<'a> {
    scenario: &'a Scenario,
    now: Time,
    queue: Queue,
    streams: Streams,
    nodes: Nodes,
    stripes: Stripes,
    view: RingView,
    next_unborn: u32,
    unborn_end: u32,
    zone_cap: usize,
    on_ring: usize,
    zone_on_ring: Vec<usize>,
    /// Down and not declared dead.
    down: usize,
    zone_down: Vec<usize>,
    /// (margin, since, stripe): repairs that wait for bandwidth.
    waiting: BinaryHeap<Reverse<(usize, Time, u32)>>,
    pipe_free_at: Time,
    jobs: u32,
    underway: usize,
    shard_bytes: f64,
    day: u64,
    day_bytes: f64,
    /// Reused: the nodes that an arc should have.
    target: Vec<u32>,
    out: Outcome,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let (total, data) = (scenario.scheme.total(), scenario.scheme.data());
        let stream = |purpose| Xoshiro::new(scenario.seed, purpose);
        let (arcs, weights) = arcs(scenario, &mut stream("chunks"));
        let stripes = Stripes::new(total, &weights, arcs.len());
        let node_count = u32::try_from(scenario.nodes).unwrap_or(u32::MAX);
        let unborn = node_count.max(16);
        let view = RingView::build(arcs, core::iter::empty(), 0, node_count + unborn, total);
        let shard_bytes = scenario.chunk_bytes / data as f64;
        Self {
            scenario,
            now: 0,
            queue: Queue::default(),
            streams: Streams {
                lives: stream("lives"),
                outages: stream("outages"),
                repairs: stream("repairs"),
                calamities: stream("calamities"),
            },
            nodes: Nodes::default(),
            stripes,
            view,
            next_unborn: 0,
            unborn_end: node_count + unborn,
            zone_cap: zone_cap(data, total, scenario.nodes, scenario.zones),
            on_ring: 0,
            zone_on_ring: vec![0; scenario.zones],
            down: 0,
            zone_down: vec![0; scenario.zones],
            waiting: BinaryHeap::new(),
            pipe_free_at: 0,
            jobs: 0,
            underway: 0,
            shard_bytes,
            day: 0,
            day_bytes: 0.0,
            target: Vec::new(),
            out: Outcome {
                law: scenario.law,
                chunk_years: scenario.chunks as f64 * scenario.years,
                user_bytes: scenario.chunks as f64 * scenario.chunk_bytes,
                lost_chunks: 0,
                losses: 0,
                deaths: 0,
                false_deaths: 0,
                frozen: 0,
                emergencies: 0,
                repairs: 0,
                stalled: 0,
                shards_rebuilt: 0,
                false_rebuilt: 0,
                repair_bytes: 0.0,
                peak_day_node_bytes: 0.0,
                join_bytes: 0.0,
                thin_chunk_hours: 0.0,
                load_max: 0.0,
                load_deviation: 0.0,
                events: 0,
                touches: 0,
                queue_max: 0,
                margins: Vec::new(),
            },
        }
    }

    /// The first nodes, the first placement, the first calamities.
    fn begin(&mut self) {
        for number in 0..self.scenario.nodes {
            let age = self.scenario.life.stationary_age(&mut self.streams.lives);
            self.birth(self.zone_of(number), age);
        }
        for stripe in 0..self.stripes.count() {
            self.store_anew(stripe);
        }
        for at in 0..self.scenario.calamities.len() {
            self.schedule_calamity(at);
        }
        if let Some(storm) = self.scenario.storm {
            self.queue.push(from_hours(storm.at_hours), Event::Storm);
        }
        if self.scenario.samples > 0 {
            self.queue.push(0, Event::Sample);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Death(node) => self.death(node),
            Event::Join(zone) => self.join(zone),
            Event::Outage { node, epoch } => self.outage(node, epoch),
            Event::Return { node, epoch } => self.come_back(node, epoch),
            Event::Declare { node, epoch } => self.declare(node, epoch),
            Event::Caught(node) => self.caught(node),
            Event::Repaired { stripe, job } => self.repaired(stripe as usize, job),
            Event::Dispatch => self.dispatch(),
            Event::Calamity(at) => self.calamity(at as usize),
            Event::Storm => {
                for number in 0..self.scenario.storm.map_or(0, |storm| storm.nodes) {
                    self.join(self.zone_of(number));
                }
            }
            Event::Sample => self.sample(),
        }
    }

    // ---- nodes

    fn zone_of(&self, number: usize) -> u16 {
        u16::try_from(number % self.scenario.zones.max(1)).unwrap_or(0)
    }

    fn birth(&mut self, zone: u16, age: f64) -> u32 {
        let node = self.next_unborn;
        self.next_unborn += 1;
        let liar = self.streams.lives.chance(self.scenario.malicious);
        self.nodes.flags.push(ON_RING | ONLINE | if liar { LIAR } else { 0 });
        self.nodes.zone.push(zone);
        self.nodes.epoch.push(0);
        self.nodes.frozen_since.push(0);
        self.nodes.slots.push(Vec::new());
        self.nodes.position.push(u32::try_from(self.nodes.living.len()).unwrap_or(u32::MAX));
        self.nodes.living.push(node);
        self.count_on_ring(zone, true);
        let rest = self.scenario.life.rest(age, &mut self.streams.lives);
        self.queue.push(self.now + from_hours(rest), Event::Death(node));
        if liar {
            let hours = self.streams.lives.exponential(self.scenario.audit_hours);
            self.queue.push(self.now + from_hours(hours), Event::Caught(node));
        }
        self.schedule_outage(node);
        node
    }

    fn join(&mut self, zone: u16) {
        if self.next_unborn == self.unborn_end {
            self.renew_view();
        }
        let node = self.birth(zone, 0.0);
        self.take_over(node);
    }

    /// All unborn of the view are born: the next view has as many again.
    fn renew_view(&mut self) {
        let unborn = u32::try_from(self.scenario.nodes).unwrap_or(u32::MAX).max(16);
        let arcs = self.view.take_arcs();
        let total = self.scenario.scheme.total();
        // The living, also those who are declared dead but may return, and the dead who still
        // count: flags decide.
        let mut known = self.nodes.living.clone();
        known.extend(
            (0..self.next_unborn).filter(|&node| self.has(node, LOST) && self.has(node, ON_RING)),
        );
        self.view = RingView::build(arcs, known.into_iter(), self.next_unborn, unborn, total);
        self.unborn_end = self.next_unborn + unborn;
    }

    fn has(&self, node: u32, flag: u8) -> bool {
        self.nodes.flags[node as usize] & flag != 0
    }

    fn set(&mut self, node: u32, flag: u8, on: bool) {
        let flags = &mut self.nodes.flags[node as usize];
        *flags = if on { *flags | flag } else { *flags & !flag };
    }

    fn count_on_ring(&mut self, zone: u16, on: bool) {
        let change = |count: &mut usize| *count = if on { *count + 1 } else { *count - 1 };
        change(&mut self.on_ring);
        if let Some(count) = self.zone_on_ring.get_mut(usize::from(zone)) {
            change(count);
        }
    }

    fn count_down(&mut self, node: u32, on: bool) {
        let change = |count: &mut usize| *count = if on { *count + 1 } else { *count - 1 };
        change(&mut self.down);
        let zone = usize::from(self.nodes.zone[node as usize]);
        if let Some(count) = self.zone_down.get_mut(zone) {
            change(count);
        }
    }

    /// The node's disk is gone. Its shards do not exist from now on; others notice later.
    fn death(&mut self, node: u32) {
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
                let at = self.now + from_hours(self.scenario.dead_after_hours);
                self.queue.push(at, Event::Declare { node, epoch });
            }
        }
        let zone = self.nodes.zone[node as usize];
        self.queue.push(self.now + from_hours(self.scenario.replace_hours), Event::Join(zone));
    }

    /// Takes the node off the list of the living.
    fn bury(&mut self, node: u32) {
        let position = self.nodes.position[node as usize] as usize;
        self.nodes.living.swap_remove(position);
        if let Some(&moved) = self.nodes.living.get(position) {
            self.nodes.position[moved as usize] = u32::try_from(position).unwrap_or(u32::MAX);
        }
    }

    fn next_epoch(&mut self, node: u32) -> u32 {
        let epoch = &mut self.nodes.epoch[node as usize];
        *epoch += 1;
        *epoch
    }

    fn schedule_outage(&mut self, node: u32) {
        if let Some(outages) = self.scenario.outages {
            let hours = self.streams.outages.exponential(HOURS_PER_YEAR / outages.per_year);
            let epoch = self.nodes.epoch[node as usize];
            self.queue.push(self.now + from_hours(hours), Event::Outage { node, epoch });
        }
    }

    fn outage(&mut self, node: u32, epoch: u32) {
        if self.nodes.epoch[node as usize] != epoch || !self.has(node, ONLINE) {
            return;
        }
        if let Some(outages) = self.scenario.outages {
            let hours = self.streams.outages.lognormal(outages.median_hours, outages.sigma);
            self.go_away(node, hours);
        }
    }

    fn go_away(&mut self, node: u32, hours: f64) {
        self.set(node, ONLINE, false);
        self.count_down(node, true);
        let epoch = self.next_epoch(node);
        self.queue.push(self.now + from_hours(hours), Event::Return { node, epoch });
        if hours >= self.scenario.dead_after_hours {
            // Nobody knows yet that it will be so long; a shorter absence would only make an event
            // that its return voids.
            let at = self.now + from_hours(self.scenario.dead_after_hours);
            self.queue.push(at, Event::Declare { node, epoch });
        }
    }

    /// The node is back, with all its shards: what was not made again elsewhere counts again.
    fn come_back(&mut self, node: u32, epoch: u32) {
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
            self.set(node, ON_RING, true);
            self.count_on_ring(self.nodes.zone[node as usize], true);
        }
        let slots = core::mem::take(&mut self.nodes.slots[node as usize]);
        for &slot in &slots {
            self.out.touches += 1;
            let holder = &mut self.stripes.holders[slot as usize];
            if *holder == node | ABSENT {
                *holder = node;
                self.stripes.counted[slot as usize / self.stripes.total] += 1;
            }
        }
        self.nodes.slots[node as usize] = slots;
        self.schedule_outage(node);
    }

    /// An audit shows that a node has nothing: it is out at once.
    fn caught(&mut self, node: u32) {
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
        self.queue.push(self.now + from_hours(self.scenario.replace_hours), Event::Join(zone));
    }

    /// The node was away for long enough: dead, unless too many are.
    fn declare(&mut self, node: u32, epoch: u32) {
        if self.nodes.epoch[node as usize] != epoch || !self.has(node, ON_RING) {
            return;
        }
        if self.is_frozen(node) {
            self.out.frozen += 1;
            self.emergencies(node);
            let at = self.now + from_hours(AGAIN_HOURS);
            self.queue.push(at, Event::Declare { node, epoch });
        } else {
            self.strike_off(node);
        }
    }

    fn is_frozen(&mut self, node: u32) -> bool {
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

    /// While deaths are frozen, the node's shards of stripes that are nearly lost count as missing.
    fn emergencies(&mut self, node: u32) {
        let slots = core::mem::take(&mut self.nodes.slots[node as usize]);
        for &slot in &slots {
            self.out.touches += 1;
            let stripe = slot as usize / self.stripes.total;
            let holder = self.stripes.holders[slot as usize];
            if (holder == node || holder == node | GONE)
                && policy::is_emergency(self.scenario.scheme, self.reachable(stripe))
            {
                self.out.emergencies += 1;
                self.discount(slot, node);
            }
        }
        self.nodes.slots[node as usize] = slots;
    }

    fn strike_off(&mut self, node: u32) {
        self.set(node, ON_RING, false);
        self.count_down(node, false);
        self.count_on_ring(self.nodes.zone[node as usize], false);
        let slots = core::mem::take(&mut self.nodes.slots[node as usize]);
        for &slot in &slots {
            self.out.touches += 1;
            self.discount(slot, node);
        }
        if !self.has(node, LOST) {
            self.nodes.slots[node as usize] = slots;
        }
    }

    /// The node's shard in this slot does not count any more.
    fn discount(&mut self, slot: u32, node: u32) {
        let holder = &mut self.stripes.holders[slot as usize];
        if *holder == node {
            *holder = node | ABSENT;
        } else if *holder == node | GONE {
            *holder = NONE;
        } else {
            return;
        }
        let stripe = slot as usize / self.stripes.total;
        self.stripes.counted[stripe] -= 1;
        self.consider(stripe);
    }

    // ---- stripes

    /// Places a stripe that holds nothing, or that starts again after its loss.
    fn store_anew(&mut self, stripe: usize) {
        let arc = self.stripes.arc[stripe] as usize;
        let total = self.stripes.total;
        self.fill_target(arc, ONLINE);
        let target = core::mem::take(&mut self.target);
        self.stripes.live[stripe] = 0;
        self.stripes.counted[stripe] = 0;
        self.stripes.job[stripe] = 0;
        for index in 0..total {
            let slot = stripe * total + index;
            self.stripes.holders[slot] = NONE;
            if let Some(&node) = target.get(index) {
                self.give(slot, node);
                self.stripes.counted[stripe] += 1;
            }
        }
        self.target = target;
        self.note_thinness(stripe);
    }

    /// Hands a shard to a node: `live` grows unless it throws it away.
    fn give(&mut self, slot: usize, node: u32) {
        // Below chunks × n, which was checked.
        self.nodes.slots[node as usize].push(u32::try_from(slot).unwrap_or(u32::MAX));
        if self.has(node, LIAR) {
            self.stripes.holders[slot] = node | GONE;
        } else {
            self.stripes.holders[slot] = node;
            self.stripes.live[slot / self.stripes.total] += 1;
        }
    }

    /// The first n nodes of the arc's walk that are on the ring and have all of `flags`, zone caps
    /// applied, into `target`.
    fn fill_target(&mut self, arc: usize, flags: u8) {
        let wanted = ON_RING | flags;
        let mut target = core::mem::take(&mut self.target);
        target.clear();
        self.view.walk(arc, |node| {
            let known = self.nodes.flags.get(node as usize).copied().unwrap_or(0);
            if known & wanted == wanted && self.zone_has_room(&target, node) {
                target.push(node);
                if target.len() == self.stripes.total {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        self.target = target;
    }

    fn zone_has_room(&self, held: &[u32], node: u32) -> bool {
        if self.scenario.zones == 0 {
            return true;
        }
        let zone = self.nodes.zone[node as usize];
        let in_zone = held.iter().filter(|&&other| self.nodes.zone[other as usize] == zone).count();
        in_zone < self.zone_cap
    }

    /// A newborn gets its places: one shard from each stripe whose set it joins, from a holder
    /// that left the set.
    fn take_over(&mut self, node: u32) {
        for at in self.view.reach(node) {
            let arc = self.view.reached(at);
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

    fn replace_outsider(&mut self, stripe: usize, node: u32, target: &[u32]) {
        self.out.touches += 1;
        let outsider = self.stripes.slots(stripe).find(|&slot| {
            let holder = self.stripes.holders[slot];
            holder <= NUMBER && !target.contains(&holder) && self.has(holder, ONLINE)
        });
        if let Some(slot) = outsider {
            self.stripes.live[stripe] -= 1;
            self.give(slot, node);
            self.out.join_bytes += self.shard_bytes * f64::from(self.stripes.weight[stripe]);
            if self.has(node, LIAR) {
                self.check_loss(stripe);
            }
        }
    }

    fn lose_shard(&mut self, stripe: usize) {
        self.stripes.live[stripe] -= 1;
        self.check_loss(stripe);
    }

    fn check_loss(&mut self, stripe: usize) {
        if usize::from(self.stripes.live[stripe]) >= self.scenario.scheme.data() {
            self.note_thinness(stripe);
            return;
        }
        self.out.losses += 1;
        self.out.lost_chunks += u64::from(self.stripes.weight[stripe]);
        self.end_job(stripe);
        if self.scenario.renew {
            self.store_anew(stripe);
        } else {
            for slot in self.stripes.slots(stripe) {
                self.stripes.holders[slot] = NONE;
            }
            self.stripes.live[stripe] = 0;
            self.stripes.counted[stripe] = 0;
            self.end_thinness(stripe);
        }
    }

    fn note_thinness(&mut self, stripe: usize) {
        if usize::from(self.stripes.live[stripe]) > self.scenario.scheme.data() + 2 {
            self.end_thinness(stripe);
        } else if self.stripes.thin_since[stripe] == Time::MAX {
            self.stripes.thin_since[stripe] = self.now;
        }
    }

    fn end_thinness(&mut self, stripe: usize) {
        let since = core::mem::replace(&mut self.stripes.thin_since[stripe], Time::MAX);
        if since != Time::MAX {
            let chunks = f64::from(self.stripes.weight[stripe]);
            self.out.thin_chunk_hours += to_hours(self.now - since) * chunks;
        }
    }

    fn reachable(&self, stripe: usize) -> usize {
        let slots = &self.stripes.holders[self.stripes.slots(stripe)];
        slots.iter().filter(|&&holder| holder <= NUMBER && self.has(holder, ONLINE)).count()
    }

    // ---- repair

    /// Asks the policy about a stripe that has lost a shard.
    fn consider(&mut self, stripe: usize) {
        if self.stripes.live[stripe] == 0 && !self.scenario.renew {
            return; // lost
        }
        let facts = Facts {
            counted: self.stripes.counted[stripe].into(),
            underway: self.stripes.job[stripe] != 0,
        };
        if let Verdict::Repair { margin } = policy::judge(self.scenario.scheme, facts) {
            self.jobs += 1;
            self.underway += 1;
            self.stripes.job[stripe] = self.jobs;
            if self.scenario.budget.is_none() {
                self.start(stripe, self.now);
            } else {
                let entry = (margin, self.now, u32::try_from(stripe).unwrap_or(u32::MAX));
                self.waiting.push(Reverse(entry));
                if self.pipe_free_at <= self.now {
                    self.dispatch();
                }
            }
        }
    }

    /// Sends the most urgent waiting repairs down the pipe of the whole network's repair
    /// bandwidth, one after the other.
    fn dispatch(&mut self) {
        let Some(budget) = self.scenario.budget else { return };
        if self.pipe_free_at > self.now {
            return;
        }
        while let Some(Reverse((margin, since, stripe))) = self.waiting.pop() {
            let at = stripe as usize;
            let counted = usize::from(self.stripes.counted[at]);
            if self.stripes.job[at] == 0 {
                continue; // lost meanwhile
            }
            if counted > self.scenario.scheme.threshold() {
                self.end_job(at); // its nodes came back
                continue;
            }
            let margin_now = counted.saturating_sub(self.scenario.scheme.data());
            if margin_now != margin {
                // It has moved in the queue since; every entry is corrected once per change.
                self.waiting.push(Reverse((margin_now, since, stripe)));
                continue;
            }
            let bytes = self.repair_bytes(at, self.stripes.total - counted);
            // Every byte is sent by one node and received by another.
            let per_hour = budget * self.nodes.living.len().max(1) as f64 / 2.0;
            self.pipe_free_at = self.now + from_hours(bytes / per_hour).max(1);
            self.start(at, self.pipe_free_at);
            self.queue.push(self.pipe_free_at, Event::Dispatch);
            break;
        }
    }

    fn start(&mut self, stripe: usize, from: Time) {
        let hours = match self.scenario.law {
            RepairLaw::Exponential => self.streams.repairs.exponential(self.scenario.repair_hours),
            RepairLaw::Fixed => self.scenario.repair_hours,
        };
        let job = self.stripes.job[stripe];
        let stripe = u32::try_from(stripe).unwrap_or(u32::MAX);
        self.queue.push(from + from_hours(hours), Event::Repaired { stripe, job });
    }

    fn end_job(&mut self, stripe: usize) {
        if core::mem::take(&mut self.stripes.job[stripe]) != 0 {
            self.underway -= 1;
        }
    }

    fn repair_bytes(&self, stripe: usize, missing: usize) -> f64 {
        let shards = self.scenario.scheme.data() + missing;
        shards as f64 * self.shard_bytes * f64::from(self.stripes.weight[stripe])
    }

    /// All shards that are known to be missing are made again on the next nodes of the walk.
    fn repaired(&mut self, stripe: usize, job: u32) {
        if self.stripes.job[stripe] != job {
            return;
        }
        if self.reachable(stripe) < self.scenario.scheme.data() {
            self.out.stalled += 1;
            let again = Event::Repaired { stripe: u32::try_from(stripe).unwrap_or(u32::MAX), job };
            self.queue.push(self.now + from_hours(AGAIN_HOURS), again);
            return;
        }
        self.end_job(stripe);
        let missing: Vec<usize> = self
            .stripes
            .slots(stripe)
            .filter(|&slot| {
                let holder = self.stripes.holders[slot];
                holder == NONE || holder & ABSENT != 0
            })
            .collect();
        if missing.is_empty() {
            return; // all came back
        }
        let newcomers = self.newcomers(stripe, missing.len());
        self.out.repairs += 1;
        let bytes = self.repair_bytes(stripe, newcomers.len());
        self.count_traffic(bytes);
        for (slot, node) in missing.into_iter().zip(newcomers) {
            self.out.touches += 1;
            let chunks = u64::from(self.stripes.weight[stripe]);
            self.out.shards_rebuilt += chunks;
            if self.stripes.holders[slot] != NONE {
                self.out.false_rebuilt += chunks;
                self.stripes.live[stripe] -= 1; // the old one is forgotten
            }
            self.give(slot, node);
            self.stripes.counted[stripe] += 1;
        }
        self.check_loss(stripe);
        self.consider(stripe);
    }

    /// The first nodes of the walk that answer and hold none of the stripe.
    fn newcomers(&self, stripe: usize, wanted: usize) -> Vec<u32> {
        let mut holders: Vec<u32> = self.stripes.holders[self.stripes.slots(stripe)]
            .iter()
            .filter(|&&holder| holder != NONE && holder & ABSENT == 0)
            .map(|holder| holder & NUMBER)
            .collect();
        let held = holders.len();
        self.view.walk(self.stripes.arc[stripe] as usize, |node| {
            let flags = self.nodes.flags.get(node as usize).copied().unwrap_or(0);
            if flags & (ON_RING | ONLINE) == ON_RING | ONLINE
                && !holders.contains(&node)
                && self.zone_has_room(&holders, node)
            {
                holders.push(node);
                if holders.len() == held + wanted {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        holders.split_off(held)
    }

    fn count_traffic(&mut self, bytes: f64) {
        self.out.repair_bytes += bytes;
        let day = self.now / from_hours(24.0);
        if day != self.day {
            self.close_day();
            self.day = day;
        }
        self.day_bytes += bytes;
    }

    fn close_day(&mut self) {
        let each = self.day_bytes / self.nodes.living.len().max(1) as f64;
        self.out.peak_day_node_bytes = self.out.peak_day_node_bytes.max(each);
        self.day_bytes = 0.0;
    }

    // ---- calamities and looks

    fn schedule_calamity(&mut self, at: usize) {
        let mean = HOURS_PER_YEAR / self.scenario.calamities[at].per_year;
        let hours = self.streams.calamities.exponential(mean);
        let event = Event::Calamity(u32::try_from(at).unwrap_or(u32::MAX));
        self.queue.push(self.now + from_hours(hours), event);
    }

    fn calamity(&mut self, at: usize) {
        let calamity = self.scenario.calamities[at];
        let random = &mut self.streams.calamities;
        let victims: Vec<u32> = match calamity.victims {
            Victims::Zone => {
                let zone = random.below(self.scenario.zones.max(1));
                let of_zone = |node: &&u32| usize::from(self.nodes.zone[**node as usize]) == zone;
                self.nodes.living.iter().filter(of_zone).copied().collect()
            }
            Victims::Nodes(count) => {
                let mut chosen = Vec::with_capacity(count);
                // With repetition; a node is struck once.
                for _ in 0..count {
                    let at = random.below(self.nodes.living.len());
                    chosen.extend(self.nodes.living.get(at));
                }
                chosen.sort_unstable();
                chosen.dedup();
                chosen
            }
        };
        for node in victims {
            if self.streams.calamities.chance(calamity.permanent) {
                self.death(node);
            } else if self.has(node, ONLINE) {
                self.go_away(node, calamity.hours);
            }
        }
        self.schedule_calamity(at);
    }

    fn sample(&mut self) {
        let data = self.scenario.scheme.data();
        let mut margin = Margin {
            hours: to_hours(self.now),
            live_min: self.stripes.total,
            live_mean: 0.0,
            online_min: self.stripes.total,
            unavailable: 0,
            repair_bytes: self.out.repair_bytes,
            repairs: self.underway,
        };
        for stripe in 0..self.stripes.count() {
            let live = usize::from(self.stripes.live[stripe]);
            let chunks = self.stripes.weight[stripe];
            margin.live_mean += live as f64 * f64::from(chunks) / self.scenario.chunks as f64;
            if live == 0 {
                continue;
            }
            let online = self.reachable(stripe);
            margin.live_min = margin.live_min.min(live);
            margin.online_min = margin.online_min.min(online);
            if online < data {
                margin.unavailable += u64::from(chunks);
            }
        }
        self.out.margins.push(margin);
        let step = self.scenario.years * HOURS_PER_YEAR / self.scenario.samples as f64;
        self.queue.push(self.now + from_hours(step), Event::Sample);
    }

    fn finish(mut self) -> Outcome {
        for stripe in 0..self.stripes.count() {
            self.end_thinness(stripe);
        }
        self.close_day();
        let mut held = vec![0.0f64; self.nodes.flags.len()];
        for (slot, &holder) in self.stripes.holders.iter().enumerate() {
            if holder <= NUMBER {
                held[holder as usize] += f64::from(self.stripes.weight[slot / self.stripes.total]);
            }
        }
        let loads: Vec<f64> = self.nodes.living.iter().map(|&node| held[node as usize]).collect();
        let (deviation, most) = crate::stats::spread(&loads);
        self.out.load_deviation = deviation;
        self.out.load_max = most;
        self.out.queue_max = self.queue.longest();
        self.out
    }
}

/// The arcs that have chunks, and for each stripe its arc and chunks. Chunk ids are random.
fn arcs(scenario: &Scenario, random: &mut Xoshiro) -> (Vec<u16>, Vec<(u32, u32)>) {
    let mut chunks_of = vec![0u32; ARCS];
    for _ in 0..scenario.chunks {
        chunks_of[random.below(ARCS)] += 1;
    }
    let mut arcs = Vec::new();
    let mut weights = Vec::new();
    for (arc, &chunks) in (0..=u16::MAX).zip(&chunks_of).filter(|(_, chunks)| **chunks > 0) {
        let at = u32::try_from(arcs.len()).unwrap_or(u32::MAX);
        arcs.push(arc);
        match scenario.unit {
            Unit::Arc => weights.push((at, chunks)),
            Unit::Chunk => weights.extend((0..chunks).map(|_| (at, 1))),
        }
    }
    (arcs, weights)
}
