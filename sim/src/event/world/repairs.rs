//! Repairs: asked for by the policy, queued for bandwidth, done.
//!
//! Owns the queue and the traffic. The policy decides what is rebuilt, here it happens.

use core::{cmp::Reverse, ops::ControlFlow, time::Duration};

use copse_core::repair::Lines;

use super::{AGAIN_HOURS, ON_RING, ONLINE, World};
use crate::{
    event::{
        queue::{Event, Time, from_hours},
        stripes::{ABSENT, GONE, NONE, NUMBER},
    },
    law::RepairLaw,
    policy::{self, Facts, Verdict},
};

impl World<'_> {
    /// What the policy says of a stripe. Unless the scenario says when a node counts as down, only the
    /// dead are missed.
    fn judge(&self, stripe: usize) -> Verdict {
        let counted = usize::from(self.stripes.each[stripe].counted);
        let sees_down = self.scenario.down_after_hours.is_some();
        let online = if sees_down { self.reachable(stripe) } else { counted };
        let since = self.stripes.each[stripe].missing_since;
        let missing_for = (since != Time::MAX).then(|| Duration::from_millis(self.now - since));
        let facts = Facts {
            total: self.stripes.total,
            online,
            counted,
            missing_for,
            is_frozen: sees_down && self.many_are_silent(),
        };
        let lines = if sees_down { self.lines } else { Lines { thin: 0, ..self.lines } };
        policy::judge(&lines, facts)
    }

    /// Asks the policy about a stripe that has lost a shard, for good or for a while.
    pub(super) fn consider(&mut self, stripe: usize) {
        if self.stripes.each[stripe].live == 0 && !self.scenario.renew {
            return; // lost
        }
        self.note_missing(stripe);
        if self.stripes.each[stripe].job != 0 {
            return; // somebody is at it
        }
        // One that cannot be read now is repaired as soon as it can be.
        if self.judge(stripe) == Verdict::Enough {
            return;
        }
        self.jobs += 1;
        self.underway += 1;
        self.stripes.each[stripe].job = self.jobs;
        if self.scenario.budget.is_none() {
            self.start(stripe, self.now);
        } else {
            let margin = self.margin(stripe);
            let entry = (margin, self.now, u32::try_from(stripe).unwrap_or(u32::MAX));
            self.waiting.push(Reverse(entry));
            if self.pipe_free_at <= self.now {
                self.dispatch();
            }
        }
    }

    fn margin(&self, stripe: usize) -> usize {
        usize::from(self.stripes.each[stripe].counted).saturating_sub(self.lines.needed)
    }

    /// The clock of patience starts with the first shard that is missing for good.
    fn note_missing(&mut self, stripe: usize) {
        let Some(hours) = self.scenario.patience_hours else { return };
        if usize::from(self.stripes.each[stripe].counted) < self.stripes.total
            && self.stripes.each[stripe].missing_since == Time::MAX
        {
            self.stripes.each[stripe].missing_since = self.now;
            let event = Event::Overdue { stripe: u32::try_from(stripe).unwrap_or(u32::MAX) };
            self.queue.push(self.after(hours), event);
        }
    }

    /// It stops when all are there again.
    pub(super) fn forget_missing(&mut self, stripe: usize) {
        if usize::from(self.stripes.each[stripe].counted) == self.stripes.total {
            self.stripes.each[stripe].missing_since = Time::MAX;
        }
    }

    /// Patience may have run out; if the clock was set anew meanwhile, another event will come.
    pub(super) fn overdue(&mut self, stripe: usize) {
        if self.stripes.each[stripe].missing_since != Time::MAX {
            self.consider(stripe);
        }
    }

    /// Sends the most urgent waiting repairs down the pipe of the whole network's repair
    /// bandwidth, one after the other.
    pub(super) fn dispatch(&mut self) {
        let Some(budget) = self.scenario.budget else { return };
        if self.pipe_free_at > self.now {
            return;
        }
        while let Some(Reverse((margin, since, stripe))) = self.waiting.pop() {
            let at = stripe as usize;
            if self.stripes.each[at].job == 0 {
                continue; // lost meanwhile
            }
            if self.judge(at) == Verdict::Enough {
                self.end_job(at); // its nodes came back
                continue;
            }
            let margin_now = self.margin(at);
            if margin_now != margin {
                // It has moved in the queue since; every entry is corrected once per change.
                self.waiting.push(Reverse((margin_now, since, stripe)));
                continue;
            }
            let bytes = self
                .repair_bytes(at, self.stripes.total - usize::from(self.stripes.each[at].counted));
            // Every byte is sent by one node and received by another.
            let per_hour = budget * self.nodes.living.len().max(1) as f64 / 2.0;
            let lasts = from_hours(bytes / per_hour).max(1);
            self.pipe_free_at = self.now.saturating_add(lasts);
            self.start(at, self.pipe_free_at);
            self.queue.push(self.pipe_free_at, Event::Dispatch);
            break;
        }
    }

    pub(super) fn start(&mut self, stripe: usize, from: Time) {
        let hours = match self.scenario.law {
            RepairLaw::Exponential => self.streams.repairs.exponential(self.scenario.repair_hours),
            RepairLaw::Fixed => self.scenario.repair_hours,
        };
        let job = self.stripes.each[stripe].job;
        let stripe = u32::try_from(stripe).unwrap_or(u32::MAX);
        let at = from.saturating_add(from_hours(hours));
        self.queue.push(at, Event::Repaired { stripe, job });
    }

    pub(super) fn end_job(&mut self, stripe: usize) {
        if core::mem::take(&mut self.stripes.each[stripe].job) != 0 {
            self.underway -= 1;
        }
    }

    pub(super) fn repair_bytes(&self, stripe: usize, missing: usize) -> f64 {
        let shards = self.scenario.scheme.data() + missing;
        shards as f64 * self.shard_bytes * f64::from(self.stripes.each[stripe].weight)
    }

    /// All shards that are missing for good are made again on the next nodes of the walk, and when the
    /// stripe is thin, some of those on nodes that are down.
    pub(super) fn repaired(&mut self, stripe: usize, job: u32) {
        if self.stripes.each[stripe].job != job {
            return;
        }
        let online = self.reachable(stripe);
        // Here, for those that are missing, and for those that still hold.
        self.out.steps += 3 * self.stripes.total as u64;
        if online < self.lines.needed {
            self.out.stalled += 1;
            let again = Event::Repaired { stripe: u32::try_from(stripe).unwrap_or(u32::MAX), job };
            self.queue.push(self.after(AGAIN_HOURS), again);
            return;
        }
        let verdict = self.judge(stripe);
        self.end_job(stripe);
        let is_missing = |holder: u32| holder == NONE || holder & ABSENT != 0;
        let mut made = core::mem::take(&mut self.made);
        made.clear();
        let holders = &self.stripes.holders;
        made.extend(self.stripes.slots(stripe).filter(|&slot| is_missing(holders[slot])));
        if let Verdict::Rebuild { all, more } = verdict {
            let more = if all { more } else { more.saturating_sub(made.len()) };
            let of_down = |slot: &usize| {
                let holder = holders[*slot];
                !is_missing(holder) && !self.has(holder & NUMBER, ONLINE)
            };
            made.extend(self.stripes.slots(stripe).filter(of_down).take(more));
            self.out.emergencies += more as u64;
        }
        if made.is_empty() {
            self.made = made;
            return; // all came back
        }
        let newcomers = self.newcomers(stripe, made.len());
        self.out.repairs += 1;
        let bytes = self.repair_bytes(stripe, newcomers.len());
        self.count_traffic(bytes);
        for (&slot, &node) in made.iter().zip(&newcomers) {
            self.out.touches += 1;
            let chunks = u64::from(self.stripes.each[stripe].weight);
            self.out.shards_rebuilt += chunks;
            let holder = self.stripes.holders[slot];
            if holder != NONE && holder & GONE == 0 {
                self.out.false_rebuilt += chunks;
                self.stripes.each[stripe].live -= 1; // the old one is forgotten
            }
            if is_missing(holder) {
                self.stripes.each[stripe].counted += 1;
            }
            self.give(slot, node);
        }
        self.made = made;
        self.target = newcomers;
        self.forget_missing(stripe);
        self.check_loss(stripe);
        self.consider(stripe);
    }

    /// The first nodes of the walk that answer and hold none of the stripe. Takes the buffer of
    /// `target`; give it back.
    fn newcomers(&mut self, stripe: usize, wanted: usize) -> Vec<u32> {
        let mut holders = core::mem::take(&mut self.target);
        holders.clear();
        let here = self.stripes.holders[self.stripes.slots(stripe)].iter();
        let has_shard = |holder: &&u32| **holder != NONE && **holder & ABSENT == 0;
        holders.extend(here.filter(has_shard).map(|holder| holder & NUMBER));
        let held = holders.len();
        let shown = self.view.walk(self.stripes.each[stripe].arc as usize, |node| {
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
        self.out.steps += shown;
        holders.drain(..held);
        holders
    }

    pub(super) fn count_traffic(&mut self, bytes: f64) {
        self.out.repair_bytes += bytes;
        let day = self.now / from_hours(24.0);
        if day != self.day {
            self.close_day();
            self.day = day;
        }
        self.day_bytes += bytes;
    }

    pub(super) fn close_day(&mut self) {
        let each = self.day_bytes / self.nodes.living.len().max(1) as f64;
        self.out.peak_day_node_bytes = self.out.peak_day_node_bytes.max(each);
        self.day_bytes = 0.0;
    }
}
