//! Sessions with a maximum where cuts stay as they were made.
//!
//! A late reading can move the cuts that come after it, up to a session that begins as it did. If
//! there is none before what the step can still change, because the key makes no pause, all cuts
//! stay: a late reading comes to the session in whose time it is, without a pause between them and
//! before the maximum cuts; if there is none, late readings are sessions of their own, which end
//! before the next one begins. So no session that is open, or that can be revised, is moved.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::{Shape, WindowSpec};
use tidegate_operators::{Emit, KeyedOperator, Tick};

use super::affected::{Bounds, Slice};
use super::group::Group;
use super::kept::Stayed;
use super::revise::{Known, Made, each_made};
use super::stretches::{OfKey, Stretch};

/// A session that has late readings.
#[derive(Debug)]
pub(super) struct Piece {
    /// As the table has it; none if it is of late readings only.
    known: Option<Known>,
    /// From its first to its last reading.
    pub(super) bounds: Bounds,
    /// How many of the group are late for it.
    pub(super) late: i64,
    /// How many sessions of the stretch begin before the late ones.
    begun: usize,
    /// The step does not change it any more.
    pub(super) is_final: bool,
}

impl Piece {
    fn of(known: &Known, begun: usize) -> Self {
        let bounds = (known.start_us, known.end_us);
        Self { known: Some(*known), bounds, late: 0, begun, is_final: false }
    }

    fn alone(time_us: i64, begun: usize) -> Self {
        Self { known: None, bounds: (time_us, time_us), late: 0, begun, is_final: false }
    }

    fn takes(&self, time_us: i64, (gap_us, max_us): (i64, i64)) -> bool {
        let (start_us, end_us) = self.bounds;
        time_us <= end_us.saturating_add(gap_us) && time_us < start_us.saturating_add(max_us)
    }

    fn add(&mut self, (time_us, count): (i64, i64)) {
        self.bounds.1 = self.bounds.1.max(time_us);
        self.late += count;
    }

    pub(super) fn stayed<'k>(&self, key: &'k str) -> Stayed<'k> {
        Stayed { key, bounds: self.bounds, late: self.late }
    }

    /// Whether a session that was made is this one, of all of its readings.
    pub(super) fn is(&self, made: &Made) -> bool {
        let rows = self.known.map_or(0, |known| known.rows) + self.late;
        (made.start_us, made.end_us) == self.bounds && made.rows == rows
    }

    /// The newest revision that its key has of it.
    pub(super) fn revision(&self, of: &OfKey) -> Option<i64> {
        let gone = || of.gone.get(&self.bounds.0).copied();
        self.known.map(|known| known.revision).or_else(gone)
    }
}

/// The sessions of a stretch that its late readings are in, in order.
pub(super) fn pieces(of: &OfKey, stretch: &Stretch, limits: (i64, i64)) -> Vec<Piece> {
    let known = &stretch.known;
    let mut pieces: Vec<Piece> = Vec::new();
    for late in of.late_in(stretch.bounds) {
        let begun = known.partition_point(|k| k.start_us <= late.0);
        let last = pieces.last_mut().filter(|piece| piece.begun == begun);
        let is_first = last.is_none();
        if let Some(last) = last.filter(|piece| piece.takes(late.0, limits)) {
            last.add(late);
            continue;
        }
        let before = known[..begun].last().filter(|_| is_first).map(|k| Piece::of(k, begun));
        let before = before.filter(|before| before.takes(late.0, limits));
        let mut piece = before.unwrap_or_else(|| Piece::alone(late.0, begun));
        piece.add(late);
        pieces.push(piece);
    }
    let (gap_us, max_us) = limits;
    for piece in &mut pieces {
        let is_over = piece.bounds.1.saturating_add(gap_us) < of.final_us;
        piece.is_final = is_over || piece.bounds.0.saturating_add(max_us) <= of.final_us;
    }
    pieces
}

/// Makes the sessions of some keys of their stored readings, each key with the place in the journal
/// of the last one that counts: they are in `batches`, at the places that are told for each key, in
/// order; none of one without a reading. None if it is to stop.
pub(super) async fn make(
    group: &Group<'_>,
    keys: &BTreeMap<&str, (Vec<&Piece>, i64)>,
    last_offset: i64,
    batches: &mut Vec<RecordBatch>,
) -> anyhow::Result<Option<BTreeMap<String, Vec<Made>>>> {
    let shape = Shape::Session { gap_us: i64::MAX, max_us: None };
    let spec = WindowSpec { shape, ..group.of.window.clone() };
    let mut made: BTreeMap<String, Vec<Made>> = BTreeMap::new();
    let count = keys.values().map(|(pieces, _)| pieces.len()).max().unwrap_or(0);
    // Nothing divides the sessions of a key but where they are known to end, so it is one of each
    // key at a time.
    for at in 0..count {
        let mut slice = Slice::default();
        for (key, (pieces, last_offset)) in keys {
            if let Some(piece) = pieces.get(at) {
                let until = (piece.bounds.0, piece.bounds.1.saturating_add(1));
                slice.push_until((*key).to_owned(), until, (piece.late, *last_offset));
            }
        }
        let mut operator = SpanOperator::new(spec.clone())?;
        let (mut emit, mut epoch) = (Emit::default(), 0);
        let is_all = group.each_by_time(&slice, last_offset, |rows| {
            epoch += 1;
            Ok(operator.epoch(&rows, Tick { epoch, time_us: 0 }, &mut emit)?)
        });
        if !is_all.await? {
            return Ok(None);
        }
        operator.end(&mut emit)?;
        each_made(group, &mut emit, batches, |key, one| {
            made.entry(key.to_owned()).or_default().push(one);
        })?;
    }
    Ok(Some(made))
}
