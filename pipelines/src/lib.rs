//! Pipelines: configuration as written, the plan it resolves to, and all checks in between.

pub mod planner;
