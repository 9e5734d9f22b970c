//! Whole networks of real nodes and clients in one thread, under one seed.
//!
//! Owns the worlds: network, disks, clocks, what goes wrong, and who checks. The nodes and clients
//! are those of the product, given other edges; no behaviour of theirs is modelled here. The one
//! idea: everything that happens is decided by the seed, so what was found once is found again.
//!
//! ```text
//! seed ─▶ spec (size, times, link quality) ─▶ atlas: faults, bounded to what must be survived
//!                                                │
//!   clients ── streams ──▶ nodes ── packets ──▶ nodes        everything on tokio's paused clock
//!      │                     │
//!      └─ what was promised  └─ disks that forget, rot, fill up     ─▶ trace (hash, last lines)
//!                 │
//!                 └──▶ checks: while faults last, and when all must have grown back
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`entropy`] | the system's randomness, by the seed |
//! | [`trace`] | what happened: a hash of all of it, and the lines |
//! | [`net`], [`uneven`], [`udp`], [`stream`] | links that delay, lose and are cut, each by itself; sockets and streams on them |
//! | [`store`] | what a machine keeps shards in: a model, or the product's store on a simulated disk |
//! | [`disk`] | what a process has of it, and the fence |
//! | [`host`] | machines with nodes on them |
//! | [`atlas`] | what goes wrong, and how much of it must be survived |
//! | [`size`], [`spread`] | how many machines for which code; how far apart shards must lie |
//! | [`killat`] | deaths at the n-th thing that a process does |
//! | [`blackout`] | many machines that lose power at one instant |
//! | [`sectors`] | single shards that cannot be read |
//! | [`room`] | disks of unequal size, which fill up |
//! | [`kinds`] | worlds that ask one question |
//! | [`witness`] | a node that lies about others |
//! | [`scene`] | what all share: who serves, what was written |
//! | [`client`] | those who put and read |
//! | [`tree`], [`folder`] | trees, as they were put; putting, listing and reading them |
//! | [`ways`], [`local`], [`gateway`] | the same by the product's own programs: from real files, from a stream, through a gateway |
//! | [`made`] | what must come of that, computed without a network |
//! | [`checkup`], [`lists`] | checks by clients, with repair; by lists of chunks |
//! | [`ledger`] | what clients were promised, and what they saw |
//! | [`check`] | the promises |
//! | [`spec`] | what a world is made of |
//! | [`world`], [`strike`] | one run from the first node to the last check; what strikes in it |
//! | [`memory`] | how many bytes of the heap a world may use |
//! | [`watch`] | what may not be at any moment, and how the world looks then |
//! | [`shrink`] | the fewest faults with which a run still fails |

pub mod atlas;
mod blackout;
pub mod check;
mod checkup;
mod claims;
mod client;
mod disk;
pub mod entropy;
mod folder;
mod gateway;
mod host;
pub mod killat;
pub mod kinds;
mod ledger;
mod lists;
mod local;
mod made;
mod memory;
mod net;
mod room;
pub mod scene;
mod sectors;
pub mod shrink;
mod size;
pub mod spec;
mod spread;
mod store;
mod stream;
mod strike;
pub mod trace;
mod tree;
mod udp;
mod uneven;
pub mod watch;
mod ways;
mod witness;
pub mod world;

pub use ledger::WayCounts;
