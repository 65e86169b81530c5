//! The late readings of a group, some keys at a time.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use super::group::{Group, NAMED_MAX, late_of};

/// Late readings of keys that are done together, unless one key has more.
const READINGS_MAX: usize = 50_000;

/// Late readings of a key that have a time and came in one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    pub(super) time_us: i64,
    /// What was older was not revised by the step any more.
    pub(super) final_us: i64,
    /// The place of the message in the journal.
    pub(super) offset: i64,
    pub(super) count: i64,
}

/// See the module's head.
pub(super) struct LateKeys {
    found: Option<BoxStream<'static, anyhow::Result<RecordBatch>>>,
    /// By key, as JSON, and time. All but the last key are complete.
    keys: BTreeMap<String, Vec<Late>>,
    count: usize,
}

impl LateKeys {
    /// Rows of an earlier form of the step, with windows of fixed length, have other starts.
    pub(super) async fn of(group: &Group<'_>) -> anyhow::Result<Self> {
        let sql = format!(
            "SELECT keys, window_start, window_end, journal_offset, count(*) FROM {} AND time = \
             window_start GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
            late_of(group.of, group.times_us)
        );
        let found = group.session.sql(&sql).await?.execute_stream().await?;
        let found = found.map_err(anyhow::Error::from).boxed();
        Ok(Self { found: Some(found), keys: BTreeMap::new(), count: 0 })
    }

    /// The next keys, each with all of its late readings by time; none at the end.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<BTreeMap<String, Vec<Late>>>> {
        while let Some(found) = &mut self.found
            && (self.keys.len() < 2 || self.count <= READINGS_MAX)
            && self.keys.len() <= NAMED_MAX
        {
            match found.try_next().await? {
                Some(rows) => self.add(&rows)?,
                None => self.found = None,
            }
        }
        let complete = self.keys.len() - usize::from(self.found.is_some());
        let (mut taken, mut count) = (BTreeMap::new(), 0);
        while taken.len() < complete.min(NAMED_MAX)
            && (taken.is_empty() || count < READINGS_MAX)
            && let Some((key, late)) = self.keys.pop_first()
        {
            count += late.len();
            taken.insert(key, late);
        }
        self.count -= count;
        Ok((!taken.is_empty()).then_some(taken))
    }

    fn add(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        let keys = cast(rows.column(0), &DataType::Utf8)?;
        let keys = keys.as_string::<i32>();
        let [times, finals] =
            [1, 2].map(|i| rows.column(i).as_primitive::<TimestampMicrosecondType>());
        let [offsets, counts] = [3, 4].map(|i| rows.column(i).as_primitive::<Int64Type>());
        for row in 0..rows.num_rows() {
            let late = Late {
                time_us: times.value(row),
                final_us: finals.value(row),
                offset: offsets.value(row),
                count: counts.value(row),
            };
            match self.keys.get_mut(keys.value(row)) {
                Some(of) => of.push(late),
                None => drop(self.keys.insert(keys.value(row).to_owned(), vec![late])),
            }
        }
        self.count += rows.num_rows();
        Ok(())
    }
}
