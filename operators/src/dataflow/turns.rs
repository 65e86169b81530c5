//! An epoch with more text than an operator can be given at once, key by key.
//!
//! A column of text holds 2 GiB at most, and the rows of an epoch at an operator have no such
//! bound. So a large epoch is given to the operator in several *turns* ([`crate::Emit::more`]). All
//! rows of a key, on all inputs that are dealt out by key, come in one turn, and all keys of a
//! group, unless the group alone is too much for a turn: then its keys come in several, by their
//! hashes. So what else comes in a turn, and how many workers there are, nobody can see; where a
//! group is divided depends on its own rows alone. (Which of its new keys find the last places is
//! then a matter of these hashes.)
//!
//! The rows of a single key are not divided: those of one that has more text than one can have
//! ([`TextMax::key`]) come in no turn, but are told, to become rejects.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;

use crate::batch::Batch;
use crate::key::{KEY_GROUPS, key_group, stable_hashes};
use crate::text::{ROW_BYTES, TextMax, texts, weight};

/// The turn of rows that come in none.
const NONE: u32 = u32::MAX;

/// What has come on one input in an epoch.
pub(super) struct Came<'a> {
    /// By which columns it was dealt out; without them, every worker has all of it.
    pub(super) keys: Option<&'a [usize]>,
    /// Only told beside the others: it is not put together, so it may be as long as it likes.
    pub(super) aside: bool,
    pub(super) batches: Vec<Batch>,
}

/// The rows of an epoch of all inputs, in turns.
pub(super) struct Turns {
    inputs: Vec<Input>,
    next: u32,
    count: u32,
}

struct Input {
    batches: Vec<Batch>,
    /// Of each batch, the turn of each row; empty: all come in the first turn.
    turns: Vec<Vec<u32>>,
}

impl Turns {
    /// Puts every key into a turn.
    pub(super) fn new(came: Vec<Came<'_>>, max: TextMax) -> Self {
        let counted = came.iter().filter(|came| !came.aside);
        let whole: u64 = counted.flat_map(|came| &came.batches).map(|b| weight(&b.rows)).sum();
        // Nearly always.
        if whole <= max.turn.min(max.key) {
            let inputs = came.into_iter().map(|came| came.batches);
            let inputs = inputs.map(|batches| Input { batches, turns: Vec::new() });
            return Self { inputs: inputs.collect(), next: 0, count: 1 };
        }
        let rows: Vec<Vec<Rows>> = came.iter().map(Rows::of).collect();
        let counted: Vec<&[Rows]> =
            came.iter().zip(&rows).filter(|(c, _)| !c.aside).map(|(_, r)| &r[..]).collect();
        let dealt = Dealt::new(&counted, max);
        let inputs = came.into_iter().zip(&rows).enumerate();
        let inputs = inputs.map(|(number, (came, rows))| {
            let turn = |hash: &u64| dealt.turn(number, *hash);
            let turns = rows.iter().map(|rows| rows.hashes.iter().map(turn).collect());
            Input { batches: came.batches, turns: turns.collect() }
        });
        Self { inputs: inputs.collect(), next: 0, count: dealt.count }
    }

    /// Whether there are any rows at all.
    pub(super) fn has_rows(&self) -> bool {
        self.inputs.iter().flat_map(|i| &i.batches).any(|b| b.rows.num_rows() > 0)
    }

    /// The rows that come in no turn, each with the number of its input.
    pub(super) fn too_much(&self) -> Result<Vec<(usize, RecordBatch)>, ArrowError> {
        let mut all = Vec::new();
        for (number, input) in self.inputs.iter().enumerate() {
            let rows = input.of_turn(NONE)?.into_iter().map(|batch| (number, batch.rows));
            all.extend(rows);
        }
        Ok(all)
    }
}

impl Iterator for Turns {
    /// The batches of each input, and whether another turn follows. There is always a first one.
    type Item = Result<(Vec<Vec<Batch>>, bool), ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let turn = self.next;
        self.next += 1;
        let more = self.next < self.count;
        (turn < self.count).then(|| {
            let inputs = self.inputs.iter_mut().map(|input| input.take(turn));
            Ok((inputs.collect::<Result<_, _>>()?, more))
        })
    }
}

impl Input {
    fn take(&mut self, turn: u32) -> Result<Vec<Batch>, ArrowError> {
        match self.turns.is_empty() {
            true => Ok(std::mem::take(&mut self.batches)),
            false => self.of_turn(turn),
        }
    }

    fn of_turn(&self, turn: u32) -> Result<Vec<Batch>, ArrowError> {
        let mut taken = Vec::new();
        for (batch, turns) in self.batches.iter().zip(&self.turns) {
            let own = (0u32..).zip(turns).filter(|(_, of_row)| **of_row == turn);
            let own: Vec<u32> = own.map(|(row, _)| row).collect();
            if !own.is_empty() {
                let rows = take_record_batch(&batch.rows, &UInt32Array::from(own))?;
                taken.push(Batch { sequence: batch.sequence, rows });
            }
        }
        Ok(taken)
    }
}

/// The rows of a batch: the hashes of their keys, and the bytes of their text.
struct Rows {
    hashes: Vec<u64>,
    texts: Vec<u64>,
}

impl Rows {
    /// Of all batches; none where there are no keys.
    fn of(came: &Came<'_>) -> Vec<Self> {
        let Some(keys) = came.keys else { return Vec::new() };
        let of_batch = |batch: &Batch| {
            let columns: Vec<ArrayRef> =
                keys.iter().map(|k| ArrayRef::clone(batch.rows.column(*k))).collect();
            let mut hashes = Vec::new();
            stable_hashes(&columns, batch.rows.num_rows(), &mut hashes);
            Self { hashes, texts: texts(&batch.rows) }
        };
        came.batches.iter().map(of_batch).collect()
    }

    fn of_keys(&self) -> impl Iterator<Item = (u64, u64)> {
        self.hashes.iter().copied().zip(self.texts.iter().copied())
    }
}

/// Which keys come in which turn.
struct Dealt {
    /// By key group.
    groups: Vec<u32>,
    /// Of the keys of groups that are too much for one turn, by their hashes.
    keys: BTreeMap<u64, u32>,
    /// Keys that have too much text on an input.
    refused: BTreeSet<(usize, u64)>,
    count: u32,
}

impl Dealt {
    fn new(inputs: &[&[Rows]], max: TextMax) -> Self {
        let all = || inputs.iter().copied().flatten().flat_map(Rows::of_keys);
        let mut of_groups = vec![0u64; usize::from(KEY_GROUPS)];
        for (hash, text) in all() {
            of_groups[usize::from(key_group(hash))] += text + ROW_BYTES;
        }
        let most = max.turn.min(max.key);
        let is_large = |hash: u64| of_groups[usize::from(key_group(hash))] > most;
        let mut of_keys: BTreeMap<(u16, u64), u64> = BTreeMap::new();
        let mut texts: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for (number, rows) in inputs.iter().enumerate() {
            let own = rows.iter().flat_map(Rows::of_keys).filter(|(hash, _)| is_large(*hash));
            for (hash, text) in own {
                *of_keys.entry((key_group(hash), hash)).or_default() += text + ROW_BYTES;
                *texts.entry((number, hash)).or_default() += text;
            }
        }
        texts.retain(|_, text| *text > max.key);
        let mut dealt = Self {
            groups: vec![0; usize::from(KEY_GROUPS)],
            keys: BTreeMap::new(),
            refused: texts.into_keys().collect(),
            count: 1,
        };
        let mut held = 0;
        for (group, bytes) in of_groups.iter().enumerate().filter(|(_, bytes)| **bytes <= most) {
            dealt.groups[group] = dealt.next(&mut held, *bytes, max.turn);
        }
        let mut last = None;
        for ((group, hash), bytes) in of_keys {
            // A group that is divided has its turns for itself.
            if last.replace(group) != Some(group) {
                held = max.turn;
            }
            let turn = dealt.next(&mut held, bytes, max.turn);
            dealt.keys.insert(hash, turn);
        }
        dealt
    }

    /// The turn of so many bytes more.
    fn next(&mut self, held: &mut u64, bytes: u64, most: u64) -> u32 {
        if *held > 0 && *held + bytes > most && bytes > 0 {
            self.count += 1;
            *held = 0;
        }
        *held += bytes;
        self.count - 1
    }

    /// The turn of a key on an input.
    fn turn(&self, input: usize, hash: u64) -> u32 {
        match self.refused.contains(&(input, hash)) {
            true => NONE,
            false => {
                let group = self.groups[usize::from(key_group(hash))];
                self.keys.get(&hash).copied().unwrap_or(group)
            }
        }
    }
}

#[cfg(test)]
mod tests;
