//! What a start refuses before it has touched anything.

use std::path::Path;
use std::process::Command;

use super::faults::publish;
use crate::support::{ColdChain, Home, Instance, eventually, tidegate};

const READINGS: &str = "SELECT count(*) FROM cold_chain.readings";

fn run(home: &Home) -> Command {
    let mut command = home.run_command(1);
    command.args(["--checkpoint-every", "200ms", "--metrics", "127.0.0.1:0"]);
    command
}

/// What a start says that is refused.
fn refused(command: &mut Command) -> String {
    let mut instance = Instance::spawn(command);
    let ended = || instance.try_ended().ok_or("it runs".to_owned());
    let status = eventually("the refusal", ended);
    assert_eq!(status.code(), Some(1), "{}", instance.said());
    eventually("why", || match instance.said() {
        said if said.contains("error: ") => Ok(said),
        said => Err(said),
    })
}

/// A folder whose tables have `0..seqs` of three devices.
fn with_readings(seqs: i64) -> Home {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let instance = home.start_command(&mut run(&home));
    publish(&instance, 0..seqs);
    home.wait_for_count(READINGS, 3 * seqs);
    instance.stop();
    home
}

fn moved(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::rename(from, to).unwrap();
}

#[test]
fn tables_that_are_gone_refuse_the_start_and_none_are_begun_in_their_place() {
    let home = with_readings(50);
    let [tables, away] = ["tables", "away"].map(|name| home.data().join(name));
    moved(&tables, &away);
    let said = refused(&mut run(&home));
    assert!(said.contains("cold_chain.per_minute, cold_chain.readings, "), "{said}");
    assert!(said.contains("are not there") && said.contains("--tables"), "{said}");
    let begun = std::fs::read_dir(&tables).map_or(0, Iterator::count);
    assert_eq!(begun, 0, "a mount would hide what was begun here, or be refused");
    let said = refused(run(&home).arg("--tables").arg(home.data().join("elsewhere")));
    assert!(said.contains("elsewhere: cold_chain.per_minute, "), "{said}");
    // One of them.
    moved(&away, &tables);
    let readings = tables.join("cold_chain/readings");
    moved(&readings, &away);
    let said = refused(&mut run(&home));
    assert!(said.contains("cold_chain.readings is not there"), "{said}");
    assert!(!readings.exists());
    // Without it on purpose.
    let new = home.data().with_file_name("new");
    let mut salvage = tidegate();
    salvage.arg("doctor").arg("data").arg("--data").arg(home.data()).arg("--salvage").arg(&new);
    let output = salvage.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("not there: cold_chain.readings"), "{text}");
    let mut command = tidegate();
    command.arg("run").arg(home.pipelines()).arg("--data").arg(&new).args(["--workers", "1"]);
    home.start_command(&mut command).stop();
    // It is there again.
    moved(&away, &readings);
    let instance = home.start_command(&mut run(&home));
    publish(&instance, 50..60);
    home.wait_for_count(READINGS, 3 * 60);
    instance.stop();
}

#[test]
fn tables_that_are_older_than_their_checkpoint_refuse_the_start() {
    let home = with_readings(50);
    let [tables, older, newer] = ["tables", "older", "newer"].map(|name| home.data().join(name));
    let copied = Command::new("cp").arg("-a").arg(&tables).arg(&older).status().unwrap();
    assert!(copied.success());
    let instance = home.start_command(&mut run(&home));
    publish(&instance, 50..60);
    home.wait_for_count(READINGS, 3 * 60);
    instance.stop();
    moved(&tables, &newer);
    moved(&older, &tables);
    let said = refused(&mut run(&home));
    assert!(said.contains("they are older than their checkpoint: "), "{said}");
    assert!(said.contains("cold_chain.readings has epoch "), "{said}");
    moved(&newer, &tables);
    home.start_command(&mut run(&home)).stop();
    assert_eq!(home.count(READINGS), 3 * 60);
}
