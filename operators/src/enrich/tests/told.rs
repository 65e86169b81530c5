//! What the table of versions had told by some time gives the rows what the operator gave them.

use super::*;
use crate::registry::Versions;

/// The rows of epochs as the operator gives them, and the versions that were told by then.
struct Live {
    operator: Enrich,
    versions: Versions,
    told: Vec<RecordBatch>,
}

impl Live {
    fn new(spec: &EnrichSpec) -> Self {
        let operator = Enrich::new(spec.clone()).unwrap();
        let versions = Versions::new(spec.registry.clone()).unwrap();
        Self { operator, versions, told: Vec::new() }
    }

    /// What an epoch brings, and how many rows of it fail.
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        said: &RecordBatch,
        tick: Tick,
    ) -> (RecordBatch, usize) {
        let mut emit = Emit::default();
        self.operator.epoch(rows, said, tick, &mut emit).unwrap();
        let failed = emit.rejects.iter().map(RecordBatch::num_rows).sum();
        let made = whole(&self.operator.spec, &emit.rows);
        let mut emit = Emit::default();
        self.versions.epoch(said, tick, &mut emit).unwrap();
        for rows in &emit.rows {
            let told = rows["told_time"].as_primitive::<TimestampMicrosecondType>();
            assert!(told.iter().all(|us| us == Some(tick.time_us)));
        }
        self.told.extend(emit.rows);
        (made, failed)
    }
}

fn whole(spec: &EnrichSpec, rows: &[RecordBatch]) -> RecordBatch {
    arrow::compute::concat_batches(&spec.schema(), rows).unwrap()
}

fn rows_of(spec: &EnrichSpec, rows: &[Row]) -> RecordBatch {
    let columns = vec![
        devices(rows.iter().map(|r| r.0)),
        times(rows.iter().map(|r| Some(r.1))),
        numbers(rows.iter().map(|r| r.2)),
        times(rows.iter().map(|r| Some(r.1 + 5))),
    ];
    RecordBatch::try_new(Arc::clone(&spec.input), columns).unwrap()
}

proptest! {
    #[test]
    fn what_was_told_is_what_was_known(
        (own_times, epochs) in cases(),
        rejects in any::<bool>(),
        default in prop::option::of(7..9_i64),
        newest_first in any::<bool>(),
    ) {
        let mut spec = spec(None, own_times);
        spec.missing = if rejects { Missing::Reject } else { Missing::Null };
        spec.defaults = vec![default.map(lit)];
        // Here a first revision says that it is withdrawn.
        spec.rows = Some(2);
        let mut live = Live::new(&spec);
        for (number, (time_us, said, rows)) in epochs.iter().enumerate() {
            let tick = Tick { epoch: number as u64 + 1, time_us: *time_us };
            let (rows, said) = (rows_of(&spec, rows), changes(&spec, *time_us, said));
            let expected = live.epoch(&rows, &said, tick);
            let mut told: Vec<&RecordBatch> = live.told.iter().collect();
            if newest_first {
                told.reverse();
            }
            let mut again = EnrichTold::new(spec.clone()).unwrap();
            let (mut made, mut failed) = (Vec::new(), 0);
            for at in (0..rows.num_rows()).step_by(2) {
                let some = rows.slice(at, 2.min(rows.num_rows() - at));
                let wanted = again.wants(&some).unwrap();
                prop_assert!(wanted[0].len() <= 2);
                for versions in &told {
                    again.tell(versions).unwrap();
                }
                let (joined, refused) = again.join(&some).unwrap();
                made.extend(joined);
                failed += refused;
            }
            prop_assert_eq!((whole(&spec, &made), failed), expected);
        }
    }
}

/// Who asks for the same keys again is not asked for them.
#[test]
fn a_key_is_wanted_once_and_none_of_which_a_part_is_null() {
    let mut spec = spec(None, true);
    let fields = spec.input.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
    spec.input = Arc::new(Schema::new(fields.collect::<Vec<Field>>()));
    let mut again = EnrichTold::new(spec.clone()).unwrap();
    let rows = |names: &[Option<&str>]| {
        let count = names.len() as i64;
        let columns = vec![
            Arc::new(StringArray::from_iter(names.iter().copied())) as ArrayRef,
            times((0..count).map(Some)),
            numbers(0..count),
            times((0..count).map(Some)),
        ];
        RecordBatch::try_new(Arc::clone(&spec.input), columns).unwrap()
    };
    let mut wants = |names: &[Option<&str>]| {
        let rows = rows(names);
        let wanted = again.wants(&rows).unwrap();
        again.join(&rows).unwrap();
        wanted[0].as_string::<i32>().iter().flatten().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(wants(&[Some("b"), None, Some("b"), Some("b")]), "b");
    assert_eq!(wants(&[Some("b"), Some("a")]), "a");
    assert_eq!(wants(&[Some("a"), Some("b")]), "");
    assert_eq!(wants(&[Some("a"), Some("c")]).len(), 3, "more than is remembered");
}
