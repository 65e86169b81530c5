//! `--metrics`: what monitoring sees, from before a start is done until after trouble is over.

use std::net::SocketAddr;

use serde_json::Value;

use crate::support::{
    ColdChain, Device, Home, Instance, Reading, Receiver, Scrape, eventually, get,
};

fn publish(instance: &Instance, range: std::ops::Range<i64>) {
    let readings: Vec<Reading> =
        range.map(|seq| Reading::regular("north", "d1", seq, 1_000)).collect();
    let topic = readings[0].topic();
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    device.publish_all(readings.iter().map(|r| (topic.as_str(), r.payload()))).unwrap();
}

fn scrape(address: SocketAddr) -> Scrape {
    let (status, text) = get(address, "/metrics").unwrap();
    assert_eq!(status, 200, "{text}");
    Scrape::read(&text)
}

fn json(address: SocketAddr, path: &str) -> (u16, Value) {
    let (status, text) = get(address, path).unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text:?}")))
}

#[test]
fn every_metric_is_there_well_formed_and_in_the_readme() {
    let receiver = Receiver::start();
    let home = Home::notifying(&receiver);
    let mut command = home.run_command(2);
    command.args(["--metrics", "127.0.0.1:0", "--checkpoint-every", "200ms"]);
    let instance = home.start_command(&mut command);
    let address = instance.metrics().expect("it is said before the ready line");
    publish(&instance, 0..200);
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", 200);
    let seen = eventually("a checkpoint and all readings", || {
        let now = scrape(address);
        let lag = now.value("tidegate_table_lag_seconds{table=\"cold_chain.readings\"}");
        let readings = now.value("tidegate_readings_total");
        match now.value("tidegate_checkpoint_bytes") {
            bytes if bytes > 0.0 && readings == 200.0 && lag == 0.0 => Ok(now),
            bytes => Err(format!("{bytes} bytes of checkpoint, {readings} readings, {lag} s")),
        }
    });
    let source = seen.samples.keys().find_map(|s| {
        s.strip_prefix("tidegate_source_messages_acknowledged_total").map(str::to_owned)
    });
    let source = source.expect("the endpoint is a source");
    let of = |name: &str| seen.value(&format!("tidegate_source_{name}{source}"));
    assert_eq!((of("messages_acknowledged_total"), of("healthy")), (200.0, 1.0));
    assert_eq!(seen.value("tidegate_ready"), 1.0);
    assert!(seen.value("tidegate_journal_bytes") > 0.0);
    assert!(seen.value("tidegate_checkpoints_total") > 0.0);
    assert!(seen.value("tidegate_checkpoint_age_seconds") < 60.0);
    assert!(seen.value("tidegate_table_committed_epoch{table=\"cold_chain.readings\"}") > 0.0);
    assert!(seen.value("tidegate_lag_seconds") < 60.0);
    assert!(seen.value("process_resident_memory_bytes") > 1e6);
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let tick_age_s = now_s.as_secs_f64() - seen.value("tidegate_epoch_done_tick_seconds");
    assert!((0.0..60.0).contains(&tick_age_s), "{tick_age_s}");
    let webhooks = "tidegate_webhook_pending{target=\"cold-chain/ops\"}";
    assert!(seen.samples.contains_key(webhooks), "{webhooks} in {:?}", seen.samples.keys());
    // Both ways: what is there is documented, and what is documented is there.
    let readme = include_str!("../../README.md");
    let documented: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("tidegate_") || name.starts_with("process_"))
        .collect();
    let families: Vec<&str> = seen.families.keys().map(String::as_str).collect();
    let lacks = |have: &[&str], name: &&&str| !have.contains(name);
    let unknown: Vec<_> = families.iter().filter(|f| lacks(&documented, f)).collect();
    let gone: Vec<_> = documented.iter().filter(|d| lacks(&families, d)).collect();
    assert!(unknown.is_empty() && gone.is_empty(), "not in the README {unknown:?}, gone {gone:?}");
    let open = get(address, "/nothing").unwrap();
    assert_eq!(open.0, 404);
    assert_eq!(json(address, "/health").0, 200);
    instance.stop();
}

/// The newest manifest among the checkpoints: the time of its tick in seconds since the Unix epoch,
/// and the bytes of the files that it names.
fn newest_checkpoint(home: &Home) -> Option<(f64, f64)> {
    let entries = std::fs::read_dir(home.data().join("checkpoints")).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    // One that is being removed cannot be read: there is a newer one.
    let texts = paths.filter_map(|path| std::fs::read_to_string(path).ok());
    let manifests = texts.filter_map(|text| serde_json::from_str(text.lines().next()?).ok());
    let newest = manifests.max_by_key(|manifest: &Value| manifest["epoch"].as_u64())?;
    let parts = newest["parts"].as_array()?.iter();
    let bytes = parts.map(|part| part["bytes"].as_f64().expect("it has a length")).sum();
    Some((newest["time_us"].as_f64()? / 1e6, bytes))
}

fn now_s() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs_f64()
}

#[test]
fn interval_size_duration_and_age_of_checkpoints_are_what_they_say() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let start = |every: &str| {
        let mut command = home.run_command(1);
        command.args(["--metrics", "127.0.0.1:0", "--checkpoint-every", every]);
        home.start_command(&mut command)
    };
    let of = |now: &Scrape, name: &str| now.value(&format!("tidegate_checkpoint_{name}"));
    let first = start("500ms");
    publish(&first, 0..200);
    let address = first.metrics().unwrap();
    let seen = eventually("checkpoints of all readings", || {
        let now = scrape(address);
        let (bytes, interval) = (of(&now, "bytes"), of(&now, "interval_seconds"));
        let (_, on_disk) = newest_checkpoint(&home).ok_or("there is none")?;
        let all = now.value("tidegate_readings_total") == 200.0;
        match all && interval > 0.0 && bytes > 0.0 && bytes == on_disk {
            true => Ok(now),
            false => Err(format!("{bytes} bytes, {on_disk} on disk, after {interval} s")),
        }
    });
    let (interval, duration) = (of(&seen, "interval_seconds"), of(&seen, "duration_seconds"));
    // Never sooner than asked for, and no later than this run is old.
    let age = now_s() - seen.value("process_start_time_seconds");
    assert!((0.5..age).contains(&interval), "{interval} of {age} s");
    assert!(duration > 0.0 && duration < age, "{duration} of {age} s");
    assert!(seen.value("tidegate_state_rows") > 0.0);
    first.stop();
    // Nothing is saved any more: what there is gets older, also where it is of another process.
    let second = start("1h");
    let address = second.metrics().unwrap();
    let (now, (_, on_disk)) = (scrape(address), newest_checkpoint(&home).unwrap());
    // The newest is the one that was restored; what it took is only known of own ones.
    assert_eq!(of(&now, "bytes"), on_disk);
    assert!(now.value("tidegate_state_rows") > 0.0);
    assert_eq!((of(&now, "duration_seconds"), of(&now, "interval_seconds")), (0.0, 0.0));
    let mut before = 0.0;
    for _ in 0..3 {
        let (saved, _) = newest_checkpoint(&home).expect("the last one of the first run");
        let least = now_s() - saved;
        let age = of(&scrape(address), "age_seconds");
        // The clocks of both are read one after the other, and not to the microsecond.
        assert!((least - 1.0..now_s() - saved + 1.0).contains(&age), "{age}, not {least} s");
        assert!(age > before, "{age} after {before}");
        before = age;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    second.stop();
}

#[test]
fn a_start_that_takes_long_is_told_from_one_that_hangs() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let mut command = home.run_command(1);
    command.args(["--checkpoint-every", "1h", "--metrics", "127.0.0.1:0"]);
    let first = home.start_command(&mut command);
    for seq in 0..60 {
        publish(&first, seq..seq + 1);
    }
    first.kill();
    let second = Instance::spawn(command.env("TIDEGATE_FAULT", "slow:replay:1+"));
    let address = eventually("its address", || second.metrics().ok_or_else(|| second.said()));
    let (mut last, mut looks) = (0.0, 0);
    while second.address().is_none() {
        let now = scrape(address);
        let (messages, ready) =
            (now.value("tidegate_replay_messages"), now.value("tidegate_ready"));
        assert!(messages >= last);
        let (status, body) = json(address, "/ready");
        if ready == 0.0 && messages > 0.0 && status == 503 {
            assert_eq!(body["status"], "starting");
            assert!(body["replay"]["messages"].as_u64().unwrap() as f64 >= messages, "{body}");
            assert_eq!(json(address, "/health").0, 200, "it must not be ended for that");
            looks += 1;
        }
        last = messages;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(looks >= 3, "only {looks} looks at the replay");
    eventually("it is ready", || match json(address, "/ready") {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    second.stop();
}

#[test]
fn health_is_red_while_tables_are_away() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let mut command = home.run_command(1);
    let instance = home.start_command(command.args(["--metrics", "127.0.0.1:0"]));
    let address = instance.metrics().unwrap();
    assert_eq!(json(address, "/health").0, 200);
    let [tables, away] = ["tables", "away"].map(|name| home.data().join(name));
    std::fs::rename(&tables, &away).unwrap();
    std::fs::write(&tables, "away").unwrap();
    publish(&instance, 0..10);
    // The table of sessions, which has something to write first, is told first.
    let body = eventually("red", || match json(address, "/health") {
        (503, body) if body.to_string().contains("cold_chain.readings") => Ok(body),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(body["status"], "failing");
    let reasons = body["reasons"].as_array().unwrap();
    assert!(reasons.iter().all(|r| r["what"] == "tables_unreachable"), "{body}");
    let now = scrape(address);
    assert_eq!(now.value("tidegate_table_reachable{table=\"cold_chain.readings\"}"), 0.0);
    assert!(now.value("tidegate_table_lag_seconds{table=\"cold_chain.readings\"}") > 0.0);
    std::fs::remove_file(&tables).unwrap();
    std::fs::rename(&away, &tables).unwrap();
    eventually("green again", || match json(address, "/health") {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", 10);
    instance.stop();
}

#[test]
fn who_is_ready_says_which_source_does_not_work_and_since_when() {
    // Nobody listens there: who did has gone.
    let broker = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let source = format!("type = \"mqtt\"\nurl = \"mqtt://{broker}\"\ntopics = [\"t/{{device}}\"]");
    let home = Home::with(&format!(
        "name = \"p\"\n[source]\n{source}\n[reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
         [reading.fields]\nv = \"int64\"\n"
    ));
    let mut command = home.run_command(1);
    let instance = Instance::spawn(command.args(["--metrics", "127.0.0.1:0"]));
    let address = eventually("its address", || instance.metrics().ok_or_else(|| instance.said()));
    let ready = || match json(address, "/ready") {
        (200, body) if body["sources"][0]["why"].is_string() => Ok(body["sources"][0].clone()),
        other => Err(format!("{other:?}")),
    };
    let source = eventually("the source was tried", ready);
    let name = source["name"].as_str().unwrap();
    assert_eq!(source["healthy"], false);
    assert!(source["why"].as_str().unwrap().contains("refused"), "{source}");
    let since = source["since"].as_str().unwrap().to_owned();
    assert!(since.ends_with('Z') && since.len() == 20, "{since}");
    let seen = scrape(address);
    assert_eq!(seen.value(&format!("tidegate_source_healthy{{source=\"{name}\"}}")), 0.0);
    assert_eq!(seen.value("tidegate_ready"), 1.0);
    assert_eq!(json(address, "/health").0, 503);
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    assert_eq!(ready().unwrap()["since"], since.as_str(), "it is tried again, and that is no news");
    instance.stop();
}
