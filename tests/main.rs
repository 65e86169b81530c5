//! The one integration-test binary: how the repository is laid out, and the built `tidegate` from
//! device to SQL.

#![allow(clippy::unwrap_used)]

mod clients;
#[allow(dead_code, reason = "benches use other parts of it")]
#[path = "../benches/workload/mod.rs"]
mod common_workload;
mod end_to_end;
mod golden;
mod structure;
mod support;
mod time_series;
mod workload;
