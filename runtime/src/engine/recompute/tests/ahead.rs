//! A window that is not final may be in its table or not yet when a group is done: late readings
//! have the same effects.

use std::collections::BTreeMap;

use super::*;
use super::{counts, states};

/// By step and device, before which time windows end that are final.
type Finals = BTreeMap<(String, String), i64>;

/// What the late readings that came in before a time said.
fn finals(edges: &Edges, until_us: i64) -> Finals {
    let mut finals = Finals::new();
    for rows in edges.get("late").into_iter().flatten() {
        let [came, ends] = ["ingest_time", "window_end"]
            .map(|column| rows[column].as_primitive::<TimestampMicrosecondType>());
        for row in (0..rows.num_rows()).filter(|row| came.value(*row) < until_us) {
            let text = |column: &str| array_value_to_string(&rows[column], row).unwrap();
            let keys: serde_json::Value = serde_json::from_str(&text("keys")).unwrap();
            let device = keys["device"].as_str().unwrap().to_owned();
            let final_us = finals.entry((text("step"), device)).or_insert(i64::MIN);
            *final_us = (*final_us).max(ends.value(row));
        }
    }
    finals
}

/// Which windows of a step are final.
fn are_final(finals: &Finals, step: &str, rows: &RecordBatch) -> Vec<bool> {
    let ends = rows["window_end"].as_primitive::<TimestampMicrosecondType>();
    let is_final = |row: usize| {
        let device = array_value_to_string(&rows["device"], row).unwrap();
        let final_us = finals.get(&(step.to_owned(), device));
        final_us.is_some_and(|final_us| ends.value(row) < *final_us)
    };
    (0..rows.num_rows()).map(is_final).collect()
}

/// The groups one after the other, each as soon as it can be, with windows that are final only.
async fn as_soon_as_can_be(home: &mut Home, edges: &Edges, readings: usize, every_us: i64) {
    let first_us = START + 30 * MINUTE;
    let last_us = first_us + readings as i64 * 10 * S;
    let mut until_us = first_us.div_euclid(every_us) * every_us;
    let mut before = Finals::new();
    while until_us <= last_us {
        let times = until_us..until_us + every_us;
        until_us = times.end;
        let now = finals(edges, until_us);
        home.write(edges, |edge, rows| {
            let column = match edge {
                "readings" => "received_time",
                "late" => "ingest_time",
                _ => {
                    let were = are_final(&before, edge, rows).into_iter();
                    let are = are_final(&now, edge, rows);
                    return were.zip(are).map(|(were, are)| are && !were).collect();
                }
            };
            let of_rows = rows[column].as_primitive::<TimestampMicrosecondType>();
            of_rows.values().iter().map(|us| times.contains(us)).collect()
        })
        .await;
        home.catch_up(&home.worker(every_us), until_us).await;
        before = now;
    }
    home.write(edges, |edge, rows| match edge {
        "readings" | "late" => vec![false; rows.num_rows()],
        _ => are_final(&before, edge, rows).into_iter().map(|were| !were).collect(),
    })
    .await;
}

/// What tables have at last, whether windows that are not final came before groups or after.
fn check<const N: usize>(
    plan: fn() -> Plan,
    (readings, every): (&[Reading], i64),
    all: impl AsyncFn(&Home) -> [Vec<String>; N],
) {
    let (edges, every_us) = (run_of(&plan(), readings, 1), every * 20 * S);
    blocking(async {
        let (at_once, worker) = Home::of(plan()).caught_up(&edges, every_us).await;
        let mut home = Home::of(plan());
        as_soon_as_can_be(&mut home, &edges, readings.len(), every_us).await;
        assert_eq!(all(&home).await, all(&at_once).await);
        assert_eq!(at_once.told(&worker).await, [] as [&str; 0]);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn counts_that_are_not_final_may_be_in_their_table_or_not(
        readings in readings(), every in 1i64..9,
    ) {
        check(counts::plan, (&readings, every), counts::all);
    }

    #[test]
    fn states_that_are_not_final_may_be_in_their_table_or_not(
        readings in with_an_end(), every in 1i64..9,
    ) {
        check(states::plan, (&readings, every), states::all);
    }
}
