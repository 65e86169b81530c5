//! The state of a window operator as rows, one per pane (or one for a key without panes):
//! by key group, key, and pane.
//!
//! Columns: the key columns, then those of [`FIXED`], then one per state column of the aggregates,
//! then, if it is asked for, the quality of windows, then what is left of forgotten keys, in rows
//! of its own.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, UInt32Array, new_null_array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use super::keys::Emitted;
use super::{KeyState, WindowOperator, quality};
use crate::intern::KeyNames;
use crate::keys::{Remnants, forgotten_field};
use crate::operator::OperatorError;
use crate::partial::{Slot, Store};
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, SavedRows, Snapshot, counts};
use crate::spec::Clock;

pub(super) const FIXED: [&str; 7] =
    ["clock_us", "last_tick_us", "closed", "dropped", "fleet_clock_us", "pane", "rows"];
pub(super) const REVISIONS: &str = "revisions";
/// Most bytes of an emitted window in it: three numbers.
const EMITTED_BYTES: usize = 3 * 21;

/// The state as of a cut.
struct Cut {
    schema: SchemaRef,
    names: KeyNames,
    keys: Slabs<KeyState>,
    remnants: Remnants,
    store: Store,
    /// Of a fleet with one clock; else the least time, as the clocks of keys are all there are.
    fleet_clock_us: i64,
    /// The quality of windows is asked for.
    quality: bool,
}

impl Cut {
    /// Groups of keys with the bytes of text of their rows.
    fn sizes(&self, groups: &GroupSet) -> Vec<(u16, usize)> {
        let text = self.store.texts();
        self.names.sizes(groups, |id| {
            let key = &self.keys[id as usize];
            let slots = key.panes.iter().filter_map(|pane| pane.slot);
            let state: u64 = slots.map(&text).sum();
            let told = key.emitted.len() * EMITTED_BYTES
                + key.quality.as_ref().map_or(0, |quality| quality.size_bytes());
            (key.panes.len().max(1), state as usize + told)
        })
    }

    fn rows(&self, groups: &GroupSet) -> Result<SavedRows, OperatorError> {
        let mut ids = Vec::new();
        let mut slots = Vec::new();
        let mut slot_of_row = Vec::new();
        let mut fixed: [Vec<Option<i64>>; 7] = Default::default();
        let mut revisions: Vec<Option<String>> = Vec::new();
        let mut quality = self.quality.then(quality::Saving::default);
        for id in self.names.ids(groups) {
            let key = &self.keys[id as usize];
            let panes: Vec<_> = key.panes.iter().filter(|p| p.slot.is_some()).collect();
            for i in 0..panes.len().max(1) {
                let pane = panes.get(i);
                ids.push(id);
                slot_of_row.push(pane.map(|_| slots.len() as u32));
                slots.extend(pane.and_then(|p| p.slot));
                let values = [
                    Some(key.clock_us),
                    Some(key.last_tick_us),
                    Some(key.closed),
                    Some(key.dropped),
                    Some(self.fleet_clock_us),
                    pane.map(|p| p.number),
                    pane.map(|p| p.rows),
                ];
                fixed.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
                let text = (i == 0).then(|| told(key)).filter(|text| !text.is_empty());
                revisions.push(text);
                if let Some(quality) = &mut quality {
                    quality.push(key, pane.map(|p| p.number), i == 0);
                }
            }
        }
        let counts = counts(groups, ids.iter().map(|id| self.names.group(*id)));
        let mut columns = self.names.columns(&ids)?;
        columns.extend(fixed.into_iter().map(|c| Arc::new(Int64Array::from(c)) as ArrayRef));
        columns.push(Arc::new(StringArray::from(revisions)));
        let rows = UInt32Array::from(slot_of_row);
        let state = self.store.gather(&slots)?;
        let more = quality.map(quality::Saving::finish).unwrap_or_default();
        for i in 0..self.schema.fields().len() - columns.len() - more.len() - 1 {
            columns.push(match state.get(i) {
                Some(column) => take(column, &rows, None)?,
                None => {
                    let field = self.schema.field(columns.len());
                    new_null_array(field.data_type(), rows.len())
                }
            });
        }
        columns.extend(more);
        columns.push(new_null_array(forgotten_field().data_type(), rows.len()));
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        self.remnants.save(&self.names, SavedRows { rows, groups: counts })
    }
}

impl WindowOperator {
    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        let fields = self.aggregation.state_fields();
        let fleet_clock_us = match self.spec.clock {
            Clock::Fleet => self.fleet_clock_us,
            Clock::Device => i64::MIN,
        };
        let fields = match fields {
            Ok(fields) => fields,
            Err(error) => return Snapshot::in_pieces(groups, move |_| Err(error)),
        };
        let cut = Cut {
            schema: Arc::new(self.state_schema(&fields)),
            names: self.interner.snapshot(),
            keys: self.keys.clone(),
            remnants: self.remnants.noting(fleet_clock_us),
            store: self.store.snapshot(),
            fleet_clock_us,
            quality: self.spec.quality.is_some(),
        };
        Snapshot::sized(groups, cut, Cut::sizes, Cut::rows)
    }

    fn state_schema(&self, state: &[Field]) -> Schema {
        let mut fields: Vec<Field> = self
            .spec
            .keys
            .iter()
            .map(|k| self.spec.input.field(*k).clone().with_nullable(true))
            .collect();
        fields.extend(FIXED.iter().map(|name| Field::new(*name, DataType::Int64, true)));
        fields.push(Field::new(REVISIONS, DataType::Utf8, true));
        fields.extend_from_slice(state);
        fields.extend(self.saved_quality());
        fields.push(forgotten_field());
        Schema::new(fields)
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let key_count = self.spec.keys.len();
        let types = self.aggregation.state_fields()?;
        let first = key_count + FIXED.len() + 1;
        let quality = first + types.len()..first + types.len() + self.saved_quality().len();
        if state.num_columns() != quality.end + 1 {
            let text = format!("window `{}` has other keys or aggregates", self.spec.name);
            return Err(OperatorError::State(text));
        }
        let state = &self.remnants.load(state, key_count, &self.interner)?;
        self.fleet_clock_us = self.fleet_clock_us.max(self.remnants.note);
        let mut ids = Vec::new();
        self.interner.intern(&state.columns()[..key_count], state.num_rows(), &mut ids)?;
        let fresh: Vec<u32> = self.interner.fresh().iter().map(|key| key.id).collect();
        for (id, zone) in fresh.iter().zip(self.zones_of(&fresh)?) {
            self.keys.put(*id as usize, KeyState { zone, ..KeyState::default() });
        }
        let column = |i: usize| state.column(key_count + i).as_primitive::<Int64Type>();
        let revisions = state.column(key_count + FIXED.len()).as_string::<i32>();
        let mut owners = Vec::new();
        let mut rows = Vec::new();
        for (row, id) in ids.iter().enumerate() {
            let key = &mut self.keys[*id as usize];
            key.clock_us = column(0).value(row);
            key.last_tick_us = column(1).value(row);
            key.closed = column(2).value(row);
            key.dropped = column(3).value(row);
            self.fleet_clock_us = self.fleet_clock_us.max(column(4).value(row));
            let pane = column(5).is_valid(row).then(|| column(5).value(row));
            if let Some(number) = pane {
                key.pane_mut(number).rows = column(6).value(row);
                owners.push((*id, number));
                rows.push(row as u32);
            }
            if revisions.is_valid(row) {
                parse_told(revisions.value(row), key)?;
            }
            if !quality.is_empty() {
                quality::load(key, &state.columns()[quality.clone()], row, pane)?;
            }
        }
        if !owners.is_empty() {
            let rows = UInt32Array::from(rows);
            let columns: Result<Vec<ArrayRef>, _> = state.columns()[first..first + types.len()]
                .iter()
                .map(|c| take(c, &rows, None))
                .collect();
            let chunk = self.store.add_large(columns?, owners.clone());
            for (row, (id, number)) in owners.into_iter().enumerate() {
                let slot = Slot { chunk, row: row as u32 };
                self.keys[id as usize].pane_mut(number).slot = Some(slot);
            }
        }
        self.wake_all();
        self.list_early();
        Ok(())
    }

    /// Columns for the quality of windows, if that is asked for.
    fn saved_quality(&self) -> Vec<Field> {
        self.spec.quality.map(|_| quality::saved_fields()).unwrap_or_default()
    }

    /// Puts every key on the list of those to look at for silence.
    fn wake_all(&mut self) {
        self.idle.clear();
        for id in self.interner.ids() {
            let key = &mut self.keys[id as usize];
            if key.last_tick_us != i64::MIN {
                key.look_us = key.last_tick_us.saturating_add(self.spec.idle_close_us);
                self.idle.insert((key.look_us, id));
            }
        }
    }
}

/// What was emitted of a key, and until when it waits for early results, where it does.
fn told(key: &KeyState) -> String {
    let part = |e: &Emitted| format!("{}:{}:{}", e.window, e.revision, e.rows);
    let waits = (key.early_us < i64::MAX).then(|| format!("@{}", key.early_us));
    waits.into_iter().chain(key.emitted.iter().map(part)).collect::<Vec<_>>().join(" ")
}

/// State from before there were early results does not say how many readings there were: what is
/// missing is another number than any.
pub(super) fn parse_told(text: &str, key: &mut KeyState) -> Result<(), OperatorError> {
    let bad = || OperatorError::State(format!("revisions `{text}`"));
    let number = |part: &str| part.parse::<i64>().map_err(|_| bad());
    for part in text.split(' ') {
        if let Some(early_us) = part.strip_prefix('@') {
            key.early_us = number(early_us)?;
            continue;
        }
        let mut numbers = part.splitn(3, ':');
        let mut next = || numbers.next().map(number).transpose();
        let (window, revision) = (next()?.ok_or_else(bad)?, next()?.ok_or_else(bad)?);
        key.emitted.push(Emitted { window, revision, rows: next()?.unwrap_or(-1) });
    }
    // They were saved in the order in which they came, once.
    key.emitted.sort_by_key(|e| e.window);
    Ok(())
}
