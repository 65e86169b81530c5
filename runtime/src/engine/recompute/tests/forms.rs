//! Every kind of window in forms that ask the tables other questions: what a step shows after late
//! readings is what the plain one shows.

use super::*;

/// Kinds of windows by the keys that ask for them.
const KINDS: [(&str, &str); 8] = [
    ("tumbling", "every = '5m'"),
    ("days", "every = 'day'\nzone = 'Europe/Berlin'"),
    ("visits", "gap = '4m'"),
    ("cuts", "gap = '4m'\nmax = '12m'"),
    ("counts", "count = 4"),
    ("hops", "count = 6\nhop = 2"),
    ("states", "while = 'v > 3'"),
    ("around", "before = '4m'\nafter = '3m'"),
];

/// A window step of this kind with a table, in one form.
fn step(name: &str, kind: &str, form: &str) -> String {
    format!(
        "[[step]]\nname = '{name}'\ntype = 'window'\nfrom = 'readings'\n{kind}\n{form}\n\
         revise_for = '2m'\nselect = {{ n = 'count(*)', total = 'sum(v)' }}\n\
         [[table]]\nfrom = '{name}'\n"
    )
}

/// Each kind twice: as it is, and in another form, whose tables have these keys.
fn plan(form: &str, table: &str) -> Plan {
    let limits = "[limits]\ndevices = 3\nreading_every = '1s'\n";
    let mut steps = format!("{limits}[[table]]\nfrom = 'readings'\n{table}");
    for (name, kind) in KINDS {
        steps += &step(name, kind, "");
        steps += &step(&format!("{name}_too"), kind, form);
        steps += table;
    }
    let fields =
        "w = 'float64'\nk = 'string'\nm = 'string'\nl = { type = 'string', required = true }";
    plan_in(text_of(&steps).replace("w = \"float64\"", fields))
}

/// Of one device: in time, so much later that all of it is final, late.
fn delayed() -> Vec<Reading> {
    let of = |minute: i64| (0, minute, [5, 6, 1, 7][minute as usize % 4]);
    let in_time = (0..180).step_by(3).filter(|minute| minute % 5 != 0).map(of);
    let after = [(0, 3_000, 1), (0, 3_001, 5), (0, 3_004, 1), (0, 3_010, 1), (0, 3_020, 1)];
    let late = [30, 45, 61, 100, 101, 140].into_iter().map(of);
    in_time.chain(after).chain(late).collect()
}

/// The same with texts that are empty.
fn with_texts() -> Vec<TestInput> {
    let mut inputs = inputs(&delayed());
    inputs.iter_mut().for_each(|input| {
        let text = String::from_utf8(std::mem::take(&mut input.payload)).unwrap();
        input.payload = text.replace('{', r#"{"k":"","l":"","#).into_bytes();
    });
    inputs
}

/// The windows that are over.
async fn shown(home: &Home, table: &str, condition: &str) -> Vec<String> {
    let time = |name: &str| format!("arrow_cast({name}, 'Int64')");
    let (start, end) = (time("window_start"), time("window_end"));
    home.ask(&format!("SELECT {start}, {end}, n, total FROM p.{table} WHERE {condition}")).await
}

/// Both forms show the same, after several groups.
fn check(form: &str, condition: &str) {
    check_in(&|| plan(form, ""), condition);
}

fn check_in(plan: &dyn Fn() -> Plan, condition: &str) {
    let edges = trial::run(&plan().pipelines[0], &with_texts(), 2).unwrap();
    blocking(async {
        let mut home = Home::of(plan());
        home.write_all(&edges).await;
        let mut before = Vec::new();
        for (name, _) in KINDS {
            before.push(shown(&home, name, "true").await);
        }
        home.catch_up(&home.worker(30 * S), i64::MAX).await;
        for ((name, _), before) in KINDS.into_iter().zip(before) {
            let plain = shown(&home, name, "true").await;
            assert_ne!(plain, before, "{name}: something was late for it");
            let too = format!("{name}_too");
            assert_eq!(shown(&home, &too, condition).await, plain, "{name}");
        }
    });
}

#[test]
fn steps_with_early_results_have_all_late_readings() {
    check("early = '20s'", "is_final");
}

#[test]
fn steps_without_keys_have_all_late_readings() {
    check("by = []", "true");
}

/// Also where a partition of an empty text is read as null.
#[test]
fn steps_whose_keys_are_empty_have_all_late_readings() {
    let plan = || plan("by = ['l']", "partition = ['l']\n");
    check_in(&plan, "l IS NULL");
}

/// Such a key is not told from one that is null, if there can be both: what is late for it has no
/// effect, and that is told.
#[test]
fn keys_that_a_table_has_as_null_stay() {
    let plan = || plan("by = ['k']", "partition = ['k']\n");
    let edges = trial::run(&plan().pipelines[0], &with_texts(), 2).unwrap();
    blocking(async {
        let (home, worker) = Home::of(plan()).caught_up(&edges, 30 * S).await;
        let told = home.told(&worker).await;
        for (name, _) in KINDS {
            let (table, key) = (format!("p.{name}_too"), r#"{"k":""}"#);
            assert!(told.contains(&format!("{table}{key}")), "{table}: {told:?}");
        }
    });
}

#[test]
fn steps_whose_keys_are_null_have_all_late_readings() {
    check("by = ['m']", "m IS NULL");
}
