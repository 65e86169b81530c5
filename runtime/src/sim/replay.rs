//! The journal decides: read from its first epoch to its last by a fresh process, with another
//! number of workers and nothing else, it gives the tables that the long and troubled run gave.

use std::rc::Rc;
use std::sync::Arc;

use tidegate_sql::Store;

use super::disk::SimDisk;
use super::marks::Marks;
use super::net::runtime;
use super::objects::SimObjects;
use super::tables::{self, Row, Tables};
use super::trace::Trace;
use super::world::{Sim, folder};
use crate::engine::stepped::{Setup, Stepped, small_journal};
use crate::fuzz::Rng;

/// Compares all tables.
pub(super) fn check(sim: &mut Sim, tables: Tables) {
    match replayed(sim) {
        Ok(mut replayed) => {
            for (table, mut rows) in tables {
                let mut fresh = replayed.remove(&table).unwrap_or_default();
                rows.sort();
                fresh.sort();
                if let Some(difference) = difference(&rows, &fresh) {
                    sim.trace.failure(format!("{table}: a replay differs: {difference}"));
                }
            }
        }
        Err(error) => sim.trace.failure(format!("the journal cannot be replayed: {error:#}")),
    }
}

fn difference(rows: &[Row], fresh: &[Row]) -> Option<String> {
    let longest = rows.len().max(fresh.len());
    let at = (0..longest).find(|at| rows.get(*at) != fresh.get(*at))?;
    Some(format!(
        "{} rows and {} rows, first {:?} and {:?}",
        rows.len(),
        fresh.len(),
        rows.get(at),
        fresh.get(at)
    ))
}

fn replayed(sim: &mut Sim) -> anyhow::Result<Tables> {
    let folder = folder();
    let quiet = Trace::default();
    let marks = Marks::new(quiet.clone());
    let disk = SimDisk::new(folder.path(), Rng::new(1), quiet.clone(), marks);
    let objects = SimObjects::new(Rng::new(1), disk.clone(), quiet);
    let store = Store::from_objects(Arc::new(objects.clone()), "sim://fresh");
    for (path, data) in sim.disk.whole_journal() {
        let name = path.file_name().expect("a segment has a name");
        disk.put(&folder.path().join("journal").join(name), data);
    }
    let engine = Stepped::start(Setup {
        plan: &sim.plan,
        storage: Arc::new(disk),
        data: folder.path(),
        store: &store,
        workers: 1 + sim.rng.below(4),
        journal: small_journal(folder.path(), 1 << 20, 4 << 20),
        runtime: Rc::new(runtime()),
    })?;
    engine.shutdown(true)?;
    tables::all(&objects).map_err(anyhow::Error::msg)
}
