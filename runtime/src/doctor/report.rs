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

/// Rows of one kind that are shown.
const ALIKE_MAX: usize = 3;

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
    /// Some of it was not looked at, so that there is no verdict on it.
    #[serde(skip)]
    not_seen: bool,
}

impl Report {
    pub(super) fn new(subject: &str, verdicts: Verdicts) -> Self {
        Self { subject: subject.to_owned(), rows: Vec::new(), verdicts, not_seen: false }
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

    /// Like [`Self::check`], for what the verdict would be on.
    pub(super) fn not_seen(&mut self, check: &str, measured: &str, change: &[&str]) {
        self.put(check, Status::Check, measured, change);
        self.not_seen = true;
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
        for alike in self.rows.chunk_by(Row::says_the_same) {
            // With one more there would be as many lines as with all of them.
            let shown = if alike.len() > ALIKE_MAX + 1 { ALIKE_MAX } else { alike.len() };
            // Writing to a String cannot fail.
            for row in &alike[..shown] {
                let (status, check) = (row.status.text(), &row.check);
                let _ = writeln!(out, "  {status:<5}  {check:<width$}  {}", row.measured);
            }
            if let more @ 1.. = alike.len() - shown {
                let _ = writeln!(out, "  {:<5}  {:<width$}  and {more} more", "", "");
            }
            let row = &alike[0];
            if !row.means.is_empty() {
                let _ = writeln!(out, "  {:<5}  {:<width$}    {}", "", "", row.means);
            }
            for line in &row.change {
                let _ = writeln!(out, "  {:<5}  {:<width$}    -> {line}", "", "");
            }
        }
        let verdict = match (self.count(Status::Fail), self.count(Status::Warn)) {
            (0, 0) if self.not_seen && self.count(Status::Ok) == 0 => "not looked at",
            (0, 0) if self.not_seen => "what was looked at is as it should be",
            (0, 0) => self.verdicts[0],
            (0, _) => self.verdicts[1],
            _ => self.verdicts[2],
        };
        let _ = writeln!(out, "  {verdict}");
        out
    }

    fn count(&self, status: Status) -> usize {
        self.rows.iter().filter(|r| r.status == status).count()
    }
}

impl Row {
    /// Whether two rows differ in nothing but what they were found at.
    fn says_the_same(&self, other: &Self) -> bool {
        (&self.check, self.status, &self.means, &self.change)
            == (&other.check, other.status, &other.means, &other.change)
            && !(self.means.is_empty() && self.change.is_empty())
    }
}

/// What came of all of them, in one line.
pub fn summary(reports: &[Report]) -> String {
    let count = |status| reports.iter().map(|r| r.count(status)).sum::<usize>();
    let counted = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    let checks = reports.iter().map(|r| r.rows.len()).sum::<usize>() - count(Status::Note);
    let failures = counted(count(Status::Fail), "failure");
    let warnings = counted(count(Status::Warn), "warning");
    let open = match count(Status::Check) {
        0 => String::new(),
        open => format!(", {open} to be looked at by a person"),
    };
    format!("{}: {failures}, {warnings}{open}", counted(checks, "check"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERDICTS: Verdicts = ["whole", "whole, with warnings", "damaged"];

    #[test]
    fn what_was_not_looked_at_is_not_called_whole() {
        let mut report = Report::new("sessions", VERDICTS);
        report.not_seen("a", "in use: not looked at", &["run it later"]);
        assert!(report.table().ends_with("\n  not looked at\n"));
        report.ok("b", "whole");
        assert!(report.table().ends_with("\n  what was looked at is as it should be\n"));
        let wanted = "2 checks: 0 failures, 0 warnings, 1 to be looked at by a person";
        assert_eq!(summary(&[report]), wanted);
    }

    #[test]
    fn rows_that_say_the_same_are_told_together() {
        let mut report = Report::new("table", VERDICTS);
        for i in 0..20 {
            report.fail("files", &format!("{i}.parquet is missing"), &["restore it"]);
            report.means("queries fail");
        }
        report.fail("log", "bad", &["restore it"]);
        report.ok("epochs", "1");
        report.ok("epochs", "2");
        let wanted = [
            "table",
            "  FAIL   files   0.parquet is missing",
            "  FAIL   files   1.parquet is missing",
            "  FAIL   files   2.parquet is missing",
            "                 and 17 more",
            "                   queries fail",
            "                   -> restore it",
            "  FAIL   log     bad",
            "                   -> restore it",
            "  ok     epochs  1",
            "  ok     epochs  2",
            "  damaged",
        ];
        let table = report.table();
        assert_eq!(table.lines().collect::<Vec<_>>(), wanted);
        assert_eq!(summary(&[report]), "23 checks: 21 failures, 0 warnings");
    }
}
