//! The process around the dataflow: sources, journal, workers, commit, and what people see of it.
//! The only crate with a clock.

pub mod fleet;
pub mod receiver;
pub mod screen;
pub mod stats;
pub mod summary;
