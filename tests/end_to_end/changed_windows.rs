//! A change that would put windows beside others that look the same is refused, while running and
//! at a start, and what ran goes on; under another name of the table it is made.

use std::process::{Command, Output};

use crate::support::{Device, Home, Instance, eventually, tidegate};

const START_MS: i64 = 1_767_225_600_000;

fn pipeline(step: &str, table: &str) -> String {
    format!(
        r#"
name = "p"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["p/{{device}}"]
[reading]
device = "{{device}}"
time = "ts"
disorder = "0s"
idle_close = "1h"
fields = {{ v = "int64" }}
[[step]]
name = "w"
type = "window"
from = "readings"
{step}
[[table]]
from = "w"
name = "{table}"
freshness = "1s"
[limits]
reading_every = "1s"
"#
    )
}

fn counts(of: i64, table: &str) -> String {
    pipeline(&format!("count = {of}\nselect = {{ total = \"sum(v)\" }}"), table)
}

fn days(value: &str, table: &str) -> String {
    let select = format!("select = {{ n = \"count(*)\", x = \"{value}\" }}");
    let step = format!("every = \"day\"\nzone = \"UTC\"\nearly = \"1s\"\n{select}");
    pipeline(&step, table)
}

fn publish(instance: &Instance, seqs: std::ops::Range<i64>) {
    publish_those(instance, seqs);
}

fn publish_those(instance: &Instance, seqs: impl Iterator<Item = i64>) {
    let mut client = Device::connect(instance.endpoint(), "d1").unwrap();
    let text = |seq: i64| format!(r#"{{"ts":{},"v":{seq}}}"#, START_MS + seq * 1000);
    client.publish_all(seqs.map(|seq| ("p/d1", text(seq)))).unwrap();
}

fn apply(home: &Home, more: &[&str]) -> Output {
    let mut command = tidegate();
    command.arg("apply").arg(home.pipelines()).arg("--data").arg(home.data()).args(more);
    command.output().expect("the binary starts")
}

fn against(home: &Home) -> Output {
    let mut command = tidegate();
    command.arg("explain").arg(home.pipelines()).arg("--against").arg(home.data());
    command.output().expect("the binary starts")
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

fn is_refused(output: &Output, reason: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", text(output));
    assert!(text(output).contains(reason), "{reason} is not in {}", text(output));
}

/// A start that ends by itself, with this reason.
fn start_is_refused(command: &mut Command, reason: &str) {
    let mut instance = Instance::spawn(command);
    let ended = || instance.try_ended().ok_or("it runs".to_owned());
    assert_eq!(eventually("the refusal", ended).code(), Some(1), "{}", instance.said());
    eventually("why", || match instance.said() {
        said if said.contains(reason) => Ok(()),
        said => Err(said),
    });
}

#[test]
fn windows_of_another_size_are_refused_under_the_same_name() {
    let why = "table p.t: its windows are others (every 20 readings before, now every 25 readings)";
    let home = Home::with(&counts(20, "t"));
    let windows = "SELECT count(*) FROM p.t WHERE rows = 20";
    let instance = home.start();
    publish(&instance, 0..51);
    home.wait_for_count(windows, 2);
    home.write("pipelines/one.toml", &counts(25, "t"));
    for more in [&["--dry-run"][..], &[]] {
        let refused = apply(&home, more);
        is_refused(&refused, why);
        assert!(text(&refused).contains("nothing was changed"), "{}", text(&refused));
    }
    publish(&instance, 51..61);
    home.wait_for_count(windows, 3);
    instance.stop();
    is_refused(&against(&home), &format!("refused: {why}"));
    start_is_refused(&mut home.run_command(2), why);
    home.write("pipelines/one.toml", &counts(20, "t"));
    let instance = home.start();
    publish(&instance, 61..81);
    home.wait_for_count(windows, 4);
    home.write("pipelines/one.toml", &counts(25, "t25"));
    let applied = apply(&home, &[]);
    assert!(applied.status.success(), "{}", text(&applied));
    publish(&instance, 81..101);
    home.wait_for_count("SELECT count(*) FROM p.t25 WHERE rows = 25", 1);
    instance.stop();
    assert_eq!(home.count("SELECT sum(rows) FROM p.t"), 80, "what is there stays");
}

/// A change to other windows after a kill is refused before what came in is finished, too.
#[test]
fn windows_of_another_size_are_refused_after_a_kill() {
    let home = Home::with(&counts(20, "t"));
    let mut command = home.run_command(2);
    let instance = home.start_command(command.args(["--checkpoint-every", "1h"]));
    publish(&instance, 0..51);
    instance.kill();
    home.write("pipelines/one.toml", &counts(25, "t"));
    start_is_refused(&mut home.run_command(2), "table p.t: its windows are others");
    home.write("pipelines/one.toml", &counts(20, "t"));
    let instance = home.start();
    publish(&instance, 51..61);
    home.wait_for_count("SELECT count(*) FROM p.t WHERE rows = 20", 3);
    instance.stop();
}

/// A table says itself of which windows it has rows, whatever ran in between.
#[test]
fn a_table_knows_its_windows_when_it_is_written_again() {
    let why = "table p.t: its windows are others (every 20 readings before, now every 25 readings)";
    let home = Home::with(&counts(20, "t"));
    let instance = home.start();
    publish(&instance, 0..51);
    home.wait_for_count("SELECT count(*) FROM p.t WHERE rows = 20", 2);
    home.write("pipelines/one.toml", &counts(25, "other"));
    assert!(apply(&home, &[]).status.success());
    home.write("pipelines/one.toml", &counts(25, "t"));
    is_refused(&apply(&home, &[]), why);
    instance.stop();
    // Nothing in the data folder says any more what was in that table.
    home.write("pipelines/one.toml", &counts(25, "other"));
    let instance = home.start();
    publish(&instance, 51..76);
    home.wait_for_count("SELECT count(*) FROM p.other WHERE rows = 25", 1);
    home.write("pipelines/one.toml", &counts(25, "t"));
    let refused = apply(&home, &[]);
    is_refused(&refused, why);
    assert!(text(&refused).contains("nothing was changed"), "{}", text(&refused));
    publish(&instance, 76..101);
    home.wait_for_count("SELECT count(*) FROM p.other WHERE rows = 25", 2);
    instance.stop();
    start_is_refused(&mut home.run_command(2), why);
    std::fs::remove_file(home.data().join("pipelines.json")).unwrap();
    start_is_refused(&mut home.run_command(2), why);
    // As it was: of all readings, since the journal has them.
    home.write("pipelines/one.toml", &counts(20, "t"));
    let instance = home.start();
    publish(&instance, 101..121);
    let last = "SELECT count(*) FROM p.t WHERE window_number = 5 AND total = 2190";
    home.wait_for_count(last, 1);
    instance.stop();
}

/// A step that is made anew tells fewer rows of an open window than there were: the next one is
/// above them all the same.
#[test]
fn the_row_of_a_window_that_was_told_early_is_above_the_early_ones() {
    let home = Home::with(&days("max(v)", "t"));
    let instance = home.start();
    for seq in 0..4 {
        publish(&instance, seq..seq + 1);
        home.wait_for_count("SELECT n FROM p.t", seq + 1);
    }
    home.write("pipelines/one.toml", &days("min(v)", "t").replace("early = \"1s\"\n", ""));
    let applied = apply(&home, &[]);
    assert!(text(&applied).contains("w: changed, rebuilt from the first"), "{}", text(&applied));
    // The day is over with the first reading of the next one.
    publish(&instance, 86_400..86_401);
    home.wait_for_count("SELECT n FROM p.t WHERE x = 0", 4);
    instance.stop();
}

/// A run whose journal keeps little.
fn forgetful(home: &Home) -> Command {
    let mut command = home.run_command(2);
    command.args(["--journal-max", "256KiB", "--journal-keep", "1us"]);
    command.args(["--checkpoint-every", "200ms"]);
    command
}

/// Publishes until the journal has forgotten its beginning, so that the files are refused; how many
/// readings that took.
fn until_refused(home: &Home, instance: &Instance) -> i64 {
    let mut seqs = 0;
    eventually("a refusal", || {
        publish(instance, seqs..seqs + 500);
        seqs += 500;
        let looked = apply(home, &["--dry-run"]);
        if looked.status.success() { Err(text(&looked)) } else { Ok(()) }
    });
    seqs
}

#[test]
fn windows_that_began_before_the_journal_are_refused_under_the_same_name() {
    let why = "table p.t: the windows of step `w` would begin anew";
    let home = Home::with(&days("max(v)", "t"));
    let run = || forgetful(&home);
    let instance = home.start_command(&mut run());
    home.write("pipelines/one.toml", &days("min(v)", "t"));
    let mut seqs = until_refused(&home, &instance);
    for output in [apply(&home, &["--dry-run"]), apply(&home, &[]), against(&home)] {
        is_refused(&output, why);
        for said in ["--journal-keep", "[[table]] from = \"w\", name = \"t2\""] {
            assert!(text(&output).contains(said), "{said} is not in {}", text(&output));
        }
    }
    let all = "SELECT n FROM p.t";
    publish(&instance, seqs..seqs + 10);
    seqs += 10;
    home.wait_for_count(all, seqs);
    instance.stop();
    is_refused(&against(&home), why);
    start_is_refused(&mut run(), why);
    // The checkpoint says it, too, where nothing else does.
    std::fs::remove_file(home.data().join("pipelines.json")).unwrap();
    start_is_refused(&mut run(), why);
    home.write("pipelines/one.toml", &days("max(v)", "t"));
    let instance = home.start_command(&mut run());
    publish(&instance, seqs..seqs + 10);
    seqs += 10;
    home.wait_for_count(all, seqs);
    instance.stop();
    home.write("pipelines/one.toml", &days("min(v)", "t2"));
    let part = "; windows that began before that are of a part of their readings";
    assert!(text(&against(&home)).contains(part), "{}", text(&against(&home)));
    let instance = home.start_command(&mut run());
    publish(&instance, seqs..seqs + 10);
    eventually("the new table", || match home.try_rows("SELECT n FROM p.t2")?.first() {
        Some(row) if row["n"].as_i64().is_some_and(|n| (10..seqs).contains(&n)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(home.count(all), seqs, "what is there stays");
    // Back, to a table that the process which runs now has not written.
    home.write("pipelines/one.toml", &days("max(v)", "t"));
    is_refused(&apply(&home, &[]), why);
    instance.stop();
    start_is_refused(&mut run(), why);
    home.write("pipelines/one.toml", &days("min(v)", "t2"));
    let instance = home.start_command(&mut run());
    home.write("pipelines/one.toml", &days("avg(v)", "t3"));
    let looked = apply(&home, &["--dry-run"]);
    assert!(looked.status.success() && text(&looked).contains(part), "{}", text(&looked));
    assert!(apply(&home, &[]).status.success());
    instance.stop();
}

/// A window goes on with its state whatever else the readings get; what it reads is its own.
#[test]
fn a_field_that_windows_do_not_read_can_be_added_although_the_journal_is_short() {
    let readings = "[[table]]\nfrom = \"readings\"\nname = \"r\"\nfreshness = \"1s\"\n";
    let with = |fields: &str| {
        let days = days("max(v)", "t").replace("v = \"int64\"", fields);
        format!("{days}{readings}")
    };
    let why = "table p.t: the windows of step `w` would begin anew";
    let [stricter, more] =
        ["v = { type = \"int64\", max = 900000 }", "u = \"int64\", v = \"int64\""];
    let home = Home::with(&with("v = \"int64\""));
    let instance = home.start_command(&mut forgetful(&home));
    home.write("pipelines/one.toml", &with(stricter));
    let mut seqs = until_refused(&home, &instance);
    for output in [apply(&home, &[]), against(&home)] {
        is_refused(&output, why);
    }
    home.write("pipelines/one.toml", &with(more));
    for output in [against(&home), apply(&home, &["--dry-run"]), apply(&home, &[])] {
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("  w: keeps its state\n"), "{}", text(&output));
    }
    let mut client = Device::connect(instance.endpoint(), "d1").unwrap();
    let payload = |seq: i64| format!(r#"{{"ts":{},"u":7,"v":{seq}}}"#, START_MS + seq * 1000);
    client.publish_all((seqs..seqs + 10).map(|seq| ("p/d1", payload(seq)))).unwrap();
    seqs += 10;
    let all = "SELECT n FROM p.t";
    home.wait_for_count(all, seqs);
    home.wait_for_count("SELECT count(*) FROM p.r WHERE u = 7", 10);
    home.write("pipelines/one.toml", &with(&more.replace("v = \"int64\"", stricter)));
    is_refused(&apply(&home, &[]), why);
    instance.stop();
    // The same at a start.
    start_is_refused(&mut forgetful(&home), why);
    home.write("pipelines/one.toml", &with("v = \"int64\", z = \"int64\""));
    assert!(text(&against(&home)).contains("  w: keeps its state\n"), "{}", text(&against(&home)));
    let instance = home.start_command(&mut forgetful(&home));
    publish(&instance, seqs..seqs + 10);
    home.wait_for_count(all, seqs + 10);
    instance.stop();
    assert_eq!(home.count("SELECT x FROM p.t"), seqs + 9);
}

/// What a step holds back for late readings is told once, and what it told is not told again,
/// whether it waits for less or for more from now on.
#[test]
fn how_long_steps_wait_can_change_at_any_time() {
    let with = |disorder: &str| {
        counts(20, "t").replace("disorder = \"0s\"", &format!("disorder = \"{disorder}\""))
    };
    let home = Home::with(&with("30s"));
    let instance = home.start();
    let whole = |windows: i64| {
        let sql = "SELECT count(DISTINCT window_number) FROM p.t_revisions WHERE rows = 20";
        home.wait_for_count(sql, windows);
        assert_eq!(home.count("SELECT count(*) FROM p.t_revisions"), windows);
    };
    publish(&instance, 0..51);
    whole(1);
    for (disorder, seqs, windows) in [("5s", 51..61, 2), ("45s", 61..81, 2), ("1s", 81..102, 5)] {
        home.write("pipelines/one.toml", &with(disorder));
        let applied = text(&apply(&home, &[]));
        assert!(applied.contains("w: keeps its state"), "{applied}");
        publish(&instance, seqs);
        whole(windows);
    }
    instance.stop();
    let sum = home.count("SELECT sum(total) FROM p.t");
    assert_eq!(sum, (0..100).sum::<i64>());
}

/// What decides when a window is told changes together with what is in it: each is told once, with
/// all of its readings, by the step of before or by that of after.
#[test]
fn windows_are_told_once_if_how_long_they_wait_changes_with_what_they_are() {
    // What makes windows, and how many there are, of how many readings.
    const SHAPES: [(&str, i64, i64); 4] = [
        ("every = \"10s\"", 6, 9),
        ("count = 6", 9, 6),
        ("gap = \"1s\"", 6, 9),
        ("while = \"v % 10 < 7\"", 6, 7),
    ];
    for (before, after) in [("15s", "0s"), ("0s", "15s")] {
        let pipeline = |disorder: &str, select: &str| {
            let steps = SHAPES.iter().zip(["a", "b", "c", "d"]).map(|((shape, ..), name)| {
                format!(
                    "[[step]]\nname = \"{name}\"\ntype = \"window\"\nfrom = \"readings\"\n{shape}\n\
                     disorder = \"{disorder}\"\nselect = {{ {select} }}\n\
                     [[table]]\nfrom = \"{name}\"\nfreshness = \"1s\"\n"
                )
            });
            pipeline("count = 1000\nselect = { n = \"count(*)\" }", "t")
                + &steps.collect::<String>()
        };
        let home = Home::with(&pipeline(before, "total = \"sum(v)\""));
        let instance = home.start();
        // Nine a second, and then a pause.
        let is_sent = |seq: &i64| seq % 10 != 9;
        publish_those(&instance, (0..38).filter(is_sent));
        eventually("a window", || match home.try_rows("SELECT 1 FROM p.a")?.is_empty() {
            true => Err("none".to_owned()),
            false => Ok(()),
        });
        home.write("pipelines/one.toml", &pipeline(after, "total = \"sum(v)\", most = \"max(v)\""));
        let applied = apply(&home, &[]);
        assert!(applied.status.success(), "{}", text(&applied));
        publish_those(&instance, (38..60).filter(is_sent).chain([259, 359, 459]));
        for ((shape, windows, rows), table) in SHAPES.into_iter().zip(["a", "b", "c", "d"]) {
            let early = "window_end <= '2026-01-01T00:01:00Z'";
            let whole = format!("SELECT count(*) FROM p.{table} WHERE {early} AND rows = {rows}");
            home.wait_for_count(&whole, windows);
            let told = format!("SELECT count(*) FROM p.{table}_revisions WHERE {early}");
            assert_eq!(home.count(&told), windows, "{shape}, {before} to {after}: told once");
        }
        instance.stop();
    }
}
