//! Queries at the limit of their memory while a device publishes: each is right or says what to do,
//! everything is acknowledged, and the windows appear meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{ColdChain, Device, Home, Reading, tidegate, windows_of};

/// Readings that are there before the queries begin, and that they are about.
const FIRST: i64 = 340;
/// The least that a query may have.
const MEMORY: &str = "32MiB";
/// Each query is to have been answered so often while the device publishes.
const ANSWERS: usize = 2;
/// For that a machine may take so long.
const PATIENCE: Duration = Duration::from_secs(600);

/// A query of `FIRST` times as many texts as there are readings: more than fits into [`MEMORY`].
fn wide(what: &str, rest: &str) -> String {
    let first = format!("(SELECT seq FROM cold_chain.readings WHERE seq < {FIRST})");
    let text = format!("lpad(CAST(a.seq * {FIRST} + b.seq AS VARCHAR), 500, 'x')");
    format!("SELECT {what} FROM (SELECT {text} AS t FROM {first} a CROSS JOIN {first} b) {rest}")
}

/// Queries, each with what it is to answer; without it, it is to be stopped.
fn queries() -> [(String, Option<String>); 3] {
    let all_but_one = FIRST * FIRST - 1;
    let up = wide("t", &format!("ORDER BY t OFFSET {all_but_one}"));
    let down = wide("t", &format!("ORDER BY t DESC OFFSET {all_but_one}"));
    // Digits come before letters.
    let (last, first) = (format!("t\n{:x>500}\n", 9), format!("t\n{:x>500}\n", 100_000));
    [(up, Some(last)), (down, Some(first)), (wide("array_agg(t)", ""), None)]
}

/// Asks again and again, until there is enough; counts the answers.
fn ask(home: &Home, query: &str, answer: Option<&str>, asked: &AtomicUsize, enough: &AtomicBool) {
    while !enough.load(Ordering::SeqCst) {
        let mut command = tidegate();
        command.arg("sql").arg("--data").arg(home.data()).args(["--memory-max", MEMORY]);
        let output = command.args(["-o", "csv", query]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        match answer {
            Some(answer) => assert_eq!(String::from_utf8_lossy(&output.stdout), answer, "{said}"),
            None => {
                assert!(
                    said.contains("stopped: the statement needs more than 32 MiB of memory"),
                    "{said}"
                );
                assert!(said.contains("Ask for less") && !output.status.success(), "{said}");
            }
        }
        asked.fetch_add(1, Ordering::SeqCst);
    }
}

fn readings(seqs: std::ops::Range<i64>) -> Vec<Reading> {
    seqs.map(|seq| Reading::regular("north", "d1", seq, 1_000)).collect()
}

#[test]
fn heavy_queries_do_not_stop_a_device() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let instance = home.start();
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    let mut publish = |readings: &[Reading]| {
        let messages = readings.iter().map(|r| (r.topic(), r.payload()));
        let messages: Vec<(String, String)> = messages.collect();
        let all = messages.iter().map(|(topic, payload)| (topic.as_str(), payload.clone()));
        assert_eq!(device.publish_all(all).unwrap(), readings.len(), "all are acknowledged");
    };
    let mut all = readings(0..FIRST);
    publish(&all);
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", FIRST);

    let (enough, queries) = (Arc::new(AtomicBool::new(false)), queries());
    let asked: Vec<AtomicUsize> = queries.iter().map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        // Also if something fails below.
        let ends = Ends(Arc::clone(&enough));
        let (home, enough) = (&home, &*enough);
        let mut asking = Vec::new();
        for ((query, answer), asked) in queries.iter().zip(&asked) {
            let answer = answer.as_deref();
            asking.push(scope.spawn(move || ask(home, query, answer, asked, enough)));
        }
        let deadline = Instant::now() + PATIENCE;
        while asked.iter().any(|n| n.load(Ordering::SeqCst) < ANSWERS) {
            let more = readings(all.len() as i64..all.len() as i64 + 60);
            publish(&more);
            all.extend(more);
            assert!(Instant::now() < deadline, "the queries are not answered: {asked:?}");
            assert!(asking.iter().all(|query| !query.is_finished()), "a query failed");
            std::thread::sleep(Duration::from_millis(100));
        }
        let minutes = all.len() as i64 / 60 - 1;
        home.wait_for_windows(minutes, &windows_of(&all, minutes));
        drop(ends);
    });
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", all.len() as i64);
    instance.stop();
}

/// Ends the queries.
struct Ends(Arc<AtomicBool>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
