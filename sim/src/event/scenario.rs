//! What goes into a simulation: sizes, laws of failure and repair, calamities.
//!
//! Owns the scenario and what makes one impossible. Chooses nothing for the product: what is the product's
//! is read from the core and the node, everything else is an experiment's.

use core::time::Duration;

use copse_core::{
    geometry::Geometry,
    guard::FREEZE_PERCENT,
    ids::NetworkId,
    limits::ARCS,
    liveness::Timeouts,
    repair::{Lines, Policy},
    units::{ByteSize, HOURS_PER_YEAR},
};
use copse_node::config::Config;

use crate::{
    closed::chain::{Scheme, SchemeError},
    law::RepairLaw,
    random::{Lifetime, LifetimeError},
};

/// What is simulated as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// All chunks of an arc: they have the same holders and are repaired together.
    Arc,
    /// Every chunk has its own repairs.
    Chunk,
}

/// Short absences of single nodes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outages {
    /// How often each node is away, per year.
    pub per_year: f64,
    /// Half of the absences are shorter.
    pub median_hours: f64,
    /// Standard deviation of the logarithm of their length: the mean is median · e^(σ²/2).
    pub sigma: f64,
}

/// Whom a calamity strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victims {
    /// All nodes of a zone, chosen anew each time.
    Zone,
    /// So many random nodes.
    Nodes(usize),
}

/// Nodes that fail together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Calamity {
    /// How often, in the whole network.
    pub per_year: f64,
    /// Whom.
    pub victims: Victims,
    /// How long those are away that come back.
    pub hours: f64,
    /// Part of the victims that lose all they hold.
    pub permanent: f64,
}

/// Many nodes join in one hour.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Storm {
    /// When.
    pub at_hours: f64,
    /// How many.
    pub nodes: usize,
}

/// One experiment.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// Nodes, at any time but for the time that it takes to replace the dead.
    pub nodes: usize,
    /// The code and the threshold of its repair.
    pub scheme: Scheme,
    /// Chunks stored.
    pub chunks: usize,
    /// Bytes of a chunk.
    pub chunk_bytes: f64,
    /// What is simulated as one.
    pub unit: Unit,
    /// How long is simulated.
    pub years: f64,
    /// How long nodes live.
    pub life: Lifetime,
    /// Time from a node's last sign until it is declared dead.
    pub dead_after_hours: f64,
    /// A shard that has been missing for so long is rebuilt although more than the threshold are left;
    /// none: it waits for the threshold.
    pub patience_hours: Option<f64>,
    /// Time from a node's last sign until a stripe that is thin without it is repaired around it;
    /// none: only the dead are missed.
    pub down_after_hours: Option<f64>,
    /// Mean time of a repair once it has begun.
    pub repair_hours: f64,
    /// The distribution of that time.
    pub law: RepairLaw,
    /// Time until a dead node is replaced by a new one.
    pub replace_hours: f64,
    /// Short absences.
    pub outages: Option<Outages>,
    /// Equal zones; 0 for none.
    pub zones: usize,
    /// What strikes many.
    pub calamities: Vec<Calamity>,
    /// Part of the nodes that throw all shards away and answer as if they had them.
    pub malicious: f64,
    /// Mean time until an audit finds one of those.
    pub audit_hours: f64,
    /// Many join at once.
    pub storm: Option<Storm>,
    /// Bytes an hour that each node spends on repair, reading and writing; none: no bound.
    pub budget: Option<f64>,
    /// Nobody is declared dead while more than this part is down together; none: no guard.
    pub freeze_share: Option<f64>,
    /// For so long at most; without a guard it does not matter.
    pub freeze_hours: f64,
    /// Lost stripes start again, so that losses can be counted for ever.
    pub renew: bool,
    /// How often margins are looked at, over the whole time.
    pub samples: usize,
    /// One seed, one world.
    pub seed: u64,
}

/// A scenario that cannot be simulated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    /// The code.
    #[error(transparent)]
    Scheme(#[from] SchemeError),
    /// The life of nodes.
    #[error(transparent)]
    Lifetime(#[from] LifetimeError),
    /// Every shard is on a node of its own here.
    #[error("{nodes} nodes cannot hold {total} shards on a node each: take at least {total}")]
    TooFewNodes {
        /// Nodes.
        nodes: usize,
        /// n.
        total: usize,
    },
    /// A number out of its range.
    #[error("{what} is {value}; it must be {range}")]
    Range {
        /// Which.
        what: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
}

/// Nodes that a scenario may have at one time: the ring of them and as many successors takes 4 GB.
pub const NODES_MAX: usize = 2_000_000;

/// Nodes that a scenario may have over all years: their numbers must fit in 30 bits, and each leaves some
/// 40 bytes behind.
const LIVES_MAX: f64 = 2e8;

/// Shards that are simulated one by one: some 20 bytes each.
const SHARDS_MAX: f64 = 4e8;

/// How often something may happen to one node or to the network, per year: each second is nonsense.
const PER_YEAR_MAX: f64 = 1e6;

/// Spread of absences: with more, half of them are shorter than a second or longer than all of time.
const SIGMA_MAX: f64 = 20.0;

/// What a node spends on repair, sending and receiving, when its line can send so much: the product's share
/// of it, each way. Any unit of data for any unit of time.
pub fn budget_of_line(uplink: f64) -> f64 {
    // Whose network and how much room does not matter for the share.
    let product = Config::new(NetworkId::new([0; 32]), ByteSize(0));
    2.0 * uplink * f64::from(product.repair.rates.share_percent) / 100.0
}

fn hours(time: Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

impl Scenario {
    /// A network with nothing but deaths and repairs, as in the closed forms: detection at once,
    /// the dead replaced at once, no absences.
    pub fn plain(
        nodes: usize,
        scheme: Scheme,
        life: Lifetime,
        repair_hours: f64,
        law: RepairLaw,
    ) -> Self {
        Self {
            nodes,
            scheme,
            chunks: ARCS,
            chunk_bytes: 7.5 * 1_048_576.0,
            unit: Unit::Arc,
            years: 1.0,
            life,
            dead_after_hours: 0.0,
            patience_hours: None,
            down_after_hours: None,
            repair_hours,
            law,
            replace_hours: 0.0,
            outages: None,
            zones: 0,
            calamities: Vec::new(),
            malicious: 0.0,
            audit_hours: 0.0,
            storm: None,
            budget: None,
            freeze_share: None,
            freeze_hours: hours(Timeouts::default().freeze_max),
            renew: true,
            samples: 0,
            seed: 1,
        }
    }

    /// A network as the product's defaults make it: threshold, patience, thin line, timeouts and the
    /// freeze of deaths. Everything else as in [`plain`](Self::plain).
    ///
    /// # Errors
    /// For a code without parity.
    pub fn product(
        nodes: usize,
        geometry: Geometry,
        life: Lifetime,
        repair_hours: f64,
        law: RepairLaw,
    ) -> Result<Self, SchemeError> {
        let (policy, timeouts) = (Policy::default(), Timeouts::default());
        let threshold = policy.threshold.shards(geometry);
        let scheme = Scheme::new(geometry.data(), geometry.total(), threshold)?;
        Ok(Self {
            dead_after_hours: hours(timeouts.dead_after),
            patience_hours: Some(hours(policy.patience)),
            down_after_hours: Some(hours(timeouts.down_after)),
            freeze_share: Some(FREEZE_PERCENT as f64 / 100.0),
            ..Self::plain(nodes, scheme, life, repair_hours, law)
        })
    }

    /// When stripes are repaired, in the core's terms. The thin line counts only where nodes go down.
    pub fn lines(&self) -> Lines {
        let (data, total) = (self.scheme.data(), self.scheme.total());
        let geometry = Geometry::new(data, total - data).ok();
        let thin = geometry.map_or(data, |geometry| Policy::default().thin_line(geometry));
        Lines {
            needed: data,
            threshold: self.scheme.threshold(),
            thin,
            patience: self.patience_hours.map_or(Duration::MAX, |hours| {
                Duration::try_from_secs_f64(hours * 3600.0).unwrap_or(Duration::MAX)
            }),
        }
    }

    /// Whether it can be simulated.
    ///
    /// # Errors
    /// Names the first number that cannot be.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let total = self.scheme.total();
        if self.nodes < total {
            return Err(ScenarioError::TooFewNodes { nodes: self.nodes, total });
        }
        let check = |what, value: f64, range, good: bool| {
            if good { Ok(()) } else { Err(ScenarioError::Range { what, value, range }) }
        };
        let (nodes, chunks, zones) = (self.nodes as f64, self.chunks as f64, self.zones as f64);
        check("the number of nodes", nodes, "at most 2,000,000", self.nodes <= NODES_MAX)?;
        check("n", total as f64, "at most 255", total <= 255)?;
        let deaths = nodes * self.years * HOURS_PER_YEAR / self.life.mean();
        check(
            "nodes that ever live",
            nodes + deaths,
            "at most 2e8: take fewer nodes, longer lives or less time",
            nodes + deaths <= LIVES_MAX,
        )?;
        check("chunks x n", chunks * total as f64, "1 to 4e9", {
            (1.0..4e9).contains(&(chunks * total as f64))
        })?;
        let one_by_one = match self.unit {
            Unit::Arc => chunks.min(ARCS as f64),
            Unit::Chunk => chunks,
        };
        let shards = one_by_one * total as f64;
        check(
            "shards, each chunk by itself",
            shards,
            "at most 4e8: take fewer chunks, or whole arcs",
            shards <= SHARDS_MAX,
        )?;
        check("zones", zones, "at most the number of nodes and 65,535", {
            self.zones <= self.nodes && self.zones <= usize::from(u16::MAX)
        })?;
        for (what, value) in [
            ("the time simulated", self.years),
            ("the mean repair time", self.repair_hours),
            ("the bytes of a chunk", self.chunk_bytes),
            ("the repair budget", self.budget.unwrap_or(1.0)),
        ] {
            check(what, value, "positive", value > 0.0 && value.is_finite())?;
        }
        check("the time simulated", self.years, "at most 1000 years", self.years <= 1000.0)?;
        for (what, value) in [
            ("the time until a node is declared dead", self.dead_after_hours),
            ("the time to replace a node", self.replace_hours),
            ("the time until an audit", self.audit_hours),
            ("the time of a freeze", self.freeze_hours),
            ("the patience", self.patience_hours.unwrap_or(0.0)),
            ("the time until a node is down", self.down_after_hours.unwrap_or(0.0)),
        ] {
            check(what, value, "0 or more", value >= 0.0 && value.is_finite())?;
        }
        let share = |value: f64| (0.0..1.0).contains(&value);
        check("the malicious share", self.malicious, "0 to below 1", share(self.malicious))?;
        let often = |value: f64| value > 0.0 && value <= PER_YEAR_MAX;
        let often_enough = "positive and at most 1e6";
        if let Some(outages) = self.outages {
            let Outages { per_year, median_hours, sigma } = outages;
            check("absences per year", per_year, often_enough, often(per_year))?;
            let good = median_hours > 0.0 && median_hours.is_finite();
            check("the median of absences", median_hours, "positive", good)?;
            check("the sigma of absences", sigma, "0 to 20", (0.0..=SIGMA_MAX).contains(&sigma))?;
        }
        for calamity in &self.calamities {
            let Calamity { per_year, victims, hours, permanent } = *calamity;
            check("calamities per year", per_year, often_enough, often(per_year))?;
            check("the time of a calamity", hours, "0 or more", hours >= 0.0 && hours.is_finite())?;
            check("the lost share", permanent, "0 to 1", (0.0..=1.0).contains(&permanent))?;
            match victims {
                Victims::Zone => {
                    check("zones", zones, "1 or more for a zone to fail", self.zones > 0)?;
                }
                Victims::Nodes(count) => {
                    let good = (1..=self.nodes).contains(&count);
                    check("nodes struck at once", count as f64, "1 to the number of nodes", good)?;
                }
            }
        }
        if let Some(Storm { at_hours, nodes: joining }) = self.storm {
            let good = at_hours >= 0.0 && at_hours.is_finite();
            check("the time of the storm", at_hours, "0 or more", good)?;
            let all = self.nodes.saturating_add(joining);
            check("nodes after the storm", all as f64, "at most 2,000,000", all <= NODES_MAX)?;
        }
        Ok(())
    }
}
