//! What a start refuses before it has touched anything, and what it waits for.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::faults::publish;
use crate::support::{ColdChain, Home, Instance, PATIENCE, eventually, get, tidegate};

const READINGS: &str = "SELECT count(*) FROM cold_chain.readings";

fn run(home: &Home) -> Command {
    let mut command = home.run_command(1);
    command.args(["--checkpoint-every", "200ms", "--metrics", "127.0.0.1:0"]);
    command
}

/// What a start says that is refused.
fn refused(command: &mut Command) -> String {
    let mut instance = Instance::spawn(command);
    let ended = || instance.try_ended().ok_or("it runs".to_owned());
    let status = eventually("the refusal", ended);
    assert_eq!(status.code(), Some(1), "{}", instance.said());
    eventually("why", || match instance.said() {
        said if said.contains("error: ") => Ok(said),
        said => Err(said),
    })
}

/// A folder whose tables have `0..seqs` of three devices.
fn with_readings(seqs: i64) -> Home {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let instance = home.start_command(&mut run(&home));
    publish(&instance, 0..seqs);
    home.wait_for_count(READINGS, 3 * seqs);
    instance.stop();
    home
}

fn moved(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::rename(from, to).unwrap();
}

#[test]
fn tables_that_are_gone_refuse_the_start_and_none_are_begun_in_their_place() {
    let home = with_readings(50);
    let [tables, away] = ["tables", "away"].map(|name| home.data().join(name));
    moved(&tables, &away);
    let said = refused(&mut run(&home));
    assert!(said.contains("cold_chain.per_minute, cold_chain.readings, "), "{said}");
    assert!(said.contains("are not there") && said.contains("--tables"), "{said}");
    let begun = std::fs::read_dir(&tables).map_or(0, Iterator::count);
    assert_eq!(begun, 0, "a mount would hide what was begun here, or be refused");
    let said = refused(run(&home).arg("--tables").arg(home.data().join("elsewhere")));
    assert!(said.contains("elsewhere: cold_chain.per_minute, "), "{said}");
    // One of them.
    moved(&away, &tables);
    let readings = tables.join("cold_chain/readings");
    moved(&readings, &away);
    let said = refused(&mut run(&home));
    assert!(said.contains("cold_chain.readings is not there"), "{said}");
    assert!(!readings.exists());
    // Without it on purpose.
    let new = home.data().with_file_name("new");
    let mut salvage = tidegate();
    salvage.arg("doctor").arg("data").arg("--data").arg(home.data()).arg("--salvage").arg(&new);
    let output = salvage.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("not there: cold_chain.readings"), "{text}");
    let mut command = tidegate();
    command.arg("run").arg(home.pipelines()).arg("--data").arg(&new).args(["--workers", "1"]);
    home.start_command(&mut command).stop();
    // The journal had everything: so has the new table, once.
    let mut count = tidegate();
    count.arg("sql").arg("--data").arg(&new).args(["-o", "csv", READINGS]);
    let output = count.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.lines().last(), Some("150"), "{text}");
    // It is there again.
    moved(&away, &readings);
    let instance = home.start_command(&mut run(&home));
    publish(&instance, 50..60);
    home.wait_for_count(READINGS, 3 * 60);
    instance.stop();
}

#[test]
fn tables_that_are_older_than_their_checkpoint_refuse_the_start() {
    let home = with_readings(50);
    let [tables, older, newer] = ["tables", "older", "newer"].map(|name| home.data().join(name));
    let copied = Command::new("cp").arg("-a").arg(&tables).arg(&older).status().unwrap();
    assert!(copied.success());
    let instance = home.start_command(&mut run(&home));
    publish(&instance, 50..60);
    home.wait_for_count(READINGS, 3 * 60);
    instance.stop();
    moved(&tables, &newer);
    moved(&older, &tables);
    let said = refused(&mut run(&home));
    assert!(said.contains("they are older than their checkpoint: "), "{said}");
    assert!(said.contains("cold_chain.readings has epoch "), "{said}");
    moved(&newer, &tables);
    home.start_command(&mut run(&home)).stop();
    assert_eq!(home.count(READINGS), 3 * 60);
}

/// On `s3://plant/history` at a port of this machine.
fn on_s3(home: &Home, port: u16) -> Command {
    let mut command = run(home);
    command.args(["--tables", "s3://plant/history"]);
    command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"));
    command.env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b");
    command
}

/// Waits until a start says why it waits, wherever one looks.
fn waits(instance: &Instance) -> String {
    eventually("what the start waits for", || {
        let address = instance.metrics().ok_or_else(|| instance.said())?;
        let (status, text) = get(address, "/ready").map_err(|e| e.to_string())?;
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, body["status"].as_str()), (503, Some("starting")), "{text}");
        let why = body["waits"].as_str().ok_or_else(|| instance.said())?.to_owned();
        let (status, health) = get(address, "/health").unwrap();
        assert!(status == 200 && health.contains("waits"), "{health}");
        assert!(instance.said().contains("the start waits"), "{}", instance.said());
        Ok(why)
    })
}

#[test]
fn a_start_waits_for_a_store_that_is_down_and_heeds_a_signal() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let port = {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        nobody.local_addr().unwrap().port()
    };
    for signal in ["INT", "TERM"] {
        let instance = Instance::spawn(&mut on_s3(&home, port));
        let why = waits(&instance);
        assert!(why.contains("_delta_log") && why.contains("refused"), "{why}");
        instance.signal(signal);
        assert_eq!(instance.ended(PATIENCE).code(), Some(130), "{signal}");
    }
}

#[test]
fn what_waiting_cannot_mend_ends_a_start() {
    for (status, code) in [("403 Forbidden", "InvalidAccessKeyId"), ("404 Not", "NoSuchBucket")] {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut client in server.incoming().map_while(Result::ok) {
                let mut request = [0; 1 << 14];
                let _ = client.read(&mut request);
                let body = format!("<Error><Code>{code}</Code></Error>");
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
                let _ =
                    client.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes());
            }
        });
        let home = Home::with(&ColdChain::on_endpoint().text());
        let said = refused(&mut on_s3(&home, port));
        assert!(said.contains(code) && !said.contains("the start waits"), "{said}");
    }
}
