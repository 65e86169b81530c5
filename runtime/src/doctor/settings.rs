//! `tidegate doctor config`, of `tidegate.toml`: its problems, and settings that a run regrets
//! later, each with the line to change.

use tidegate_pipelines::Problem;
use tidegate_pipelines::config::process::ProcessSpec;

use super::config::tell;
use super::lines::{FileText, change};
use super::report::{Report, Verdicts};

const VERDICTS: Verdicts = [
    "these settings are sound",
    "usable; the warnings say what would make it better",
    "cannot run as it is: change the lines above",
];

/// Examines the file of settings: what it says, or its problems.
pub fn examine(file: &FileText, loaded: Result<&ProcessSpec, &[Problem]>) -> Report {
    let mut report = Report::new(&format!("settings {}", file.path.display()), VERDICTS);
    let spec = match loaded {
        Ok(spec) => spec,
        Err(problems) => {
            problems.iter().for_each(|problem| tell(&mut report, problem));
            return report;
        }
    };
    report.ok("file", "it is sound");
    if spec.disk_reserve_bytes == 0 {
        let line = change(Some(file), "process", "disk_reserve", "disk_reserve = \"64MiB\"");
        report.warn("disk", "nothing of the disk is kept free (disk_reserve)", &[&line]);
        report.means("on a full disk no checkpoint is written, and no alert tells of it");
    }
    if spec.memory_bytes_max == Some(0) {
        let line = change(Some(file), "process", "memory_max", "remove the line, or name a size");
        report.warn("memory", "there is no budget (memory_max)", &[&line]);
        report.means("endless new device ids end in the system killing the process");
    }
    report
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidegate_pipelines::config::process::load_process;

    use super::*;

    fn look(text: &str) -> Report {
        let file = FileText { path: "tidegate.toml".into(), text: text.into() };
        let none = |_: &str, _: &str| Err("no references here".to_owned());
        let loaded = load_process(file.path.clone(), file.text.clone(), &none);
        examine(&file, loaded.as_ref().map_err(Vec::as_slice))
    }

    #[test]
    fn lines_of_settings_are_named() {
        let report = look("[process]\nworkers = 2\nmemory_max = \"0B\"\ndisk_reserve = \"0B\"\n");
        let change = |row: usize| report.rows[row].change[0].as_str();
        assert_eq!(report.rows.len(), 3, "{}", report.table());
        let line = "tidegate.toml:4: instead of `disk_reserve = \"0B\"`: disk_reserve = \"64MiB\"";
        assert_eq!(change(1), line);
        assert!(change(2).starts_with("tidegate.toml:3: instead of"), "{}", change(2));
        let report = look("[process]\nworkers = 2\nspill_max = 5\n");
        assert!(!report.passed());
        assert!(report.rows[0].measured.starts_with("tidegate.toml:3:"), "{}", report.table());
        assert_eq!(look("[process]\n").rows.len(), 1);
    }
}
