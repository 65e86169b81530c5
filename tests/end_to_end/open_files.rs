//! More idle sockets than the process may have open files: devices that are there go on, and so do
//! the journal, tables and checkpoints; who finds no place is refused, counted and told.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{ColdChain, Device, Home, Reading, Scrape, eventually, get};

/// Open files that the process may have, and connections that they leave room for.
const FILES: u64 = 256;
const CONNECTIONS: u64 = 128;
/// Sockets at a time, which never say a word.
const IDLE: usize = 400;
/// Readings, enough for some segments of the journal.
const READINGS: i64 = 20_000;

/// `command` with a limit that it cannot raise.
fn limited(command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {FILES} && exec \"$0\" \"$@\"")]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

/// Opens sockets, again and again, until it is told to stop.
fn flood(to: SocketAddr, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut open = VecDeque::new();
        while !stop.load(Ordering::Acquire) {
            for _ in 0..IDLE / 4 {
                open.extend(TcpStream::connect_timeout(&to, Duration::from_secs(1)));
            }
            while open.len() > IDLE {
                open.pop_front();
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    })
}

/// The metrics of an instance, and the sum over its sources of one of them.
fn look(metrics: SocketAddr, of_sources: &str) -> (Scrape, f64) {
    let (_, text) = get(metrics, "/metrics").unwrap();
    let now = Scrape::read(&text);
    let name = format!("{of_sources}{{");
    let sum = now.samples.iter().filter(|(sample, _)| sample.starts_with(&name)).map(|s| s.1).sum();
    (now, sum)
}

#[test]
fn idle_sockets_take_no_file_from_devices_tables_and_checkpoints() {
    const REFUSED: &str = "tidegate_source_connections_refused_total";
    let home = Home::with(&ColdChain::on_endpoint().text());
    let mut command = home.run_command(2);
    command.args(["--metrics", "127.0.0.1:0", "--checkpoint-every", "200ms"]);
    command.args(["--journal-max", "8MiB"]);
    let mut instance = home.start_command(&mut limited(&command));
    let told = format!("connections: at most {CONNECTIONS}, as {FILES} files may be open");
    assert!(instance.said().contains(&told), "{}", instance.said());
    let metrics = instance.metrics().expect("asked for");
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    let stop = Arc::<AtomicBool>::default();
    let idle = flood(instance.endpoint(), &stop);
    let (before, _) = eventually("refused connections", || match look(metrics, REFUSED) {
        seen if seen.1 >= 100.0 => Ok(seen),
        seen => Err(format!("{} refused", seen.1)),
    });
    assert_eq!(before.value("tidegate_connections_max"), CONNECTIONS as f64);
    for part in 0..20 {
        let seqs = part * READINGS / 20..(part + 1) * READINGS / 20;
        let readings = seqs.map(|seq| Reading::regular("north", "d1", seq, 100));
        let readings: Vec<(String, String)> = readings.map(|r| (r.topic(), r.payload())).collect();
        device.publish_all(readings.iter().map(|(t, p)| (t.as_str(), p.clone()))).unwrap();
        assert!(instance.try_ended().is_none(), "{}", instance.said());
    }
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", READINGS);
    let checkpoints = "tidegate_checkpoints_total";
    eventually("checkpoints", || match look(metrics, REFUSED).0.value(checkpoints) {
        now if now >= before.value(checkpoints) + 3.0 => Ok(()),
        now => Err(format!("{now}")),
    });
    let said = instance.said();
    let why = format!("connections are refused: more than {CONNECTIONS} connections");
    assert_eq!(said.matches(&why).count(), 1, "told, and not again and again: {said}");
    stop.store(true, Ordering::Release);
    idle.join().unwrap();
    let mut other = eventually("a place for another device", || {
        Device::connect(instance.endpoint(), "d2").map_err(|e| e.to_string())
    });
    let last = Reading::regular("north", "d2", 0, 100);
    other.publish_all([(last.topic().as_str(), last.payload())]).unwrap();
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", READINGS + 1);
    let limits = "SELECT count(DISTINCT state) FROM system.limits WHERE kind = 'open_files'";
    home.wait_for_count(limits, 2);
    assert!(instance.try_ended().is_none(), "{}", instance.said());
    instance.stop();
}
