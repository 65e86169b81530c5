//! What checkpoints cost while all is well, and how long a killed instance takes to be back.
//!
//! `cargo bench --bench recovery -- [--parts cost,kill,journal] [--devices 10000,1000000]
//! [--seconds N] [--megabytes N]`
//! With `TIDEGATE_LONG=1` it fails where what they cost is more than is asked for. In any case it
//! fails where rows are not those of the readings that were acknowledged: after each kill all
//! windows are closed, and their number, their readings and a checksum over them compared.
//! The instance is a process of its own, as it is killed and as its memory is measured. Devices
//! publish at QoS 1 over one connection; a window of 10 s and an alert keep state for each of them.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[path = "folder.rs"]
mod folder;
#[path = "recovery/instance.rs"]
mod instance;
#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "intake/wire.rs"]
mod wire;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tidegate_runtime::engine::{Engine, EngineOptions};
use tidegate_runtime::memory::allocator;
use tidegate_sql::{OutputFormat, QueryOptions, run_query};

use folder::Folder;
use instance::{Instance, Ready, State};
use wire::Packets;

/// Messages that are published in one go.
const PART: usize = 50_000;
/// Event time of the first readings, milliseconds.
const BEGIN_MS: u64 = 1_760_000_000_000;
/// Digits of a time, and what follows it in a payload.
const TIME_BEFORE_END: usize = 14;
/// Time between checkpoints where there are any.
const CHECKPOINT: Duration = Duration::from_secs(10);
/// A journal as large as the acceptance test has it, megabytes.
const JOURNAL_MB: u64 = 1_000;
/// Messages that an instance may note of itself, such as that a device has connected.
const NOTED_MAX: u64 = 16;
/// A window of [`PIPELINE`].
const WINDOW_MS: u64 = 10_000;
/// A gigabyte of journal is read again within so long.
const JOURNAL_MAX: Duration = Duration::from_secs(20);
/// The first message is acknowledged so soon after a start that finds next to nothing.
const FIRST_ACK_MAX: Duration = Duration::from_secs(1);
/// Readings per second of a fleet that is killed; 0 means as fast as it is taken.
const LIVE_RATES: [u64; 2] = [200_000, 0];
/// With checkpoints, throughput is at least so much of that without.
const WITH_CHECKPOINTS_MIN: f64 = 0.9;
/// So long a start takes beside the replay.
const READY_MAX: Duration = Duration::from_secs(10);
/// A replay is at least so many times as fast as the first of [`LIVE_RATES`]: "the live rate" is
/// that of the fleet of the common workload. At full load it is shown and not checked, because a
/// replay does all the work of live but intake, on the same cores.
const TIMES_LIVE_MIN: f64 = 3.0;

const PIPELINE: &str = r#"
name = "bench"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["site/+/dev/+/telemetry"]
[reading]
device = "device"
time = { field = "ts", format = "ms" }
disorder = "5s"
future_bound = "10000d"
[reading.fields]
temperature = "float64"
status = "string"
[[step]]
name = "ok_only"
type = "filter"
where = "status = 'ok'"
[[step]]
name = "per_10s"
type = "window"
from = "ok_only"
every = "10s"
late = "table"
select = { n = "count(*)", t_avg = "avg(temperature)", t_sd = "stddev_pop(temperature)" }
[[alert]]
name = "too-warm"
from = "per_10s"
fire = "t_avg > 50"
clear = "t_avg < 40"
[[table]]
from = "per_10s"
"#;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [child, data, every_ms] = &arguments[..]
        && child == "--child"
    {
        let every = Duration::from_millis(every_ms.parse()?);
        return serve(Path::new(data), every);
    }
    // As the product's binary does for itself.
    let unset = allocator::unset();
    if !unset.is_empty() {
        let mut again = Command::new(std::env::current_exe()?);
        let status = again.args(&arguments).envs(unset).status()?;
        ensure!(status.success(), "the bench failed");
        return Ok(());
    }
    let (mut parts, mut devices) = ("cost,kill,journal".to_owned(), "10000,1000000".to_owned());
    let (mut seconds, mut megabytes) = (25, JOURNAL_MB);
    let mut rest = arguments.into_iter();
    while let Some(name) = rest.next() {
        let value = rest.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--parts" => parts = value,
            "--devices" => devices = value,
            "--seconds" => seconds = value.parse()?,
            "--megabytes" => megabytes = value.parse()?,
            _ => bail!("unknown option {name}"),
        }
    }
    for count in devices.split(',') {
        let fleet = Fleet::new(count.parse()?);
        for part in parts.split(',') {
            match part {
                "cost" => cost(&fleet, Duration::from_secs(seconds))?,
                "kill" => LIVE_RATES.iter().try_for_each(|rate| kill(&fleet, *rate))?,
                "journal" => whole_journal(&fleet, megabytes * 1_000_000)?,
                _ => bail!("unknown part {part}"),
            }
        }
    }
    Ok(())
}

/// Fails, where that is asked for, if something costs more than it may.
fn asked(holds: bool, what: &str) -> Result<()> {
    ensure!(holds || std::env::var("TIDEGATE_LONG").as_deref() != Ok("1"), "{what}");
    Ok(())
}

/// The rate with checkpoints beside the rate without, alternately.
fn cost(fleet: &Fleet, time: Duration) -> Result<()> {
    let mut rates = [0.0; 2];
    let mut with = State::default();
    for _ in 0..2 {
        for (rate, every) in rates.iter_mut().zip([Duration::from_hours(1), CHECKPOINT]) {
            let folder = Folder::new("cost")?;
            let instance = Instance::start(&folder.0, every)?;
            let begin = Instant::now();
            let published = fleet.publish(instance.addr, 0, until(begin + time))?;
            let last = instance.wait_for(published)?;
            *rate += published as f64 / (last - begin).as_secs_f64() / 2.0;
            if every == CHECKPOINT {
                with = instance.state().max(&with);
            }
        }
    }
    println!(
        "cost devices={} readings_s_without={:.0} readings_s_with={:.0} ratio={:.2} \
         checkpoints={} stall_ms={:.2} rows={} written_mb={} took_ms={:.0}",
        fleet.devices,
        rates[0],
        rates[1],
        rates[1] / rates[0],
        with.checkpoints,
        with.stall_us as f64 / 1e3,
        with.rows,
        with.written_bytes / 1_000_000,
        with.took_us as f64 / 1e3,
    );
    let enough = rates[1] >= WITH_CHECKPOINTS_MIN * rates[0];
    asked(enough, "with checkpoints it is slower than it may be")
}

/// Kills an instance that all devices have reported to, about as long after a checkpoint as there
/// is between two, and starts it again.
fn kill(fleet: &Fleet, rate: u64) -> Result<()> {
    let folder = Folder::new("kill")?;
    let instance = Instance::start(&folder.0, CHECKPOINT)?;
    let begin = Instant::now();
    let all = fleet.devices as u64;
    // Until a checkpoint holds all devices, and most of the time to the next one.
    let mut covered: Option<(u64, Instant)> = None;
    let published = fleet.publish(instance.addr, rate, |published| {
        let state = instance.state();
        if covered.is_none() && published >= all && state.readings >= all {
            covered = Some((state.checkpoints, Instant::now()));
        }
        covered.is_some_and(|(before, _)| {
            state.checkpoints > before + 1 && state.age > CHECKPOINT.mul_f64(0.7)
        }) || begin.elapsed() > Duration::from_secs(120)
    })?;
    let live = published as f64 / begin.elapsed().as_secs_f64();
    let state = instance.state();
    drop(instance);
    let instance = Instance::start(&folder.0, CHECKPOINT)?;
    let Ready { seconds, replay_s, messages } = instance.ready;
    ensure!(messages > 0, "nothing was replayed");
    let rows = fleet.check_rows(instance, published)?;
    let replay_rate = messages as f64 / replay_s.max(1e-9);
    println!(
        "kill devices={} live_readings_s={live:.0} state_rows={} ready_s={seconds:.2} \
         replay_s={replay_s:.2} replayed={messages} replay_readings_s={replay_rate:.0} \
         times_live={:.1} {rows}",
        fleet.devices,
        state.rows,
        replay_rate / live,
    );
    let beside = seconds - replay_s;
    asked(beside <= READY_MAX.as_secs_f64(), "a start takes too long beside its replay")?;
    let enough = rate == 0 || replay_rate >= TIMES_LIVE_MIN * rate as f64;
    asked(enough, "the replay is too slow beside what came in")
}

/// How long a start takes that finds a gigabyte of journal and no checkpoint, and how long it is
/// until the first acknowledgement of one that finds next to nothing.
fn whole_journal(fleet: &Fleet, journal_bytes: u64) -> Result<()> {
    const NEVER: Duration = Duration::from_hours(1);
    let folder = Folder::new("journal")?;
    let journal = folder.0.join("journal");
    let instance = Instance::start(&folder.0, NEVER)?;
    let published = fleet.publish(instance.addr, 0, |_| bytes_in(&journal) >= journal_bytes)?;
    drop(instance);
    let bytes = bytes_in(&journal);
    let instance = Instance::start(&folder.0, NEVER)?;
    let Ready { seconds, replay_s, messages } = instance.ready;
    ensure!(
        (published..=published + NOTED_MAX).contains(&messages),
        "{messages} messages were replayed of {published}"
    );
    let rows = fleet.check_rows(instance, published)?;

    let folder = Folder::new("little")?;
    let mut one = Packets::encode(&[(String::from("site/a/dev/1/telemetry"), b"{}".to_vec())], 1);
    let mut begin = || -> Result<Duration> {
        let begin = Instant::now();
        let instance = Instance::start(&folder.0, NEVER)?;
        one.publish(wire::connect(instance.addr, "bench")?)?;
        Ok(begin.elapsed())
    };
    begin()?;
    let first_ack = begin()?;
    println!(
        "journal devices={} journal_mb={} ready_s={seconds:.2} replay_s={replay_s:.2} \
         replayed={messages} first_ack_s={:.2} {rows}",
        fleet.devices,
        bytes / 1_000_000,
        first_ack.as_secs_f64(),
    );
    ensure!(seconds <= JOURNAL_MAX.as_secs_f64(), "it takes longer than {JOURNAL_MAX:?}");
    ensure!(first_ack <= FIRST_ACK_MAX, "the first acknowledgement comes after {first_ack:?}");
    Ok(())
}

/// Bytes of the files in a folder.
fn bytes_in(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum()
}

fn until(end: Instant) -> impl FnMut(u64) -> bool {
    move |_| Instant::now() >= end
}

/// Devices that report one after the other, every `step_ms` of their time.
struct Fleet {
    devices: usize,
    step_ms: u64,
    parts: Mutex<Vec<Packets>>,
}

impl Fleet {
    fn new(devices: usize) -> Self {
        let message = |device: usize| {
            let payload = format!(
                "{{\"device\":\"d-{device:07}\",\"status\":\"ok\",\"temperature\":{:.1},\
                 \"ts\":{BEGIN_MS}}}",
                18.0 + (device % 100) as f64 / 10.0
            );
            (format!("site/a/dev/{device:07}/telemetry"), payload.into_bytes())
        };
        // A part has whole rounds of a small fleet, or a share of a round of a large one.
        let numbers: Vec<usize> = (0..devices.max(PART)).map(|i| i % devices).collect();
        let part = |numbers: &[usize]| {
            Packets::encode(&numbers.iter().map(|d| message(*d)).collect::<Vec<_>>(), 1)
        };
        let parts = Mutex::new(numbers.chunks(PART).map(part).collect());
        assert!(numbers.len().is_multiple_of(devices) && numbers.len().is_multiple_of(PART));
        // As if each had one reading a second, or every five where they are very many.
        Self { devices, step_ms: if devices > 100_000 { 5_000 } else { 1_000 }, parts }
    }

    /// Publishes at most `rate` readings a second (0: as fast as they are taken) until `enough`,
    /// which is asked after each part with the number of readings so far; gives that number.
    fn publish(
        &self,
        to: SocketAddr,
        rate: u64,
        mut enough: impl FnMut(u64) -> bool,
    ) -> Result<u64> {
        let stream: TcpStream = wire::connect(to, "bench")?;
        let mut parts = self.parts.lock().expect("nobody panics");
        let (begin, mut published) = (Instant::now(), 0_u64);
        for turn in 0.. {
            let at = turn % parts.len();
            let packets = &mut parts[at];
            let first = published;
            packets.rewrite(TIME_BEFORE_END, |i| {
                let round = (first + i as u64) / self.devices as u64;
                (BEGIN_MS + round * self.step_ms).to_string()
            });
            packets.publish(stream.try_clone()?)?;
            published += packets.len();
            if enough(published) {
                break;
            }
            if rate > 0 {
                let due = begin + Duration::from_secs_f64(published as f64 / rate as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(published)
    }

    /// Has all windows of the first `published` readings closed, ends the instance, and compares
    /// the rows in its table.
    fn check_rows(&self, instance: Instance, published: u64) -> Result<Rows> {
        let mut stream = wire::connect(instance.addr, "bench")?;
        let rounds = published.div_ceil(self.devices as u64);
        let later = (BEGIN_MS + rounds * self.step_ms + 10 * WINDOW_MS).to_string();
        for packets in self.parts.lock().expect("nobody panics").iter_mut() {
            packets.rewrite(TIME_BEFORE_END, |_| later.clone());
            packets.publish(stream.try_clone()?)?;
        }
        stream.flush()?;
        let data = instance.end()?;
        let (found, wanted) = (Rows::in_table(&data)?, self.rows(published));
        ensure!(found == wanted, "{found} in the table instead of {wanted}");
        Ok(found)
    }

    /// What the first `published` readings make.
    fn rows(&self, published: u64) -> Rows {
        let (mut rows, per_window) = (Rows::default(), WINDOW_MS / self.step_ms);
        for device in 0..self.devices as u64 {
            let readings = published.saturating_sub(device).div_ceil(self.devices as u64);
            for window in 0..readings.div_ceil(per_window) {
                let n = per_window.min(readings - window * per_window);
                rows.add(device, window, n, 180 + device % 100);
            }
        }
        rows
    }
}

/// Rows of the table of windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rows {
    rows: u64,
    readings: u64,
    /// Sum over the rows of a number that each of their values changes.
    checksum: u64,
}

impl Rows {
    /// A row: number of the device, number of the window, its readings, and ten times the mean of
    /// their temperatures.
    fn add(&mut self, device: u64, window: u64, n: u64, t_10: u64) {
        self.rows += 1;
        self.readings += n;
        self.checksum += (device * 1_000_003 + window * 7_919 + n * 101 + t_10) % 1_000_000_007;
    }

    /// The same by SQL, of an instance that has ended. What closed the windows is in none of them.
    fn in_table(data: &Path) -> Result<Self> {
        let query = format!(
            "WITH w AS (SELECT CAST(substr(device, 3) AS BIGINT) AS device, n, \
             (CAST(to_unixtime(window_start) AS BIGINT) * 1000 - {BEGIN_MS}) / {WINDOW_MS} AS w, \
             CAST(round(t_avg * 10) AS BIGINT) AS t FROM bench.per_10s) \
             SELECT count(*), coalesce(sum(n), 0), coalesce(sum( \
             (device * 1000003 + w * 7919 + n * 101 + t) % 1000000007), 0) FROM w"
        );
        let mut out = Vec::new();
        let options = QueryOptions { time_max: None, ..QueryOptions::new(data) };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(run_query(&options, &query, OutputFormat::Csv, &mut out))?;
        let said = String::from_utf8(out)?;
        let last = said.lines().last().unwrap_or_default();
        let numbers: Vec<u64> = last.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let [rows, readings, checksum] = numbers[..] else { bail!("it answered {said}") };
        Ok(Self { rows, readings, checksum })
    }
}

impl std::fmt::Display for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, readings, checksum } = self;
        write!(f, "rows={rows} of_readings={readings} checksum={checksum}")
    }
}

/// In the child: runs the pipeline and says how it is, until it is killed or its input is closed.
fn serve(data: &Path, checkpoint_every: Duration) -> Result<()> {
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let files = [(PathBuf::from("bench.toml"), PIPELINE.to_owned())];
    let none = |kind: &str, name: &str| Err(format!("no {kind}:{name} in a bench"));
    let plan = tidegate_pipelines::load(&files, &none).map_err(|problems| {
        anyhow::anyhow!(problems.iter().map(|p| p.to_string()).collect::<String>())
    })?;
    let options = EngineOptions {
        checkpoint_every,
        // Without checkpoints nothing is trimmed, and nothing may wait for that.
        journal_bytes_max: 64 << 30,
        journal_keep: Duration::ZERO,
        ..EngineOptions::new(data)
    };
    let engine = runtime.block_on(Engine::start(plan, options))?;
    let recovery = engine.recovery().context("a start")?;
    let replay_s = recovery.replayed.map_or(0.0, |replayed| replayed.elapsed.as_secs_f64());
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} {} {replay_s} {}",
        engine.endpoint_addr().context("an endpoint")?,
        started.elapsed().as_secs_f64(),
        recovery.messages()
    )?;
    let closed = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&closed);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        tell.store(true, Ordering::Release);
    });
    while !closed.load(Ordering::Acquire) {
        out.flush()?;
        std::thread::sleep(Duration::from_millis(5));
        let now = engine.stats().snapshot();
        writeln!(
            out,
            "{} {} {} {} {} {} {}",
            now.readings + now.rejects,
            now.checkpoints,
            now.checkpoint_stall_us,
            now.state_rows,
            now.checkpoint_written_bytes,
            now.checkpoint_us,
            now.checkpoint_age_us
        )?;
    }
    runtime.block_on(engine.shutdown()).map(drop)
}
