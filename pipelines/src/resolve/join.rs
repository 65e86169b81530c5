//! The step `join`.

use tidegate_operators::spec::{JoinSpec, Partners, Shape, StepKind};

use super::edges::{Edge, RowKind};
use super::steps::Steps;
use super::windows::{inherited, not_over_revisions};
use super::{is_builtin, limits};
use crate::config::problem::Reporter;
use crate::config::section::Section;

/// Keys that say how near partners are.
const NEAR: [&str; 3] = ["within", "before", "after"];

/// Keys that go with those, and those that go with windows.
const OF_INTERVAL: [&str; 4] = ["match", "matches_max", "rows_max", "forget_after"];
const OF_WINDOWS: [&str; 1] = ["revise_for"];

/// Resolves a join of two edges.
pub(super) fn join(
    steps: &Steps<'_>,
    step: &Section<'_>,
    name: &str,
    (left, right): (&Edge, &Edge),
    report: &mut Reporter<'_>,
) -> Option<(StepKind, Edge)> {
    let with = steps.taken(step, "with", report);
    let is_near = NEAR.iter().any(|key| step.entry(key).is_some());
    let (idle, of) = match is_near {
        true => (&OF_WINDOWS[..], "windows with the same bounds"),
        false => (&OF_INTERVAL[..], "`within`, `before` or `after`"),
    };
    for entry in idle.iter().filter_map(|key| step.entry(key)) {
        let message = format!("`{}` has no effect here", entry.key);
        report.error(entry.key_at, message, format!("it goes with {of}"));
    }
    let partners = match is_near {
        true => interval(steps, step, (left, right), report),
        false => windows(steps, step, (left, right), report),
    };
    let keys = keys(step, (left, right), !is_near, report);
    let (partners, (left_keys, right_keys)) = (partners?, keys?);
    let columns = added(step, (left, right), &right_keys, !is_near, report)?;
    let held_us = match is_near {
        true => 0,
        false => held_us(steps, step.text("from").unwrap_or_default()).max(held_us(steps, &with)),
    };
    let mut spec = JoinSpec {
        pipeline: steps.pipeline.clone(),
        name: name.to_owned(),
        with,
        left: left.schema.clone(),
        right: right.schema.clone(),
        left_keys,
        right_keys,
        columns,
        outer: step.text("join") == Some("left"),
        partners,
        disorder_us: inherited(steps, step, "disorder"),
        idle_close_us: inherited(steps, step, "idle_close").max(held_us),
        live: steps.live,
        limits: limits::of_step(&steps.limits, step),
    };
    let rows = match (&left.rows, &right.rows) {
        (
            RowKind::Windows { keys, id, revised, .. },
            RowKind::Windows { revised: right_revised, .. },
        ) if !is_near => RowKind::Windows {
            keys: keys.clone(),
            id,
            revised: *revised || *right_revised || spec.outer,
            withdrawn: false,
            taken_back: left.is_withdrawn() || (right.is_withdrawn() && !spec.outer),
            early: None,
        },
        (rows, _) => rows.clone(),
    };
    let edge = Edge { schema: spec.schema(), rows };
    if let Partners::Window { takes_back, .. } = &mut spec.partners {
        *takes_back = edge.takes_back().filter(|_| edge.is_withdrawn());
    }
    Some((StepKind::Join(spec), edge))
}

/// Rows that are near.
fn interval(
    steps: &Steps<'_>,
    step: &Section<'_>,
    (left, right): (&Edge, &Edge),
    report: &mut Reporter<'_>,
) -> Option<Partners> {
    let mut good = true;
    for (key, edge) in [("from", left), ("with", right)] {
        let from = step.text(key).unwrap_or_default();
        if let RowKind::Versions { .. } = edge.rows {
            good = false;
            let message = format!("`{from}` is the history of a registry");
            let hint = "a step of type \"enrich\" joins it as of the time of a row".to_owned();
            report.error(step.at(key), message, hint);
        }
        let revised = matches!(edge.rows, RowKind::Windows { revised: true, .. });
        good &= !revised;
        not_over_revisions(step, (key, edge), "would be joined twice", report);
    }
    if let Some(within) = step.entry("within")
        && (step.entry("before").is_some() || step.entry("after").is_some())
    {
        let hint = "`within` is both of them".to_owned();
        report.error(within.key_at, "`within` together with `before` or `after`", hint);
        return None;
    }
    let side = |key: &str| match (step.entry("within"), step.entry(key)) {
        (Some(_), _) => step.duration_us("within"),
        (None, Some(_)) => step.duration_us(key),
        (None, None) => Some(0),
    };
    let (before_us, after_us) = (side("before")?, side("after")?);
    let number = |key: &str| step.int(key).and_then(|n| usize::try_from(n).ok());
    good.then_some(Partners::Interval {
        left: left.index(left.time()),
        right: right.index(right.time()),
        before_us,
        after_us,
        nearest: step.text("match") == Some("nearest"),
        matches_max: number("matches_max")?,
        rows_max: number("rows_max")?,
        forget_after_us: limits::forget_after_us(&steps.limits, step)?,
    })
}

/// Windows with the same bounds.
fn windows(
    steps: &Steps<'_>,
    step: &Section<'_>,
    (left, right): (&Edge, &Edge),
    report: &mut Reporter<'_>,
) -> Option<Partners> {
    for (key, edge) in [("from", left), ("with", right)] {
        let from = step.text(key).unwrap_or_default();
        let RowKind::Windows { id, withdrawn, .. } = &edge.rows else {
            let message = format!("`{from}` has no windows, and nothing says how near is near");
            let hint = "write `within = \"5s\"`, or `before` and `after`".to_owned();
            report.error(step.at(key), message, hint);
            return None;
        };
        if *withdrawn || *id != "window_start" {
            let message = format!("windows of `{from}` can move or go, or are numbered");
            let hint = "join windows of fixed bounds, or rows that are near, with `within`";
            report.error(step.at(key), message, hint.to_owned());
            return None;
        }
    }
    let [from, with] = ["from", "with"].map(|key| step.text(key).unwrap_or_default());
    let shapes = shape_of(steps, from).zip(shape_of(steps, with));
    if shapes.is_some_and(|(a, b)| format!("{a:?}") != format!("{b:?}")) {
        let message = format!("the windows of `{from}` and `{with}` are not the same");
        let hint = "give both the same bounds, or join rows that are near, with `within`";
        report.error(step.at("with"), message, hint.to_owned());
        return None;
    }
    let columns =
        |edge: &Edge| ["window_start", "window_end", "revision"].map(|name| edge.index(name));
    let keep_us = step.duration_us("revise_for")?;
    Some(Partners::Window {
        left: columns(left),
        right: columns(right),
        rows: [left.withdrawn_column(), right.withdrawn_column()],
        takes_back: None,
        keep_us,
    })
}

/// How long what comes on an edge may have been held back for others, or by silence, microseconds:
/// a silence that is shorter says nothing of the other edge.
fn held_us(steps: &Steps<'_>, edge: &str) -> i64 {
    let Some(step) = steps.specs.iter().find(|step| step.makes(edge)) else { return 0 };
    let (disorder_us, idle_us, with) = match &step.kind {
        StepKind::Window(w) => (w.disorder_us, w.idle_close_us, None),
        StepKind::Detect(d) => (d.disorder_us, d.idle_close_us, None),
        StepKind::Latest(l) => (l.disorder_us, l.idle_close_us, None),
        StepKind::Join(j) => {
            let after_us = match j.partners {
                Partners::Interval { after_us, .. } => after_us,
                Partners::Window { .. } => 0,
            };
            let wait_us = after_us.saturating_add(j.disorder_us);
            (wait_us, j.idle_close_us, Some(j.with.as_str()))
        }
        _ => (0, 0, None),
    };
    let with_us = with.map_or(0, |with| held_us(steps, with));
    let before_us = held_us(steps, &step.from).max(with_us);
    before_us.saturating_add(disorder_us).saturating_add(idle_us)
}

/// The windows that the rows of an edge are, wherever they were made.
fn shape_of<'s>(steps: &'s Steps<'_>, edge: &str) -> Option<&'s Shape> {
    let step = steps.specs.iter().find(|step| step.makes(edge))?;
    match &step.kind {
        StepKind::Window(window) => Some(&window.shape),
        _ => shape_of(steps, &step.from),
    }
}

/// The columns of both edges that make the key.
fn keys(
    step: &Section<'_>,
    (left, right): (&Edge, &Edge),
    are_windows: bool,
    report: &mut Reporter<'_>,
) -> Option<(Vec<usize>, Vec<usize>)> {
    let (left_keys, mut good) = left.key_indexes(step.texts("by"), report);
    let names: Vec<&str> =
        left_keys.iter().map(|k| left.schema.field(*k).name().as_str()).collect();
    if are_windows {
        let sorted = |mut keys: Vec<String>| {
            keys.sort();
            keys
        };
        let own = sorted(names.iter().map(|n| (*n).to_owned()).collect());
        if own != sorted(left.keys()) || own != sorted(right.keys()) {
            let with = step.text("with").unwrap_or_default();
            let key = |edge: &Edge| edge.keys().join("`, `");
            let message = format!(
                "windows are joined by all of their keys: here `{}`, of `{with}` `{}`",
                key(left),
                key(right)
            );
            let at = if step.entry("by").is_some() { "by" } else { "with" };
            report.error(step.at(at), message, "give both windows the same `by`".to_owned());
            return None;
        }
    }
    let mut right_keys = Vec::new();
    for (key, name) in left_keys.iter().zip(&names) {
        let at = if step.entry("by").is_some() { step.at("by") } else { step.at("with") };
        let Some(place) = right.column(name, at, report) else {
            good = false;
            continue;
        };
        let (a, b) = (left.schema.field(*key).data_type(), right.schema.field(place).data_type());
        if a != b {
            good = false;
            let message = format!("`{name}` is {a} here and {b} there: they are never equal");
            report.error(at, message, "declare them with the same type".to_owned());
        }
        right_keys.push(place);
    }
    good.then_some((left_keys, right_keys))
}

/// The columns of the right edge that are added, each with its name.
fn added(
    step: &Section<'_>,
    (left, right): (&Edge, &Edge),
    keys: &[usize],
    are_windows: bool,
    report: &mut Reporter<'_>,
) -> Option<Vec<(usize, String)>> {
    let with = step.text("with").unwrap_or_default();
    let is_shared =
        |name: &str| are_windows && ["window_start", "window_end", "revision"].contains(&name);
    let fields = right.schema.fields();
    let all = fields.iter().map(|f| f.name().as_str());
    let own = all.filter(|name| !is_shared(name) && !is_builtin(name));
    let named =
        step.texts("columns").unwrap_or_else(|| own.map(|name| (name, step.at("with"))).collect());
    let written = step.entry("columns").is_some();
    let mut columns: Vec<(usize, String)> = Vec::new();
    let mut good = true;
    for (name, at) in named {
        let Some(place) = right.column(name, at, report) else {
            good = false;
            continue;
        };
        if keys.contains(&place) || is_shared(name) {
            if written {
                good = false;
                report.error(at, format!("`{name}` is the same on both sides"), None);
            }
            continue;
        }
        let taken = |name: &str, columns: &[(usize, String)]| {
            left.schema.index_of(name).is_ok() || columns.iter().any(|c| c.1 == name)
        };
        let mut shown = name.to_owned();
        if taken(&shown, &[]) {
            shown = format!("{with}_{name}");
        }
        if taken(&shown, &columns) {
            good = false;
            let hint = "rename one with a step of type \"select\"".to_owned();
            report.error(at, format!("there is a column `{shown}` already"), hint);
        }
        columns.push((place, shown));
    }
    if columns.is_empty() && good {
        good = false;
        report.error(step.at("with"), format!("`{with}` has no column to add"), None);
    }
    good.then_some(columns)
}

#[cfg(test)]
mod tests;
