//! Pipelines: from the text of a configuration to a plan that has no open question, and from a plan
//! to a dataflow. No I/O, no clock, no environment: callers hand in texts and a resolver.

pub mod bounds;
pub mod change;
pub mod compare;
pub mod config;
mod content;
mod dot;
pub mod examples;
mod explain;
mod fingerprint;
pub mod graph;
pub mod plan;
pub mod planner;
pub mod recompute;
mod repeated;
mod resolve;
#[cfg(test)]
mod testing;
pub mod webhook;

pub use compare::compare_rows;
pub use config::{Problem, Secret, Severity, docs_markdown, load, process_schema, schema};
pub use content::{content_ids, content_ids_before, kept};
pub use dot::explain_dot;
pub use explain::explain;
pub use fingerprint::fingerprint;
pub use plan::{NotifySpec, Plan, SourceKind, SourceSpec, TestInput, TestSpec};
