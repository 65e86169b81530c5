//! The simulated fleet: what it publishes, with which faults, and that it is repeatable.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use bytes::BytesMut;
use rumqttc_v4::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet, PingResp, PubAck};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::device::{Message, Step};
use super::*;

const START_US: i64 = 1_767_225_600_000_000;
const SECOND_US: i64 = 1_000_000;

/// The steps of a device in its first `seconds`.
fn steps(seed: u64, index: usize, seconds: i64) -> (Device, Vec<Step>) {
    let mut device = Device::new(seed, index, START_US, SECOND_US);
    let mut steps = Vec::new();
    loop {
        let step = device.next_step();
        if step.at_us() >= seconds * SECOND_US {
            return (device, steps);
        }
        steps.push(step);
    }
}

fn messages(steps: &[Step]) -> Vec<&Message> {
    steps
        .iter()
        .filter_map(|s| match s {
            Step::Publish { message, .. } => Some(message),
            Step::Offline { .. } => None,
        })
        .collect()
}

#[test]
fn the_same_seed_gives_the_same_fleet_and_another_seed_another() {
    for index in 0..60 {
        assert_eq!(steps(7, index, 30).1, steps(7, index, 30).1, "device {index}");
    }
    assert_ne!(steps(7, 0, 30).1, steps(8, 0, 30).1);
    let faults =
        |seed| -> Vec<Fault> { (0..36).map(|n| fault::fault_of(seed, Kind::Pump, n)).collect() };
    assert_ne!(faults(7), faults(8));
    // Pinned, computed by another program: a change of the generator would silently change every
    // demo and test.
    let mut random = random::Random::new(1, 2);
    assert_eq!([random.next_u64(), random.next_u64()], [0x2d826501f134ef03, 0x20aa12ae7abdd2ac]);
}

#[test]
fn steps_go_forward_in_time() {
    for index in 0..108 {
        let (_, steps) = steps(3, index, 90);
        // A duplicate may overtake nothing: it comes 30 ms after its original.
        assert!(steps.windows(2).all(|w| w[0].at_us() <= w[1].at_us()), "device {index}");
    }
}

#[test]
fn every_fault_occurs_in_every_kind_within_twenty_seconds_and_most_devices_are_healthy() {
    let mut by_fault: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut healthy = 0;
    for index in 0..500 {
        let (device, steps) = steps(1, index, 45);
        healthy += usize::from(device.fault() == Fault::None);
        for message in messages(&steps) {
            *by_fault.entry((device.kind().name(), message.fault.name())).or_default() += 1;
        }
    }
    for kind in Kind::ALL {
        for fault in Fault::ALL {
            let count = by_fault.get(&(kind.name(), fault.name())).copied().unwrap_or(0);
            assert!(count > 0, "{} {}", kind.name(), fault.name());
        }
    }
    assert!(healthy > 300, "{healthy} healthy devices");
}

/// The first device of `kind` with `fault`.
fn find(kind: Kind, fault: Fault, seconds: i64) -> (Device, Vec<Step>) {
    (0..150)
        .map(|index| steps(1, index, seconds))
        .find(|(d, _)| d.kind() == kind && d.fault() == fault)
        .unwrap()
}

fn parse(message: &Message) -> serde_json::Value {
    serde_json::from_slice(&message.payload).unwrap()
}

#[test]
fn payloads_have_the_shape_of_their_kind() {
    let (device, cold) = find(Kind::ColdRoom, Fault::None, 20);
    assert!(device.topic().starts_with("cold/") && device.topic().ends_with("/telemetry"));
    let payload = parse(messages(&cold)[3]);
    assert_eq!(payload["device"], device.name());
    assert!((payload["ts"].as_i64().unwrap() - START_US / 1_000).abs() < 6_000, "{payload}");
    assert!((0.0..8.0).contains(&payload["temperature"].as_f64().unwrap()), "{payload}");
    assert!(payload["door"].is_boolean());

    let (device, pump) = find(Kind::Pump, Fault::None, 20);
    let payload = parse(messages(&pump)[3]);
    assert_eq!(payload["meta"]["device"], device.name());
    let time = payload["meta"]["time"].as_str().unwrap();
    assert!(time.starts_with("2026-01-01T00:00:0") && time.ends_with('Z'), "{time}");
    assert!(payload["hydraulics"]["pressure"]["outlet"].is_f64());
    assert!(payload["motor"]["rpm"].is_i64());

    let (_, meter) = find(Kind::Meter, Fault::None, 20);
    let all = messages(&meter);
    assert!(all.iter().all(|m| m.readings == 5 && m.rejects == 0));
    let payload = parse(all[3]);
    let samples = payload["samples"].as_array().unwrap();
    let times: Vec<f64> = samples.iter().map(|s| s["t"].as_f64().unwrap()).collect();
    assert_eq!(times.len(), 5);
    assert!(times.windows(2).all(|w| (w[1] - w[0] - 0.2).abs() < 0.002), "{times:?}");
}

#[test]
fn faults_do_what_their_names_say() {
    let ts = |m: &Message| parse(m)["ts"].as_i64().unwrap() - START_US / 1_000;
    let (_, far) = find(Kind::ColdRoom, Fault::FarClock, 5);
    assert!(messages(&far).iter().all(|m| ts(m) > 86_000_000 && m.rejects == 1));
    let (_, fast) = find(Kind::ColdRoom, Fault::FastClock, 5);
    assert!(messages(&fast).iter().all(|m| (119_000..1_300_000).contains(&ts(m))));
    let (_, slow) = find(Kind::ColdRoom, Fault::SlowClock, 5);
    assert!(messages(&slow).iter().all(|m| ts(m) < -100_000));

    let (_, silent) = find(Kind::ColdRoom, Fault::Silence, 60);
    let gap = silent.windows(2).map(|w| w[1].at_us() - w[0].at_us()).max().unwrap();
    assert!(gap >= 7 * SECOND_US, "{gap}");

    let (_, stuck) = find(Kind::ColdRoom, Fault::Stuck, 20);
    let same: BTreeSet<String> = messages(&stuck)
        .iter()
        .filter(|m| m.fault == Fault::Stuck)
        .map(|m| parse(m)["temperature"].to_string())
        .collect();
    assert_eq!(same.len(), 1);

    let (_, spikes) = find(Kind::ColdRoom, Fault::Spike, 60);
    for m in messages(&spikes) {
        let warm = parse(m)["temperature"].as_f64().unwrap() > 20.0;
        assert_eq!(warm, m.fault == Fault::Spike);
    }

    let (_, twice) = find(Kind::ColdRoom, Fault::Duplicate, 60);
    let all = messages(&twice);
    let distinct: BTreeSet<&[u8]> = all.iter().map(|m| &m.payload[..]).collect();
    let copies = all.iter().filter(|m| m.fault == Fault::Duplicate).count();
    assert!(copies > 3);
    assert_eq!(all.len() - distinct.len(), copies);

    let (_, trouble) = find(Kind::ColdRoom, Fault::Trouble, 20);
    let warm = messages(&trouble)
        .iter()
        .filter(|m| parse(m)["temperature"].as_f64().unwrap() > 8.5)
        .count();
    assert!(warm >= 12, "{warm} warm readings");
}

#[test]
fn a_burst_sends_the_newest_reading_and_then_the_buffer_in_order() {
    let (_, steps) = find(Kind::ColdRoom, Fault::Burst, 40);
    let offline = steps.iter().position(|s| matches!(s, Step::Offline { .. })).unwrap();
    let back = steps[offline + 1].at_us();
    assert!(back - steps[offline].at_us() >= 5 * SECOND_US);
    let burst: Vec<i64> = messages(&steps[offline + 1..])
        .iter()
        .skip(1)
        .take_while(|m| m.fault == Fault::Burst)
        .map(|m| parse(m)["ts"].as_i64().unwrap())
        .collect();
    assert!(burst.len() >= 5 && burst.windows(2).all(|w| w[0] < w[1]), "{burst:?}");
    let newest = parse(messages(&steps[offline + 1..])[0])["ts"].as_i64().unwrap();
    assert!(newest > *burst.last().unwrap());
}

#[test]
fn broken_payloads_are_broken_and_counted_as_such() {
    let mut rejects = 0;
    for kind in Kind::ALL {
        let (_, steps) = find(kind, Fault::Broken, 120);
        for m in messages(&steps) {
            rejects += m.rejects;
            let valid = serde_json::from_slice::<serde_json::Value>(&m.payload);
            match (m.fault, m.readings) {
                (Fault::Broken, 0) if kind == Kind::Meter => assert!(valid.is_err()),
                (Fault::Broken, 4) => assert!(kind == Kind::Meter && m.rejects == 1),
                (Fault::Broken, readings) => assert_eq!((readings, m.rejects), (0, 1)),
                _ => assert!(valid.is_ok() && m.rejects == 0),
            }
        }
    }
    assert!(rejects > 30);
}

/// What a minimal MQTT acceptor saw.
#[derive(Default)]
struct Seen {
    payloads: BTreeMap<(String, Vec<u8>), usize>,
    clients: BTreeSet<String>,
    connects: usize,
    dups: usize,
    disconnects: usize,
}

impl Seen {
    fn received(&self) -> usize {
        self.payloads.values().sum()
    }
}

/// Accepts devices and acknowledges; cuts the connection of every device once, after its
/// `cut_after`-th message and before its acknowledgement.
async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Seen>>, cut_after: Option<usize>) {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut count = 0;
    let mut first = false;
    loop {
        while let Ok(packet) = Packet::read(&mut input, 65_536) {
            match packet {
                Packet::Connect(c) => {
                    let mut seen = seen.lock().unwrap();
                    first = seen.clients.insert(c.client_id);
                    seen.connects += 1;
                    ConnAck::new(ConnectReturnCode::Success, !first).write(&mut output).unwrap();
                }
                Packet::Publish(p) => {
                    count += 1;
                    let mut seen = seen.lock().unwrap();
                    seen.dups += usize::from(p.dup);
                    let topic = String::from_utf8(p.topic.to_vec()).unwrap();
                    *seen.payloads.entry((topic, p.payload.to_vec())).or_default() += 1;
                    if first && cut_after == Some(count) {
                        return;
                    }
                    PubAck::new(p.pkid).write(&mut output).unwrap();
                }
                Packet::PingReq => drop(PingResp.write(&mut output).unwrap()),
                Packet::Disconnect => seen.lock().unwrap().disconnects += 1,
                other => panic!("a device sent {other:?}"),
            }
        }
        if stream.write_all(&output).await.is_err() {
            return;
        }
        output.clear();
        if !matches!(stream.read_buf(&mut input).await, Ok(n) if n > 0) {
            return;
        }
    }
}

/// Runs for some seconds, and until enough was seen.
async fn run_fleet(
    devices: usize,
    cut_after: Option<usize>,
    enough: impl Fn(&Seen) -> bool,
) -> (FleetTotals, Arc<Mutex<Seen>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut options = FleetOptions::new(listener.local_addr().unwrap(), START_US);
    options.devices = devices;
    options.interval = Duration::from_millis(100);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let shared = Arc::clone(&seen);
    let acceptor = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&shared), cut_after));
        }
    });
    let fleet = Fleet::start(&options);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    until(&seen, enough).await;
    let totals = fleet.stop().await;
    // The other side may still be reading the last packets.
    until(&seen, |seen| seen.disconnects >= devices).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    acceptor.abort();
    (totals, seen)
}

/// Waits for it for a minute at most; what did not come is told by who looks.
async fn until(seen: &Mutex<Seen>, enough: impl Fn(&Seen) -> bool) {
    for _ in 0..1_200 {
        if enough(&seen.lock().unwrap()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_fleet_counts_what_the_other_side_sees() {
    let enough = |seen: &Seen| seen.received() > 2_000 && seen.clients.len() == 150;
    let (totals, seen) = run_fleet(150, None, enough).await;
    let seen = seen.lock().unwrap();
    let received = seen.received();
    assert_eq!(totals.published, totals.acked);
    assert_eq!(totals.acked, received as u64);
    assert!(received > 2_000, "{received}");
    assert_eq!(seen.clients.len(), 150);
    assert_eq!((totals.connected, totals.resent, seen.dups), (0, 0, 0));
    assert_eq!(totals.connects, seen.connects as u64);
    assert_eq!(seen.disconnects, seen.connects);
    assert!(totals.readings > totals.published && totals.rejects > 0);
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_with_dup() {
    let (totals, seen) = run_fleet(30, Some(5), |seen| seen.dups >= 25).await;
    let seen = seen.lock().unwrap();
    assert_eq!(totals.published, totals.acked);
    assert!(totals.resent >= 25, "{}", totals.resent);
    assert_eq!(seen.dups as u64, totals.resent);
    // Nothing is missing: all that was published arrived, some of it twice.
    let received = seen.received();
    assert!(received as u64 >= totals.published);
    assert!(received as u64 <= totals.published + totals.resent);
}
