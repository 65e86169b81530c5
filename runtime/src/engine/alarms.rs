//! The engine's own alerts: what a person has to know about Tidegate itself, as rows of
//! `system.alerts` of the pipeline `tidegate`, and to webhooks with `engine = true`.
//!
//! A change is an event in the journal, like those of sessions, so that a replay gives the same
//! row; it may use the room that the journal and the disk keep in reserve. If there is none at all,
//! it waits until there is: the log and the engine's health tell it meanwhile.
//!
//! Invariant: an alert changes at most once per [`Rule::clear_for`], whatever its condition does.
//! Which alerts are firing is what the journal says ([`Standing`]), so that a restart neither
//! repeats nor forgets one, whenever the process was killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_operators::MessagesBuilder;
use tidegate_operators::event::EngineAlert;
use tokio::sync::mpsc;

use super::standing::Standing;
use crate::clock::Clock;
use crate::fault;
use crate::intake::Intake;

/// How often conditions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// The disk of the journal has no room, or only its reserve.
    DiskFull,
    /// The journal has used up its budget.
    JournalFull,
    /// A source does not work, or its broker is away.
    SourceDown,
    /// The file or URL of a registry is gone or cannot be read.
    RegistryUnreadable,
    /// Tables cannot be written.
    TablesUnreachable,
    /// Late windows cannot be computed again.
    WindowsWaiting,
    /// The process has as much memory as it may.
    MemoryMax,
    /// A step has as many keys as it may, and new ones come.
    KeysMax,
    /// Clocks of devices are off.
    ClockSkew,
    /// A webhook was given up.
    WebhookDead,
}

impl Rule {
    pub(crate) const ALL: [Self; 10] = [
        Self::DiskFull,
        Self::JournalFull,
        Self::SourceDown,
        Self::RegistryUnreadable,
        Self::TablesUnreachable,
        Self::WindowsWaiting,
        Self::MemoryMax,
        Self::KeysMax,
        Self::ClockSkew,
        Self::WebhookDead,
    ];

    /// Its name in rows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::JournalFull => "journal_full",
            Self::SourceDown => "source_down",
            Self::RegistryUnreadable => "registry_unreadable",
            Self::TablesUnreachable => "tables_unreachable",
            Self::WindowsWaiting => "windows_waiting",
            Self::MemoryMax => "memory_max",
            Self::KeysMax => "keys_max",
            Self::ClockSkew => "clock_skew",
            Self::WebhookDead => "webhook_dead",
        }
    }

    /// How long its condition must hold before anybody is told.
    fn fire_after(self) -> Duration {
        Duration::from_secs(match self {
            Self::DiskFull | Self::MemoryMax => 0,
            Self::KeysMax | Self::ClockSkew | Self::WebhookDead => 0,
            // An editor that writes a new file is without one for a moment.
            Self::RegistryUnreadable => 3,
            Self::JournalFull => 10,
            Self::SourceDown => 30,
            Self::TablesUnreachable | Self::WindowsWaiting => 60,
        })
    }

    /// How long it must be over. Of what is no state but happens, it is the time without.
    fn clear_for(self) -> Duration {
        Duration::from_secs(match self {
            Self::DiskFull | Self::RegistryUnreadable => 5,
            Self::JournalFull | Self::SourceDown | Self::TablesUnreachable => 30,
            Self::WindowsWaiting => 30,
            Self::MemoryMax => 60,
            Self::KeysMax | Self::ClockSkew | Self::WebhookDead => 600,
        })
    }

    /// What is said at the end.
    fn over(self) -> String {
        match self {
            // No state ends, and nobody said that what happened was mended.
            Self::KeysMax | Self::ClockSkew | Self::WebhookDead => {
                format!("not seen again for {} minutes", self.clear_for().as_secs() / 60)
            }
            _ => "it is over".to_owned(),
        }
    }
}

/// Less of it where a test asks for that.
fn patience(time: Duration) -> Duration {
    fault::patience("alarm", time)
}

/// Why conditions hold at present.
pub(crate) type Conditions = BTreeMap<Rule, String>;

/// One rule at work.
#[derive(Debug)]
struct Alarm {
    rule: Rule,
    /// Since when the condition is what it is.
    holds: bool,
    since: Instant,
    /// Since when it fires, microseconds since the Unix epoch.
    firing_us: Option<i64>,
}

impl Alarm {
    /// Moves on to `now`; what is to be told, if anything is.
    fn step(&mut self, now: Instant, now_us: i64, why: Option<&str>) -> Option<EngineAlert> {
        if self.holds != why.is_some() {
            (self.holds, self.since) = (why.is_some(), now);
        }
        let lasted = now.saturating_duration_since(self.since);
        let (status, since_us, summary) = match (why, self.firing_us) {
            (Some(why), None) if lasted >= patience(self.rule.fire_after()) => {
                self.firing_us = Some(now_us);
                ("firing", now_us, why.to_owned())
            }
            (None, Some(since_us)) if lasted >= patience(self.rule.clear_for()) => {
                self.firing_us = None;
                ("resolved", since_us, self.rule.over())
            }
            _ => return None,
        };
        Some(EngineAlert {
            rule: self.rule.name().into(),
            status: status.into(),
            since_us,
            summary,
        })
    }
}

/// All rules at work, until dropped.
pub(crate) struct Alarms {
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Alarms {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Alarms {
    /// Ends when nothing of it is at work any more: what it looks at is free then.
    pub(crate) async fn stop(mut self) {
        for task in &mut self.tasks {
            task.abort();
            let _ = task.await;
        }
    }

    /// Watches what `look` says, and tells changes to `intake`; some fire already.
    pub(crate) fn start(
        standing: &Standing,
        clock: Clock,
        intake: Arc<dyn Intake>,
        mut look: impl FnMut() -> Conditions + Send + 'static,
    ) -> Self {
        let firing = standing.firing();
        let now = Instant::now();
        let mut alarms: Vec<Alarm> = Rule::ALL
            .into_iter()
            .map(|rule| {
                let firing_us = firing.get(rule.name()).copied();
                Alarm { rule, holds: firing_us.is_some(), since: now, firing_us }
            })
            .collect();
        let (tell, told) = mpsc::unbounded_channel();
        let watch = tokio::spawn(async move {
            let mut turns = tokio::time::interval(LOOK_EVERY);
            loop {
                turns.tick().await;
                let conditions = look();
                for alarm in &mut alarms {
                    let why = conditions.get(&alarm.rule).map(String::as_str);
                    let Some(alert) = alarm.step(Instant::now(), clock.now_us(), why) else {
                        continue;
                    };
                    let EngineAlert { rule, status, summary, .. } = &alert;
                    tracing::warn!(rule, status, summary, "an alert of the engine");
                    if tell.send((clock.now_us(), alert)).is_err() {
                        return;
                    }
                }
            }
        });
        Self { tasks: vec![watch, tokio::spawn(journal(told, intake))] }
    }

    /// Together with another task that ends when they do.
    pub(crate) fn with(mut self, task: tokio::task::JoinHandle<()>) -> Self {
        self.tasks.push(task);
        self
    }
}

/// Brings changes into the journal, one after the other, however long that takes.
async fn journal(mut told: mpsc::UnboundedReceiver<(i64, EngineAlert)>, intake: Arc<dyn Intake>) {
    while let Some((now_us, alert)) = told.recv().await {
        let mut message = MessagesBuilder::default();
        alert.put(&mut message, now_us);
        if intake.offer(message).await.is_err() {
            // The journal ends; so does the process.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alarm(rule: Rule, at: Instant) -> Alarm {
        Alarm { rule, holds: false, since: at, firing_us: None }
    }

    #[test]
    fn what_flaps_is_told_once() {
        let start = Instant::now();
        for rule in Rule::ALL {
            let mut alarm = alarm(rule, start);
            let mut told = Vec::new();
            // A second of trouble, a second without, for an hour; then trouble, then none.
            for second in 0..20_000_u64 {
                let bad = (second < 3_600 && second % 2 == 0) || (5_000..9_000).contains(&second);
                let now = start + Duration::from_secs(second);
                let alert = alarm.step(now, second as i64, bad.then_some("why"));
                told.extend(alert.map(|a| (a.status, a.since_us, second)));
            }
            let fired_at = 5_000 + rule.fire_after().as_secs();
            let resolved_at = 9_000 + rule.clear_for().as_secs();
            let mut wanted = Vec::new();
            if rule.fire_after().is_zero() {
                // The first second counts, and one of them is over long after the last.
                wanted.push(("firing".to_owned(), 0, 0));
                wanted.push(("resolved".to_owned(), 0, 3_599 + rule.clear_for().as_secs()));
            }
            wanted.push(("firing".to_owned(), fired_at as i64, fired_at));
            wanted.push(("resolved".to_owned(), fired_at as i64, resolved_at));
            assert_eq!(told, wanted, "{rule:?}");
        }
    }
}
