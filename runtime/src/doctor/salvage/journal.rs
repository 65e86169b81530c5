//! The journal's part of a salvage: a new one of what is whole, which fits checkpoints and tables.

use std::fs;

use tidegate_operators::Epoch;

use super::super::data::lost_text;
use super::super::report::Report;
use super::super::{OnProgress, bytes_text, counted, file_name};
use super::{SalvageOptions, Saved, TOLD_MAX};
use crate::checkpoint::CheckpointStore;
use crate::checkpoint::manifest::{FORMAT, Manifest};
use crate::journal::examine::{Damage, Examined, Lost, Mode, Watch, examine};
use crate::journal::salvage::{Range, salvage as salvage_journal};

/// How far the other parts are.
pub(super) struct Known {
    /// Epoch of the newest checkpoint, 0 without one, and the time of its tick.
    pub(super) state: (Epoch, i64),
    /// The newest epoch that a table has.
    pub(super) tables: Epoch,
    /// The newest epoch whose alerts are in the outbox or with sessions.
    pub(super) told: Epoch,
}

/// Leaves the checkpoints out if the journal has everything from the first epoch on: then tables
/// that are gone are made again, all of them. Otherwise says what they will not have.
pub(super) fn begin_at_first(
    options: &SalvageOptions,
    report: &mut Report,
    saved: Saved,
) -> anyhow::Result<Saved> {
    let dir = options.data.join("journal");
    let (newest, _) = saved.newest();
    let found = match dir.is_dir() {
        true => {
            let watch = Watch { progress: &|_, _| {}, visit: &mut |_, _| Ok(()), sources: &[] };
            examine(&dir, Mode::Stopped, watch)?
        }
        false => Examined::default(),
    };
    if newest == 0 || found.first_epoch() != Some(1) || !found.damages.is_empty() {
        report.means(format!("rows of epochs up to {newest} are lost with them"));
        return Ok(saved);
    }
    fs::remove_dir_all(options.to.join("checkpoints"))?;
    report.means("the journal has all epochs: they get all their rows again, from the first on");
    report.note("state", "left out: it is made again with the rows");
    Ok(Saved::default())
}

/// Writes a journal of what is whole, which fits the other parts.
pub(super) fn save(
    options: &SalvageOptions,
    report: &mut Report,
    known: &Known,
    progress: OnProgress<'_>,
) -> anyhow::Result<()> {
    let dir = options.data.join("journal");
    let (newest, time_us) = known.state;
    let through = newest.max(known.tables).max(known.told);
    if !dir.is_dir() && through == 0 {
        return Ok(());
    }
    let to = options.to.join("journal");
    fs::create_dir_all(&to)?;
    let range = Range { from: (newest > 0).then_some(newest + 1), through, time_us };
    let told = |done, total| progress("journal", done, total);
    let mut saved = salvage_journal(&dir, &to, range, &told)?;
    let ends = ends(&saved.found, newest, through);
    if let Some(torn) = saved.found.torn.clone() {
        let at_end = |d: &Damage| d.path == torn.path && d.offset == Some(torn.offset);
        saved.found.damages.retain(|d| !at_end(d));
    }
    let (first, last) = saved.epochs;
    if newest == 0 && first > 1 {
        // A start without a checkpoint wants epoch 1: this one says that state begins here.
        let empty = Manifest { format: FORMAT, epoch: first - 1, ..Manifest::default() };
        CheckpointStore::open(options.to.join("checkpoints"))?.publish(&empty)?;
        report.warn("state", &format!("there is none: it begins empty at epoch {first}"), &[]);
        report.means("windows, alerts and detectors know nothing of what was before");
    }
    let text = format!(
        "{} in epochs {first} to {last}, {}",
        counted(saved.messages, "message"),
        bytes_text(saved.found.bytes())
    );
    let places: Vec<String> = saved
        .found
        .damages
        .iter()
        .take(TOLD_MAX)
        .map(place_of)
        .chain(ends.iter().cloned())
        .collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let nothing = ends.is_empty() && saved.found.damages.iter().all(|d| d.lost == Lost::Exactly(0));
    match (places.is_empty(), nothing) {
        (true, _) => report.ok("journal", &text),
        (false, true) => report.warn("journal", &text, &places),
        (false, false) => report.fail("journal", &text, &places),
    }
    let more = saved.found.damages.len().saturating_sub(TOLD_MAX);
    if more > 0 {
        let are = if more == 1 { "is" } else { "are" };
        report.means(format!("{} {are} damaged", counted(more as u64, "more place")));
    } else if saved.made_up > 0 {
        report.means(format!(
            "{} ended without a tick that could be read: each got one",
            counted(saved.made_up, "epoch")
        ));
    }
    Ok(())
}

fn place_of(damage: &Damage) -> String {
    let place = match damage.offset {
        Some(offset) => format!("{} bytes {offset} to {}", file_name(&damage.path), damage.until),
        None => "the folder".into(),
    };
    let ((from, through), lost) = (damage.epochs, lost_text(damage.lost));
    format!("left out: {place}, epochs {from} to {through}, {lost}: {}", damage.reason)
}

/// What is gone before the first segment that is there, and behind the last.
fn ends(found: &Examined, newest: Epoch, through: Epoch) -> Vec<String> {
    let mut gone = Vec::new();
    let next = match found.open {
        (0, _) => newest + 1,
        (epoch, messages) => epoch + u64::from(messages > 0),
    };
    if let Some(first) = found.first_epoch().filter(|first| *first > newest + 1 && newest > 0) {
        gone.push(format!("lost: epochs {} to {} are in no segment", newest + 1, first - 1));
    }
    if next <= through {
        gone.push(format!(
            "lost: epochs {next} to {through} are in no segment; tables have rows of them, state \
             does not"
        ));
    }
    gone
}
