//! The table of properties.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::mqtt::testing::text;

fn reason(bytes: &[u8], allowed: Allowed) -> Option<Reason> {
    check(bytes, allowed).err().map(|violation| violation.reason)
}

#[test]
fn values_are_read_by_type() {
    let all = [
        &[1, 1, 2, 0, 0, 1, 0, 35, 0, 3, 9, 0, 2, 0, 255][..],
        &[&[3][..], &text("json"), &[8], &text("re/ply"), &[38], &text("k"), &text("v")].concat(),
    ]
    .concat();
    let mut properties = Properties::new(&all, PUBLISH);
    let mut read = Vec::new();
    while let Some(property) = properties.next().unwrap() {
        read.push(property);
    }
    let expected = [
        (1, Value::Number(1)),
        (2, Value::Number(256)),
        (35, Value::Number(3)),
        (9, Value::Binary(&[0, 255])),
        (3, Value::Text(b"json")),
        (8, Value::Text(b"re/ply")),
        (38, Value::Pair(b"k", b"v")),
    ];
    assert_eq!(read, expected);
    assert_eq!((properties.user_properties(), properties.rest()), (1, &[][..]));
}

#[test]
fn each_property_has_its_place_and_its_number() {
    let (malformed, protocol) = (Some(Reason::MalformedPacket), Some(Reason::ProtocolError));
    assert_eq!(reason(&[1, 0], PUBLISH), None);
    assert_eq!(reason(&[1, 0], CONNECT), protocol, "not in a CONNECT");
    assert_eq!(reason(&[1, 0, 1, 0], PUBLISH), protocol, "twice");
    assert_eq!(reason(&[1, 2], PUBLISH), protocol, "neither 0 nor 1");
    assert_eq!(reason(&[11, 1, 11, 2], PUBLISH), None, "one for each subscription");
    assert_eq!(reason(&[11, 0x80, 0], SUBSCRIBE), malformed, "longer than need be");
    assert_eq!(reason(&[11, 0x80, 0x80, 0x80, 0x80, 1], SUBSCRIBE), malformed);
    assert_eq!(reason(&[33, 0, 0], CONNECT), protocol, "receive maximum 0");
    assert_eq!(reason(&[39, 0, 0, 0, 0], CONNECT), protocol, "maximum packet size 0");
    assert_eq!(reason(&[35, 0, 0], PUBLISH), Some(Reason::TopicAliasInvalid));
    assert_eq!(reason(&[&[8][..], &text("a/#")].concat(), PUBLISH), protocol);
    assert_eq!(reason(&[&[3][..], &text("a\0")].concat(), PUBLISH), malformed);
    assert_eq!(reason(&[3, 0, 2, 0xC3, 0x28], PUBLISH), malformed);
    assert_eq!(reason(&[0x7F, 0], PUBLISH), malformed, "unknown");
    assert_eq!(reason(&[200, 0], PUBLISH), malformed, "unknown");
    assert_eq!(reason(&[2, 0, 0], PUBLISH), malformed, "cut off");
}

#[test]
fn only_what_is_kept_is_copied() {
    let user = [&[38][..], &text("k"), &text("v")].concat();
    let all = [&[35, 0, 1][..], &user, &[1, 1], &user, &[2, 0, 0, 0, 9]].concat();
    let mut out = Vec::new();
    copy(
        &all,
        PUBLISH,
        |id| id == id::USER_PROPERTY || id == 1,
        |part| out.extend_from_slice(part),
    );
    assert_eq!(out, [&user[..], &[1, 1], &user].concat());
}

#[test]
fn our_own_bounds() {
    assert!(check_limits(&[0; PROPERTIES_BYTES_MAX], USER_PROPERTIES_MAX).is_ok());
    assert!(check_limits(&[0; PROPERTIES_BYTES_MAX + 1], 0).is_err());
    assert!(check_limits(&[], USER_PROPERTIES_MAX + 1).is_err());
}
