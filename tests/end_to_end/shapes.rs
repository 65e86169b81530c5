//! Windows of every type over readings that come late, twice, from clocks that are wrong and from
//! devices that fall silent, killed (-9) in the middle on other numbers of workers: their latest
//! rows are those of one run.

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
    let late = home.count("SELECT count(*) FROM system.late");
    assert_eq!(late, 0, "within `revise_for` nothing is late");
    STEPS.iter().map(|(name, _)| (*name, rows(name))).collect()
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
