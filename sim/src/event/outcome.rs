//! What comes out of a simulation: losses, traffic, margins; and what they say about nines.
//!
//! Owns the figures and their uncertainty. Prints nothing.

use super::HOURS_PER_YEAR;
use crate::law::RepairLaw;

/// A look at all stripes at one time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Margin {
    /// When.
    pub hours: f64,
    /// The smallest number of shards that exist, over all stripes that are not lost.
    pub live_min: usize,
    /// Its mean over chunks.
    pub live_mean: f64,
    /// The smallest number of shards within reach.
    pub online_min: usize,
    /// Chunks that cannot be read just now.
    pub unavailable: u64,
    /// Bytes moved by repairs so far.
    pub repair_bytes: f64,
    /// Repairs waiting or under way.
    pub repairs: usize,
}

/// What a scenario led to.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// The law that repair times followed.
    pub law: RepairLaw,
    /// Chunks × years that were watched.
    pub chunk_years: f64,
    /// Bytes of the user's.
    pub user_bytes: f64,
    /// Chunks lost.
    pub lost_chunks: u64,
    /// Times that a stripe was lost; chunks of one arc are lost together.
    pub losses: u64,
    /// Nodes that died, calamities included.
    pub deaths: u64,
    /// Nodes that were declared dead and came back with all they held.
    pub false_deaths: u64,
    /// Declarations of death that were put off because too many were down.
    pub frozen: u64,
    /// Shards (of stripes) that were made around nodes that were only down: too few were in reach.
    pub emergencies: u64,
    /// Repairs done.
    pub repairs: u64,
    /// Repairs that found fewer than k shards within reach and had to wait.
    pub stalled: u64,
    /// Shards (of chunks) made again.
    pub shards_rebuilt: u64,
    /// Those of them whose old holder came back, or was only away.
    pub false_rebuilt: u64,
    /// Bytes read and written by repairs.
    pub repair_bytes: f64,
    /// Bytes of repair on the busiest day, per node that day.
    pub peak_day_node_bytes: f64,
    /// Bytes copied to newcomers.
    pub join_bytes: f64,
    /// Chunk-hours with a margin of two or less.
    pub thin_chunk_hours: f64,
    /// Shards per living node at the end, the most over the mean.
    pub load_max: f64,
    /// Their relative standard deviation.
    pub load_deviation: f64,
    /// Events handled.
    pub events: u64,
    /// Shards looked at in them: nearly all of the work.
    pub touches: u64,
    /// Steps of all kinds, placement and the rings' making included: levels of the queue, shards and
    /// holders looked at, nodes met on walks, bits of the ring turned, tokens sorted. What time is
    /// made of, but for the caches.
    pub steps: u64,
    /// Most events that waited at once.
    pub queue_max: usize,
    /// Looks at the margins, as many as were asked for.
    pub margins: Vec<Margin>,
}

impl Outcome {
    /// Years until a stripe is lost: years watched over losses. `None` without a loss.
    pub fn mttdl_years(&self) -> Option<f64> {
        (self.lost_chunks > 0).then(|| self.chunk_years / self.lost_chunks as f64)
    }

    /// The probability to lose a given chunk in a year; without a loss, the bound that holds with
    /// 95 %: three over what was watched (in arcs lost together, the effective number is smaller).
    pub fn loss_per_chunk_year(&self) -> (f64, bool) {
        match self.lost_chunks {
            0 => (-(-3.0 / self.chunk_years).exp_m1(), true),
            lost => (-(-(lost as f64) / self.chunk_years).exp_m1(), false),
        }
    }

    /// Relative standard error of the rate of losses, if they were independent.
    pub fn relative_error(&self) -> f64 {
        1.0 / (self.losses.max(1) as f64).sqrt()
    }

    /// Bytes moved by repairs per byte of the user's and year.
    pub fn repair_ratio(&self, years: f64) -> f64 {
        self.repair_bytes / (self.user_bytes * years)
    }

    /// The mean traffic of repairs of each node, in bytes a second.
    pub fn node_bytes_per_second(&self, nodes: usize, years: f64) -> f64 {
        self.repair_bytes / (nodes as f64 * years * HOURS_PER_YEAR * 3600.0)
    }
}
