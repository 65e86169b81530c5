//! Edges: what flows between steps, and which of its columns say what a row is about.

use std::collections::BTreeMap;

use arrow::datatypes::{Field, SchemaRef};
use tidegate_operators::key::is_key_type;
use tidegate_operators::spec::{INGEST_TIME, IS_FINAL, TakesBack, VALID_FROM, VALID_TO};

use crate::config::problem::{At, Reporter, hint_of, nearest};

/// Names that are not for steps and branches.
pub(crate) const RESERVED: [&str; 7] =
    ["readings", "rejects", "late", "duplicates", "findings", "alerts", "clock_skew"];

/// What the rows of an edge are.
#[derive(Clone, Debug)]
pub(crate) enum RowKind {
    /// Readings, keyed by device.
    Readings,
    /// Windows with their key.
    Windows {
        keys: Vec<String>,
        /// The column that tells the windows of a key apart.
        id: &'static str,
        /// A window can come more than once.
        revised: bool,
        /// A window that came can turn out to be none: it comes again with `rows` = 0.
        withdrawn: bool,
        /// So does one that came through a filter or a branch and does not any more.
        taken_back: bool,
        /// Rows of windows that are still open are among them; whether a final one can come again.
        early: Option<bool>,
    },
    /// Findings with their key.
    Findings { keys: Vec<String> },
    /// What is known of a key at a time.
    Timed { keys: Vec<String> },
    /// Versions of a registry with their key.
    Versions { keys: Vec<String> },
}

impl RowKind {
    /// What begins, lasts and ends for a key, and comes again each time: absences, sequences.
    pub(crate) fn lasting(keys: Vec<String>) -> Self {
        Self::Windows {
            keys,
            id: "window_start",
            revised: true,
            withdrawn: true,
            taken_back: false,
            early: None,
        }
    }
}

/// One edge.
#[derive(Clone, Debug)]
pub(crate) struct Edge {
    /// Its columns.
    pub schema: SchemaRef,
    /// What its rows are.
    pub rows: RowKind,
}

impl Edge {
    /// The key columns.
    pub(crate) fn keys(&self) -> Vec<String> {
        match &self.rows {
            RowKind::Readings => vec!["device".to_owned()],
            RowKind::Windows { keys, .. }
            | RowKind::Findings { keys }
            | RowKind::Timed { keys }
            | RowKind::Versions { keys } => keys.clone(),
        }
    }

    /// The columns without which a row would not be what it is: no step removes or replaces them.
    pub(crate) fn identity(&self) -> Vec<String> {
        let mut names = self.keys();
        let rest: &[&str] = match self.rows {
            RowKind::Windows { .. } => &["window_start", "window_end", "rows", "revision"],
            RowKind::Readings | RowKind::Findings { .. } | RowKind::Timed { .. } => &["time"],
            RowKind::Versions { .. } => &[VALID_FROM, VALID_TO, INGEST_TIME, "revision"],
        };
        names.extend(rest.iter().map(|n| (*n).to_owned()));
        if let RowKind::Windows { id, .. } = self.rows
            && !rest.contains(&id)
        {
            names.push(id.to_owned());
        }
        if let RowKind::Windows { early: Some(_), .. } = self.rows {
            names.push(IS_FINAL.to_owned());
        }
        names
    }

    /// The column with the time at which a row is known: what alerts and detectors go by.
    pub(crate) fn time(&self) -> &'static str {
        match self.rows {
            RowKind::Windows { .. } => "window_end",
            RowKind::Versions { .. } => INGEST_TIME,
            _ => "time",
        }
    }

    /// The column with the time at which what a row tells began: what windows and tables go by.
    pub(crate) fn start(&self) -> &'static str {
        match self.rows {
            RowKind::Windows { .. } => "window_start",
            RowKind::Versions { .. } => INGEST_TIME,
            _ => "time",
        }
    }

    /// Whether a row can say that an earlier one is to be forgotten.
    pub(crate) fn is_withdrawn(&self) -> bool {
        let RowKind::Windows { withdrawn, taken_back, .. } = self.rows else { return false };
        withdrawn || taken_back
    }

    /// The column with the number of readings, if a row without one says that an earlier one is to
    /// be forgotten.
    pub(crate) fn withdrawn_column(&self) -> Option<usize> {
        self.is_withdrawn().then(|| self.index("rows"))
    }

    /// How rows that come again take back those before them, if rows can come again.
    pub(crate) fn takes_back(&self) -> Option<TakesBack> {
        let RowKind::Windows { early, revised: true, .. } = self.rows else { return None };
        let identity = self.identity();
        let is_said = |field: &Field| field.is_nullable() && !identity.contains(field.name());
        let fields = self.schema.fields().iter().enumerate();
        Some(TakesBack {
            rows: self.index("rows"),
            revision: self.index("revision"),
            // Of windows that are still open only these rows can be taken back, if none that is
            // over comes again.
            is_final: (early == Some(false)).then(|| self.index(IS_FINAL)),
            clears: fields.filter(|(_, field)| is_said(field)).map(|(i, _)| i).collect(),
        })
    }

    /// The same edge behind a step that lets some rows pass, and takes back what it let pass.
    pub(crate) fn picked(&self) -> Self {
        let mut edge = self.clone();
        if let RowKind::Windows { revised: true, withdrawn, taken_back, early, .. } = &mut edge.rows
        {
            match early {
                Some(_) => *withdrawn = true,
                None => *taken_back = true,
            }
        }
        edge
    }

    /// Index of a column that is there.
    pub(crate) fn index(&self, name: &str) -> usize {
        self.schema.index_of(name).expect("identity columns are in every edge")
    }

    /// The names of these columns.
    pub(crate) fn key_names(&self, keys: &[usize]) -> Vec<String> {
        keys.iter().map(|k| self.schema.field(*k).name().clone()).collect()
    }

    /// The columns that `by` names, or the key of the edge; those that are there, and whether that
    /// is all of them. What is not there is reported.
    pub(crate) fn key_indexes(
        &self,
        by: Option<Vec<(&str, At)>>,
        report: &mut Reporter<'_>,
    ) -> (Vec<usize>, bool) {
        let Some(by) = by else {
            return (self.keys().iter().map(|k| self.index(k)).collect(), true);
        };
        let mut keys = Vec::new();
        let mut complete = true;
        for (name, at) in by {
            let found = self.column(name, at, report);
            complete &= found.is_some();
            match found {
                Some(i) if keys.contains(&i) => {
                    complete = false;
                    report.error(at, format!("`{name}` is named twice"), None);
                }
                Some(i) if !is_key_type(self.schema.field(i).data_type()) => {
                    complete = false;
                    let message = format!("`{name}` cannot be part of a key");
                    let hint = "keys are text, numbers, true or false, or times".to_owned();
                    report.error(at, message, hint);
                }
                Some(i) => keys.push(i),
                None => {}
            }
        }
        (keys, complete)
    }

    /// The columns that names in `by` which are none were meant for.
    pub(crate) fn meant(&self, by: Option<Vec<(&str, At)>>) -> Vec<String> {
        let known = || self.schema.fields().iter().map(|f| f.name().as_str());
        let names = by.unwrap_or_default().into_iter().map(|(name, _)| name);
        let misspelt = names.filter(|name| self.schema.index_of(name).is_err());
        misspelt.filter_map(|name| nearest(name, known())).map(str::to_owned).collect()
    }

    /// Index of a column that somebody named; reports if it is not there.
    pub(crate) fn column(&self, name: &str, at: At, report: &mut Reporter<'_>) -> Option<usize> {
        let found = self.schema.index_of(name).ok();
        let names: Vec<&str> = self.schema.fields().iter().map(|f| f.name().as_str()).collect();
        // What is like a column is rather that one than a level of a topic that is not known.
        let is_typo = !report.knows_captures() && nearest(name, names.iter().copied()).is_some();
        if found.is_none() && (is_typo || !report.is_unsure(&[name.to_owned()])) {
            report.error(at, format!("there is no column `{name}` here"), hint_of(name, names));
        }
        found
    }
}

/// The edges of a pipeline by name. `None`: the edge exists, but could not be resolved, which was
/// reported; what depends on it is left out in silence.
#[derive(Clone, Debug)]
pub(crate) struct Edges {
    known: BTreeMap<String, Option<Edge>>,
    /// Names of route steps with their branches, for hints.
    routes: BTreeMap<String, Vec<String>>,
    /// A step has no name, which was reported: an edge that nobody seems to make may be its own.
    nameless: bool,
}

impl Edges {
    /// Only the edge `readings`.
    pub(crate) fn of_readings(schema: SchemaRef) -> Self {
        let edge = Edge { schema, rows: RowKind::Readings };
        let known = [("readings".to_owned(), Some(edge))].into();
        Self { known, routes: BTreeMap::new(), nameless: false }
    }

    /// Whether there is a step without a name.
    pub(crate) fn set_nameless(&mut self, nameless: bool) {
        self.nameless = nameless;
    }

    /// Adds an edge, or the knowledge that it could not be resolved.
    pub(crate) fn add(&mut self, name: &str, edge: Option<Edge>) {
        self.known.insert(name.to_owned(), edge);
    }

    /// Adds a route, which is no edge itself.
    pub(crate) fn add_route(&mut self, name: &str, branches: Vec<String>) {
        self.routes.insert(name.to_owned(), branches);
    }

    /// Whether there is an edge of this name, resolved or not.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// The edge of a name, without a report.
    pub(crate) fn peek(&self, name: &str) -> Option<&Edge> {
        self.known.get(name)?.as_ref()
    }

    /// Names of all edges.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.known.keys().map(String::as_str).collect()
    }

    /// The edge that somebody named; reports if there is none.
    pub(crate) fn get(&self, name: &str, at: At, report: &mut Reporter<'_>) -> Option<&Edge> {
        if !self.contains(name) {
            self.report_unknown(name, at, report);
        }
        self.peek(name)
    }

    /// Reports that there is no edge of this name.
    pub(crate) fn report_unknown(&self, name: &str, at: At, report: &mut Reporter<'_>) {
        let (message, hint) = if let Some(branches) = self.routes.get(name) {
            let hint = format!("its branches are `{}`", branches.join("`, `"));
            (format!("`{name}` is a route, which has no edge of its own"), Some(hint))
        } else if RESERVED.contains(&name) {
            let hint = format!("it is always kept as the table system.{name}");
            (format!("`{name}` is not an edge"), Some(hint))
        } else if self.nameless && nearest(name, self.names()).is_none() {
            return;
        } else {
            (format!("there is no edge `{name}`"), hint_of(name, self.names()))
        };
        report.error(at, message, hint);
    }
}
