//! The packet codec: limits before parsing, and random bytes.
#![allow(clippy::unwrap_used)]

use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5;

use super::*;
use crate::mqtt::testing;

#[test]
fn the_size_is_judged_from_the_header_alone() {
    // 2,000,000 bytes are announced, two have come.
    let header = [0x30, 0x80, 0x89, 0x7A];
    assert_eq!(frame(&header, 65_536).unwrap_err().reason, Reason::PacketTooLarge);
    assert_eq!(frame(&header, 1 << 24), Ok(None));
    let exact = testing::packet(0x30, &[0; 100]);
    assert!(frame(&exact, exact.len()).unwrap().is_some());
    assert!(frame(&exact, exact.len() - 1).is_err());
    assert_eq!(frame(&exact[..exact.len() - 1], 1000), Ok(None));
    assert!(frame(&[0x30, 0x80, 0x80, 0x80, 0x80, 1], 1 << 30).is_err());
}

#[test]
fn topics_are_checked() {
    for (topic, reason) in [
        ("", Reason::ProtocolError),
        ("a/+/b", Reason::TopicNameInvalid),
        ("a/#", Reason::TopicNameInvalid),
        ("a\0b", Reason::MalformedPacket),
    ] {
        let body = testing::text(topic);
        assert_eq!(publish(Version::V3, 0, &body).unwrap_err().reason, reason, "{topic:?}");
    }
    assert!(publish(Version::V3, 0, &[0, 2, 0xC3, 0x28]).is_err());
    assert!(check_topic_limits(&[b'a'; TOPIC_BYTES_MAX]).is_ok());
    assert!(check_topic_limits(&[b'a'; TOPIC_BYTES_MAX + 1]).is_err());
    assert!(check_topic_limits("/".repeat(TOPIC_LEVELS_MAX - 1).as_bytes()).is_ok());
    assert!(check_topic_limits("/".repeat(TOPIC_LEVELS_MAX).as_bytes()).is_err());
}

#[test]
fn a_topic_alias_has_its_own_reason() {
    let body = [0, 1, b'a', 3, 35, 0, 1];
    assert_eq!(publish(Version::V5, 0, &body).unwrap_err().reason, Reason::TopicAliasInvalid);
    // Also with the topic left out, as in every use but the first.
    let body = [0, 0, 3, 35, 0, 1];
    assert_eq!(publish(Version::V5, 0, &body).unwrap_err().reason, Reason::TopicAliasInvalid);
}

/// Topic, payload, packet id, QoS, DUP, RETAIN.
type Parts = (Vec<u8>, Vec<u8>, u16, u8, bool, bool);

/// What the codec crates say of a packet, in our words; `None` if they refuse it.
fn by_codec(version: Version, packet: &[u8]) -> Option<Parts> {
    let mut bytes = BytesMut::from(packet);
    match version {
        Version::V3 => match v4::Packet::read(&mut bytes, usize::MAX).ok()? {
            v4::Packet::Publish(p) => {
                let (topic, payload) = (p.topic.to_vec(), p.payload.to_vec());
                Some((topic, payload, p.pkid, p.qos as u8, p.dup, p.retain))
            }
            _ => None,
        },
        Version::V5 => match v5::Packet::read(&mut bytes, None).ok()? {
            v5::Packet::Publish(p) => {
                let (topic, payload) = (p.topic.to_vec(), p.payload.to_vec());
                Some((topic, payload, p.pkid, p.qos as u8, p.dup, p.retain))
            }
            _ => None,
        },
    }
}

fn by_us(version: Version, packet: &[u8]) -> Option<Parts> {
    let frame = frame(packet, usize::MAX).ok()??;
    let p = publish(version, frame.flags(), &packet[frame.header_len..frame.total_len]).ok()?;
    let (topic, payload) = (p.topic.to_vec(), p.payload.to_vec());
    Some((topic, payload, p.packet_id, p.qos, p.duplicate, p.retain))
}

fn properties() -> impl Strategy<Value = v5::PublishProperties> {
    let pair = (".{0,9}", ".{0,9}").prop_filter("no NUL", |(a, b)| !(a.clone() + b).contains('\0'));
    let parts = (
        proptest::option::of(0..2u8),
        proptest::option::of(any::<u32>()),
        proptest::collection::vec(pair, 0..3),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)),
        proptest::option::of("[a-z/]{1,9}"),
    );
    parts.prop_map(|(format, expiry, user_properties, data, text)| v5::PublishProperties {
        payload_format_indicator: format,
        message_expiry_interval: expiry,
        user_properties,
        correlation_data: data.map(Into::into),
        content_type: text.clone(),
        response_topic: text,
        ..Default::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn we_read_what_the_codecs_write(
        topic in "[a-zäß/ ]{1,40}", payload in proptest::collection::vec(any::<u8>(), 0..300),
        qos in 0..3u8, id in 1..=u16::MAX, dup: bool, retain: bool, properties in properties(),
    ) {
        let dup = dup && qos > 0;
        let id = if qos == 0 { 0 } else { id };
        let expected = (topic.clone().into_bytes(), payload.clone(), id, qos, dup, retain);
        let mut out = BytesMut::new();
        let level = rumqttc_v4::mqttbytes::qos(qos).unwrap();
        let mut old = v4::Publish::new(topic.clone(), level, payload.clone());
        (old.pkid, old.dup, old.retain) = (id, dup, retain);
        old.write(&mut out).unwrap();
        prop_assert_eq!(by_us(Version::V3, &out), Some(expected.clone()));
        out.clear();
        let mut new = v5::Publish::new(topic, level, payload, Some(properties));
        (new.pkid, new.dup, new.retain) = (id, dup, retain);
        new.write(&mut out).unwrap();
        prop_assert_eq!(by_us(Version::V5, &out), Some(expected));
    }

    #[test]
    fn what_we_accept_the_codecs_accept_too(
        flags in 0..16u8,
        topic in "[a+#\0/]{0,4}",
        tail in proptest::collection::vec(0..40u8, 0..40),
        v5: bool,
    ) {
        let version = if v5 { Version::V5 } else { Version::V3 };
        let packet = testing::packet(0x30 | flags, &[testing::text(&topic), tail].concat());
        if let Some(ours) = by_us(version, &packet) {
            prop_assert_eq!(Some(ours), by_codec(version, &packet));
        } else if version == Version::V3 {
            prop_assert_eq!(None, by_codec(version, &packet));
        }
    }

    #[test]
    fn no_bytes_make_us_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for version in [Version::V3, Version::V5] {
            let _ = by_us(version, &bytes);
            for flags in 0..16 {
                let _ = publish(version, flags, &bytes);
            }
        }
    }
}
