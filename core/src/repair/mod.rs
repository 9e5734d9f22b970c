//! Repair as decisions: who holds what, what is missing, and what to do about it first.
//!
//! Owns the planner of a chunk, its policy, the strength of what is left, and the durable queue of
//! what is still to be done. Refuses to do anything itself: facts come in, a plan with reasons goes
//! out, executors elsewhere have no decisions of their own. The one idea: an index sticks to its
//! shard, so that a plan is the least that has to move until every shard is where the ring says.
//!
//! ```text
//! claims of all nodes ─┐
//! opinions of them ────┼─▶ plan_chunk ─▶ Rebuild · Copy · Drop ─▶ Queue ─▶ executors
//! ring, policy ────────┘        └──────▶ what is not done, and why
//! ```
//!
//! | file | what |
//! |---|---|
//! | `facts` | what is known of nodes and of a chunk |
//! | `policy` | when missing shards are rebuilt |
//! | `held` | the claims that count, in order |
//! | `strength` | how much of a chunk is left, what that survives, and how urgent it is |
//! | `assign` | which shard belongs on which node, keeping the most where they are |
//! | `target` | who takes a shard that its own node cannot take now |
//! | `plan` | the plan of one chunk; who plans for an arc |
//! | `skip` | why something is not done |
//! | `queue`, `row` | what is to be done, with backoff; how it is written down |
//! | `proof` | what is read back before a job counts as done |

mod assign;
mod facts;
mod held;
mod plan;
mod policy;
mod proof;
mod queue;
mod row;
mod skip;
mod strength;
mod target;

pub use facts::{ChunkFacts, Claim, NodeFacts, Nodes, Room, Standing};
pub use plan::{Action, ChunkPlan, Lane, Traffic, may_be_steward, plan_chunk, steward, stewards};
pub use policy::{Lines, Policy, Threshold};
pub use proof::proof_range;
pub use queue::{
    BACKOFF_MS_MAX, BACKOFF_MS_MIN, DISPLACED_ATTEMPTS_MIN, EMERGENCY_MARGIN, EMERGENCY_RESERVE,
    Entry, HOPELESS_ATTEMPTS_MIN, Job, Kind, Offered, QUEUE_ENTRIES_MAX, Queue,
    SOLE_HOLDER_ENTRIES_MAX,
};
pub use row::{ERROR_BYTES_MAX, Row, RowError};
pub use skip::{Skip, Unfit};
pub use strength::{Priority, Strength, strength};

#[cfg(test)]
mod tests;
