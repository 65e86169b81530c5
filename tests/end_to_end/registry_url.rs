//! A registry at a URL: it changes while devices publish, the server fails in every way, and the
//! process is killed. Every window has the limit that the whole history says.

use super::registry::{EVERY, Limits, WINDOWS, csv, pipeline, publish, wait_for};
use crate::support::{Assets, Home, Mood, eventually};

const ALERTS: &str =
    "SELECT count(*) FROM system.alerts WHERE rule = 'registry_unreadable' AND status =";

fn home(url: &str) -> Home {
    let home = Home::with("");
    let token = home.write("token", "canary-of-the-token\n");
    let headers =
        format!("headers = {{ Authorization = \"Bearer ${{file:{}}}\" }}", token.display());
    let place = format!("url = \"{url}\"\nrefresh = \"1s\"\ntimeout = \"2s\"\n{headers}");
    home.write("pipelines/one.toml", &pipeline(&place));
    home
}

/// Waits until the server has given this answer once more.
fn asked(assets: &Assets, status: u16) {
    let count = || assets.answers().iter().filter(|a| a.0 == status).count();
    let before = count();
    eventually("another request", || match count() > before {
        true => Ok(()),
        false => Err(format!("{:?}", assets.answers())),
    });
}

#[test]
fn a_registry_at_a_url_and_kills_give_what_the_whole_history_says() {
    let mut limits: Limits = vec![("d1", None, 10), ("d2", Some(5), 20)];
    let assets = Assets::start(&csv(&limits));
    let home = home(&assets.url);
    let instance = home.start_with(2);
    publish(&instance, 0..WINDOWS * EVERY / 2 + 1);
    wait_for(&home, &limits, WINDOWS / 2);
    asked(&assets, 304);
    // Late changes, of a key that is known, of one that is new, and of one that goes. Half of them
    // is no news.
    let before = limits;
    limits = vec![("d1", None, 10), ("d1", Some(3), 11), ("d3", Some(1), 30)];
    assets.is(Mood::Half);
    assets.has(&csv(&limits));
    asked(&assets, 200);
    asked(&assets, 200);
    wait_for(&home, &before, WINDOWS / 2);
    assets.is(Mood::Elsewhere);
    asked(&assets, 200);
    instance.kill();
    // While nobody looks, and while the server is down: then what was said last holds.
    assets.is(Mood::Broken);
    let instance = home.start_with(1);
    publish(&instance, WINDOWS * EVERY / 2..(WINDOWS + 1) * EVERY);
    limits.push(("d2", Some(15), 22));
    limits.push(("d1", Some(4), 12));
    assets.has(&csv(&limits));
    instance.kill();
    assets.is(Mood::Well);
    let instance = home.start_with(3);
    publish(&instance, (WINDOWS + 1) * EVERY..(WINDOWS + 2) * EVERY);
    wait_for(&home, &limits, WINDOWS);
    instance.stop();
    let token = "Bearer canary-of-the-token";
    assert!(assets.answers().iter().all(|(_, token_sent)| token_sent == token));
}

#[test]
fn a_server_that_is_away_keeps_what_it_said_and_is_told() {
    let mut limits: Limits = vec![("d1", None, 10)];
    let assets = Assets::start(&csv(&limits));
    let home = home(&assets.url);
    assets.is(Mood::Broken);
    let first = home.run_command(1).spawn().unwrap();
    // A server that starts later is waited for.
    asked(&assets, 500);
    asked(&assets, 500);
    let mut first = first;
    assert!(first.try_wait().unwrap().is_none(), "it waits");
    first.kill().unwrap();
    first.wait().unwrap();
    assets.is(Mood::Well);
    let instance = home.start();
    publish(&instance, 0..2 * EVERY + 1);
    assets.is(Mood::Silent);
    home.wait_for_count(&format!("{ALERTS} 'firing'"), 1);
    wait_for(&home, &limits, 2);
    limits = vec![("d1", None, 11), ("d2", None, 7)];
    assets.has(&csv(&limits));
    assets.is(Mood::Well);
    home.wait_for_count(&format!("{ALERTS} 'resolved'"), 1);
    wait_for(&home, &limits, 2);
    instance.stop();
}

#[test]
fn the_first_start_needs_an_answer_and_keeps_secrets() {
    let assets = Assets::start("device;since;high\nd1;;3\n");
    let home = home(&format!("{}?key=canary-of-the-url", assets.url));
    let explained = crate::support::tidegate().arg("explain").arg(home.pipelines()).output();
    let output = home.run_command(1).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    for part in ["registry limits of pipeline p", "http://127.0.0.1", "has the key", "delimiter"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let explained = explained.unwrap();
    let explained = String::from_utf8_lossy(&explained.stdout);
    assert!(explained.contains("asked    every 1s"), "{explained}");
    assert!(!said.contains("canary") && !explained.contains("canary"), "{said}{explained}");
}
