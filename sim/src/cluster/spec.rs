//! What a world is made of, drawn from its seed.

use std::{collections::BTreeSet, fmt, time::Duration};

use clap::ValueEnum;
use copse_core::{geometry::Geometry, liveness::Timeouts};

use super::{
    atlas::{self, Bounds, Fault, Planned},
    blackout, killat,
    kinds::{self, Kind},
    net::Quality,
    room, sectors, size, spread,
};
use crate::random::Xoshiro;

/// What a world is made of, all of it drawn from its seed.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Everything follows from it.
    pub seed: u64,
    /// By these rules.
    pub dice: Dice,
    /// What the world is for.
    pub kind: Kind,
    /// Machines with a node, from the start.
    pub hosts: u16,
    /// And those that join later.
    pub joiners: u16,
    /// Zones that they are spread over; 0: none.
    pub zones: u16,
    /// Clients at one time.
    pub clients: u16,
    /// The code that clients store with.
    pub geometry: Geometry,
    /// How links are when nothing is wrong with them.
    pub(super) quality: Quality,
    /// Whether minutes are seconds for the nodes, so that a world ends soon; otherwise they have the
    /// product's own times.
    pub(super) hurried: bool,
    /// How long faults and clients last.
    pub busy: Duration,
    /// Whether nodes check what others claim. Where disks rot, in half of the worlds only the scrub
    /// looks.
    pub audited: bool,
    /// What goes wrong.
    pub faults: Vec<Planned>,
    /// Of these, by their numbers, what does not.
    pub without: BTreeSet<usize>,
    /// A bug on purpose, which must be found.
    pub canary: Option<Canary>,
}

/// A bug on purpose: a checker that does not notice is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Canary {
    /// All disks acknowledge what they did not sync: no network survives that.
    LyingDisks,
    /// A holder that hands a shard over drops its own, whether it arrived or not.
    BlindMoves,
    /// The scrub of a node takes every shard for sound without reading it.
    BlindScrub,
    /// A node never lets go of a buffer of 256 KiB for each read of its disk.
    Hoards,
    /// A client takes one byte of each part of a file that it reads for another.
    SmudgedReads,
    /// A gateway takes one byte of each range that is read for another.
    SmudgedGateway,
    /// A client takes a tree for put whose last chunks it has not stored.
    EarlyTrees,
    /// A client takes a chunk for put as soon as it is on its way.
    EarlyChunks,
    /// A holder that is asked to hand a shard over keeps it.
    StubbornHolders,
    /// A holder that is asked to hand a shard over panics.
    PanickingHolders,
    /// Nodes take who is silent for ten seconds for dead, and rebuild at once.
    HastyDeaths,
    /// A client gives up one of 16 reads that would have succeeded.
    FickleReads,
}

impl Canary {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LyingDisks => "lying-disks",
            Self::BlindMoves => "blind-moves",
            Self::BlindScrub => "blind-scrub",
            Self::Hoards => "hoards",
            Self::SmudgedReads => "smudged-reads",
            Self::SmudgedGateway => "smudged-gateway",
            Self::EarlyTrees => "early-trees",
            Self::EarlyChunks => "early-chunks",
            Self::StubbornHolders => "stubborn-holders",
            Self::PanickingHolders => "panicking-holders",
            Self::HastyDeaths => "hasty-deaths",
            Self::FickleReads => "fickle-reads",
        }
    }
}

/// By which rules a seed becomes a world: new kinds of faults must not take from old seeds what they
/// once found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dice {
    /// Before machines left, disks missed the place, and there were kinds of worlds.
    First = 1,
    /// Before disks took time, clients died wholly, and the scrub was left alone with rot.
    Second = 2,
    /// Before nodes lied about what they hold to those who repair.
    Third = 3,
    /// Before clients put trees, read ranges, and repaired; processes died at what they do, disks filled up,
    /// and sectors went bad.
    Fourth = 4,
    /// Before networks were as large as the default code has shards, or smaller; before blackouts, bad
    /// lines, and zones that lose all their disks.
    Fifth = 5,
    /// Before machines had the product's store, on simulated disks.
    Sixth = 6,
    /// Before clients ran the product's own puts of files and streams, its gateway and its lists of chunks, and
    /// links differed by pair and direction.
    Seventh = 7,
    /// All there is.
    Eighth = 8,
}

impl Dice {
    /// Those that are thrown unless others are asked for.
    pub const NEWEST: Self = Self::Eighth;

    /// By its number.
    pub const fn numbered(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::First),
            2 => Some(Self::Second),
            3 => Some(Self::Third),
            4 => Some(Self::Fourth),
            5 => Some(Self::Fifth),
            6 => Some(Self::Sixth),
            7 => Some(Self::Seventh),
            8 => Some(Self::Eighth),
            _ => None,
        }
    }
}

/// When faults begin: by then all nodes know each other.
pub(super) const CALM_BEFORE: Duration = Duration::from_secs(20);

/// The times of a world's nodes: minutes are seconds.
pub(super) fn timeouts() -> Timeouts {
    Timeouts {
        ping_every: Duration::from_secs(2),
        suspect_after: Duration::from_secs(5),
        down_after: Duration::from_secs(12),
        dead_after: Duration::from_secs(60),
        together: Duration::from_secs(10),
        freeze_max: Duration::from_secs(180),
    }
}

impl Spec {
    /// The world of a seed.
    pub fn of(seed: u64) -> Self {
        Self::by(Dice::NEWEST, seed, None)
    }

    /// A world without faults, of so many nodes with the product's own times under a usual load: to
    /// measure the simulator by.
    pub fn steady(seed: u64, hosts: u16, busy: Duration) -> Self {
        let quality = Quality {
            delay: Duration::from_millis(10),
            jitter: Duration::from_millis(2),
            loss: 0.0,
            reorders: false,
            rate: 12_500_000,
        };
        let geometry = "6+4".parse().expect("a geometry");
        let (faults, joiners, zones, clients) = (Vec::new(), 0, 4, 3);
        let kind = Kind::Usual;
        let usual = Self { hurried: false, ..Self::of(seed) };
        Self { kind, hosts, joiners, zones, clients, geometry, quality, busy, faults, ..usual }
    }

    /// What goes wrong and was not left out, with its number.
    pub fn active_faults(&self) -> impl Iterator<Item = (usize, &Planned)> {
        self.faults.iter().enumerate().filter(|(number, _)| !self.without.contains(number))
    }

    /// The world of a seed by older rules, or one of this kind.
    pub fn by(dice: Dice, seed: u64, wanted: Option<Kind>) -> Self {
        let mut rng = Xoshiro::new(seed, "cluster spec");
        let mut hosts = 5 + u16::try_from(rng.below(8)).unwrap_or(0);
        // Two nodes may be given up and there is still one for each shard.
        let codes = ["2+1", "2+2", "3+2", "4+2", "3+3", "4+4", "5+3", "6+4"];
        let fits = |code: &&str| {
            code.parse::<Geometry>().is_ok_and(|code| code.total() + 2 <= usize::from(hosts))
        };
        let fitting: Vec<&str> = codes.into_iter().filter(fits).collect();
        let mut geometry: Geometry = fitting[rng.below(fitting.len())].parse().expect("a geometry");
        let mut zones =
            if rng.chance(0.5) { 0 } else { 2 + u16::try_from(rng.below(4)).unwrap_or(0) };
        let millis = |millis: f64| Duration::from_secs_f64(millis / 1000.0);
        let quality = Quality {
            delay: millis(0.1 + 40.0 * rng.unit() * rng.unit()),
            jitter: millis(10.0 * rng.unit() * rng.unit()),
            loss: if rng.chance(0.5) { 0.0 } else { 0.01 * rng.unit() },
            reorders: rng.chance(0.3),
            rate: 1_000_000 + rng.below(50_000_000) as u64,
        };
        let mut busy = Duration::from_secs(60 + rng.below(180) as u64);
        if dice > Dice::Fifth {
            let stream = &mut Xoshiro::new(seed, "cluster size");
            (hosts, geometry) = size::draw(hosts, geometry, stream);
        }
        let bounds = Bounds {
            hosts,
            losses_max: size::losses_max(hosts, geometry),
            from: CALM_BEFORE,
            until: CALM_BEFORE + busy,
            dead_after: timeouts().dead_after,
        };
        let mut faults = atlas::draw(&bounds, &mut rng);
        let mut more = Xoshiro::new(seed, "cluster more");
        let joiners =
            if more.chance(0.3) { 1 + u16::try_from(more.below(3)).unwrap_or(0) } else { 0 };
        atlas::draw_more(&bounds, joiners, &mut faults, &mut more);
        let (mut joiners, mut kind) = (joiners, Kind::Usual);
        if dice > Dice::First {
            let mut further = Xoshiro::new(seed, "cluster further");
            let drawn = kinds::kind(&mut further);
            let mut waves = Xoshiro::new(seed, "cluster waves");
            let is_waves = dice > Dice::Second && kinds::is_waves(&mut waves);
            let mut lies = Xoshiro::new(seed, "cluster lies");
            let is_lies = dice > Dice::Third && kinds::is_lies(&mut lies);
            let mut lost_zones = Xoshiro::new(seed, "cluster lost zones");
            let is_zones = dice > Dice::Fifth && kinds::is_zones(&mut lost_zones);
            kind = wanted.unwrap_or(match (is_zones, is_lies, is_waves) {
                (true, _, _) => Kind::Zones,
                (_, true, _) => Kind::Lies,
                (_, _, true) => Kind::Waves,
                _ => drawn,
            });
            match kind {
                Kind::Usual => kinds::draw_further(&bounds, &mut faults, &mut further),
                Kind::ReadStorm => {
                    joiners = 2 + u16::try_from(further.below(3)).unwrap_or(0);
                    busy = busy.max(kinds::STORM_MIN);
                    let bounds = Bounds { until: CALM_BEFORE + busy, ..bounds };
                    faults = kinds::draw_storm(&bounds, joiners, &mut further);
                }
                Kind::Outage => {
                    joiners = 0;
                    faults = kinds::draw_outage(&bounds, timeouts().freeze_max, &mut further);
                }
                Kind::Waves => {
                    joiners = 0;
                    let spare = geometry.total() - geometry.data();
                    faults = kinds::draw_waves(&bounds, spare, &mut waves);
                }
                Kind::Lies => {
                    joiners = 0;
                    faults = kinds::draw_lies(&bounds, &mut lies);
                }
                Kind::Zones => {
                    joiners = 0;
                    zones = spread::some_zones(hosts, geometry, &mut lost_zones);
                    faults = kinds::draw_zones(&bounds, zones, &mut lost_zones);
                }
            }
        }
        let clients = 1 + u16::try_from(rng.below(3)).unwrap_or(0);
        if dice > Dice::Second && kind == Kind::Usual {
            let mut claims = Xoshiro::new(seed, "cluster claims");
            kinds::draw_claims(&bounds, &mut faults, &mut claims);
            let mut others = Xoshiro::new(seed, "cluster others");
            kinds::draw_others(&bounds, joiners, clients, &mut faults, &mut others);
        }
        if dice > Dice::Fourth && kind == Kind::Usual {
            let stream = |purpose: &str| Xoshiro::new(seed, purpose);
            killat::draw(&bounds, &mut faults, &mut stream("cluster deaths"));
            sectors::draw(&bounds, &mut faults, &mut stream("cluster sectors"));
            room::draw(&bounds, joiners, geometry, &mut faults, &mut stream("cluster room"));
        }
        if dice > Dice::Fifth && kind == Kind::Usual {
            let stream = |purpose: &str| Xoshiro::new(seed, purpose);
            killat::draw_unsynced(&bounds, &mut faults, &mut stream("cluster unsynced"));
            blackout::draw(&bounds, zones, &mut faults, &mut stream("cluster blackout"));
            let machines = hosts + joiners + clients + 1;
            kinds::draw_lines(&bounds, machines, &mut faults, &mut stream("cluster lines"));
        }
        let mut audited = true;
        if dice > Dice::Second {
            let rots = |planned: &Planned| {
                matches!(
                    planned.fault,
                    Fault::Rot { .. } | Fault::Misdirect { .. } | Fault::BadSectors { .. }
                )
            };
            let lies = |planned: &Planned| planned.fault.is_lie_about_shards();
            let mut rng = Xoshiro::new(seed, "cluster audits");
            audited = !faults.iter().any(rots) || faults.iter().any(lies) || rng.chance(0.5);
        }
        Self {
            seed,
            dice,
            kind,
            hosts,
            joiners,
            zones,
            clients,
            geometry,
            quality,
            hurried: true,
            busy,
            audited,
            faults,
            without: BTreeSet::new(),
            canary: None,
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quality { delay, jitter, loss, reorders, rate } = self.quality;
        writeln!(
            f,
            "seed {}: {}; {} nodes (and {} that join) in {} zones, {} clients, {}, busy for {} s; links of {:.1} ms \
             (+ {:.1}), {} bytes/s, {:.2} % loss{}{}",
            self.seed,
            self.kind,
            self.hosts,
            self.joiners,
            self.zones,
            self.clients,
            self.geometry,
            self.busy.as_secs(),
            delay.as_secs_f64() * 1000.0,
            jitter.as_secs_f64() * 1000.0,
            rate,
            loss * 100.0,
            if reorders { ", reordering" } else { "" },
            if self.audited { "" } else { "; no audits" },
        )?;
        for (number, fault) in self.faults.iter().enumerate() {
            let out = if self.without.contains(&number) { " (left out)" } else { "" };
            writeln!(f, "  fault {number} {fault}{out}")?;
        }
        Ok(())
    }
}
