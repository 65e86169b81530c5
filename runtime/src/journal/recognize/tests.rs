//! Tests of the recognition of repeated messages, against senders that follow the protocol.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use proptest::prelude::*;
use tidegate_operators::MessagesBuilder;

use super::*;

const BUDGET: u64 = 1 << 30;

fn names() -> Vec<String> {
    vec!["endpoint".to_owned()]
}

fn one(client: &str, packet_id: u16, duplicate: bool, payload: &str) -> Messages {
    many(client, &[(packet_id, duplicate, payload)])
}

fn many(client: &str, sent: &[(u16, bool, &str)]) -> Messages {
    let mut out = MessagesBuilder::default();
    for (packet_id, duplicate, payload) in sent {
        let meta = MessageMeta {
            packet_id: *packet_id,
            qos: 1,
            duplicate: *duplicate,
            ..MessageMeta::default()
        };
        out.push(b"t", payload.as_bytes(), client.as_bytes(), meta);
    }
    out.finish(0, 0)
}

/// Whether it is journaled.
fn takes(r: &mut Recognizer, mut messages: Messages) -> bool {
    let before = messages.len() as u64;
    let dropped = r.filter(&mut messages, &names(), 0);
    assert_eq!(before - dropped, messages.len() as u64);
    !messages.is_empty()
}

#[test]
fn only_a_repetition_of_a_known_message_is_dropped() {
    let mut r = Recognizer::new(BUDGET);
    assert!(takes(&mut r, one("a", 7, false, "x")));
    assert!(!takes(&mut r, one("a", 7, true, "x")), "repeated");
    assert!(!takes(&mut r, one("a", 7, true, "x")), "repeated once more");
    assert!(takes(&mut r, one("b", 7, true, "x")), "of another device");
    assert!(takes(&mut r, one("a", 8, true, "x")), "never received before");
    assert!(takes(&mut r, one("a", 7, true, "y")), "another content");
    assert!(takes(&mut r, one("a", 7, false, "y")), "the flag is not set");
    let mut without_id = one("a", 0, true, "y");
    without_id.index[0].qos = 0;
    assert!(takes(&mut r, without_id));
}

#[test]
fn dropped_messages_leave_the_others_as_they_are() {
    let mut r = Recognizer::new(BUDGET);
    r.filter(&mut many("a", &[(1, false, "one"), (2, false, "two")]), &names(), 0);
    let mut again = many("a", &[(1, true, "one"), (2, true, "two"), (3, true, "three")]);
    assert_eq!(r.filter(&mut again, &names(), 2), 2);
    assert_eq!((again.len(), again.payload(0), again.client(0)), (1, &b"three"[..], &b"a"[..]));
}

#[test]
fn an_identifier_that_was_used_anew_proves_older_messages_acknowledged() {
    let mut r = Recognizer::new(BUDGET);
    // A sender with two identifiers and equal payloads.
    for id in [1, 2, 1, 2] {
        assert!(takes(&mut r, one("a", id, false, "x")));
    }
    assert!(!takes(&mut r, one("a", 2, true, "x")), "the last one may not be acknowledged yet");
    assert!(takes(&mut r, one("a", 3, false, "x")));
    assert!(takes(&mut r, one("a", 3, false, "x")), "so the first 3, and all before, are done");
    assert!(takes(&mut r, one("a", 1, true, "x")), "this 1 was never received");
}

#[test]
fn with_all_identifiers_in_flight_contents_decide() {
    let mut r = Recognizer::new(BUDGET);
    for (id, payload) in [(1, "a"), (2, "b"), (1, "c"), (2, "d")] {
        assert!(takes(&mut r, one("a", id, false, payload)));
    }
    assert!(!takes(&mut r, one("a", 1, true, "c")), "no other message is like it");
    for id in [1, 2, 1, 2] {
        assert!(takes(&mut r, one("b", id, false, "x")));
    }
    assert!(takes(&mut r, one("b", 1, true, "x")), "it may be a fifth message: nothing is lost");
}

/// As mosquitto does when it is killed: of the last moments it has forgotten which messages were
/// acknowledged, and which identifiers it has used.
#[test]
fn a_broker_that_goes_on_from_an_older_state_doubles_nothing() {
    let mut r = Recognizer::new(BUDGET);
    for id in 1..=20 {
        assert!(takes(&mut r, one("", id, false, &format!("m{id}"))));
    }
    let again = |r: &mut Recognizer, ids: std::ops::RangeInclusive<u16>, what: &str| {
        for id in ids {
            assert!(!takes(r, one("", id, true, &format!("{what}{id}"))), "{what}{id}");
        }
    };
    // It knows that 1 to 5 were acknowledged, and not that it has used 19 and 20.
    again(&mut r, 6..=18, "m");
    for id in 19..=30 {
        assert!(takes(&mut r, one("", id, false, &format!("n{id}"))), "{id} is another message");
    }
    again(&mut r, 9..=18, "m");
    again(&mut r, 19..=30, "n");
    let mut bytes = Vec::new();
    r.put(&mut bytes);
    let mut copy = Recognizer::new(BUDGET);
    assert_eq!(copy.get(&bytes), Some(()));
    for mut r in [r, copy] {
        again(&mut r, 12..=18, "m");
        again(&mut r, 19..=28, "n");
        assert!(takes(&mut r, one("", 29, false, "o29")));
        again(&mut r, 15..=18, "m");
        again(&mut r, 19..=28, "n");
        assert!(!takes(&mut r, one("", 29, true, "o29")));
        // It uses one anew of which it knows all: everything before it is done.
        assert!(takes(&mut r, one("", 29, false, "p29")));
        assert!(takes(&mut r, one("", 20, true, "n20")), "it is a new message");
    }
}

/// At QoS 2 the subscriber knows by itself what is not released; what is sent again is under way
/// again all the same.
#[test]
fn what_its_source_knows_is_dropped_and_newer_than_what_came_before() {
    let mut r = Recognizer::new(BUDGET);
    for id in 1..=9 {
        assert!(takes(&mut r, one("", id, false, &format!("m{id}"))));
    }
    let known = |id: u16, payload: &str| {
        let mut message = one("", id, true, payload);
        message.index[0].known = true;
        message
    };
    assert!(!takes(&mut r, known(5, "m5")));
    assert!(!takes(&mut r, known(6, "not in memory")));
    // The broker has forgotten that it has used these.
    for id in 7..=9 {
        assert!(takes(&mut r, one("", id, false, &format!("n{id}"))));
    }
    assert!(!takes(&mut r, one("", 5, true, "m5")), "released, and forgotten by the broker");
    assert!(takes(&mut r, one("", 4, true, "m4")), "older than what it has forgotten");
    assert!(!takes(&mut r, known(4, "m4")));
}

#[test]
fn a_session_that_begins_anew_forgets() {
    let mut r = Recognizer::new(BUDGET);
    assert!(takes(&mut r, one("", 7, false, "x")));
    let mut out = MessagesBuilder::default();
    // As a subscriber says it: with the name of its own session.
    let client_id = "tidegate-x".to_owned();
    SessionEvent { fresh: true, client_id, ..SessionEvent::default() }.put(&mut out, 0, 0);
    assert!(takes(&mut r, out.finish(0, 1)));
    assert!(takes(&mut r, one("", 7, true, "x")));
}

#[test]
fn memory_is_bounded_and_the_newest_is_kept() {
    let mut r = Recognizer::new(16 << 10);
    for i in 0..100_000u32 {
        let client = format!("c{}", i % 300);
        takes(&mut r, one(&client, (i % 60_000) as u16 + 1, false, "x"));
    }
    assert!(r.records <= r.records_max + SESSION_RECORDS_MIN, "{} records", r.records);
    assert!(r.sessions.len() <= r.sessions_max + 1);
    assert_eq!(r.records, r.sessions.values().map(|s| s.recent.len()).sum::<usize>());
    let last = 99_999u32;
    let client = format!("c{}", last % 300);
    assert!(!takes(&mut r, one(&client, (last % 60_000) as u16 + 1, true, "x")));
}

#[test]
fn a_copy_recognises_the_same() {
    let mut r = Recognizer::new(BUDGET);
    for i in 0..1000u16 {
        takes(&mut r, one(["a", "b", ""][usize::from(i % 3)], i + 1, false, &format!("{i}")));
    }
    let mut bytes = Vec::new();
    r.put(&mut bytes);
    let mut copy = Recognizer::new(BUDGET);
    assert_eq!(copy.get(&bytes), Some(()));
    assert!(!takes(&mut copy, one("a", 1, true, "0")));
    assert!(takes(&mut copy, one("a", 2, true, "1")), "2 was b's");
    for cut in 0..bytes.len() {
        assert_eq!(Recognizer::new(BUDGET).get(&bytes[..cut]), None, "cut at {cut}");
    }
}

/// A sender as the specification has it: sends in order, keeps what is not acknowledged, and sends
/// all of that again, in order and with the DUP flag, after a reconnect.
struct Sender {
    ids: u16,
    next_id: u16,
    unacked: VecDeque<(u16, String)>,
    made: u32,
}

impl Sender {
    fn new_message(&mut self, equal: u32) -> Option<(u16, String)> {
        if self.unacked.len() >= usize::from(self.ids) {
            return None;
        }
        let id = self.next_id;
        self.next_id = if id >= self.ids { 1 } else { id + 1 };
        let payload = payload(self.made, equal);
        self.made += 1;
        self.unacked.push_back((id, payload.clone()));
        Some((id, payload))
    }
}

/// All alike (1), or each `equal`th like the others and the rest unique, or all unique (0).
fn payload(number: u32, equal: u32) -> String {
    match number.checked_rem(equal) {
        Some(0) => "the same".to_owned(),
        _ => format!("p{number}"),
    }
}

proptest! {
    /// Every message is journaled exactly once, whatever is lost on the way, if the sender has more
    /// identifiers than it ever needs at a time.
    #[test]
    fn each_message_once(
        from_broker: bool, ids in 8..300u16, equal in 0..4u32, window in 1..8usize,
        acts in proptest::collection::vec((0..6u8, 0..9usize), 1..300),
    ) {
        let mut r = Recognizer::new(BUDGET);
        let mut sender = Sender { ids, next_id: 1, unacked: VecDeque::new(), made: 0 };
        // On the wire towards us; acknowledgements on their way back.
        let (mut wire, mut acks) = (VecDeque::new(), VecDeque::new());
        let mut journal: Vec<String> = Vec::new();
        // The very first message could be taken for the first of a new round of identifiers.
        let (start, end) = ([(0, 1), (1, 1), (2, 1)], [(5, 0), (1, 1000), (2, 1000)]);
        for (act, n) in start.into_iter().chain(acts).chain(end) {
            match act {
                0 | 3 => for _ in 0..n {
                    if sender.unacked.len() < window
                        && let Some((id, payload)) = sender.new_message(equal)
                    {
                        wire.push_back((id, false, payload));
                    }
                },
                1 | 4 => for (id, duplicate, payload) in wire.drain(..n.min(wire.len())) {
                    let client = if from_broker { "" } else { "a" };
                    if takes(&mut r, one(client, id, duplicate, &payload)) {
                        journal.push(payload);
                    }
                    acks.push_back(id);
                },
                2 => for id in acks.drain(..n.min(acks.len())) {
                    let front = sender.unacked.pop_front().unwrap();
                    prop_assert_eq!(front.0, id);
                },
                _ => {
                    wire.clear();
                    acks.clear();
                    let again = sender.unacked.iter();
                    wire.extend(again.map(|(id, payload)| (*id, true, payload.clone())));
                }
            }
        }
        prop_assert!(sender.unacked.is_empty());
        let expected: Vec<String> = (0..sender.made).map(|i| payload(i, equal)).collect();
        prop_assert_eq!(journal, expected);
    }
}

mod journaled {
    //! The same over restarts of the process, segment by segment.

    use std::path::Path;
    use std::time::Duration;

    use super::super::super::segment::{self, HEADER_BYTES};
    use super::*;
    use crate::clock::Clock;
    use crate::journal::{Feed, FeedSink, Journal, JournalOptions};

    struct Nowhere;

    impl FeedSink for Nowhere {
        fn push(&mut self, _: Feed) {}
    }

    /// Opens, offers the messages one by one, and says how many were known and how many segments
    /// there are at the end. Older segments than the last are trimmed at the start.
    fn offer(dir: &Path, ids: std::ops::Range<u16>, duplicate: bool) -> (u64, usize) {
        let options = JournalOptions {
            segment_bytes: 3_000,
            epoch_interval: Duration::from_millis(1),
            ..JournalOptions::new(dir)
        };
        let from = segment::list(dir, "journal").unwrap().last().map_or(0, |(_, path)| {
            segment::FrameReader::open(path, None).unwrap().header.first_epoch
        });
        let (journal, _) = Journal::open(options, Clock::system(), &names(), from).unwrap();
        // Only the last segment is left.
        journal.trim(from.saturating_sub(1));
        journal.start(Box::new(Nowhere)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for id in ids {
                let mut out = MessagesBuilder::default();
                let meta =
                    MessageMeta { packet_id: id, qos: 1, duplicate, ..MessageMeta::default() };
                out.push(b"t", format!("{id}").as_bytes(), b"device", meta);
                journal.intake(0).offer(out).await.unwrap();
            }
        });
        journal.shutdown();
        (journal.stats().repeated, segment::list(dir, "journal").unwrap().len())
    }

    #[test]
    fn repetitions_are_known_after_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let (known, segments) = offer(dir.path(), 1..200, false);
        assert!(known == 0 && segments > 3, "{segments} segments");
        assert_eq!(offer(dir.path(), 1..200, true).0, 199);
        assert_eq!(offer(dir.path(), 150..250, true).0, 50);
    }

    #[test]
    fn a_torn_copy_is_made_good_from_the_segment_before() {
        let dir = tempfile::tempdir().unwrap();
        offer(dir.path(), 1..40, false);
        let (number, path) = segment::list(dir.path(), "journal").unwrap().pop().unwrap();
        // A new segment whose first frame was being written when the power went.
        let header = std::fs::read(&path).unwrap();
        for cut in [1, 20, 100] {
            let mut header = segment::FileHeader::decode(header.first_chunk().unwrap()).unwrap();
            assert_eq!(header.sequence, number);
            let copy = tempfile::tempdir().unwrap();
            for (_, path) in segment::list(dir.path(), "journal").unwrap() {
                std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
            let mut position = None;
            let mut reader = segment::FrameReader::open(&path, None).unwrap();
            while let Some(frame) = reader.next_frame().unwrap() {
                position
                    .get_or_insert_with(|| super::super::super::epoch::Position::start_of(&header))
                    .step(&frame)
                    .unwrap();
            }
            let position = position.unwrap();
            header.sequence += 1;
            (header.first_epoch, header.first_offset) = (position.epoch, position.next_offset);
            header.last_time_us = position.last_time_us;
            let mut bytes = header.encode();
            crate::journal::frame::append(
                &mut bytes,
                header.salt,
                crate::journal::frame::Kind::Sessions,
                position.epoch,
                0,
                |body| body.extend_from_slice(&[7; 500]),
            );
            bytes.truncate(HEADER_BYTES + cut);
            let next = copy.path().join(segment::file_name("journal", header.sequence));
            std::fs::write(next, bytes).unwrap();
            assert_eq!(offer(copy.path(), 1..40, true).0, 39, "cut after {cut}");
        }
    }
}
