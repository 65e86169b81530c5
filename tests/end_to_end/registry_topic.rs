//! A registry that is a topic: retained messages at the endpoint, changed while devices publish,
//! with kills. Every window has the limit that the whole history says.

use super::registry::{EVERY, Limits, START_MS, WINDOWS, pipeline, publish, wait_for};
use crate::support::{Device, Home, Instance, eventually};

const TOPIC: &str = "topic = \"reg/{device}\"";

fn retain(instance: &Instance, entries: &[(&str, String)]) {
    let mut client = Device::connect(instance.endpoint(), "operator").unwrap();
    let topics: Vec<String> = entries.iter().map(|(device, _)| format!("reg/{device}")).collect();
    let messages = topics.iter().map(String::as_str).zip(entries.iter().map(|e| e.1.clone()));
    client.retain_all(messages).unwrap();
}

fn say(instance: &Instance, limits: &Limits) {
    let entry = |(device, window, high): &(&'static str, Option<i64>, i64)| {
        let since = window.map(|w| (START_MS + w * EVERY * 1000).to_string());
        let since = since.unwrap_or_else(|| "null".to_owned());
        (*device, format!(r#"{{"since":{since},"high":{high}}}"#))
    };
    retain(instance, &limits.iter().map(entry).collect::<Vec<_>>());
}

#[test]
fn entries_on_a_topic_and_kills_give_what_the_whole_history_says() {
    let home = Home::with(&pipeline(TOPIC));
    let mut limits: Limits = vec![("d1", None, 10), ("d2", Some(5), 20)];
    let instance = home.start_with(2);
    say(&instance, &limits);
    publish(&instance, 0..WINDOWS * EVERY / 2 + 1);
    wait_for(&home, &limits, WINDOWS / 2);
    // Late changes, of a key that is known and of one that is new.
    limits.extend([("d1", Some(3), 11), ("d3", Some(1), 30)]);
    say(&instance, &limits);
    instance.kill();
    let instance = home.start_with(1);
    wait_for(&home, &limits, WINDOWS / 2);
    limits.extend([("d2", Some(15), 22), ("d1", Some(4), 12)]);
    say(&instance, &limits);
    publish(&instance, WINDOWS * EVERY / 2..(WINDOWS + 1) * EVERY);
    instance.kill();
    let instance = home.start_with(3);
    // What comes again changes nothing.
    say(&instance, &limits);
    publish(&instance, (WINDOWS + 1) * EVERY..(WINDOWS + 2) * EVERY);
    wait_for(&home, &limits, WINDOWS);
    let versions = home.count("SELECT count(*) FROM p.limits_versions");
    assert_eq!(versions, 6, "each entry is one version");
    instance.stop();
    assert_eq!(home.count("SELECT count(*) FROM system.rejects"), 0);
}

/// Device and limit of what holds now.
fn current(home: &Home) -> Result<Vec<(String, i64)>, String> {
    let rows = home.try_rows("SELECT device, high FROM p.limits ORDER BY device")?;
    let row = |r: &crate::support::Row| {
        (r["device"].as_str().unwrap().to_owned(), r["high"].as_i64().unwrap())
    };
    Ok(rows.iter().map(row).collect())
}

fn wait_for_current(home: &Home, expected: &[(&str, i64)]) {
    let expected: Vec<(String, i64)> = expected.iter().map(|(d, h)| ((*d).into(), *h)).collect();
    eventually("what holds now", || match current(home)? {
        found if found == expected => Ok(()),
        found => Err(format!("{found:?}")),
    });
}

#[test]
fn an_entry_holds_from_when_it_comes_the_first_since_ever_and_a_new_join_finds_all() {
    let text = pipeline(TOPIC).replace("valid_from = \"since\"\n", "");
    let home = Home::with(&text);
    let instance = home.start();
    let entry = |high: i64| format!(r#"{{"high":{high}}}"#);
    // Readings that come before the first entry of their device have nothing; their windows are
    // revised when it comes.
    publish(&instance, 0..2 * EVERY + 1);
    wait_for(&home, &vec![], 2);
    let bad = [("d1", "{".to_owned()), ("d3", r#"{"high":"many"}"#.to_owned())];
    retain(&instance, &bad);
    retain(&instance, &[("d1", entry(10)), ("d2", entry(20)), ("d3", entry(30))]);
    wait_for(&home, &vec![("d1", None, 10), ("d2", None, 20), ("d3", None, 30)], 2);
    let rejects = "SELECT count(*) FROM system.rejects WHERE topic LIKE 'reg/%' AND pipeline = 'p'";
    home.wait_for_count(rejects, 2);
    // Later ones hold from now on: windows of the past stay.
    retain(&instance, &[("d1", entry(11)), ("d2", String::new()), ("never", String::new())]);
    wait_for_current(&home, &[("d1", 11), ("d3", 30)]);
    let limits: Limits = vec![("d1", None, 10), ("d2", None, 20), ("d3", None, 30)];
    publish(&instance, 2 * EVERY..3 * EVERY + 1);
    wait_for(&home, &limits, 3);
    instance.stop();
    // A join that is new begins after the journal was cut.
    let step = "[[step]]\nname = \"later\"\ntype = \"enrich\"\nfrom = \"sums\"\n\
                registry = \"limits\"\n[[table]]\nfrom = \"later\"\n";
    home.write("pipelines/one.toml", &format!("{text}{step}"));
    let instance = home.start();
    publish(&instance, 3 * EVERY..5 * EVERY + 1);
    wait_for(&home, &limits, 5);
    let found = "SELECT count(*) FROM p.later WHERE high = 30 AND device = 'd3' \
                 AND window_start >= to_timestamp_seconds";
    home.wait_for_count(&format!("{found}({})", START_MS / 1000 + 3 * EVERY), 2);
    wait_for_current(&home, &[("d1", 11), ("d3", 30)]);
    instance.stop();
}

#[test]
fn what_was_retained_before_the_registry_was_there_is_found() {
    // Until then they are only delivered, so the journal has nothing of them.
    let before = pipeline("topic = \"other/{device}\"");
    let (topics, deliver) = ("topics = [\"p/{device}\"]", "deliver = [\"reg/#\"]");
    assert!(before.contains(topics));
    let home = Home::with(&before.replace(topics, &format!("{topics}\n{deliver}")));
    let limits: Limits = vec![("d1", None, 10), ("d2", Some(1), 20)];
    let instance = home.start();
    say(&instance, &limits);
    retain(&instance, &[("d3", "{".to_owned())]);
    instance.stop();
    assert_eq!(home.count("SELECT count(*) FROM system.rejects"), 0);
    home.write("pipelines/one.toml", &pipeline(TOPIC));
    let instance = home.start();
    publish(&instance, 0..2 * EVERY + 1);
    wait_for(&home, &limits, 2);
    // What is known already is not taken again: it could be older than what the journal has.
    instance.kill();
    let instance = home.start();
    publish(&instance, 2 * EVERY..3 * EVERY + 1);
    wait_for(&home, &limits, 3);
    assert_eq!(home.count("SELECT count(*) FROM p.limits_versions_revisions"), 2);
    instance.stop();
}

#[test]
fn what_a_killed_process_heard_is_known_to_a_join_of_the_next_pipelines() {
    let text = pipeline(TOPIC);
    let home = Home::with(&text);
    let instance = home.start();
    say(&instance, &vec![("d1", None, 10)]);
    wait_for_current(&home, &[("d1", 10)]);
    instance.stop();
    let mut command = home.run_command(1);
    let instance = home.start_command(command.args(["--checkpoint-every", "1h"]));
    say(&instance, &vec![("d1", None, 12), ("d2", None, 22)]);
    wait_for_current(&home, &[("d1", 12), ("d2", 22)]);
    instance.kill();
    // What was killed is finished first; then the journal is cut, and the new join begins.
    let step = "[[step]]\nname = \"later\"\ntype = \"enrich\"\nfrom = \"sums\"\n\
                registry = \"limits\"\n[[table]]\nfrom = \"later\"\nfreshness = \"200ms\"\n";
    home.write("pipelines/one.toml", &format!("{text}{step}"));
    let instance = home.start();
    publish(&instance, 0..2 * EVERY + 1);
    wait_for(&home, &vec![("d1", None, 12), ("d2", None, 22)], 2);
    eventually("the windows of the new join", || {
        let rows = home.try_rows("SELECT DISTINCT device, high FROM p.later ORDER BY device")?;
        let row =
            |r: &crate::support::Row| (r["device"].as_str().map(str::to_owned), r["high"].as_i64());
        let found: Vec<_> = rows.iter().map(row).collect();
        let wanted = [("d1", Some(12)), ("d2", Some(22)), ("d3", None)];
        match found == wanted.map(|(device, high)| (Some(device.to_owned()), high)) {
            true => Ok(()),
            false => Err(format!("{found:?}")),
        }
    });
    instance.stop();
}

#[test]
fn a_bad_entry_is_rejected_once_however_often_there_is_a_start() {
    let home = Home::with(&pipeline(TOPIC));
    let rejects = "SELECT count(*) FROM system.rejects";
    let bad = |text: &str| format!(r#"{{"high":"{text}"}}"#);
    let instance = home.start_with(2);
    retain(&instance, &[("d1", bad("many")), ("d2", "{".to_owned())]);
    home.wait_for_count(rejects, 2);
    // After what the endpoint has retained, which is said again at each start.
    publish(&instance, 0..EVERY + 1);
    wait_for(&home, &vec![], 1);
    instance.kill();
    for (windows, workers) in [(2, 1), (3, 3)] {
        let instance = home.start_with(workers);
        publish(&instance, (windows - 1) * EVERY..windows * EVERY + 1);
        wait_for(&home, &vec![], windows);
        instance.stop();
        assert_eq!(home.count(rejects), 2);
    }
    let instance = home.start();
    retain(&instance, &[("d1", bad("few"))]);
    home.wait_for_count(rejects, 3);
    retain(
        &instance,
        &[("d1", bad("few")), ("d1", r#"{"high":10}"#.to_owned()), ("d1", bad("few"))],
    );
    home.wait_for_count(rejects, 4);
    instance.stop();
    assert_eq!(home.count(rejects), 4);
}
