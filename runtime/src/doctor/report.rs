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
    /// Something is lost or would be, or nothing works.
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

/// Where something was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// A file, or an object of the store.
    pub file: String,
    /// Bytes from its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The first epoch that it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
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
    /// Where, if at one place; `measured` says it too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What follows from it: what is lost, what a start will do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub means: String,
    /// Lines to change, commands to run, or what to look at.
    pub change: Vec<String>,
}

/// What the last line says: if all is well, if there are warnings, if something failed.
pub(super) type Verdicts = [&'static str; 3];

/// All checks of one thing: a broker, a journal, a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What was examined, without secrets.
    pub subject: String,
    /// In the order of the checks.
    pub rows: Vec<Row>,
    #[serde(skip)]
    verdicts: Verdicts,
}

impl Report {
    pub(super) fn new(subject: &str, verdicts: Verdicts) -> Self {
        Self { subject: subject.to_owned(), rows: Vec::new(), verdicts }
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
        self.rows.push(Row { check, status, measured, place: None, means: String::new(), change });
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

    /// Says of the last row what follows from it.
    pub(super) fn means(&mut self, text: impl Into<String>) {
        if let Some(row) = self.rows.last_mut() {
            row.means = text.into();
        }
    }

    /// Says of the last row where it was found.
    pub(super) fn at(&mut self, file: impl Into<String>, offset: Option<u64>, epoch: Option<u64>) {
        if let Some(row) = self.rows.last_mut() {
            row.place = Some(Place { file: file.into(), offset, epoch });
        }
    }

    /// The table, with what follows and what to change below each row that has some.
    pub fn table(&self) -> String {
        let width = self.rows.iter().map(|r| r.check.len()).max().unwrap_or(0);
        let mut out = format!("{}\n", self.subject);
        for row in &self.rows {
            let (status, check) = (row.status.text(), &row.check);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {status:<5}  {check:<width$}  {}", row.measured);
            if !row.means.is_empty() {
                let _ = writeln!(out, "  {:<5}  {:<width$}    {}", "", "", row.means);
            }
            for line in &row.change {
                let _ = writeln!(out, "  {:<5}  {:<width$}    -> {line}", "", "");
            }
        }
        let count = |status| self.rows.iter().filter(|r| r.status == status).count();
        let verdict = match (count(Status::Fail), count(Status::Warn)) {
            (0, 0) => self.verdicts[0],
            (0, _) => self.verdicts[1],
            _ => self.verdicts[2],
        };
        let _ = writeln!(out, "  {verdict}");
        out
    }
}
