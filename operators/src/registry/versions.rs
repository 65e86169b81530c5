//! The history of a registry as an edge: each version as a row, and again when it ends at another
//! time or says something else; `revision` is the epoch, so that the greatest is what is right.
//! What is told again changes nothing and makes no row, however often the edge says it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};

use super::history::SINCE_EVER;
use super::save::{VersionRows, load};
use super::{Change, ChangeRows, History, Version, refused_entries};
use crate::batch::Tick;
use crate::grouped::{Grouped, RowCodec, Tables};
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::snapshot::{GroupSet, SavedRows, Snapshot};
use crate::spec::RegistrySpec;

/// The operator.
pub struct Versions {
    spec: RegistrySpec,
    keys: Arc<RowCodec>,
    values: Arc<RowCodec>,
    known: Grouped<History>,
}

/// A key, a version of it, and until when that holds.
type Told = (Arc<[u8]>, Version, i64);

/// Histories as they were, by key and its hash.
type Before = BTreeMap<(Arc<[u8]>, u64), History>;

/// What of a version can be seen: its values and until when it holds.
type Seen = BTreeMap<i64, (Option<Arc<[u8]>>, i64)>;

fn seen(history: &History) -> Seen {
    let ends = history.0.iter().skip(1).map(|v| v.from_us).chain([i64::MAX]);
    history.0.iter().zip(ends).map(|(v, end)| (v.from_us, (v.values.clone(), end))).collect()
}

impl Versions {
    /// Without a history.
    ///
    /// # Errors
    /// A column of a type that no row can have; planning rules that out.
    pub fn new(spec: RegistrySpec) -> Result<Self, OperatorError> {
        Ok(Self {
            keys: Arc::new(RowCodec::new(&spec.key_types())?),
            values: Arc::new(RowCodec::new(&spec.value_types())?),
            known: Grouped::new(),
            spec,
        })
    }

    /// The rows that tell what of these keys is not as it was.
    fn told(&mut self, before: &Before, withdrawn: &[(Arc<[u8]>, u64, Version)]) -> Vec<Told> {
        let mut told = Vec::new();
        for ((key, hash), old) in before {
            let (was, history) = (seen(old), self.known.entry(*hash, key));
            let now = seen(history);
            for version in &history.0 {
                let (values, end_us) = &now[&version.from_us];
                // Where there is nothing from then on, the version before says when it ended.
                let changed = was.get(&version.from_us) != Some(&now[&version.from_us]);
                if changed && values.is_some() {
                    told.push((Arc::clone(key), version.clone(), *end_us));
                }
                // What goes at the very time from which on it held, held at no time.
                let had = |v: &&Version| v.from_us == version.from_us && v.values.is_some();
                if let (None, Some(gone)) = (values, old.0.iter().find(had)) {
                    told.push((Arc::clone(key), gone.clone(), gone.from_us.max(0)));
                }
            }
        }
        for (key, hash, version) in withdrawn {
            let history = self.known.entry(*hash, key);
            let again = history.0.iter().any(|v| v.from_us == version.from_us);
            if !again && version.values.is_some() {
                // No reading is from before 1970, so nothing holds until then.
                told.push((Arc::clone(key), version.clone(), version.from_us.max(0)));
            }
        }
        told
    }

    fn rows(&self, told: &[Told], tick: Tick) -> Result<RecordBatch, OperatorError> {
        let time = |f: &dyn Fn(&Told) -> Option<i64>| -> ArrayRef {
            let times: TimestampMicrosecondArray = told.iter().map(f).collect();
            Arc::new(times.with_timezone("UTC"))
        };
        let known = |us: i64, unknown: i64| (us != unknown).then_some(us);
        let mut columns = self.keys.decode(told.iter().map(|t| &*t.0))?;
        let nulls = self.values.nulls()?;
        columns.extend(
            self.values.decode(told.iter().map(|t| t.1.values.as_deref().unwrap_or(&nulls)))?,
        );
        columns.push(time(&|t| known(t.1.from_us, SINCE_EVER)));
        columns.push(time(&|t| known(t.2, i64::MAX)));
        columns.push(time(&|t| Some(t.1.ingest_us)));
        columns.push(Arc::new(Int64Array::from_value(tick.epoch as i64, told.len())));
        columns.push(time(&|_| Some(tick.time_us)));
        Ok(RecordBatch::try_new(self.spec.versions_schema(), columns)?)
    }
}

impl KeyedOperator for Versions {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let codecs = (&*self.keys, &*self.values);
        let changes = ChangeRows::new(&self.spec, rows, codecs, emit.closed)?;
        let (mut before, mut withdrawn, mut refused) = (Before::new(), Vec::new(), Vec::new());
        for (row, hash) in changes.hashes.iter().enumerate() {
            let key = changes.keys.row(row);
            let (change, version) = changes.row(row);
            let mut history = self.known.get(*hash, key.as_ref()).cloned().unwrap_or_default();
            let (own, most) = (self.spec.valid_from.is_some(), self.spec.versions_max);
            let was = history.clone();
            if history.apply(change, version.clone(), own, most).is_some() {
                if changes.is_refused(change, &was) {
                    refused.push(row);
                    continue;
                }
                let key: Arc<[u8]> = key.as_ref().into();
                if change == Change::Withdraw {
                    let gone = was.0.iter().find(|v| v.from_us == version.from_us);
                    withdrawn.extend(gone.map(|v| (Arc::clone(&key), *hash, v.clone())));
                }
                *self.known.entry(*hash, &key) = history;
                before.entry((key, *hash)).or_insert(was);
            }
        }
        if !refused.is_empty() {
            let who = (self.spec.pipeline.as_str(), self.spec.name.as_str());
            emit.rejects.extend(refused_entries(who, rows, &refused)?);
        }
        let told = self.told(&before, &withdrawn);
        emit.rows.push(self.rows(&told, tick)?);
        for (key, hash) in before.keys() {
            if self.known.get(*hash, key).is_some_and(|h| h.0.is_empty()) {
                self.known.remove(*hash, key);
            }
        }
        Ok(())
    }

    fn end(&mut self, _emit: &mut Emit) -> Result<(), OperatorError> {
        Ok(())
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let (tables, groups) = self.known.cut(whole);
        let (keys, values) = (Arc::clone(&self.keys), Arc::clone(&self.values));
        let sizes = |tables: &Tables<History>, groups: &GroupSet| {
            tables.sizes(groups, |key, history| history.bytes(key))
        };
        Snapshot::sized(groups, tables, sizes, move |tables, groups| {
            let mut rows = VersionRows::default();
            let mut counts = Vec::new();
            for group in groups.iter() {
                let sorted = tables.sorted(group);
                let all = sorted.iter().map(|k| rows.push(&k.key, &k.state));
                counts.push((group, all.sum::<usize>() as u64));
            }
            Ok(SavedRows { rows: rows.finish((&keys, &values))?, groups: counts })
        })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let known = &mut self.known;
        load(state, (&self.keys, &self.values), |hash, key, version| {
            known.put(hash, key).0.push(version);
        })
    }
}
