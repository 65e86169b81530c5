//! The versions of one key of a registry.
//!
//! Definition: a version holds from its `from_us` until that of the next one. What holds at a time
//! is the last version that begins at it or before. So the history is a function of the set of
//! (since when, what) that was said, and the order in which it was said does not matter, but where
//! two say something else of the same time: then the one that came last is right. What only says
//! when it was received ([`Change::Receive`]) holds from then on, so there the order matters. What
//! is only remembered ([`Change::Recall`]) can be older than what came before it: it never takes
//! anything's place.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema, TimestampMicrosecondType};
use arrow::row::Rows;

use super::Change;
use crate::expression::Failed;
use crate::grouped::RowCodec;
use crate::key::stable_hashes;
use crate::keys::MEMORY_MAX_DETAIL;
use crate::operator::OperatorError;
use crate::reject::Reason;
use crate::spec::{INGEST_TIME, RegistrySpec};
use crate::system::step_rejects;

/// Since when the first version holds that no time is known of.
pub(crate) const SINCE_EVER: i64 = i64::MIN;

/// What was said of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Since when it holds, microseconds since the Unix epoch.
    pub(crate) from_us: i64,
    /// The values as bytes; `None`: from then on there is nothing of this key.
    pub(crate) values: Option<Arc<[u8]>>,
    /// When it was taken in, microseconds since the Unix epoch.
    pub(crate) ingest_us: i64,
}

/// From a time on, up to another one (not included): microseconds since the Unix epoch.
pub(crate) type Span = (i64, i64);

/// All versions of a key, by the time since which they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History(pub(crate) Vec<Version>);

impl History {
    /// What holds at a time; `None` if there is nothing.
    pub(crate) fn at(&self, time_us: i64) -> Option<&Arc<[u8]>> {
        let after = self.0.partition_point(|v| v.from_us <= time_us);
        self.0[..after].last()?.values.as_ref()
    }

    /// A version that says nothing of its time but when it was received: what is known first was so
    /// before anybody asked, and a clock that was set back does not bring it before the last one.
    /// `None`: it takes nothing away.
    fn received(&self, version: Version) -> Option<Version> {
        let from_us = match self.0.last() {
            Some(last) => version.from_us.max(last.from_us),
            None => version.values.as_ref().map(|_| SINCE_EVER)?,
        };
        Some(Version { from_us, ..version })
    }

    /// Bytes of its rows of saved state, with so many of the key.
    pub(crate) fn bytes(&self, key: usize) -> usize {
        self.0.iter().map(|v| key + v.values.as_ref().map_or(0, |values| values.len())).sum()
    }

    /// Takes a change; the time for which something else holds now, if there is any.
    pub(crate) fn apply(
        &mut self,
        change: Change,
        version: Version,
        own_times: bool,
        versions_max: usize,
    ) -> Option<Span> {
        let version = match change {
            Change::Receive | Change::Drop => self.received(version)?,
            _ => version,
        };
        let recalled = matches!(change, Change::Recall | Change::RecallGone);
        if recalled && !own_times && !self.0.is_empty() {
            return None;
        }
        let place = self.0.binary_search_by_key(&version.from_us, |v| v.from_us);
        let from_us = version.from_us;
        let end = |at: usize| self.0.get(at).map_or(i64::MAX, |v| v.from_us);
        let span = match (change, place) {
            (Change::Withdraw, Err(_)) => return None,
            (Change::Withdraw, Ok(at)) => {
                let span = (from_us, end(at + 1));
                self.0.remove(at);
                span
            }
            (_, Ok(at)) if recalled || self.0[at].values == version.values => return None,
            (_, Ok(at)) => {
                let span = (from_us, end(at + 1));
                self.0[at] = version;
                span
            }
            // Without times of its own, a registry that says the same again says nothing; but that
            // a key went is remembered: what comes of it later was not so since ever.
            (_, Err(_))
                if !own_times && !recalled && self.at(from_us) == version.values.as_ref() =>
            {
                return None;
            }
            (_, Err(at)) => {
                let span = (from_us, end(at));
                self.0.insert(at, version);
                span
            }
        };
        if self.0.len() > versions_max {
            self.0.remove(0);
        }
        Some(span)
    }
}

/// The rows of entries that found no place, as rows of `system.rejects`; `name` is who says so.
pub(crate) fn refused_entries(
    (pipeline, name): (&str, &str),
    rows: &RecordBatch,
    refused: &[usize],
) -> Result<Vec<RecordBatch>, OperatorError> {
    let received = |f: &Arc<Field>| match f.name() == INGEST_TIME {
        true => Arc::new(f.as_ref().clone().with_name("received_time")),
        false => Arc::clone(f),
    };
    let fields: Vec<Arc<Field>> = rows.schema().fields().iter().map(received).collect();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), rows.columns().to_vec())?;
    let failed = |row: &usize| Failed {
        row: *row,
        reason: Reason::MemoryMax.text(),
        detail: MEMORY_MAX_DETAIL.to_owned(),
    };
    let failed: Vec<Failed> = refused.iter().map(failed).collect();
    Ok(step_rejects(pipeline, name, &rows, &failed)?)
}

/// The rows of changes, taken apart.
pub(crate) struct ChangeRows {
    /// Stable hashes of the keys.
    pub(crate) hashes: Vec<u64>,
    /// The keys as bytes.
    pub(crate) keys: Rows,
    values: Rows,
    from: TimestampMicrosecondArray,
    change: StringArray,
    ingest: TimestampMicrosecondArray,
    /// Whether keys that are new find no place.
    closed: bool,
}

impl ChangeRows {
    /// Takes rows of [`RegistrySpec::changes_schema`] apart; `closed` is whether memory is used up.
    pub(crate) fn new(
        spec: &RegistrySpec,
        rows: &RecordBatch,
        (keys, values): (&RowCodec, &RowCodec),
        closed: bool,
    ) -> Result<Self, OperatorError> {
        let (own, rest) = rows.columns().split_at(spec.columns.len());
        let times = |c: &ArrayRef| c.as_primitive::<TimestampMicrosecondType>().clone();
        let mut hashes = Vec::new();
        stable_hashes(&own[..spec.keys], rows.num_rows(), &mut hashes);
        Ok(Self {
            hashes,
            keys: keys.encode(&own[..spec.keys])?,
            values: values.encode(&own[spec.keys..])?,
            from: times(&rest[0]),
            change: rest[1].as_string::<i32>().clone(),
            ingest: times(&rest[2]),
            // Who writes a file or answers at a URL has a bound of his own; a topic has none.
            closed: closed && spec.entries.is_some(),
        })
    }

    /// Whether a change finds no place; `known` is what is known of its key. What is remembered had
    /// one before.
    pub(crate) fn is_refused(&self, change: Change, known: &History) -> bool {
        let remembered = matches!(change, Change::Recall | Change::RecallGone);
        self.closed && known.0.is_empty() && !remembered
    }

    /// What a row does, and what it says.
    pub(crate) fn row(&self, row: usize) -> (Change, Version) {
        let change = Change::parse(self.change.value(row));
        let values = change.has_row().then(|| self.values.row(row).as_ref().into());
        let from_us = if self.from.is_null(row) { SINCE_EVER } else { self.from.value(row) };
        (change, Version { from_us, values, ingest_us: self.ingest.value(row) })
    }
}
