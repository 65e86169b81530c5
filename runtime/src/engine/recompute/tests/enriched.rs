//! Tables behind joins with registries: what stands there of a window that was computed again is
//! what the registry had said by the end of the group, against a plain list of what was said.

use std::collections::BTreeSet;

use tidegate_operators::registry::Change;
use tidegate_pipelines::plan::TestChange;

use super::*;

const STEPS: &str = r#"
[[registry]]
name = "limits"
path = "limits.csv"
key = ["device"]
columns = { device = "string", high = "int64" }
valid_from = "since"

[[registry]]
name = "names"
path = "names.csv"
key = ["device"]
columns = { device = "string", number = "int64" }

[[step]]
name = "fives"
type = "window"
every = "5m"
revise_for = "10m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "limited"
type = "enrich"
from = "fives"
registry = "limits"

[[step]]
name = "named"
type = "enrich"
from = "limited"
registry = "names"
default = { number = "total + 100" }

[[step]]
name = "large"
type = "filter"
from = "fives"
where = "total > 8"

[[step]]
name = "strict"
type = "enrich"
from = "large"
registry = "limits"
missing = "reject"

[[step]]
name = "over"
type = "filter"
from = "strict"
where = "total > high"

[[step]]
name = "trips"
type = "window"
gap = "2m"
revise_for = "5m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "known_trips"
type = "enrich"
from = "trips"
registry = "limits"
missing = "reject"

[[table]]
from = "readings"
[[table]]
from = "fives"
[[table]]
from = "limited"
[[table]]
from = "named"
[[table]]
from = "strict"
[[table]]
from = "over"
[[table]]
from = "trips"
[[table]]
from = "known_trips"
"#;

/// Before which reading it is said, of which registry (the one whose rows say since when they
/// hold), of which device; since how many minutes after the start (`None`: since ever), and what
/// (`None`: that it was never so, or, without since when, that the device is gone).
type Said = (usize, bool, usize, Option<i64>, Option<i64>);

/// When the reading of this number is received.
fn received_us(number: usize) -> i64 {
    START + 30 * MINUTE + number as i64 * 10 * S
}

/// When something is said.
fn said_us(said: &Said) -> i64 {
    received_us(said.0) - 5 * S
}

/// Since when something holds that was said: what says nothing of that holds since it was said.
fn since_us((_, own, _, since, _): &Said, at_us: i64) -> Option<i64> {
    if *own { since.map(|minute| START + minute * MINUTE) } else { Some(at_us) }
}

/// The readings, and what registries say between them.
fn with_said(readings: &[Reading], said: &[Said]) -> Vec<TestInput> {
    let mut all = inputs(readings);
    all.extend(said.iter().map(|one| {
        let (_, own, device, _, value) = one;
        let (registry, column) = if *own { ("limits", "high") } else { ("names", "number") };
        let at_us = said_us(one);
        let since_us = since_us(one, at_us);
        let change = match (value, own) {
            (Some(_), _) => Change::Set,
            (None, true) => Change::Withdraw,
            (None, false) => Change::Remove,
        };
        let mut row = format!(r#"{{"device":"d{device}""#);
        row += &value.map_or_else(String::new, |value| format!(r#","{column}":{value}"#));
        if let (true, Some(us)) = (own, since_us) {
            row += &format!(r#","since":{}"#, us / 1000);
        }
        TestInput {
            topic: format!("registry/p/{registry}"),
            at_us,
            payload: (row + "}").into_bytes(),
            properties: Vec::new(),
            change: Some(TestChange { change, since_us }),
            event: None,
        }
    }));
    all
}

fn run_with(readings: &[Reading], said: &[Said], workers: usize) -> Edges {
    trial::run(&plan_of(STEPS).pipelines[0], &with_said(readings, said), workers).unwrap()
}

/// What a registry had said before a time, of a device as of another time.
fn holds(
    said: &[Said],
    own: bool,
    device: usize,
    (as_of_us, before_us): (i64, i64),
) -> Option<i64> {
    let mut known: BTreeMap<i64, Option<i64>> = BTreeMap::new();
    for one in said.iter().filter(|s| (s.1, s.2) == (own, device) && said_us(s) < before_us) {
        let since_us = since_us(one, said_us(one)).unwrap_or(i64::MIN);
        match (own, one.4) {
            (true, None) => drop(known.remove(&since_us)),
            (_, value) => drop(known.insert(since_us, value)),
        }
    }
    known.range(..=as_of_us).next_back().and_then(|(_, value)| *value)
}

/// Device and start of a window.
type Window = (usize, i64);

/// The newest revision of a window that a table has, how many readings, `total`, and one more.
type Newest = (i64, i64, Option<i64>, Option<i64>);

async fn newest(home: &Home, table: &str, more: &str) -> BTreeMap<Window, Newest> {
    let start = "arrow_cast(window_start, 'Int64')";
    let sql = format!(
        "SELECT concat_ws(' ', substr(device, 2), {start}, revision, rows, coalesce(total, -1), \
         coalesce({more}, -1)) FROM p.{table}_revisions"
    );
    let mut all: BTreeMap<Window, Newest> = BTreeMap::new();
    for line in home.ask(&sql).await {
        let cells: Vec<i64> = line.split(' ').map(|cell| cell.parse().unwrap()).collect();
        let [device, start, revision, rows, total, more] = cells[..] else { panic!("{line}") };
        let some = |value: i64| (value != -1).then_some(value);
        let row = (revision, rows, some(total), some(more));
        let known = all.entry((device as usize, start)).or_insert(row);
        *known = if known.0 < revision { row } else { *known };
    }
    all
}

/// The end of the group of the newest late reading of each window of `fives`.
fn groups(edges: &Edges, every_us: i64) -> BTreeMap<Window, i64> {
    let mut ends = BTreeMap::new();
    for late in edges.get("late").into_iter().flatten() {
        let time = |name: &str| late[name].as_primitive::<TimestampMicrosecondType>().clone();
        let (starts, told) = (time("window_start"), time("ingest_time"));
        for row in 0..late.num_rows() {
            let cell = |name: &str| array_value_to_string(&late[name], row).unwrap();
            if cell("step") != "fives" {
                continue;
            }
            let keys: serde_json::Value = serde_json::from_str(&cell("keys")).unwrap();
            let device = keys["device"].as_str().unwrap()[1..].parse().unwrap();
            let end_us = (told.value(row).div_euclid(every_us) + 1) * every_us;
            let end = ends.entry((device, starts.value(row))).or_insert(end_us);
            *end = end_us.max(*end);
        }
    }
    ends
}

/// What stands in the tables of windows that were computed again is what had been said by then.
async fn check(home: &Home, said: &[Said], ends: &BTreeMap<Window, i64>) {
    let fives = newest(home, "fives", "n").await;
    let [limited, strict] =
        [newest(home, "limited", "high").await, newest(home, "strict", "high").await];
    let named = newest(home, "named", "number").await;
    assert_eq!((limited.len(), named.len()), (fives.len(), fives.len()));
    for (window, end_us) in ends {
        let (revision, rows, total, _) = fives[window];
        let known = |own: bool| holds(said, own, window.0, (window.1, *end_us));
        let high = known(true);
        assert_eq!(limited[window], (revision, rows, total, high), "{window:?}");
        let number = known(false).or_else(|| total.map(|total| total + 100));
        assert_eq!(named[window], (revision, rows, total, number), "{window:?}");
        let was = strict.get(window).filter(|row| row.0 == revision);
        match (total > Some(8), high) {
            (true, Some(_)) => assert_eq!(was, Some(&(revision, rows, total, high))),
            (true, None) => assert_eq!(was, None, "refused"),
            // Whatever is known of it, it takes back what passed.
            (false, _) => assert!(revision == 0 || was.is_some_and(|row| row.1 == 0)),
        }
    }
    let over = home.windows("over", "true").await;
    assert_eq!(over, home.windows("strict", "total > high").await);
    let trips = home.windows("trips", "true").await;
    let known = home.windows("known_trips", "true").await;
    let starts = |lines: &[String]| -> Vec<String> {
        lines.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    let trips = starts(&trips);
    assert!(starts(&known).iter().all(|trip| trips.contains(trip)), "what is none passes");
}

const TABLES: [&str; 6] = ["fives", "limited", "named", "strict", "over", "known_trips"];

async fn everything(home: &Home) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for table in TABLES {
        let twice = format!(
            "SELECT device, window_start, revision FROM p.{table}_revisions GROUP BY 1, 2, 3 \
             HAVING count(*) > 1"
        );
        assert_eq!(home.ask(&twice).await, Vec::<String>::new(), "{table}");
        all.push(home.ask(&format!("SELECT * FROM p.{table}_revisions")).await);
    }
    all
}

fn said() -> impl Strategy<Value = Vec<Said>> {
    let own = (Just(true), 0usize..3, prop::option::weighted(0.9, 0i64..240));
    let other = (Just(false), 0usize..3, Just(None));
    let of = prop_oneof![3 => own, 1 => other];
    let value = prop::option::weighted(0.7, 0i64..20);
    prop::collection::vec((0usize..80, of, value), 0..25).prop_map(|all| {
        let mut all: Vec<Said> = all
            .into_iter()
            .map(|(at, (own, device, since), v)| (at, own, device, since, v))
            .collect();
        all.sort_by_key(|one| one.0);
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn behind_a_join_stands_what_was_said_by_the_end_of_the_group(
        readings in readings(), said in said(), every in 1i64..9,
    ) {
        let every_us = every * 20 * S;
        let edges = run_with(&readings, &said, 1);
        let ends = groups(&edges, every_us);
        let at_once = blocking(async {
            let (home, _) = Home::of(plan_of(STEPS)).caught_up(&edges, every_us).await;
            check(&home, &said, &ends).await;
            everything(&home).await
        });
        let edges = run_with(&readings, &said, 3);
        let in_parts = blocking(async {
            let mut home = Home::of(plan_of(STEPS));
            home.catch_up_by_groups(&edges, readings.len(), every_us).await;
            everything(&home).await
        });
        prop_assert_eq!(in_parts, at_once);
    }
}

/// The first two are a window, the third closes it, the fourth is too late for it.
const READINGS: [Reading; 5] = [(0, 0, 4), (0, 1, 5), (0, 200, 1), (0, 2, 2), (0, 201, 1)];

/// What `limited` has of that window, with revisions.
async fn limited(home: &Home) -> Vec<String> {
    let at = format!("arrow_cast(window_start, 'Int64') = {START}");
    home.ask(&format!("SELECT revision, total, high FROM p.limited_revisions WHERE {at}")).await
}

#[test]
fn what_is_said_after_the_end_of_the_group_does_not_matter_however_late_it_runs() {
    // Before the fourth reading one holds from the start on; before the fifth that was another, or
    // never so, or something held before it.
    let before = (3, true, 0, Some(0), Some(7));
    for (later, in_group) in [
        ((4, true, 0, Some(0), Some(8)), "8"),
        ((4, true, 0, Some(0), None), ""),
        ((4, true, 0, None, Some(9)), "7"),
    ] {
        let edges = run_with(&READINGS, &[before, later], 1);
        // The group of the fourth reading ends when it is said, or after that.
        for (every_us, high) in [(5 * S, "7"), (60 * S, in_group)] {
            blocking(async {
                let (home, _) = Home::of(plan_of(STEPS)).caught_up(&edges, every_us).await;
                let shown = limited(&home).await;
                assert_eq!(shown, ["0 9 ".to_owned(), format!("1 11 {high}")], "{later:?}");
            });
        }
    }
}

/// A kill between the commits of a group: that of the tables behind is there, that of the windows
/// not.
#[test]
fn a_kill_before_the_windows_are_committed_brings_nothing_twice_behind_a_join() {
    let edges = run_with(&READINGS, &[(1, true, 0, Some(0), Some(7))], 1);
    blocking(async {
        let (home, _) = Home::of(plan_of(STEPS)).caught_up(&edges, 20 * S).await;
        let after = everything(&home).await;
        assert_eq!(limited(&home).await, ["0 9 7", "1 11 7"]);
        let log = home.folder.path().join("p/fives/_delta_log");
        let newest = std::fs::read_dir(&log).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        std::fs::remove_file(&newest).unwrap();
        assert_ne!(everything(&home).await, after);
        home.catch_up(&home.worker(20 * S), i64::MAX).await;
        assert_eq!(everything(&home).await, after);
    });
}

/// Has somebody delete all rows of a table so far.
fn delete_rows(home: &Home, table: &str) {
    let log = home.folder.path().join(format!("p/{table}/_delta_log"));
    let commit = |version: usize| log.join(format!("{version:020}.json"));
    let next = (0..).find(|version| !commit(*version).exists()).unwrap();
    let mut removed = String::new();
    for version in 0..next {
        for line in std::fs::read_to_string(commit(version)).unwrap().lines() {
            let action: serde_json::Value = serde_json::from_str(line).unwrap();
            if let Some(path) = action["add"]["path"].as_str() {
                let remove = serde_json::json!({ "path": path, "dataChange": true });
                removed += &(serde_json::json!({ "remove": remove }).to_string() + "\n");
            }
        }
    }
    assert!(!removed.is_empty());
    std::fs::write(commit(next), removed).unwrap();
}

#[test]
fn where_not_all_is_there_that_was_said_nothing_comes() {
    let edges = run_with(&READINGS, &[(0, true, 0, Some(0), Some(7))], 1);
    for (from_first, deleted) in [(true, false), (false, false), (true, true)] {
        blocking(async {
            let mut home = Home::of(plan_of(STEPS));
            home.from_first = from_first;
            home.write_all(&edges).await;
            if deleted {
                delete_rows(&home, "limits_versions");
            }
            let worker = home.worker(20 * S);
            home.catch_up(&worker, i64::MAX).await;
            let first = format!("arrow_cast(window_start, 'Int64') = {START}");
            let sql = format!("SELECT revision, total FROM p.fives_revisions WHERE {first}");
            assert_eq!(home.ask(&sql).await, ["0 9", "1 11"]);
            let comes = from_first && !deleted;
            let expected: &[&str] = if comes { &["0 9 7", "1 11 7"] } else { &["0 9 7"] };
            assert_eq!(limited(&home).await, expected);
            let told = match stored::kept(&worker) {
                0 => 0,
                _ => home
                    .ask("SELECT keys FROM system.windows_kept WHERE table_name = 'p.limited'")
                    .await
                    .len(),
            };
            assert_eq!(told, usize::from(!comes));
        });
    }
}

/// What is committed of the tables of versions is not all that was said by the end of a group.
#[test]
fn groups_wait_for_what_registries_said() {
    let steps = Recomputed::default();
    steps.follow(&plan_of(STEPS).pipelines);
    let awaited: BTreeSet<String> = awaited(&steps.now()).into_iter().collect();
    let tables = ["fives", "limits_versions", "names_versions", "readings", "trips"];
    let all = tables.map(|name| format!("p.{name}")).into_iter().chain(["system.late".to_owned()]);
    assert_eq!(awaited, all.collect());
}

/// Rows of versions from before there was `told_time` count as told when they were taken in.
#[test]
fn rows_that_do_not_say_when_they_were_told_are_told_when_they_came() {
    let before = [(0, true, 0, Some(0), Some(7)), (4, true, 0, Some(0), Some(8))];
    let mut edges = run_with(&READINGS, &before, 1);
    for rows in edges.get_mut("limits_versions").into_iter().flatten() {
        let place = rows.schema().index_of("told_time").unwrap();
        let mut columns = rows.columns().to_vec();
        columns[place] = arrow::array::new_null_array(columns[place].data_type(), rows.num_rows());
        *rows = RecordBatch::try_new(rows.schema(), columns).unwrap();
    }
    for (every_us, high) in [(5 * S, "7"), (60 * S, "8")] {
        blocking(async {
            let (home, _) = Home::of(plan_of(STEPS)).caught_up(&edges, every_us).await;
            assert_eq!(limited(&home).await, ["0 9 7".to_owned(), format!("1 11 {high}")]);
        });
    }
}
