//! Who may join a cluster, and what those are told who may not.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Instant;

use tidegate_pipelines::config::references::unset;

use super::gather::Gathered;
use super::greet::{Hello, call};
use super::wire::Head;
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// An address at which nobody listens, each once. Its port is below those that the system gives to
/// whoever connects or does not ask for one, so that these do not take it before it is used.
fn free_address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let process = u64::from(std::process::id());
    let address = || {
        let number = process * 31 + NEXT.fetch_add(1, Ordering::Relaxed);
        format!("127.0.0.1:{}", 20_000 + number % 12_000)
    };
    std::iter::repeat_with(address).find(|a| TcpListener::bind(a).is_ok()).unwrap()
}

/// A cluster on free ports, and what it tells people.
fn cluster(processes: usize) -> (ClusterOptions, Arc<Mutex<Vec<String>>>) {
    let addresses = (0..processes).map(|_| free_address()).collect();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let options = ClusterOptions {
        addresses,
        secret: ClusterSecret::new("a secret that all of them know").unwrap(),
        tell: Arc::new(move |text| telling.lock().unwrap().push(text.to_owned())),
        on_lost: Arc::new(|_| {}),
        give_up: Arc::default(),
    };
    (options, told)
}

fn text(every: &str) -> String {
    format!(
        r#"
        name = "p"
        [source]
        type = "endpoint"
        listen = "127.0.0.1:0"
        topics = ["{{device}}"]
        [reading]
        device = "{{device}}"
        time = "ts"
        [reading.fields]
        v = "float64"
        [[step]]
        name = "w"
        type = "window"
        every = "{every}"
        select = {{ n = "count(*)" }}
        [[table]]
        from = "w"
        "#
    )
}

pub(super) fn plan(every: &str) -> Plan {
    let files = [("p.toml".into(), text(every))];
    tidegate_pipelines::load(&files, &|_, _| Err(String::new())).unwrap()
}

#[test]
fn endpoints_whose_addresses_are_not_known_here_are_not_one() {
    let sources = |listen: [&str; 2]| {
        let of = |(name, listen): (&str, &str)| {
            let text = text("1m").replace("\"p\"", &format!("\"{name}\""));
            (format!("{name}.toml").into(), text.replace("127.0.0.1:0", listen))
        };
        let files = [("p", listen[0]), ("q", listen[1])].map(of);
        let unset = |kind: &str, name: &str| Ok(unset(kind, name));
        tidegate_pipelines::load(&files, &unset).unwrap().sources.len()
    };
    assert_eq!(sources(["${env:A}", "${env:B}"]), 2);
    assert_eq!(sources(["0.0.0.0:${env:A}", "0.0.0.0:${env:B}"]), 2);
    assert_eq!(sources(["${env:A}", "${env:A}"]), 1);
}

fn other_plan(_: &[(std::path::PathBuf, String)]) -> Option<Plan> {
    Some(plan("2m"))
}

fn gathering(options: &ClusterOptions) -> JoinHandle<anyhow::Result<Gathered>> {
    let options = options.clone();
    std::thread::spawn(move || {
        let plan = plan("1m");
        let ask = Ask::of(&plan, &WorkerPlan::live(&plan, 2, 5, Vec::new())).unwrap();
        gather::gather(&options, &ask)
    })
}

fn hello(process: usize, addresses: &[String], build: &str) -> Hello {
    Hello::Follow { process, addresses: addresses.to_vec(), build: build.to_owned() }
}

/// Calls a leader that may not listen yet; the connection and its first word.
fn called(options: &ClusterOptions, hello: &Hello) -> (std::net::TcpStream, Head) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call(&options.addresses[0], &options.secret, hello) {
            Ok(mut stream) => {
                let (head, _) = wire::read(&mut stream).unwrap();
                return (stream, head);
            }
            Err(error) => assert!(Instant::now() < deadline, "{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn refused(head: Head) -> String {
    match head {
        Head::Refused { why } => why,
        other => panic!("{other:?}"),
    }
}

fn wait_for(told: &Mutex<Vec<String>>, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !told.lock().unwrap().iter().any(|line| line.contains(what)) {
        assert!(Instant::now() < deadline, "{what} was not told: {:?}", told.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_does_not_belong_is_turned_away_with_the_reason_on_both_sides() {
    let (options, told) = cluster(3);
    let gathering = gathering(&options);
    let build = build();
    let addresses = &options.addresses;
    let (_, head) = called(&options, &hello(1, addresses, "version 0"));
    assert!(refused(head).contains("it is version 0, the leader is version"));
    wait_for(&told, "it is version 0");
    let (_, head) = called(&options, &hello(1, &addresses[..2], &build));
    assert!(refused(head).contains("its --cluster is"));
    wait_for(&told, "its --cluster is");
    for process in [0, 3] {
        let (_, head) = called(&options, &hello(process, addresses, &build));
        assert!(refused(head).contains("followers are 1 to 2"));
    }
    // One that belongs is waited with, until another of its number calls.
    let (mut first, head) = called(&options, &hello(1, addresses, &build));
    assert_eq!(head, Head::Ping);
    wait_for(&told, &format!("waiting for process 2 ({}) of 3", addresses[2]));
    let (_later, head) = called(&options, &hello(1, addresses, &build));
    assert_eq!(head, Head::Ping);
    let why = refused(after_pings(&mut first).unwrap());
    assert!(why.contains("another process 1 has called later"), "{why}");
    wait_for(&told, "process 1 at 127.0.0.1 is not waited with any more");
    options.give_up.store(true, Ordering::Release);
    let error = gathering.join().unwrap().err().unwrap().to_string();
    assert!(error.contains("stopped while it waited"), "{error}");
}

#[test]
fn a_plan_that_is_another_one_on_a_follower_is_told_on_both_sides() {
    let (options, told) = cluster(2);
    let gathering = gathering(&options);
    let (mut of_follower, told_there) = cluster(1);
    of_follower.addresses.clone_from(&options.addresses);
    let give_up = Arc::clone(&of_follower.give_up);
    let follower = Follower { cluster: of_follower, process: 1, load: other_plan };
    let working = std::thread::spawn(move || follower.work());
    for told in [&told, &told_there] {
        wait_for(told, "other pipelines here (p)");
    }
    // Both go on waiting: it can be mended.
    assert!(!gathering.is_finished() && !working.is_finished());
    for give_up in [&give_up, &options.give_up] {
        give_up.store(true, Ordering::Release);
    }
    assert!(gathering.join().unwrap().is_err() && working.join().unwrap().is_err());
}

/// What a leader says next beside that it is there.
fn after_pings(stream: &mut std::net::TcpStream) -> std::io::Result<Head> {
    stream.set_read_timeout(Some(PATIENCE))?;
    loop {
        match wire::read(stream)?.0 {
            Head::Ping => {}
            other => return Ok(other),
        }
    }
}

/// Two followers that have called; the second has heard what is to be run, so all were told.
fn welcomed(options: &ClusterOptions) -> [std::net::TcpStream; 2] {
    [1, 2].map(|process| called(options, &hello(process, &options.addresses, &build())).0)
}

#[test]
fn one_that_goes_while_processes_connect_is_noticed_at_once_and_so_is_a_signal() {
    let (options, told) = cluster(3);
    let gathering = gathering(&options);
    let [mut first, second] = welcomed(&options);
    // It neither joins nor refuses: it is still connecting to the other one.
    drop(second);
    wait_for(&told, &format!("process 2 ({}) is gone", options.addresses[2]));
    while after_pings(&mut first).is_ok() {}
    let [_first, _second] = welcomed(&options);
    options.give_up.store(true, Ordering::Release);
    let begun = Instant::now();
    let error = gathering.join().unwrap().err().unwrap().to_string();
    assert!(error.contains("stopped while the processes connected"), "{error}");
    assert!(begun.elapsed() < PATIENCE / 2);
}

#[test]
fn addresses_are_told_apart() {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(addresses_problem(&list("a:1,[::1]:2")), None);
    let many = |all: usize| (0..all).map(|n| format!("a:{n}")).collect::<Vec<_>>();
    assert_eq!(addresses_problem(&many(64)), None);
    assert!(addresses_problem(&many(65)).unwrap().contains("at most 64"));
    for (text, why) in [
        ("a:1", "at least two"),
        ("a:1,a:1", "twice"),
        ("a:1,b", "HOST:PORT"),
        ("a:1,:2", "HOST:PORT"),
        ("a:1,b:70000", "HOST:PORT"),
    ] {
        assert!(addresses_problem(&list(text)).unwrap().contains(why), "{text}");
    }
}
