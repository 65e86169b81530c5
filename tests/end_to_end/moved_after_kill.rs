//! The process is killed and started again with sources at other addresses: what had been
//! acknowledged is in the tables exactly once all the same, or the start says what to do first.

use std::net::SocketAddr;

use crate::support::{
    Device, Home, Instance, PATIENCE, START_MS, Scrape, eventually, free_address, get,
};

const READINGS: i64 = 60;
const TOPICS: &str = "topics = [\"a/{site}\"]";

/// A pipeline whose rows wait for a checkpoint.
fn pipeline(source: &str) -> String {
    format!(
        "name = \"a\"\n[source]\n{source}\n[reading]\ndevice = \"device\"\ntime = \"ts\"\n\
         fields = {{ v = \"int64\" }}\n[[table]]\nfrom = \"readings\"\nfreshness = \"1h\"\n"
    )
}

fn on_endpoint(listen: SocketAddr) -> String {
    pipeline(&format!("type = \"endpoint\"\nlisten = \"{listen}\"\n{TOPICS}"))
}

fn payload(seq: i64) -> String {
    format!(r#"{{"device":"d1","ts":{},"v":{seq}}}"#, START_MS + seq * 1000)
}

fn publish(to: SocketAddr, seqs: std::ops::Range<i64>) {
    let mut client = Device::connect(to, "d1").unwrap();
    client.publish_all(seqs.map(|seq| ("a/d1", payload(seq)))).unwrap();
}

/// Every reading is there once.
fn expect_all(home: &Home, readings: i64) {
    let rows = home.rows("SELECT v FROM readings ORDER BY v");
    let rows: Vec<i64> = rows.iter().map(|row| row["v"].as_i64().unwrap()).collect();
    assert_eq!(rows, (0..readings).collect::<Vec<_>>());
}

/// Killed with acknowledged readings of which there is no checkpoint.
fn killed_endpoint(listen: SocketAddr) -> Home {
    let home = Home::with(&on_endpoint(listen));
    let mut command = home.run_command(2);
    let instance = home.start_command(command.args(["--checkpoint-every", "1h"]));
    publish(listen, 0..READINGS);
    instance.kill();
    home
}

#[test]
fn what_an_endpoint_acknowledged_is_kept_when_its_address_changes() {
    let home = killed_endpoint(free_address());
    let listen = free_address();
    home.write("pipelines/one.toml", &on_endpoint(listen));
    let instance = home.start();
    assert!(instance.said().contains("finished by them as they were"), "{}", instance.said());
    publish(listen, READINGS..2 * READINGS);
    instance.stop();
    expect_all(&home, 2 * READINGS);
}

#[test]
fn what_an_endpoint_acknowledged_is_kept_when_its_address_changes_in_the_environment() {
    let source = format!("type = \"endpoint\"\nlisten = \"${{env:AT}}\"\n{TOPICS}");
    let home = Home::with(&pipeline(&source));
    for part in 0..3 {
        let listen = free_address();
        let mut command = home.run_command(2);
        command.env("AT", listen.to_string()).args(["--checkpoint-every", "1h"]);
        let instance = home.start_command(&mut command);
        publish(listen, part * READINGS..(part + 1) * READINGS);
        if part < 2 { instance.kill() } else { instance.stop() }
    }
    expect_all(&home, 3 * READINGS);
}

#[test]
fn without_the_files_that_ran_a_start_at_another_address_is_refused_until_it_is_safe() {
    let before = free_address();
    let home = killed_endpoint(before);
    std::fs::remove_file(home.data().join("pipelines.json")).unwrap();
    let moved = on_endpoint(free_address());
    home.write("pipelines/one.toml", &moved);
    let mut refused = Instance::spawn(&mut home.run_command(2));
    let status = eventually("the refusal", || refused.try_ended().ok_or_else(|| refused.said()));
    assert!(!status.success());
    eventually("the reason", || {
        let said = refused.said();
        let reason = format!("{READINGS} from `endpoint {before}`");
        match said.contains(&reason) && said.contains("Start once with") {
            true => Ok(()),
            false => Err(said),
        }
    });
    // As it says.
    home.write("pipelines/one.toml", &on_endpoint(before));
    home.start().stop();
    home.write("pipelines/one.toml", &moved);
    home.start().stop();
    expect_all(&home, READINGS);
}

#[test]
fn what_http_acknowledged_is_kept_when_its_address_changes() {
    let home = Home::with("");
    let token = home.write("token", "secret\n");
    let write = |listen: SocketAddr| {
        let token = token.display();
        let source = format!(
            "type = \"http\"\nlisten = \"{listen}\"\ntokens = {{ gateway = \"${{file:{token}}}\" }}"
        );
        home.write("pipelines/one.toml", &pipeline(&source));
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let post = |instance: &Instance, seqs: std::ops::Range<i64>| {
        let lines: String = seqs.map(|seq| payload(seq) + "\n").collect();
        let request = reqwest::Client::new().post(format!("http://{}/ingest/a", instance.http()));
        let request = request.bearer_auth("secret").header("content-type", "application/x-ndjson");
        let request = request.body(lines).timeout(PATIENCE);
        let answer = runtime.block_on(async { request.send().await }).unwrap();
        assert_eq!(answer.status().as_u16(), 202);
    };
    write(free_address());
    let mut command = home.run_command(2);
    let instance = home.start_http(command.args(["--checkpoint-every", "1h"]));
    post(&instance, 0..READINGS);
    instance.kill();
    write(free_address());
    let instance = home.start_http(&mut home.run_command(1));
    post(&instance, READINGS..2 * READINGS);
    instance.stop();
    expect_all(&home, 2 * READINGS);
}

/// Another name of the same broker, which another Tidegate stands for.
#[test]
fn what_a_broker_was_acknowledged_is_kept_when_its_address_changes() {
    let address = free_address();
    let own = "topics = [\"own/{site}\"]\ndeliver = [\"a/#\"]";
    let source = format!("type = \"endpoint\"\nlisten = \"{address}\"\n{own}");
    let broker_at = Home::with(&pipeline(&source));
    let broker = broker_at.start();
    let source = |host: &str| {
        let url = format!("mqtt://{host}:{}", address.port());
        pipeline(&format!("type = \"mqtt\"\nurl = \"{url}\"\n{TOPICS}"))
    };
    let home = Home::with(&source("127.0.0.1"));
    let mut command = home.run_command(2);
    command.args(["--metrics", "127.0.0.1:0", "--checkpoint-every", "1h"]);
    let instance = Instance::spawn(&mut command);
    let metrics = eventually("metrics", || instance.metrics().ok_or_else(|| instance.said()));
    let reaches = |metric: &str, least: f64| {
        eventually(metric, || {
            let scrape = Scrape::read(&get(metrics, "/metrics").map_err(|e| e.to_string())?.1);
            let mut samples = scrape.samples.iter();
            match samples.find(|(name, _)| name.starts_with(metric)) {
                Some((_, count)) if *count >= least => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    reaches("tidegate_source_healthy", 1.0);
    publish(address, 0..READINGS);
    reaches("tidegate_source_messages_acknowledged_total", READINGS as f64);
    instance.kill();
    home.write("pipelines/one.toml", &source("localhost"));
    let instance = Instance::spawn(&mut home.run_command(1));
    // Not the run that finishes what was there before.
    let is_ready = |said: &str| said.lines().any(|line| line.starts_with("ready"));
    eventually("that it is ready", || match is_ready(&instance.said()) {
        true => Ok(()),
        false => Err(instance.said()),
    });
    instance.stop();
    broker.stop();
    expect_all(&home, READINGS);
}
