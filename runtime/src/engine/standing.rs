//! What the engine has said of itself and has not taken back: which of its own alerts fire
//! ([`super::alarms`]), which limits are reached ([`super::limits`]).
//!
//! Invariant: it is what the journal says. It is made from what the journal hands on, live and in
//! replay, and each checkpoint holds a copy; so a crash at any moment neither repeats nor forgets
//! what was said. The copy may have what was said after the checkpoint's epoch: a replay says the
//! same once more, in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use serde_json::Value;
use tidegate_operators::Messages;
use tidegate_operators::event::{EngineAlert, LimitChange};

/// Its name in checkpoints; no pipeline can have it.
pub(crate) const PART: &str = ":standing";

/// What a row of [`PART`] is. There is always one of the first kind.
const VERSION: &str = "version";
const FIRING: &str = "firing";
const REACHED: &str = "reached";

/// Files in which earlier versions have noted it, at times a moment too late.
const NOTES: [&str; 2] = ["engine-alerts.json", "limits.json"];
const NOTES_VERSION: u64 = 1;

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Since when alerts fire, microseconds since the Unix epoch; by rule.
    firing: BTreeMap<String, i64>,
    /// Kind and subject of limits.
    reached: BTreeSet<(String, String)>,
    /// Something was said at some time: from then on checkpoints say what stands.
    any: bool,
}

impl Standing {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when alerts fire, by rule.
    pub(super) fn firing(&self) -> BTreeMap<String, i64> {
        self.lock().firing.clone()
    }

    /// Kind and subject of limits that are reached.
    pub(super) fn reached(&self) -> BTreeSet<(String, String)> {
        self.lock().reached.clone()
    }

    /// Learns what is said by messages that are durable.
    pub(super) fn hear(&self, messages: &Messages) {
        let events = messages.index.iter().enumerate().filter(|(_, meta)| meta.event);
        for (i, _) in events {
            if let Some(alert) = EngineAlert::of(messages, i) {
                let mut state = self.lock();
                state.any = true;
                match alert.status.as_str() {
                    "firing" => drop(state.firing.insert(alert.rule, alert.since_us)),
                    _ => drop(state.firing.remove(&alert.rule)),
                }
            } else if let Some(change) = LimitChange::of(messages, i) {
                let mut state = self.lock();
                state.any = true;
                let name = (change.kind, change.subject);
                match change.state.as_str() {
                    "reached" => state.reached.insert(name),
                    _ => state.reached.remove(&name),
                };
            }
        }
    }

    /// What stands, for a checkpoint; `None` where nothing was ever said.
    pub(super) fn save(&self) -> Option<(String, RecordBatch)> {
        let state = self.lock();
        if !state.any {
            return None;
        }
        let mut rows: Vec<([&str; 3], i64)> = vec![([VERSION, "", ""], 1)];
        rows.extend(state.firing.iter().map(|(rule, since)| ([FIRING, rule, ""], *since)));
        rows.extend(state.reached.iter().map(|(kind, subject)| ([REACHED, kind, subject], 0)));
        let text = |column: usize| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0[column])))
        };
        let numbers: ArrayRef =
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1)));
        let batch = RecordBatch::try_from_iter([
            ("what", text(0)),
            ("name", text(1)),
            ("subject", text(2)),
            ("number", numbers),
        ]);
        Some((PART.to_owned(), batch.expect("columns of one length")))
    }

    /// Takes it out of what a checkpoint had; where it has none, from the notes of an earlier
    /// version in the data folder, which are needed no more after that.
    pub(super) fn restore(&self, parts: &mut Vec<(String, RecordBatch)>, data: &Path) {
        let mut state = self.lock();
        for (_, batch) in parts.extract_if(.., |(name, _)| name == PART) {
            state.take(&batch);
        }
        if !state.any {
            state.take_notes(data);
            return;
        }
        for name in NOTES {
            // They say what held before the checkpoint: one that stays harms nobody.
            let _ = std::fs::remove_file(data.join(name));
        }
    }
}

impl State {
    fn take(&mut self, batch: &RecordBatch) {
        self.any = true;
        let text = |name: &str| batch[name].as_string::<i32>();
        let (what, name, subject) = (text("what"), text("name"), text("subject"));
        let numbers = batch["number"].as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let name = name.value(row).to_owned();
            match what.value(row) {
                FIRING => drop(self.firing.insert(name, numbers.value(row))),
                REACHED => drop(self.reached.insert((name, subject.value(row).to_owned()))),
                _ => {}
            }
        }
    }

    /// `{"version": 1, "firing": {RULE: SINCE_US}}`, and
    /// `{"version": 1, "reached": [[KIND, SUBJECT], ...]}`.
    fn take_notes(&mut self, data: &Path) {
        for name in NOTES {
            let Ok(bytes) = std::fs::read(data.join(name)) else { continue };
            let all: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            if all["version"] != NOTES_VERSION {
                tracing::warn!(name, "this file is damaged, it is left out");
                continue;
            }
            self.any = true;
            let firing = all["firing"].as_object().into_iter().flatten();
            self.firing.extend(firing.filter_map(|(rule, us)| Some((rule.clone(), us.as_i64()?))));
            let reached = all["reached"].as_array().into_iter().flatten();
            self.reached.extend(reached.filter_map(|name| {
                Some((name[0].as_str()?.to_owned(), name[1].as_str()?.to_owned()))
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidegate_operators::MessagesBuilder;

    use super::*;

    fn said(alerts: &[(&str, &str, i64)], limits: &[(&str, &str)]) -> Messages {
        let mut out = MessagesBuilder::default();
        for (rule, status, since_us) in alerts {
            let (rule, status) = ((*rule).into(), (*status).into());
            let summary = String::new();
            EngineAlert { rule, status, since_us: *since_us, summary }.put(&mut out, 0);
        }
        for (subject, state) in limits {
            let (kind, subject, state) = ("keys".into(), (*subject).into(), (*state).into());
            LimitChange { kind, subject, state, ..LimitChange::default() }.put(&mut out, 0);
        }
        out.finish(0, 0)
    }

    fn after_a_crash(standing: &Standing, data: &Path) -> Standing {
        let mut parts: Vec<_> = standing.save().into_iter().collect();
        parts.push((
            "p/step".into(),
            RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())),
        ));
        let after = Standing::default();
        after.restore(&mut parts, data);
        assert_eq!(parts.len(), 1, "the rest is for others");
        after
    }

    #[test]
    fn what_stands_is_what_the_journal_says_whenever_a_checkpoint_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let first = said(&[("disk_full", "firing", 3), ("keys_max", "firing", 4)], &[]);
        let then = said(
            &[("disk_full", "resolved", 3), ("disk_full", "firing", 9)],
            &[("a", "reached"), ("b", "reached"), ("a", "left")],
        );
        let last = said(&[("keys_max", "resolved", 4)], &[("b", "left"), ("a", "reached")]);
        let all = [first, then, last];
        let wanted = (
            BTreeMap::from([("disk_full".to_owned(), 9)]),
            BTreeSet::from([("keys".to_owned(), "a".to_owned())]),
        );
        // A checkpoint of the epoch `of`, written when `heard` of them had been heard.
        for heard in 0..=all.len() {
            let standing = Standing::default();
            assert!(standing.save().is_none(), "nothing was ever said");
            all[..heard].iter().for_each(|messages| standing.hear(messages));
            for of in 0..=heard {
                let after = after_a_crash(&standing, dir.path());
                all[of..].iter().for_each(|messages| after.hear(messages));
                assert_eq!((after.firing(), after.reached()), wanted, "{of} of {heard}");
            }
        }
        let over = Standing::default();
        over.hear(&said(&[("x", "firing", 1), ("x", "resolved", 1)], &[]));
        assert!(over.save().is_some(), "what is over is not what an older checkpoint says");
    }

    #[test]
    fn notes_of_an_earlier_version_are_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(NOTES[0], r#"{"version": 1, "firing": {"disk_full": 7, "keys_max": -1}}"#);
        write(NOTES[1], r#"{"version": 1, "reached": [["keys", "p/s"]]}"#);
        let before = after_a_crash(&Standing::default(), dir.path());
        assert_eq!(before.firing(), [("disk_full".into(), 7), ("keys_max".into(), -1)].into());
        assert_eq!(before.reached(), [("keys".to_owned(), "p/s".to_owned())].into());
        before.hear(&said(&[("disk_full", "resolved", 7)], &[]));
        let after = after_a_crash(&before, dir.path());
        assert_eq!(after.firing(), [("keys_max".into(), -1)].into());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        write(NOTES[0], r#"{"version": 2, "firing": {"disk_full": 7}}"#);
        write(NOTES[1], r#"{"reached"#);
        let damaged = after_a_crash(&Standing::default(), dir.path());
        assert!(damaged.firing().is_empty() && damaged.reached().is_empty());
    }
}
