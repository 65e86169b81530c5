//! Sessions with a maximum where cuts stay as they were made.
//!
//! A late reading can move the cuts that come after it, up to a session that begins as it did. If
//! there is none before what the step can still change, because the key makes no pause, all cuts
//! stay: a late reading comes to the session in whose time it is, without a pause between them and
//! before the maximum cuts; if there is none, late readings are sessions of their own, which end
//! before the next one begins. So no session that is open, or that can be revised, is moved.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::{Shape, WindowSpec};
use tidegate_operators::{Emit, KeyedOperator, Tick};

use super::affected::{Bounds, Slice};
use super::group::Group;
use super::revise::{Known, Made, each_made};
use super::stretches::{OfKey, Stretch};

/// A session that has late readings.
#[derive(Debug)]
pub(super) struct Piece {
    /// As the table has it; none if it is of late readings only.
    pub(super) known: Option<Known>,
    /// From its first to its last reading.
    pub(super) bounds: Bounds,
    /// How many of the group are late for it.
    pub(super) late: i64,
    /// How many sessions of the stretch begin before the late ones.
    begun: usize,
}

impl Piece {
    fn of(known: &Known, begun: usize) -> Self {
        Self { known: Some(*known), bounds: (known.start_us, known.end_us), late: 0, begun }
    }

    fn takes(&self, time_us: i64, (gap_us, max_us): (i64, i64)) -> bool {
        let (start_us, end_us) = self.bounds;
        time_us <= end_us.saturating_add(gap_us) && time_us < start_us.saturating_add(max_us)
    }

    fn add(&mut self, (time_us, count): (i64, i64)) {
        self.bounds.1 = self.bounds.1.max(time_us);
        self.late += count;
    }

    /// How many readings it has.
    pub(super) fn rows(&self) -> i64 {
        self.known.map_or(0, |known| known.rows) + self.late
    }
}

/// The sessions of a stretch that its late readings are in, in order; none if the step can still
/// change one of them.
pub(super) fn pieces(
    of: &OfKey,
    stretch: &Stretch,
    (gap_us, max_us): (i64, i64),
) -> Option<Vec<Piece>> {
    let limits = (gap_us, max_us);
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
        let alone = || Piece { known: None, bounds: (late.0, late.0), late: 0, begun };
        let mut piece = before.filter(|before| before.takes(late.0, limits)).unwrap_or_else(alone);
        piece.add(late);
        pieces.push(piece);
    }
    let is_final = |piece: &Piece| {
        let (start_us, end_us) = piece.bounds;
        let is_over = end_us.saturating_add(gap_us) < of.final_us;
        let is_cut = start_us.saturating_add(max_us) <= of.final_us;
        let is_before_others = piece.known.is_none() && piece.begun < known.len();
        is_over || is_cut || is_before_others
    };
    pieces.iter().all(is_final).then_some(pieces)
}

/// Makes each of these sessions of a key of its stored readings up to a place in the journal: its
/// row is in `batches`, at the place that is told; of one without a reading nothing is. None if it
/// is to stop.
pub(super) async fn make(
    group: &Group<'_>,
    (key, pieces): (&str, &[Piece]),
    last_offset: i64,
    batches: &mut Vec<RecordBatch>,
) -> anyhow::Result<Option<Vec<Option<Made>>>> {
    let mut slice = Slice::default();
    for piece in pieces {
        let (from_us, to_us) = piece.bounds;
        let until_us = to_us.saturating_add(1);
        slice.push_until(key.to_owned(), (from_us, until_us), (piece.late, last_offset));
    }
    let mut making = Making::new(group)?;
    let mut made: Vec<Option<Made>> = Vec::new();
    let is_all = group.each_by_time(&slice, last_offset, |rows| {
        let times = rows.column(group.of.window.time).as_primitive::<TimestampMicrosecondType>();
        let mut from = 0;
        while from < times.len() {
            let at = pieces.partition_point(|piece| piece.bounds.1 < times.value(from));
            while made.len() < at {
                made.push(making.end(group, batches)?);
            }
            let to = pieces.get(at).map_or(times.len(), |piece| {
                times.values().partition_point(|us| *us <= piece.bounds.1)
            });
            making.add(&rows.slice(from, to - from))?;
            from = to;
        }
        Ok(())
    });
    if !is_all.await? {
        return Ok(None);
    }
    while made.len() < pieces.len() {
        made.push(making.end(group, batches)?);
    }
    Ok(Some(made))
}

/// The operator at one session after the other.
struct Making {
    /// Of sessions that nothing ends.
    spec: WindowSpec,
    operator: SpanOperator,
    epoch: u64,
    emit: Emit,
}

impl Making {
    fn new(group: &Group<'_>) -> anyhow::Result<Self> {
        let shape = Shape::Session { gap_us: i64::MAX, max_us: None };
        let spec = WindowSpec { shape, ..group.of.window.clone() };
        let operator = SpanOperator::new(spec.clone())?;
        Ok(Self { spec, operator, epoch: 0, emit: Emit::default() })
    }

    fn add(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        self.epoch += 1;
        let tick = Tick { epoch: self.epoch, time_us: 0 };
        Ok(self.operator.epoch(rows, tick, &mut self.emit)?)
    }

    /// The session has all of its readings.
    fn end(
        &mut self,
        group: &Group<'_>,
        batches: &mut Vec<RecordBatch>,
    ) -> anyhow::Result<Option<Made>> {
        self.operator.end(&mut self.emit)?;
        self.operator = SpanOperator::new(self.spec.clone())?;
        let mut made = Vec::new();
        each_made(group, &mut self.emit, batches, |_, one| made.push(one))?;
        anyhow::ensure!(made.len() < 2, "{} sessions of one", made.len());
        Ok(made.pop())
    }
}
