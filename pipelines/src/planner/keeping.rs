//! Which calls in an item of a window's `select` keep the readings, for people who are told that
//! its state grows with them.

use tidegate_operators::aggregate::{held, keeps_each_reading, ranged};
use tidegate_operators::spec::WindowSpec;

use super::inspect::Inspection;
use super::{STATE, parse, plan_window};

/// The functions in an item that keep something of each reading, as they are written.
pub(crate) fn keeping(text: &str, window: &WindowSpec) -> Vec<String> {
    let names = |columns: &[usize]| -> Vec<String> {
        columns.iter().map(|c| window.input.field(*c).name().clone()).collect()
    };
    let (keys, time) = (names(&window.keys), window.input.field(window.time).name());
    let item = [(String::new(), text.to_owned())];
    let ends = window.shape.ends_with_reading();
    let Ok(planned) = plan_window(&item, &keys, &window.input, (time, ends)) else {
        return Vec::new();
    };
    let keep: Vec<_> = planned.aggregates.iter().filter(|a| keeps_each_reading(a)).collect();
    if keep.is_empty() {
        return Vec::new();
    }
    let written = parse(text).and_then(|ast| Inspection::of(&ast.expr));
    let written = written.map(Inspection::function_names).unwrap_or_default();
    let calls: Vec<String> =
        written.into_iter().filter(|f| STATE.aggregate_functions().contains_key(f)).collect();
    // What stands for a call may have a name that nobody wrote.
    let is_split = |name: &str| held(name).is_some() || ranged(name, false).is_some();
    let of = |name: &String| -> Option<String> {
        let call = keep.iter().find(|a| a.fun().name() == name);
        match call {
            Some(call) if call.is_distinct() => Some(format!("{name}(DISTINCT ...)")),
            Some(_) => Some(name.clone()),
            None => is_split(name).then(|| name.clone()),
        }
    };
    let found: Vec<String> = calls.iter().filter_map(of).collect();
    if found.is_empty() { calls } else { found }
}
