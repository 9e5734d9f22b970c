//! Years of a network in seconds: nodes die, vanish for a while and come back, stripes are repaired.
//!
//! Owns the discrete-event simulation. Refuses to move bytes or to know real nodes: a stripe is a
//! row of holders. The one idea: chunks of an arc have the same holders, as on the real ring, so an
//! arc is simulated once and weighs as many chunks as it has.
//!
//! | module | owns |
//! |---|---|
//! | `scenario` | what goes in: sizes, laws, calamities |
//! | `queue` | what happens next |
//! | `ringview` | the core's ring over those who live and those who will |
//! | `stripes` | who holds what, and what others believe |
//! | `world` | the events |
//! | `outcome` | what comes out |
//!
//! Simplified, each to the worse side or without influence on loss: nodes have equal capacity; a
//! shard that was made again elsewhere is forgotten at its returning old holder; copies to a
//! newcomer take no time (the old holder keeps its shard until then).

mod outcome;
mod queue;
mod ringview;
mod scenario;
mod stripes;
mod world;

pub use outcome::{Margin, Outcome};
pub use scenario::{
    Calamity, NODES_MAX, Outages, Scenario, ScenarioError, Storm, Unit, Victims, budget_of_line,
};
pub use world::run;

pub use copse_core::units::HOURS_PER_YEAR;
