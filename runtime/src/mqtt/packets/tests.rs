//! The rare packets: what the standard allows, and what each violation is called.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::mqtt::testing::text;

fn filter(name: &str, options: u8) -> Vec<u8> {
    [text(name), vec![options]].concat()
}

fn body(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn a_subscribe_is_read_with_all_its_options() {
    let three = body(&[&[0, 9], &filter("a/+/#", 2), &filter("b", 0)]);
    let read = subscribe(Version::V3, &three).unwrap();
    assert_eq!((read.packet_id, read.filters.len()), (9, 2));
    assert_eq!(read.filters[0].as_ref().unwrap().qos, 2);
    let five = body(&[&[0, 9, 3, 11, 0x80, 1], &filter("$share/g/a", 0x29), &filter("b", 0x1C)]);
    let read = subscribe(Version::V5, &five).unwrap();
    let shared = read.filters[0].as_ref().unwrap();
    let flags = (shared.qos, shared.no_local, shared.retain_as_published, shared.retain_handling);
    assert_eq!((flags, shared.identifier), ((1, false, true, 2), Some(128)));
    let plain = read.filters[1].as_ref().unwrap();
    let flags = (plain.qos, plain.no_local, plain.retain_as_published, plain.retain_handling);
    assert_eq!(flags, (0, true, true, 1));
    let deep = body(&[&[0, 9], &filter(&"a/".repeat(TOPIC_LEVELS_MAX), 0)]);
    assert_eq!(subscribe(Version::V3, &deep).unwrap().filters, [Err(Limit)]);
}

#[test]
fn a_wrong_subscribe_has_its_reason() {
    use Reason::{MalformedPacket, ProtocolError, QuotaExceeded};
    let many: Vec<u8> = (0..=FILTERS_MAX).flat_map(|_| filter("a", 0)).collect();
    let cases: [(&[&[u8]], Reason); 17] = [
        (&[&[0, 0, 0], &filter("a", 0)], ProtocolError),
        (&[&[0, 1, 0]], ProtocolError),
        (&[&[0, 1, 0], &filter("", 0)], MalformedPacket),
        (&[&[0, 1, 0], &filter("a/#/b", 0)], MalformedPacket),
        (&[&[0, 1, 0], &filter("a+/b", 0)], MalformedPacket),
        (&[&[0, 1, 0], &filter("a#", 0)], MalformedPacket),
        (&[&[0, 1, 0], &filter("a\0", 0)], MalformedPacket),
        (&[&[0, 1, 0, 0, 2, 0xC3, 0x28, 0]], MalformedPacket),
        (&[&[0, 1, 0, 0, 3, 0xED, 0xA0, 0x80, 0]], MalformedPacket),
        (&[&[0, 1, 0], &filter("a", 3)], MalformedPacket),
        (&[&[0, 1, 0], &filter("a", 0x40)], MalformedPacket),
        (&[&[0, 1, 0], &filter("a", 0x30)], ProtocolError),
        (&[&[0, 1, 0], &filter("$share/g/a", 4)], ProtocolError),
        (&[&[0, 1, 0], &filter("$share/g", 0)], MalformedPacket),
        (&[&[0, 1, 2, 11, 0], &filter("a", 0)], ProtocolError),
        (&[&[0, 1, 4, 11, 1, 11, 2], &filter("a", 0)], ProtocolError),
        (&[&[0, 1, 0], &many], QuotaExceeded),
    ];
    for (parts, reason) in cases {
        let got = subscribe(Version::V5, &body(parts)).unwrap_err().reason;
        assert_eq!(got, reason, "{:?}", &body(parts)[..body(parts).len().min(20)]);
    }
    for options in [3, 4, 8, 0x10] {
        let old = body(&[&[0, 1], &filter("a", options)]);
        assert_eq!(subscribe(Version::V3, &old).unwrap_err().reason, MalformedPacket);
    }
}

#[test]
fn an_unsubscribe_is_read() {
    let two = body(&[&[0, 9], &text("a/#"), &text("b")]);
    assert_eq!(unsubscribe(Version::V3, &two).unwrap(), (9, vec!["a/#", "b"]));
    let user = body(&[&[0, 9, 7, 38], &text("k"), &text("v"), &text("b")]);
    assert_eq!(unsubscribe(Version::V5, &user).unwrap(), (9, vec!["b"]));
    let none = unsubscribe(Version::V5, &[0, 9, 0]).unwrap_err();
    assert_eq!(none.reason, Reason::ProtocolError);
    let property = body(&[&[0, 9, 2, 11, 1], &text("b")]);
    assert_eq!(unsubscribe(Version::V5, &property).unwrap_err().reason, Reason::ProtocolError);
}

#[test]
fn acknowledgements_are_read_in_all_their_lengths() {
    assert_eq!(ack(Version::V3, kind::PUBACK, &[0, 7]), Ok((7, 0)));
    assert_eq!(ack(Version::V5, kind::PUBACK, &[0, 7]), Ok((7, 0)));
    assert_eq!(ack(Version::V5, kind::PUBREC, &[0, 7, 0x87]), Ok((7, 0x87)));
    assert_eq!(ack(Version::V5, kind::PUBREL, &[0, 7, 0x92, 0]), Ok((7, 0x92)));
    let why = body(&[&[0, 7, 0x10, 5, 31], &text("no")]);
    assert_eq!(ack(Version::V5, kind::PUBACK, &why), Ok((7, 0x10)));
    for (version, kind, bytes) in [
        (Version::V3, kind::PUBACK, &[0, 7, 0][..]),
        (Version::V5, kind::PUBACK, &[0, 0]),
        (Version::V5, kind::PUBACK, &[0]),
        (Version::V5, kind::PUBACK, &[0, 7, 0x92]),
        (Version::V5, kind::PUBCOMP, &[0, 7, 0x10]),
        (Version::V5, kind::PUBREL, &[0, 7, 0, 0, 1]),
        (Version::V5, kind::PUBREL, &[0, 7, 0, 2, 17, 0]),
    ] {
        assert!(ack(version, kind, bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_goodbye_says_what_becomes_of_will_and_session() {
    let plain = Goodbye::default();
    assert_eq!(disconnect(Version::V3, &[]), Ok(plain));
    assert_eq!(disconnect(Version::V5, &[]), Ok(plain));
    assert_eq!(disconnect(Version::V5, &[4]), Ok(Goodbye { reason: 4, ..plain }));
    let kept = Goodbye { reason: 0, session_expiry_s: Some(258) };
    assert_eq!(disconnect(Version::V5, &[0, 5, 17, 0, 0, 1, 2]), Ok(kept));
    for (version, bytes) in [
        (Version::V3, &[0][..]),
        (Version::V5, &[0x8B]),
        (Version::V5, &[1]),
        (Version::V5, &[0, 5, 17, 0, 0, 1]),
        (Version::V5, &[0, 4, 28, 0, 1, b's']),
        (Version::V5, &[0, 0, 9]),
        (Version::V5, &[0, 10, 17, 0, 0, 0, 1, 17, 0, 0, 0, 1]),
    ] {
        assert!(disconnect(version, bytes).is_err(), "{bytes:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_bytes_make_us_panic(
        bytes in proptest::collection::vec(prop_oneof![0..40u8, any::<u8>()], 0..80),
    ) {
        for version in [Version::V3, Version::V5] {
            let _ = subscribe(version, &bytes);
            let _ = unsubscribe(version, &bytes);
            let _ = disconnect(version, &bytes);
            for kind in [kind::PUBACK, kind::PUBREC, kind::PUBREL, kind::PUBCOMP] {
                let _ = ack(version, kind, &bytes);
            }
        }
    }
}
