//! Which pipeline takes a topic, and reject rows for messages that none takes.

use arrow::array::RecordBatch;

use crate::message::Messages;
use crate::reject::{Reason, Reject, RejectBuilder};
use crate::topic::TopicTemplate;

/// Whether one of `templates` takes `topic`.
pub fn topics_match(templates: &[TopicTemplate], topic: &[u8]) -> bool {
    let mut captures = Vec::new();
    std::str::from_utf8(topic)
        .is_ok_and(|topic| templates.iter().any(|t| t.matches(topic, &mut captures)))
}

/// Who takes messages: those of a source with one of these topics.
#[derive(Clone, Copy, Debug)]
pub struct Taker<'a> {
    /// The source.
    pub source: u16,
    /// The topics.
    pub topics: &'a [TopicTemplate],
}

/// One reject row, with an empty pipeline, for each message that none of the plan's pipelines
/// takes. `takers` may be those of all pipelines: those of other sources take nothing.
pub fn unmatched_rejects(takers: &[Taker<'_>], messages: &Messages) -> RecordBatch {
    let mut rejects = RejectBuilder::default();
    // Sources send runs of one topic, a file only one.
    let mut last: Option<(&[u8], Option<Reason>)> = None;
    for (i, meta) in messages.index.iter().enumerate().filter(|(_, meta)| !meta.event) {
        let topic = messages.topic(i);
        let reason = match last {
            Some((known, reason)) if known == topic => reason,
            _ => reason_of(takers, messages.source, topic),
        };
        last = Some((topic, reason));
        if let Some(reason) = reason {
            rejects.push(&Reject {
                received_us: meta.received_us,
                pipeline: "",
                topic,
                client: messages.client(i),
                offset: messages.first_offset + i as u64,
                element: None,
                reason,
                detail: match reason {
                    Reason::TopicUtf8 => "the topic is not UTF-8",
                    _ => "no pipeline takes this topic",
                },
                payload: messages.payload(i),
                reading_us: None,
            });
        }
    }
    rejects.finish()
}

fn reason_of(takers: &[Taker<'_>], source: u16, topic: &[u8]) -> Option<Reason> {
    if std::str::from_utf8(topic).is_err() {
        return Some(Reason::TopicUtf8);
    }
    let taken = takers.iter().any(|t| t.source == source && topics_match(t.topics, topic));
    (!taken).then_some(Reason::Topic)
}
