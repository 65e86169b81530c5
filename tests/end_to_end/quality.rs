//! What windows say of how good they are, with the real binary.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use super::absence::{Alive, broker, wait_for_sessions};
use crate::support::{Home, Instance, Row, eventually, free_address};

fn pipeline(source: &str) -> String {
    format!(
        r#"
name = "yard"

[source]
{source}
topics = ["t/{{device}}"]

[reading]
device   = "{{device}}"
time     = "received"
disorder = "100ms"

[reading.fields]
v = "int64"

[[step]]
name    = "beats"
type    = "window"
every   = "2s"
quality = true
cadence = "500ms"
select  = {{ n = "count(*)" }}

[[table]]
from      = "beats"
freshness = "500ms"
"#
    )
}

/// Start and end of a window, in seconds since the gap began, and whether it is complete.
type Window = (f64, f64, bool);

/// Each window, by its start; and how long the gap is.
fn windows(home: &Home) -> Result<(Vec<Window>, f64), String> {
    let seconds = |time: &str| format!("(arrow_cast({time}, 'Int64') - g.from_us) / 1e6");
    let rows = home.try_rows(&format!(
        "SELECT {} AS s, {} AS e, complete, expected, late, (g.to_us - g.from_us) / 1e6 AS long \
         FROM yard.beats, (SELECT arrow_cast(max(gap_from), 'Int64') AS from_us, \
         arrow_cast(max(gap_to), 'Int64') AS to_us FROM system.gaps) g ORDER BY s",
        seconds("window_start"),
        seconds("window_end"),
    ))?;
    let number = |row: &Row, name: &str| row[name].as_f64();
    let window = |row: &Row| {
        assert_eq!((&row["expected"], &row["late"]), (&4.into(), &0.into()));
        Some((number(row, "s")?, number(row, "e")?, row["complete"].as_bool()?))
    };
    let found: Option<Vec<_>> = rows.iter().map(window).collect();
    let long = rows.first().and_then(|row| number(row, "long"));
    found.zip(long).ok_or_else(|| format!("{rows:?}"))
}

fn on_broker(address: SocketAddr) -> String {
    pipeline(&format!("type = \"mqtt\"\nurl = \"mqtt://{address}\""))
}

fn wait_for_complete(home: &Home) {
    home.wait_for_count("SELECT least(count(*), 4) FROM yard.beats WHERE complete", 4);
}

/// The windows when there are two after the gap, and how long that is.
fn windows_after(home: &Home) -> (Vec<Window>, f64) {
    home.wait_for_count("SELECT count(*) FROM system.gaps", 1);
    eventually("windows after the gap", || {
        let (found, long) = windows(home)?;
        let after = found.iter().filter(|(start, _, complete)| *start > long && *complete);
        if after.count() < 2 { Err(format!("{found:?}")) } else { Ok((found, long)) }
    })
}

/// Windows inside the gap are incomplete, others are not.
fn judged((found, long): (Vec<Window>, f64)) {
    let (mut inside, mut before) = (0, 0);
    for (start, end, complete) in found {
        let told = format!("from {start} to {end}, and the gap is {long} s long");
        // Readings come in a moment after their time.
        if end <= -3.0 || start > long {
            assert!(complete, "{told}");
            before += u32::from(start < 0.0);
        }
        // The last reading that was heard is in it.
        if start <= 0.0 && end > 0.0 {
            assert!(!complete, "{told}");
            inside += 1;
        }
    }
    assert!(inside > 0 && before > 0, "{inside} inside, {before} before");
}

#[test]
fn windows_inside_the_gap_of_a_broker_that_lost_the_session_are_incomplete() {
    let address = free_address();
    let broker_at = Home::with(&broker(&address.to_string()));
    let first = broker_at.start();
    let home = Home::with(&on_broker(address));
    let instance = Instance::spawn(&mut home.run_command(2));
    wait_for_sessions(&home, 1);
    let alive = Alive::start(address, "d1");
    wait_for_complete(&home);
    first.kill();
    // Another one at its address knows of no session: what comes until we subscribe is lost.
    let other = Home::with(&broker(&address.to_string()));
    let second = other.start();
    let found = windows_after(&home);
    instance.stop();
    drop(alive);
    second.stop();
    judged(found);
}

/// What was published at the new one before we came is as lost.
#[test]
fn windows_inside_the_gap_of_a_broker_that_is_another_one_are_incomplete() {
    let (before, after) = (free_address(), free_address());
    let broker_at = Home::with(&broker(&before.to_string()));
    let first = broker_at.start();
    let home = Home::with(&on_broker(before));
    let instance = Instance::spawn(&mut home.run_command(2));
    wait_for_sessions(&home, 1);
    let alive = Alive::start(before, "d1");
    wait_for_complete(&home);
    instance.stop();
    first.kill();
    drop(alive);
    let other = Home::with(&broker(&after.to_string()));
    let second = other.start();
    let alive = Alive::start(after, "d1");
    home.write("pipelines/one.toml", &on_broker(after));
    let instance = Instance::spawn(&mut home.run_command(2));
    let found = windows_after(&home);
    instance.stop();
    drop(alive);
    second.stop();
    judged(found);
}

fn now_ms() -> i64 {
    i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

#[test]
fn windows_around_a_start_at_another_address_are_incomplete() {
    let on = |listen| pipeline(&format!("type = \"endpoint\"\nlisten = \"{listen}\""));
    let (before, after) = (free_address(), free_address());
    let home = Home::with(&on(before));
    let instance = home.start();
    let alive = Alive::start(before, "d1");
    wait_for_complete(&home);
    // In the middle of a window, which has readings then.
    while !(900..1_100).contains(&(now_ms() % 2_000)) {
        std::thread::sleep(Duration::from_millis(10));
    }
    instance.kill();
    let away_ms = now_ms();
    drop(alive);
    // Ticks that are further apart than 5 s.
    std::thread::sleep(Duration::from_secs(6));
    home.write("pipelines/one.toml", &on(after));
    let back_ms = now_ms();
    let instance = home.start();
    let alive = Alive::start(after, "d1");
    let later = format!("window_start > to_timestamp_millis({})", now_ms() + 2_000);
    home.wait_for_count(
        &format!("SELECT least(count(*), 2) FROM yard.beats WHERE complete AND {later}"),
        2,
    );
    instance.stop();
    drop(alive);
    let touched = format!(
        "FROM yard.beats WHERE window_end > to_timestamp_millis({away_ms}) \
         AND window_start < to_timestamp_millis({back_ms})"
    );
    assert!(home.count(&format!("SELECT count(*) {touched}")) > 0);
    assert_eq!(home.count(&format!("SELECT count(*) {touched} AND complete")), 0);
}
