//! Tables behind filters, routes and other steps without state: they show what these make of the
//! windows as they are after any delay.

use super::*;

const STEPS: &str = r#"
[[step]]
name = "fives"
type = "window"
every = "5m"
revise_for = "10m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "large"
type = "filter"
from = "fives"
where = "total > 8"

[[step]]
name = "kinds"
type = "route"
from = "large"
branches = { odd = "total % 2 = 1", even = "true" }

[[step]]
name = "halves"
type = "derive"
from = "even"
set = { half = "total / 2" }

[[step]]
name = "trips"
type = "window"
gap = "2m"
revise_for = "5m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "short"
type = "filter"
from = "trips"
where = "n < 3"

[[step]]
name = "tens"
type = "window"
every = "10m"
early = "1m"
revise_for = "10m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "small_tens"
type = "filter"
from = "tens"
where = "total < 9"

[[step]]
name = "small_so_far"
type = "filter"
from = "tens"
early = true
where = "total < 9"

[[table]]
from = "readings"
[[table]]
from = "fives"
[[table]]
from = "large"
[[table]]
from = "odd"
[[table]]
from = "halves"
[[table]]
from = "trips"
[[table]]
from = "short"
[[table]]
from = "tens"
[[table]]
from = "small_tens"
[[table]]
from = "small_so_far"
"#;

/// Each table behind windows with these, and what it shows of them.
const BEHIND: [(&str, &str, &str); 6] = [
    ("large", "fives", "total > 8"),
    ("odd", "fives", "total > 8 AND total % 2 = 1"),
    ("halves", "fives", "total > 8 AND total % 2 = 0"),
    ("short", "trips", "n < 3"),
    ("small_tens", "tens", "total < 9"),
    ("small_so_far", "tens", "total < 9"),
];

/// All that is in the tables, once it is right.
async fn all(home: &Home) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for (table, windows, condition) in BEHIND {
        let shown = home.windows(table, "true").await;
        assert_eq!(shown, home.windows(windows, condition).await, "{table}");
        let twice = format!(
            "SELECT device, window_start, revision FROM p.{table}_revisions GROUP BY 1, 2, 3 \
             HAVING count(*) > 1"
        );
        assert_eq!(home.ask(&twice).await, Vec::<String>::new(), "{table}");
        all.push(home.ask(&format!("SELECT * FROM p.{table}_revisions")).await);
    }
    all
}

/// The windows of five minutes of all readings.
fn fives(readings: &[Reading]) -> Vec<String> {
    let mut all: BTreeMap<(usize, i64), (i64, i64)> = BTreeMap::new();
    for (device, minute, value) in readings {
        let of = all.entry((*device, minute.div_euclid(5) * 5)).or_default();
        *of = (of.0 + 1, of.1 + value);
    }
    let line = |((device, start), (n, total)): ((usize, i64), (i64, i64))| {
        let at = |minute: i64| START + minute * MINUTE;
        format!("d{device} {} {} {n} {total}", at(start), at(start + 5))
    };
    let mut lines: Vec<String> = all.into_iter().map(line).collect();
    lines.sort();
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]
    #[test]
    fn tables_behind_windows_show_what_passes_of_them_after_any_delay(
        readings in readings(), every in 1i64..9,
    ) {
        let expected = fives(&readings);
        let [at_once, in_parts] =
            at_once_and_in_parts(|| plan_of(STEPS), &readings, every, async |home: &Home| {
                assert_eq!(home.windows("fives", "true").await, expected);
                all(home).await
            });
        prop_assert_eq!(in_parts, at_once);
    }
}

/// A kill between the commits of a group: that of a table behind is there, that of the windows not.
#[test]
fn a_kill_before_the_windows_are_committed_brings_nothing_twice() {
    // The first window is even, and odd with what comes late.
    let readings = [(0, 0, 8), (0, 1, 2), (0, 200, 1), (0, 2, 1), (0, 3, 2)];
    let edges = run_of(&plan_of(STEPS), &readings, 1);
    blocking(async {
        let mut home = Home::of(plan_of(STEPS));
        home.write_all(&edges).await;
        let worker = home.worker(20 * S);
        let counts = async || {
            let odd = home.windows("odd", "true").await.len();
            (home.windows("halves", "true").await.len(), odd)
        };
        assert_eq!(counts().await, (1, 0));
        home.catch_up(&worker, i64::MAX).await;
        assert_eq!(counts().await, (0, 1), "it has moved");
        let after = (all(&home).await, home.ask("SELECT * FROM p.fives_revisions").await);
        let log = home.folder.path().join("p/fives/_delta_log");
        let newest = std::fs::read_dir(&log).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        std::fs::remove_file(&newest).unwrap();
        assert_ne!(home.ask("SELECT * FROM p.fives_revisions").await, after.1);
        home.catch_up(&home.worker(20 * S), i64::MAX).await;
        let again = (all(&home).await, home.ask("SELECT * FROM p.fives_revisions").await);
        assert_eq!(again, after);
    });
}
