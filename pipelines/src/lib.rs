//! Pipelines: configuration as written, configuration as resolved, and the dataflow made of it.
//!
//! No I/O happens here: callers hand in texts, and take rows.

pub mod examples;
pub mod graph;
pub mod planner;
