//! What an endpoint does by the clock: wills that were delayed, sessions that have expired, and
//! the sums of events that were too many to write one by one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidegate_operators::event::SessionEvent;
use tidegate_operators::{MessageMeta, MessagesBuilder};
use tokio::sync::watch;
use tokio::time::sleep;

use super::broker::{Due, Publication};
use super::connection::{Shared, publish_now};
use super::limits::HOUSEKEEPING;
use super::route::{After, Router, now_ms};
use crate::source::{IntakeError, now_us, stopped};

/// Runs until the endpoint stops.
///
/// # Errors
/// The journal or the broker's store has failed.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), IntakeError> {
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return Ok(()),
            () = sleep(HOUSEKEEPING) => {}
        }
        if let Some(why) = shared.broker.store_error() {
            return Err(IntakeError::Failed(why));
        }
        tidy(&shared).await?;
    }
}

/// Does what is due.
async fn tidy(shared: &Shared) -> Result<(), IntakeError> {
    let counters = shared.broker.counters();
    let undelivered = [
        &counters.dropped_full,
        &counters.dropped_expired,
        &counters.dropped_too_large,
        &counters.dropped_offline,
        &counters.dropped_ended,
        &counters.dropped_refused,
        &counters.dropped_denied,
    ];
    let sum = undelivered.iter().map(|counter| counter.load(Ordering::Relaxed)).sum();
    shared.stats.undelivered.store(sum, Ordering::Relaxed);
    let Due { wills, expired, limited, .. } = shared.broker.due(now_ms());
    let mut messages = MessagesBuilder::default();
    for (notice, n) in shared.notices.left_out(now_ms()) {
        let detail = format!("{n} more in the last second");
        put(shared, &mut messages, "", notice.name(), detail);
    }
    for (client_id, n) in limited {
        let dropped = match n {
            1 => "1 message was dropped".to_owned(),
            n => format!("{n} messages were dropped"),
        };
        let detail = format!("{dropped}: the session's queue is full");
        put(shared, &mut messages, &client_id, "limited", detail);
    }
    for (client_id, will) in &wills {
        let topic = String::from_utf8_lossy(&will.topic).into_owned();
        put(shared, &mut messages, client_id, "will", topic);
        put_message(&mut messages, client_id, will);
    }
    for client_id in expired {
        put(shared, &mut messages, &client_id, "expired", String::new());
    }
    if !messages.is_empty() {
        shared.intake.offer(messages).await?;
    }
    for (client_id, will) in wills {
        let router = Router { broker: Arc::clone(&shared.broker), from: client_id };
        let mut after = After::default();
        after.push(publish_now(will));
        router.run(after).await?;
    }
    Ok(())
}

fn put(
    shared: &Shared,
    messages: &mut MessagesBuilder,
    client_id: &str,
    event: &str,
    detail: String,
) {
    let event = SessionEvent {
        source: shared.name.clone(),
        client_id: client_id.to_owned(),
        event: event.to_owned(),
        detail,
        ..SessionEvent::default()
    };
    event.put(messages, now_us(), 0);
}

/// A message that we send for a client, as it is journaled.
pub(crate) fn put_message(messages: &mut MessagesBuilder, client_id: &str, what: &Publication) {
    let Publication { topic, payload, properties, qos, retain, .. } = what;
    let (qos, retain) = (*qos, *retain);
    let meta = MessageMeta { received_us: now_us(), qos, retain, ..MessageMeta::default() };
    messages.push_with(topic, payload, client_id.as_bytes(), properties, meta);
}
