//! One group commit: the offers that are written and synced together, as bytes and as feed.
//!
//! Invariant: messages of one source keep the order of their offers. Small offers of a source are
//! joined into one run, so that a thousand devices with one message each make one batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_operators::Messages;

use super::Feed;
use super::epoch::Position;
use super::frame::{self, HEADER_BYTES, Kind};
use super::inbox::{Offer, Waiter};
use super::recognize::Recognizer;
use super::record;
use crate::mutation::{self, Mutation};

/// Offers are joined up to this size: large enough for full batches, small against a group.
const RUN_BYTES_MAX: usize = 1 << 20;
/// And up to this count: the size of batches that the decoders like.
const RUN_MESSAGES_MAX: usize = 8192;

/// Where frames are going.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) salt: u64,
    /// Length of the file, all of it durable.
    pub(crate) synced_to: u64,
}

/// Everything that one write carries.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) bytes: Vec<u8>,
    pub(crate) feed: Vec<Feed>,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) messages: u64,
    /// Repetitions of messages that the journal has; answered, not written.
    pub(crate) repeated: u64,
}

impl Group {
    /// Encodes `offers` into the open epoch.
    pub(crate) fn add_offers(
        &mut self,
        offers: Vec<Offer>,
        recognizer: &mut Recognizer,
        position: &mut Position,
        to: Target,
    ) {
        let mut by_source: BTreeMap<u16, Vec<Messages>> = BTreeMap::new();
        for mut offer in offers {
            let offset = position.next_offset;
            let before = mutation::on(Mutation::NoRecognition).then(|| offer.messages.clone());
            self.repeated += recognizer.filter(&mut offer.messages, &position.sources, offset);
            if let Some(before) = before {
                offer.messages = before;
            }
            self.waiters.push(offer.waiter);
            if !offer.messages.is_empty() {
                by_source.entry(offer.messages.source).or_default().push(offer.messages);
            }
        }
        for run in by_source.into_values().flat_map(join) {
            self.add_run(run, position, to);
        }
    }

    /// Encodes one run into the open epoch, at the next offset.
    pub(crate) fn add_run(&mut self, mut run: Messages, position: &mut Position, to: Target) {
        run.first_offset = position.next_offset;
        let start = self.bytes.len() + HEADER_BYTES;
        frame::append(
            &mut self.bytes,
            to.salt,
            Kind::Messages,
            position.epoch,
            to.synced_to,
            |body| record::put_messages(body, &run),
        );
        position.add(&self.bytes[start..], run.len() as u64);
        self.messages += run.len() as u64;
        self.feed.push(Feed::Messages(Arc::new(run)));
    }

    /// Ends the open epoch.
    pub(crate) fn add_tick(&mut self, now_us: i64, position: &mut Position, to: Target) {
        let seal = position.seal(now_us);
        let epoch = seal.tick.epoch;
        frame::append(&mut self.bytes, to.salt, Kind::Tick, epoch, to.synced_to, |body| {
            record::put_seal(body, &seal);
        });
        self.feed.push(Feed::Tick(seal.tick));
    }

    /// Says which names the source numbers of the following frames stand for.
    pub(crate) fn add_sources(&mut self, names: &[String], position: &mut Position, to: Target) {
        frame::append(
            &mut self.bytes,
            to.salt,
            Kind::Sources,
            position.epoch,
            to.synced_to,
            |body| record::put_sources(body, names),
        );
        position.sources = names.to_vec();
    }
}

/// Joins neighbours as long as they stay below the limits of a run.
fn join(offers: Vec<Messages>) -> Vec<Messages> {
    let mut runs = Vec::new();
    let mut waiting: Vec<Messages> = Vec::new();
    let (mut bytes, mut count) = (0, 0);
    for offer in offers {
        if bytes + offer.data.len() > RUN_BYTES_MAX || count + offer.len() > RUN_MESSAGES_MAX {
            runs.extend(concat(std::mem::take(&mut waiting)));
            (bytes, count) = (0, 0);
        }
        bytes += offer.data.len();
        count += offer.len();
        waiting.push(offer);
    }
    runs.extend(concat(waiting));
    runs
}

fn concat(mut parts: Vec<Messages>) -> Option<Messages> {
    if parts.len() < 2 {
        return parts.pop();
    }
    Some(Messages::concat(parts.iter(), 0))
}
