//! The pipeline that most end-to-end tests run, and the readings for it: cold rooms that report a
//! temperature, windows of a minute, an alert above 50 °C. Values are multiples of one half, so
//! that sums are exact in any order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// 2026-01-01T00:00:00Z in milliseconds: the start of a minute.
pub(crate) const START_MS: i64 = 1_767_225_600_000;

const MINUTE_MS: i64 = 60_000;

const COMMON: &str = r#"
time       = "ts"
disorder   = "5s"
idle_close = "1d"
[reading.fields]
seq         = "int64"
temperature = { type = "float64", unit = "°C", min = -60, max = 120, required = true }
site        = { type = "string", field = "SITE" }

[[step]]
name   = "per_minute"
type   = "window"
every  = "1m"
by     = ["site", "device"]
select = { n = "count(*)", t_sum = "sum(temperature)", t_max = "max(temperature)" }

[[step]]
name      = "odd"
type      = "detect"
on        = "temperature"
method    = "ewma_z"
alpha     = 0.05
warmup    = 30
threshold = 6.0

[[alert]]
name     = "too-warm"
from     = "per_minute"
fire     = "t_max > 50"
clear    = "t_max < 40"
severity = "critical"
summary  = "{device} reached {t_max} °C"
max_age  = "36500d"
NOTIFY

[[table]]
from      = "readings"
freshness = "1s"

[[table]]
from      = "per_minute"
partition = ["site"]
freshness = "1s"
"#;

/// Makes the text of the pipeline.
pub(crate) struct ColdChain {
    source: String,
    device: &'static str,
    site: &'static str,
    webhook: Option<(String, PathBuf)>,
}

impl ColdChain {
    /// Devices publish to Tidegate on `plant/{site}/{device}/telemetry`.
    pub(crate) fn on_endpoint() -> Self {
        let source = "type = \"endpoint\"\nlisten = \"127.0.0.1:0\"\n\
            topics = [\"plant/{site}/{device}/telemetry\"]";
        Self { source: source.into(), device: "{device}", site: "{site}", webhook: None }
    }

    /// Readings come from a file of JSON lines that name their device and site.
    pub(crate) fn on_file(path: &Path) -> Self {
        let source = format!("type = \"file\"\npath = \"{}\"\ntopic = \"file\"", path.display());
        Self { source, device: "device", site: "site", webhook: None }
    }

    /// With a webhook whose secret is in a file: literal ones are refused.
    pub(crate) fn notifying(mut self, url: &str, secret: &Path) -> Self {
        self.webhook = Some((url.into(), secret.into()));
        self
    }

    pub(crate) fn text(&self) -> String {
        let notify = if self.webhook.is_some() { "notify   = [\"ops\"]" } else { "" };
        let common = COMMON.replace("SITE", self.site).replace("NOTIFY", notify);
        let mut text = format!(
            "name = \"cold-chain\"\n\n[source]\n{}\n\n[reading]\nformat     = \"json\"\n\
             device     = \"{}\"{common}",
            self.source, self.device
        );
        if let Some((url, secret)) = &self.webhook {
            text += &format!(
                "\n[notify.ops]\ntype = \"webhook\"\nurl = \"{url}\"\n\
                 secret = \"${{file:{}}}\"\nallow_private = true\nmax_age = \"36500d\"\n",
                secret.display()
            );
        }
        text
    }
}

/// One reading as a device knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) site: String,
    pub(crate) device: String,
    pub(crate) seq: i64,
    pub(crate) at_ms: i64,
    pub(crate) temperature: f64,
}

impl Reading {
    /// Reading `seq` of a device that reports every `every_ms`, between 20.0 and 24.5 °C.
    pub(crate) fn regular(site: &str, device: &str, seq: i64, every_ms: i64) -> Self {
        let temperature = 20.0 + (seq % 10) as f64 / 2.0;
        let at_ms = START_MS + seq * every_ms;
        Self { site: site.into(), device: device.into(), seq, at_ms, temperature }
    }

    pub(crate) fn topic(&self) -> String {
        format!("plant/{}/{}/telemetry", self.site, self.device)
    }

    pub(crate) fn payload(&self) -> String {
        let Self { site, device, seq, at_ms, temperature } = self;
        let who = format!(r#""site":"{site}","device":"{device}""#);
        format!(r#"{{{who},"seq":{seq},"ts":{at_ms},"temperature":{temperature:.1}}}"#)
    }
}

/// A window row: site, device, minute since [`START_MS`], rows, sum, maximum.
pub(crate) type WindowRow = (String, String, i64, i64, f64, f64);

/// What `per_minute` must hold for these readings, minutes before `minutes` only: the plain loop.
pub(crate) fn windows_of(readings: &[Reading], minutes: i64) -> Vec<WindowRow> {
    let mut windows: BTreeMap<(String, String, i64), (i64, f64, f64)> = BTreeMap::new();
    for r in readings {
        let minute = (r.at_ms - START_MS).div_euclid(MINUTE_MS);
        if minute < minutes {
            let key = (r.site.clone(), r.device.clone(), minute);
            let w = windows.entry(key).or_insert((0, 0.0, f64::NEG_INFINITY));
            *w = (w.0 + 1, w.1 + r.temperature, w.2.max(r.temperature));
        }
    }
    windows.into_iter().map(|((s, d, m), (n, sum, max))| (s, d, m, n, sum, max)).collect()
}
