//! Which geometry a network should use for a wished durability, and what it then costs.
//!
//! Owns the judgement of a geometry in a network of a given kind, the choice among all, and what
//! would have to change when none will do. Refuses to print and to know defaults: who asks brings
//! them. The one idea: what the product does by itself is advised when it is good enough; else the
//! geometry that takes least disk.
//!
//! A wish is met when it is met under the pessimistic law of repair times. Failures that nodes have
//! in common are in no figure here.

use super::{
    RepairLaw,
    chain::{self, Pace, Scheme},
    logmath, patient,
};
use crate::{
    geometry::Geometry,
    repair::Threshold,
    ring::equal_zone_cap,
    units::{HOURS_PER_MONTH, HOURS_PER_YEAR},
};

/// Data shards of an advised geometry, at most: with more, a shard of a full chunk is below 400 KiB,
/// and every read of a whole chunk needs more than twenty nodes.
pub const DATA_MAX: usize = 20;

/// Shards of an advised geometry, at most: a put speaks to so many nodes at once.
pub const TOTAL_MAX: usize = 60;

/// A geometry is not advised when its chunks cannot be read for more than this part of the time:
/// nine hours a year.
pub const UNREADABLE_MAX: f64 = 1e-3;

/// Networks of up to so many nodes are looked at when more nodes might help.
const NODES_LOOKED_AT: usize = 200;

/// Longest life looked at when a longer one might help, in hours: 50 years.
const LIFE_LOOKED_AT: f64 = 50.0 * HOURS_PER_YEAR;

/// How a lost node's shards come back.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Speed {
    /// After so many hours, whatever the geometry.
    Hours(f64),
    /// As fast as every other node sends so many bytes an hour for repair.
    BytesPerHour(f64),
}

/// A network, and what is wished of it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Question {
    /// Nodes of equal size.
    pub nodes: usize,
    /// Equal zones that fail as one; 0 or 1: none are known.
    pub zones: usize,
    /// Mean time until a node is gone for good, in hours.
    pub life: f64,
    /// Part of the time that a living node answers, 0 to 1.
    pub online: f64,
    /// Nines of a chunk-year: −log10 of the probability that a given chunk is lost in a year.
    pub wish: f64,
    /// Bytes of the users', in the whole network.
    pub stored: f64,
    /// Hours until a node that is gone counts as dead.
    pub detection: f64,
    /// Hours that a missing shard waits for others, at most.
    pub patience: f64,
    /// How many shards are waited for.
    pub threshold: Threshold,
    /// How fast repair goes.
    pub speed: Speed,
    /// Most bytes of disk for each byte stored.
    pub expansion_max: f64,
}

/// What a geometry means in a network.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figures {
    /// (k, n).
    pub geometry: Geometry,
    /// Most shards of a chunk on one node.
    pub on_one_node: usize,
    /// Most shards of a chunk in one zone, when zones are known.
    pub in_one_zone: Option<usize>,
    /// Any so many nodes may be lost at once.
    pub nodes_borne: usize,
    /// Any so many zones may be lost at once, when zones are known.
    pub zones_borne: Option<usize>,
    /// r: repair is called for at once with so many shards left.
    pub threshold: usize,
    /// Hours to make the shards of a lost node again, the last of them.
    pub rebuild: f64,
    /// Nines of a chunk-year with exponential repair times: the pessimistic law.
    pub exponential: f64,
    /// Nines of a chunk-year with fixed repair times: the optimistic law.
    pub fixed: f64,
    /// Bytes that repair sends in a month for each byte stored. As many are received.
    pub traffic: f64,
    /// Bytes that each node sends for repair in a month.
    pub node_traffic: f64,
    /// That over what each node may send for repair: above 1 repair falls behind for ever. `None`
    /// when the time of a repair was given instead of the speed of lines.
    pub line_load: Option<f64>,
    /// Part of the time that a chunk cannot be read because too few of its nodes answer.
    pub unreadable: f64,
}

/// Why a geometry is not enough.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lack {
    /// The loss of one node loses data.
    OneNode,
    /// The loss of one zone loses data.
    OneZone,
    /// It takes more disk than allowed.
    Disk,
    /// Too few nodes answer too often: see [`UNREADABLE_MAX`].
    Unreadable,
    /// Repair needs more than the lines give.
    Line,
    /// Fewer nines than wished, with the pessimistic law.
    Nines,
}

/// What would make the wish come true, each alone.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Remedies {
    /// So many nodes.
    pub nodes: Option<usize>,
    /// Nodes that live so long, in hours.
    pub life: Option<f64>,
    /// The shards of a lost node made again within so many hours.
    pub rebuild: Option<f64>,
    /// So many bytes of disk for each byte stored.
    pub expansion: Option<f64>,
}

/// The answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Advice {
    /// The geometry to use, or the nearest to the wish; `None`: one node is no network.
    pub best: Option<Figures>,
    /// What it lacks; empty: the wish is met.
    pub lacks: Vec<Lack>,
    /// What the product uses in a network of this size if nothing is said, and what that lacks.
    pub default: Option<(Figures, Vec<Lack>)>,
    /// What would help, when the wish is not met.
    pub remedies: Remedies,
}

impl Figures {
    /// n/k: bytes of disk for each byte stored.
    pub fn expansion(&self) -> f64 {
        self.geometry.total() as f64 / self.geometry.data() as f64
    }
}

impl Question {
    /// What a geometry means in this network. `None` without nodes.
    pub fn figures(&self, geometry: Geometry) -> Option<Figures> {
        let [exponential, fixed] = RepairLaw::BOTH.map(|law| self.nines(geometry, law));
        self.measured(geometry, exponential, fixed)
    }

    /// What keeps a geometry from being enough, the worst first.
    pub fn lacks(&self, figures: &Figures) -> Vec<Lack> {
        let mut lacks = Vec::new();
        let mut lack = |what, is_lacking: bool| lacks.extend(is_lacking.then_some(what));
        lack(Lack::OneNode, figures.nodes_borne == 0);
        lack(Lack::OneZone, figures.zones_borne == Some(0));
        lack(Lack::Disk, figures.expansion() > self.expansion_max + 1e-9);
        lack(Lack::Unreadable, figures.unreadable > UNREADABLE_MAX);
        lack(Lack::Line, figures.line_load.is_some_and(|load| load > 1.0));
        lack(Lack::Nines, figures.exponential < self.wish);
        lacks
    }

    /// The advice: the default if it is enough, else the geometry that is enough and takes least
    /// disk, and of these the least traffic; else the one with most nines.
    pub fn advise(&self) -> Advice {
        let default = Geometry::default_for(self.nodes)
            .and_then(|geometry| self.figures(geometry))
            .map(|figures| (figures, self.lacks(&figures)));
        if let Some((figures, lacks)) = default.clone().filter(|(_, lacks)| lacks.is_empty()) {
            return Advice { best: Some(figures), lacks, default, remedies: Remedies::default() };
        }
        if let Some(best) = self.cheapest().and_then(|geometry| self.figures(geometry)) {
            let remedies = Remedies::default();
            return Advice { best: Some(best), lacks: Vec::new(), default, remedies };
        }
        let nearest = self
            .quick()
            .map(|figures| (self.lacks(&figures), figures))
            .min_by(|(lacks, one), (others, other)| {
                let first = |lacks: &[Lack]| lacks.iter().copied().min();
                first(others).cmp(&first(lacks)).then(other.exponential.total_cmp(&one.exponential))
            })
            .and_then(|(_, figures)| self.figures(figures.geometry))
            .or(default.as_ref().map(|(figures, _)| *figures));
        let lacks = nearest.as_ref().map(|figures| self.lacks(figures)).unwrap_or_default();
        Advice { best: nearest, lacks, default, remedies: self.remedies() }
    }

    /// What would help a geometry that was chosen by others, or any.
    fn remedies(&self) -> Remedies {
        let is_enough = |question: Self| question.cheapest().is_some();
        let nodes =
            (self.nodes + 1..=NODES_LOOKED_AT).find(|&nodes| is_enough(Self { nodes, ..*self }));
        let life = least(self.life, LIFE_LOOKED_AT, |life| is_enough(Self { life, ..*self }));
        let rebuild_of = |hours| Self { speed: Speed::Hours(hours), ..*self };
        // Shorter is better: the search is for the inverse.
        let rebuild = least(1.0 / 10_000.0, 1.0, |pace| is_enough(rebuild_of(1.0 / pace)));
        let most = TOTAL_MAX as f64;
        let unbounded = Self { expansion_max: most, ..*self };
        let expansion =
            unbounded.cheapest().map(|geometry| geometry.total() as f64 / geometry.data() as f64);
        Remedies { nodes, life, rebuild: rebuild.map(|pace| 1.0 / pace), expansion }
    }

    /// The geometry that is enough and takes least disk, then least traffic.
    fn cheapest(&self) -> Option<Geometry> {
        self.quick()
            .filter(|figures| self.lacks(figures).is_empty())
            .min_by(|one, other| {
                let order = one.expansion().total_cmp(&other.expansion());
                order.then(one.traffic.total_cmp(&other.traffic))
            })
            .map(|figures| figures.geometry)
    }

    /// All that could be advised, each shard on a node of its own; without the optimistic law, which
    /// takes a hundred times as long and decides nothing.
    fn quick(&self) -> impl Iterator<Item = Figures> {
        let widest = self.nodes.min(TOTAL_MAX);
        (1..=DATA_MAX)
            .flat_map(move |data| (1..=widest.saturating_sub(data)).map(move |m| (data, m)))
            .filter(|&(data, parity)| {
                (data + parity) as f64 <= self.expansion_max * data as f64 + 1e-9
            })
            .filter_map(|(data, parity)| Geometry::new(data, parity).ok())
            .filter_map(|geometry| {
                let exponential = self.nines(geometry, RepairLaw::Exponential);
                self.measured(geometry, exponential, f64::NAN)
            })
    }

    fn measured(&self, geometry: Geometry, exponential: f64, fixed: f64) -> Option<Figures> {
        if self.nodes == 0 {
            return None;
        }
        let on_one_node = geometry.total().div_ceil(self.nodes);
        let zones = Some(self.zones).filter(|zones| *zones > 1);
        let in_one_zone = zones.map(|zones| equal_zone_cap(geometry, self.nodes, zones));
        let traffic = self.scheme(geometry).map_or(0.0, |scheme| {
            let moved = patient::repair_traffic(scheme, self.pace(geometry), self.patience);
            // Of several shards on a node each is made again.
            moved * HOURS_PER_MONTH * geometry.total() as f64 / scheme.total() as f64
        });
        let node_traffic = self.stored * traffic / self.nodes as f64;
        let line_load = match self.speed {
            Speed::Hours(_) => None,
            Speed::BytesPerHour(rate) => Some(node_traffic / (rate * HOURS_PER_MONTH)),
        };
        let unreadable = match self.scheme(geometry) {
            Some(scheme) => chain::ln_unavailable(scheme, self.online).exp(),
            None => 1.0 - self.online.powf(geometry.total().min(self.nodes) as f64),
        };
        Some(Figures {
            geometry,
            on_one_node,
            in_one_zone,
            nodes_borne: geometry.parity() / on_one_node,
            zones_borne: in_one_zone.map(|shards| geometry.parity() / shards),
            threshold: self.threshold.shards(geometry),
            rebuild: self.rebuild(geometry),
            exponential,
            fixed,
            traffic,
            node_traffic,
            line_load,
            unreadable,
        })
    }

    /// Nodes instead of shards: with several shards on a node these are lost together. `None` when no
    /// node may be lost.
    fn scheme(&self, geometry: Geometry) -> Option<Scheme> {
        let (parity, total) = (geometry.parity(), geometry.total());
        let nodes = self.nodes.min(total);
        let on_one_node = total.div_ceil(self.nodes.max(1));
        let borne = parity / on_one_node;
        let waited_for = (total - self.threshold.shards(geometry)).div_ceil(on_one_node);
        let data = nodes.checked_sub(borne)?;
        Scheme::new(data, nodes, nodes.saturating_sub(waited_for).max(data)).ok()
    }

    /// Nines of a chunk-year.
    fn nines(&self, geometry: Geometry, law: RepairLaw) -> f64 {
        let ln_mttdl = match self.scheme(geometry) {
            Some(scheme) => patient::ln_mttdl(scheme, self.pace(geometry), self.patience, law),
            None => (self.life / self.nodes.min(geometry.total()).max(1) as f64).ln(),
        };
        logmath::nines(chain::ln_loss_within(ln_mttdl, HOURS_PER_YEAR, 1.0))
    }

    fn pace(&self, geometry: Geometry) -> Pace {
        Pace { life: self.life, repair: self.detection + self.rebuild(geometry) }
    }

    /// For each shard made k are read and one is written: all of these are sent by the other nodes.
    fn rebuild(&self, geometry: Geometry) -> f64 {
        match self.speed {
            Speed::Hours(hours) => hours,
            Speed::BytesPerHour(rate) => {
                let data = geometry.data() as f64;
                let of_a_node = self.stored * geometry.total() as f64 / data / self.nodes as f64;
                let helpers = self.nodes.saturating_sub(1).max(1) as f64;
                of_a_node * (data + 1.0) / (helpers * rate)
            }
        }
    }
}

/// The least value for which a condition holds that holds above some value, to a percent; `None`
/// when it does not hold up to `most`.
fn least(from: f64, most: f64, holds: impl Fn(f64) -> bool) -> Option<f64> {
    if !holds(most) {
        return None;
    }
    let (mut low, mut high) = (from, most);
    while high / low > 1.01 {
        let middle = (low * high).sqrt();
        if holds(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests;
