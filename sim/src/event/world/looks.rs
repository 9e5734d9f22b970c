//! What strikes many nodes at once, and looks at all stripes at once.
//!
//! Owns the calamities of the scenario and the samples that were asked for.

use super::{ONLINE, World};
use crate::event::{
    HOURS_PER_YEAR,
    outcome::Margin,
    queue::{Event, to_hours},
    scenario::Victims,
};

impl World<'_> {
    pub(super) fn schedule_calamity(&mut self, at: usize) {
        let mean = HOURS_PER_YEAR / self.scenario.calamities[at].per_year;
        let hours = self.streams.calamities.exponential(mean);
        let event = Event::Calamity(u32::try_from(at).unwrap_or(u32::MAX));
        self.queue.push(self.after(hours), event);
    }

    pub(super) fn calamity(&mut self, at: usize) {
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

    pub(super) fn sample(&mut self) {
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
            let live = usize::from(self.stripes.each[stripe].live);
            let chunks = self.stripes.each[stripe].weight;
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
        self.queue.push(self.after(step), Event::Sample);
    }
}
