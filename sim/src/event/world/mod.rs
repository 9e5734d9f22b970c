//! The events of a simulation, one function for each.
//!
//! Owns the state of the simulated world and the order of things. What is repaired is not decided here
//! but in [`policy`](crate::policy). The one idea: an event touches the shards of one node, or one
//! stripe; nothing ever looks at all of them, save for the samples that were asked for.
//!
//! | file | events |
//! |---|---|
//! | `membership` | nodes come, go away, return, die, are declared dead |
//! | `placing` | shards are placed, taken over, lost |
//! | `repairs` | repairs are asked for, wait, are done |
//! | `looks` | calamities; samples |

mod looks;
mod membership;
mod placing;
mod repairs;

use std::{cmp::Reverse, collections::BinaryHeap};

use copse_core::{geometry::Geometry, limits::ARCS, repair::Lines, ring::equal_zone_cap};

use super::{
    HOURS_PER_YEAR,
    outcome::Outcome,
    queue::{Event, Queue, Time, from_hours},
    ringview::RingView,
    scenario::{Scenario, ScenarioError, Unit},
    stripes::{NUMBER, Stripes},
};
use crate::random::Xoshiro;

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
    lines: Lines,
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
    /// Reused: the slots whose shards are made again.
    made: Vec<usize>,
    out: Outcome,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let (total, data) = (scenario.scheme.total(), scenario.scheme.data());
        // Without zones, and where a code cannot be, any number of shards may be in one.
        let zone_cap = Geometry::new(data, total - data)
            .map_or(total, |geometry| equal_zone_cap(geometry, scenario.nodes, scenario.zones));
        let stream = |purpose| Xoshiro::new(scenario.seed, purpose);
        let (arcs, weights) = arcs(scenario, &mut stream("chunks"));
        let stripes = Stripes::new(total, &weights, arcs.len());
        let node_count = u32::try_from(scenario.nodes).unwrap_or(u32::MAX);
        let unborn = node_count.max(16);
        let view = RingView::build(arcs, Vec::new(), 0, node_count + unborn, total, |_| false);
        let steps = view.steps_of_build();
        let shard_bytes = scenario.chunk_bytes / data as f64;
        Self {
            scenario,
            lines: scenario.lines(),
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
            zone_cap,
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
            made: Vec::new(),
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
                steps,
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

    /// So many hours from now. What would be later than time goes is never.
    fn after(&self, hours: f64) -> Time {
        self.now.saturating_add(from_hours(hours))
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Death(node) => self.death(node),
            Event::Join(zone) => self.join(zone),
            Event::Outage { node, epoch } => self.outage(node, epoch),
            Event::Return { node, epoch } => self.come_back(node, epoch),
            Event::Down { node, epoch } => self.goes_down(node, epoch),
            Event::Overdue { stripe } => self.overdue(stripe as usize),
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

    fn finish(mut self) -> Outcome {
        for stripe in 0..self.stripes.count() {
            self.end_thinness(stripe);
        }
        self.close_day();
        let mut held = vec![0.0f64; self.nodes.flags.len()];
        for (slot, &holder) in self.stripes.holders.iter().enumerate() {
            if holder <= NUMBER {
                held[holder as usize] +=
                    f64::from(self.stripes.each[slot / self.stripes.total].weight);
            }
        }
        let loads: Vec<f64> = self.nodes.living.iter().map(|&node| held[node as usize]).collect();
        let (deviation, most) = crate::stats::spread(&loads);
        self.out.load_deviation = deviation;
        self.out.load_max = most;
        self.out.steps += self.queue.steps() + self.out.touches;
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
