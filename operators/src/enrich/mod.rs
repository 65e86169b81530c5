//! Joins rows with what a registry said of their key at their time.
//!
//! Definition: a row of time t gets the version with the greatest `valid_from` <= t among all that
//! were journaled up to the row's epoch, its own included; changes of an epoch come before its
//! rows. A change that comes later leaves rows as they are, unless the step revises: then rows are
//! kept for a while, and one for which something else holds now is emitted again with a greater
//! `revision`, as a window is that got a late reading. What is emitted last of a row that is still
//! kept is so what the whole history says, whatever came first. A window whose bounds follow from
//! its readings is the same row wherever it moves, and none once it is withdrawn: what comes of the
//! registry after that changes nothing of it.
//!
//! State: the histories of the registry's keys, whether rows of them ever came or not, and the rows
//! that are kept. A row of an unknown key leaves nothing behind, unless it is kept. A row that had
//! come again leaves two numbers with its key, so that no revision comes twice.

mod bound;
mod kept;
mod save;
mod told;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::kernels::zip::zip;
use arrow::compute::{filter_record_batch, is_null, take_record_batch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};

use self::kept::{Kept, KeptRows, RowKey};
pub use self::told::EnrichTold;
use crate::batch::Tick;
use crate::expression::{Failed, evaluate, keep_finals, withdrawn};
use crate::grouped::{BATCH_BYTES, Grouped, RowCodec};
use crate::key::stable_hashes;
use crate::operator::{Emit, JoinOperator, OperatorError};
use crate::registry::{ChangeRows, History, Span, refused_entries};
use crate::snapshot::Snapshot;
use crate::spec::{EnrichSpec, Missing, ReviseSpec};
use crate::system::step_rejects;
use crate::text::{runs, texts, weight};

/// Reason of a row whose key the registry does not have.
pub const REASON_UNREGISTERED: &str = "unregistered";

/// A row's values in the registry; `None`: there is nothing.
type Said = Option<Arc<[u8]>>;

#[derive(Clone, Debug, Default)]
struct KeyState {
    history: History,
    kept: KeptRows,
}

impl KeyState {
    /// Whether nothing is known of the key.
    fn is_empty(&self) -> bool {
        self.history.0.is_empty() && self.kept.is_empty() && self.kept.gone.is_none()
    }
}

/// The rows' codecs where rows are kept.
struct Keeping {
    spec: ReviseSpec,
    identity: RowCodec,
    rows: Arc<RowCodec>,
    /// Tick times with the keys of which a row came then, oldest first.
    touched: VecDeque<(i64, u64, Arc<[u8]>)>,
}

/// The operator.
pub struct Enrich {
    spec: EnrichSpec,
    keys: Arc<RowCodec>,
    values: Arc<RowCodec>,
    keeping: Option<Keeping>,
    state: Grouped<KeyState>,
}

/// Rows and what they are joined with.
struct Joined {
    rows: RecordBatch,
    said: Vec<Said>,
}

/// Keys with a change, by hash and bytes, each with the times for which something else holds.
type Changed = BTreeMap<(u64, Vec<u8>), Vec<Span>>;

impl Enrich {
    /// Without state.
    ///
    /// # Errors
    /// A column of a type that no row can have; planning rules that out.
    pub fn new(spec: EnrichSpec) -> Result<Self, OperatorError> {
        let types = |columns: &mut dyn Iterator<Item = usize>| -> Vec<_> {
            columns.map(|c| spec.input.field(c).data_type().clone()).collect()
        };
        let keeping = match &spec.revise {
            None => None,
            Some(revise) => Some(Keeping {
                identity: RowCodec::new(&types(&mut revise.identity.iter().copied()))?,
                rows: Arc::new(RowCodec::new(&types(&mut (0..spec.input.fields().len())))?),
                spec: revise.clone(),
                touched: VecDeque::new(),
            }),
        };
        Ok(Self {
            keys: Arc::new(RowCodec::new(&spec.registry.key_types())?),
            values: Arc::new(RowCodec::new(&spec.registry.value_types())?),
            keeping,
            state: Grouped::new(),
            spec,
        })
    }

    fn change(&mut self, rows: &RecordBatch, emit: &mut Emit) -> Result<Changed, OperatorError> {
        let mut changed = Changed::new();
        if rows.num_rows() == 0 {
            return Ok(changed);
        }
        let registry = &self.spec.registry;
        let codecs = (&*self.keys, &*self.values);
        let changes = ChangeRows::new(registry, rows, codecs, emit.closed)?;
        let mut refused = Vec::new();
        let (own, most) = (registry.valid_from.is_some(), registry.versions_max);
        for (row, hash) in changes.hashes.iter().enumerate() {
            let key = changes.keys.row(row);
            let (change, version) = changes.row(row);
            let was = self.state.get(*hash, key.as_ref()).map(|state| state.history.clone());
            let was = was.unwrap_or_default();
            let mut history = was.clone();
            if let Some(span) = history.apply(change, version, own, most) {
                if changes.is_refused(change, &was) {
                    refused.push(row);
                    continue;
                }
                self.state.entry(*hash, key.as_ref()).history = history;
                changed.entry((*hash, key.as_ref().to_vec())).or_default().push(span);
            }
        }
        if !refused.is_empty() {
            let who = (self.spec.pipeline.as_str(), self.spec.name.as_str());
            emit.rejects.extend(refused_entries(who, rows, &refused)?);
        }
        Ok(changed)
    }

    /// What the registry says of each row, noting the rows that are kept.
    fn join(&mut self, rows: &RecordBatch, tick: Tick) -> Result<Joined, OperatorError> {
        let on: Vec<ArrayRef> = self.spec.on.iter().map(|c| rows.column(*c).clone()).collect();
        let times = rows.column(self.spec.time).as_primitive::<TimestampMicrosecondType>();
        let mut hashes = Vec::new();
        stable_hashes(&on, rows.num_rows(), &mut hashes);
        let keys = self.keys.encode(&on)?;
        let mut said = Vec::with_capacity(rows.num_rows());
        for (row, hash) in hashes.iter().enumerate() {
            let state = self.state.get(*hash, keys.row(row).as_ref());
            said.push(state.and_then(|s| s.history.at(times.value(row))).cloned());
        }
        let Some(keeping) = &mut self.keeping else {
            return Ok(Joined { rows: rows.clone(), said });
        };
        let ReviseSpec { revision, keep_us, moves, .. } = keeping.spec;
        let identity: Vec<ArrayRef> =
            keeping.spec.identity.iter().map(|c| rows.column(*c).clone()).collect();
        let (identity, whole) =
            (keeping.identity.encode(&identity)?, keeping.rows.encode(rows.columns())?);
        let ends = rows.column(keeping.spec.end).as_primitive::<TimestampMicrosecondType>();
        let readings = keeping.spec.rows.map(|c| rows.column(c).as_primitive::<Int64Type>());
        let mut revisions = rows.column(revision).as_primitive::<Int64Type>().values().to_vec();
        // Rows of an epoch are in the order of what is in them, not of their revisions.
        let mut order: Vec<usize> = (0..rows.num_rows()).collect();
        order.sort_by_key(|row| revisions[*row]);
        for row in order {
            let (hash, key) = (hashes[row], keys.row(row));
            let withdrawn = readings.is_some_and(|readings| readings.value(row) == 0);
            if withdrawn && self.state.get(hash, key.as_ref()).is_none() {
                continue;
            }
            let kept = &mut self.state.entry(hash, key.as_ref()).kept;
            let named: RowKey = (ends.value(row), identity.row(row).as_ref().into());
            if !withdrawn {
                if kept.is_empty() || kept.touched_us != tick.time_us {
                    keeping.touched.push_back((tick.time_us, hash, key.as_ref().into()));
                }
                kept.touched_us = tick.time_us;
            }
            let whole = whole.row(row).as_ref().into();
            let (time_us, said) = (times.value(row), said[row].clone());
            let taken = Kept { time_us, row: whole, said, again: 0 };
            revisions[row] += kept.take(named, taken, moves, withdrawn);
            kept.let_go(kept.clock_us.saturating_sub(keep_us));
        }
        let rows = with_revisions(rows, revision, revisions)?;
        Ok(Joined { rows, said })
    }

    /// Lets go of the rows of keys of which none came for as long as rows are kept: who is silent
    /// does not move its own clock.
    fn forget(&mut self, now_us: i64) {
        let Some(keeping) = &mut self.keeping else { return };
        let until_us = now_us.saturating_sub(keeping.spec.keep_us);
        while keeping.touched.front().is_some_and(|(us, ..)| *us < until_us) {
            let Some((us, hash, key)) = keeping.touched.pop_front() else { return };
            let known = self.state.get(hash, &key);
            if known.is_none_or(|state| state.kept.touched_us != us) {
                continue;
            }
            let state = self.state.entry(hash, &key);
            state.kept.let_go(i64::MAX);
            if state.is_empty() {
                self.state.remove(hash, &key);
            }
        }
    }

    /// The kept rows for which something else holds than what they were joined with.
    fn again(&mut self, changed: &Changed) -> Result<Vec<Joined>, OperatorError> {
        let Some(keeping) = &self.keeping else { return Ok(Vec::new()) };
        let (mut rows, mut said, mut more) = (Vec::new(), Vec::new(), Vec::new());
        for ((hash, key), spans) in changed {
            let is_within = |us: i64| spans.iter().any(|(from, to)| *from <= us && us < *to);
            let state = self.state.entry(*hash, key);
            for kept in state.kept.iter_mut().filter(|kept| is_within(kept.time_us)) {
                let now = state.history.at(kept.time_us);
                // A row that was refused and is not any more was never seen: it comes first now.
                if now == kept.said.as_ref() {
                    continue;
                }
                kept.again += 1;
                kept.said = now.cloned();
                rows.push(Arc::clone(&kept.row));
                said.push(kept.said.clone());
                more.push(kept.again);
            }
        }
        let runs = crate::grouped::runs(rows.iter().map(|row| row.len())).into_iter();
        runs.map(|run| {
            let columns = keeping.rows.decode(rows[run.clone()].iter().map(|r| &**r))?;
            let rows = RecordBatch::try_new(Arc::clone(&self.spec.input), columns)?;
            let revision = keeping.spec.revision;
            let known = rows.column(revision).as_primitive::<Int64Type>().values();
            let more = &more[run.clone()];
            let revisions = known.iter().zip(more).map(|(r, again)| r + again).collect();
            let rows = with_revisions(&rows, revision, revisions)?;
            Ok(Joined { rows, said: said[run].to_vec() })
        })
        .collect()
    }

    /// Emits joined rows. Those of unknown keys are rejects, if the step says so and they are not
    /// `told` already: what was seen cannot be taken back, it gets nulls. Nor are those that take
    /// back what was seen.
    fn give(&self, joined: Joined, told: bool, emit: &mut Emit) -> Result<(), OperatorError> {
        let Joined { mut rows, mut said } = joined;
        if self.spec.missing == Missing::Reject && !told && said.iter().any(Option::is_none) {
            let gone = withdrawn(&rows, self.spec.rows);
            let is_gone = |row: usize| gone.as_ref().is_some_and(|gone| gone.value(row));
            let known: Vec<bool> =
                said.iter().enumerate().map(|(row, s)| s.is_some() || is_gone(row)).collect();
            let unknown = (0..rows.num_rows()).filter(|row| !known[*row]);
            let failed: Vec<Failed> = unknown.map(|row| self.unknown(&rows, row)).collect();
            self.reject(&rows, failed, emit)?;
            let mut stays = known.iter();
            said.retain(|_| stays.next().is_some_and(|stays| *stays));
            rows = filter_record_batch(&rows, &BooleanArray::from(known))?;
        }
        // A registry says of each row what it says of its key, which may be more than the row has.
        let added = |s: &Said| s.as_ref().map_or(0, |s| s.len() as u64);
        if said.iter().map(added).sum::<u64>() + weight(&rows) <= BATCH_BYTES as u64 {
            return self.give_some(&rows, &said, emit);
        }
        let bytes = texts(&rows).into_iter().zip(&said).map(|(text, said)| text + added(said));
        for run in runs(bytes, BATCH_BYTES as u64) {
            self.give_some(&rows.slice(run.start, run.len()), &said[run], emit)?;
        }
        Ok(())
    }

    fn give_some(
        &self,
        rows: &RecordBatch,
        said: &[Said],
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let nulls = self.values.nulls()?;
        let values = self.values.decode(said.iter().map(|s| s.as_deref().unwrap_or(&nulls)))?;
        let mut columns = rows.columns().to_vec();
        let mut failed: BTreeMap<usize, Failed> = BTreeMap::new();
        let gone = withdrawn(rows, self.spec.rows);
        for (column, default) in self.spec.columns.iter().zip(&self.spec.defaults) {
            let mut column = Arc::clone(&values[*column]);
            if let Some(default) = default.as_ref().filter(|_| column.null_count() > 0) {
                let (stand_in, errors) = evaluate(default, rows)?;
                let is_gone = |row: usize| gone.as_ref().is_some_and(|gone| gone.value(row));
                let counts = |row: usize| column.is_null(row) && !is_gone(row);
                let errors = errors.into_iter().filter(|(row, _)| counts(*row));
                failed.extend(
                    errors.map(|(row, text)| {
                        (row, crate::expression::expression_failed((row, text)))
                    }),
                );
                column = zip(&is_null(&column)?, &stand_in, &column)?;
            }
            columns.push(column);
        }
        let mut made = RecordBatch::try_new(self.spec.schema(), columns)?;
        if !failed.is_empty() {
            let good = (0..rows.num_rows() as u32).filter(|r| !failed.contains_key(&(*r as usize)));
            made = take_record_batch(&made, &UInt32Array::from_iter_values(good))?;
            let failed: Vec<Failed> = failed.into_values().collect();
            self.reject(rows, failed, emit)?;
        }
        emit.rows.push(made);
        Ok(())
    }

    fn reject(
        &self,
        rows: &RecordBatch,
        mut failed: Vec<Failed>,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        keep_finals(&mut failed, rows, self.spec.is_final);
        if !failed.is_empty() {
            let (pipeline, step) = (&self.spec.pipeline, &self.spec.name);
            emit.rejects.extend(step_rejects(pipeline, step, rows, &failed)?);
        }
        Ok(())
    }

    fn unknown(&self, rows: &RecordBatch, row: usize) -> Failed {
        let key: Vec<String> = self
            .spec
            .on
            .iter()
            .map(|c| crate::system::json_value(rows.column(*c), row).to_string())
            .collect();
        let name = &self.spec.registry.name;
        let detail =
            format!("the registry `{name}` has nothing of {} at that time", key.join(", "));
        Failed { row, reason: REASON_UNREGISTERED, detail }
    }
}

fn with_revisions(
    rows: &RecordBatch,
    column: usize,
    revisions: Vec<i64>,
) -> Result<RecordBatch, OperatorError> {
    let mut columns = rows.columns().to_vec();
    columns[column] = Arc::new(Int64Array::from(revisions));
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}

impl JoinOperator for Enrich {
    fn epoch(
        &mut self,
        left: &RecordBatch,
        right: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        self.forget(tick.time_us);
        let changed = self.change(right, emit)?;
        if left.num_rows() > 0 {
            let joined = self.join(left, tick)?;
            self.give(joined, false, emit)?;
        }
        // Rows of this epoch were joined with what holds now, so none of them comes twice.
        for joined in self.again(&changed)? {
            self.give(joined, true, emit)?;
        }
        for (hash, key) in changed.keys() {
            if self.state.get(*hash, key).is_some_and(KeyState::is_empty) {
                self.state.remove(*hash, key);
            }
        }
        Ok(())
    }

    fn end(&mut self, _emit: &mut Emit) -> Result<(), OperatorError> {
        Ok(())
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        self.cut_state(whole)
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.load_state(state)
    }
}

#[cfg(test)]
mod tests;
