//! What holds for the cuts of every operator, and for epochs that are given to it in several calls,
//! checked by the tests of each.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::{GroupSet, SavedRows};
use crate::batch::Tick;
use crate::key::{KEY_GROUPS, key_group, owner, stable_hashes};
use crate::operator::{Emit, KeyedOperator};

/// State by group.
type Groups = BTreeMap<u16, RecordBatch>;

/// An operator under test, and where its keys are.
pub(crate) struct Subject<'a> {
    /// Makes one without state.
    pub(crate) make: &'a dyn Fn() -> Box<dyn KeyedOperator>,
    /// Key columns of its input.
    pub(crate) input_keys: &'a [usize],
    /// Epochs: the time of the tick, and the rows.
    pub(crate) epochs: &'a [(i64, RecordBatch)],
}

/// Rows whose keys a worker owns.
fn own(rows: &RecordBatch, keys: &[usize], index: usize, workers: usize) -> RecordBatch {
    let columns: Vec<_> = keys.iter().map(|k| rows.column(*k).clone()).collect();
    let mut hashes = Vec::new();
    stable_hashes(&columns, rows.num_rows(), &mut hashes);
    let mine: BooleanArray =
        hashes.iter().map(|hash| Some(owner(*hash, workers) == index)).collect();
    filter_record_batch(rows, &mine).unwrap()
}

/// What was emitted, in no order.
fn emitted(emit: &Emit) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut all = Vec::new();
    for (edge, batches) in [("", &emit.rows), ("late ", &emit.late), ("reject ", &emit.rejects)] {
        for batch in batches {
            let columns = batch.columns().iter();
            let columns: Vec<_> =
                columns.map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
            let text = |row| columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>();
            all.extend((0..batch.num_rows()).map(|row| format!("{edge}{}", text(row).join(" "))));
        }
    }
    all.sort();
    all
}

/// What an epoch is given: some are closed to new keys.
fn emit(number: usize) -> Emit {
    Emit { closed: number % 5 == 2, ..Emit::default() }
}

fn split(saved: SavedRows, into: &mut Groups) {
    let mut at = 0;
    for (group, rows) in saved.groups {
        into.insert(group, saved.rows.slice(at, rows as usize));
        at += rows as usize;
    }
    assert_eq!(at, saved.rows.num_rows(), "every row is in a group");
}

/// All rows in the order of their groups.
fn whole(groups: &Groups) -> Option<RecordBatch> {
    let schema = groups.values().next()?.schema();
    Some(concat_batches(&schema, groups.values()).unwrap())
}

impl Subject<'_> {
    /// Runs on some workers, each cut at every `every`th epoch; the state that the cuts add up to.
    fn run(&self, workers: usize, every: usize) -> Groups {
        let mut all: Vec<_> = (0..workers).map(|_| (self.make)()).collect();
        let mut groups = Groups::new();
        for (number, (time_us, rows)) in self.epochs.iter().enumerate() {
            let tick = Tick { epoch: number as u64 + 1, time_us: *time_us };
            for (index, operator) in all.iter_mut().enumerate() {
                let rows = own(rows, self.input_keys, index, workers);
                operator.epoch(&rows, tick, &mut emit(number)).unwrap();
                if number % every == 0 || number + 1 == self.epochs.len() {
                    // Taken now, made into rows only after the next epoch has changed things.
                    // Whole ones, too, must say nothing of the keys of others.
                    let owned = GroupSet::owned(index, workers);
                    let cut = operator.cut(number % 4 == 3).within(&owned);
                    let covered: Vec<u16> = cut.groups().iter().collect();
                    assert!(covered.iter().all(|g| usize::from(*g) % workers == index));
                    cut.parts().unwrap().into_iter().for_each(|part| split(part, &mut groups));
                }
            }
        }
        groups
    }

    /// The state of all groups, after the rows of `saved` were dealt out to some workers.
    fn dealt(&self, saved: &RecordBatch, workers: usize) -> Groups {
        let keys: Vec<usize> = (0..self.input_keys.len()).collect();
        let mut groups = Groups::new();
        for index in 0..workers {
            let mut operator = (self.make)();
            operator.load(&own(saved, &keys, index, workers)).unwrap();
            assert!(operator.cut(false).groups().is_empty(), "what was loaded is no change");
            let owned = GroupSet::owned(index, workers);
            split(operator.cut(true).within(&owned).rows().unwrap(), &mut groups);
        }
        groups
    }

    /// Epochs that come in turns, of which any may have no rows, lead to the same rows and state as
    /// those that come at once.
    pub(crate) fn check_turns(&self) {
        const TURNS: usize = 3;
        let (mut whole, mut turned) = ((self.make)(), (self.make)());
        for (number, (time_us, rows)) in self.epochs.iter().enumerate() {
            let tick = Tick { epoch: number as u64 + 1, time_us: *time_us };
            let (mut at_once, mut in_turns) = (emit(number), emit(number));
            whole.epoch(rows, tick, &mut at_once).unwrap();
            // Key groups are kept whole: which keys find the last places depends on their order.
            let mut turns: Vec<RecordBatch> =
                (0..TURNS).map(|turn| own(rows, self.input_keys, turn, TURNS)).collect();
            let nothing = rows.slice(0, 0);
            match number % 3 {
                0 => turns.push(nothing),
                1 => turns.insert(0, nothing),
                _ => {}
            }
            for (turn, rows) in turns.iter().enumerate() {
                in_turns.more = turn + 1 < turns.len();
                turned.epoch(rows, tick, &mut in_turns).unwrap();
            }
            assert_eq!(emitted(&in_turns), emitted(&at_once), "epoch {number} in turns");
            assert_eq!(turned.save().unwrap(), whole.save().unwrap(), "after epoch {number}");
        }
        let (mut at_once, mut in_turns) = (Emit::default(), Emit::default());
        whole.end(&mut at_once).unwrap();
        turned.end(&mut in_turns).unwrap();
        assert_eq!(emitted(&in_turns), emitted(&at_once), "at the end");
    }

    /// Cuts of what changed add up to the whole, and the whole has the same bytes on any number of
    /// workers and after it was dealt out to any other number. See also `check_turns`.
    pub(crate) fn check(&self) {
        self.check_turns();
        let mut reference = (self.make)();
        let mut taken = Vec::new();
        for (number, (time_us, rows)) in self.epochs.iter().enumerate() {
            let tick = Tick { epoch: number as u64 + 1, time_us: *time_us };
            reference.epoch(rows, tick, &mut emit(number)).unwrap();
            taken.push((reference.cut(true), reference.save().unwrap()));
        }
        for (cut, then) in taken {
            assert_eq!(cut.rows().unwrap().rows, then, "a cut does not change afterwards");
        }
        let mut of_parts = (self.make)();
        for part in reference.cut(true).parts().unwrap() {
            of_parts.load(&part.rows).unwrap();
        }
        assert_eq!(of_parts.save().unwrap(), reference.save().unwrap(), "part by part");
        let mut expected = Groups::new();
        split(reference.cut(true).rows().unwrap(), &mut expected);
        assert_eq!(expected.len(), usize::from(KEY_GROUPS), "all groups are covered");
        for (group, rows) in &expected {
            let mut hashes = Vec::new();
            let keys = &rows.columns()[..self.input_keys.len()];
            stable_hashes(keys, rows.num_rows(), &mut hashes);
            assert!(hashes.iter().all(|hash| key_group(*hash) == *group));
        }
        let all = whole(&expected).unwrap();
        let filled = |groups: &Groups| -> Groups {
            let rows = groups.iter().filter(|g| g.1.num_rows() > 0);
            rows.map(|(group, rows)| (*group, rows.clone())).collect()
        };
        for (workers, every) in [(1, 1), (2, 3), (3, 2), (7, 5)] {
            assert_eq!(filled(&self.run(workers, every)), filled(&expected), "{workers} workers");
            assert_eq!(self.dealt(&all, workers), expected, "dealt out to {workers} workers");
        }
    }
}
