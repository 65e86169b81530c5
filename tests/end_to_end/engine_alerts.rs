//! What the engine tells of itself, with the real process: trouble is a row of `system.alerts` that
//! fires, and one that ends it when the trouble is over.
//!
//! How long trouble has to last before it is told, and to be away before it is over, is a fiftieth
//! of what it is; `alarms::tests` has the times themselves.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use tidegate_operators::{MessageMeta, MessagesBuilder};
use tidegate_runtime::clock::Clock;
use tidegate_runtime::journal::{Feed, FeedSink, Journal, JournalOptions};

use crate::support::{
    ColdChain, Device, Home, Instance, Reading, Receiver, START_MS, data_files, eventually, get,
};

const SHORT: (&str, &str) = ("TIDEGATE_FAULT", "short:alarm:1+");
const METRICS: [&str; 2] = ["--metrics", "127.0.0.1:0"];
/// Twice what the journal may hold.
const FLOOD: i64 = 5_000;

/// Changes of one of the engine's own alerts, in their order: status and summary.
fn told(home: &Home, rule: &str) -> Result<Vec<(String, String)>, String> {
    let rows = home.try_rows(&format!(
        "SELECT status, summary FROM system.alerts WHERE pipeline = 'tidegate' \
         AND rule = '{rule}' ORDER BY time"
    ))?;
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    Ok(rows.iter().map(|row| (text(&row["status"]), text(&row["summary"]))).collect())
}

/// Waits until exactly this was told; gives what was said of the trouble.
fn wait_until_told(home: &Home, rule: &str, expected: &[&str]) -> String {
    eventually(&format!("{rule}: {expected:?}"), || {
        let told = told(home, rule)?;
        let is_all = told.iter().map(|(status, _)| status).eq(expected);
        if is_all { Ok(told[0].1.clone()) } else { Err(format!("{told:?}")) }
    })
}

/// What has a state is in `/health` as long as it lasts.
fn wait_for_health(instance: &Instance, reasons: &[&str]) {
    eventually(&format!("a health with {reasons:?}"), || {
        let (status, text) = get(instance.metrics().expect("asked for"), "/health").unwrap();
        let are_said = reasons.iter().all(|reason| text.contains(&format!("\"{reason}\"")));
        let is_right = if reasons.is_empty() { status == 200 } else { status == 503 && are_said };
        if is_right { Ok(()) } else { Err(format!("{status} {text}")) }
    });
}

fn wait_for_webhook(receiver: &Receiver, rule: &str, status: &str) {
    eventually(&format!("the webhook of {rule}, {status}"), || {
        let taken = receiver.deliveries().into_iter().filter(|d| d.status == 200);
        let bodies: Vec<serde_json::Value> =
            taken.map(|d| serde_json::from_str(&d.body).unwrap()).collect();
        let is_it = |body: &&serde_json::Value| {
            let data = &body["data"];
            data["pipeline"] == "tidegate" && data["rule"] == rule && data["status"] == status
        };
        bodies.iter().find(is_it).map(drop).ok_or_else(|| format!("{bodies:?}"))
    });
}

/// Without tables there is no checkpoint, and without that the journal keeps all that it has.
#[test]
fn tables_that_are_away_and_then_a_full_journal_are_told_at_once_and_when_they_are_over() {
    let receiver = Receiver::start();
    let home = Home::notifying_of_the_engine(&receiver);
    let mut command = home.run_command(2);
    command.args(METRICS).args(["--journal-max", "256KiB"]).env(SHORT.0, SHORT.1);
    let instance = home.start_command(&mut command);
    let [tables, away] = ["tables", "away"].map(|name| home.data().join(name));
    std::fs::rename(&tables, &away).unwrap();
    std::fs::write(&tables, "away").unwrap();
    let to = instance.endpoint();
    let device = std::thread::spawn(move || {
        let readings = (0..FLOOD).map(|seq| Reading::regular("north", "d1", seq, 1_000));
        let messages: Vec<_> = readings.map(|r| (r.topic(), r.payload())).collect();
        let mut device = Device::connect(to, "d1").unwrap();
        device.publish_all(messages.iter().map(|(t, p)| (t.as_str(), p.clone()))).unwrap()
    });
    // The rows cannot be there before the tables are; webhooks do not wait for them.
    wait_for_webhook(&receiver, "tables_unreachable", "firing");
    wait_for_webhook(&receiver, "journal_full", "firing");
    wait_for_health(&instance, &["tables_unreachable", "journal_full"]);
    assert!(!device.is_finished(), "there was room for all");
    std::fs::remove_file(&tables).unwrap();
    std::fs::rename(&away, &tables).unwrap();
    assert_eq!(device.join().unwrap() as i64, FLOOD);
    wait_for_health(&instance, &[]);
    for rule in ["tables_unreachable", "journal_full"] {
        // Room comes in pieces: it may be full again for a moment.
        let told = eventually("firing and resolved, in turns", || {
            let told = told(&home, rule)?;
            let mut turns = told.chunks(2);
            let is_turn = |turn: &[(String, String)]| match turn {
                [(first, _), (second, _)] => first == "firing" && second == "resolved",
                _ => false,
            };
            let are_all = !told.is_empty() && turns.all(is_turn);
            if are_all { Ok(told) } else { Err(format!("{rule}: {told:?}")) }
        });
        assert_eq!(told[1].1, "it is over");
        wait_for_webhook(&receiver, rule, "resolved");
    }
    let full = told(&home, "journal_full").unwrap().remove(0).1;
    assert!(full.ends_with(" bytes, sources wait"), "{full}");
    let unreachable = told(&home, "tables_unreachable").unwrap().remove(0).1;
    assert!(unreachable.starts_with("table "), "{unreachable}");
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", FLOOD);
    home.wait_for_count("SELECT count(DISTINCT seq) FROM cold_chain.readings", FLOOD);
    instance.stop();
}

#[test]
fn a_webhook_that_was_given_up_is_told_and_is_over_when_none_was_for_a_while() {
    let receiver = Receiver::refusing(410);
    let home = Home::notifying(&receiver);
    let instance = home.start_command(home.run_command(1).env(SHORT.0, SHORT.1));
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    // A hot minute, and one that closes it.
    for (seq, temperature) in [(0, 60.0), (2, 60.0)] {
        let reading = Reading { temperature, ..Reading::regular("north", "d1", seq, 60_000) };
        device.publish_all([(reading.topic().as_str(), reading.payload())]).unwrap();
    }
    let why = wait_until_told(&home, "webhook_dead", &["firing"]);
    assert_eq!(why, "1 notification was given up since the start");
    wait_until_told(&home, "webhook_dead", &["firing", "resolved"]);
    assert_eq!(receiver.deliveries().len(), 1, "it was refused for good");
    instance.stop();
}

const LATE: &str = r#"
name = "late"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["t/{device}"]
[reading]
device = "{device}"
time = "ts"
idle_close = "2s"
[reading.fields]
v = "float64"
[[step]]
name = "minutes"
type = "window"
every = "1m"
revise_for = "2m"
select = { n = "count(*)" }
[[table]]
from = "readings"
freshness = "500ms"
[[table]]
from = "minutes"
freshness = "500ms"
"#;

fn publish_late(instance: &Instance, seconds: impl Iterator<Item = i64>) {
    let messages = seconds.map(|s| format!(r#"{{"ts":{},"v":1}}"#, START_MS + s * 1_000));
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    device.publish_all(messages.map(|payload| ("t/d1", payload))).unwrap();
}

/// The table can be written, but not read.
#[test]
fn late_windows_that_have_to_wait_are_told_and_it_is_over_when_they_are_computed() {
    let home = Home::with(LATE);
    let mut command = home.run_command(2);
    command.args(METRICS).args(["--recompute-every", "1s"]).env(SHORT.0, SHORT.1);
    let instance = home.start_command(&mut command);
    publish_late(&instance, (0..1_200).step_by(10));
    home.wait_for_count("SELECT count(*) FROM late.readings", 120);
    home.wait_for_count("SELECT count(*) FROM late.minutes WHERE n = 6", 20);
    let away = home.data().join("away");
    std::fs::create_dir(&away).unwrap();
    let files = data_files(&home.data().join("tables/late/readings"));
    assert!(!files.is_empty());
    let kept = |file: &Path| away.join(file.file_name().unwrap());
    files.iter().for_each(|file| std::fs::rename(file, kept(file)).unwrap());
    publish_late(&instance, (3..600).step_by(10));
    let why = wait_until_told(&home, "windows_waiting", &["firing"]);
    assert!(why.starts_with("late windows of table late.minutes wait: "), "{why}");
    wait_for_health(&instance, &["windows_waiting"]);
    files.iter().for_each(|file| std::fs::rename(kept(file), file).unwrap());
    wait_until_told(&home, "windows_waiting", &["firing", "resolved"]);
    wait_for_health(&instance, &[]);
    home.wait_for_count("SELECT count(*) FROM late.minutes WHERE n = 12", 10);
    instance.stop();
}

struct Nobody;

impl FeedSink for Nobody {
    fn push(&mut self, _feed: Feed) {}
}

/// Makes the journal of twenty minutes in which a device's clock was two hours behind: an estimate
/// takes two stretches of five minutes that agree.
fn twenty_minutes_of_a_wrong_clock(data: &Path, text: &str) {
    let now_us = i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap();
    let plan = tidegate_pipelines::load(&[("one.toml".into(), text.to_owned())], &|_, _| {
        Err(String::new())
    });
    let sources: Vec<String> = plan.unwrap().sources.iter().map(|s| s.name.clone()).collect();
    let at_us = |minute: i64| now_us - (20 - minute) * 60_000_000;
    let clock = Clock::manual(at_us(0));
    let options = JournalOptions {
        epoch_interval: Duration::from_millis(1),
        ..JournalOptions::new(data.join("journal"))
    };
    let (journal, _) = Journal::open(options, clock.clone(), &sources, 0).unwrap();
    journal.start(Box::new(Nobody)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for minute in 0..20 {
        clock.set(at_us(minute));
        let mut reading = Reading::regular("north", "d1", minute, 1_000);
        reading.at_ms = at_us(minute) / 1_000 - 7_200_000;
        let meta = MessageMeta { received_us: at_us(minute), qos: 1, ..MessageMeta::default() };
        let mut message = MessagesBuilder::default();
        message.push(reading.topic().as_bytes(), reading.payload().as_bytes(), b"d1", meta);
        runtime.block_on(journal.intake(0).offer(message)).unwrap();
    }
    journal.shutdown();
}

#[test]
fn a_clock_that_is_off_is_told_and_it_is_over_when_none_was_for_a_while() {
    let text = ColdChain::on_endpoint().text();
    let named = Home::with(&text);
    named.start().stop();
    let home = Home::with(&text);
    std::fs::create_dir(home.data()).unwrap();
    std::fs::copy(named.data().join("instance"), home.data().join("instance")).unwrap();
    twenty_minutes_of_a_wrong_clock(&home.data(), &text);
    let instance = home.start_command(home.run_command(2).env(SHORT.0, SHORT.1));
    let why = wait_until_told(&home, "clock_skew", &["firing"]);
    assert!(why.contains("(1 row more of system.clock_skew"), "{why}");
    let off = "SELECT count(*) FROM system.clock_skew WHERE off AND device = 'd1'";
    assert_eq!(home.count(off), 1);
    wait_until_told(&home, "clock_skew", &["firing", "resolved"]);
    instance.stop();
}
