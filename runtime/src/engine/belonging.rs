//! Whether journal, checkpoint, outbox and tables belong together: each of them says which epochs
//! it has, and a start that goes on from others would lose rows, or take new ones for repetitions.
//!
//! Refused is ([`Belonging::check`]):
//! - a journal that ends before what tables, outbox or sessions have of it: its new epochs would
//!   bear the numbers of those that are gone. It is an older copy, or its newest segments are gone;
//! - a table that is not there, or is older than the newest checkpoint says: the journal need not
//!   have what it lacks. It is not mounted, it is another place, or an older copy.
//!
//! Both are looked at before this process says that it is the one who writes the tables
//! ([`super::fence`]): whoever is refused must not have ended the one that is right. And again
//! after that, since the other one may have gone on until then.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use futures::{StreamExt as _, TryStreamExt as _};
use tidegate_operators::Epoch;
use tidegate_operators::spec::TableSpec;
use tidegate_sql::{Store, TableWriter, committed_epoch};

use super::checkpoints::{Restored, TablesAt};
use crate::journal::{DurableError, Journal};

/// Tables that are asked at the same time.
const ASKED_MAX: usize = 8;

/// What a data folder says of its epochs.
#[derive(Debug)]
pub(super) struct Belonging {
    data: PathBuf,
    /// Where its tables are.
    url: String,
    /// The last epoch of the journal.
    sealed: Epoch,
    /// The newest epoch whose alerts anybody may have: outbox or sessions.
    told: Epoch,
    /// The epoch of the checkpoint that is gone on from, and how far tables were then.
    checkpoint: Epoch,
    were: TablesAt,
}

/// The newest epoch that each table has; `None`: there is no such table.
pub(super) type Found = BTreeMap<String, Option<Epoch>>;

impl Belonging {
    pub(super) fn of(
        (data, store): (&Path, &Store),
        journal: &Journal,
        told: Epoch,
        restored: &Restored,
    ) -> Self {
        Self {
            data: data.to_owned(),
            url: store.url().to_owned(),
            sealed: journal.stats().sealed_epoch,
            told,
            checkpoint: restored.epoch,
            were: restored.tables.clone(),
        }
    }

    /// Refuses what does not belong together.
    pub(super) fn check(&self, found: &Found) -> Result<(), DurableError> {
        self.journal_goes_on(found)?;
        self.tables_are_there(found)
    }

    fn journal_goes_on(&self, found: &Found) -> Result<(), DurableError> {
        let (sealed, told) = (self.sealed, self.told);
        let tables = found.values().copied().flatten().max().unwrap_or(0);
        let alerts = ("outbox or the sessions", told);
        let (what, epoch) = if tables >= told { ("tables", tables) } else { alerts };
        if epoch <= sealed {
            return Ok(());
        }
        let reason = format!(
            "the journal ends at epoch {sealed}, the {what} have epoch {epoch} already: they do \
             not belong together, or its newest segments are gone. {} makes a folder that goes on \
             behind them",
            self.salvage()
        );
        Err(DurableError::Mismatch { path: self.data.join("journal"), reason })
    }

    fn tables_are_there(&self, found: &Found) -> Result<(), DurableError> {
        let gone = |name: &&String| matches!(found.get(*name), Some(None));
        let had = self.were.through.iter().filter(|(_, epoch)| **epoch > 0).map(|(name, _)| name);
        let gone: Vec<&str> = had.filter(gone).map(String::as_str).collect();
        let older = self.were.logged.iter().filter_map(|(name, was)| match found.get(name) {
            Some(Some(is)) if is < was => Some(format!("{name} has epoch {is} and had {was}")),
            _ => None,
        });
        let older: Vec<String> = older.collect();
        let (problem, mend) = match (gone.is_empty(), older.is_empty()) {
            (true, true) => return Ok(()),
            (false, _) => {
                let are = if gone.len() == 1 { "is" } else { "are" };
                let problem = format!("{} {are} not there", gone.join(", "));
                (problem, "Mount or restore them, or say where they are with --tables")
            }
            (true, false) => {
                let problem = format!("they are older than their checkpoint: {}", older.join(", "));
                (problem, "Restore the newest ones, or say where they are with --tables")
            }
        };
        let reason = format!(
            "{problem} (the checkpoint of epoch {} relies on it). {mend}. To go on without what is \
             missing there, on purpose: {} makes a folder that takes the tables as they are",
            self.checkpoint,
            self.salvage()
        );
        Err(DurableError::Mismatch { path: PathBuf::from(&self.url), reason })
    }

    fn salvage(&self) -> impl Display + use<> {
        let data = self.data.display();
        format!("`tidegate doctor data --data {data} --salvage NEW_FOLDER`")
    }
}

/// What the tables have of an instance, without writing anything there.
///
/// # Errors
/// Those of the store.
pub(super) async fn look(
    store: &Store,
    specs: &[TableSpec],
    instance: &str,
) -> tidegate_sql::Result<Found> {
    let names = specs.iter().map(|spec| (spec.namespace.clone(), spec.name.clone()));
    let ask = |(namespace, table): (String, String)| async move {
        let name = format!("{namespace}.{table}");
        let app = format!("{instance}/{name}");
        let epoch = committed_epoch(store, (&namespace, &table), &app).await?;
        Ok((name, epoch))
    };
    let names: Vec<_> = names.collect();
    futures::stream::iter(names.into_iter().map(ask)).buffered(ASKED_MAX).try_collect().await
}

/// Refuses tables that do not take the rows of these pipelines, without writing anything there.
///
/// # Errors
/// What they do not take, or those of the store.
pub(super) async fn take(store: &Store, specs: &[TableSpec]) -> tidegate_sql::Result<()> {
    let all = futures::stream::iter(specs.iter().map(|spec| TableWriter::takes(store, spec)));
    all.buffered(ASKED_MAX).try_collect().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn belonging(sealed: Epoch, told: Epoch, were: &[(&str, Epoch, Epoch)]) -> Belonging {
        let were = were.iter().map(|(name, through, logged)| ((*name).into(), *through, *logged));
        let (data, url) = (PathBuf::from("/d"), "s3://plant".to_owned());
        Belonging { data, url, sealed, told, checkpoint: 40, were: were.collect() }
    }

    fn check(of: &Belonging, found: &[(&str, Option<Epoch>)]) -> Result<(), String> {
        let found = found.iter().map(|(name, epoch)| ((*name).to_owned(), *epoch)).collect();
        of.check(&found).map_err(|error| error.to_string())
    }

    #[test]
    fn what_goes_on_from_other_epochs_is_refused() {
        let of = belonging(50, 50, &[("p.a", 40, 40), ("p.b", 40, 7), ("p.new", 0, 0)]);
        // As they were, and later: what the replay makes again is left out.
        check(&of, &[("p.a", Some(40)), ("p.b", Some(7)), ("p.new", None)]).unwrap();
        check(&of, &[("p.a", Some(50)), ("p.b", Some(7)), ("p.later", None)]).unwrap();
        // A table that the pipelines have no more may be gone.
        check(&of, &[("p.b", Some(7))]).unwrap();
        let ahead = check(&of, &[("p.a", Some(51)), ("p.b", Some(7))]).unwrap_err();
        assert!(ahead.contains("/d/journal: the journal ends at epoch 50, the tables"), "{ahead}");
        let told = check(&belonging(50, 51, &[]), &[]).unwrap_err();
        assert!(told.contains("the outbox or the sessions have epoch 51"), "{told}");
        let gone = check(&of, &[("p.a", None), ("p.b", None)]).unwrap_err();
        assert!(gone.contains("s3://plant: p.a, p.b are not there"), "{gone}");
        assert!(gone.contains("--tables") && gone.contains("--salvage"), "{gone}");
        let older = check(&of, &[("p.a", Some(39)), ("p.b", Some(7))]).unwrap_err();
        assert!(
            older.contains("p.a has epoch 39 and had 40 (the checkpoint of epoch 40"),
            "{older}"
        );
    }
}
