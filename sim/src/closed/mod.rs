//! Formulas that say how long data lasts, each with its source and its repair-time law.
//!
//! Owns the closed forms that the simulation is checked against and that go where no simulation
//! reaches. Refuses to print: these are plain functions of rates and counts.
//!
//! | module | what |
//! |---|---|
//! | [`chain`], [`patient`] | one stripe under independent failures: the core's own formulas |
//! | [`storj`] | the tables of the Storj paper and the order in which Storj repairs |
//! | [`published`] | Backblaze, Weatherspoon and Kubiatowicz, copysets, Azure's LRC |
//! | [`trust`] | audits and reputation |

pub mod published;
pub mod storj;
pub mod trust;

pub use copse_core::durability::{chain, patient};
