//! The text formats of metrics: that of Prometheus (0.0.4) and OpenMetrics 1.0.
//!
//! Invariant: all samples of a family stand together below its HELP and TYPE, and a family without
//! samples is not there. Names are ours and fit; labels and help are escaped.

use std::fmt::Write as _;

/// Which of both formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What a client that sends this `Accept` header gets.
    pub(super) fn accepted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows, from the start of the process.
    Counter,
    /// A level.
    Gauge,
}

/// A text that grows.
pub(super) struct Text {
    format: Format,
    out: String,
}

impl Text {
    pub(super) fn new(format: Format) -> Self {
        Self { format, out: String::with_capacity(16 << 10) }
    }

    /// A family with its samples. `name` is without the `_total` of counters.
    pub(super) fn family<'a>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let (suffix, word) = match kind {
            Kind::Counter => ("_total", "counter"),
            Kind::Gauge => ("", "gauge"),
        };
        // OpenMetrics names the family, Prometheus the samples.
        let family_suffix = if self.format == Format::OpenMetrics { "" } else { suffix };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.out, "# HELP {name}{family_suffix} {help}");
        let _ = writeln!(self.out, "# TYPE {name}{family_suffix} {word}");
        for (labels, value) in samples {
            let _ = write!(self.out, "{name}{suffix}");
            for (i, (label, text)) in labels.iter().enumerate() {
                let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let _ = write!(self.out, "{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' });
            }
            let end = if labels.is_empty() { "" } else { "}" };
            let _ = writeln!(self.out, "{end} {value}");
        }
    }

    /// A family of one sample without labels.
    pub(super) fn one(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help, [(Vec::new(), value)]);
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(format: Format) -> String {
        let mut text = Text::new(format);
        text.one("a_bytes", Kind::Gauge, "A level.", 1.5);
        let labels = || vec![("name", "x \"y\"\\\n")];
        text.family("b", Kind::Counter, "Of\\two\nlines.", [(labels(), 7.0)]);
        text.family("none", Kind::Gauge, "Nothing.", []);
        text.finish()
    }

    #[test]
    fn both_formats_escape_and_name_counters_their_way() {
        assert_eq!(
            text(Format::Prometheus),
            "# HELP a_bytes A level.\n# TYPE a_bytes gauge\na_bytes 1.5\n\
             # HELP b_total Of\\\\two\\nlines.\n# TYPE b_total counter\n\
             b_total{name=\"x \\\"y\\\"\\\\\\n\"} 7\n"
        );
        let open = text(Format::OpenMetrics);
        assert!(open.contains("# TYPE b counter\nb_total{"), "{open}");
        assert!(open.ends_with("} 7\n# EOF\n"), "{open}");
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("*/*"), Format::Prometheus);
    }
}
