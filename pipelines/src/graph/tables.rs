//! The tables that a plan writes: those that its pipelines ask for, and the system tables.

use arrow::datatypes::SchemaRef;

use tidegate_operators::spec::{PipelineSpec, TableSpec};
use tidegate_operators::system::{
    alerts_schema, clock_skew_schema, duplicates_schema, findings_schema, gaps_schema,
    late_table_schema, limits_schema, rejects_schema, sessions_schema, windows_kept_schema,
};

use crate::change::rows_of;

/// Namespace of the system tables.
pub const SYSTEM: &str = "system";
/// Messages and readings that could not be processed.
pub const REJECTS: &str = "rejects";
/// Readings that came after the state of their window was gone.
pub const LATE: &str = "late";
/// Windows that late readings had no effect on.
pub const WINDOWS_KEPT: &str = "windows_kept";
/// Readings that came before.
pub const DUPLICATES: &str = "duplicates";
/// How far the clocks of devices are from ours.
pub const CLOCK_SKEW: &str = "clock_skew";
/// What detectors found.
pub const FINDINGS: &str = "findings";
/// Changes of alerts.
pub const ALERTS: &str = "alerts";
/// What happened to the sessions of devices and brokers.
pub const SESSIONS: &str = "sessions";
/// Times in which messages may have been lost before they reached us.
pub const GAPS: &str = "gaps";
/// Limits of the engine that were reached and left.
pub const LIMITS: &str = "limits";

fn system(name: &str, schema: SchemaRef, sort: &[&str]) -> TableSpec {
    TableSpec {
        namespace: SYSTEM.into(),
        name: name.into(),
        from: name.into(),
        schema,
        time: "time".into(),
        partition: Vec::new(),
        sort: sort.iter().map(|s| (*s).to_owned()).collect(),
        identity: Vec::new(),
        rows: None,
        freshness_us: 0,
    }
}

/// `system.windows_kept`. It is written beside the dataflow, so it is not one of [`tables`], and is
/// made when it has something to say; until then SQL shows it without rows.
pub fn windows_kept() -> TableSpec {
    system(WINDOWS_KEPT, windows_kept_schema(), &["pipeline", "step", "keys"])
}

/// All tables of a plan, in the order that [`super::Target::Table`] counts.
pub fn tables(pipelines: &[PipelineSpec]) -> Vec<TableSpec> {
    let freshness_us = pipelines
        .iter()
        .flat_map(|p| &p.tables)
        .map(|t| t.freshness_us)
        .min()
        .unwrap_or(10_000_000);
    let system = |name: &str, schema: SchemaRef, sort: &[&str]| TableSpec {
        freshness_us,
        ..system(name, schema, sort)
    };
    let mut tables = vec![
        system(REJECTS, rejects_schema(), &["pipeline"]),
        system(LATE, late_table_schema(), &["pipeline", "step"]),
        system(DUPLICATES, duplicates_schema(), &["pipeline", "device"]),
        system(CLOCK_SKEW, clock_skew_schema(), &["pipeline", "device"]),
        system(FINDINGS, findings_schema(), &["pipeline", "step", "keys"]),
        system(ALERTS, alerts_schema(), &["pipeline", "rule", "keys"]),
        system(SESSIONS, sessions_schema(), &["source", "client_id"]),
        system(GAPS, gaps_schema(), &["source"]),
        system(LIMITS, limits_schema(), &["kind", "subject"]),
    ];
    let own = pipelines.iter().flat_map(|p| p.tables.iter().map(move |table| (p, table)));
    tables
        .extend(own.map(|(p, table)| TableSpec { rows: Some(rows_of(p, table)), ..table.clone() }));
    tables
}

/// Index of a table.
///
/// # Panics
/// If it is not there: callers name tables that [`tables`] made.
pub(super) fn position(tables: &[TableSpec], namespace: &str, name: &str) -> usize {
    tables
        .iter()
        .position(|t| t.namespace == namespace && t.name == name)
        .expect("the table was made from the same plan")
}
