//! A writer on a local disk that forgets what was not synced, at each of its steps: what was
//! committed is there, what was not is there as a whole or not at all, and the next writer goes on
//! from it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::commit::CHECKPOINT_COMMITS;
use super::*;
use crate::DeltaTable;
use crate::store::folders::tests::Did;
use crate::testing::{DAY_US, START_US, lines, rows, spec};

/// Two more than a checkpoint of the log needs.
const EPOCHS: u64 = CHECKPOINT_COMMITS + 2;
/// Steps that are looked at: of the first commits, with the folders that they make, and of the
/// last ones, around the checkpoint.
const FIRST_STEPS: usize = 32;
const LAST_STEPS: usize = 22;
/// Power losses at each step: one after which nothing is left that was not synced, and some after
/// which a part of it is.
const LOSSES: u64 = 3;

/// Rows of an epoch; the first ones have a day of their own.
fn batch(epoch: Epoch) -> RecordBatch {
    let time = START_US + DAY_US * epoch.min(3) as i64;
    rows(&[("a", Some("hall"), time, epoch as f64), ("b", Some("hall"), time, epoch as f64)])
}

/// Number and sum of all rows through an epoch.
fn through(epoch: Epoch) -> String {
    format!("{} {}", 2 * epoch, epoch * (epoch + 1))
}

async fn found(store: &Store) -> String {
    let sql = "SELECT count(*), CAST(coalesce(sum(value), 0) AS BIGINT) FROM plant.t";
    lines(store, sql).await.join(",")
}

/// A store in memory, if there is such a folder: it is the model that forgets, and true syncs take
/// minutes.
fn quick() -> (tempfile::TempDir, Store) {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    (folder, store)
}

async fn open(store: &Store) -> TableWriter {
    TableWriter::open(store, &spec("t", &batch(1)), "a".into()).await.unwrap()
}

/// A file by what of it is durable, or a folder.
#[derive(Clone)]
enum Node {
    Folder,
    File(Vec<u8>),
}

/// What a disk has: each name with where it leads, now and after a power loss.
#[derive(Clone, Default)]
struct Disk {
    now: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    nodes: Vec<Node>,
}

impl Disk {
    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Does the same as was done below `root`.
    fn apply(&mut self, root: &Path, did: &Did) {
        let own = |path: &Path| path.strip_prefix(root).unwrap().to_owned();
        match did {
            Did::Folder(path) if !self.now.contains_key(&own(path)) => {
                let node = self.add(Node::Folder);
                self.now.insert(own(path), node);
            }
            Did::Folder(_) => {}
            Did::File(path) => {
                let node = self.add(Node::File(Vec::new()));
                self.now.insert(own(path), node);
            }
            Did::Content(path, bytes) => {
                self.nodes[self.now[&own(path)]] = Node::File(bytes.clone());
            }
            Did::Rename(from, to) => {
                let node = self.now.remove(&own(from)).unwrap();
                self.now.insert(own(to), node);
            }
            Did::Sync(folder) => {
                let within = |path: &PathBuf| path.parent() == Some(&own(folder));
                self.durable.retain(|path, _| !within(path));
                let names = self.now.iter().filter(|(path, _)| within(path));
                self.durable.extend(names.map(|(path, node)| (path.clone(), *node)));
            }
        }
    }

    /// Writes into `to` what is there when the power comes back; of each name that was not synced,
    /// `keeps` says whether it is as it was last all the same.
    fn lose_power(&self, to: &Path, mut keeps: impl FnMut() -> bool) -> Self {
        let names = self.now.keys().chain(self.durable.keys());
        let (mut left, all) = (BTreeMap::new(), std::collections::BTreeSet::from_iter(names));
        for path in all {
            let [now, durable] = [&self.now, &self.durable].map(|names| names.get(path).copied());
            let node = if now != durable && keeps() { now } else { durable };
            let has_parent =
                path.parent().is_none_or(|p| p == Path::new("") || left.contains_key(p));
            if let Some(node) = node.filter(|_| has_parent) {
                left.insert(path.clone(), node);
            }
        }
        let disk = Self { now: left.clone(), durable: left, nodes: self.nodes.clone() };
        disk.write(to);
        disk
    }

    /// Writes what there is now.
    fn write(&self, to: &Path) {
        for (path, node) in &self.now {
            match &self.nodes[*node] {
                Node::Folder => fs::create_dir(to.join(path)).unwrap(),
                Node::File(bytes) => fs::write(to.join(path), bytes).unwrap(),
            }
        }
    }
}

/// Every step of a writer that commits [`EPOCHS`] epochs, and how many were done when each of them
/// was committed.
struct Steps {
    root: PathBuf,
    all: Vec<Did>,
    committed: Vec<usize>,
}

impl Steps {
    async fn of_a_writer() -> Self {
        let (folder, store) = quick();
        store.probe().did();
        let mut writer = open(&store).await;
        let mut committed = Vec::new();
        for epoch in 1..=EPOCHS {
            writer.append(batch(epoch), epoch).await.unwrap();
            writer.commit(epoch).await.unwrap();
            committed.push(store.probe().did().len());
        }
        Self { root: folder.path().to_owned(), all: store.probe().did(), committed }
    }

    /// The disk after each number of steps that is looked at, with the epoch that was committed.
    fn looked_at(&self) -> impl Iterator<Item = (usize, Disk, Epoch)> + '_ {
        let mut disk = Disk::default();
        let looked_at =
            move |steps: &usize| *steps < FIRST_STEPS || *steps + LAST_STEPS > self.all.len();
        (0..=self.all.len()).filter_map(move |steps| {
            if let Some(last) = steps.checked_sub(1) {
                disk.apply(&self.root, &self.all[last]);
            }
            let committed = self.committed.iter().filter(|at| **at <= steps).count();
            looked_at(&steps).then(|| (steps, disk.clone(), committed as Epoch))
        })
    }
}

#[tokio::test]
async fn a_power_loss_at_any_step_takes_nothing_that_was_committed() {
    let steps = Steps::of_a_writer().await;
    for (at, disk, committed) in steps.looked_at() {
        for loss in 0..LOSSES {
            let (folder, store) = quick();
            let mut chance = at as u64 + loss * 1_000_003;
            disk.lose_power(folder.path(), || {
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                loss > 0 && chance >> 63 == 1
            });
            let shown = format!("power loss {loss} after step {at}, epoch {committed} committed");
            // Readers first: nobody has mended anything.
            let table = DeltaTable::new(&store, "plant", "t").unwrap();
            let seen = match table.snapshot().await.unwrap_or_else(|e| panic!("{shown}: {e}")) {
                Some(snapshot) => {
                    let seen = snapshot.committed("a");
                    assert_eq!(snapshot.rows(), Some(2 * seen), "{shown}");
                    seen
                }
                None => 0,
            };
            assert!((committed..=committed + 1).contains(&seen), "{shown}: {seen} is seen");
            let mut writer = open(&store).await;
            assert_eq!(writer.committed_epoch(), seen, "{shown}");
            writer.append(batch(seen + 1), seen + 1).await.unwrap();
            writer.commit(seen + 1).await.unwrap();
            assert_eq!(found(&store).await, through(seen + 1), "{shown}");
        }
    }
}

/// A killed process leaves what it has not synced, and a power loss takes it later.
#[tokio::test]
async fn what_a_killed_process_left_is_durable_before_anybody_counts_on_it() {
    let steps = Steps::of_a_writer().await;
    for (at, mut disk, committed) in steps.looked_at() {
        let (folder, store) = quick();
        disk.write(folder.path());
        store.probe().did();
        let counted = open(&store).await.committed_epoch();
        assert!(counted >= committed);
        store.probe().did().iter().for_each(|did| disk.apply(folder.path(), did));
        let (folder, store) = quick();
        disk.lose_power(folder.path(), || false);
        let after = open(&store).await.committed_epoch();
        assert_eq!(after, counted, "killed after step {at}, epoch {committed} committed");
    }
}
