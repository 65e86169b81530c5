//! First and last value by time, and the difference of the two: a constant amount of state.

use std::marker::PhantomData;

use arrow::array::{Array, ArrayRef, Int64Array, TimestampMicrosecondArray};
use datafusion_common::Result;

use super::groups::Kind;
use super::measure::Point;
use super::value::{Value, argument};

/// Which of the two is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// The value of the earliest reading.
    First,
    /// The value of the latest reading.
    Last,
}

impl Edge {
    /// Whether `new` takes the place of `old`. At one time the greater value is the one that
    /// counts, whichever edge it is.
    fn replaces<V: Value>(self, new: &Point<V>, old: &Point<V>) -> bool {
        let by_time = match self {
            Self::First => old.0.cmp(&new.0),
            Self::Last => new.0.cmp(&old.0),
        };
        by_time.then_with(|| new.1.order(&old.1)).is_gt()
    }
}

fn offer<V: Value>(edge: Edge, place: &mut Option<Point<V>>, point: Point<V>) {
    if place.as_ref().is_none_or(|old| edge.replaces(&point, old)) {
        *place = Some(point);
    }
}

fn points<'a, V: Value>(
    columns: &'a [ArrayRef],
) -> Result<impl Fn(usize) -> Option<Point<V>> + 'a> {
    let values: &V::Column = argument(columns, 0)?;
    let times: &TimestampMicrosecondArray = argument(columns, 1)?;
    Ok(move |row| {
        V::get(values, row).filter(|_| times.is_valid(row)).map(|v| (times.value(row), v))
    })
}

fn saved<'a, V: Value>(columns: &'a [ArrayRef]) -> Result<impl Fn(usize) -> Option<Point<V>> + 'a> {
    let times: &Int64Array = argument(columns, 0)?;
    let values: &V::Column = argument(columns, 1)?;
    Ok(move |row| {
        V::get(values, row).filter(|_| times.is_valid(row)).map(|v| (times.value(row), v))
    })
}

fn columns<'a, V: Value>(
    points: impl Iterator<Item = &'a Option<Point<V>>> + Clone,
) -> [ArrayRef; 2] {
    let times = i64::column(points.clone().map(|p| p.as_ref().map(|p| p.0)));
    [times, V::column(points.map(|p| p.as_ref().map(|p| p.1.clone())))]
}

/// `first` or `last`.
#[derive(Debug)]
pub(super) struct EdgeKind<V> {
    edge: Edge,
    value: PhantomData<V>,
}

impl<V> EdgeKind<V> {
    pub(super) fn new(edge: Edge) -> Self {
        Self { edge, value: PhantomData }
    }
}

impl<V: Value> Kind for EdgeKind<V> {
    type State = Option<Point<V>>;

    fn update(
        &self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = (usize, usize)>,
        states: &mut [Self::State],
    ) -> Result<()> {
        let point = points::<V>(columns)?;
        for (row, group) in rows {
            if let Some(point) = point(row) {
                offer(self.edge, &mut states[group], point);
            }
        }
        Ok(())
    }

    fn merge(
        &self,
        columns: &[ArrayRef],
        groups: &[usize],
        states: &mut [Self::State],
    ) -> Result<()> {
        let point = saved::<V>(columns)?;
        for (row, group) in groups.iter().enumerate() {
            if let Some(point) = point(row) {
                offer(self.edge, &mut states[*group], point);
            }
        }
        Ok(())
    }

    fn save(&self, states: &mut [Self::State]) -> Result<Vec<ArrayRef>> {
        Ok(columns(states.iter()).into())
    }

    fn finish(&self, states: &mut [Self::State]) -> Result<ArrayRef> {
        Ok(V::column(states.iter().map(|s| s.as_ref().map(|p| p.1.clone()))))
    }

    fn heap_bytes(state: &Self::State) -> usize {
        state.as_ref().map_or(0, |p| p.1.heap_bytes())
    }
}

/// `delta`: the last value less the first; nothing if all readings have one time.
#[derive(Debug)]
pub(super) struct DeltaKind;

const EDGES: [Edge; 2] = [Edge::First, Edge::Last];

impl Kind for DeltaKind {
    type State = [Option<Point<f64>>; 2];

    fn update(
        &self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = (usize, usize)>,
        states: &mut [Self::State],
    ) -> Result<()> {
        let point = points::<f64>(columns)?;
        for (row, group) in rows {
            if let Some(point) = point(row) {
                EDGES.iter().zip(&mut states[group]).for_each(|(e, s)| offer(*e, s, point));
            }
        }
        Ok(())
    }

    fn merge(
        &self,
        columns: &[ArrayRef],
        groups: &[usize],
        states: &mut [Self::State],
    ) -> Result<()> {
        for (i, edge) in EDGES.into_iter().enumerate() {
            let point = saved::<f64>(&columns[2 * i..])?;
            for (row, group) in groups.iter().enumerate() {
                if let Some(point) = point(row) {
                    offer(edge, &mut states[*group][i], point);
                }
            }
        }
        Ok(())
    }

    fn save(&self, states: &mut [Self::State]) -> Result<Vec<ArrayRef>> {
        let [first, last] = [0, 1].map(|i| columns(states.iter().map(move |s| &s[i])));
        Ok(first.into_iter().chain(last).collect())
    }

    fn finish(&self, states: &mut [Self::State]) -> Result<ArrayRef> {
        let delta = |state: &Self::State| match state {
            [Some(first), Some(last)] if first.0 < last.0 => Some(last.1 - first.1),
            _ => None,
        };
        Ok(f64::column(states.iter().map(|s| delta(s).filter(|d| d.is_finite()))))
    }

    fn heap_bytes(_: &Self::State) -> usize {
        0
    }
}
