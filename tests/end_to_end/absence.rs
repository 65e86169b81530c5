//! Silence with the real binary: told without any message, and not told where Tidegate or the
//! broker was away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{Device, Home, Instance, eventually, free_address};

/// Three readings two seconds apart are missing.
const LIMIT: Duration = Duration::from_secs(6);

fn pipeline(source: &str) -> String {
    format!(
        r#"
name = "yard"

[source]
{source}
topics = ["t/{{device}}"]

[reading]
device   = "{{device}}"
time     = "received"
disorder = "100ms"

[reading.fields]
v = "int64"

[[step]]
name  = "silence"
type  = "absence"
every = "2s"

[[alert]]
name = "silent"
from = "silence"
fire = "status = 'silent'"

[[table]]
from      = "silence"
freshness = "500ms"

[[table]]
from      = "readings"
freshness = "500ms"
"#
    )
}

fn on_endpoint() -> String {
    pipeline("type = \"endpoint\"\nlisten = \"127.0.0.1:0\"")
}

fn publish(to: SocketAddr, device: &str) -> std::io::Result<()> {
    let mut client = Device::connect(to, device)?;
    let topic = format!("t/{device}");
    client.publish_all([(topic.as_str(), r#"{"v":1}"#.to_owned())]).map(drop)
}

/// A device that publishes twice a second, as long as somebody listens, until it is dropped.
pub(super) struct Alive(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Alive {
    pub(super) fn start(to: SocketAddr, device: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // While the broker is away nobody listens.
                let _ = publish(to, device);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        if let Some(thread) = self.1.take() {
            let _ = thread.join();
        }
    }
}

/// All that was told of a device, in order.
fn told(home: &Home, device: &str) -> Result<Vec<(String, bool)>, String> {
    let rows = home.try_rows(&format!(
        "SELECT status, inhibited FROM yard.silence_revisions WHERE device = '{device}' \
         ORDER BY window_start, revision"
    ))?;
    let row = |r: &crate::support::Row| {
        (r["status"].as_str().unwrap().to_owned(), r["inhibited"].as_bool().unwrap())
    };
    Ok(rows.iter().map(row).collect())
}

fn wait_for(home: &Home, device: &str, expected: &[(&str, bool)]) {
    let expected: Vec<(String, bool)> =
        expected.iter().map(|(status, inhibited)| ((*status).to_owned(), *inhibited)).collect();
    eventually(&format!("{expected:?} of {device}"), || {
        let told = told(home, device)?;
        if told == expected { Ok(()) } else { Err(format!("{told:?}")) }
    });
}

fn alerts(home: &Home, device: &str) -> Vec<String> {
    let rows = home.rows(&format!(
        "SELECT status FROM system.alerts WHERE rule = 'silent' AND keys LIKE '%\"{device}\"%' \
         ORDER BY time"
    ));
    rows.iter().map(|row| row["status"].as_str().unwrap().to_owned()).collect()
}

fn wait_for_alerts(home: &Home, device: &str, expected: &[&str]) {
    eventually(&format!("alerts {expected:?} of {device}"), || {
        let found = alerts(home, device);
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

#[test]
fn silence_needs_no_message_and_a_restart_is_no_silence() {
    let home = Home::with(&on_endpoint());
    let instance = home.start();
    publish(instance.endpoint(), "d1").unwrap();
    wait_for(&home, "d1", &[("silent", false)]);
    wait_for_alerts(&home, "d1", &["firing"]);
    publish(instance.endpoint(), "d2").unwrap();
    instance.kill();
    // It is away for longer than a device may be silent.
    let killed = Instant::now();
    while killed.elapsed() < LIMIT + Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let instance = home.start_with(1);
    let d2 = Alive::start(instance.endpoint(), "d2");
    wait_for(&home, "d2", &[("inhibited", true), ("back", true)]);
    // Nothing was told of it again, and it is not over.
    assert_eq!(told(&home, "d1").unwrap(), [("silent".to_owned(), false)]);
    publish(instance.endpoint(), "d1").unwrap();
    wait_for_alerts(&home, "d1", &["firing", "resolved"]);
    instance.stop();
    drop(d2);
    assert_eq!(alerts(&home, "d2"), [] as [&str; 0]);
}

/// A Tidegate that stands for a broker.
pub(super) fn broker(listen: &str) -> String {
    let deliver = "deliver = [\"t/#\"]";
    let source = format!("type = \"endpoint\"\nlisten = \"{listen}\"\n{deliver}");
    pipeline(&source).replace("topics = [\"t/", "topics = [\"own/")
}

#[test]
fn a_broker_that_is_away_is_one_alert_and_no_silence() {
    let address = free_address();
    let broker_at = Home::with(&broker(&address.to_string()));
    let first = broker_at.start();
    let source = format!("type = \"mqtt\"\nurl = \"mqtt://{address}\"");
    let home = Home::with(&pipeline(&source));
    let instance = Instance::spawn(&mut home.run_command(2));
    wait_for_sessions(&home, 1);
    let d1 = Alive::start(address, "d1");
    publish(address, "d2").unwrap();
    home.wait_for_count("SELECT count(DISTINCT device) FROM yard.readings", 2);
    first.kill();
    wait_for(&home, "d1", &[("inhibited", true)]);
    wait_for(&home, "d2", &[("inhibited", true)]);
    let down = "SELECT count(*) FROM system.alerts WHERE rule = 'source_down'";
    home.wait_for_count(down, 1);
    // Back again, and one of the two is, too.
    let second = broker_at.start();
    wait_for_sessions(&home, 2);
    wait_for(&home, "d1", &[("inhibited", true), ("back", true)]);
    wait_for(&home, "d2", &[("inhibited", true), ("silent", false)]);
    wait_for_alerts(&home, "d2", &["firing"]);
    // It is over when the broker was there for half a minute.
    home.wait_for_count(&format!("{down} AND status = 'resolved'"), 1);
    instance.stop();
    drop(d1);
    second.stop();
    assert_eq!(alerts(&home, "d1"), [] as [&str; 0]);
    assert_eq!(home.count(down), 2, "firing and resolved");
}

/// Waits until the broker has let us in so often.
pub(super) fn wait_for_sessions(home: &Home, times: i64) {
    home.wait_for_count("SELECT count(*) FROM system.sessions WHERE event = 'connected'", times);
}
