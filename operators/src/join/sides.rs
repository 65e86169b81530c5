//! The two edges of a join: their keys, which are the same, and their rows as bytes.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::row::Rows;

use crate::expression::withdrawn;
use crate::grouped::{RowCodec, runs};
use crate::intern::{Fresh, KeyInterner};
use crate::keys::{KeyedStep, Remnants, without_strangers};
use crate::operator::{Emit, OperatorError};
use crate::spec::{JoinSpec, Partners};

/// A row of an edge as bytes: all columns of the left edge, or the added ones of the right.
pub(super) type Row = Arc<[u8]>;

/// A row of the left edge, and the one of the right that it is joined with.
pub(super) type Joined = (Row, Option<Row>);

/// Bytes of a joined row.
pub(super) fn bytes((left, right): &Joined) -> usize {
    left.len() + right.as_ref().map_or(0, |row| row.len())
}

/// One of the two edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// The rows of an edge whose keys have a place.
pub(super) struct Arrived {
    pub(super) ids: Vec<u32>,
    pub(super) rows: RecordBatch,
    /// Which rows say that their windows are none, if any does.
    pub(super) gone: Option<BooleanArray>,
    bytes: Rows,
}

impl Arrived {
    pub(super) fn bytes(&self, row: usize) -> Row {
        self.bytes.row(row).data().into()
    }
}

/// The keys of both edges and the codecs of their rows.
pub(super) struct Sides {
    pub(super) spec: JoinSpec,
    pub(super) interner: KeyInterner,
    /// Of all columns of the left edge, and of the added ones of the right.
    pub(super) codecs: Arc<(RowCodec, RowCodec)>,
    schema: SchemaRef,
}

impl Sides {
    pub(super) fn new(spec: JoinSpec) -> Result<Self, OperatorError> {
        let codecs = (RowCodec::new(&spec.left_types())?, RowCodec::new(&spec.added_types())?);
        Ok(Self {
            interner: KeyInterner::new(&spec.key_types())?,
            codecs: Arc::new(codecs),
            schema: spec.schema(),
            spec,
        })
    }

    fn keys_of(&self, side: Side) -> &[usize] {
        match side {
            Side::Left => &self.spec.left_keys,
            Side::Right => &self.spec.right_keys,
        }
    }

    /// The column of an edge that says which windows are withdrawn.
    fn rows_of(&self, side: Side) -> Option<usize> {
        match &self.spec.partners {
            Partners::Window { rows, .. } => rows[usize::from(side == Side::Right)],
            Partners::Interval { .. } => None,
        }
    }

    /// The rows of an edge whose keys have or find a place, and the keys that are new.
    pub(super) fn admit(
        &mut self,
        (side, remnants): (Side, &Remnants),
        rows: &RecordBatch,
        emit: &mut Emit,
    ) -> Result<(Arrived, Vec<Fresh>), OperatorError> {
        let keys = self.keys_of(side).to_vec();
        let column = self.rows_of(side);
        let rows = &match withdrawn(rows, column) {
            Some(gone) => without_strangers((&mut self.interner, remnants), &keys, rows, &gone)?,
            None => rows.clone(),
        };
        let JoinSpec { pipeline, name, limits, .. } = &self.spec;
        let step = KeyedStep { pipeline, name, limits: *limits };
        let mut ids = Vec::new();
        let known = (&mut self.interner, remnants);
        let rows = step.admitted_back(known, &keys, rows, &mut ids, emit)?;
        let bytes = match side {
            Side::Left => self.codecs.0.encode(rows.columns())?,
            Side::Right => {
                let added: Vec<ArrayRef> =
                    self.spec.columns.iter().map(|(c, _)| Arc::clone(rows.column(*c))).collect();
                self.codecs.1.encode(&added)?
            }
        };
        let gone = withdrawn(&rows, column);
        Ok((Arrived { ids, rows, gone, bytes }, self.interner.fresh().to_vec()))
    }

    /// Joined rows as batches; with revisions in the column that the left edge has for them.
    pub(super) fn batches(
        &self,
        joined: &[Joined],
        revisions: Option<(usize, Vec<i64>)>,
    ) -> Result<Vec<RecordBatch>, OperatorError> {
        let revisions = revisions.as_ref().map(|(column, all)| (*column, &all[..]));
        let runs = runs(joined.iter().map(bytes)).into_iter();
        runs.map(|run| {
            let revisions = revisions.map(|(column, all)| (column, &all[run.clone()]));
            self.batch(&joined[run], revisions)
        })
        .collect()
    }

    fn batch(
        &self,
        joined: &[Joined],
        revisions: Option<(usize, &[i64])>,
    ) -> Result<RecordBatch, OperatorError> {
        let (left, right) = &*self.codecs;
        let nulls = right.nulls()?;
        let mut columns = left.decode(joined.iter().map(|j| &*j.0))?;
        if let Some((column, revisions)) = revisions {
            columns[column] = Arc::new(Int64Array::from(revisions.to_vec()));
        }
        let right_rows = joined.iter().map(|j| j.1.as_deref().unwrap_or(&nulls));
        columns.extend(right.decode(right_rows)?);
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}
