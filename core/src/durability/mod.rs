//! How long data lasts: closed forms, and what they advise a network of a given kind to use.
//!
//! Owns the mathematics of one chunk under independent failures, and the advice built on it. Refuses
//! to simulate, and to speak of failures that nodes have in common otherwise than in words: those
//! are `copse-sim`'s. The one idea: every figure comes with the law of the repair times that it was
//! found with, a pessimistic and an optimistic one.
//!
//! | module | what |
//! |---|---|
//! | [`law`] | the two laws of repair times |
//! | [`chain`] | one chunk that is repaired at a threshold: loss, traffic, availability |
//! | [`patient`] | the same as the planner does it: at the threshold, or after a while |
//! | [`advice`] | which geometry for how many nodes, at what cost, and what it does not survive |
//! | [`logmath`] | probabilities as logarithms |

pub mod advice;
pub mod chain;
pub mod law;
pub mod logmath;
pub mod patient;

pub use law::RepairLaw;
