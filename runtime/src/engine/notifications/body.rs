//! The body of a notification, as long as an outbox takes it.
//!
//! Invariant ([`Body::encode`]): nothing that a device sends makes a body that cannot be told. Long
//! texts are cut, the same ones in a replay, and the body says so; the row of `system.alerts` has
//! all. What is JSON in that row is handed on as it is written there, so that numbers have the same
//! digits: read and written again, one with a fraction can be the one beside it.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::outbox::ITEM_BYTES_MAX;

/// What identifiers, names and the like of a notification take besides, at most.
const NAMES_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = ITEM_BYTES_MAX as usize - NAMES_BYTES_MAX;
/// Texts are cut to so many characters, to fewer if that is not enough.
const TEXT_CHARS_MAX: [usize; 3] = [16 << 10, 1 << 10, 100];

/// See the head of this file.
#[derive(Debug, Serialize)]
pub(super) struct Body {
    pub(super) r#type: String,
    pub(super) timestamp: String,
    pub(super) data: Data,
}

/// What is told of an alert.
#[derive(Debug, Serialize)]
pub(super) struct Data {
    pub(super) alert_id: String,
    pub(super) pipeline: String,
    pub(super) rule: String,
    pub(super) status: String,
    pub(super) severity: String,
    pub(super) summary: String,
    pub(super) since: String,
    pub(super) keys: Box<RawValue>,
    pub(super) row: Box<RawValue>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) cut: bool,
}

impl Body {
    /// Its bytes; what is too long in its data is cut, and `"cut": true` is added.
    ///
    /// # Errors
    /// None that JSON of alerts can have.
    pub(super) fn encode(mut self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(&self)?;
        for chars_max in TEXT_CHARS_MAX {
            if bytes.len() <= BODY_BYTES_MAX {
                return Ok(bytes);
            }
            // These come from devices and can be as long as a payload.
            let data = &mut self.data;
            data.cut = true;
            shorten(&mut data.summary, chars_max);
            data.keys = shortened(&data.keys, chars_max)?;
            data.row = shortened(&data.row, chars_max)?;
            bytes = serde_json::to_vec(&self)?;
        }
        if bytes.len() > BODY_BYTES_MAX {
            // Many values rather than long ones.
            (self.data.keys, self.data.row) = (to_raw_value(&())?, to_raw_value(&())?);
            bytes = serde_json::to_vec(&self)?;
        }
        Ok(bytes)
    }
}

/// A text that is JSON, as that; any other as a text.
pub(super) fn as_json(text: String) -> serde_json::Result<Box<RawValue>> {
    match serde_json::from_str::<&RawValue>(&text) {
        Ok(json) => Ok(json.to_owned()),
        Err(_) => to_raw_value(&text),
    }
}

fn shorten(text: &mut String, chars_max: usize) {
    if let Some((at, _)) = text.char_indices().nth(chars_max) {
        text.truncate(at);
        text.push('…');
    }
}

/// The same JSON with shorter texts; names and numbers stay as they are written.
fn shortened(json: &RawValue, chars_max: usize) -> serde_json::Result<Box<RawValue>> {
    let (mut out, mut rest) = (String::new(), json.get());
    while let Some(at) = rest.find('"') {
        let (before, quoted) = rest.split_at(at);
        let (quoted, after) = quoted.split_at(quoted_len(quoted));
        out.push_str(before);
        if after.trim_start().starts_with(':') {
            out.push_str(quoted);
        } else {
            let mut text: String = serde_json::from_str(quoted)?;
            shorten(&mut text, chars_max);
            out.push_str(&serde_json::to_string(&text)?);
        }
        rest = after;
    }
    out.push_str(rest);
    RawValue::from_string(out)
}

/// How many bytes the text in quotes has with which this begins.
fn quoted_len(json: &str) -> usize {
    let mut is_escaped = false;
    let is_end = |(_, byte): &(usize, u8)| {
        let ends = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        ends
    };
    json.bytes().enumerate().skip(1).find(is_end).map_or(json.len(), |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn body(row: &str, keys: &str) -> Body {
        let text = || "s".to_owned();
        Body {
            r#type: "alert.firing".into(),
            timestamp: text(),
            data: Data {
                alert_id: "a".into(),
                pipeline: text(),
                rule: text(),
                status: text(),
                severity: text(),
                summary: text(),
                since: text(),
                keys: as_json(keys.to_owned()).unwrap(),
                row: as_json(row.to_owned()).unwrap(),
                cut: false,
            },
        }
    }

    fn encoded(row: &Value, keys: &Value) -> Value {
        let bytes = body(&row.to_string(), &keys.to_string()).encode().unwrap();
        assert!(bytes.len() <= BODY_BYTES_MAX, "{} bytes", bytes.len());
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn long_texts_are_cut_until_it_fits_and_that_is_said() {
        let whole = encoded(&json!({"t": "ä".repeat(400_000), "n": 7}), &json!({}));
        assert_eq!(whole["data"]["cut"], Value::Null, "this one fits");
        // One byte each, but six in JSON.
        let long = "\u{1}".repeat(400_000);
        let row = json!({"t": &long, "n": 7, "list": ["a", &long], "of \"\\": "\\\" :"});
        let cut = encoded(&row, &json!({"device": "d"}));
        assert_eq!(cut["data"]["cut"], true);
        assert_eq!(
            (&cut["data"]["row"]["n"], &cut["data"]["keys"]["device"]),
            (&json!(7), &json!("d"))
        );
        let text = cut["data"]["row"]["t"].as_str().unwrap();
        assert!(text.ends_with('…') && text.chars().count() == TEXT_CHARS_MAX[0] + 1);
        assert_eq!(cut["data"]["row"]["list"], json!(["a", text]));
        assert_eq!(cut["data"]["row"]["of \"\\"], "\\\" :");
        let many: Vec<u64> = (0..400_000).collect();
        let cut = encoded(&json!({ "list": many }), &json!({"device": &long}));
        assert_eq!((&cut["data"]["row"], &cut["data"]["alert_id"]), (&Value::Null, &json!("a")));
    }

    #[test]
    fn numbers_have_the_digits_that_they_have_in_the_row_also_where_texts_are_cut() {
        let numbers = r#""a":9.779166666666667,"b":[20.006999969482425,1e300]"#;
        for long in [0, 2_000_000] {
            let row = format!(r#"{{{numbers},"t":"{}"}}"#, "x".repeat(long));
            let bytes = body(&row, r#"{"k":9.779166666666667}"#).encode().unwrap();
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(text.contains(r#""cut":true"#), long > 0);
            assert!(text.contains(&format!(r#""row":{{{numbers},"t":""#)), "{long}");
            assert!(text.contains(r#""keys":{"k":9.779166666666667}"#), "{long}");
        }
        let text = body("not JSON", "{").encode().unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.ends_with(r#""keys":"{","row":"not JSON"}}"#), "{text}");
    }
}
