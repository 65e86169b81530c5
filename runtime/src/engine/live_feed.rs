//! What the journal hands feeds to: passes them on to the workers, stands still for a change, and
//! has the last checkpoint cut at the very last tick.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use tidegate_operators::Tick;

use super::apply::Changes;
use super::feed::FeedQueue;
use super::workers::Event;
use crate::http::Requests;
use crate::journal::{Feed, FeedSink, Journal};

/// The journal's sink; ends the workers' input when it is dropped on shutdown.
pub(super) struct LiveFeed {
    queue: FeedQueue,
    requests: Arc<Requests>,
    changes: Arc<Changes>,
    events: SyncSender<Event>,
    ended: Receiver<()>,
    stopping: Arc<AtomicBool>,
    /// A tick that may be the last one: it waits until that is known.
    held: Option<Tick>,
}

impl LiveFeed {
    /// Has the journal hand on to the workers from now on; `stopping` is set before it is asked to
    /// stop. Gives what changes can be asked of, and what has to be told before a shutdown.
    pub(super) fn start(
        journal: &Journal,
        queue: FeedQueue,
        requests: Arc<Requests>,
        events: SyncSender<Event>,
        stopping: &Arc<AtomicBool>,
    ) -> std::io::Result<(Arc<Changes>, Sender<()>)> {
        let (end, ended) = channel();
        let changes = Arc::new(Changes::after(journal.stats().sealed_epoch));
        let of_end = (ended, Arc::clone(stopping));
        let feed = Self::new(queue, requests, Arc::clone(&changes), events, of_end);
        journal.start(Box::new(feed))?;
        Ok((changes, end))
    }

    /// `ended` gets a word when the end was asked for; `stopping` is set before the journal is
    /// asked to stop, and from then on a tick may be the last one.
    fn new(
        queue: FeedQueue,
        requests: Arc<Requests>,
        changes: Arc<Changes>,
        events: SyncSender<Event>,
        (ended, stopping): (Receiver<()>, Arc<AtomicBool>),
    ) -> Self {
        Self { queue, requests, changes, events, ended, stopping, held: None }
    }

    fn tick(&mut self, tick: Tick) {
        let request = self.changes.take();
        if let Some(request) = &request {
            request.settle(tick.epoch);
            self.queue.cut_now();
        }
        self.queue.tick(tick);
        self.changes.fed(tick.epoch);
        if let Some(request) = request {
            request.make(tick, &self.queue, &self.events);
        }
    }
}

impl FeedSink for LiveFeed {
    fn push(&mut self, feed: Feed) {
        if let Some(before) = self.held.take() {
            self.tick(before);
        }
        match feed {
            Feed::Messages(messages) => {
                self.requests.note(&messages);
                self.queue.messages(messages);
            }
            Feed::Tick(tick) if self.stopping.load(Ordering::Acquire) => self.held = Some(tick),
            Feed::Tick(tick) => self.tick(tick),
        }
    }
}

impl Drop for LiveFeed {
    fn drop(&mut self) {
        self.changes.close();
        // Only a shutdown that was asked for ends the input; windows stay open in the checkpoint.
        if self.ended.try_recv().is_ok() {
            self.queue.cut_now();
            if let Some(last) = self.held.take() {
                self.queue.tick(last);
            }
            self.queue.end(false);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::{channel, sync_channel};
    use std::time::Duration;

    use super::*;
    use crate::engine::cuts::Cuts;
    use crate::engine::feed::{Command, InFlight, WorkerPort};

    #[test]
    fn at_the_end_state_is_cut_once_at_the_last_tick() {
        let (commands, told) = channel();
        let ports = vec![WorkerPort { commands, thread: std::thread::current() }];
        let cuts = Some(Arc::new(Cuts::new(Duration::MAX)));
        let in_flight = Arc::new(InFlight::default());
        let queue = FeedQueue::new(ports, in_flight, Arc::default(), cuts, Arc::default());
        let (end, ended) = channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let changes = Arc::new(Changes::after(0));
        let of_end = (ended, Arc::clone(&stopping));
        let mut feed = LiveFeed::new(queue, Arc::default(), changes, sync_channel(1).0, of_end);
        for epoch in 1..=9 {
            stopping.store(epoch > 3, Ordering::Release);
            feed.push(Feed::Tick(Tick { epoch, time_us: 0 }));
        }
        end.send(()).unwrap();
        drop(feed);
        let told: Vec<String> = told
            .iter()
            .map(|command| match command {
                Command::Tick(tick) => tick.epoch.to_string(),
                Command::Checkpoint { epoch, .. } => format!("cut {epoch}"),
                Command::End { flush } => format!("end {flush}"),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = "1 2 3 4 5 6 7 8|cut 9|9|end false";
        assert_eq!(told.join(" "), expected.replace('|', " "));
    }
}
