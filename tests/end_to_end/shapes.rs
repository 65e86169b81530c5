//! Windows of every type over readings that come late, twice, from clocks that are wrong and from
//! devices that fall silent, killed (-9) in the middle on other numbers of workers: their latest
//! rows are those of one run, and tumbling windows, sessions and counts those of a plain loop over
//! what was sent.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Device, Home, Instance, Reading, Rng, Row};

const EVERY_MS: i64 = 1_000;
const READINGS: i64 = 400;
/// Its clock is two hours ahead.
const FAST: &str = "d3";
/// It sends nothing in the second half.
const SILENT: &str = "d4";
const DEVICES: [&str; 5] = ["d0", "d1", "d2", FAST, SILENT];
/// Beyond the pipeline's `disorder`, so some windows were emitted before and are revised; within
/// its `revise_for`, so what is older is final, and folded.
const DELAY_MS_MAX: u64 = 40_000;

/// Each step by its name and the keys of its type. Sums are of whole numbers, so that they do not
/// depend on the order in which parts are added.
pub(super) const STEPS: &[(&str, &str)] = &[
    ("tumbling", r#"every = "10s""#),
    ("hopping", r#"size = "60s", slide = "10s""#),
    ("shifts", SHIFTS),
    ("session", r#"gap = "3s""#),
    ("session_max", r#"gap = "3s", max = "20s""#),
    ("counted", "count = 20, hop = 5"),
    ("state", r#"while = "level > 6""#),
    ("from_to", r#"begin = "level = 0", until = "level = 4", abort = "level = 7", max = "30s""#),
    ("around", r#"before = "20s", after = "5s", at = "level = 9""#),
    ("running", r#"before = "15s""#),
];

/// On the clocks of Berlin it is one in the morning when the readings begin.
const SHIFTS: &str = concat!(
    r#"zone = "Europe/Berlin", shifts = { a = "01:00",b = "01:01",c = "01:02",d = "01:03","#,
    r#"e = "01:04",f = "01:05",g = "01:06",h = "03:01",i = "03:03" }"#,
);

fn pipeline() -> String {
    let mut text = String::from(
        r#"
name = "shapes"
[source]
type   = "endpoint"
listen = "127.0.0.1:0"
topics = ["plant/{site}/{device}/telemetry"]
[reading]
device     = "{device}"
time       = "ts"
disorder   = "5s"
idle_close = "1d"
future_bound = "36500d"
[reading.fields]
level = "int64"
[limits]
reading_every = "1s"
"#,
    );
    for (name, keys) in STEPS {
        let keys = keys.replace(", ", "\n");
        text += &format!(
            "[[step]]\nname = \"{name}\"\ntype = \"window\"\nfrom = \"readings\"\n{keys}\n\
             revise_for = \"45s\"\nselect = {{ n = \"count(*)\", total = \"sum(level)\", \
             low = \"min(level)\", high = \"max(level)\" }}\n\
             [[table]]\nfrom = \"{name}\"\nfreshness = \"1s\"\n"
        );
    }
    text
}

/// What is published, in the order of arrival: topic and payload.
pub(super) fn arrivals(seed: u64) -> Vec<(String, String)> {
    let mut rng = Rng(seed);
    let mut timed = Vec::new();
    for device in DEVICES {
        let readings = if device == SILENT { READINGS / 2 } else { READINGS };
        for seq in (0..readings).filter(|seq| seq % 50 < 43) {
            let mut at = Reading::regular("north", device, seq, EVERY_MS);
            let sent_ms = at.at_ms as u64;
            if device == FAST {
                at.at_ms += 7_200_000;
            }
            let payload = format!(r#"{{"ts":{},"level":{}}}"#, at.at_ms, rng.below(10));
            let late = rng.below(10) == 0;
            let delay = if late { rng.below(DELAY_MS_MAX) } else { rng.below(3_000) };
            for again in 0..1 + u64::from(rng.below(30) == 0) {
                timed.push((sent_ms + delay + again * 700, at.topic(), payload.clone()));
            }
        }
    }
    timed.sort_by_key(|(arrives_ms, ..)| *arrives_ms);
    timed.into_iter().map(|(_, topic, payload)| (topic, payload)).collect()
}

pub(super) fn publish(instance: &Instance, sent: &[(String, String)]) {
    let mut client = Device::connect(instance.endpoint(), "gateway").unwrap();
    client.publish_all(sent.iter().map(|(t, p)| (t.as_str(), p.clone()))).unwrap();
}

/// The rows of each step as its table shows them, but for the number of the revision: how many
/// there are depends on what came in the same epoch.
fn outcome(workers: &[usize], sent: &[(String, String)]) -> Vec<(&'static str, Vec<String>)> {
    let home = Home::with(&pipeline());
    let part = sent.len().div_ceil(workers.len());
    let lives: Vec<_> = sent.chunks(part).collect();
    for (life, (count, sent)) in workers.iter().zip(lives).enumerate() {
        let mut command = home.run_command(*count);
        command.args(["--checkpoint-every", "100ms"]);
        let instance = home.start_command(&mut command);
        publish(&instance, sent);
        match life + 1 == workers.len() {
            true => instance.stop(),
            false => instance.kill(),
        }
    }
    let rows = |name: &str| {
        let mut lines: Vec<String> = home
            .rows(&format!("SELECT * FROM {name}"))
            .into_iter()
            .map(|mut row: Row| {
                row.remove("revision");
                Value::Object(row).to_string()
            })
            .collect();
        lines.sort();
        lines
    };
    for (name, all) in loops(sent) {
        compare(name, &shown(&home, name), &all);
    }
    let late = home.count("SELECT count(*) FROM system.late");
    assert_eq!(late, 0, "within `revise_for` nothing is late");
    STEPS.iter().map(|(name, _)| (*name, rows(name))).collect()
}

/// A window: its device, its bounds in seconds, and what its step selects.
type Window = (String, [i64; 2], [i64; 4]);

/// Windows of three types as loops over all that was sent have them, each with whether it is long
/// over for its device, so that it must have been told.
fn loops(sent: &[(String, String)]) -> [(&'static str, Vec<(Window, bool)>); 3] {
    /// More than `disorder` and the gap of a session.
    const OVER_S: i64 = 9;
    let mut devices: BTreeMap<&str, Vec<(i64, i64)>> = BTreeMap::new();
    for (topic, payload) in sent {
        let reading: Value = serde_json::from_str(payload).unwrap();
        let number = |name: &str| reading[name].as_i64().unwrap();
        let of = topic.split('/').nth(2).unwrap();
        devices.entry(of).or_default().push((number("ts") / 1_000, number("level")));
    }
    let (mut tumbling, mut sessions, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (device, mut readings) in devices {
        readings.sort_unstable();
        let newest_s = readings[readings.len() - 1].0;
        let window = |bounds_s: [i64; 2], of: &[(i64, i64)]| {
            let levels = || of.iter().map(|reading| reading.1);
            let (low, high) = (levels().min().unwrap(), levels().max().unwrap());
            let selected = [of.len() as i64, levels().sum(), low, high];
            ((device.to_owned(), bounds_s, selected), bounds_s[1] + OVER_S <= newest_s)
        };
        let ends = |of: &[(i64, i64)]| [of[0].0, of[of.len() - 1].0];
        for of in readings.chunk_by(|a, b| a.0 / 10 == b.0 / 10) {
            let start_s = of[0].0 / 10 * 10;
            tumbling.push(window([start_s, start_s + 10], of));
        }
        sessions.extend(readings.chunk_by(|a, b| b.0 - a.0 <= 3).map(|of| window(ends(of), of)));
        counts.extend(readings.windows(20).step_by(5).map(|of| window(ends(of), of)));
    }
    [("tumbling", tumbling), ("session", sessions), ("counted", counts)]
}

/// What the table of a step shows.
fn shown(home: &Home, name: &str) -> Vec<Window> {
    let rows = home.rows(&format!(
        "SELECT device, to_unixtime(window_start) AS first_s, to_unixtime(window_end) AS last_s, \
         n, total, low, high FROM {name} WHERE rows > 0"
    ));
    let window = |row: &Row| {
        let [first_s, last_s, n, total, low, high] =
            ["first_s", "last_s", "n", "total", "low", "high"].map(|c| row[c].as_i64().unwrap());
        let device = row["device"].as_str().unwrap().to_owned();
        (device, [first_s, last_s], [n, total, low, high])
    };
    rows.iter().map(window).collect()
}

/// There is no window but those of the loop, none twice, and each that must be there.
fn compare(name: &str, shown: &[Window], all: &[(Window, bool)]) {
    let mut left: BTreeMap<&Window, bool> = all.iter().map(|(w, over)| (w, *over)).collect();
    assert_eq!(left.len(), all.len(), "{name}");
    for window in shown {
        assert!(left.remove(window).is_some(), "{name}: {window:?} is not one of the loop's");
    }
    left.retain(|_, over| *over);
    assert!(left.is_empty(), "{name}: {left:?} are missing");
}

#[test]
fn every_type_of_window_is_the_same_after_kills_on_other_numbers_of_workers() {
    let sent = arrivals(31);
    let one = outcome(&[2], &sent);
    let many = outcome(&[1, 3, 2], &sent);
    for ((name, one), (_, many)) in one.into_iter().zip(many) {
        assert!(one.len() > 10, "{name} has only {} rows", one.len());
        assert_eq!(many, one, "{name}");
    }
}
