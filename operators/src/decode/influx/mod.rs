//! InfluxDB's line protocol: one line is one message and one reading.
//!
//! `measurement,tag=value field=1.5,other="text" 1760000000000000000`. What a column wants is found
//! by name, fields before tags; `_measurement` and `_time` are the parts that have no name, and
//! `_tag.NAME` and `_field.NAME` say which of two is meant. Values are not copied. A line is taken
//! as a whole or not at all, and a bad one never costs another one (see `split`).

mod precision;
mod split;
mod syntax;

#[cfg(test)]
mod tests;

pub use self::precision::Precision;
pub use self::split::{Lines, lines};

use self::syntax::Cursor;
use super::reader::Rows;
use super::scan::Fault;
use super::time::END_US;
use super::value::Value;
use crate::reject::Reason;

/// Tags of a line: more is a mistake, and the check for doubled ones compares each with each.
const TAGS_MAX: usize = 256;

/// Where in a line the value of a slot is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Measurement,
    Time,
    /// A field, or else a tag, of this name.
    Named(Vec<u8>),
    Tag(Vec<u8>),
    Field(Vec<u8>),
}

impl Place {
    /// Names may hold dots, which paths do not know.
    fn of(path: &[String]) -> Self {
        let name = path.join(".");
        if let Some(tag) = name.strip_prefix("_tag.") {
            return Self::Tag(tag.into());
        }
        if let Some(field) = name.strip_prefix("_field.") {
            return Self::Field(field.into());
        }
        match name.as_str() {
            "_measurement" => Self::Measurement,
            "_time" => Self::Time,
            _ => Self::Named(name.into()),
        }
    }

    fn takes_tag(&self, key: &[u8]) -> bool {
        matches!(self, Self::Named(name) | Self::Tag(name) if name == key)
    }

    fn takes_field(&self, key: &[u8]) -> bool {
        matches!(self, Self::Named(name) | Self::Field(name) if name == key)
    }
}

/// Reads lines of one pipeline.
#[derive(Debug, Default)]
pub(super) struct LineReader {
    places: Vec<Place>,
    /// A key without its escapes, reused.
    scratch: Vec<u8>,
}

impl LineReader {
    /// Wants the value at `path`; the slot that it goes to, the same for the same path.
    pub(super) fn want(&mut self, path: &[String]) -> usize {
        let place = Place::of(path);
        let known = self.places.iter().position(|p| *p == place);
        known.unwrap_or_else(|| {
            self.places.push(place);
            self.places.len() - 1
        })
    }

    /// Number of slots.
    pub(super) fn slots(&self) -> usize {
        self.places.len()
    }

    /// Reads one line, whose message has these MQTT 5 properties. After an error `rows` means
    /// nothing.
    pub(super) fn read<'a>(
        &mut self,
        payload: &'a [u8],
        properties: &[u8],
        received_us: i64,
        rows: &mut Rows<'a>,
    ) -> Result<(), (Reason, Fault)> {
        let slots = rows.single(payload.len());
        self.line(payload, slots).map_err(|fault| (Reason::Parse, fault)).and_then(|time| {
            let Some(slot) = self.places.iter().position(|p| *p == Place::Time) else {
                return Ok(());
            };
            let us = match time {
                None => received_us,
                Some((at, count)) => {
                    let precision = Precision::of(properties)
                        .ok_or((Reason::Time, Fault::new(at, "an unknown precision")))?;
                    let outside = Fault::new(at, "not a time between 1970 and 2261");
                    precision
                        .to_us(count)
                        .filter(|us| (0..END_US).contains(us))
                        .ok_or((Reason::Time, outside))?
                }
            };
            slots[slot] = Value::Instant(us);
            Ok(())
        })
    }

    /// Fills the slots from a line; where and what its timestamp is, if it has one.
    fn line<'a>(
        &mut self,
        payload: &'a [u8],
        slots: &mut [Value<'a>],
    ) -> Result<Option<(usize, i64)>, Fault> {
        if let Err(error) = std::str::from_utf8(payload) {
            return Err(Fault::new(error.valid_up_to(), "the line is not UTF-8"));
        }
        let mut cursor = Cursor::new(payload);
        let measurement = cursor.measurement()?;
        self.set(slots, measurement, |place| *place == Place::Measurement);
        let mut seen: Vec<&[u8]> = Vec::new();
        while let Some((key, value)) = cursor.tag()? {
            if seen.len() == TAGS_MAX {
                return Err(Fault::new(cursor.at(), "a line with too many tags"));
            }
            if seen.contains(&key) {
                return Err(Fault::new(cursor.at(), "a tag comes twice"));
            }
            seen.push(key);
            self.put(slots, key, value, Place::takes_tag);
        }
        loop {
            let (key, value) = cursor.field()?;
            self.put(slots, key, value, Place::takes_field);
            if !cursor.another_field() {
                return cursor.timestamp();
            }
        }
    }

    fn put<'a>(
        &mut self,
        slots: &mut [Value<'a>],
        key: &[u8],
        value: Value<'a>,
        takes: fn(&Place, &[u8]) -> bool,
    ) {
        if !key.contains(&b'\\') {
            return self.set(slots, value, |place| takes(place, key));
        }
        let mut plain = std::mem::take(&mut self.scratch);
        plain.clear();
        super::value::unslash(key, super::value::Slashes::Key, &mut plain);
        self.set(slots, value, |place| takes(place, &plain));
        self.scratch = plain;
    }

    fn set<'a>(
        &self,
        slots: &mut [Value<'a>],
        value: Value<'a>,
        mut wanted: impl FnMut(&Place) -> bool,
    ) {
        for (slot, place) in slots.iter_mut().zip(&self.places) {
            if wanted(place) {
                *slot = value;
            }
        }
    }
}
