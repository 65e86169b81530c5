//! How the clocks of devices are estimated.

use tidegate_operators::spec::{DecodeSpec, KeyLimits, Origin, SkewSpec};

use super::limits;
use crate::config::section::Section;

/// What estimates the clocks of a pipeline; `None` if nobody wants it, or there are none: files say
/// nothing of when their rows were made, and the time of arrival is ours.
pub(super) fn skew(
    file: &Section<'_>,
    reading: &Section<'_>,
    decode: &DecodeSpec,
    limits: KeyLimits,
) -> Option<SkewSpec> {
    let is_file = file.section("source")?.component.tag == Some("file");
    let time = decode.columns.iter().find(|c| c.name == "time")?;
    if is_file || time.origin == Origin::ReceivedTime || !reading.bool("clock_skew") {
        return None;
    }
    Some(SkewSpec {
        pipeline: decode.pipeline.clone(),
        bound_us: reading.duration_us("clock_skew_max")?,
        forget_after_us: limits::table(file).duration_us("forget_after")?,
        limits,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::{Plan, explain, load};

    fn plan(source: &str, reading: &str) -> Plan {
        let text = format!(
            "name = \"p\"\n[source]\n{source}\n[reading]\ndevice = \"d\"\n{reading}\n\
             fields = {{ v = \"float64\" }}\n[[table]]\nfrom = \"readings\""
        );
        load(&[("p.toml".into(), text)], &|_, _| Err(String::new())).unwrap()
    }

    #[test]
    fn clocks_are_estimated_where_there_are_any() {
        let mqtt = "type = \"mqtt\"\nurl = \"mqtt://b\"\ntopics = [\"t\"]";
        let file = "type = \"file\"\npath = \"a.ndjson\"";
        for (source, reading, estimated) in [
            (mqtt, "time = \"ts\"", true),
            (mqtt, "time = \"received\"", false),
            (mqtt, "time = \"ts\"\nclock_skew = false", false),
            (file, "time = \"ts\"", false),
        ] {
            let plan = plan(source, reading);
            let text = explain(&plan);
            assert_eq!(plan.pipelines[0].skew.is_some(), estimated, "{source}\n{reading}");
            assert_eq!(text.contains("off by more than 1h"), estimated, "{text}");
        }
        let plan = plan(mqtt, "time = \"ts\"\nclock_skew_max = \"5m\"\npast_bound = \"30d\"");
        let text = explain(&plan);
        assert!(text.contains("off by more than 5m"), "{text}");
        assert!(text.contains("ahead of their arrival, or 30d behind"), "{text}");
    }
}
