//! SIGKILL under load: whatever a device has an acknowledgement for is in the readings table, and
//! nothing is there more often than the device sent it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{ColdChain, Device, Home, Instance, PATIENCE, Reading, Rng, say};

const DEVICES: usize = 4;
const READINGS: i64 = 3_000;
const EVERY_MS: i64 = 200;
const KILLS: usize = 3;
const IN_FLIGHT: usize = 32;

/// What the publishers and the one who kills share.
#[derive(Debug, Default)]
struct Shared {
    /// Where the endpoint is now.
    address: Mutex<Option<SocketAddr>>,
    acknowledged: AtomicUsize,
}

/// Publishes everything, sending again after each broken connection what was not acknowledged.
/// Gives how often each number was sent.
fn publisher(name: &str, shared: &Shared) -> BTreeMap<i64, i64> {
    let mut sent: BTreeMap<i64, i64> = BTreeMap::new();
    let mut todo: VecDeque<i64> = (0..READINGS).collect();
    while !todo.is_empty() {
        let address = *shared.address.lock().unwrap();
        let connected = address.and_then(|a| Device::connect(a, name).ok());
        let Some(mut device) = connected else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let mut waiting: VecDeque<(u16, i64)> = VecDeque::new();
        let broken = publish_until_broken(
            name,
            &mut device,
            &mut todo,
            &mut waiting,
            &mut |seq| {
                *sent.entry(seq).or_default() += 1;
            },
            shared,
        );
        if broken {
            waiting.into_iter().rev().for_each(|(_, seq)| todo.push_front(seq));
        }
    }
    sent
}

/// Returns true if the connection broke; `waiting` then holds what was sent and not acknowledged.
fn publish_until_broken(
    name: &str,
    device: &mut Device,
    todo: &mut VecDeque<i64>,
    waiting: &mut VecDeque<(u16, i64)>,
    count: &mut impl FnMut(i64),
    shared: &Shared,
) -> bool {
    while !todo.is_empty() || !waiting.is_empty() {
        while waiting.len() < IN_FLIGHT
            && let Some(seq) = todo.pop_front()
        {
            let reading = Reading::regular("north", name, seq, EVERY_MS);
            // Counted before, because a write that fails half-way may have arrived.
            count(seq);
            match device.send(&reading.topic(), &reading.payload()) {
                Ok(id) => waiting.push_back((id, seq)),
                Err(_) => {
                    waiting.push_back((0, seq));
                    return true;
                }
            }
        }
        let Ok(id) = device.acknowledged() else { return true };
        let (expected, _) = waiting.pop_front().expect("something is waiting");
        assert_eq!(id, expected, "acknowledged out of order");
        shared.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    false
}

/// Kills and starts again at seeded moments, counted in acknowledgements.
fn disturb(home: &Home, shared: &Shared, seed: u64) -> Instance {
    let mut rng = Rng(seed);
    let part = DEVICES * READINGS as usize / (KILLS + 1);
    let mut instance = home.start();
    for kill in 0..KILLS {
        *shared.address.lock().unwrap() = Some(instance.endpoint());
        let moment = kill * part + part / 2 + rng.below(part as u64) as usize;
        let deadline = Instant::now() + PATIENCE;
        while shared.acknowledged.load(Ordering::SeqCst) < moment {
            assert!(Instant::now() < deadline, "too few acknowledgements: {shared:?}");
            std::thread::sleep(Duration::from_micros(500));
        }
        *shared.address.lock().unwrap() = None;
        instance.kill();
        instance = home.start();
    }
    *shared.address.lock().unwrap() = Some(instance.endpoint());
    instance
}

#[test]
fn kill_under_load_loses_nothing_that_was_acknowledged() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let shared = Arc::new(Shared::default());
    let publishers: Vec<_> = (0..DEVICES)
        .map(|d| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || publisher(&format!("d{d}"), &shared))
        })
        .collect();
    let instance = disturb(&home, &shared, 11);
    let sent: Vec<BTreeMap<i64, i64>> =
        publishers.into_iter().map(|p| p.join().expect("a publisher failed")).collect();
    assert_eq!(shared.acknowledged.load(Ordering::SeqCst), DEVICES * READINGS as usize);

    let all = DEVICES as i64 * READINGS;
    home.wait_for_count("SELECT count(DISTINCT device || '/' || seq) FROM readings", all);
    // A last reading on each device closes its windows.
    let mut closing = Device::connect(instance.endpoint(), "closing").unwrap();
    for d in 0..DEVICES {
        let last = Reading::regular("north", &format!("d{d}"), 10 * READINGS, EVERY_MS);
        closing.publish_all([(last.topic().as_str(), last.payload())]).unwrap();
    }
    home.wait_for_count(
        "SELECT count(DISTINCT device || '/' || seq) FROM readings",
        all + DEVICES as i64,
    );

    let rows = home.rows("SELECT device, seq, count(*) AS n FROM readings GROUP BY device, seq");
    let mut doubled = 0;
    for row in &rows {
        let (device, seq) = (row["device"].as_str().unwrap(), row["seq"].as_i64().unwrap());
        let n = row["n"].as_i64().unwrap();
        let d: usize = device[1..].parse().unwrap();
        let times = sent[d].get(&seq).copied().unwrap_or(1);
        assert!((1..=times).contains(&n), "{device}/{seq} is there {n} times, sent {times} times");
        doubled += n - 1;
    }
    let again: i64 = sent.iter().flat_map(|s| s.values()).map(|times| times - 1).sum();
    let counts = format!("{all} acknowledged, 0 lost, {again} sent again, {doubled} doubled");
    say(&format!("{KILLS} kills: {counts}"));
    assert!(again > 0, "no kill hit a message in flight: the test shows nothing");

    // Each closed window counts exactly the rows that the table has for its minute.
    let difference = "SELECT count(*) FROM (\
        SELECT device, date_trunc('minute', time) AS m, count(*) AS n FROM readings \
        WHERE seq < 3000 GROUP BY 1, 2) r \
        FULL JOIN (SELECT * FROM (SELECT device, window_start AS m, n, row_number() OVER \
        (PARTITION BY device, window_start ORDER BY revision DESC) AS age \
        FROM per_minute) WHERE age = 1) w \
        ON r.device = w.device AND r.m = w.m WHERE r.n IS DISTINCT FROM w.n";
    home.wait_for_count(difference, 0);
    instance.stop();
}
