//! How far an application has come with a table, read without a snapshot and without touching it.

use object_store::path::Path;

use crate::delta::{action::Action, checkpoint, log};
use crate::{Error, Result, Store, writer};

/// The newest epoch that `app_id` committed to the table `namespace.name`, 0 if none; `None` if
/// there is no such table. Reads commits from the newest one back to the first that says it, and
/// writes nothing: whoever asks may have no right to the table yet.
///
/// # Errors
/// The store fails or the log is damaged.
pub async fn committed_epoch(
    store: &Store,
    (namespace, name): (&str, &str),
    app_id: &str,
) -> Result<Option<u64>> {
    let table = writer::table_path(namespace, name)?;
    let listing = log::list(store, &table).await?;
    let Some(newest) = listing.newest.or(listing.checkpoint.as_ref().map(|c| c.0)) else {
        return Ok(None);
    };
    let from = listing.checkpoint.as_ref().map_or(0, |c| c.0 + 1);
    for version in (from..=newest).rev() {
        if let Some(epoch) = read(store, &table, version, newest).await?.and_then(of(app_id)) {
            return Ok(Some(epoch));
        }
    }
    for part in listing.checkpoint.into_iter().flat_map(|(_, parts)| parts) {
        if let Some(epoch) = of(app_id)(checkpoint::read(store, &part).await?) {
            return Ok(Some(epoch));
        }
    }
    Ok(Some(0))
}

/// A commit; the newest one may be torn on a local disk, and whoever writes the table removes it.
async fn read(
    store: &Store,
    table: &Path,
    version: u64,
    newest: u64,
) -> Result<Option<Vec<Action>>> {
    match log::read_commit(store, table, version).await {
        Err(Error::Log { .. }) if version == newest && store.folder().is_some() => Ok(None),
        read => read,
    }
}

/// The last epoch of `app_id` in some actions.
fn of(app_id: &str) -> impl Fn(Vec<Action>) -> Option<u64> {
    move |actions| {
        let mut txns = actions.into_iter().filter_map(|a| a.txn).filter(|t| t.app_id == app_id);
        txns.next_back().and_then(|txn| u64::try_from(txn.version).ok())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::TableWriter;
    use crate::testing::{local, many, spec};

    #[tokio::test]
    async fn it_is_what_a_writer_finds_and_nothing_is_made() {
        let (folder, store) = local();
        let asked = async |app: &str| committed_epoch(&store, ("plant", "t"), app).await.unwrap();
        assert_eq!(asked("a").await, None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let spec = spec("t", &many(0, 1));
        let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
        assert_eq!(asked("a").await, Some(0));
        let mut other = TableWriter::open(&store, &spec, "b".into()).await.unwrap();
        other.append(many(0, 1), 7).await.unwrap();
        other.commit(7).await.unwrap();
        // Through two checkpoints of the log, which b is only in.
        for epoch in 1..=220 {
            writer.append(many(epoch as i64, 1), epoch).await.unwrap();
            writer.commit(epoch).await.unwrap();
            if epoch % 55 == 0 {
                assert_eq!(asked("a").await, Some(epoch));
                assert_eq!((asked("b").await, asked("c").await), (Some(7), Some(0)));
            }
        }
        // A torn commit is none; the epoch before it counts.
        let logs = folder.path().join("plant/t/_delta_log");
        let newest = log::list(&store, &Path::from("plant/t")).await.unwrap().newest.unwrap();
        std::fs::write(logs.join(format!("{:020}.json", newest + 1)), "").unwrap();
        assert_eq!(asked("a").await, Some(220));
    }
}
