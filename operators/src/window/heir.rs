//! A changed step whose state was made anew from a part of the journal: what it must not take for
//! new.
//!
//! Such a state knows nothing of what came in before that part. A reading of a window of that time
//! would make the window as if for the first time, of one reading, beside the whole one that was
//! told. So the windows that can have had readings before are gone, as if they had been dropped:
//! what comes for them is late, and whoever computes late windows again has all of their readings.
//! Gone are, of every key that the state from before the change or the new one knows, the windows
//! that begin before the part does; and where the newest reading of a key came in before it, those
//! up to the last that holds that reading, since its clock may be ahead. Of a key that only the
//! state from before knows, no more is kept than of one that was forgotten. A key that neither
//! knows is new.
//!
//! Not known: of a device whose clock is ahead, and was by so much already when the part began,
//! the windows of that lead that begin in the part. They lack what came in before it. The state
//! that was made anew has the newest times of a key, and not the first one.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Int64Type};

use super::WindowOperator;
use super::bound::panes_room;
use super::close::let_go;
use super::keys::{Emitted, KeyState};
use super::save::{FIXED, REVISIONS, parse_told};
use crate::key::stable_hashes;
use crate::keys::{Remnant, Remnants, forgotten_field};
use crate::operator::{KeyedOperator, OperatorError};
use crate::snapshot::SavedRows;
use crate::spec::{Clock, WindowSpec};
use crate::zone::Zone;

/// The columns of a saved state that are read here, behind the keys: [`FIXED`].
const CLOCK: usize = 0;
const CLOSED: usize = 2;
const FLEET_CLOCK: usize = 4;

/// What the state from before the change knew of a key.
#[derive(Clone, Copy, Debug)]
struct Known {
    clock_us: i64,
    /// The last window that can have had readings before the part.
    gone: i64,
}

/// The state from before the change, as far as it is read.
struct Before {
    /// Rows of keys: these, and what is read of [`FIXED`]; with the hashes of the keys.
    keys: Vec<(RecordBatch, Vec<u64>)>,
    remnants: Remnants,
    known: BTreeMap<u64, Known>,
    fleet_clock_us: i64,
}

/// The state of a step with windows of fixed bounds that was made anew from what came in after
/// `since_us`, with all that must not be new to it; `None`: from everything that there ever was.
/// `before` are the rows that the step had before the change, whatever it was then; or those of
/// several, of which one may have been it. What is open may have been told early, more often than
/// it would be now: revisions go on behind those, or the last row of a window would be below them.
/// If the step is known to have had the same windows, `told` are its rows: then windows were told
/// as they say.
///
/// # Errors
/// `rebuilt` is not the state of such a step.
pub fn heir(
    spec: &WindowSpec,
    rebuilt: &[RecordBatch],
    (before, told): (&[RecordBatch], &[RecordBatch]),
    since_us: Option<i64>,
) -> Result<Vec<SavedRows>, OperatorError> {
    let mut heir = WindowOperator::new(spec.clone())?;
    for rows in rebuilt {
        heir.load(rows)?;
    }
    let before: Vec<&RecordBatch> = before.iter().filter(|rows| heir.has_keys_of(rows)).collect();
    if let Some(since_us) = since_us {
        let known = heir.read_before(&before, since_us)?;
        heir.inherit(&known, since_us)?;
    }
    heir.number_on(&before)?;
    heir.close_as(told)?;
    heir.cut(true).parts()
}

impl Before {
    /// Several steps may have known a key.
    fn know(&mut self, hash: u64, now: Known) {
        let known = self.known.entry(hash).or_insert(now);
        known.clock_us = known.clock_us.max(now.clock_us);
        known.gone = known.gone.max(now.gone);
    }
}

impl WindowOperator {
    /// Whether these are rows of a step with windows of fixed bounds, and keys of the same types.
    fn has_keys_of(&self, before: &RecordBatch) -> bool {
        let spec = &self.spec;
        let (fields, keys) = (before.schema_ref().fields(), spec.keys.len());
        let name = |at: usize| fields.get(at).map(|field| field.name().as_str());
        let data_type = |at: usize| fields.get(at).map(|field| field.data_type());
        let mut types = spec.keys.iter().map(|key| spec.input.field(*key).data_type());
        let mut fixed = FIXED.iter().zip(keys..);
        fields.last().is_some_and(|last| **last == forgotten_field())
            && (0..keys).all(|at| data_type(at) == types.next())
            && fixed
                .all(|(is, at)| name(at) == Some(*is) && data_type(at) == Some(&DataType::Int64))
            && name(keys + FIXED.len()) == Some(REVISIONS)
            && data_type(keys + FIXED.len()) == Some(&DataType::Utf8)
    }

    fn read_before(&self, before: &[&RecordBatch], since_us: i64) -> Result<Before, OperatorError> {
        let keys = self.spec.keys.len();
        let mut read = Before {
            keys: Vec::new(),
            remnants: Remnants::new(self.spec.limits.share()),
            known: BTreeMap::new(),
            fleet_clock_us: i64::MIN,
        };
        for rows in before {
            let mut columns: Vec<usize> = (0..=keys + FLEET_CLOCK).collect();
            columns.push(rows.num_columns() - 1);
            let rows = read.remnants.load(&rows.project(&columns)?, keys, &self.interner)?;
            let column = |i: usize| rows.column(keys + i).as_primitive::<Int64Type>().values();
            let (clocks, fleet) = (column(CLOCK), column(FLEET_CLOCK).iter().copied().max());
            read.fleet_clock_us = read.fleet_clock_us.max(fleet.unwrap_or(i64::MIN));
            let zones = self.zone_of_key().map(|key| rows.column(key).as_string::<i32>());
            let hashes = hashes_of(&rows, keys);
            for (row, hash) in hashes.iter().enumerate().filter(|(row, _)| is_first(&hashes, *row))
            {
                let name = zones.filter(|zones| zones.is_valid(row)).map(|zones| zones.value(row));
                let zone = name.and_then(Zone::parse).unwrap_or_else(|| self.zone_of_all());
                let clock_us = clocks[row];
                let gone = self.last_with(clock_us.max(before_us(since_us)), zone);
                read.know(*hash, Known { clock_us, gone });
            }
            read.keys.push((rows, hashes));
        }
        let left: Vec<(u64, Remnant)> = read.remnants.iter().collect();
        for (hash, Remnant { bound, extra: clock_us }) in left {
            let gone = self.within(bound, clock_us.max(before_us(since_us)));
            read.know(hash, Known { clock_us, gone });
        }
        read.fleet_clock_us = read.fleet_clock_us.max(read.remnants.note);
        Ok(read)
    }

    fn inherit(&mut self, before: &Before, since_us: i64) -> Result<(), OperatorError> {
        // One clock of the fleet may have closed and told windows of all keys.
        let is_ahead =
            self.spec.clock == Clock::Fleet && before.fleet_clock_us > self.fleet_clock_us;
        let ended_us = before.fleet_clock_us.saturating_sub(self.spec.disorder_us);
        let ended_us = is_ahead.then_some(ended_us);
        if is_ahead {
            self.fleet_clock_us = before.fleet_clock_us;
        }
        let ids: Vec<u32> = self.interner.ids().collect();
        let hashes = self.interner.hashes_of(&ids)?;
        for (id, hash) in ids.into_iter().zip(&hashes) {
            self.let_go_before(id, before.known.get(hash).copied(), (since_us, ended_us));
        }
        let live: BTreeSet<u64> = hashes.into_iter().collect();
        let floor = |bound: i64| self.within(bound, before_us(since_us));
        let least = floor(i64::MIN);
        let mut remnants = self.remnants.clone();
        remnants.raise(least, |hash, left| {
            left.bound = left.bound.max(least);
            if let Some(known) = before.known.get(&hash).filter(|k| k.clock_us > left.extra) {
                left.bound = left.bound.max(known.gone);
                left.extra = known.clock_us;
            }
        });
        let left = |hash: &u64| {
            let known = before.known.get(hash).filter(|_| !live.contains(hash));
            known.map(|known| Remnant { bound: known.gone, extra: known.clock_us })
        };
        remnants.take_over(&before.remnants, floor, |hash, _| left(&hash));
        let keys = self.spec.keys.len();
        for (rows, hashes) in &before.keys {
            let is_left = |row: &usize| {
                let hash = &hashes[*row];
                is_first(hashes, *row) && !live.contains(hash) && !remnants.has(*hash)
            };
            let places: Vec<usize> = (0..rows.num_rows()).filter(is_left).collect();
            let at = UInt32Array::from_iter_values(places.iter().map(|row| *row as u32));
            let columns = rows.columns()[..keys].iter().map(|column| take(column, &at, None));
            let columns = columns.collect::<Result<Vec<ArrayRef>, _>>()?;
            let names = self.interner.encoded(&columns, places.len())?;
            let all = places.iter().zip(&names);
            remnants.put(all.filter_map(|(row, name)| {
                let hash = hashes[*row];
                Some((hash, &**name, left(&hash)?))
            }));
        }
        self.remnants = remnants;
        Ok(())
    }

    /// Lets the revisions of windows go on behind those that the state from before had told.
    fn number_on(&mut self, before: &[&RecordBatch]) -> Result<(), OperatorError> {
        let keys = self.spec.keys.len();
        let mut told: BTreeMap<u64, Vec<Emitted>> = BTreeMap::new();
        for rows in before {
            let texts = rows.column(keys + FIXED.len()).as_string::<i32>();
            for (row, hash) in hashes_of(rows, keys).into_iter().enumerate() {
                if texts.is_valid(row) {
                    let mut key = KeyState::default();
                    parse_told(texts.value(row), &mut key)?;
                    told.entry(hash).or_default().extend(key.emitted);
                }
            }
        }
        let ids: Vec<u32> = self.interner.ids().collect();
        let hashes = self.interner.hashes_of(&ids)?;
        for (id, hash) in ids.into_iter().zip(&hashes) {
            let key = &mut self.keys[id as usize];
            for before in told.get(hash).into_iter().flatten() {
                // How many readings that row had is not what it would have now.
                let of = Emitted { rows: -1, ..*before };
                match key.emitted_at(of.window) {
                    _ if of.window <= key.dropped => {}
                    Ok(at) if key.emitted[at].revision < of.revision => key.emitted[at] = of,
                    Ok(_) => {}
                    Err(at) => key.emitted.insert(at, of),
                }
            }
        }
        Ok(())
    }

    /// Windows are closed that were so in the state from before, and no others: what this one
    /// closed while it was made was not told, and what it had open may have been. They differ where
    /// it was changed how long the step waits.
    fn close_as(&mut self, told: &[RecordBatch]) -> Result<(), OperatorError> {
        let keys = self.spec.keys.len();
        let mut closed = BTreeMap::new();
        for rows in told.iter().filter(|rows| self.has_keys_of(rows)) {
            let column = rows.column(keys + CLOSED).as_primitive::<Int64Type>();
            for (row, hash) in hashes_of(rows, keys).into_iter().enumerate() {
                // What is left of a key that was forgotten has none.
                if column.is_valid(row) {
                    closed.insert(hash, column.value(row));
                }
            }
        }
        let ids: Vec<u32> = self.interner.ids().collect();
        let hashes = self.interner.hashes_of(&ids)?;
        for (id, hash) in ids.into_iter().zip(&hashes) {
            let key = &mut self.keys[id as usize];
            if let Some(closed) = closed.get(hash) {
                key.closed = key.dropped.max(*closed);
            }
        }
        Ok(())
    }

    /// Of a key, what can have had readings before the part, or was told by the clock of the fleet,
    /// is gone.
    fn let_go_before(
        &mut self,
        id: u32,
        known: Option<Known>,
        (since_us, ended_us): (i64, Option<i64>),
    ) {
        let zone = self.keys[id as usize].zone;
        let mut gone = self.last_with(before_us(since_us), zone);
        if let Some(ended_us) = ended_us {
            gone = gone.max(self.bounds.last_ended(ended_us, zone));
        }
        let key = &mut self.keys[id as usize];
        if let Some(known) = known.filter(|known| known.clock_us > key.clock_us) {
            gone = gone.max(known.gone);
            key.clock_us = known.clock_us;
        }
        key.closed = key.closed.max(gone);
        key.dropped = key.dropped.max(gone);
        let_go(key, &self.bounds, &mut self.store, panes_room(&self.spec));
    }

    /// The last window that holds an instant: the last one that has begun.
    fn last_with(&self, at_us: i64, zone: Zone) -> i64 {
        self.bounds.windows_of(self.bounds.pane_at(at_us, zone).number).1
    }

    /// [`WindowOperator::last_with`] of a key whose zone is not known if each has its own, as near
    /// to this number as it can be: numbers of the zones of today are no further apart.
    fn within(&self, bound: i64, at_us: i64) -> i64 {
        let ends = match self.zone_of_key() {
            Some(_) => {
                ["Etc/GMT+12", "Etc/GMT-14"].map(|name| Zone::parse(name).unwrap_or_default())
            }
            None => [self.zone_of_all(); 2],
        };
        let [least, most] = ends.map(|zone| self.last_with(at_us, zone));
        bound.min(most).max(least)
    }
}

/// The last instant before this one.
fn before_us(since_us: i64) -> i64 {
    since_us.saturating_sub(1)
}

fn hashes_of(rows: &RecordBatch, keys: usize) -> Vec<u64> {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..keys], rows.num_rows(), &mut hashes);
    hashes
}

/// Whether a row is the first of its key: rows of a key follow each other.
fn is_first(hashes: &[u64], row: usize) -> bool {
    row == 0 || hashes[row - 1] != hashes[row]
}
