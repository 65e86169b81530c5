//! The process around the dataflow: sources, journal, workers, commit, delivery, shutdown.
//!
//! The only crate with a clock, a network and a disk; what it writes to the journal is all that
//! the deterministic half ever sees.

pub mod mqtt;
pub mod source;
