//! Intake under load: the endpoint beside mosquitto, the subscriber beside one that only counts,
//! the time from PUBLISH to PUBACK, and the memory of idle connections. All in one run.
//!
//! `cargo bench --bench intake -- [--parts endpoint,subscriber,latency,idle] [--messages N]`
//! Needs Debian's `mosquitto` for what is compared with it; says so where it is missing.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[path = "folder.rs"]
mod folder;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "workload/generate.rs"]
mod generate;
#[path = "intake/wire.rs"]
mod wire;

use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tidegate_runtime::engine::{Engine, EngineOptions};
use tidegate_runtime::journal::{AppendFile, Disk, Storage};
use tidegate_runtime::memory::allocator;

use folder::Folder;
use generate::Workload;
use wire::Packets;

/// No progress for this long ends a measurement.
const STUCK: Duration = Duration::from_secs(10);
const IDLE_CONNECTIONS: usize = 20_000;

fn main() -> Result<()> {
    // As the product's binary does for itself.
    let unset = allocator::unset();
    if !unset.is_empty() {
        let mut again = Command::new(std::env::current_exe()?);
        let status = again.args(std::env::args_os().skip(1)).envs(unset).status()?;
        ensure!(status.success(), "the bench failed");
        return Ok(());
    }
    let mut parts = "endpoint,subscriber,latency,idle".to_owned();
    let mut messages = 1_000_000;
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--parts" => parts = value,
            "--messages" => messages = value.parse()?,
            "--hold" => return hold(value.parse()?, arguments.next().context("a count")?.parse()?),
            _ => bail!("unknown option {name}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for part in parts.split(',') {
        match part {
            "endpoint" => endpoint(&runtime, messages)?,
            "subscriber" => subscriber(&runtime, messages)?,
            "latency" => latency(&runtime)?,
            "idle" => idle()?,
            _ => bail!("unknown part {part}"),
        }
    }
    Ok(())
}

/// Messages of `batch` readings each, `readings` in all.
fn messages(readings: u64, batch: usize) -> Result<Vec<(String, Vec<u8>)>> {
    let mut lines = Vec::new();
    let standard = Workload::STANDARD;
    let workload = Workload { lines: standard.lines.max(readings), ..standard };
    workload.write(readings + readings / 100, &mut lines)?;
    // One broken line would make a reject of all readings of its message.
    let whole = |line: &&[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok();
    let good = lines.split(|b| *b == b'\n').filter(whole);
    let good: Vec<&[u8]> = good.take(readings as usize).collect();
    let message = |lines: &[&[u8]]| {
        let device = String::from_utf8_lossy(&lines[0][11..19]).into_owned();
        let payload = match lines {
            [one] => one.to_vec(),
            many => [&b"{\"samples\":["[..], &many.join(&b','), b"]}"].concat(),
        };
        (format!("site/a/dev/{device}/telemetry"), payload)
    };
    Ok(good.chunks(batch).map(message).collect())
}

/// The job W1 on messages of one or many readings.
fn pipeline(source: &str, batch: usize) -> String {
    let explode = if batch > 1 { "explode = \"samples\"\n" } else { "" };
    format!(
        "name = \"bench\"\n[source]\n{source}\ntopics = [\"site/+/dev/+/telemetry\"]\n\
         [reading]\ndevice = \"device\"\ntime = {{ field = \"ts\", format = \"ms\" }}\n\
         disorder = \"5s\"\nfuture_bound = \"10000d\"\npayload_max = \"1MiB\"\n{explode}\
         [reading.fields]\ntemperature = \"float64\"\nstatus = \"string\"\n\
         [[step]]\nname = \"ok_only\"\ntype = \"filter\"\nwhere = \"status = 'ok'\"\n\
         [[step]]\nname = \"result\"\ntype = \"window\"\nfrom = \"ok_only\"\nevery = \"10s\"\n\
         late = \"table\"\nselect = {{ n = \"count(*)\", avg = \"avg(temperature)\", \
         sd = \"stddev_pop(temperature)\" }}\n[[table]]\nfrom = \"result\"\n"
    )
}

const ENDPOINT: &str = "type = \"endpoint\"\nlisten = \"127.0.0.1:0\"\npacket_max = \"1MiB\"";

async fn start(source: &str, batch: usize, folder: &Folder, sync: Duration) -> Result<Engine> {
    let files = [(PathBuf::from("bench.toml"), pipeline(source, batch))];
    let none = |kind: &str, name: &str| Err(format!("no {kind}:{name} in a bench"));
    let plan = tidegate_pipelines::load(&files, &none).map_err(|problems| {
        anyhow::anyhow!(problems.iter().map(|p| p.to_string()).collect::<String>())
    })?;
    let mut options = EngineOptions::new(&folder.0);
    options.journal_storage = Arc::new(SlowDisk(sync));
    Engine::start(plan, options).await
}

/// Waits until `done` readings are counted; the time of the last progress, and the count.
fn wait_for_readings(engine: &Engine, done: u64) -> (Instant, u64) {
    let (mut last, mut seen) = (Instant::now(), 0);
    loop {
        let now = engine.stats().snapshot();
        // Some of the workload's values are of the wrong type: those are rejects.
        let counted = now.readings + now.rejects;
        if counted > seen {
            (last, seen) = (Instant::now(), counted);
        }
        if seen >= done || last.elapsed() > STUCK {
            return (last, seen);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes messages in at QoS 1, every PUBACK after the sync.
fn endpoint(runtime: &tokio::runtime::Runtime, readings: u64) -> Result<()> {
    for (batch, publishers) in [(1, 1), (1, 4), (100, 1)] {
        let readings = if batch > 1 { readings * 5 } else { readings };
        let all = messages(readings, batch)?;
        let broker = match Mosquitto::start()? {
            Some(mosquitto) => {
                let seconds = publish_all(mosquitto.addr, &all, 1, publishers)?;
                Some(all.len() as f64 / seconds)
            }
            None => None,
        };
        let folder = Folder::new("endpoint")?;
        let engine = runtime.block_on(start(ENDPOINT, batch, &folder, Duration::ZERO))?;
        let addr = engine.endpoint_addr().context("an endpoint")?;
        let begin = Instant::now();
        let seconds = publish_all(addr, &all, 1, publishers)?;
        let (last, counted) = wait_for_readings(&engine, readings);
        let processed = (last - begin).as_secs_f64();
        runtime.block_on(engine.shutdown())?;
        ensure!(counted == readings, "{counted} of {readings} readings");
        let rate = all.len() as f64 / seconds;
        println!(
            "endpoint qos=1 batch={batch} publishers={publishers} messages_s={rate:.0} \
             readings_s={:.0} mosquitto_s={} ratio={}",
            readings as f64 / processed,
            broker.map_or("none".into(), |b| format!("{b:.0}")),
            broker.map_or("none".into(), |b| format!("{:.2}", rate / b)),
        );
    }
    Ok(())
}

/// Publishes on several connections; seconds until all is acknowledged.
fn publish_all(
    to: SocketAddr,
    all: &[(String, Vec<u8>)],
    qos: u8,
    publishers: usize,
) -> Result<f64> {
    let share = all.len().div_ceil(publishers);
    let mut ready = Vec::new();
    for (i, part) in all.chunks(share).enumerate() {
        ready.push((wire::connect(to, &format!("bench-{i}"))?, Packets::encode(part, qos)));
    }
    let begin = Instant::now();
    let threads: Vec<_> = ready
        .into_iter()
        .map(|(stream, mut packets)| std::thread::spawn(move || packets.publish(stream)))
        .collect();
    for thread in threads {
        thread.join().expect("publishers do not panic")?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Takes messages from mosquitto, beside a subscriber that only counts.
fn subscriber(runtime: &tokio::runtime::Runtime, readings: u64) -> Result<()> {
    for (qos, batch) in [(0, 1), (1, 1), (0, 100), (1, 100)] {
        let readings = if batch > 1 { readings * 5 } else { readings / 2 };
        let all = messages(readings, batch)?;
        let Some(mosquitto) = Mosquitto::start()? else { return Ok(()) };
        let counter = wire::subscribe(mosquitto.addr, qos)?;
        let n = all.len() as u64;
        let begin = Instant::now();
        let counting = std::thread::spawn(move || wire::count(counter, n));
        publish_all(mosquitto.addr, &all, qos, 1)?;
        let (counted, last) = counting.join().expect("counters do not panic")?;
        let ceiling = counted as f64 / (last - begin).as_secs_f64();
        drop(mosquitto);

        let Some(mosquitto) = Mosquitto::start()? else { return Ok(()) };
        let folder = Folder::new("subscriber")?;
        let source = format!("type = \"mqtt\"\nurl = \"mqtt://{}\"\nqos = {qos}", mosquitto.addr);
        let engine = runtime.block_on(start(&source, batch, &folder, Duration::ZERO))?;
        let patience = Instant::now();
        while engine.unhealthy().is_some() && patience.elapsed() < STUCK {
            std::thread::sleep(Duration::from_millis(10));
        }
        let begin = Instant::now();
        publish_all(mosquitto.addr, &all, qos, 1)?;
        let (last, processed) = wait_for_readings(&engine, readings);
        let rate = (processed / batch as u64) as f64 / (last - begin).as_secs_f64();
        runtime.block_on(engine.shutdown())?;
        println!(
            "subscriber qos={qos} batch={batch} messages_s={rate:.0} readings_s={:.0} \
             counting_s={ceiling:.0} ratio={:.2} received={processed}/{readings} counted={counted}",
            rate * batch as f64,
            rate / ceiling
        );
        ensure!(qos == 0 || processed == readings, "{processed} of {readings} readings");
    }
    Ok(())
}

/// The time from PUBLISH to PUBACK at 10,000 messages a second, with slower and slower disks.
fn latency(runtime: &tokio::runtime::Runtime) -> Result<()> {
    const RATE: u64 = 10_000;
    const SECONDS: u64 = 5;
    let all = messages(RATE * SECONDS, 1)?;
    for sync_ms in [0, 1, 5, 20] {
        let folder = Folder::new("latency")?;
        let sync = Duration::from_millis(sync_ms);
        let engine = runtime.block_on(start(ENDPOINT, 1, &folder, sync))?;
        let addr = engine.endpoint_addr().context("an endpoint")?;
        let mut packets = Packets::encode(&all, 1);
        let stream = wire::connect(addr, "bench-latency")?;
        let mut times = wire::latencies(stream, &mut packets, RATE, SECONDS)?;
        runtime.block_on(engine.shutdown())?;
        times.sort_unstable();
        let at = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e3;
        println!(
            "latency messages_s={RATE} added_sync_ms={sync_ms} p50_ms={:.2} p99_ms={:.2} \
             max_ms={:.2}",
            at(0.5),
            at(0.99),
            at(0.999_99)
        );
    }
    Ok(())
}

/// The memory of a process with many connections that say nothing. Other processes hold the other
/// ends, because one process may not have that many descriptors.
fn idle() -> Result<()> {
    let folder = Folder::new("idle")?;
    let file = folder.0.join("idle.toml");
    std::fs::write(&file, pipeline(ENDPOINT, 1))?;
    let mut server = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg("run")
        .arg(&file)
        .arg("--data")
        .arg(folder.0.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let result = idle_on(&mut server);
    server.kill()?;
    server.wait()?;
    result
}

fn idle_on(server: &mut Child) -> Result<()> {
    let mut said = BufReader::new(server.stderr.take().context("piped")?).lines();
    let addr: SocketAddr = loop {
        let line = said.next().context("it ended before it was ready")??;
        if let Some((_, after)) = line.split_once("endpoint listening on ") {
            let text = after.split_whitespace().next().unwrap_or_default();
            break text.trim_end_matches(',').parse()?;
        }
    };
    std::thread::spawn(move || said.for_each(drop));
    let before = rss_mb(server.id())?;
    // What this process may have open, it inherits to the server: leave it room for its files.
    let open_max = open_files_max()?;
    let connections = IDLE_CONNECTIONS.min(open_max.saturating_sub(200));
    if connections < IDLE_CONNECTIONS {
        println!("idle: this system allows {open_max} open files, so {connections} connections");
    }
    let mut holders = Vec::new();
    let mut left = connections;
    while left > 0 {
        let n = left.min(5_000);
        let holder = Command::new(std::env::current_exe()?)
            .args(["--hold", &addr.to_string(), &n.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        holders.push(holder);
        left -= n;
    }
    for holder in &mut holders {
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().context("piped")?).read_line(&mut line)?;
        ensure!(line.trim() == "held", "a holder said {line:?}");
    }
    std::thread::sleep(Duration::from_secs(2));
    let after = rss_mb(server.id())?;
    println!(
        "idle connections={connections} rss_mb={after} before_mb={before} \
         bytes_each={:.0}",
        (after.saturating_sub(before) * 1_000_000) as f64 / connections as f64
    );
    for mut holder in holders {
        drop(holder.stdin.take());
        holder.wait()?;
    }
    Ok(())
}

/// In a child: opens connections and holds them until standard input ends.
fn hold(to: SocketAddr, count: usize) -> Result<()> {
    let id = std::process::id();
    let held: Vec<TcpStream> =
        (0..count).map(|i| wire::connect(to, &format!("idle-{id}-{i}"))).collect::<Result<_>>()?;
    println!("held");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    drop(held);
    Ok(())
}

fn rss_mb(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024 / 1_000_000)
}

fn open_files_max() -> Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find(|l| l.starts_with("Max open files")).context("no limit")?;
    let soft = line.split_whitespace().nth(3).context("no soft limit")?;
    Ok(soft.parse().unwrap_or(usize::MAX))
}

/// A broker with neither disk nor limits.
struct Mosquitto {
    child: Child,
    addr: SocketAddr,
    _folder: Folder,
}

impl Mosquitto {
    fn start() -> Result<Option<Self>> {
        let folder = Folder::new("mosquitto")?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = folder.0.join("mosquitto.conf");
        std::fs::write(
            &config,
            format!(
                "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\n\
                 max_inflight_messages 0\nmax_queued_messages 0\nmax_queued_bytes 0\n\
                 log_dest none\n",
                addr.port()
            ),
        )?;
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let child = match Command::new("mosquitto").env("PATH", path).arg("-c").arg(config).spawn()
        {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("!!!! mosquitto is not installed: nothing to compare with");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let broker = Self { child, addr, _folder: folder };
        let patience = Instant::now();
        while TcpStream::connect(addr).is_err() {
            ensure!(patience.elapsed() < STUCK, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(broker))
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The local disk, whose syncs take longer.
struct SlowDisk(Duration);

struct SlowFile(Box<dyn AppendFile>, Duration);

impl Storage for SlowDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        Ok(Box::new(SlowFile(Disk.create(path)?, self.0)))
    }
    fn open(&self, path: &Path, len: u64) -> io::Result<Box<dyn AppendFile>> {
        Ok(Box::new(SlowFile(Disk.open(path, len)?, self.0)))
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        Disk.sync_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
}

impl AppendFile for SlowFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.append(bytes)
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn sync(&mut self) -> io::Result<()> {
        if !self.1.is_zero() {
            std::thread::sleep(self.1);
        }
        self.0.sync()
    }
}
