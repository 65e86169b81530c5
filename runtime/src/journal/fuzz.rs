//! Fuzz targets of everything that reads the journal: damage is told, never a panic, never more
//! memory than the file has bytes, and never something else than was written.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use tidegate_operators::{MessageMeta, Messages, MessagesBuilder};

use super::frame::{self, Kind};
use super::recognize::Recognizer;
use super::record::{get_messages, get_seal, get_sources, put_messages, put_sources};
use super::segment::{FileHeader, FrameReader, HEADER_BYTES, durable_after};
use crate::fuzz::{self, Rng, mutate};

/// Messages as sources make them: none, one, many; with and without properties and packet ids.
fn messages(rng: &mut Rng) -> Messages {
    let mut builder = MessagesBuilder::default();
    for i in 0..rng.below(12) {
        let payload: Vec<u8> = (0..rng.below(60)).map(|_| rng.next() as u8).collect();
        let meta = MessageMeta {
            received_us: rng.next() as i64 >> rng.below(60),
            packet_id: *rng.pick(&[0, 1, 7, u16::MAX]),
            qos: rng.below(3) as u8,
            duplicate: rng.one_in(4),
            retain: rng.one_in(4),
            event: rng.one_in(9),
            session: *rng.pick(&[0, 0, 3, u16::MAX]),
            ..MessageMeta::default()
        };
        let properties: &[u8] = if rng.one_in(3) { &[1, 1] } else { &[] };
        let topic = format!("plant/{}", i % 3);
        builder.push_with(topic.as_bytes(), &payload, b"client", properties, meta);
    }
    builder.finish(rng.below(4) as u16, rng.next() >> rng.below(64))
}

/// Topic, payload, client, properties; packet id and whether it is an event.
type Parts<'a> = ([&'a [u8]; 4], u16, bool);

fn parts(messages: &Messages) -> Vec<Parts<'_>> {
    let part = |i: usize| {
        let meta = &messages.index[i];
        let (topic, payload) = (messages.topic(i), messages.payload(i));
        let (client, properties) = (messages.client(i), messages.properties(i));
        ([topic, payload, client, properties], meta.packet_id, meta.event)
    };
    (0..messages.len()).map(part).collect()
}

fn corpus(rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut recognizer = Recognizer::new(1 << 20);
    let names = ["a".to_owned(), "endpoint 127.0.0.1:1883".to_owned()];
    recognizer.filter(&mut messages(rng), &names, 0);
    let (mut records, mut sources, mut copy) = (Vec::new(), Vec::new(), Vec::new());
    put_messages(&mut records, &messages(rng));
    put_sources(&mut sources, &names);
    recognizer.put(&mut copy);
    vec![records, sources, copy]
}

#[test]
fn record_decoders_take_any_bytes() {
    fuzz::run("journal records", |rng| {
        let corpus = corpus(rng);
        let mut bytes = rng.pick(&corpus).clone();
        mutate(rng, &mut bytes, &corpus);
        if let Some(names) = get_sources(&bytes) {
            assert!(names.len() <= bytes.len());
        }
        let _ = get_seal(1, &bytes);
        let mut recognizer = Recognizer::new(1 << 20);
        if recognizer.get(&bytes).is_some() {
            recognizer.filter(&mut messages(rng), &["a".to_owned()], 1);
        }
        if let Some(read) = get_messages(&Bytes::from(bytes)) {
            // Whatever was understood is the same when it is written and read again.
            let mut again = Vec::new();
            put_messages(&mut again, &read);
            let again = get_messages(&Bytes::from(again)).unwrap();
            assert_eq!(parts(&read), parts(&again));
            let mut recognizer = Recognizer::new(1 << 20);
            recognizer.replay(&read, &["a".to_owned()]);
        }
    });
}

#[test]
fn a_damaged_file_is_read_up_to_its_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged");
    fuzz::run("journal files", |rng| {
        let salt = rng.next();
        let header =
            FileHeader { sequence: 1, salt, first_epoch: 1, first_offset: 0, last_time_us: 0 };
        let mut file = header.encode();
        let mut bodies = Vec::new();
        for epoch in 0..1 + rng.below(6) as u64 {
            let corpus = corpus(rng);
            let (kind, body) = (Kind::Messages, rng.pick(&corpus).clone());
            let synced_to = file.len() as u64;
            frame::append(&mut file, salt, kind, epoch, synced_to, |out| out.extend(&body));
            bodies.push(body);
        }
        let whole = file.clone();
        mutate(rng, &mut file, &[whole.clone(), vec![0; 100]]);
        std::fs::write(&path, &file).unwrap();
        let same = whole.iter().zip(&file).take_while(|(a, b)| a == b).count();
        let Ok(mut reader) = FrameReader::open(&path, None) else {
            return assert!(same < HEADER_BYTES, "the header was whole");
        };
        let mut read = 0;
        let ended_well = loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    // A checksum of 32 bits does not miss what these mutations do.
                    assert!(bodies.iter().any(|body| *body == frame.body), "an invented body");
                    read += 1;
                }
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let _ = durable_after(&path, &reader.header, reader.offset).unwrap();
        if file == whole {
            assert!(ended_well && read == bodies.len());
        }
        let frames_before_damage = whole_frames(&bodies, same);
        assert!(read >= frames_before_damage, "{read} of {frames_before_damage} whole frames");
    });
}

/// Frames that lie within the first `same` bytes.
fn whole_frames(bodies: &[Vec<u8>], same: usize) -> usize {
    let ends = bodies.iter().scan(HEADER_BYTES, |end, body| {
        *end += frame::HEADER_BYTES + body.len();
        Some(*end)
    });
    ends.take_while(|end| *end <= same).count()
}
