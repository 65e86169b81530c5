//! The body of a notification, as long as an outbox takes it.
//!
//! Invariant ([`encode`]): nothing that a device sends makes a body that cannot be told. Long texts
//! are cut, the same ones in a replay, and the body says so; the row of `system.alerts` has all.

use serde_json::Value;

use crate::outbox::ITEM_BYTES_MAX;

/// What identifiers, names and the like of a notification take besides, at most.
const NAMES_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = ITEM_BYTES_MAX as usize - NAMES_BYTES_MAX;
/// Texts are cut to so many characters, to fewer if that is not enough.
const TEXT_CHARS_MAX: [usize; 3] = [16 << 10, 1 << 10, 100];
/// What comes from devices and can be as long as a payload.
const FROM_DEVICES: [&str; 3] = ["row", "summary", "keys"];

/// The bytes of `body`; what is too long in its `data` is cut, and `"cut": true` is added.
///
/// # Errors
/// None that JSON of alerts can have.
pub(super) fn encode(mut body: Value) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(&body)?;
    for chars_max in TEXT_CHARS_MAX {
        if bytes.len() <= BODY_BYTES_MAX {
            return Ok(bytes);
        }
        let data = &mut body["data"];
        data["cut"] = true.into();
        FROM_DEVICES.iter().for_each(|name| shorten(&mut data[*name], chars_max));
        bytes = serde_json::to_vec(&body)?;
    }
    if bytes.len() > BODY_BYTES_MAX {
        // Many values rather than long ones.
        body["data"]["row"] = Value::Null;
        body["data"]["keys"] = Value::Null;
        bytes = serde_json::to_vec(&body)?;
    }
    Ok(bytes)
}

fn shorten(value: &mut Value, chars_max: usize) {
    match value {
        Value::String(text) => {
            if let Some((at, _)) = text.char_indices().nth(chars_max) {
                text.truncate(at);
                text.push('…');
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| shorten(value, chars_max)),
        Value::Object(object) => object.values_mut().for_each(|value| shorten(value, chars_max)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn encoded(row: Value, keys: Value) -> Value {
        let data = json!({"alert_id": "a", "summary": "s", "keys": keys, "row": row});
        let bytes = encode(json!({"type": "alert.firing", "data": data})).unwrap();
        assert!(bytes.len() <= BODY_BYTES_MAX, "{} bytes", bytes.len());
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn long_texts_are_cut_until_it_fits_and_that_is_said() {
        let whole = encoded(json!({"t": "ä".repeat(400_000), "n": 7}), json!({}));
        assert_eq!(whole["data"]["cut"], Value::Null, "this one fits");
        // One byte each, but six in JSON.
        let long = "\u{1}".repeat(400_000);
        let cut =
            encoded(json!({"t": &long, "n": 7, "list": ["a", &long]}), json!({"device": "d"}));
        assert_eq!(cut["data"]["cut"], true);
        assert_eq!(
            (&cut["data"]["row"]["n"], &cut["data"]["keys"]["device"]),
            (&json!(7), &json!("d"))
        );
        let text = cut["data"]["row"]["t"].as_str().unwrap();
        assert!(text.ends_with('…') && text.chars().count() == TEXT_CHARS_MAX[0] + 1);
        let many: Vec<u64> = (0..400_000).collect();
        let cut = encoded(json!({ "list": many }), json!({"device": &long}));
        assert_eq!((&cut["data"]["row"], &cut["data"]["alert_id"]), (&Value::Null, &json!("a")));
    }
}
