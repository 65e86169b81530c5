//! `tidegate doctor config`: problems of pipeline files, and settings that lose data or cost a lot,
//! each with the line to change.

use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::Plan;
use tidegate_pipelines::config::problem::Problem;
use tidegate_pipelines::config::references::UNSET;
use tidegate_pipelines::plan::{RegistryPlace, SourceKind};

use super::lines::{FileText, change, change_in, file_of};
use super::report::{Report, Verdicts};
use crate::engine::look_at_registry;

const VERDICTS: Verdicts = [
    "nothing in these files loses data",
    "usable; the warnings say what would make it better",
    "cannot run as it is: change the lines above",
];

/// A broker should keep our session longer than any outage.
const SESSION_S_MIN: u32 = 24 * 3600;
/// More commits than this make a table of many small files: 8,640 a day.
const FRESHNESS_US_MIN: i64 = 10_000_000;

/// Examines pipeline files: what they resolve to, or their problems, and what references this
/// machine lacks.
pub fn examine(
    files: &[FileText],
    loaded: Result<&Plan, &[Problem]>,
    missing: &[String],
) -> Report {
    let names: Vec<String> = files.iter().map(|f| f.path.display().to_string()).collect();
    let mut report = Report::new(&format!("pipelines {}", names.join(", ")), VERDICTS);
    let plan = match loaded {
        Ok(plan) => plan,
        Err(problems) => {
            for problem in problems {
                tell(&mut report, problem);
            }
            return report;
        }
    };
    let sound = match plan.pipelines.len() {
        1 => "1 pipeline is sound".to_owned(),
        count => format!("{count} pipelines are sound"),
    };
    report.ok("files", &sound);
    for why in missing {
        let change = ["set it where `tidegate run` is started"];
        report.fail("reference", why, &change);
    }
    for warning in &plan.warnings {
        let place = format!("{}:{}", warning.file.display(), warning.line);
        let hint: Vec<&str> = warning.hint.as_deref().into_iter().collect();
        report.warn("file", &format!("{place}: {}", warning.message), &hint);
    }
    registries(&mut report, plan);
    for pipeline in &plan.pipelines {
        let file = file_of(files, &pipeline.name);
        source(&mut report, plan, pipeline, file);
        tables(&mut report, pipeline, file);
    }
    report
}

/// Files of registries that are there: whether a start could read them.
fn registries(report: &mut Report, plan: &Plan) {
    for registry in &plan.registries {
        let RegistryPlace::File(path) = &registry.place else { continue };
        if path.contains(UNSET) || !std::path::Path::new(path).is_file() {
            continue;
        }
        match look_at_registry(plan, registry) {
            Ok(Some(untaken)) => {
                report.warn("registry", &untaken, &["correct these rows"]);
                report.means("what was known of their keys stays, or there is nothing of them");
            }
            Ok(None) => {}
            Err(error) => {
                let change = ["what the file has, or `columns` of the registry"];
                report.fail("registry", &crate::chain(&error), &change);
            }
        }
    }
}

pub(super) fn tell(report: &mut Report, problem: &Problem) {
    let place = format!("{}:{}:{}", problem.file.display(), problem.line, problem.column);
    let mut change = vec![format!("{place}: {}", problem.source_line.trim())];
    change.extend(problem.hint.clone());
    let change: Vec<&str> = change.iter().map(String::as_str).collect();
    report.fail("file", &format!("{place}: {}", problem.message), &change);
    report.at(problem.file.display().to_string(), None, None);
}

fn source(report: &mut Report, plan: &Plan, pipeline: &PipelineSpec, file: Option<&FileText>) {
    let Some(source) = plan.sources.get(usize::from(pipeline.decode.source)) else { return };
    let name = &pipeline.name;
    match &source.kind {
        SourceKind::Mqtt(spec) => {
            if spec.qos == 0 {
                let line = change(file, "source", "qos", "qos = 1");
                report.warn("qos", &format!("{name}: subscribes at QoS 0"), &[&line]);
                report.means("what is on its way when a connection ends is lost");
            }
            if spec.session_expiry_s < SESSION_S_MIN {
                let text =
                    format!("{name}: the broker keeps its session for {} s", spec.session_expiry_s);
                let line = change(file, "source", "session_expiry", "session_expiry = \"7d\"");
                report.warn("session", &text, &[&line]);
                report.means("after a longer outage what was published meanwhile is lost");
            }
            if pipeline.dedup.is_none() {
                let text = format!("{name}: repetitions are recognised by packet id and content");
                report.note("repetitions", &text);
                report.means(
                    "what publishers send again after the broker's own crash is counted twice; \
                     [reading.dedup] drops it",
                );
            }
        }
        SourceKind::Endpoint(spec) if spec.insecure_listen => {
            let line = change(file, "source", "insecure_listen", "users_file = \"users.txt\"");
            report.warn("access", &format!("{name}: anybody may publish"), &[&line]);
        }
        SourceKind::Http(spec) if spec.insecure_listen => {
            let line = change(file, "source", "insecure_listen", "users = {...}");
            report.warn("access", &format!("{name}: anybody may write"), &[&line]);
        }
        _ => {}
    }
}

fn tables(report: &mut Report, pipeline: &PipelineSpec, file: Option<&FileText>) {
    for table in pipeline.tables.iter().filter(|t| t.freshness_us < FRESHNESS_US_MIN) {
        let a_day = 86_400_000_000 / table.freshness_us.max(1);
        let text = format!(
            "{}.{}: up to {a_day} commits a day, each with a file per partition",
            table.namespace, table.name
        );
        // Not of each table there is such a section: the history of a registry has none.
        let line = change_in(file, ("table", &table.name), "freshness", "freshness = \"1m\"");
        report.warn("freshness", &text, line.as_deref().as_slice());
        report.means("many small files make queries slow; nothing is lost");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = r#"
name = "p"
[source]
type = "mqtt"
url = "mqtt://b"
topics = ["a/{device}"]
qos = 0
[reading]
device = "{device}"
time = "ts"
[reading.fields]
t = "float64"
[[table]]
from = "readings"
freshness = "1s"
"#;

    fn look(text: &str) -> Report {
        let file = FileText { path: "p.toml".into(), text: text.into() };
        let loaded =
            tidegate_pipelines::load(&[(file.path.clone(), file.text.clone())], &|_, _| {
                Err("no references here".into())
            });
        examine(&[file], loaded.as_ref().map_err(|problems| problems.as_slice()), &[])
    }

    #[test]
    fn the_line_to_change_is_named() {
        let report = look(TEXT);
        assert!(report.passed(), "{}", report.table());
        assert_eq!(report.rows[0].measured, "1 pipeline is sound");
        let change =
            |check: &str| report.rows.iter().find(|r| r.check == check).unwrap().change[0].clone();
        assert_eq!(change("qos"), "p.toml:7: instead of `qos = 0`: qos = 1");
        assert!(
            change("freshness").starts_with("p.toml:15: instead of"),
            "{}",
            change("freshness")
        );
        let report = look(&TEXT.replace("qos = 0\n", "session_expiry = \"1m\"\n"));
        let session = report.rows.iter().find(|r| r.check == "session").unwrap();
        assert!(session.change[0].starts_with("p.toml:7: instead of"), "{session:?}");
    }

    #[test]
    fn files_of_registries_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("limits.csv");
        let text = format!(
            "{TEXT}[[registry]]\nname = \"limits\"\npath = \"{}\"\nkey = [\"device\"]\n\
             columns = {{ device = \"string\", t_high = \"float64\" }}\n",
            path.display()
        );
        let row = |file: &str| {
            std::fs::write(&path, file).unwrap();
            let report = look(&text);
            let row = report.rows.iter().find(|r| r.check == "registry");
            (report.passed(), row.map(|r| r.measured.clone()).unwrap_or_default())
        };
        assert_eq!(row("device,t_high\nd1,6\n"), (true, String::new()));
        let (passed, told) = row("device,thigh\nd1,6\n");
        assert!(!passed && told.contains("no column `t_high` (it has `thigh`"), "{told}");
        let (passed, told) = row("device,t_high\nd1,6\nd2,x\n");
        assert!(passed && told.contains("1 row is not taken"), "{told}");
    }

    #[test]
    fn problems_are_failures_with_their_place() {
        let report = look(&TEXT.replace("float64", "flot64"));
        assert!(!report.passed());
        assert!(report.rows[0].measured.starts_with("p.toml:12:"), "{:?}", report.rows[0]);
    }
}
