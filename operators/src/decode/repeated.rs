//! Text from around an exploded array is copied into each of its readings. A short message can ask
//! for far more than anybody meant: a text of 128 KiB beside 7,000 elements is 0.9 GiB. What is
//! copied is known before it is, and a message that asks for too much is a reject.

use super::reader::Rows;
use super::value::Value;
use super::{Decoded, Decoder, Envelope, Source};
use crate::message::Messages;
use crate::spec::{ColumnType, DecodeSpec};
use crate::text::TextMax;

/// Most bytes of text that one message may have copied, whatever its size: a gateway that sends a
/// thousand readings at once may say 4 KiB about all of them.
pub(super) const REPEATED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A message may have so many times its own bytes copied, if that is more.
const REPEATED_TIMES_MAX: usize = 16;

/// But not more than fits into a column.
const REPEATED_BYTES_END: usize = 1 << 30;

/// What a reject of an element has besides its names.
const REJECT_BYTES: usize = 256;

/// Bytes of topic and client id that do not count where only rejects of elements repeat them: such
/// a reject is about as large without them.
const NAMED_BYTES: usize = 1024;

/// The columns of text whose values come from around an exploded array.
#[derive(Debug)]
pub(super) struct Repeated {
    sources: Option<Vec<Source>>,
    /// Bytes that were copied since the last batch was made.
    copied: usize,
    /// So many are enough for a batch.
    copied_max: usize,
}

impl Repeated {
    /// Of a pipeline whose columns have their values from `sources`.
    pub(super) fn new(spec: &DecodeSpec, sources: &[Source]) -> Self {
        let texts = spec.columns.iter().zip(sources).filter(|(c, _)| c.kind == ColumnType::Utf8);
        let sources = spec.explode.is_some().then(|| texts.map(|(_, source)| *source).collect());
        Self { sources, copied: 0, copied_max: usize::MAX }
    }

    /// Whether what was copied is enough for a batch.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.copied > self.copied_max
    }

    /// Why a message asks for too much, if it does.
    pub(super) fn too_much(
        &mut self,
        rows: &Rows<'_>,
        envelope: &Envelope<'_>,
        (captures, outside): (usize, &[Value<'_>]),
    ) -> Option<String> {
        let sources = self.sources.as_ref()?;
        let elements = rows.elements().len();
        let of_source = |source: &Source| match source {
            Source::Shared(slot) => rows.shared[*slot].text_bytes(),
            Source::Capture(capture) => outside[*capture].text_bytes(),
            Source::Property(property) => outside[captures + *property].text_bytes(),
            Source::Topic => envelope.topic.len(),
            Source::Client => envelope.client.len(),
            _ => 0,
        };
        let columns: usize = sources.iter().map(of_source).sum();
        let named = envelope.topic.len() + envelope.client.len();
        let around = columns.max(named.saturating_sub(NAMED_BYTES));
        let bytes = around.saturating_mul(elements);
        let own = envelope.payload.len() + envelope.properties.len() + named;
        let most = REPEATED_BYTES_MAX.max(own.saturating_mul(REPEATED_TIMES_MAX));
        let most = most.min(REPEATED_BYTES_END);
        if bytes <= most {
            let each = columns.max(named).saturating_add(REJECT_BYTES);
            self.copied = self.copied.saturating_add(each.saturating_mul(elements));
        }
        (bytes > most).then(|| {
            format!(
                "{around} bytes of text around an array of {elements} elements, \
                 {bytes} bytes in all its readings, at most {most} are copied"
            )
        })
    }
}

impl Decoder {
    /// Decodes messages. Those of another source, or whose topic fits no template of this pipeline,
    /// are passed over.
    pub fn decode(&mut self, messages: &Messages) -> Decoded {
        self.repeated.copied_max = usize::MAX;
        let (decoded, _) = self.decode_from(messages, 0);
        self.repeated.copied = 0;
        decoded
    }

    /// The same in several parts where there is much text: when more of it was copied than comes in
    /// a turn.
    pub fn decode_parts(
        &mut self,
        messages: &Messages,
        text_max: TextMax,
        mut each: impl FnMut(Decoded),
    ) {
        self.repeated.copied_max = usize::try_from(text_max.turn).unwrap_or(usize::MAX);
        let mut from = 0;
        loop {
            self.repeated.copied = 0;
            let (decoded, next) = self.decode_from(messages, from);
            each(decoded);
            from = next;
            if from >= messages.len() {
                return;
            }
        }
    }
}
