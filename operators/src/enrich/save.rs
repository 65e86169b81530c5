//! The state of a join with a registry as rows: those of the histories (`registry/save.rs`), and
//! where rows are kept, further columns and one row more for each of these. In such a row stand
//! for since when: its time, for the time of intake: the tick of its key's last row, and for the
//! values: what it was joined with. What is left of rows that are not kept any more is a row
//! without the clock of the key.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::{filter_record_batch, is_not_null, is_null};
use arrow::datatypes::{Field, Int64Type, Schema, TimestampMicrosecondType};

use super::Enrich;
use super::kept::{Gone, Kept};
use crate::grouped::{RowCodec, Tables};
use crate::key::stable_hashes;
use crate::operator::OperatorError;
use crate::registry::save::{self, VersionRows};
use crate::snapshot::{GroupSet, SavedRows, Snapshot};

/// Columns of kept rows before those of the row itself.
const OWN: [&str; 2] = ["again", "clock_us"];

/// State rows being collected.
#[derive(Default)]
struct StateRows<'a> {
    versions: VersionRows<'a>,
    own: [Vec<Option<i64>>; OWN.len()],
    rows: Vec<Option<&'a [u8]>>,
}

impl<'a> StateRows<'a> {
    fn push(&mut self, key: &'a [u8], state: &'a super::KeyState) -> usize {
        let versions = self.versions.push(key, &state.history);
        self.own.iter_mut().for_each(|c| c.extend(std::iter::repeat_n(None, versions)));
        self.rows.extend(std::iter::repeat_n(None, versions));
        let rows = &state.kept;
        for (_, kept) in rows.iter() {
            let own = [kept.again, rows.clock_us].map(Some);
            let numbers = [kept.time_us, rows.touched_us];
            self.push_one(key, numbers, kept.said.as_deref(), own, Some(&kept.row));
        }
        if let Some(Gone { time_us, again }) = rows.gone {
            self.push_one(key, [time_us, rows.touched_us], None, [Some(again), None], None);
        }
        versions + rows.len() + usize::from(rows.gone.is_some())
    }

    fn push_one(
        &mut self,
        key: &'a [u8],
        numbers: [i64; 2],
        said: Option<&'a [u8]>,
        own: [Option<i64>; OWN.len()],
        row: Option<&'a [u8]>,
    ) {
        self.versions.push_one(key, numbers, said);
        self.own.iter_mut().zip(own).for_each(|(column, n)| column.push(n));
        self.rows.push(row);
    }

    fn finish(
        self,
        codecs: (&RowCodec, &RowCodec),
        kept: Option<&RowCodec>,
    ) -> Result<RecordBatch, OperatorError> {
        let versions = self.versions.finish(codecs)?;
        let Some(codec) = kept else { return Ok(versions) };
        let nulls = codec.nulls()?;
        let mut columns = versions.columns().to_vec();
        columns.extend(self.own.into_iter().map(|c| Arc::new(Int64Array::from(c)) as ArrayRef));
        columns.extend(codec.decode(self.rows.iter().map(|r| r.unwrap_or(&nulls)))?);
        let mut fields = versions.schema().fields().to_vec();
        for column in &columns[fields.len()..] {
            let name = format!("kept{}", fields.len());
            fields.push(Arc::new(Field::new(name, column.data_type().clone(), true)));
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

impl Enrich {
    pub(super) fn cut_state(&mut self, whole: bool) -> Snapshot {
        let (tables, groups) = self.state.cut(whole);
        let (keys, values) = (Arc::clone(&self.keys), Arc::clone(&self.values));
        let kept = self.keeping.as_ref().map(|k| Arc::clone(&k.rows));
        let sizes = |tables: &Tables<super::KeyState>, groups: &GroupSet| {
            let of_row = |key: usize, kept: &Kept| {
                key + kept.row.len() + kept.said.as_ref().map_or(0, |said| said.len())
            };
            tables.sizes(groups, |key, state| {
                let kept = state.kept.iter().map(|(_, kept)| of_row(key, kept));
                state.history.bytes(key) + kept.sum::<usize>()
            })
        };
        Snapshot::sized(groups, tables, sizes, move |tables, groups| {
            let mut rows = StateRows::default();
            let mut counts = Vec::new();
            for group in groups.iter() {
                let sorted = tables.sorted(group);
                let all = sorted.iter().map(|k| rows.push(&k.key, &k.state));
                counts.push((group, all.sum::<usize>() as u64));
            }
            let rows = rows.finish((&keys, &values), kept.as_deref())?;
            Ok(SavedRows { rows, groups: counts })
        })
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let codecs = (&*self.keys, &*self.values);
        let width = self.keys.types().len() + save::FIXED_COLUMNS + self.values.types().len();
        let kept = self.keeping.as_ref().map_or(0, |k| OWN.len() + k.rows.types().len());
        if state.num_columns() != width + kept {
            let text = "it is not the state of this join with a registry".to_owned();
            return Err(OperatorError::State(text));
        }
        let own: Vec<usize> = (0..width).collect();
        let all = &mut self.state;
        let mut take = |rows: &RecordBatch| {
            save::load(&rows.project(&own)?, codecs, |hash, key, version| {
                all.put(hash, key).history.0.push(version);
            })
        };
        if kept == 0 {
            return take(state);
        }
        let again = state.column(width);
        take(&filter_record_batch(state, &is_null(again)?)?)?;
        self.load_kept(&filter_record_batch(state, &is_not_null(again)?)?, width)
    }

    fn load_kept(&mut self, rows: &RecordBatch, width: usize) -> Result<(), OperatorError> {
        let Some(keeping) = &mut self.keeping else { return Ok(()) };
        let (own, row) = rows.columns().split_at(width + OWN.len());
        let (keys, values) = (self.keys.types().len(), self.values.types().len());
        let number = |i: usize| own[i].as_primitive::<Int64Type>();
        let (time, touched) = (number(keys), number(keys + 1));
        let gone = own[keys + save::FIXED_COLUMNS - 1].as_boolean();
        let (again, clock) = (number(width), number(width + 1));
        let mut hashes = Vec::new();
        stable_hashes(&own[..keys], rows.num_rows(), &mut hashes);
        let key = self.keys.encode(&own[..keys])?;
        let said = self.values.encode(&own[width - values..width])?;
        let identity: Vec<ArrayRef> =
            keeping.spec.identity.iter().map(|c| Arc::clone(&row[*c])).collect();
        let (identity, whole) = (keeping.identity.encode(&identity)?, keeping.rows.encode(row)?);
        let ends = row[keeping.spec.end].as_primitive::<TimestampMicrosecondType>();
        let mut all: Vec<(i64, u64, Arc<[u8]>)> = keeping.touched.drain(..).collect();
        for (i, hash) in hashes.into_iter().enumerate() {
            let rows = &mut self.state.put(hash, key.row(i).as_ref()).kept;
            let (time_us, again) = (time.value(i), again.value(i));
            rows.touched_us = touched.value(i);
            if clock.is_null(i) {
                rows.gone = Some(Gone { time_us, again });
                continue;
            }
            if rows.is_empty() {
                all.push((touched.value(i), hash, key.row(i).as_ref().into()));
            }
            rows.clock_us = clock.value(i);
            let kept = Kept {
                time_us,
                row: whole.row(i).as_ref().into(),
                said: (!gone.value(i)).then(|| said.row(i).as_ref().into()),
                again,
            };
            let named = (ends.value(i), identity.row(i).as_ref().into());
            rows.put(named, kept, keeping.spec.moves);
        }
        all.sort();
        keeping.touched = all.into();
        Ok(())
    }
}
