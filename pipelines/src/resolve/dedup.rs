//! `[reading.dedup]`: which readings are repetitions.

use tidegate_operators::key::is_key_type;
use tidegate_operators::spec::{DecodeSpec, DedupSpec, KeyLimits};

use super::usage::Needs;
use crate::config::problem::{Reporter, hint_of};
use crate::config::section::Section;

/// What makes a reading what it is where nobody says so.
const KEY: [&str; 3] = ["device", "time", "payload_hash"];

/// What rows of `system.duplicates` tell, and what readings are put into order by.
const OFFSET: &str = "journal_offset";
const ELEMENT: &str = "journal_element";

/// The key columns of `[reading.dedup]`, the device first.
fn key(dedup: &Section<'_>) -> Vec<String> {
    let Some(written) = dedup.texts("key") else { return KEY.map(str::to_owned).into() };
    let mut names = vec![KEY[0].to_owned()];
    names.extend(written.into_iter().map(|(n, _)| n.to_owned()).filter(|n| n != KEY[0]));
    names
}

/// The columns of the readings that are needed before any step, whoever else reads them.
pub(super) fn columns_read(reading: &Section<'_>) -> Vec<String> {
    let Some(dedup) = reading.section("dedup") else { return Vec::new() };
    let mut names = key(&dedup);
    names.extend(order(reading));
    names
}

fn order(reading: &Section<'_>) -> Vec<String> {
    let explodes = reading.text("explode").is_some();
    let names = [OFFSET, ELEMENT].into_iter().take(1 + usize::from(explodes));
    names.map(str::to_owned).collect()
}

/// What drops the repetitions of a pipeline; `needs` says what is used after that, all if absent.
pub(super) fn dedup(
    pipeline: &str,
    reading: &Section<'_>,
    decode: &DecodeSpec,
    needs: Option<&Needs>,
    limits: KeyLimits,
    report: &mut Reporter<'_>,
) -> Option<DedupSpec> {
    let dedup = reading.section("dedup")?;
    let input = decode.schema();
    let mut columns = Vec::new();
    for name in key(&dedup) {
        let written = dedup.texts("key").unwrap_or_default();
        let at = written.iter().find(|(n, _)| *n == name).map_or(dedup.at, |(_, at)| *at);
        match input.index_of(&name) {
            Ok(i) if columns.contains(&i) => {
                report.error(at, format!("`{name}` is named twice"), None);
            }
            Ok(i) if is_key_type(input.field(i).data_type()) => columns.push(i),
            Ok(_) => report.error(at, format!("`{name}` cannot be part of a key"), None),
            Err(_) if report.is_unsure(std::slice::from_ref(&name)) => {}
            Err(_) => {
                let names = input.fields().iter().map(|f| f.name().as_str());
                let hint = hint_of(&name, names.collect::<Vec<_>>());
                report.error(at, format!("there is no column `{name}` here"), hint);
            }
        }
    }
    let horizon_us = dedup.duration_us("horizon")?;
    if horizon_us == 0 {
        report.error(dedup.at("horizon"), "this remembers nothing", None);
    }
    let order = order(reading);
    let is_output = |name: &str| {
        order.iter().any(|o| o == name)
            || matches!(name, "device" | "time")
            || needs.is_none_or(|n| match super::is_builtin(name) {
                true => n.keeps_builtin(name),
                false => n.keeps(name),
            })
    };
    let index = |name: &str| input.index_of(name).ok();
    Some(DedupSpec {
        pipeline: pipeline.to_owned(),
        device: index("device")?,
        time: index("time")?,
        offset: index(OFFSET)?,
        key: columns,
        output: (0..input.fields().len()).filter(|i| is_output(input.field(*i).name())).collect(),
        order: order.iter().filter_map(|name| index(name)).collect(),
        // Who counts them is known when all steps are.
        marks: false,
        horizon_us,
        keys_max: usize::try_from(dedup.int("keys_max")?).ok()?,
        fleet_max: u64::try_from(dedup.int("fleet_max")?).ok()?,
        limits,
        input,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::{Plan, explain, load};

    fn plan(dedup: &str, rest: &str) -> Result<Plan, String> {
        let text = format!(
            "name = \"p\"\n[source]\ntype = \"mqtt\"\nurl = \"mqtt://b\"\n\
             topics = [\"{{device}}\"]\n[reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
             fields = {{ v = \"float64\", seq = \"int64\" }}\n{dedup}\n{rest}"
        );
        load(&[("p.toml".into(), text)], &|_, _| Err(String::new())).map_err(|problems| {
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        })
    }

    const WINDOW: &str = "[[step]]\nname = \"w\"\ntype = \"window\"\nevery = \"1m\"\n\
                          select = { t = \"sum(v)\" }\n[[table]]\nfrom = \"w\"";

    #[test]
    fn the_edge_has_what_is_used_and_the_state_is_bounded() {
        let plan = plan("dedup = {}", WINDOW).unwrap();
        let text = explain(&plan);
        assert!(text.contains("whose device, time, payload_hash came in within 1h"), "{text}");
        assert!(text.contains("at most 10000 readings"), "{text}");
        let names = |schema: arrow::datatypes::SchemaRef| -> Vec<String> {
            schema.fields().iter().map(|f| f.name().clone()).collect()
        };
        let p = &plan.pipelines[0];
        let decoded = ["device", "time", "v", "journal_offset", "payload_hash"];
        assert_eq!(names(p.decode.schema()), decoded);
        assert_eq!(names(p.readings_schema()), decoded[..4]);
        assert_eq!(p.dedup.as_ref().unwrap().output_order(), [3]);
    }

    #[test]
    fn a_changed_key_is_another_pipeline() {
        let print = |dedup: &str| crate::fingerprint(&plan(dedup, WINDOW).unwrap().pipelines[0]);
        let all = ["", "dedup = {}", "dedup = { key = [\"seq\"] }", "dedup = { horizon = \"2h\" }"];
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| print(one) != print(other)), "{one}");
        }
        assert_eq!(print("dedup = { key = [\"device\", \"seq\"] }"), print(all[2]));
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (dedup, told) in [
            ("dedup = { key = [\"sec\"] }", "did you mean `seq`"),
            ("dedup = { key = [\"seq\", \"seq\"] }", "named twice"),
            ("dedup = { horizon = \"0s\" }", "remembers nothing"),
            ("dedup = { keys_max = 0 }", "outside of what is allowed"),
        ] {
            let error = plan(dedup, WINDOW).unwrap_err();
            assert!(error.contains(told), "{dedup}: {error}");
        }
    }
}
