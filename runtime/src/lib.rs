//! The process around the dataflow: what is durable, what talks to the outside, what people see of
//! it, and every clock.
//!
//! Two edges turn the outside world into a pure function: the journal makes messages durable and
//! numbers them by epoch, and the commit side (tables, checkpoints, outbox) turns completed epochs
//! into effects exactly once or, for webhooks, at least once under a stable id.

pub mod cases;
mod chain;
pub mod checkpoint;
pub mod clock;
pub mod doctor;
pub mod engine;
mod failing;
mod fault;
pub mod fleet;
#[cfg(test)]
mod fuzz;
mod http;
pub mod intake;
pub mod journal;
#[cfg(test)]
mod logged;
pub mod memory;
pub mod metrics;
pub mod mqtt;
mod mutation;
pub(crate) mod net;
pub mod open_files;
pub mod outbox;
pub mod receiver;
pub mod screen;
#[cfg(test)]
mod sim;
pub mod source;
pub mod stats;
pub mod summary;
mod time;
pub mod webhook;

pub use chain::chain;
