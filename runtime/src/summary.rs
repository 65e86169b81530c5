//! The live summary of a running engine: a small block on a terminal, else a plain line now and
//! then; and the totals at the end, for people and as JSON.

mod start;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::start::{recovered, replaying};
use crate::engine::{Progress, Reading};
use crate::fleet::FleetTotals;
use crate::memory::used_bytes;
use crate::screen::Screen;
use crate::stats::{Snapshot, Stats};

/// How often the block on a terminal is redrawn.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// How often a plain line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Rates are measured over about this long, so that they can be read.
const RATE_SPAN: Duration = Duration::from_secs(3);
/// Of the name of a file, its end.
const NAME_CHARS_MAX: usize = 24;
const RATE_SAMPLES_MAX: usize = 16;

/// Reads the counters of a simulated fleet, if there is one.
pub type FleetReader = Box<dyn Fn() -> FleetTotals + Send + Sync>;

/// Everything that one picture of the summary shows.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Time since the start.
    pub elapsed: Duration,
    /// Counters of the engine.
    pub now: Snapshot,
    /// Messages and readings per second, lately.
    pub messages_per_s: f64,
    /// See above.
    pub readings_per_s: f64,
    /// Memory of the process, resident and swapped out, bytes; `None` where it is not said.
    pub memory_bytes: Option<u64>,
    /// Counters of the simulated fleet.
    pub fleet: Option<FleetTotals>,
    /// How far a run over files is.
    pub files: Option<Reading>,
}

/// How often to call [`Summary::show`]: often enough for a terminal, rarely where lines pile up.
pub fn every(screen: &Screen) -> Duration {
    if screen.is_terminal() { DRAW_EVERY } else { LINE_EVERY }
}

/// Shows [`Stats`] on a [`Screen`].
pub struct Summary {
    title: String,
    stats: Arc<Stats>,
    fleet: Option<FleetReader>,
    files: Option<Arc<Progress>>,
    started: Instant,
    samples: Vec<(Instant, Snapshot)>,
}

impl Summary {
    /// A summary called `title`.
    pub fn new(title: &str, stats: Arc<Stats>, fleet: Option<FleetReader>) -> Self {
        Self {
            title: title.to_owned(),
            stats,
            fleet,
            files: None,
            started: Instant::now(),
            samples: Vec::new(),
        }
    }

    /// Shows how far a run over files is as well.
    #[must_use]
    pub fn of_files(self, files: Option<Arc<Progress>>) -> Self {
        Self { files, ..self }
    }

    /// Shows the state of things now; to be called about [`every`] so often.
    pub fn show(&mut self, screen: &Screen) {
        let picture = self.picture();
        if screen.is_terminal() {
            screen.draw(block(&self.title, &picture));
        } else if picture.elapsed >= LINE_EVERY / 2 {
            // Not at once: a line of zeros says nothing.
            screen.print(&line(&picture));
            if let Some(reading) = &picture.files {
                // Standard output may be a file that somebody reads by program.
                eprintln!("{}", progress(reading));
            }
        }
    }

    /// The state of things now.
    pub fn picture(&mut self) -> Picture {
        let at = Instant::now();
        let now = self.stats.snapshot();
        let old = |s: &(Instant, Snapshot)| at.duration_since(s.0) > RATE_SPAN;
        while self.samples.len() > 1
            && (old(&self.samples[1]) || self.samples.len() > RATE_SAMPLES_MAX)
        {
            self.samples.remove(0);
        }
        let (since, before) =
            self.samples.first().copied().unwrap_or((self.started, Snapshot::default()));
        self.samples.push((at, now));
        let seconds = at.duration_since(since).as_secs_f64();
        let rate = |new: u64, old: u64| match seconds > 0.0 {
            true => new.saturating_sub(old) as f64 / seconds,
            false => 0.0,
        };
        Picture {
            elapsed: at.duration_since(self.started),
            now,
            messages_per_s: rate(now.messages_received, before.messages_received),
            readings_per_s: rate(now.readings, before.readings),
            memory_bytes: used_bytes(),
            fleet: self.fleet.as_ref().map(|read| read()),
            files: self.files.as_ref().map(|files| files.now()),
        }
    }
}

/// The block on a terminal; no line is longer than 79 characters with everyday numbers.
pub fn block(title: &str, p: &Picture) -> Vec<String> {
    let n = &p.now;
    let fleet = p.fleet.as_ref().map_or(String::new(), |f| {
        format!("   fleet sent {}, acked {}", grouped(f.published), grouped(f.acked))
    });
    let row = |name: &str, count: u64, rest: String| {
        format!("  {name:<10}{:>13}  {rest}", grouped(count))
    };
    let mut lines = vec![
        String::new(),
        format!("{title}   {}   {} connections{fleet}", clock(p.elapsed), grouped(n.connections)),
        row(
            "messages",
            taken(n),
            format!("{:>8}/s{}", grouped(p.messages_per_s as u64), dropped(n).replace(", ", "   ")),
        ),
        row(
            "readings",
            n.readings,
            format!(
                "{:>8}/s   rejects {}   late {}{}",
                grouped(p.readings_per_s as u64),
                grouped(n.rejects),
                grouped(n.late),
                repeated(n).replace(", ", "   ")
            ),
        ),
        row("windows", n.windows, format!("  findings {}", grouped(n.findings))),
        row("alerts", n.alerts, format!("  {}", webhooks(n))),
        row(
            "files",
            n.table_files,
            format!("  {} rows, {}", grouped(n.table_rows), bytes(n.table_bytes)),
        ),
        format!(
            "  lag {}   journal {}{}",
            seconds(n.lag_us),
            bytes(n.journal_bytes),
            memory(p).map_or(String::new(), |memory| format!("   {memory}"))
        ),
    ];
    lines.extend(p.files.as_ref().map(|reading| format!("  {}", progress(reading))));
    lines
}

/// How far a run over files is.
pub fn progress(r: &Reading) -> String {
    let left = r.left.map_or(String::new(), |left| format!("   about {} left", clock(left)));
    let mut name = r.name.as_str();
    if let Some((at, _)) = name.char_indices().rev().nth(NAME_CHARS_MAX - 1) {
        name = &name[at..];
    }
    format!(
        "file {} of {}: {:.0} %   {} rows/s{left}   {name}",
        grouped(r.file),
        grouped(r.files),
        (r.share * 100.0).floor(),
        grouped(r.rows_per_s),
    )
}

/// The line where there is no terminal.
pub fn line(p: &Picture) -> String {
    let n = &p.now;
    let memory = memory(p).map_or(String::new(), |memory| format!(", {memory}"));
    format!(
        "{} messages {} ({}/s){}, readings {} ({}/s), rejects {}, late {}{}, windows {}, \
         findings {}, alerts {}, webhooks {}, files {}, lag {}{memory}",
        clock(p.elapsed),
        taken(n),
        p.messages_per_s as u64,
        dropped(n),
        n.readings,
        p.readings_per_s as u64,
        n.rejects,
        n.late,
        repeated(n),
        n.windows,
        n.findings,
        n.alerts,
        n.webhooks,
        n.table_files,
        seconds(n.lag_us),
    )
}

/// The totals at the end.
pub fn totals(p: &Picture) -> Vec<String> {
    let n = &p.now;
    let mut lines = Vec::new();
    if let Some(f) = &p.fleet {
        lines.push(format!(
            "fleet     {} messages published, {} acknowledged{}",
            grouped(f.published),
            grouped(f.acked),
            if f.resent > 0 {
                format!(", {} sent again after a lost connection", grouped(f.resent))
            } else {
                String::new()
            }
        ));
    }
    let per_s = n.readings as f64 / p.elapsed.as_secs_f64().max(0.001);
    lines.extend([
        format!(
            "intake    {} in {}{}, {} readings ({}/s), {} rejects, {} late{}",
            intake(n),
            clock(p.elapsed),
            dropped(n),
            grouped(n.readings),
            grouped(per_s as u64),
            grouped(n.rejects),
            grouped(n.late),
            repeated(n)
        ),
        format!(
            "results   {} windows, {} findings, {} alerts, {}",
            grouped(n.windows),
            grouped(n.findings),
            grouped(n.alerts),
            webhooks(n)
        ),
        format!(
            "tables    {} rows in {} files, {}",
            grouped(n.table_rows),
            grouped(n.table_files),
            bytes(n.table_bytes)
        ),
    ]);
    lines
}

/// The last line of `--json`: all counters, the fleet's, and the time it took.
pub fn json(p: &Picture) -> serde_json::Value {
    // A struct of numbers always becomes an object.
    let mut value = serde_json::to_value(p.now).unwrap_or_default();
    value["duration_s"] = serde_json::json!((p.elapsed.as_secs_f64() * 1e3).round() / 1e3);
    if let Some(fleet) = &p.fleet {
        value["published"] = fleet.published.into();
        value["fleet"] = serde_json::to_value(fleet).unwrap_or_default();
    }
    value
}

/// How much there is, once it is short also how much there may be, and what is done about it.
fn memory(p: &Picture) -> Option<String> {
    let memory = format!("memory {}", bytes(p.memory_bytes?));
    let done = match p.now.memory_stage {
        0 => return Some(memory),
        1 => "short",
        2 => "new keys refused",
        _ => "sources wait",
    };
    Some(format!("{memory} of {}: {done}", bytes(p.now.memory_max_bytes)))
}

/// Messages that are durable. Senders of QoS 0 wait for no acknowledgement and get none.
fn taken(n: &Snapshot) -> u64 {
    n.messages_acked + n.messages_quiet
}

fn intake(n: &Snapshot) -> String {
    let (acked, quiet) = (grouped(n.messages_acked), grouped(n.messages_quiet));
    match (n.messages_acked, n.messages_quiet) {
        (_, 0) => format!("{acked} messages acknowledged"),
        (0, _) => format!("{quiet} messages taken at QoS 0"),
        _ => format!("{acked} messages acknowledged and {quiet} taken at QoS 0"),
    }
}

/// Only where something was.
fn dropped(n: &Snapshot) -> String {
    match n.messages_dropped {
        0 => String::new(),
        count => format!(", {} not taken", grouped(count)),
    }
}

/// Only where something was: most pipelines drop nothing.
fn repeated(n: &Snapshot) -> String {
    match n.duplicates {
        0 => String::new(),
        count => format!(", {} repeated", grouped(count)),
    }
}

fn webhooks(n: &Snapshot) -> String {
    let mut text = format!("webhooks {} delivered", grouped(n.webhooks));
    for (count, what) in [(n.webhooks_pending, "waiting"), (n.webhooks_failed, "failed attempts")] {
        if count > 0 {
            text.push_str(&format!(", {} {what}", grouped(count)));
        }
    }
    text
}

/// 1234567 as "1,234,567".
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn seconds(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn clock(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{}:{:02} min", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02} h", s / 3600, s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests;
