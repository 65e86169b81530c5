//! Registries, and the steps that join them, in words.

use std::fmt::Write as _;

use tidegate_operators::spec::{EnrichSpec, Missing, RegistrySpec};

use super::{columns, key_names, line};
use crate::config::units::{show_duration, show_size};
use crate::plan::{Plan, RegistryPlace};

/// What a registry is.
pub(super) fn registry(r: &RegistrySpec, plan: &Plan, out: &mut String) {
    let source = plan.registries.iter().find(|s| (&s.pipeline, &s.name) == (&r.pipeline, &r.name));
    let from = source.map_or_else(String::new, |s| format!(": {}", s.place.shown()));
    let _ = writeln!(out, "  registry {}{from}", r.name);
    if let Some(RegistryPlace::Url(url)) = source.map(|s| &s.place) {
        let every = show_duration(url.refresh_us);
        let size = show_size(url.body_bytes_max);
        let within = show_duration(url.timeout_us);
        line(out, "asked", &format!("every {every}; whole within {within}, at most {size}"));
    }
    if r.entries.is_some() {
        let entries = "each message is an entry, an empty one removes it; they are no readings";
        line(out, "entries", entries);
    }
    let keys: Vec<&str> = r.columns[..r.keys].iter().map(|c| c.name.as_str()).collect();
    line(out, "key", &keys.join(", "));
    let holds = match (&r.valid_from, &r.entries) {
        (Some(_), _) => "since when it says itself",
        (None, Some(_)) => "the first of a key: since ever; others: from when they were received",
        (None, None) => "what is there first: since ever; a change: from when it was taken in",
    };
    line(out, "holds", holds);
    let state = format!("per key at most {} versions, here and in each join", r.versions_max);
    line(out, "state", &state);
    line(out, "columns", &columns(&r.versions_schema()));
}

/// What a step joins.
pub(super) fn enrich(e: &EnrichSpec, out: &mut String) {
    let time = e.input.field(e.time).name();
    line(
        out,
        "joins",
        &format!("{} as of {time}, by {}", e.registry.name, key_names(&e.input, &e.on)),
    );
    line(out, "emits", "each row at once, after the changes of its epoch");
    let unknown = match e.missing {
        Missing::Null => "nulls, or the default",
        Missing::Reject => "system.rejects",
    };
    line(out, "unknown", unknown);
    let (late, kept) = match &e.revise {
        Some(revise) => {
            let keep = show_duration(revise.keep_us);
            let late = "a change that comes late revises windows that ended in the last";
            (format!("{late} {keep}"), format!(", and the windows that ended in the last {keep}"))
        }
        None => ("rows stay as they were joined".to_owned(), String::new()),
    };
    line(out, "late", &late);
    let versions = e.registry.versions_max;
    line(out, "state", &format!("per key of the registry at most {versions} versions{kept}"));
}
