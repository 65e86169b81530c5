//! State without a bound is refused before it grows, unless the configuration allows it.

use tidegate_operators::bound::Unbounded;
use tidegate_operators::spec::PipelineSpec;

use super::limits;
use crate::bounds::{What, bounds};
use crate::config::problem::Reporter;
use crate::config::section::Section;

/// Reports the steps of a pipeline whose state has no bound.
pub(crate) fn refuse(file: &Section<'_>, pipeline: &PipelineSpec, report: &mut Reporter<'_>) {
    let (limits, steps) = (limits::table(file), file.sections("step"));
    for state in bounds(pipeline) {
        let Err(why) = &state.per_key else { continue };
        let is_it = |s: &&Section<'_>| s.text("name") == Some(state.name);
        let step = steps.iter().find(|s| state.what == What::Step && is_it(s));
        if limits::may_be_unbounded(&limits, step) {
            continue;
        }
        let at = step.map_or(file.at, |step| step.at("name"));
        report.error(at, message(state.name, why), hint(pipeline, why));
    }
}

fn message(name: &str, why: &Unbounded) -> String {
    match why {
        Unbounded::NoRate => format!(
            "the state of `{name}` grows with readings, and nothing says how many those can be"
        ),
        Unbounded::NoEnd(aggregate) => format!(
            "the state of `{name}` has no bound: `{aggregate}` keeps all readings of a window, and \
             a window can be open for ever"
        ),
    }
}

fn hint(pipeline: &PipelineSpec, why: &Unbounded) -> String {
    let allow = "or, if it may grow, `unbounded = \"allow\"` in the step or in [limits]";
    match why {
        Unbounded::NoRate if pipeline.declared.reading_every_us.is_some() => format!(
            "say how many devices there are at most, as in `devices = 500` in [limits]; {allow}"
        ),
        Unbounded::NoRate => format!(
            "say how often a device has a reading at most, as in `reading_every = \"10s\"` in \
             [limits] (of a key of many devices `devices = 500` as well); {allow}"
        ),
        Unbounded::NoEnd(_) => {
            format!("give its windows an end, as in `max = \"8h\"`, {allow}")
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::bounds::{bounds, declared as declared_of};
    use crate::config::load;
    use crate::examples::{COOKBOOK, DEMO, FIRST, WAYS_IN};
    use crate::plan::Plan;

    fn plan(text: &str) -> Result<Plan, String> {
        let resolve = |_: &str, _: &str| Ok("https://hooks.example/x".to_owned());
        let problems = |all: Vec<crate::Problem>| {
            all.iter().map(|p| format!("{}: {:?}\n", p.message, p.hint)).collect::<String>()
        };
        load(&[("p.toml".into(), text.to_owned())], &resolve).map_err(problems)
    }

    /// A pipeline with a step `w` of these keys, and with these limits.
    fn with(step: &str, limits: &str) -> String {
        format!(
            "name = \"p\"\n[source]\ntype = \"endpoint\"\ntopics = [\"t/{{site}}/{{device}}\"]\n\
             [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
             fields = {{ v = \"float64\", b = \"bool\" }}\n[limits]\n{limits}\n\
             [[step]]\nname = \"w\"\ntype = \"window\"\n{step}\n[[table]]\nfrom = \"w\"\n"
        )
    }

    const EVERY: &str = "reading_every = \"10s\"";

    #[test]
    fn what_grows_with_readings_needs_their_rate_and_the_message_says_so() {
        for step in [
            "every = \"1h\"\nselect = { a = \"twa(v)\" }",
            "every = \"1h\"\nselect = { a = \"count(DISTINCT v)\" }",
            "every = \"1h\"\nselect = { a = \"median(v)\" }",
            "gap = \"1m\"\nmax = \"1h\"\nselect = { a = \"avg(v)\" }",
            "count = 10\nselect = { a = \"avg(v)\" }",
        ] {
            let said = plan(&with(step, "")).expect_err(step);
            assert!(said.contains("the state of `w`") && said.contains("reading_every"), "{said}");
            assert!(plan(&with(step, EVERY)).is_ok(), "{step}");
            assert!(plan(&with(step, "unbounded = \"allow\"")).is_ok(), "{step}");
            assert!(plan(&with(&format!("unbounded = \"allow\"\n{step}"), "")).is_ok(), "{step}");
        }
        for select in ["avg(v)", "min(v)", "quantile(v, 0.9)", "approx_median(v)", "last(v)"] {
            let step = format!("every = \"1h\"\nselect = {{ a = \"{select}\" }}");
            assert!(plan(&with(&step, "")).is_ok(), "{select}");
        }
    }

    #[test]
    fn what_is_kept_for_as_long_as_a_window_is_open_needs_its_end() {
        let state = |more: &str| format!("while = \"b\"\n{more}select = {{ a = \"changes(v)\" }}");
        let said = plan(&with(&state(""), EVERY)).expect_err("it has no end");
        assert!(said.contains("`changes`") && said.contains("`max = "), "{said}");
        assert!(plan(&with(&state("max = \"8h\"\n"), EVERY)).is_ok());
        let session = "gap = \"1m\"\nselect = { a = \"avg(v)\" }";
        assert!(plan(&with(session, "")).is_ok(), "a session is one entry");
    }

    #[test]
    fn a_key_of_many_devices_has_the_readings_of_all_of_them() {
        let text = |by: &str| format!("every = \"1h\"\nby = [{by}]\nselect = {{ a = \"twa(v)\" }}");
        let of_site = text("\"site\"");
        let said = plan(&with(&of_site, EVERY)).expect_err("nobody said how many");
        assert!(said.contains("`devices = 500`"), "{said}");
        let declared = format!("{EVERY}\ndevices = 100");
        let (site, device) = (plan(&with(&of_site, &declared)), text("\"site\", \"device\""));
        let (site, device) = (site.expect("good"), plan(&with(&device, &declared)).expect("good"));
        let step = |plan: &Plan| {
            let all = bounds(&plan.pipelines[0]);
            let step = all.into_iter().find(|s| s.name == "w").expect("it has state");
            (step.keys, step.per_key, step.total)
        };
        let (of_site, of_device) = (step(&site), step(&device));
        let bytes = |all: &Result<u64, _>| *all.as_ref().expect("a bound");
        assert!(bytes(&of_site.1) > 50 * bytes(&of_device.1));
        // All may send at the same time, however seldom.
        let seldom = "reading_every = \"1h\"\ndevices = 1_000";
        let of_minute = text("\"site\"").replace("1h", "1m") + "\nlate = \"table\"";
        let seldom = step(&plan(&with(&of_minute, seldom)).expect("good"));
        assert!(bytes(&seldom.1) > 1_000 * 16, "time and value of each");
        // All sites together have no more than if each device were a site.
        assert!(bytes(&of_site.2) <= bytes(&of_device.2));
        assert_eq!((of_site.0, of_device.0), (100, 100));
    }

    /// What comes of many sensors of a device comes as often as it has readings, not as often as
    /// each of them has a window.
    #[test]
    fn a_step_behind_finer_keys_has_the_rows_of_all_of_them() {
        let step = |name: &str, from: &str, rest: &str| {
            format!("[[step]]\nname = \"{name}\"\ntype = {rest}\nfrom = \"{from}\"\n")
        };
        let window = |every: &str, by: &str, select: &str| {
            format!(
                "\"window\"\n{every}\nby = [{by}]\nlate = \"table\"\n\
                 select = {{ {select} }}"
            )
        };
        let fine = "\"device\", \"sensor\"";
        let kept = "v = \"median(v)\"";
        let text = |first: &str, limits: &str| {
            let filter = step("some", "fine", "\"filter\"\nwhere = \"v > 1\"");
            format!(
                "name = \"p\"\n[source]\ntype = \"endpoint\"\ntopics = [\"t/{{device}}\"]\n\
                 [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
                 fields = {{ v = \"float64\", sensor = \"string\" }}\n[limits]\n{limits}\n\
                 {}{filter}{}{}{}[[table]]\nfrom = \"same\"\n[[table]]\nfrom = \"all\"\n\
                 [[table]]\nfrom = \"raw\"\n",
                step("fine", "readings", &window(first, fine, "v = \"avg(v)\"")),
                step("same", "some", &window("every = \"1h\"", fine, kept)),
                step("all", "some", &window("every = \"1h\"", "\"device\"", kept)),
                step("raw", "readings", &window("every = \"1h\"", "\"device\"", kept)),
            )
        };
        let of = |text: &str, name: &str| {
            let plan = plan(text).expect("good");
            let all = bounds(&plan.pipelines[0]);
            all.into_iter().find(|s| s.name == name).expect("it has state").per_key.expect("bound")
        };
        let tumbling = text("every = \"1m\"", "reading_every = \"1s\"\ndevices = 10");
        assert!(of(&tumbling, "all") >= of(&tumbling, "raw"));
        assert!(of(&tumbling, "all") > 30 * of(&tumbling, "same"), "one row a minute");
        // A reading is in six windows.
        let hop = "size = \"1m\"\nslide = \"10s\"";
        let hopping = text(hop, "reading_every = \"1s\"\ndevices = 10");
        assert!(of(&hopping, "all") > 5 * of(&hopping, "raw"));
        // Those of all sensors that had a reading within an hour end together.
        let hourly = text("every = \"1h\"", "reading_every = \"1s\"\ndevices = 10");
        let hourly = hourly.replace(
            "name = \"all\"\ntype = \"window\"\nevery = \"1h\"",
            "name = \"all\"\ntype = \"window\"\nevery = \"1m\"",
        );
        assert!(of(&hourly, "all") > 3600 * 8, "one number each");
        assert!(of(&hourly, "same") < of(&hourly, "all") / 20, "a key has one row of them");
        let said = plan(&text("every = \"1m\"", "devices = 10")).expect_err("no rate");
        assert!(said.contains("`all`") && !said.contains("`same`"), "{said}");
    }

    #[test]
    fn every_example_has_a_bound() {
        for (name, text) in [&[FIRST], &DEMO[..], &WAYS_IN, COOKBOOK].concat() {
            let plan = plan(text).unwrap_or_else(|problems| panic!("{name}: {problems}"));
            let of_steps = plan.pipelines.iter().flat_map(bounds);
            let states: Vec<_> = of_steps.collect();
            assert!(states.iter().all(|s| s.total.is_ok()), "{name}");
            let told = crate::explain(&plan).matches("\n    memory   at most ").count();
            assert_eq!(told, states.len(), "{name}");
            let declared = plan.pipelines[0].declared.devices;
            assert_eq!(declared_of(&plan).map(|t| t.devices), declared, "{name}");
        }
    }

    #[test]
    fn keys_that_are_no_devices_are_told_beside_them() {
        let text = |by: &str| {
            format!(
                "name = \"p\"\n[source]\ntype = \"endpoint\"\ntopics = [\"t/{{device}}\"]\n\
                 [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
                 fields = {{ sensor = \"string\" }}\n[limits]\ndevices = 50\n\
                 [[step]]\nname = \"w\"\ntype = \"window\"\nevery = \"1m\"\nby = [{by}]\n\
                 select = {{ n = \"count(*)\" }}\n[[table]]\nfrom = \"w\"\n"
            )
        };
        let told =
            |by: &str| declared_of(&plan(&text(by)).expect("good")).expect("declared").to_string();
        assert!(told("\"device\"").ends_with(" for the 50 devices in [limits]"));
        let both = told("\"device\", \"sensor\"");
        let rest = " for the 50 devices in [limits] and 1,000,000 keys of `w`, which are no \
                    devices: `keys_max` says how many there can be";
        assert!(both.ends_with(rest), "{both}");
    }
}
