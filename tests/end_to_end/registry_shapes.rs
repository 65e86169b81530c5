//! Windows of every type are joined with a registry that is changed while readings come, late ones
//! among them, and while the process is killed: of every window there is what SQL over the whole
//! history finds for its start, and a plain loop over what was said. So is it of days in three
//! zones on which the clocks are changed, with limits that change when such a day begins and ends.

use std::collections::{BTreeMap, BTreeSet};

use super::shapes::{STEPS, arrivals, publish};
use crate::support::{Home, Instance, START_MS, eventually};

/// A day on which clocks are changed: zone, first and last second of it, of UTC.
const DAYS: [(&str, &str, i64, i64); 3] = [
    // 2026-03-29, of 23 hours.
    ("berlin", "Europe/Berlin", 1_774_738_800, 1_774_738_800 + 23 * HOUR),
    // 2026-11-01, of 25 hours.
    ("york", "America/New_York", 1_793_505_600, 1_793_505_600 + 25 * HOUR),
    // 2026-10-04, of 23 hours and a half.
    ("lord-howe", "Australia/Lord_Howe", 1_791_034_200, 1_791_034_200 + 23 * HOUR + HOUR / 2),
];
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const START: i64 = START_MS / 1000;

/// Since which second (`None`: ever) which device has which limit.
type Limits = Vec<(&'static str, Option<i64>, i64)>;

fn pipeline(limits: &str) -> String {
    let mut text = format!(
        r#"
name = "p"
[source]
type   = "endpoint"
listen = "127.0.0.1:0"
topics = ["plant/{{site}}/{{device}}/telemetry"]
[reading]
device     = "{{device}}"
time       = "ts"
disorder   = "5s"
idle_close = "1d"
future_bound = "36500d"
fields = {{ level = "int64", zone = "string" }}
[limits]
reading_every = "1s"
[[registry]]
name = "limits"
path = "{limits}"
key = ["device"]
valid_from = "since"
columns = {{ device = "string", high = "int64" }}
[[step]]
name = "zoned"
type = "filter"
from = "readings"
where = "zone IS NOT NULL"
"#
    );
    let days = ("days", "every = \"day\"\nzone = { column = \"zone\" }".to_owned(), "zoned");
    let shapes = STEPS.iter().map(|(name, keys)| (*name, keys.replace(", ", "\n"), "readings"));
    for (name, keys, from) in shapes.chain([days]) {
        text += &format!(
            "[[step]]\nname = \"{name}\"\ntype = \"window\"\nfrom = \"{from}\"\n{keys}\n\
             revise_for = \"45s\"\nselect = {{ n = \"count(*)\" }}\n\
             [[step]]\nname = \"of_{name}\"\ntype = \"enrich\"\nfrom = \"{name}\"\n\
             registry = \"limits\"\nrevise = true\nrevise_for = \"40d\"\n\
             [[table]]\nfrom = \"of_{name}\"\nfreshness = \"1s\"\n"
        );
    }
    // One that the registry revises for a shorter time than late readings do.
    text + "[[table]]\nfrom = \"state\"\nfreshness = \"1s\"\n\
            [[step]]\nname = \"shortly\"\ntype = \"enrich\"\nfrom = \"state\"\n\
            registry = \"limits\"\nrevise = true\nrevise_for = \"5s\"\n\
            [[table]]\nfrom = \"shortly\"\nfreshness = \"1s\"\n"
}

fn write(home: &Home, limits: &Limits) {
    let mut text = String::from("device,since,high\n");
    for (device, since, high) in limits {
        let since = since.map(|s| (s * 1000).to_string());
        text += &format!("{device},{},{high}\n", since.unwrap_or_default());
    }
    let new = home.write("limits.new", &text);
    std::fs::rename(&new, new.with_extension("csv")).unwrap();
}

/// Readings of the days, one an hour, from the evening before until a day later.
fn of_days() -> Vec<(String, String)> {
    let mut sent = Vec::new();
    for (device, zone, from, to) in DAYS {
        let hours = (from - 2 * HOUR..to + 2 * HOUR).step_by(HOUR as usize);
        for at in hours.chain([to + DAY, to + DAY + 60]) {
            let payload = format!(r#"{{"ts":{},"level":1,"zone":"{zone}"}}"#, at * 1000);
            sent.push((format!("plant/north/{device}/telemetry"), payload));
        }
    }
    sent
}

/// What holds at a second: of what is said, that with the greatest time.
fn holds(limits: &Limits, device: &str, at: i64) -> Option<i64> {
    let of = limits.iter().filter(|l| l.0 == device && l.1.is_none_or(|since| since <= at));
    of.max_by_key(|l| l.1).map(|l| l.2)
}

/// Windows of each table by device and start, with their ends.
type Windows = BTreeMap<(String, i64), i64>;

/// The windows of a table, each of which has the limit of its start, by the join, by SQL over the
/// history, and by the plain loop.
fn windows(home: &Home, name: &str, limits: &Limits) -> Result<Windows, String> {
    let seconds = |column: &str| format!("to_unixtime({column})");
    let query = format!(
        "SELECT l.device, {} AS a, {} AS z, l.high, v.high AS of_sql FROM p.of_{name} l LEFT JOIN \
         p.limits_versions v ON v.device = l.device \
         AND (v.valid_from IS NULL OR v.valid_from <= l.window_start) \
         AND (v.valid_to IS NULL OR l.window_start < v.valid_to)",
        seconds("l.window_start"),
        seconds("l.window_end"),
    );
    let mut found = Windows::new();
    let rows = home.try_rows(&query)?;
    for row in &rows {
        let (device, at) = (row["device"].as_str().unwrap(), row["a"].as_i64().unwrap());
        let expected = holds(limits, device, at);
        for column in ["high", "of_sql"] {
            if row[column].as_i64() != expected {
                return Err(format!("{name}: {column} is not {expected:?} in {row:?}"));
            }
        }
        found.insert((device.to_owned(), at), row["z"].as_i64().unwrap());
    }
    match found.len() == rows.len() || name.starts_with("counted") {
        true => Ok(found),
        false => Err(format!("{name}: {} windows have {} rows", found.len(), rows.len())),
    }
}

fn start(home: &Home, workers: usize) -> Instance {
    let mut command = home.run_command(workers);
    command.args(["--checkpoint-every", "100ms"]);
    home.start_command(&mut command)
}

/// Changes of the limits; what is in no later one was taken back.
fn changes() -> [Limits; 4] {
    let plain = |device, at: &[(i64, i64)]| -> Limits {
        let since = at.iter().map(|(at, high)| (device, Some(START + at), *high));
        std::iter::once((device, None, 0)).chain(since).collect()
    };
    let of_days = |wrong: i64| -> Limits {
        let of = |(device, _, from, to): &(&'static str, &str, i64, i64)| {
            [(*device, None, 1), (*device, Some(*from), 2), (*device, Some(to + wrong), 3)]
        };
        DAYS.iter().flat_map(of).collect()
    };
    [
        plain("d0", &[(10, 1)]),
        [plain("d0", &[(40, 7)]), plain("d1", &[(77, 5)]), of_days(-HOUR)].concat(),
        [plain("d0", &[(40, 8), (90, 9)]), plain("d1", &[(77, 5)]), of_days(HOUR)].concat(),
        [
            plain("d0", &[(40, 8), (90, 9), (180, 4)]),
            plain("d1", &[(20, 6), (300, 2)]),
            plain("d2", &[(31, 3), (333, 1)]),
            plain("d4", &[(100, 3)]),
            of_days(0),
        ]
        .concat(),
    ]
}

#[test]
fn windows_of_every_type_and_days_in_three_zones_have_what_the_whole_history_says() {
    let home = Home::with("");
    let path = home.write("limits.csv", "");
    home.write("pipelines/one.toml", &pipeline(&path.display().to_string()));
    let changes = changes();
    write(&home, &changes[0]);
    let sent = arrivals(47);
    let mut sent = sent.chunks(sent.len().div_ceil(3));
    for (workers, limits) in [2, 1].into_iter().zip(&changes[1..]) {
        let instance = start(&home, workers);
        publish(&instance, sent.next().unwrap());
        if workers == 2 {
            publish(&instance, &of_days());
        }
        write(&home, limits);
        let d0 = limits.iter().filter(|l| l.0 == "d0").count() as i64;
        let told = "SELECT count(*) FROM p.limits_versions WHERE device = 'd0' AND (valid_to IS \
                    NULL OR valid_from IS NULL OR valid_to > valid_from)";
        home.wait_for_count(told, d0);
        instance.kill();
    }
    let instance = start(&home, 3);
    publish(&instance, sent.next().unwrap());
    let last = &changes[3];
    write(&home, last);
    for (name, _) in STEPS {
        let found = eventually(name, || windows(&home, name, last));
        assert!(found.len() > 10, "{name} has only {} windows", found.len());
    }
    let days = eventually("the days", || windows(&home, "days", last));
    let lengths = DAYS.iter().flat_map(|(device, _, from, to)| {
        let of = |from: i64, to: i64| ((String::from(*device), from), to);
        [of(from - DAY, *from), of(*from, *to), of(*to, to + DAY)]
    });
    assert_eq!(days, lengths.collect(), "a day before, the day itself, and one after");
    instance.stop();
    check_revisions(&home);
}

/// No revision is there twice, and there were windows that moved, and were revised by both.
fn check_revisions(home: &Home) {
    let tables: BTreeSet<String> = STEPS.iter().map(|(name, _)| format!("of_{name}")).collect();
    for table in tables.iter().map(String::as_str).chain(["of_days", "shortly"]) {
        let id = if table == "of_counted" { "window_number" } else { "window_start" };
        let twice = format!(
            "SELECT count(*) FROM (SELECT device FROM p.{table}_revisions GROUP BY device, {id}, \
             revision HAVING count(*) > 1)"
        );
        assert_eq!(home.count(&twice), 0, "{table}");
    }
    let withdrawn = "SELECT count(*) FROM p.of_state_revisions WHERE rows = 0";
    assert!(home.count(withdrawn) > 0, "no window was withdrawn");
    for table in ["of_state", "shortly"] {
        let both = format!(
            "SELECT count(*) FROM p.{table} l JOIN p.state s ON s.device = l.device AND \
             s.window_start = l.window_start WHERE l.revision > s.revision"
        );
        assert!(home.count(&both) > 0, "{table}: the registry revised no window");
    }
}
