//! The journal decides: read from its first epoch to its last by a fresh process, with another
//! number of workers and nothing else, it gives the tables, the notifications and the state that
//! the long and troubled run gave: the same rows, and the same bytes of state.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::RecordBatch;
use tidegate_sql::Store;

use super::disk::SimDisk;
use super::net::runtime;
use super::objects::SimObjects;
use super::oracle::Received;
use super::tables::{self, Row, Tables};
use super::trace::Trace;
use super::world::{Sim, folder};
use crate::checkpoint::CheckpointStore;
use crate::engine::stepped::{Setup, Stepped, small_journal};
use crate::fuzz::Rng;
use crate::journal::Storage;
use crate::outbox::Outbox;

/// Rows of state by operator and key group.
type State = BTreeMap<(String, u16), RecordBatch>;

/// What a run has made of a journal when it was stopped, its windows still open.
struct Made {
    tables: Tables,
    state: State,
    notifications: Received,
}

/// Compares everything, after the run was stopped; `received` is what it has sent or would send.
pub(super) fn check(sim: &mut Sim, received: &Received) {
    let made = made(&sim.objects, &sim.disk, sim.data.path());
    match made.and_then(|made| Ok((made, replayed(sim)?))) {
        Ok((made, replayed)) => {
            let rows = |rows: &RecordBatch| rows.num_rows() as u64;
            sim.counts.state_rows += made.state.values().map(rows).sum::<u64>();
            let made = Made { notifications: received.clone(), ..made };
            if let Err(why) = compare(made, replayed) {
                sim.trace.failure(format!("a replay differs: {why}"));
            }
        }
        Err(error) => sim.trace.failure(format!("the journal cannot be replayed: {error:#}")),
    }
}

fn compare(made: Made, mut replayed: Made) -> Result<(), String> {
    for (table, mut rows) in made.tables {
        let mut fresh = replayed.tables.remove(&table).unwrap_or_default();
        rows.sort();
        fresh.sort();
        if let Some(difference) = difference(&rows, &fresh) {
            return Err(format!("{table}: {difference}"));
        }
    }
    for ((operator, group), rows) in &made.state {
        match replayed.state.remove(&(operator.clone(), *group)) {
            Some(fresh) if fresh == *rows => {}
            fresh => return Err(format!("state of {operator}: {rows:?} and {fresh:?}")),
        }
    }
    match (replayed.state.first_key_value(), made.notifications == replayed.notifications) {
        (Some(only), _) => Err(format!("only there: state {only:?}")),
        (None, true) => Ok(()),
        (None, false) => {
            let (one, other) = (made.notifications, replayed.notifications);
            Err(format!("notifications {:?} and {:?}", one.keys(), other.keys()))
        }
    }
}

/// What lies on disk and in the store.
fn made(objects: &SimObjects, disk: &SimDisk, data: &Path) -> anyhow::Result<Made> {
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let store = CheckpointStore::open_on(Arc::clone(&storage), data.join("checkpoints"))?;
    let checkpoint = store.latest()?.ok_or_else(|| anyhow::anyhow!("there is no checkpoint"))?;
    let mut state = State::new();
    for (operator, saved) in checkpoint.state {
        let mut at = 0;
        for (group, rows) in saved.groups.into_iter().map(|(group, rows)| (group, rows as usize)) {
            let slice = saved.rows.slice(at, rows);
            at += rows;
            let before = (rows > 0).then(|| state.insert((operator.clone(), group), slice));
            anyhow::ensure!(before.flatten().is_none(), "group {group} of {operator} twice");
        }
    }
    let outbox = Outbox::open_on(storage, data.join("outbox"))?;
    let tables = tables::all(objects).map_err(anyhow::Error::msg)?;
    Ok(Made { tables, state, notifications: pending(&outbox) })
}

/// What an outbox that was just opened has to send.
pub(super) fn pending(outbox: &Outbox) -> Received {
    let targets = outbox.fresh_targets();
    let all = targets.iter().flat_map(|target| outbox.fetch(target));
    all.map(|item| (item.id.clone(), item.body.to_vec())).collect()
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

fn replayed(sim: &mut Sim) -> anyhow::Result<Made> {
    let folder = folder();
    let disk = SimDisk::quiet(folder.path(), Rng::new(1));
    // No time passes: a key must not fall silent only because this takes a while.
    disk.set_sync_us_max(0);
    let objects = SimObjects::new(Rng::new(1), disk.clone(), Trace::default());
    let store = Store::from_objects(Arc::new(objects.clone()), "sim://fresh");
    for (path, data) in sim.disk.whole_journal() {
        let name = path.file_name().expect("a segment has a name");
        disk.put(&folder.path().join("journal").join(name), data);
    }
    let engine = Stepped::start(Setup {
        plan: &sim.plan,
        storage: Arc::new(disk.clone()),
        data: folder.path(),
        store: &store,
        workers: 1 + sim.rng.below(4),
        journal: small_journal(folder.path(), 1 << 20, 4 << 20),
        runtime: Rc::new(runtime()),
    })?;
    engine.shutdown(false)?;
    made(&objects, &disk, folder.path())
}
