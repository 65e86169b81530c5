//! Fuzz targets of everything that reads what a device or a broker sends: it never panics and never
//! hangs, it holds little memory, and nobody else is disturbed.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_operators::MessagesBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::timeout;

use super::access::Peer;
use super::connection::{self, Shared};
use super::endpoint::{Endpoint, EndpointConfig};
use super::testing::{packet, publish, text};
use super::wire::{Frame, Version, frame, kind, publish_with_alias, string};
use super::{connect, packets, properties};
use crate::fuzz::{self, Rng, fix_length, hex, mutate};
use crate::source::{Intake, IntakeError, SourceStats};

/// One packet a line: version, name, bytes in hex. `bad` names are not valid.
const CORPUS: &str = include_str!("fuzz/corpus.txt");
/// Far more than any case needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PACKET_MAX: usize = 64 * 1024;
/// Cases on one endpoint: its sessions and retained messages are bounded, but by a lot.
const CASES: u64 = 2000;

struct Corpus {
    names: Vec<&'static str>,
    packets: Vec<Vec<u8>>,
}

fn corpus(version: Version) -> Corpus {
    let wanted = if version == Version::V3 { "4" } else { "5" };
    let (mut names, mut packets) = (Vec::new(), Vec::new());
    for line in CORPUS.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let (level, name, bytes) = (words.next(), words.next().unwrap(), words.next().unwrap());
        if level == Some(wanted) {
            names.push(name);
            packets.push(hex(bytes));
        }
    }
    Corpus { names, packets }
}

/// Has every decoder read a packet; whether it is valid to whom it is for.
fn decode(version: Version, bytes: &[u8]) -> Option<bool> {
    let Ok(Some(found)) = frame(bytes, PACKET_MAX) else { return None };
    assert!(found.total_len <= bytes.len() && found.header_len <= found.total_len);
    let bytes = &bytes[..found.total_len];
    let body = &bytes[found.header_len..];
    // Each decoder must stand the packets of all others.
    let publish = publish_with_alias(version, found.flags(), body);
    if let Ok(publish) = publish {
        assert!(
            publish.topic.len() + publish.payload.len() + publish.properties.len() < bytes.len()
        );
    }
    let all = [
        (kind::CONNECT, read_connect(found, bytes)),
        (kind::PUBLISH, publish.is_ok()),
        (kind::SUBSCRIBE, packets::subscribe(version, body).is_ok()),
        (kind::UNSUBSCRIBE, packets::unsubscribe(version, body).is_ok()),
        (kind::PUBACK, packets::ack(version, kind::PUBACK, body).is_ok()),
        (kind::PUBREC, packets::ack(version, kind::PUBREC, body).is_ok()),
        (kind::PUBREL, packets::ack(version, kind::PUBREL, body).is_ok()),
        (kind::PUBCOMP, packets::ack(version, kind::PUBCOMP, body).is_ok()),
        (kind::DISCONNECT, packets::disconnect(version, body).is_ok()),
        (kind::PINGREQ, body.is_empty()),
    ];
    for allowed in [properties::CONNECT, properties::WILL, properties::PUBLISH] {
        let mut copied = 0;
        properties::copy(body, allowed, |_| true, |part| copied += part.len());
        assert!(copied <= body.len());
    }
    let padded = version == Version::V5 && found.is_padded();
    all.iter().find(|(kind, _)| *kind == found.kind()).map(|(_, valid)| *valid && !padded)
}

fn read_connect(found: Frame, bytes: &[u8]) -> bool {
    match connect::read(found, bytes) {
        Ok(_) => true,
        Err(refusal) => {
            assert!(refusal.reply.len() < 64 && refusal.text.len() < 256);
            false
        }
    }
}

#[test]
fn the_corpus_is_what_it_says() {
    for version in [Version::V3, Version::V5] {
        let corpus = corpus(version);
        assert!(corpus.packets.len() > 20, "{}", corpus.packets.len());
        for (name, packet) in corpus.names.iter().zip(&corpus.packets) {
            let valid = decode(version, packet) == Some(true);
            assert_eq!(valid, !name.starts_with("bad"), "{version:?} {name}");
        }
    }
}

#[test]
fn decoders_take_any_bytes() {
    let all = [Version::V3, Version::V5].map(|v| (v, corpus(v).packets));
    fuzz::run("decoders", |rng| {
        let (version, corpus) = rng.pick(&all);
        let mut bytes = rng.pick(corpus).clone();
        mutate(rng, &mut bytes, corpus);
        if rng.one_in(2) {
            fix_length(&mut bytes);
        }
        decode(*version, &bytes);
        let other = if *version == Version::V3 { Version::V5 } else { Version::V3 };
        decode(other, &bytes);
        let _ = (string(&bytes), properties::split(&bytes));
    });
}

/// Takes everything and keeps nothing.
struct Sink;

#[async_trait]
impl Intake for Sink {
    async fn offer(&self, mut messages: MessagesBuilder) -> Result<(), IntakeError> {
        let messages = messages.finish(0, 0);
        for i in 0..messages.len() {
            // What is journaled can be read: all parts lie inside, and topics are text.
            let sizes = messages.payload(i).len() + messages.properties(i).len();
            assert!(sizes <= PACKET_MAX && std::str::from_utf8(messages.topic(i)).is_ok());
        }
        tokio::task::yield_now().await;
        Ok(())
    }
}

struct Bench {
    runtime: Runtime,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

impl Bench {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let config = EndpointConfig {
            packet_bytes_max: PACKET_MAX,
            queue_max: 100,
            ..EndpointConfig::new("127.0.0.1:0".parse().unwrap())
        };
        let shared = runtime.block_on(async {
            let endpoint = Endpoint::bind(config).await.unwrap();
            endpoint.open(Arc::new(Sink), Arc::new(SourceStats::default())).0
        });
        Self { runtime, shared, stop: watch::channel(false).0 }
    }

    /// Starts a connection in memory.
    fn dial(&self) -> (DuplexStream, tokio::task::JoinHandle<Result<(), IntakeError>>) {
        let (ours, theirs) = duplex(8 * 1024);
        let peer = Peer { address: "127.0.0.1:9".parse().unwrap(), certificate: None };
        let run =
            connection::run(theirs, peer, Arc::clone(&self.shared), None, self.stop.subscribe());
        (ours, self.runtime.spawn(run))
    }

    /// Sends bytes in pieces, takes what comes back, hangs up, and waits for the end.
    fn play(&self, pieces: Vec<Vec<u8>>) -> Vec<u8> {
        let (ours, task) = self.dial();
        let (mut reader, mut writer) = split(ours);
        let mut answers = Vec::new();
        let all = async {
            let sending = async {
                for piece in pieces {
                    // It may have hung up; that is its right.
                    if writer.write_all(&piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                let _ = writer.shutdown().await;
            };
            let _ = tokio::join!(sending, reader.read_to_end(&mut answers));
            task.await
        };
        let ended = self.runtime.block_on(async { timeout(PATIENCE, all).await });
        ended.expect("the connection hangs").expect("it panicked").expect("the intake takes all");
        let held = self.shared.held.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(held, 0, "bytes are still counted as held");
        answers
    }

    /// Someone who behaves well gets what is due, whatever others did.
    fn a_good_client_is_served(&self, version: Version) {
        let level = if version == Version::V3 { 4 } else { 5 };
        let none: &[u8] = if level == 5 { &[0] } else { &[] };
        let hello = [text("MQTT"), vec![level, 2, 0, 60], none.to_vec(), text("good")].concat();
        let filter = [&[0, 1], none, &text("good/topic"), &[1]].concat();
        let pieces = vec![
            packet(0x10, &hello),
            packet(0x82, &filter),
            publish(level, 1, 7, "good/topic", "well"),
            vec![0xC0, 0],
        ];
        let answers = packets_of(&self.play(pieces));
        let firsts: Vec<u8> = answers.iter().map(|packet| packet[0] >> 4).collect();
        let count = |kind| firsts.iter().filter(|first| **first == kind).count();
        let kinds = [kind::CONNACK, kind::SUBACK, kind::PUBACK, kind::PINGRESP, kind::PUBLISH];
        // Who hangs up at once may miss the delivery, and nothing else.
        assert!(kinds[..4].iter().all(|kind| count(*kind) == 1), "{answers:02x?}");
        assert!(answers.contains(&vec![0x40, 2, 0, 7]), "{answers:02x?}");
    }
}

/// Splits answers; they must be whole packets that servers send.
fn packets_of(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let found = frame(bytes, 1 << 28).unwrap().expect("half a packet came back");
        assert!(!matches!(found.kind(), 0 | kind::CONNECT | kind::SUBSCRIBE | kind::PINGREQ));
        all.push(bytes[..found.total_len].to_vec());
        bytes = &bytes[found.total_len..];
    }
    all
}

/// CONNECT and packets behind it, some of them changed, in pieces of any size.
fn script(rng: &mut Rng, corpus: &Corpus) -> Vec<Vec<u8>> {
    let connects = corpus.names.iter().zip(&corpus.packets);
    let connects: Vec<_> = connects.filter(|(name, _)| name.starts_with("connect")).collect();
    let mut bytes = rng.pick(&connects).1.clone();
    if rng.one_in(8) {
        mutate(rng, &mut bytes, &corpus.packets);
    }
    let changed_one_in = 1 + rng.below(12);
    for _ in 0..rng.below(16) {
        let mut packet = rng.pick(&corpus.packets).clone();
        if rng.one_in(changed_one_in) {
            mutate(rng, &mut packet, &corpus.packets);
            if !rng.one_in(3) {
                fix_length(&mut packet);
            }
        } else if rng.one_in(3) && packet[0] >> 4 == kind::CONNECT {
            continue;
        }
        bytes.extend(packet);
    }
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let most = *rng.pick(&[1, 7, 100, 10_000, 100_000]);
        let rest = bytes.split_off(bytes.len().min(1 + rng.below(most)));
        pieces.push(std::mem::replace(&mut bytes, rest));
        if pieces.len() > 300 {
            pieces.push(std::mem::take(&mut bytes));
        }
    }
    pieces
}

#[test]
fn a_connection_takes_any_script() {
    let versions = [Version::V3, Version::V5];
    let all = versions.map(corpus);
    let (mut bench, mut cases) = (Bench::new(), 0);
    fuzz::run("connection", |rng| {
        let i = rng.below(2);
        let pieces = script(rng, &all[i]);
        packets_of(&bench.play(pieces));
        if rng.one_in(20) {
            bench.a_good_client_is_served(versions[rng.below(2)]);
        }
        cases += 1;
        if cases % CASES == 0 {
            bench = Bench::new();
        }
    });
    versions.iter().for_each(|version| bench.a_good_client_is_served(*version));
}
