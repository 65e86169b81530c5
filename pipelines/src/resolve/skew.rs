//! How the clocks of devices are estimated.

use tidegate_operators::spec::{DecodeSpec, KeyLimits, Origin, SkewSpec};

use super::limits;
use crate::config::problem::Reporter;
use crate::config::section::Section;

/// Estimates are right to a second, and count when two of them agree within ten.
const SKEW_MIN_US: i64 = 10_000_000;

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

/// Reports bounds of clocks that no reading, or any, would meet.
pub(super) fn check(reading: &Section<'_>, report: &mut Reporter<'_>) {
    if reading.duration_us("clock_skew_max").is_some_and(|max| max < SKEW_MIN_US) {
        let message = "estimates of clocks are not as exact as that";
        report.error(reading.at("clock_skew_max"), message, "at least \"10s\"".to_owned());
    }
    if reading.duration_us("past_bound") == Some(0) {
        let message = "nearly every reading is older than that: all would be rejected";
        let hint = "leave it out, or give a bound such as \"30d\"".to_owned();
        report.error(reading.at("past_bound"), message, hint);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::{Plan, explain, load};

    fn plan(source: &str, reading: &str) -> Plan {
        try_plan(source, reading).unwrap()
    }

    fn try_plan(source: &str, reading: &str) -> Result<Plan, String> {
        let text = format!(
            "name = \"p\"\n[source]\n{source}\n[reading]\ndevice = \"d\"\n{reading}\n\
             fields = {{ v = \"float64\" }}\n[[table]]\nfrom = \"readings\""
        );
        load(&[("p.toml".into(), text)], &|_, _| Err(String::new()))
            .map_err(|all| all.iter().map(|p| format!("{p}\n")).collect())
    }

    #[test]
    fn bounds_that_make_no_sense_are_refused() {
        let mqtt = "type = \"mqtt\"\nurl = \"mqtt://b\"\ntopics = [\"t\"]";
        for (source, reading, said) in [
            (mqtt, "clock_skew_max = \"0s\"", "not as exact"),
            (mqtt, "clock_skew_max = \"5s\"", "not as exact"),
            (mqtt, "past_bound = \"0s\"", "all would be rejected"),
        ] {
            let found = try_plan(source, &format!("time = \"ts\"\n{reading}")).unwrap_err();
            assert!(found.contains(said), "{reading}: {found}");
        }
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
