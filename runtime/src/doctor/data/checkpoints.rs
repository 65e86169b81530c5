//! The checkpoints' part: manifest, parts, decodable state, and whether it fits the pipelines.

use std::path::Path;

use super::super::report::Report;
use super::super::{bytes_text, counted};
use super::{Newest, Scene, VERDICTS};
use crate::checkpoint::manifest::{FORMAT, Unusable};
use crate::checkpoint::{Checkpoint, CheckpointStore, Surveyed};
use crate::engine::checkpoints::changed;

/// What to do where one is damaged.
const DISK: &str = "look at the disk (dmesg, smartctl): a checkpoint was whole when it was written";

/// The newest checkpoint that a start would use, and what was found.
pub(super) fn examine(scene: &Scene<'_>) -> (Newest, Report) {
    let mut report = Report::new(&scene.subject("checkpoints"), VERDICTS);
    let dir = scene.data.join("checkpoints");
    if !dir.is_dir() {
        report.note("checkpoints", "there are none: a start replays the whole journal");
        return (0, report);
    }
    (scene.progress)("checkpoints", 0, 1);
    let all = match CheckpointStore::look_at(&dir).survey() {
        Ok(all) => all,
        Err(error) => {
            report.fail("checkpoints", &error.to_string(), &["let this user read the folder"]);
            return (0, report);
        }
    };
    if all.is_empty() {
        report.note("checkpoints", "there are none: a start replays the whole journal");
    }
    let newest_whole = all.iter().rfind(|s| s.found.is_ok()).map_or(0, |s| s.epoch);
    for one in &all {
        let file = dir.join(&one.manifest).display().to_string();
        match &one.found {
            Ok(checkpoint) => whole(scene, &mut report, one, checkpoint, newest_whole),
            Err(Unusable::Damaged(why)) => broken(&mut report, one, why, newest_whole),
            Err(Unusable::OtherFormat(format)) => {
                let text = format!("{} is of format {format}, not {FORMAT}", one.manifest);
                let change = ["go on with the version that wrote it"];
                report.fail(&format!("epoch {}", one.epoch), &text, &change);
                report.means("a start refuses the folder: it may be newer than all that it reads");
            }
        }
        report.at(file, None, Some(one.epoch));
    }
    aside(&mut report, &dir);
    (newest_whole, report)
}

/// Tells what earlier starts have set aside.
fn aside(report: &mut Report, dir: &Path) {
    for (epoch, name) in CheckpointStore::look_at(dir).aside().unwrap_or_default() {
        let text = format!("{name}: a start found this one damaged and set it aside");
        report.warn(&format!("epoch {epoch}"), &text, &[DISK]);
        report.means("it is not used any more, and may be removed");
        report.at(dir.join(name).display().to_string(), None, Some(epoch));
    }
}

fn whole(
    scene: &Scene<'_>,
    report: &mut Report,
    one: &Surveyed,
    checkpoint: &Checkpoint,
    newest_whole: Newest,
) {
    let check = format!("epoch {}", one.epoch);
    let parts = &checkpoint.manifest.parts;
    let bytes = parts.iter().map(|part| part.bytes).sum();
    let parts = counted(parts.len() as u64, "part");
    let role = if one.epoch == newest_whole { "a start uses it" } else { "kept in reserve" };
    report.ok(&check, &format!("whole: {parts}, {}; {role}", bytes_text(bytes)));
    let Some(pipelines) = scene.pipelines.filter(|_| one.epoch == newest_whole) else { return };
    let changed = changed(&checkpoint.manifest, pipelines);
    if !changed.is_empty() {
        let text = format!("changed since this checkpoint: {}", changed.join(", "));
        report.warn("pipelines", &text, &["tidegate explain FILE shows what they do now"]);
        report.means("these operators are made anew from what the journal still has");
    } else {
        report.ok("pipelines", "the state fits the pipelines given");
    }
}

fn broken(report: &mut Report, one: &Surveyed, reason: &str, newest_whole: Newest) {
    let check = format!("epoch {}", one.epoch);
    let text = format!("{}: {reason}", one.manifest);
    if one.epoch < newest_whole {
        report.warn(&check, &text, &[]);
        report.means(format!("it is not needed: epoch {newest_whole} is newer and whole"));
        return;
    }
    report.fail(&check, &text, &[DISK]);
    report.means(match newest_whole {
        0 => "a start passes it over; no other is whole, so all of the journal has to be there"
            .to_owned(),
        older => format!("a start passes it over and uses epoch {older}: it replays more"),
    });
}
