//! The late readings of a group, some keys at a time.
//!
//! What a late reading changes may not be final when it comes. Then the step puts it off (its
//! `window_end` is its own time), and so all of its key that are late after it, until a row tells
//! that they can be done: they are of the group of that row. Late readings of counts are done at
//! once, and again with each such row.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tidegate_operators::spec::Shape;

use super::group::{Group, NAMED_MAX, late_of, time};

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
    /// That of the newest reading of the key when it was told what is final.
    pub(super) until_offset: i64,
    pub(super) count: i64,
}

/// The place of the newest reading of a key when its last late reading could be done.
pub(super) fn last_offset(late: &[Late]) -> i64 {
    late.iter().map(|l| l.until_offset).max().unwrap_or(i64::MAX)
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
        let mut sql = format!(
            "SELECT keys, window_start, window_end, journal_offset, journal_offset AS until_place, \
             count(*) FROM {} AND time = window_start AND time < window_end GROUP BY 1, 2, 3, 4",
            late_of(group.of, group.times_us)
        );
        if let Some(first) = first_put_off(group).await? {
            let more = match group.of.window.shape {
                Shape::Count { .. } => told_again(group, first),
                _ => put_off(group, first),
            };
            sql += &format!(" UNION ALL {more}");
        }
        sql += " ORDER BY 1, 2, 3, 4";
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
        let [offsets, until, counts] =
            [3, 4, 5].map(|i| rows.column(i).as_primitive::<Int64Type>());
        for row in 0..rows.num_rows() {
            let late = Late {
                time_us: times.value(row),
                final_us: finals.value(row),
                offset: offsets.value(row),
                until_offset: until.value(row),
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

impl Group<'_> {
    /// Whether the table of windows has every row that the step made of a key. Where an empty text
    /// is stored as null, and there can be null as well, nobody can say which rows are whose.
    pub(super) fn is_complete_of(&self, key: &str) -> bool {
        let key: serde_json::Value = serde_json::from_str(key).unwrap_or_default();
        let tables = [self.table, &self.of.stored];
        let is_hidden = |k: &usize| {
            let field = self.of.window.input.field(*k);
            let is_stored_as_null = tables.iter().any(|t| t.partition.contains(field.name()));
            let value = key.get(field.name()).and_then(|value| value.as_str());
            field.is_nullable() && is_stored_as_null && value == Some("")
        };
        self.is_complete && !self.of.window.keys.iter().any(is_hidden)
    }
}

/// Which rows tell what can be done now.
const TELLS: &str = "window_start < time AND time = window_end";

/// Of the readings that were put off and can be done with a group, the first time, and a place in
/// the journal that none came before.
async fn first_put_off(group: &Group<'_>) -> anyhow::Result<Option<(i64, i64)>> {
    let late = late_of(group.of, group.times_us);
    // Rows that an earlier version told do not say the place.
    let first = "min(window_start), min(coalesce(first_offset, 0))";
    let sql = format!("SELECT {first} FROM {late} AND {TELLS}");
    let found = group.session.sql(&sql).await?.collect().await?;
    let each = found.iter().flat_map(|rows| {
        let times = rows.column(0).as_primitive::<TimestampMicrosecondType>();
        let places = rows.column(1).as_primitive::<Int64Type>();
        times.iter().zip(places).filter_map(|(time, place)| time.zip(place)).collect::<Vec<_>>()
    });
    Ok(each.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))))
}

/// Asks for the readings that were put off and can be done with a group, none of which is older or
/// came before the first: each is of the first row that tells of its key, and of its place in the
/// journal or a later one. Those rows are not before the first either.
fn put_off(group: &Group<'_>, (first_us, first_offset): (i64, i64)) -> String {
    let (from_us, until_us) = group.times_us;
    let late = late_of(group.of, (0, until_us));
    let from_first = format!("time >= {} AND journal_offset >= {first_offset}", time(first_us));
    let tells = format!(
        "SELECT keys, journal_offset AS until_place, window_end AS final_time, ingest_time AS told \
         FROM {late} AND {TELLS} AND {from_first}"
    );
    let put_off = format!(
        "SELECT keys, time AS at, journal_offset AS place, count(*) AS readings FROM {late} AND \
         time = window_start AND time = window_end AND {from_first} GROUP BY 1, 2, 3"
    );
    let until = format!(
        "SELECT o.keys, o.at, o.place, o.readings, min(t.until_place) AS until_place FROM \
         ({put_off}) AS o JOIN ({tells}) AS t ON o.keys = t.keys AND o.place <= t.until_place \
         GROUP BY 1, 2, 3, 4"
    );
    format!(
        "SELECT o.keys, o.at, t.final_time, o.place, o.until_place, o.readings FROM ({until}) AS o \
         JOIN ({tells}) AS t ON o.keys = t.keys AND o.until_place = t.until_place WHERE t.told \
         >= {}",
        time(from_us)
    )
}

/// Asks for the readings that are done again with a group, as more of what they are in is final;
/// none of them is older or came before the first.
fn told_again(group: &Group<'_>, (first_us, first_offset): (i64, i64)) -> String {
    let (until_us, first) = (group.times_us.1, time(first_us));
    let tells = format!(
        "SELECT keys, window_start AS first_time, window_end AS final_time, journal_offset AS \
         until_place FROM {} AND {TELLS}",
        late_of(group.of, group.times_us)
    );
    let late = format!(
        "SELECT keys, time AS at, journal_offset AS place, count(*) AS readings FROM {} AND time = \
         window_start AND time >= {first} AND journal_offset >= {first_offset} GROUP BY 1, 2, 3",
        late_of(group.of, (0, until_us))
    );
    format!(
        "SELECT o.keys, o.at, max(t.final_time), o.place, o.place AS until_place, o.readings FROM \
         ({late}) AS o JOIN ({tells}) AS t ON o.keys = t.keys AND o.place <= t.until_place AND \
         o.at >= t.first_time GROUP BY o.keys, o.at, o.place, o.readings"
    )
}
