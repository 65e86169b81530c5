//! Programs that we did not write against the built binary: mosquitto's and paho's clients,
//! mqtt.js, mosquitto and RabbitMQ as brokers, clients of InfluxDB, an S3 server, DuckDB and
//! delta-rs. Each test is a script of `tests/clients/`, so that it can be run by hand too.
//!
//! They need programs that a newcomer may not have, so they run only with `TIDEGATE_CLIENTS=1`, as
//! in `.ci/run`, which installs them; `TIDEGATE_PYTHON` names the Python with the packages of
//! `tests/clients/requirements.txt`, `TIDEGATE_NODE` the folder where those of
//! `tests/clients/node/package-lock.json` were installed.

use std::path::Path;
use std::process::Command;

use crate::support::{say, skipped};

fn script(name: &str) {
    if std::env::var("TIDEGATE_CLIENTS").as_deref() != Ok("1") {
        return skipped(name, "set TIDEGATE_CLIENTS=1 and TIDEGATE_PYTHON to run it");
    }
    let python = std::env::var("TIDEGATE_PYTHON").unwrap_or_else(|_| "python3".into());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    let output = Command::new(python)
        .arg(path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TIDEGATE_BINARY", env!("CARGO_BIN_EXE_tidegate"))
        .output()
        .expect("TIDEGATE_PYTHON names a Python");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed:\n{said}");
    say(said.trim_end());
}

#[test]
fn mosquittos_clients_are_devices() {
    script("devices_mosquitto.py");
}

#[test]
fn paho_clients_are_devices() {
    script("devices_paho.py");
}

#[test]
fn mosquittos_tools_publish_and_subscribe() {
    script("tools_mosquitto.py");
}

#[test]
fn pahos_c_clients_publish_and_subscribe() {
    script("tools_paho_c.py");
}

#[test]
fn mqtt_js_publishes_and_subscribes() {
    script("mqttjs.py");
}

#[test]
fn paho_speaks_all_of_version_5() {
    script("paho_v5.py");
}

#[test]
fn tidegate_is_killed_while_devices_publish() {
    script("kill_devices.py");
}

#[test]
fn bad_connections_harm_nobody_else() {
    script("storm.py");
}

#[test]
fn mosquitto_is_the_broker_and_restarts() {
    script("broker_restarts.py");
}

#[test]
fn mosquitto_retains_entries_of_a_registry() {
    script("registry_retained.py");
}

#[test]
fn mosquitto_is_the_broker_and_tidegate_is_killed() {
    script("broker_kill.py");
}

#[test]
fn tidegate_and_mosquitto_are_killed_again_and_again() {
    script("broker_chaos.py");
}

#[test]
fn tidegate_is_killed_at_each_point_between_a_broker_and_the_journal() {
    script("broker_points.py");
}

#[test]
fn what_a_broker_without_persistence_loses_is_told() {
    script("broker_defaults.py");
}

#[test]
fn the_network_to_mosquitto_is_cut_again_and_again() {
    script("broker_cuts.py");
}

#[test]
fn rabbitmq_is_the_broker() {
    script("broker_rabbitmq.py");
}

#[test]
fn the_doctor_knows_a_bad_mosquitto_from_a_good_one() {
    script("doctor.py");
}

#[test]
fn clients_of_influxdb_and_curl_write() {
    script("http_influx.py");
}

#[test]
fn tables_lie_on_s3() {
    script("tables_s3.py");
}

#[test]
fn two_processes_write_to_one_bucket_and_the_later_one_goes_on() {
    script("fencing_s3.py");
}

#[test]
fn duckdb_and_delta_rs_read_the_tables() {
    script("tables_local.py");
}

#[test]
fn duckdb_finds_the_newest_revisions() {
    script("tables_revised.py");
}

#[test]
fn others_compact_our_tables_while_we_append() {
    script("tables_compaction.py");
}

#[test]
fn pipelines_change_at_random() {
    script("changes.py");
}

#[test]
fn webhooks_survive_kills_and_every_kind_of_receiver() {
    script("outbox.py");
}

#[test]
fn the_object_store_is_down_refuses_loses_answers_and_is_slow() {
    script("store_faults.py");
}

#[test]
fn a_soak_stays_flat_and_exact() {
    script("soak.py");
}

#[test]
fn the_clock_is_set_back_and_ahead_and_runs_slow_and_fast() {
    script("clock.py");
}

#[test]
fn secrets_are_found_nowhere() {
    script("canary.py");
}
