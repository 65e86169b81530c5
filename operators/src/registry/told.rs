//! Histories as rows of versions tell them (`versions.rs` makes these): of each time since which
//! something holds, the row with the greatest revision is right. Which rows had been told by some
//! time is the matter of who reads them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::row::Rows;

use super::history::SINCE_EVER;
use super::{History, Version};
use crate::grouped::RowCodec;
use crate::key::stable_hashes;
use crate::operator::OperatorError;
use crate::spec::{INGEST_TIME, RegistrySpec, VALID_FROM, VALID_TO};

/// A version, until when it holds, and which of several rows is right.
#[derive(Clone, Debug)]
pub(crate) struct ToldRow {
    version: Version,
    to_us: i64,
    revision: i64,
}

/// What rows tell of one key, by since when it holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToldRows(BTreeMap<i64, ToldRow>);

impl ToldRows {
    /// Takes a row, in whatever order they come.
    pub(crate) fn add(&mut self, row: ToldRow) {
        let from_us = row.version.from_us;
        if self.0.get(&from_us).is_none_or(|known| known.revision < row.revision) {
            self.0.insert(from_us, row);
        }
    }

    /// The history.
    pub(crate) fn history(self) -> History {
        // What was withdrawn held at no time.
        let holds = |row: &ToldRow| row.to_us > row.version.from_us.max(0);
        let mut versions: Vec<Version> = Vec::with_capacity(self.0.len());
        let mut ends_us = i64::MAX;
        let nothing = |from_us, ingest_us| Version { from_us, values: None, ingest_us };
        for ToldRow { version, to_us, .. } in self.0.into_values().filter(holds) {
            if ends_us < version.from_us {
                versions.push(nothing(ends_us, version.ingest_us));
            }
            ends_us = to_us;
            versions.push(version);
        }
        if let Some(ingest_us) = versions.last().map(|last| last.ingest_us)
            && ends_us < i64::MAX
        {
            versions.push(nothing(ends_us, ingest_us));
        }
        History(versions)
    }
}

/// Rows of versions, taken apart.
pub(crate) struct VersionsTold {
    /// Stable hashes of the keys.
    pub(crate) hashes: Vec<u64>,
    /// The keys as bytes.
    pub(crate) keys: Rows,
    values: Rows,
    from: TimestampMicrosecondArray,
    to: TimestampMicrosecondArray,
    ingest: TimestampMicrosecondArray,
    revisions: Int64Array,
}

impl VersionsTold {
    /// Takes rows of [`RegistrySpec::versions_schema`] apart.
    pub(crate) fn new(
        spec: &RegistrySpec,
        rows: &RecordBatch,
        (keys, values): (&RowCodec, &RowCodec),
    ) -> Result<Self, OperatorError> {
        let own = &rows.columns()[..spec.columns.len()];
        let times = |name: &str| rows[name].as_primitive::<TimestampMicrosecondType>().clone();
        let mut hashes = Vec::new();
        stable_hashes(&own[..spec.keys], rows.num_rows(), &mut hashes);
        Ok(Self {
            hashes,
            keys: keys.encode(&own[..spec.keys])?,
            values: values.encode(&own[spec.keys..])?,
            from: times(VALID_FROM),
            to: times(VALID_TO),
            ingest: times(INGEST_TIME),
            revisions: rows["revision"].as_primitive::<Int64Type>().clone(),
        })
    }

    /// What a row tells of its key.
    pub(crate) fn row(&self, row: usize) -> ToldRow {
        let known = |times: &TimestampMicrosecondArray, unknown: i64| match times.is_null(row) {
            true => unknown,
            false => times.value(row),
        };
        let version = Version {
            from_us: known(&self.from, SINCE_EVER),
            values: Some(Arc::from(self.values.row(row).as_ref())),
            ingest_us: self.ingest.value(row),
        };
        let (to_us, revision) = (known(&self.to, i64::MAX), self.revisions.value(row));
        ToldRow { version, to_us, revision }
    }
}
