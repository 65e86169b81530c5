//! The data folder itself: that it is there, which instance it belongs to, where its tables are.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tidegate_operators::Epoch;
use tidegate_pipelines::Plan;
use tidegate_sql::{Store, TABLES_URL_FILE};

use super::options::EngineOptions;
use crate::clock::Clock;
use crate::journal::{self, DurableError, Journal, JournalOptions, Replay, holder};
use crate::outbox::Outbox;

/// Name of the file with the name of the instance.
pub(crate) const INSTANCE: &str = "instance";

/// The part of the memory budget that messages may take which wait for the journal, and those that
/// wait for the dataflow; and the least that makes sense.
const MEMORY_PARTS: u64 = 32;
const MEMORY_PART_MIN: usize = 1 << 20;

/// Creates the data folder.
pub(super) fn create_dir(data: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(data)
        .with_context(|| format!("cannot create the data folder {}", data.display()))
}

/// Refuses a folder that another process works on. Its locks would do so too, but later: another
/// instance with the same pipelines has the ports as well, and those would be blamed.
pub(super) fn refuse_second(data: &Path) -> Result<(), DurableError> {
    match holder::running(data) {
        Some((path, process)) => Err(DurableError::InUse { path, process }),
        None => Ok(()),
    }
}

/// What ends the process: after a failed sync nothing that the kernel says can be trusted.
fn end_at_once(what: &'static str) -> Arc<dyn Fn(&str) + Send + Sync> {
    Arc::new(move |why| {
        eprintln!("tidegate: {what} failed, ending at once: {why}");
        std::process::abort();
    })
}

/// The tables at `url`.
pub(super) fn open_tables(url: &str) -> anyhow::Result<Store> {
    let store = Store::open(url)?;
    store.on_failed_sync(end_at_once("a folder of the tables"));
    Ok(store)
}

/// The journal of the plan's sources, and what it has from an epoch on.
pub(super) fn open_journal(
    plan: &Plan,
    options: &EngineOptions,
    clock: Clock,
    from_epoch: Epoch,
) -> anyhow::Result<(Arc<Journal>, Replay)> {
    let names: Vec<String> = plan.sources.iter().map(|s| s.name.clone()).collect();
    let mut journal_options = JournalOptions::new(options.data.join("journal"));
    journal_options.budget_bytes = options.journal_bytes_max;
    journal_options.keep = options.journal_keep;
    if options.memory_bytes_max > 0 {
        let part = usize::try_from(options.memory_bytes_max / MEMORY_PARTS).unwrap_or(usize::MAX);
        let part = part.max(MEMORY_PART_MIN);
        journal_options.feed_bytes_max = journal_options.feed_bytes_max.min(part);
        let queue = u32::try_from(part).unwrap_or(u32::MAX);
        journal_options.queue_bytes_max = journal_options.queue_bytes_max.min(queue);
    }
    journal_options.disk_reserve_bytes = options.disk_reserve_bytes;
    journal_options.on_fatal = Some(end_at_once("the journal"));
    let storage = Arc::clone(&options.journal_storage);
    let (journal, replay) = Journal::open_on(storage, journal_options, clock, &names, from_epoch)?;
    Ok((Arc::new(journal), replay))
}

/// The outbox.
pub(super) fn open_outbox(options: &EngineOptions) -> Result<Arc<Outbox>, DurableError> {
    let outbox = Outbox::open(options.data.join("outbox"))?;
    Ok(Arc::new(outbox.limited(options.outbox_max)))
}

/// Leaves a note for `tidegate sql` if the tables are not in the data folder.
pub(super) fn note_tables(data: &Path, elsewhere: Option<&Store>) -> std::io::Result<()> {
    let note = data.join(TABLES_URL_FILE);
    match elsewhere {
        Some(store) => {
            let folder = store.folder().map(std::path::absolute).transpose()?;
            let url = folder.map_or_else(|| store.url().into(), |f| f.display().to_string());
            // Also where there is no room for another one.
            let is_noted = std::fs::read_to_string(&note).is_ok_and(|noted| noted == url);
            if is_noted { Ok(()) } else { std::fs::write(note, url) }
        }
        None => match std::fs::remove_file(note) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        },
    }
}

/// Names this data folder for the tables: their commits say "epoch N of this journal", so a new
/// journal must not be taken for the old one, nor the old one for a new one.
///
/// # Errors
/// Those of the file system, and a folder that has a journal and has lost its name.
pub(super) fn instance_id(data: &Path) -> anyhow::Result<String> {
    if let Some(id) = named(data)? {
        return Ok(id);
    }
    let path = data.join(INSTANCE);
    let (has_journal, is_there) =
        (journal::has_segments(&data.join("journal"))?, path.try_exists()?);
    // Whoever has either has a name by now: somebody may have made them since it was looked for.
    if let Some(id) = named(data)? {
        return Ok(id);
    }
    let reason = match (has_journal, is_there) {
        (false, false) => return name_anew(data),
        (false, true) => "the file is empty, and there is no journal: remove it".to_owned(),
        (true, _) => format!(
            "the file is missing or empty, but there is a journal. It holds the name under which \
             the tables know what they have: with another one, rows would be written a second \
             time. Bring it back from a copy; without one, `tidegate doctor data --data {} \
             --salvage NEW_FOLDER` makes a folder with another name, and says what that means",
            data.display()
        ),
    };
    Err(DurableError::Mismatch { path, reason }.into())
}

/// The name of a data folder, if it has one.
pub(crate) fn named(data: &Path) -> anyhow::Result<Option<String>> {
    let path = data.join(INSTANCE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|id| !id.is_empty())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(format!("cannot read {}", path.display())),
    }
}

/// Gives a data folder a name of its own. If others do the same at this moment, the first one's
/// holds, for all of them.
///
/// # Errors
/// Those of the file system.
pub(crate) fn name_anew(data: &Path) -> anyhow::Result<String> {
    let mut bytes = [0u8; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    let id: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let (path, temporary) = (data.join(INSTANCE), data.join(format!("{INSTANCE}.{id}")));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create_new(&temporary)?;
        std::io::Write::write_all(&mut file, id.as_bytes())?;
        file.sync_all()?;
        match tidegate_sql::rename_new(&temporary, &path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&temporary)?;
            }
            renamed => renamed?,
        }
        std::fs::File::open(data)?.sync_all()
    };
    write().with_context(|| format!("cannot write into the data folder {}", data.display()))?;
    named(data)?.with_context(|| format!("{} has no name", data.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn whoever_starts_first_names_the_folder_for_all() {
        for _ in 0..50 {
            let dir = tempfile::tempdir().unwrap();
            let barrier = std::sync::Barrier::new(4);
            let ids: BTreeSet<String> = std::thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    instance_id(dir.path()).unwrap()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(ids.len(), 1, "{ids:?}");
            assert!(ids.contains(&instance_id(dir.path()).unwrap()));
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
        }
    }

    #[test]
    fn a_folder_that_has_lost_its_name_gets_no_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(INSTANCE);
        std::fs::write(&path, "").unwrap();
        let error = instance_id(dir.path()).unwrap_err().to_string();
        assert!(error.contains("remove it"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let id = instance_id(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = instance_id(dir.path()).unwrap();
        assert_ne!(other, id, "nothing was taken in yet");
        std::fs::write(dir.path().join("journal/journal-000000000001.log"), "").unwrap();
        assert_eq!(instance_id(dir.path()).unwrap(), other);
        for is_empty in [true, false] {
            match is_empty {
                true => std::fs::write(&path, " \n").unwrap(),
                false => std::fs::remove_file(&path).unwrap(),
            }
            let error = instance_id(dir.path()).unwrap_err().to_string();
            assert!(error.contains("missing or empty") && error.contains("--salvage"), "{error}");
        }
    }
}
