//! The outbox's part: entries, what is pending and dead, damage.

use std::collections::BTreeSet;

use tidegate_operators::Epoch;

use super::super::report::Report;
use super::super::{bytes_text, counted, file_name};
use super::{Scene, VERDICTS};
use crate::engine::notifications::target_name;
use crate::outbox::examine::{Seen, look_at};

/// And the newest epoch whose alerts it has; 0 if that is not known.
pub(super) fn examine(scene: &Scene<'_>) -> Option<(Report, Epoch)> {
    let dir = scene.data.join("outbox");
    if !dir.is_dir() {
        return None;
    }
    let mut report = Report::new(&scene.subject("outbox"), VERDICTS);
    let seen = match look_at(&dir) {
        Ok(Some(seen)) => seen,
        Ok(None) => {
            report.note("entries", "it is empty");
            return Some((report, 0));
        }
        Err(error) => {
            report.fail("outbox", &error.to_string(), &["let this user read the folder"]);
            return Some((report, 0));
        }
    };
    tell(scene, &mut report, &seen);
    Some((report, seen.through))
}

fn tell(scene: &Scene<'_>, report: &mut Report, seen: &Seen) {
    let handled = seen.items - seen.pending.len() as u64 - seen.dead;
    let name = file_name(&seen.path);
    let text =
        format!("{name}: {} pending, {handled} delivered, {} dead", seen.pending.len(), seen.dead);
    report.ok("entries", &text);
    if seen.dead > 0 {
        let list = format!("tidegate outbox --data {}", scene.data.display());
        report.warn("dead", &counted(seen.dead, "notification"), &[&list]);
        report.means("their receiver did not take them within max_age; alerts are in their table");
    }
    if let Some(pipelines) = scene.pipelines {
        let known: BTreeSet<String> = pipelines
            .iter()
            .flat_map(|p| {
                p.alerts.iter().flat_map(|(_, a)| &a.notify).map(|n| target_name(&p.name, n))
            })
            .collect();
        let gone: BTreeSet<&String> = seen.pending.iter().filter(|t| !known.contains(*t)).collect();
        for target in gone {
            let text = format!("notifications are pending for `{target}`, which no pipeline has");
            report.warn("target", &text, &["give the [notify] table its name back"]);
        }
    }
    for bad in &seen.damages {
        let text = format!("{name} at bytes {} to {}: {}", bad.offset, bad.until, bad.reason);
        match bad.is_torn_end(seen.bytes) {
            true => {
                let bytes = bytes_text(bad.until - bad.offset);
                report.note("end", &format!("{name} is torn at byte {}: {bytes}", bad.offset));
                report.means("normal: a start cuts it off; alerts come again from the journal");
            }
            false => {
                report.fail("damage", &text, &[&scene.salvage()]);
                report.means(
                    "a start stops here; notifications in between are lost, or sent again under \
                     the same id where the note of their delivery was there",
                );
            }
        }
        report.at(seen.path.display().to_string(), Some(bad.offset), None);
    }
}
