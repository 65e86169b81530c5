//! Several processes on this machine are one cluster: the rows are those of one process, whatever
//! is killed, and on however many processes it goes on.

use std::cell::RefCell;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::faults::{ALERTS, DEVICES, FINDINGS, WINDOWS, publish, sorted};
use super::kill;
use crate::support::{
    ColdChain, Device, Home, Instance, Rng, Scrape, Site, eventually, free_address, get, tidegate,
};

/// "The others notice within seconds."
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// Exit code of a leader that has lost a worker.
const LOST: i32 = 4;

/// The processes beside the leader.
struct Cluster {
    secret: PathBuf,
    addresses: Vec<String>,
    /// By process; none for the leader, and for who was killed.
    workers: RefCell<Vec<Option<Instance>>>,
}

impl Cluster {
    /// Of so many processes, none of which runs.
    fn new(home: &Home, processes: usize) -> Self {
        let secret = home.write("cluster-secret", "none of your business\n");
        let addresses = (0..processes).map(|_| free_address().to_string()).collect();
        let workers = RefCell::new((0..processes).map(|_| None).collect());
        Self { secret, addresses, workers }
    }

    fn worker(&self, process: usize) -> Command {
        self.worker_with(process, &self.secret)
    }

    fn worker_with(&self, process: usize, secret: &Path) -> Command {
        let mut command = tidegate();
        command.args(["worker", "--process", &process.to_string()]);
        command.args(["--cluster", &self.addresses.join(",")]);
        command.arg("--cluster-secret-file").arg(secret);
        command
    }

    fn leader(&self, home: &Home, workers: usize) -> Command {
        let mut command = home.run_command(workers);
        command.args(["--checkpoint-every", "100ms", "--cluster", &self.addresses.join(",")]);
        command.arg("--cluster-secret-file").arg(&self.secret);
        command
    }

    /// Starts the processes that do not run, the leader last, and waits until it listens.
    fn start(&self, home: &Home, workers: usize) -> Instance {
        for (process, worker) in self.workers.borrow_mut().iter_mut().enumerate().skip(1) {
            if let Some(ended) = worker.as_mut().and_then(Instance::try_ended) {
                panic!("worker {process} has ended by itself: {ended}");
            }
            worker.get_or_insert_with(|| Instance::spawn(&mut self.worker(process)));
        }
        home.start_command(&mut self.leader(home, workers))
    }

    fn kill(&self, process: usize) {
        self.workers.borrow_mut()[process].take().expect("it runs").kill();
    }
}

/// Waits for the end of a leader that has lost a worker.
fn notices(leader: Instance) {
    let status = leader.ended(NOTICED_WITHIN);
    assert_eq!(status.code(), Some(LOST), "{status}");
}

fn outcome(home: &Home) -> [Vec<String>; 4] {
    let readings = "SELECT device, seq, time, temperature FROM readings";
    [WINDOWS, FINDINGS, ALERTS, readings].map(|query| sorted(home, query))
}

fn rows_of_one_process() -> [Vec<String>; 4] {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let instance = home.start_with(1);
    for range in [0..107, 107..207, 207..307, 307..357, 357..407, 2_000..2_001] {
        publish(&instance, range);
    }
    instance.stop();
    outcome(&home)
}

#[test]
fn kills_and_other_numbers_of_processes_equal_one_process_bit_for_bit() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    // A worker is killed: the leader ends and says so, the other worker waits.
    let three = Cluster::new(&home, 3);
    let leader = three.start(&home, 2);
    publish(&leader, 0..107);
    three.kill(2);
    notices(leader);
    // The leader is killed: both workers wait for the next one.
    let leader = three.start(&home, 2);
    publish(&leader, 107..207);
    leader.kill();
    let leader = three.start(&home, 1);
    publish(&leader, 207..307);
    leader.stop();
    drop(three);
    // Alone, in the middle of all windows.
    let leader = home.start_with(2);
    publish(&leader, 307..357);
    leader.kill();
    let two = Cluster::new(&home, 2);
    let leader = two.start(&home, 3);
    publish(&leader, 357..407);
    publish(&leader, 2_000..2_001);
    leader.stop();
    let (found, expected) = (outcome(&home), rows_of_one_process());
    assert!(expected.iter().all(|rows| !rows.is_empty()), "nothing to compare: {expected:?}");
    assert_eq!(found, expected);
}

/// A process of three is killed, any of them, while devices publish and commits and checkpoints
/// are under way.
#[test]
fn kills_of_any_process_under_load_lose_nothing_and_double_nothing() {
    let plan = kill::Plan {
        seed: 31,
        readings: 3_000,
        pause: Duration::from_millis(1),
        kills: 4,
        delay_ms_max: 400,
        workers: &[2, 1],
        checkpoint_every: "100ms",
    };
    kill::run(plan, |home: &Home, plan: &kill::Plan, site: &Site| {
        let cluster = Cluster::new(home, 3);
        let mut rng = Rng(plan.seed);
        let mut leader = cluster.start(home, plan.workers[0]);
        for kill in 0..plan.kills {
            site.moved(Some(leader.endpoint()));
            plan.wait_for_kill(kill, &mut rng, site);
            match kill % 3 {
                1 => leader.kill(),
                // The endpoint goes on until the leader has noticed.
                process => {
                    cluster.kill(2 - process / 2);
                    notices(leader);
                }
            }
            site.moved(None);
            leader = cluster.start(home, plan.workers[(kill + 1) % plan.workers.len()]);
        }
        site.moved(Some(leader.endpoint()));
        (leader, cluster)
    });
}

#[test]
fn strangers_are_turned_away_and_what_workers_count_is_counted() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let cluster = Cluster::new(&home, 2);
    let mut command = cluster.leader(&home, 2);
    let leader = Instance::spawn(command.args(["--metrics", "127.0.0.1:0"]));
    let heard = |instance: &Instance, what: &str| {
        eventually(what, || match instance.said() {
            said if said.contains(what) => Ok(()),
            said => Err(said),
        });
    };
    heard(&leader, &format!("waiting for process 1 ({}) of 2", cluster.addresses[1]));
    let mut stray = TcpStream::connect(&cluster.addresses[0]).unwrap();
    stray.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: a browser, lost\r\n\r\n").unwrap();
    let wrong = home.write("wrong-secret", "everybody's business\n");
    let stranger = Instance::spawn(&mut cluster.worker_with(1, &wrong));
    heard(&stranger, "the secret there is another one");
    heard(&leader, "turned away: its secret is another one");
    drop(stranger);
    assert!(leader.address().is_none(), "nobody is let in before all processes are there");
    *cluster.workers.borrow_mut() = vec![None, Some(Instance::spawn(&mut cluster.worker(1)))];
    eventually("the ready line", || leader.address().ok_or_else(|| leader.said()));
    publish(&leader, 0..200);
    home.wait_for_count("SELECT count(*) FROM readings", 200 * DEVICES.len() as i64);
    let (_, text) = get(leader.metrics().unwrap(), "/metrics").unwrap();
    let counted = Scrape::read(&text).samples;
    assert_eq!(counted["tidegate_readings_total"], 200.0 * DEVICES.len() as f64);
    assert_eq!(counted["tidegate_window_rows_total"], 3.0 * DEVICES.len() as f64);
    // Another plan while it runs would need the workers to follow: it is refused.
    let changed = ColdChain::on_endpoint().text().replace("t_max > 50", "t_max > 51");
    home.write("pipelines/one.toml", &changed);
    let mut apply = tidegate();
    apply.arg("apply").arg(home.pipelines()).arg("--data").arg(home.data());
    let output = apply.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("in a cluster, pipelines change at a start only"), "{said}");
    leader.stop();
    let worker = cluster.workers.borrow_mut()[1].take().unwrap();
    heard(&worker, "the leader has ended; starting anew");
}

/// Two endpoints whose addresses only the leader knows are two sources on a worker as well.
#[test]
fn addresses_that_a_worker_does_not_know_do_not_join_sources_there() {
    let names = ["a", "b"];
    let pipeline = |name: &str| {
        format!(
            "name = \"{name}\"\n[source]\ntype = \"endpoint\"\n\
             listen = \"${{env:TIDEGATE_TEST_LISTEN_{name}}}\"\ntopics = [\"{name}/{{device}}\"]\n\
             [reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
             [reading.fields]\nv = \"float64\"\n[[table]]\nfrom = \"readings\"\n"
        )
    };
    let home = Home::with(&pipeline("a"));
    home.write("pipelines/two.toml", &pipeline("b"));
    let cluster = Cluster::new(&home, 2);
    let addresses = names.map(|_| free_address());
    *cluster.workers.borrow_mut() = vec![None, Some(Instance::spawn(&mut cluster.worker(1)))];
    let mut command = cluster.leader(&home, 2);
    for (name, address) in names.iter().zip(addresses) {
        command.env(format!("TIDEGATE_TEST_LISTEN_{name}"), address.to_string());
    }
    let leader = home.start_command(&mut command);
    for (name, address) in names.iter().zip(addresses) {
        let mut device = Device::connect(address, name).unwrap();
        // One by one: runs are dealt to all workers in turn.
        for n in 0..40 {
            let payload = format!(r#"{{"ts": "2026-01-01T00:00:{n:02}Z", "v": {n}}}"#);
            device.publish_all([(format!("{name}/d{n}").as_str(), payload)]).unwrap();
        }
    }
    leader.stop();
    assert_eq!(sorted(&home, "SELECT reason FROM system.rejects"), Vec::<String>::new());
    for name in names {
        home.wait_for_count(&format!("SELECT count(*) FROM {name}.readings"), 40);
    }
}
