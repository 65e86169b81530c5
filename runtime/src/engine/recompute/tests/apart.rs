//! Tables that do not get what is made of windows that were computed again.

use super::stored::kept;
use super::*;

const STEPS: &str = r#"
[[step]]
name = "fives"
type = "window"
every = "5m"
revise_for = "10m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "peaks"
type = "window"
every = "5m"
revise_for = "10m"
select = { most = "max(v)" }

[[step]]
name = "pairs"
type = "join"
from = "fives"
with = "peaks"
columns = ["most"]

[[step]]
name = "large"
type = "filter"
from = "pairs"
where = "total > 0"

[[table]]
from = "readings"
[[table]]
from = "fives"
[[table]]
from = "large"
"#;

/// Only the windows of `fives` have a table, so only those are computed again.
#[test]
fn what_is_joined_with_other_windows_is_told_once_over_a_kill() {
    let readings = [(0, 0, 8), (0, 1, 1), (0, 200, 1), (0, 2, 2)];
    let edges = run_of(&plan_of(STEPS), &readings, 1);
    blocking(async {
        let (home, worker) = Home::of(plan_of(STEPS)).caught_up(&edges, 20 * S).await;
        let told = async || {
            let times = "arrow_cast(time, 'Int64'), arrow_cast(window_end, 'Int64')";
            let sql = format!(
                "SELECT step, table_name, keys, {times}, late_readings FROM system.windows_kept"
            );
            home.ask(&sql).await
        };
        let end = START + 5 * MINUTE;
        let expected = format!("fives p.large {{\"device\":\"d0\"}} {START} {end} 0");
        assert_eq!((told().await, kept(&worker)), (vec![expected.clone()], 1));
        let first = format!("arrow_cast(window_start, 'Int64') = {START}");
        let of_first = |table| format!("SELECT revision, total FROM p.{table} WHERE {first}");
        assert_eq!(home.ask(&of_first("fives")).await, ["1 11"]);
        assert_eq!(home.ask(&of_first("large")).await, ["0 9"]);
        // A kill before the windows were committed.
        let log = home.folder.path().join("p/fives/_delta_log");
        let newest = std::fs::read_dir(&log).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        std::fs::remove_file(&newest).unwrap();
        let again = home.worker(20 * S);
        home.catch_up(&again, i64::MAX).await;
        assert_eq!(home.ask(&of_first("fives")).await, ["1 11"]);
        assert_eq!((told().await, kept(&again)), (vec![expected], 0));
    });
}
