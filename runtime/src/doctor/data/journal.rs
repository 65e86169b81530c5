//! The journal's part: every frame, seal and segment; whether a start can replay what it needs.

use tidegate_operators::Epoch;

use super::super::report::Report;
use super::super::{bytes_text, counted, file_name};
use super::{Known, Newest, Scene, VERDICTS};
use crate::journal::DurableError;
use crate::journal::examine::{Damage, Examined, Lost, Mode, Watch, examine};

/// A clock this far behind the newest tick makes ticks run ahead of it.
const CLOCK_BEHIND_US: i64 = 2_000_000;

/// `None` where there is no journal.
pub(super) fn read(scene: &Scene<'_>) -> Option<Result<Examined, DurableError>> {
    let dir = scene.data.join("journal");
    if !dir.is_dir() {
        return None;
    }
    let mode = if scene.running.is_some() { Mode::Live } else { Mode::Stopped };
    let progress = |done, total| (scene.progress)("journal", done, total);
    let mut visit = |_, _: crate::journal::examine::Whole<'_>| Ok(());
    Some(examine(&dir, mode, Watch { progress: &progress, visit: &mut visit, sources: &[] }))
}

pub(super) fn judge(
    scene: &Scene<'_>,
    read: Option<Result<Examined, DurableError>>,
    known: Known,
) -> Report {
    let mut report = Report::new(&scene.subject("journal"), VERDICTS);
    match read {
        None => report.note("journal", "there is none: a start begins with an empty one"),
        Some(Err(error)) => {
            report.fail("journal", &error.to_string(), &["let this user read the folder"]);
        }
        Some(Ok(found)) => {
            segments(&mut report, &found);
            for damage in &found.damages {
                tell(scene, &mut report, damage, &found, known.newest);
            }
            end(scene, &mut report, &found);
            recovery(scene, &mut report, &found, known);
            clock(scene, &mut report, &found);
        }
    }
    report
}

fn segments(report: &mut Report, found: &Examined) {
    let Some(first) = found.first_epoch() else {
        report.note("segments", "none: a start begins with epoch 1");
        return;
    };
    let last = found.open.0.saturating_sub(1);
    let text = format!(
        "{}, {}, epochs {first} to {last}, {}",
        counted(found.segments.len() as u64, "segment"),
        bytes_text(found.bytes()),
        counted(found.messages, "message")
    );
    match found.damages.is_empty() {
        true => report.ok("segments", &format!("{text}: every checksum, seal and offset is right")),
        false => report.note("segments", &format!("{text} are whole")),
    }
}

/// `17 messages`, `at most 17 messages`, ...
pub(in super::super) fn lost_text(lost: Lost) -> String {
    match lost {
        Lost::Exactly(0) => "no message".into(),
        Lost::Exactly(count) => counted(count, "message"),
        Lost::AtMost(count) => format!("at most {}", counted(count, "message")),
        Lost::Unknown => "an unknown number of messages".into(),
    }
}

fn tell(scene: &Scene<'_>, report: &mut Report, damage: &Damage, found: &Examined, newest: Newest) {
    let (from, through) = damage.epochs;
    let epochs = match from == through {
        true => format!("epoch {from}"),
        false => format!("epochs {from} to {through}"),
    };
    let place = match damage.offset {
        Some(offset) if damage.until > offset => {
            format!("{} at bytes {offset} to {}", file_name(&damage.path), damage.until)
        }
        Some(offset) => format!("{} at byte {offset}", file_name(&damage.path)),
        None => "the folder".into(),
    };
    let text = format!("{place} ({epochs}): {}", damage.reason);
    let lost = lost_text(damage.lost);
    let stops = found.stops_at(newest + 1).any(|d| std::ptr::eq(d, damage));
    if stops {
        let mut change = vec!["restore the file from a copy, if there is one".to_owned()];
        change.push(scene.salvage());
        let change: Vec<&str> = change.iter().map(String::as_str).collect();
        report.fail("damage", &text, &change);
        report.means(match through <= newest {
            true => format!(
                "a start stops here, although the checkpoint of epoch {newest} and the tables have \
                 what {lost} there said"
            ),
            false => format!("a start stops here; {lost} cannot be read any more"),
        });
    } else {
        report.warn("damage", &text, &[]);
        report.means(format!(
            "a start does not read it: the checkpoint of epoch {newest} and the tables have \
             what {lost} there said; only rebuilding a changed pipeline would"
        ));
    }
    report.at(damage.path.display().to_string(), damage.offset, Some(from));
}

fn end(scene: &Scene<'_>, report: &mut Report, found: &Examined) {
    if let Some(path) = &found.unborn {
        let name = file_name(path);
        report.note("end", &format!("{name} was being created; a start removes it"));
    }
    match (&found.torn, scene.running) {
        (Some(torn), None) => {
            let text = format!(
                "{} is torn at byte {}: {} of a write that was under way when the process ended",
                file_name(&torn.path),
                torn.offset,
                bytes_text(torn.bytes)
            );
            report.note("end", &text);
            report.means("normal: nobody was answered for it; a start cuts it off");
            report.at(torn.path.display().to_string(), Some(torn.offset), Some(found.open.0));
        }
        (_, Some(_)) => report.note("end", "an instance is writing: the newest write is left out"),
        (None, None) => {}
    }
    if found.open.1 > 0 {
        let text =
            format!("epoch {} is open, {} so far", found.open.0, counted(found.open.1, "message"));
        report.note("open epoch", &text);
        report.means("normal: a start seals it and replays it");
    }
}

/// What a start does, as far as this folder decides it: whether tables belong to it is asked of
/// them.
fn recovery(scene: &Scene<'_>, report: &mut Report, found: &Examined, known: Known) {
    let Known { newest, told } = known;
    let from: Epoch = newest + 1;
    let first = found.first_epoch().unwrap_or(from);
    if found.stops_at(from).next().is_some() {
        let salvage = scene.salvage();
        report.fail("recovery", "not possible: see the damage above", &[&salvage]);
    } else if first > from {
        let salvage = scene.salvage();
        let text = format!(
            "not possible: epoch {from} has to be replayed, but the journal starts at epoch {first}"
        );
        report.fail("recovery", &text, &["restore a newer checkpoint from a copy", &salvage]);
        report.means(match newest {
            0 => "no checkpoint is whole, and the journal was trimmed after the one that is gone"
                .to_owned(),
            _ => "the checkpoints that the journal was trimmed after are gone".to_owned(),
        });
    } else if found.open.0 < from && scene.running.is_none() && found.first_epoch().is_some() {
        let text = format!(
            "not possible: the journal ends at epoch {}, the newest checkpoint is of epoch \
             {newest}",
            found.open.0.saturating_sub(1)
        );
        let salvage = scene.salvage();
        report.fail("recovery", &text, &["restore the missing segments from a copy", &salvage]);
        report.means("they do not belong together, or the newest segments are gone");
    } else if found.last_epoch() < told && scene.running.is_none() && found.first_epoch().is_some()
    {
        let text = format!(
            "not possible: the journal ends at epoch {}, the outbox or the sessions have epoch \
             {told} already",
            found.last_epoch()
        );
        let salvage = scene.salvage();
        report.fail("recovery", &text, &["restore the missing segments from a copy", &salvage]);
        report.means("a start refuses: they do not belong together, or segments are gone");
    } else {
        let replay = found.open.0.saturating_sub(from);
        let text = match newest {
            0 => format!("possible here: a start replays everything, {}", counted(replay, "epoch")),
            _ => format!(
                "possible here: a start restores epoch {newest} and replays {}",
                counted(replay, "epoch")
            ),
        };
        report.ok("recovery", &text);
        if scene.running.is_none() {
            report.means(format!(
                "unless tables have epochs after {}, or less than they had at the checkpoint: then \
                 it refuses; `tidegate doctor tables --data {}` looks at them",
                found.last_epoch(),
                scene.data.display()
            ));
        }
    }
}

fn clock(scene: &Scene<'_>, report: &mut Report, found: &Examined) {
    let now_us = scene.clock.now_us();
    let behind_us = found.last_time_us - now_us;
    if found.last_time_us == 0 {
        return;
    }
    if behind_us > CLOCK_BEHIND_US {
        let text = format!(
            "this machine's clock is {:.1} s behind the newest tick of the journal",
            behind_us as f64 / 1e6
        );
        report.warn(
            "clock",
            &text,
            &["set the clock (chronyc makestep, timedatectl set-ntp true)"],
        );
        report.means("until it has caught up, each epoch counts as 1 us: windows close late");
    } else {
        report.ok("clock", "not behind the newest tick of the journal");
    }
}
