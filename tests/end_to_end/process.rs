//! What an operator of the process sees: what a start restored, and how far it is meanwhile.

use crate::support::{ColdChain, Device, Home, Instance, Reading, eventually};

fn publish(instance: &Instance, range: std::ops::Range<i64>) {
    let readings: Vec<Reading> =
        range.map(|seq| Reading::regular("north", "d1", seq, 100)).collect();
    let topic = readings[0].topic();
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    device.publish_all(readings.iter().map(|r| (topic.as_str(), r.payload()))).unwrap();
}

/// The line that says what a start restored.
fn recovered(instance: &Instance) -> String {
    let said = instance.said();
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("recovered: ")).collect();
    let [line] = lines[..] else { panic!("one line was expected: {said}") };
    line.to_owned()
}

/// The number before a word of a line, without its commas.
fn number_before(line: &str, word: &str) -> u64 {
    let before = line.split(word).next().unwrap().trim_end();
    let digits = before.rsplit([' ', '(']).next().unwrap().replace(',', "");
    digits.parse().unwrap_or_else(|_| panic!("no number before {word:?} in {line:?}"))
}

#[test]
fn a_start_says_what_it_restored() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let first = home.start();
    assert!(recovered(&first).starts_with("recovered: nothing, the data folder is new; "));
    publish(&first, 0..100);
    first.stop();
    // No checkpoint comes between the second start and its end: all of it has to be replayed.
    let mut command = home.run_command(2);
    command.args(["--checkpoint-every", "1h"]);
    let second = home.start_command(&mut command);
    let line = recovered(&second);
    assert!(line.starts_with("recovered: checkpoint of epoch "), "{line}");
    assert!(line.contains("nothing to replay"), "a clean stop leaves none: {line}");
    publish(&second, 100..350);
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", 350);
    second.kill();
    let third = home.start();
    let line = recovered(&third);
    // And what the endpoint noted about the connection.
    assert!((250..260).contains(&number_before(&line, " messages")), "{line}");
    let [restored, had] = ["checkpoint of epoch ", "tables had epoch "].map(|before| {
        let after = line.split(before).nth(1).unwrap_or_else(|| panic!("{before:?} in {line}"));
        after.split([' ', ',', ';']).next().unwrap().parse::<u64>().unwrap()
    });
    assert!(restored < had, "what the tables had is after the checkpoint: {line}");
    third.stop();
}

#[test]
fn a_long_replay_says_how_far_it_is() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let mut command = home.run_command(1);
    command.args(["--checkpoint-every", "1h"]);
    let first = home.start_command(&mut command);
    // Each in an epoch of its own, more or less: those are what the second start is slow at.
    for seq in 0..50 {
        publish(&first, seq..seq + 1);
    }
    first.kill();
    let second = home.start_command(command.env("TIDEGATE_FAULT", "slow:replay:1+"));
    let said = second.said();
    let progress: Vec<&str> =
        said.lines().filter(|l| l.starts_with("replaying the journal: ")).collect();
    assert!(!progress.is_empty(), "{said}");
    let so_far: Vec<u64> = progress.iter().map(|l| number_before(l, " of ")).collect();
    assert!(so_far.is_sorted() && so_far[0] > 0, "{said}");
    let replayed = number_before(&recovered(&second), " messages");
    assert!(replayed >= 50, "{said}");
    assert!(progress.iter().all(|l| l.contains(&format!(" of {replayed} messages, "))), "{said}");
    assert!(progress.iter().any(|l| l.contains(" left")), "{said}");
    second.stop();
}

#[test]
fn a_second_instance_is_told_who_is_there() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let first = home.start();
    let mut second = Instance::spawn(&mut home.run_command(1));
    let status = eventually("the refusal", || second.try_ended().ok_or_else(|| second.said()));
    assert_eq!(status.code(), Some(1));
    let holder = format!("(process {})", first.id());
    eventually("why", || match second.said() {
        said if said.contains("another Tidegate is running on ") && said.contains(&holder) => {
            Ok(())
        }
        said => Err(said),
    });
    // And the first goes on.
    publish(&first, 0..3);
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", 3);
    first.stop();
}
