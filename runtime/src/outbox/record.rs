//! What outbox frames say: notifications, what became of them, and identifiers already handled.
//!
//! Invariant: `decode(encode(x)) == x`; a body that is not valid is `None`, never a panic.

use std::sync::Arc;

use bytes::Bytes;

use super::Notification;
use crate::journal::bytes::{Reader, put_bytes, put_signed, put_varint};

/// What became of an attempt to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The target took it.
    Delivered = 1,
    /// Not yet; it will be tried again.
    Failed = 2,
    /// It will not be tried again.
    Dead = 3,
}

pub(crate) fn put_notifications(out: &mut Vec<u8>, list: &[Arc<Notification>]) {
    put_varint(out, list.len() as u64);
    for item in list {
        put_bytes(out, item.id.as_bytes());
        put_bytes(out, item.target.as_bytes());
        put_bytes(out, item.key.as_bytes());
        put_signed(out, item.created_us);
        put_bytes(out, &item.body);
    }
}

pub(crate) fn get_notifications(body: &[u8]) -> Option<Vec<Notification>> {
    let mut reader = Reader::new(body);
    let count = reader.varint()?;
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(Notification {
            id: reader.text()?,
            target: reader.text()?,
            key: reader.text()?,
            created_us: reader.signed()?,
            body: Bytes::copy_from_slice(reader.bytes()?),
        });
    }
    (reader.remaining() == 0).then_some(list)
}

pub(crate) fn put_outcome(out: &mut Vec<u8>, outcome: Outcome, id: &str, reason: &str) {
    out.push(outcome as u8);
    put_bytes(out, id.as_bytes());
    put_bytes(out, reason.as_bytes());
}

pub(crate) fn get_outcome(body: &[u8]) -> Option<(Outcome, String, String)> {
    let mut reader = Reader::new(body);
    let outcome = match reader.byte()? {
        1 => Outcome::Delivered,
        2 => Outcome::Failed,
        3 => Outcome::Dead,
        _ => return None,
    };
    let (id, reason) = (reader.text()?, reader.text()?);
    (reader.remaining() == 0).then_some((outcome, id, reason))
}

/// A dead letter is to be sent again, its age counted from `at_us`.
pub(crate) fn put_again(out: &mut Vec<u8>, id: &str, at_us: i64) {
    put_bytes(out, id.as_bytes());
    put_signed(out, at_us);
}

pub(crate) fn get_again(body: &[u8]) -> Option<(String, i64)> {
    let mut reader = Reader::new(body);
    let (id, at_us) = (reader.text()?, reader.signed()?);
    (reader.remaining() == 0).then_some((id, at_us))
}

pub(crate) fn put_ids<'a>(out: &mut Vec<u8>, ids: impl ExactSizeIterator<Item = &'a str>) {
    put_varint(out, ids.len() as u64);
    for id in ids {
        put_bytes(out, id.as_bytes());
    }
}

pub(crate) fn get_ids(body: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader::new(body);
    let count = reader.varint()?;
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(reader.text()?);
    }
    (reader.remaining() == 0).then_some(ids)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_come_back(
            list in proptest::collection::vec(
                (".{0,9}", ".{0,9}", any::<i64>(), any::<Vec<u8>>()),
                0..4,
            ),
        ) {
            let list: Vec<_> = list.into_iter().map(|(id, key, created_us, body)| Arc::new(
                Notification { id, target: "t".into(), key, created_us, body: body.into() },
            )).collect();
            let mut out = Vec::new();
            put_notifications(&mut out, &list);
            let got = get_notifications(&out).unwrap().into_iter().map(Arc::new);
            prop_assert_eq!(&got.collect::<Vec<_>>(), &list);
            out.clear();
            put_ids(&mut out, list.iter().map(|item| item.id.as_str()));
            prop_assert_eq!(get_ids(&out).unwrap().len(), list.len());
            out.clear();
            put_again(&mut out, "id", -7);
            prop_assert_eq!(get_again(&out), Some(("id".into(), -7)));
            for outcome in [Outcome::Delivered, Outcome::Failed, Outcome::Dead] {
                out.clear();
                put_outcome(&mut out, outcome, "id", "why");
                prop_assert_eq!(get_outcome(&out), Some((outcome, "id".into(), "why".into())));
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(body in any::<Vec<u8>>()) {
            let _ = (get_notifications(&body), get_outcome(&body));
            let _ = (get_ids(&body), get_again(&body));
        }
    }
}
