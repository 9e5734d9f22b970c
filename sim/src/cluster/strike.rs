//! What strikes a world: faults begin and end in their time.
//!
//! Owns how each fault is done to machines and links. Decides nothing: what strikes, and when, is in
//! the world's spec.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use super::{
    atlas::{BadDisk, Fault, Lie},
    blackout,
    check::{Broken, Promise},
    net::{Line, Machine, Net, Quality},
    sectors,
    spec::Dice,
    witness::Witness,
    world::World,
};
use crate::random::Xoshiro;

/// A node that lies about others, as long as it does.
pub(super) struct Liar {
    machine: Machine,
    how: Lie,
    /// It speaks since this start of its node.
    speaks: Option<(u64, Witness)>,
}

impl World {
    /// Lets all faults that were planned for these times begin and end, so much later.
    pub(super) async fn strike(
        &mut self,
        later: Duration,
        planned_for: Range<Duration>,
    ) -> Result<(), Broken> {
        let faults = self.spec.faults.clone();
        let mut moments: Vec<(Duration, bool, usize)> = Vec::new();
        let mut those = self.spec.active_faults().collect::<Vec<_>>();
        those.retain(|(_, planned)| planned_for.contains(&planned.at));
        for (number, planned) in those {
            moments.push((planned.at, true, number));
            moments.push((planned.at + planned.lasts, false, number));
        }
        moments.sort_unstable();
        let mut down: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.hosts.len()];
        for (at, begins, number) in moments {
            self.wait_until(at + later).await?;
            let fault = &faults[number].fault;
            if begins && matches!(fault, Fault::Blackout { at_acknowledgement: true, .. }) {
                self.ledger.next_acknowledgement(blackout::ACKNOWLEDGED_WITHIN).await;
            }
            self.note_the_dead();
            let word = if begins { "begins" } else { "ends" };
            self.trace.note(format_args!("fault {number} {word}: {fault}"));
            // What is missing before it strikes it did not take.
            self.nothing_was_deleted_on_doubt()?;
            if begins {
                self.active.insert(number);
                if let Some(host) = fault.loser() {
                    self.scene.takes_from(host);
                }
            } else {
                self.active.remove(&number);
            }
            self.apply(fault, begins, number, &mut down).await?;
            self.note_who_serves();
            self.remember_what_is_there();
            self.is_intact()?;
        }
        Ok(())
    }

    /// Sees who died at a deed, and has each of them started again after its pause.
    pub(super) fn note_the_dead(&mut self) {
        let now = self.trace.now();
        for (machine, host) in self.hosts.iter_mut().enumerate() {
            if let Some(pause) = host.died() {
                self.waiting.insert(machine, now + pause);
            }
            // As its owner, who reads that the store takes no more writes until then.
            if host.should_restart() {
                self.trace
                    .note(format_args!("node {machine} is restarted: its store refuses writes"));
                host.kill(false);
                self.waiting.insert(machine, now);
            }
        }
    }

    /// Has those speak who lie about others.
    pub(super) fn mislead(&mut self) -> Result<(), Broken> {
        for (number, liar) in &mut self.liars {
            let host = &self.hosts[usize::from(liar.machine)];
            let (starts, records) = (host.starts(), host.records());
            if liar.speaks.as_ref().is_none_or(|(since, _)| *since != starts) {
                liar.speaks = None;
            }
            if records.is_empty() {
                continue;
            }
            let (_, witness) = match &mut liar.speaks {
                Some(speaks) => speaks,
                silent => {
                    let purpose = format!("cluster witness {number} {starts}");
                    let rng = Xoshiro::new(self.spec.seed, &purpose);
                    let (secret, network) = (host.secret(), self.settings.network);
                    let (how, machine) = (liar.how, liar.machine);
                    let stale = records.clone();
                    let witness =
                        Witness::new(how, secret, network, &self.net, machine, stale, rng);
                    let witness = witness.map_err(|error| {
                        Broken::new(Promise::Start, format!("the liar {machine}: {error}"))
                    })?;
                    silent.insert((starts, witness))
                }
            };
            let messages = witness.mislead(&records, host.unix_seconds());
            self.scene.struck(|struck| struck.false_words += messages);
        }
        Ok(())
    }

    async fn apply(
        &mut self,
        fault: &Fault,
        begins: bool,
        number: usize,
        down: &mut [BTreeSet<usize>],
    ) -> Result<(), Broken> {
        let others = |side: &[Machine]| -> Vec<Machine> {
            (0..self.spec.hosts + self.spec.joiners + self.spec.clients + 1)
                .filter(|machine| !side.contains(machine))
                .collect()
        };
        match fault {
            Fault::Kill { host } | Fault::PowerCut { host, .. } | Fault::LoseDisk { host } => {
                let index = usize::from(*host);
                if begins {
                    down[index].insert(number);
                    self.waiting.remove(&index);
                    if matches!(fault, Fault::LoseDisk { .. }) {
                        self.note_what_is_lost(index);
                    }
                    let machine = &mut self.hosts[index];
                    if let Fault::PowerCut { forgotten_batches, .. } = fault {
                        machine.fault(|faults| faults.forgotten_batches = *forgotten_batches);
                    }
                    machine.kill(!matches!(fault, Fault::Kill { .. }));
                    machine.fault(|faults| faults.forgotten_batches = 0);
                    if matches!(fault, Fault::LoseDisk { .. }) {
                        machine.lose_disk();
                    }
                } else {
                    down[index].remove(&number);
                    if down[index].is_empty() {
                        self.start(index).await?;
                    }
                }
            }
            Fault::Blackout { side, forgotten_batches, .. } => {
                // No await in between: it is one instant.
                for index in side.iter().map(|host| usize::from(*host)).filter(|_| begins) {
                    down[index].insert(number);
                    self.waiting.remove(&index);
                    let machine = &mut self.hosts[index];
                    let runs = machine.is_running();
                    self.scene.struck(|struck| struck.dark += u64::from(runs));
                    machine.fault(|faults| faults.forgotten_batches = *forgotten_batches);
                    machine.kill(true);
                    machine.fault(|faults| faults.forgotten_batches = 0);
                }
                for index in side.iter().map(|host| usize::from(*host)).filter(|_| !begins) {
                    down[index].remove(&number);
                    if down[index].is_empty() {
                        self.start(index).await?;
                    }
                }
            }
            Fault::KillAt { host, charge } => {
                let index = usize::from(*host);
                if begins {
                    let purpose = format!("cluster death {number}");
                    let rng = Xoshiro::new(self.spec.seed, &purpose);
                    self.hosts[index].arm(&self.net, *charge, rng);
                } else {
                    self.hosts[index].disarm(charge);
                    self.note_the_dead();
                    if down[index].is_empty() {
                        self.start(index).await?;
                    }
                }
            }
            Fault::BadSectors { host, one_in, stays } => {
                let disk = std::sync::Arc::clone(self.hosts[usize::from(*host)].disk());
                if begins {
                    let bad = sectors::go_bad(&disk, *one_in, &mut self.rng).await;
                    self.scene.struck(|struck| struck.bad_sectors += bad);
                } else if !stays {
                    disk.get_well().await;
                }
            }
            // It is so from the beginning.
            Fault::SmallDisk { .. } => {}
            Fault::Rot { host, one_in } if begins => {
                let disk = self.hosts[usize::from(*host)].disk();
                // A disk that cannot be read now does not rot now.
                let held = disk.list(None, usize::MAX).await.unwrap_or_default();
                for shard in held {
                    if self.rng.below(*one_in) == 0 {
                        disk.rot(shard, self.rng.below(1 << 20), 1 << self.rng.below(8));
                    }
                }
            }
            Fault::Rot { .. } => {}
            Fault::Partition { side } => {
                for (one, other) in pairs(side, &others(side)) {
                    self.net.cut(one, other, begins);
                    self.net.cut(other, one, begins);
                }
            }
            Fault::OneWay { from, to } => {
                for other in to {
                    self.net.cut(*from, *other, begins);
                }
            }
            Fault::Flap { host } => {
                if begins {
                    let (net, host, others) = (self.net.clone(), *host, others(&[*host]));
                    let lasts = self.spec.faults[number].lasts;
                    let pause = Duration::from_secs(1 + self.rng.below(10) as u64);
                    tokio::spawn(flap(net, host, others, lasts, pause));
                }
            }
            Fault::Loss { permille } => toggle(&mut self.losses, *permille, begins),
            Fault::Slow { delay_ms } => toggle(&mut self.delays, *delay_ms, begins),
            Fault::BadLine { host, .. } => {
                let mut line = Line::default();
                for fault in self.still_on(fault, begins) {
                    if let Fault::BadLine { delay_ms, permille, .. } = fault {
                        line.delay = line.delay.max(Duration::from_millis(*delay_ms));
                        line.loss = line.loss.max(f64::from(*permille) / 1000.0);
                    }
                }
                self.net.set_line(*host, line);
            }
            Fault::SlowDisk { host, .. } => {
                let slowest = self.still_on(fault, begins).filter_map(|fault| match fault {
                    Fault::SlowDisk { delay_ms, .. } => Some(*delay_ms),
                    _ => None,
                });
                let delay = Duration::from_millis(slowest.max().unwrap_or(0));
                self.hosts[usize::from(*host)].slow(delay);
            }
            Fault::FullDisk { host } => {
                let is_on = self.still_on(fault, begins).next().is_some();
                self.hosts[usize::from(*host)].fault(|faults| faults.no_space = is_on);
            }
            Fault::BadDisk { host, way: BadDisk::Books } => {
                let is_on = self.still_on(fault, begins).next().is_some();
                self.hosts[usize::from(*host)].fail_books(is_on);
            }
            Fault::BadDisk { host, way } => {
                let is_on = self.still_on(fault, begins).next().is_some();
                self.hosts[usize::from(*host)].fault(|faults| match way {
                    BadDisk::Reads => faults.fail_reads = is_on,
                    BadDisk::Writes => faults.fail_writes = is_on,
                    BadDisk::Syncs => faults.fail_syncs = is_on,
                    BadDisk::Books => {}
                });
            }
            Fault::Join { host } if begins => self.start((*host).into()).await?,
            Fault::Join { .. } => {}
            Fault::Leave { host } if begins => self.hosts[usize::from(*host)].leave(),
            Fault::Leave { .. } => {}
            Fault::Misdirect { host, reads, .. } => {
                let last = self.still_on(fault, begins).last();
                let one_in = match last {
                    Some(Fault::Misdirect { one_in, .. }) => *one_in,
                    _ => 0,
                };
                self.hosts[usize::from(*host)].fault(|faults| match reads {
                    true => faults.misdirect_reads = one_in,
                    false => faults.misdirect_writes = one_in,
                });
            }
            Fault::Lie { host, how } if !how.is_of_shards() => {
                if begins {
                    let liar = Liar { machine: *host, how: *how, speaks: None };
                    self.liars.insert(number, liar);
                } else {
                    self.liars.remove(&number);
                }
            }
            Fault::Lie { host, .. } => {
                let how = match self.still_on(fault, begins).last() {
                    Some(Fault::Lie { how, .. }) => Some(*how),
                    _ => None,
                };
                self.hosts[usize::from(*host)].lie(how);
            }
            Fault::Skew { host, .. } => {
                let seconds = match self.still_on(fault, begins).last() {
                    Some(Fault::Skew { seconds, .. }) => *seconds,
                    _ => 0,
                };
                self.hosts[usize::from(*host)].skew(seconds);
            }
        }
        let usual = self.spec.quality;
        let slow = Duration::from_millis(self.delays.iter().copied().max().unwrap_or(0));
        // As much again for some packets as for others: they do overtake each other.
        let differ = if self.spec.dice > Dice::Fifth { slow } else { Duration::ZERO };
        self.net.set_quality(Quality {
            loss: usual
                .loss
                .max(f64::from(self.losses.iter().copied().max().unwrap_or(0)) / 1000.0),
            delay: usual.delay.max(slow),
            jitter: usual.jitter.max(differ),
            reorders: usual.reorders || !self.delays.is_empty(),
            ..usual
        });
        Ok(())
    }

    /// What is on of faults like this one, on the same machine, in the order of their beginning: one that
    /// ends does not end another. By older dice the first end ends all.
    fn still_on<'a>(
        &'a self,
        fault: &'a Fault,
        begins: bool,
    ) -> impl Iterator<Item = &'a Fault> + use<'a> {
        let is_newer = self.spec.dice > Dice::Fifth;
        let on = self.active.iter().map(|number| &self.spec.faults[*number].fault);
        let on = on.filter(move |other| is_newer && other.is_like(fault));
        on.chain((!is_newer && begins).then_some(fault))
    }
}

fn toggle<T: PartialEq>(values: &mut Vec<T>, value: T, begins: bool) {
    if begins {
        values.push(value);
    } else if let Some(place) = values.iter().position(|known| *known == value) {
        values.swap_remove(place);
    }
}

fn pairs(side: &[Machine], others: &[Machine]) -> Vec<(Machine, Machine)> {
    side.iter().flat_map(|one| others.iter().map(|other| (*one, *other))).collect()
}

async fn flap(net: Net, host: Machine, others: Vec<Machine>, lasts: Duration, pause: Duration) {
    let until = tokio::time::Instant::now() + lasts;
    loop {
        for is_cut in [true, false] {
            for (one, other) in pairs(&[host], &others) {
                net.cut(one, other, is_cut);
                net.cut(other, one, is_cut);
            }
            let rest = until.saturating_duration_since(tokio::time::Instant::now());
            tokio::time::sleep(pause.min(rest)).await;
        }
        if tokio::time::Instant::now() >= until {
            return;
        }
    }
}
