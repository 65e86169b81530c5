//! What was found, as a calm table or as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// For information.
    Note,
    /// To be looked at by a person: it could not be tried.
    Check,
    /// It works, but not well.
    Warn,
    /// Messages would be lost, or nothing works.
    Fail,
}

impl Status {
    fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Check => "check",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub status: Status,
    /// What was seen.
    pub measured: String,
    /// Lines to change, or to look at.
    pub change: Vec<String>,
}

/// All checks of one broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The broker, without secrets.
    pub source: String,
    /// In the order of the checks.
    pub rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(source: &str) -> Self {
        Self { source: source.to_owned(), rows: Vec::new() }
    }

    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|r| r.status != Status::Fail)
    }

    pub(super) fn failed(&self, check: &str) -> bool {
        self.rows.iter().any(|r| r.check == check && r.status == Status::Fail)
    }

    fn put(&mut self, check: &str, status: Status, measured: &str, change: &[&str]) {
        let change = change.iter().map(|line| (*line).to_owned()).collect();
        let (check, measured) = (check.to_owned(), measured.to_owned());
        self.rows.push(Row { check, status, measured, change });
    }

    pub(super) fn ok(&mut self, check: &str, measured: &str) {
        self.put(check, Status::Ok, measured, &[]);
    }

    pub(super) fn note(&mut self, check: &str, measured: &str) {
        self.put(check, Status::Note, measured, &[]);
    }

    pub(super) fn check(&mut self, check: &str, measured: &str, change: &[&str]) {
        self.put(check, Status::Check, measured, change);
    }

    pub(super) fn warn(&mut self, check: &str, measured: &str, change: &[&str]) {
        self.put(check, Status::Warn, measured, change);
    }

    pub(super) fn fail(&mut self, check: &str, measured: &str, change: &[&str]) {
        self.put(check, Status::Fail, measured, change);
    }

    /// The table, with the lines to change below each row that has some.
    pub fn table(&self) -> String {
        let width = self.rows.iter().map(|r| r.check.len()).max().unwrap_or(0);
        let mut out = format!("{}\n", self.source);
        for row in &self.rows {
            let (status, check) = (row.status.text(), &row.check);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {status:<5}  {check:<width$}  {}", row.measured);
            for line in &row.change {
                let _ = writeln!(out, "  {:<5}  {:<width$}    -> {line}", "", "");
            }
        }
        let count = |status| self.rows.iter().filter(|r| r.status == status).count();
        let (fail, warn) = (count(Status::Fail), count(Status::Warn));
        let verdict = match (fail, warn) {
            (0, 0) => "this broker keeps what it has acknowledged, as far as it can be tried",
            (0, _) => "usable; the warnings say what would make it better",
            _ => "not reliable as it is: change the lines above and run the doctor again",
        };
        let _ = writeln!(out, "  {verdict}");
        out
    }
}
