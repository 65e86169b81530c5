//! `tidegate doctor tables`: the store, and each table below it: log, files, epochs; and whether
//! they belong to the journal and the checkpoints beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tidegate_sql::examine::{self, Finding, Severity, TableHealth};
use tidegate_sql::{Store, TableName, tables_of};

use super::OnProgress;
use super::report::{Report, Verdicts};
use crate::checkpoint::CheckpointStore;
use crate::journal::examine::{Mode, Watch, Whole, examine as examine_journal};

const STORE: Verdicts = [
    "this store keeps what commits rely on",
    "usable; see the warnings",
    "tables are not safe here: what to do stands above",
];
const TABLE: Verdicts =
    ["whole", "whole; see the warnings", "damaged: what follows from it stands above"];

/// Which tables are examined.
#[derive(Clone, Debug, Default)]
pub struct TablesOptions {
    /// Their root; without it, what the instance of `data` noted.
    pub url: Option<String>,
    /// The data folder of the instance that writes them, if it is on this machine.
    pub data: Option<PathBuf>,
}

/// How far the instance beside the tables is.
struct Beside {
    /// The command that makes a journal that goes on behind the tables.
    salvage: String,
    /// Begins the application id of its commits.
    instance: String,
    checkpoint: u64,
    /// Tables that the newest checkpoint relies on, and the newest epoch that their logs had.
    tables: Vec<String>,
    logged: BTreeMap<String, u64>,
    /// The last sealed or open epoch of its journal; where there is none, a start begins a new one
    /// after the checkpoint.
    journal: u64,
    running: bool,
}

/// Examines the tables and the store that they lie in.
pub async fn examine(options: &TablesOptions, progress: OnProgress<'_>) -> Vec<Report> {
    let url = match (&options.url, &options.data) {
        (Some(url), _) => Ok(url.clone()),
        (None, Some(data)) => tables_of(data).map_err(|e| e.to_string()),
        (None, None) => Err("say where the tables are: a folder or s3://bucket/prefix".into()),
    };
    let url = match url {
        Ok(url) => url,
        Err(why) => return vec![failed("tables", &why)],
    };
    let beside = options.data.as_deref().and_then(beside);
    let missing = Store::local_folder(&url).ok().flatten().is_some_and(|folder| !folder.is_dir());
    if missing {
        let mut report = Report::new(&format!("tables in {url}"), STORE);
        match beside.as_ref().map_or(0, |beside| beside.tables.len()) {
            0 => report.note("tables", "there is no such folder yet: the first start makes it"),
            _ => gone(&mut report, beside.as_ref(), &[]),
        }
        return vec![report];
    }
    let store = match Store::open(&url) {
        Ok(store) => store,
        Err(error) => return vec![failed(&format!("tables in {url}"), &error.to_string())],
    };
    let mut report = Report::new(&format!("tables in {url}"), STORE);
    let unique = format!("{:016x}", crate::journal::segment::new_salt(1));
    let data = options.data.as_deref();
    for finding in examine::probe(&store, &unique).await {
        put(&mut report, finding, data);
    }
    let names = examine::tables(&store).await;
    let mut reports = vec![report];
    let names = match names {
        Ok(names) => names,
        // The probe has told why.
        Err(_) if !reports[0].passed() => return reports,
        Err(error) => return vec![failed(&format!("tables in {url}"), &error.to_string())],
    };
    gone(&mut reports[0], beside.as_ref(), &names);
    for name in names {
        let told = |done, total| progress(&name.to_string(), done, total);
        let mut report = Report::new(&format!("table {name}"), TABLE);
        match examine::table(&store, &name, &told).await {
            Ok(health) => {
                for finding in &health.findings {
                    put(&mut report, finding.clone(), data);
                }
                if let Some(beside) = &beside {
                    compare(&mut report, &health, beside);
                }
            }
            Err(error) => report.fail("store", &error.to_string(), &["run the doctor again"]),
        }
        reports.push(report);
    }
    reports
}

/// Tells tables that the newest checkpoint relies on and that are not there.
fn gone(report: &mut Report, beside: Option<&Beside>, there: &[TableName]) {
    let there: Vec<String> = there.iter().map(ToString::to_string).collect();
    let relied_on = beside.map(|beside| beside.tables.as_slice()).unwrap_or_default();
    for name in relied_on.iter().filter(|name| !there.contains(*name)) {
        let change = ["mount or restore them", "say where they are: --tables"];
        report.fail("tables", &format!("{name} is gone, with all its log"), &change);
        report.means("a start refuses: it would begin an empty one");
    }
}

fn failed(subject: &str, why: &str) -> Report {
    let mut report = Report::new(subject, STORE);
    report.fail("store", why, &[]);
    report
}

/// Takes a finding over; what to do names the data folder, where it is known.
fn put(report: &mut Report, finding: Finding, data: Option<&Path>) {
    let named = |line: &String| match data {
        Some(data) => line.replace("--data DIR", &format!("--data {}", data.display())),
        None => line.clone(),
    };
    let change: Vec<String> = finding.change.iter().map(named).collect();
    let change: Vec<&str> = change.iter().map(String::as_str).collect();
    match finding.severity {
        Severity::Ok => report.ok(finding.check, &finding.text),
        Severity::Note => report.note(finding.check, &finding.text),
        Severity::Warn => report.warn(finding.check, &finding.text, &change),
        Severity::Fail => report.fail(finding.check, &finding.text, &change),
    }
    report.means(finding.means);
    if let Some(object) = finding.object {
        report.at(object, None, None);
    }
}

/// What lies in the data folder; `None` if it was never used.
fn beside(data: &Path) -> Option<Beside> {
    let instance = std::fs::read_to_string(data.join("instance")).ok()?.trim().to_owned();
    let running = crate::journal::holder::running(data).is_some();
    let all = CheckpointStore::look_at(data.join("checkpoints")).survey().unwrap_or_default();
    let newest = all.iter().rev().find_map(|s| s.found.as_ref().ok());
    let checkpoint = newest.map_or(0, |c| c.manifest.epoch);
    let tables = newest.map(|c| c.manifest.tables.keys().cloned().collect()).unwrap_or_default();
    let logged = newest.map(|c| c.manifest.logged.clone()).unwrap_or_default();
    let dir = data.join("journal");
    let mode = if running { Mode::Live } else { Mode::Stopped };
    let mut visit = |_, _: Whole<'_>| Ok(());
    let watch = Watch { progress: &|_, _| {}, visit: &mut visit, sources: &[] };
    let found = dir.is_dir().then(|| examine_journal(&dir, mode, watch).ok()).flatten();
    let journal = found.filter(|f| f.first_epoch().is_some()).map(|f| f.last_epoch());
    let journal = journal.unwrap_or(checkpoint);
    let salvage = salvage(data);
    Some(Beside { salvage, instance, checkpoint, tables, logged, journal, running })
}

fn compare(report: &mut Report, health: &TableHealth, beside: &Beside) {
    let app = format!("{}/{}", beside.instance, health.name);
    let was = beside.logged.get(&health.name.to_string()).copied().unwrap_or(0);
    let is = health.committed.get(&app).copied().unwrap_or(0);
    if is < was {
        let text = format!("epoch {is} is its newest, and it had {was}: it is an older copy");
        report.fail("epochs", &text, &["restore the newest one", &beside.salvage]);
        report.means("a start refuses: rows of the epochs between are not there");
        return;
    }
    let Some(&epoch) = health.committed.get(&app) else {
        if !health.committed.is_empty() {
            let apps: Vec<&str> = health.committed.keys().map(String::as_str).collect();
            report.note("epochs", &format!("written by others: {}", apps.join(", ")));
            report.means("this data folder has not written it: its rows are added to theirs");
        }
        return;
    };
    let text = format!("epoch {epoch} is its newest; checkpoint {}", beside.checkpoint);
    match beside.journal {
        last if last < epoch && !beside.running => {
            let text = format!("{text}; the journal ends at epoch {last}");
            let change = ["restore the newest segments of the journal", &beside.salvage];
            report.fail("epochs", &text, &change);
            report.means(format!(
                "a start refuses: its next epoch, {}, would bear a number that the table has",
                last + 1
            ));
        }
        _ => {
            report.ok("epochs", &text);
            if epoch > beside.checkpoint {
                report.means(format!(
                    "a start replays from epoch {} and leaves out what the table has",
                    beside.checkpoint + 1
                ));
            }
        }
    }
}

/// The command that saves what can be saved of a data folder.
fn salvage(data: &Path) -> String {
    format!("tidegate doctor data --data {} --salvage NEW_FOLDER", data.display())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_start_refuses_is_said_and_the_folder_is_named() {
        let data = Path::new("/d");
        let beside = Beside {
            salvage: salvage(data),
            instance: "i".into(),
            checkpoint: 292,
            tables: Vec::new(),
            logged: BTreeMap::new(),
            journal: 307,
            running: false,
        };
        let name = TableName { schema: "p".into(), name: "readings".into() };
        let committed = [("i/p.readings".to_owned(), 317)].into();
        let health = TableHealth { name, findings: Vec::new(), committed, rows: 0 };
        let mut report = Report::new("table", TABLE);
        compare(&mut report, &health, &beside);
        let row = &report.rows[0];
        assert!(row.measured.ends_with("the journal ends at epoch 307"), "{row:?}");
        assert!(row.means.starts_with("a start refuses"), "{row:?}");
        assert_eq!(row.change[1], "tidegate doctor data --data /d --salvage NEW_FOLDER");
        // What the store's own examination advises as well, which does not know the folder.
        let finding = Finding {
            check: "log",
            severity: Severity::Fail,
            text: String::new(),
            means: String::new(),
            object: None,
            change: vec![salvage(Path::new("DIR"))],
        };
        put(&mut report, finding, Some(data));
        assert_eq!(report.rows[1].change[0], salvage(data));
    }
}
