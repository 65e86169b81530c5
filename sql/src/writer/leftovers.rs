//! What a killed process left beside a table, on a local file system: staged files of writes that
//! never ended, and data files that no log entry names.
//!
//! A data file may go when nobody can commit it any more. What was found when the table was opened
//! and holds epochs after the committed one was not committed then; once this writer has committed
//! those epochs itself, a process that still has the file at hand is refused by the log
//! ([`Error::Fenced`](crate::Error::Fenced)). Before that it stays: that process may be alive.
//! Files of other applications, and files that the log named once, are none of this.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tidegate_operators::Epoch;

use crate::delta::action::Add;
use crate::delta::path;

/// Age from which a staged file that may be another writer's is taken for a dead one's. A write
/// takes seconds.
const STAGED_AGE_MIN: Duration = Duration::from_secs(24 * 3600);

/// A data file of ours of epochs that were not committed when it was found.
#[derive(Debug)]
struct Leftover {
    file: PathBuf,
    first: Epoch,
}

/// What was found of an application's.
#[derive(Debug)]
pub(super) struct Leftovers {
    /// As the names of its data files have it.
    word: String,
    found: Vec<Leftover>,
}

impl Leftovers {
    /// Of the application `app_id`.
    pub(super) fn of(app_id: &str) -> Self {
        Self { word: path::file_word(app_id), found: Vec::new() }
    }

    /// Looks at a file of the table's folder. Staged ones are removed at once.
    pub(super) fn see(&mut self, file: &Path) {
        let Some(name) = file.file_name().and_then(|name| name.to_str()) else { return };
        let staged = is_staged(name).then(|| name.rsplit_once('#')).flatten();
        let whole = staged.map_or(name, |(whole, _)| whole);
        let ours = path::part_of(whole).filter(|part| part.0 == self.word);
        match (staged, ours) {
            (Some(_), ours) if ours.is_some() || is_old(file) => remove(file),
            (None, Some((_, first, ..))) => {
                self.found.push(Leftover { file: file.to_owned(), first });
            }
            _ => {}
        }
    }

    /// Leaves those out whose epochs are committed up to `committed`: the log names them, or has
    /// named them.
    pub(super) fn after(mut self, committed: Epoch) -> Self {
        self.found.retain(|leftover| leftover.first > committed);
        // Nearly all of the table's files are gone from it.
        self.found.shrink_to_fit();
        self
    }

    /// Removes what holds epochs up to `through`, all of which are committed now, and is not among
    /// the files that were committed.
    pub(super) fn remove(&mut self, through: Epoch, committed: &[Add]) {
        // Names of ours are of plain characters: in the log they are as in the folder.
        let is_committed = |file: &Path| {
            let name = file.file_name().and_then(|name| name.to_str());
            committed.iter().any(|add| add.path.rsplit('/').next() == name)
        };
        let over = self.found.extract_if(.., |leftover| leftover.first <= through);
        over.filter(|l| !is_committed(&l.file)).for_each(|l| remove(&l.file));
    }
}

/// Whether a write that is under way, or was, calls its file so: see [`crate::Store`].
fn is_staged(name: &str) -> bool {
    let number = name.rsplit_once('#').map(|(_, number)| number);
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn is_old(file: &Path) -> bool {
    let modified = fs::metadata(file).and_then(|meta| meta.modified());
    let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age >= STAGED_AGE_MIN)
}

fn remove(file: &Path) {
    match fs::remove_file(file) {
        Ok(()) => tracing::info!(file = %file.display(), "removed what a killed process left"),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot remove what was left");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{local, many, spec};
    use crate::{Store, TableWriter};

    /// Names of all files below `plant/t` that are not of its log, sorted.
    fn files(folder: &Path) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![folder.join("plant/t")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => names.push(entry.file_name().into_string().unwrap()),
                }
            }
        }
        names.retain(|name| !name.ends_with(".json"));
        names.sort();
        names
    }

    async fn open(store: &Store, app: &str) -> TableWriter {
        TableWriter::open(store, &spec("t", &many(0, 1)), app.to_owned()).await.unwrap()
    }

    async fn commit(writer: &mut TableWriter, epoch: u64) {
        writer.append(many(epoch as i64 * 10, 10), epoch).await.unwrap();
        writer.commit(epoch).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_process_uploaded_goes_when_its_epochs_are_committed() {
        let (folder, store) = local();
        let mut first = open(&store, "i/t").await;
        commit(&mut first, 1).await;
        let whole = files(folder.path());
        // Killed between upload and commit: epochs 2 and 3, and then 2 to 4.
        for through in [3, 4] {
            let mut killed = open(&store, "i/t").await;
            killed.append(many(20, 10), 2).await.unwrap();
            killed.append(many(30, 10 * through), 3).await.unwrap();
            killed.flush(through as u64).await.unwrap();
        }
        // Another application's, which may be alive.
        let mut other = open(&store, "j/t").await;
        other.append(many(0, 5), 1).await.unwrap();
        other.flush(1).await.unwrap();
        assert_eq!(files(folder.path()).len(), whole.len() + 3);
        let mut next = open(&store, "i/t").await;
        assert_eq!(files(folder.path()).len(), whole.len() + 3, "who has them may be alive");
        commit(&mut next, 2).await;
        let left = files(folder.path());
        assert_eq!(left.len(), whole.len() + 2, "the commit's, and the other's: {left:?}");
        commit(&mut next, 3).await;
        other.commit(1).await.unwrap();
        // A file that the log named once stays.
        let named: Vec<String> = files(folder.path());
        drop(open(&store, "i/t").await);
        commit(&mut open(&store, "i/t").await, 4).await;
        assert!(named.iter().all(|name| files(folder.path()).contains(name)));
        let sql = "SELECT count(*) FROM plant.t";
        assert_eq!(crate::testing::lines(&store, sql).await, ["45"]);
    }

    #[tokio::test]
    async fn the_same_upload_again_is_not_removed() {
        let (folder, store) = local();
        let mut killed = open(&store, "i/t").await;
        killed.append(many(0, 10), 1).await.unwrap();
        killed.flush(1).await.unwrap();
        let uploaded = files(folder.path());
        let mut next = open(&store, "i/t").await;
        next.append(many(0, 10), 1).await.unwrap();
        next.commit(1).await.unwrap();
        assert_eq!(files(folder.path()), uploaded);
        let sql = "SELECT count(*) FROM plant.t";
        assert_eq!(crate::testing::lines(&store, sql).await, ["10"]);
    }

    #[tokio::test]
    async fn staged_files_of_the_dead_are_removed() {
        let (folder, store) = local();
        commit(&mut open(&store, "i/t").await, 1).await;
        let table = folder.path().join("plant/t");
        let day = table.join("day=2026-01-01");
        let part = |app: &str| format!("part-{app}-0000000002-0000000002-0000-aa.parquet#1");
        let staged = [
            (day.join(part("i_t")), false, false),
            (day.join(part("j_t")), false, true),
            (day.join(part("k_t")), true, false),
            (table.join("_delta_log/00000000000000000002.json#1"), false, true),
            (table.join("_delta_log/00000000000000000003.json#12"), true, false),
            (day.join("of_others#x"), true, true),
        ];
        for (file, old, _) in &staged {
            let opened = fs::File::create(file).unwrap();
            if *old {
                let then = SystemTime::now() - 2 * STAGED_AGE_MIN;
                opened.set_modified(then).unwrap();
            }
        }
        drop(open(&store, "i/t").await);
        for (file, _, stays) in &staged {
            assert_eq!(file.exists(), *stays, "{}", file.display());
        }
    }
}
