//! State without a bound is refused before it grows, unless the configuration allows it.

use tidegate_operators::bound::Unbounded;
use tidegate_operators::spec::{PipelineSpec, Shape, StepKind, WindowSpec};

use super::limits;
use crate::bounds::{What, bounds};
use crate::config::problem::{At, Reporter};
use crate::config::section::Section;
use crate::planner::keeping;

/// Most names that a note lists.
const LISTED_MAX: usize = 8;

/// Keys of which a window that follows from readings has one.
const SHAPES: [&str; 7] = ["gap", "count", "while", "begin", "until", "before", "after"];

const ALLOW: &str = "or, if it may grow, `unbounded = \"allow\"` in the step or in [limits]";

/// Something whose state grows with readings.
struct Growing<'p> {
    name: &'p str,
    /// What keeps readings, or where the step has its name.
    at: At,
    /// What keeps them, as it is written; nothing if that is the step as such.
    keepers: Vec<String>,
}

/// Reports the steps of a pipeline whose state has no bound.
pub(crate) fn refuse(file: &Section<'_>, pipeline: &PipelineSpec, report: &mut Reporter<'_>) {
    let (limits, steps) = (limits::table(file), file.sections("step"));
    let mut growing = Vec::new();
    for state in bounds(pipeline) {
        let Err(why) = &state.per_key else { continue };
        let is_it = |s: &&Section<'_>| s.text("name") == Some(state.name);
        let step = steps.iter().find(|s| state.what == What::Step && is_it(s));
        if limits::may_be_unbounded(&limits, step) {
            continue;
        }
        let at = step.map_or(file.at, |step| step.at("name"));
        match why {
            Unbounded::NoEnd(aggregate) => {
                let message = format!(
                    "the state of `{}` has no bound: `{aggregate}` keeps all readings of a \
                     window, and a window can be open for ever",
                    state.name
                );
                let hint = format!("give its windows an end, as in `max = \"8h\"`, {ALLOW}");
                report.error(at, message, hint);
            }
            Unbounded::NoRate => {
                let spec = pipeline.steps.iter().find(|s| s.name == state.name);
                let found = step.zip(spec).and_then(|(step, spec)| keepers(step, &spec.kind));
                let (at, keepers) = found.unwrap_or((at, Vec::new()));
                growing.push(Growing { name: state.name, at, keepers });
            }
        }
    }
    report_growing(pipeline, &growing, report);
}

/// What keeps the readings in a step, and where it is written.
fn keepers(step: &Section<'_>, kind: &StepKind) -> Option<(At, Vec<String>)> {
    let of_key = |key: &&str| Some((step.entry(key)?.key_at, vec![(*key).to_owned()]));
    match kind {
        StepKind::Window(window) => match window.shape {
            Shape::Grid { .. } | Shape::Calendar(_) => of_aggregates(step, window),
            _ => SHAPES.iter().find_map(of_key),
        },
        StepKind::Enrich(_) => of_key(&"revise"),
        _ => None,
    }
}

/// The aggregates that keep readings, and the first expression with one.
fn of_aggregates(step: &Section<'_>, window: &WindowSpec) -> Option<(At, Vec<String>)> {
    let mut first = None;
    let mut names: Vec<String> = Vec::new();
    for entry in step.entries("select") {
        for name in entry.node.text().map_or_else(Vec::new, |text| keeping(text, window)) {
            first.get_or_insert(entry.node.at);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Some((first?, names))
}

/// One problem, however many steps have it: one line mends them all.
fn report_growing(pipeline: &PipelineSpec, growing: &[Growing<'_>], report: &mut Reporter<'_>) {
    let Some((first, others)) = growing.split_first() else { return };
    let mut message = format!(
        "the state of `{}` grows with readings, and nothing says how many those can be",
        first.name
    );
    if !first.keepers.is_empty() {
        let keep = if first.keepers.len() == 1 { "keeps" } else { "keep" };
        message += &format!(": {} {keep} them", quoted(&first.keepers));
    }
    report.error(first.at, message, mending(pipeline, growing));
    let one = |other: &Growing<'_>| {
        let line = report.place(other.at).1;
        match other.keepers.as_slice() {
            [] => format!("`{}` (line {line})", other.name),
            keepers => format!("`{}` (line {line}: {})", other.name, quoted(keepers)),
        }
    };
    let mut listed: Vec<String> = others.iter().take(LISTED_MAX).map(one).collect();
    if let more @ 1.. = others.len().saturating_sub(LISTED_MAX) {
        listed.push(format!("{more} more"));
    }
    if !listed.is_empty() {
        report.note(first.at, format!("the same of {}", listed.join(", ")));
    }
}

fn quoted(names: &[String]) -> String {
    let all: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    all.join(", ")
}

/// The least that has to be said in `[limits]` so that all of it has a bound.
fn mending(pipeline: &PipelineSpec, growing: &[Growing<'_>]) -> String {
    let all = if growing.len() > 1 { " (this mends all of them)" } else { "" };
    let every = "how often a device has a reading at most, as in `reading_every = \"10s\"`";
    let devices = "how many devices there are at most, as in `devices = 500`";
    if mends(pipeline, growing, (true, false)) {
        format!("say in [limits] {every}{all}; {ALLOW}")
    } else if mends(pipeline, growing, (false, true)) {
        format!("say in [limits] {devices}{all}; {ALLOW}")
    } else if mends(pipeline, growing, (true, true)) {
        format!("say in [limits] {every}, and {devices}{all}; {ALLOW}")
    } else {
        "nothing in [limits] gives it a bound: if it may grow, write `unbounded = \"allow\"` in \
         the step or in [limits]"
            .to_owned()
    }
}

/// Whether all of it has a bound if that is said: how often readings come, how many devices there
/// are.
fn mends(pipeline: &PipelineSpec, growing: &[Growing<'_>], (every, devices): (bool, bool)) -> bool {
    let mut said = pipeline.clone();
    if every {
        said.declared.reading_every_us.get_or_insert(10_000_000);
    }
    if devices {
        said.declared.devices.get_or_insert(500);
    }
    let still = |name: &str| bounds(&said).iter().any(|s| s.name == name && s.per_key.is_err());
    !growing.iter().any(|g| still(g.name))
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
            let told = |p: &crate::Problem| format!("{}: {:?} {:?}\n", p.message, p.hint, p.note);
            all.iter().map(told).collect::<String>()
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
    fn what_keeps_the_readings_is_named_and_one_line_mends_all_steps() {
        let also = "\n[[step]]\nname = \"x\"\ntype = \"window\"\ngap = \"1m\"\nmax = \"1h\"\n\
                    select = { n = \"count(*)\" }\n[[table]]\nfrom = \"x\"\n";
        let select = "n = \"count(*)\", \
                      s = \"duration_in(b)\", d = \"count(DISTINCT v)\", m = \"avg(v)\"";
        let text = with(&format!("every = \"1m\"\nselect = {{ {select} }}{also}"), "");
        let resolve = |_: &str, _: &str| Err(String::new());
        let load = |text: String| load(&[("p.toml".into(), text)], &resolve);
        let problems = load(text.clone()).expect_err("no rate");
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        let ends = "can be: `duration_in`, `count(DISTINCT ...)` keep them";
        assert!(problem.message.ends_with(ends), "{problem}");
        assert!(problem.source_line[problem.column - 1..].starts_with("\"duration_in("));
        let hint = problem.hint.as_deref().unwrap_or_default();
        assert!(hint.contains("`reading_every = \"10s\"` (this mends all"), "{hint}");
        assert!(!hint.contains("devices"), "{hint}");
        let line = 1 + text[..text.find("gap = ").expect("it is there")].matches('\n').count();
        let note = format!("the same of `x` (line {line}: `gap`)");
        assert_eq!(problem.note, Some(note));
        assert!(load(text.replace("[limits]", &format!("[limits]\n{EVERY}"))).is_ok());
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
        // A product with what a step admits by default would be no estimate.
        let both = told("\"device\", \"sensor\"");
        let (devices, rest) = both.split_once("; ").expect("something is left out");
        assert!(devices.ends_with(" for the 50 devices in [limits]"), "{both}");
        assert!(rest.starts_with("not counted: `w` (at most ") && rest.ends_with(
            " per key), whose keys are no devices: say with `keys_max` how many there can be"
        ), "{both}");
        let explained = crate::explain(&plan(&text("\"device\", \"sensor\"")).expect("good"));
        assert!(explained.contains(" per key; nobody said that there are fewer than 1,000,000\n"));
        let said = text("\"device\", \"sensor\"").replace("[limits]", "[limits]\nkeys_max = 400");
        let said = declared_of(&plan(&said).expect("good")).expect("declared").to_string();
        assert!(said.ends_with(" for the 50 devices in [limits] and 400 keys of `w`"), "{said}");
    }

    /// A device has one value at a time of what a registry says of it, and its readings are those
    /// of all its keys together.
    #[test]
    fn what_a_registry_says_of_devices_makes_no_million_keys() {
        let text = |default: &str| {
            format!(
                "name = \"p\"\n[source]\ntype = \"endpoint\"\n\
             topics = [\"t/{{site}}/{{device}}\"]\n\
             [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\nfields = {{ v = \"float64\", \
             z = \"string\" }}\n\
             [limits]\ndevices = 50\nreading_every = \"1s\"\n\
             [[registry]]\nname = \"places\"\npath = \"places.csv\"\nkey = [\"device\"]\n\
             columns = {{ device = \"string\", zone = \"string\" }}\n\
             [[step]]\nname = \"known\"\ntype = \"enrich\"\nregistry = \"places\"\n{default}\n\
             [[step]]\nname = \"w\"\ntype = \"window\"\nfrom = \"known\"\nevery = \"day\"\n\
             zone = {{ column = \"zone\" }}\nby = [\"site\", \"device\", \"zone\"]\n\
             select = {{ a = \"increase(v)\" }}\n[[table]]\nfrom = \"w\"\n"
            )
        };
        let constant = "default = { zone = \"'UTC'\" }";
        let plan_of = |default: &str| plan(&text(default)).expect("good");
        let placed = plan_of(constant);
        let all = bounds(&placed.pipelines[0]);
        let w = all.iter().find(|s| s.name == "w").expect("it has state");
        assert_eq!((w.keys, w.keys_said), (50 * 101, true));
        let (per_key, total) = (w.per_key.clone().expect("bound"), w.total.clone().expect("bound"));
        assert!((50 * per_key..50 * 5 * per_key).contains(&total), "{per_key} {total}");
        let said = declared_of(&placed).expect("declared").to_string();
        assert!(!said.contains("not counted"), "{said}");
        // What stands in is another one with each reading.
        let said =
            declared_of(&plan_of("default = { zone = \"z\" }")).expect("declared").to_string();
        assert!(said.contains("not counted: `w`"), "{said}");
    }
}
