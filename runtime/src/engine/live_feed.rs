//! What the journal hands feeds to: passes them on to the workers, and stands still for a change.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use super::apply::Changes;
use super::feed::FeedQueue;
use super::workers::Event;
use crate::http::Requests;
use crate::journal::{Feed, FeedSink};

/// The journal's sink; ends the workers' input when it is dropped on shutdown.
pub(super) struct LiveFeed {
    pub(super) queue: FeedQueue,
    pub(super) requests: Arc<Requests>,
    pub(super) changes: Arc<Changes>,
    pub(super) events: SyncSender<Event>,
    pub(super) ended: Receiver<()>,
}

impl FeedSink for LiveFeed {
    fn push(&mut self, feed: Feed) {
        let tick = match &feed {
            Feed::Messages(messages) => {
                self.requests.note(messages);
                return self.queue.push(feed);
            }
            Feed::Tick(tick) => *tick,
        };
        let request = self.changes.take();
        if let Some(request) = &request {
            request.settle(tick.epoch);
            self.queue.cut_now();
        }
        self.queue.push(feed);
        self.changes.fed(tick.epoch);
        if let Some(request) = request {
            request.make(tick, &self.queue, &self.events);
        }
    }
}

impl Drop for LiveFeed {
    fn drop(&mut self) {
        // Only a shutdown that was asked for ends the input; windows stay open in the checkpoint.
        if self.ended.try_recv().is_ok() {
            self.queue.end(false);
        }
    }
}
