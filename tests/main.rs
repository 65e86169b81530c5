//! Tests.

#[allow(dead_code, reason = "benches use other parts of it")]
#[path = "../benches/workload/mod.rs"]
mod common_workload;
mod workload;
