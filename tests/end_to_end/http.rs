//! Readings by HTTP while the process is killed again and again: what was answered with 202 is in
//! the table, and what was sent again under its key is there once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_pipelines::examples;

use crate::support::{Home, Instance, Rng, eventually, say, tidegate};

const PIPELINE: &str = r#"name = "tanks"
[source]
type = "http"
listen = "127.0.0.1:0"
tokens = { gateway = "${file:TOKEN}" }
[reading]
device = "device"
time = "received"
fields = { seq = "int64" }
[[table]]
from = "readings"
freshness = "1s"
"#;

const CLIENTS: usize = 8;
/// Of each client, at least: it goes on until all kills are over.
const REQUESTS: usize = 80;
/// Messages of one request: some more than a page of the journal holds.
const MESSAGES: usize = 40;
const KILLS: usize = 4;

fn start(home: &Home) -> Instance {
    let mut command = home.run_command(2);
    // So often that keys are found in checkpoints, and not in the journal alone.
    home.start_http(command.args(["--checkpoint-every", "300ms"]))
}

fn home() -> Home {
    let home = Home::with("");
    let token = home.write("token", "secret\n");
    let pipeline = PIPELINE.replace("TOKEN", &token.display().to_string());
    home.write("pipelines/one.toml", &pipeline);
    home
}

/// The lines of request `r` of client `c`.
fn body(c: usize, r: usize) -> String {
    let line = |i: usize| format!("{{\"device\":\"d{c}\",\"seq\":{}}}\n", r * MESSAGES + i);
    (0..MESSAGES).map(line).collect()
}

/// The newest checkpoint.
fn checkpoint(home: &Home) -> Option<String> {
    let files = std::fs::read_dir(home.data().join("checkpoints")).unwrap();
    let names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with("checkpoint-") && n.ends_with(".json")).max()
}

/// What became of each request: see [`Client::deliver`].
type Delivered = Arc<Mutex<Vec<(usize, bool)>>>;

struct Client {
    http: reqwest::Client,
    address: Arc<Mutex<Option<SocketAddr>>>,
}

impl Client {
    fn new(address: &Arc<Mutex<Option<SocketAddr>>>) -> Self {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        Self { http, address: Arc::clone(address) }
    }

    /// One try: the status and the answer, or nothing if the connection broke.
    async fn send(&self, key: &str, body: String) -> Option<(u16, String)> {
        let address = (*self.address.lock().unwrap())?;
        let request = self.http.post(format!("http://{address}/ingest/tanks")).body(body);
        let request = request.bearer_auth("secret").header("idempotency-key", key);
        let response = request.header("content-type", "application/x-ndjson").send().await.ok()?;
        let status = response.status().as_u16();
        Some((status, response.text().await.ok()?))
    }

    /// Sends until it is taken; how often it was sent in vain, and whether the last answer said
    /// that it had been taken before.
    async fn deliver(&self, key: &str, body: String) -> (usize, bool) {
        let mut in_vain = 0;
        loop {
            let up = self.address.lock().unwrap().is_some();
            match self.send(key, body.clone()).await {
                Some((202, answer)) => return (in_vain, answer.contains("\"duplicate\":true")),
                Some((429 | 503, _)) | None => tokio::time::sleep(Duration::from_millis(5)).await,
                Some((status, answer)) => panic!("{status}: {answer}"),
            }
            in_vain += usize::from(up);
        }
    }

    /// Delivers one request after the other until all kills are over; how many.
    async fn go_on(self, c: usize, killed: Arc<AtomicBool>, delivered: Delivered) -> usize {
        let mut sent = 0;
        while sent < REQUESTS || !killed.load(Ordering::Acquire) {
            let outcome = self.deliver(&format!("{c}-{sent}"), body(c, sent)).await;
            delivered.lock().unwrap().push(outcome);
            sent += 1;
        }
        sent
    }
}

#[test]
fn a_key_that_is_sent_again_after_kills_is_taken_once() {
    let home = home();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = Arc::new(Mutex::new(None));
    let delivered = Delivered::default();
    let killed = Arc::<AtomicBool>::default();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|c| {
            let client = Client::new(&address);
            runtime.spawn(client.go_on(c, Arc::clone(&killed), Arc::clone(&delivered)))
        })
        .collect();
    let mut rng = Rng(31);
    let mut instance = start(&home);
    let part = CLIENTS * REQUESTS / (KILLS + 1);
    for kill in 0..KILLS {
        *address.lock().unwrap() = Some(instance.http());
        eventually("answers", || {
            let so_far = delivered.lock().unwrap().len();
            if so_far >= kill * part + part / 2 { Ok(()) } else { Err(so_far.to_string()) }
        });
        std::thread::sleep(Duration::from_millis(rng.below(100)));
        instance.kill();
        *address.lock().unwrap() = None;
        instance = start(&home);
    }
    killed.store(true, Ordering::Release);
    *address.lock().unwrap() = Some(instance.http());
    let requests: Vec<(usize, usize)> = runtime.block_on(async {
        let mut all = Vec::new();
        for (c, client) in clients.into_iter().enumerate() {
            let sent = client.await.expect("a client failed");
            all.extend((0..sent).map(|r| (c, r)));
        }
        all
    });
    let all = (requests.len() * MESSAGES) as i64;
    home.wait_for_count("SELECT count(DISTINCT device || '/' || seq) FROM readings", all);
    // The checkpoint after the next one has begun after all that, so nothing of it is replayed.
    for _ in 0..2 {
        let newest = checkpoint(&home);
        eventually("a checkpoint", || match checkpoint(&home) > newest {
            true => Ok(()),
            false => Err(format!("{newest:?}")),
        });
    }
    instance.kill();
    let instance = start(&home);
    *address.lock().unwrap() = Some(instance.http());
    // Every request once more.
    let client = Client::new(&address);
    let again: BTreeSet<bool> = requests
        .iter()
        .map(|&(c, r)| runtime.block_on(client.deliver(&format!("{c}-{r}"), body(c, r))).1)
        .collect();
    assert_eq!(again, BTreeSet::from([true]), "each is answered as a duplicate");
    let (status, _) = runtime.block_on(client.send("0-0", "{}".into())).unwrap();
    assert_eq!(status, 422, "the same key with another body is a mistake");
    instance.stop();
    assert_eq!(home.count("SELECT count(*) FROM readings"), all, "nothing is there twice");
    let keys = "SELECT count(*) FROM system.sessions WHERE event = 'request'";
    assert_eq!(home.count(keys), requests.len() as i64);
    let delivered = delivered.lock().unwrap();
    let more: usize = delivered.iter().map(|(in_vain, _)| in_vain).sum();
    let known = delivered.iter().filter(|(_, duplicate)| *duplicate).count();
    say(&format!("{KILLS} kills: {more} requests sent again, {known} of them had been taken"));
    assert!(more > 0, "no kill hit a request: the test shows nothing");
}

/// Idempotency keys are saved when a checkpoint is asked for, before anything else of it.
#[test]
fn a_checkpoint_that_cannot_be_written_is_not_the_last_one_in_silence() {
    let home = home();
    let mut instance = start(&home);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = Client::new(&Arc::new(Mutex::new(Some(instance.http()))));
    runtime.block_on(client.deliver("key", body(0, 0)));
    eventually("a checkpoint", || checkpoint(&home).ok_or_else(|| instance.said()));
    let checkpoints = home.data().join("checkpoints");
    std::fs::rename(&checkpoints, home.data().join("elsewhere")).unwrap();
    let status = eventually("the end", || instance.try_ended().ok_or_else(|| instance.said()));
    assert!(!status.success());
    eventually("the reason", || match instance.said() {
        said if said.contains("cannot write a checkpoint") => Ok(()),
        said => Err(said),
    });
    std::fs::rename(home.data().join("elsewhere"), &checkpoints).unwrap();
    start(&home).stop();
    assert_eq!(home.count("SELECT count(*) FROM readings"), MESSAGES as i64);
}

#[test]
fn the_examples_pass_their_own_tests() {
    for (name, text) in examples::WAYS_IN {
        let home = Home::with("");
        let file = home.write(name, text);
        let output = tidegate().arg("test").arg(&file).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
    }
}
