//! A cluster: `tidegate run --cluster` is its leader, `tidegate worker` are the others.

use std::os::unix::process::CommandExt;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tidegate_runtime::engine::cluster::{
    CLUSTER_LOST_EXIT_CODE, ClusterOptions, ClusterSecret, Follower, Over, address_problem,
    addresses_problem,
};

use super::stop::Stop;
use super::{Outcome, files};

/// Before a worker starts anew.
const PAUSE: Duration = Duration::from_millis(200);
/// How timely begins what it says when a connection breaks.
const TIMELY_LOST: &str = "timely communication error:";

/// What `run` needs to lead a cluster.
#[derive(Args, Debug, Default)]
pub(super) struct LeaderArgs {
    /// Lead a cluster: the address of this process, then those of the workers, the same list on
    /// all of them; see `tidegate help worker`
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', value_parser = address)]
    #[arg(requires = "cluster_secret_file")]
    pub(super) cluster: Vec<String>,
    /// File with a secret that all processes of the cluster have
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub(super) cluster_secret_file: Option<PathBuf>,
}

const WORKER_HELP: &str = "\
A cluster is one leader and any number of workers. The leader is `tidegate run`: sources, journal,
tables, alerts and the data folder are there. Workers take part in decoding, windows, detectors and
rules, and keep nothing: they need neither pipeline files nor a disk. The rows are the same, bit for
bit, on any number of processes.

Examples, three machines:
  openssl rand -hex 32 > secret                     once, then copied to all
  tidegate run pipelines/ --workers 4 --cluster a:7000,b:7000,c:7000 --cluster-secret-file secret
  tidegate worker --process 1 --cluster a:7000,b:7000,c:7000 --cluster-secret-file secret
  tidegate worker --process 2 --cluster a:7000,b:7000,c:7000 --cluster-secret-file secret

Each process listens on its own address of the list and connects to all others; the order in which
they are started does not matter. Every process has as many workers as the leader is told. All must
be the same binary.

The secret keeps strangers out; what is said after it is neither encrypted nor signed. Use a private
network (or a VPN), and addresses in it.

If any process goes, nothing is lost: the leader ends with exit code 4 (have it started again, as
with systemd's Restart=on-failure), goes on from its newest checkpoint, and waits for all workers.
A worker never ends by itself: it waits for the next leader. What came in meanwhile is with the
devices and brokers that send it; only the leader acknowledges.";

/// What `worker` is told.
#[derive(Args, Debug)]
#[command(after_help = WORKER_HELP)]
pub(super) struct WorkerArgs {
    /// The addresses of all processes, the leader's first
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', value_parser = address)]
    #[arg(required = true)]
    pub(super) cluster: Vec<String>,
    /// Number of this process: 1 is the second address
    #[arg(long, value_name = "N")]
    pub(super) process: usize,
    /// File with a secret that all processes of the cluster have
    #[arg(long, value_name = "FILE")]
    pub(super) cluster_secret_file: PathBuf,
}

fn address(text: &str) -> Result<String, String> {
    match address_problem(text) {
        Some(problem) => Err(problem),
        None => Ok(text.to_owned()),
    }
}

impl LeaderArgs {
    /// The cluster to lead, if there is one.
    pub(super) fn options(&self) -> anyhow::Result<Option<ClusterOptions>> {
        match &self.cluster_secret_file {
            Some(secret) => options(&self.cluster, secret, Role::Leader).map(Some),
            None => Ok(None),
        }
    }
}

fn options(addresses: &[String], secret: &Path, role: Role) -> anyhow::Result<ClusterOptions> {
    if let Some(problem) = addresses_problem(addresses) {
        anyhow::bail!("--cluster: {problem}");
    }
    let text = files::reference("file", &secret.display().to_string());
    let secret = ClusterSecret::new(&text.map_err(anyhow::Error::msg)?)
        .with_context(|| secret.display().to_string())?;
    let _ = ROLE.set(role);
    Ok(ClusterOptions {
        addresses: addresses.to_vec(),
        secret,
        tell: Arc::new(|text| eprintln!("{text}")),
        on_lost: Arc::new(|why| lost(why)),
        give_up: Arc::default(),
    })
}

/// A start, unless a signal comes while processes wait for each other; none if one came.
pub(super) async fn unless_stopped<T>(
    starting: impl Future<Output = anyhow::Result<T>>,
    stop: &mut Stop,
    give_up: &AtomicBool,
) -> anyhow::Result<Option<T>> {
    let mut starting = pin!(starting);
    tokio::select! {
        biased;
        started = &mut starting => return started.map(Some),
        () = stop.signal() => {}
    }
    give_up.store(true, Ordering::Release);
    match starting.await {
        // It was not waiting any more: the signal counts once it runs.
        Ok(started) => Ok(Some(started)),
        Err(error) => {
            tracing::info!("{error:#}");
            Ok(None)
        }
    }
}

/// `tidegate worker`.
pub(super) fn worker(args: &WorkerArgs) -> Outcome {
    let (process, all) = (args.process, args.cluster.len());
    let cluster = options(&args.cluster, &args.cluster_secret_file, Role::Worker)?;
    if !(1..all).contains(&process) {
        return Err(anyhow::anyhow!(
            "--process {process}: there are {all} addresses, so workers are 1 to {}; 0 is the \
             leader, `tidegate run`",
            all - 1
        )
        .into());
    }
    match (Follower { cluster, process, load: files::load_earlier }).work()? {
        Over::Ended => lost("the leader has ended"),
        Over::Broken(why) => lost(&why),
    }
}

/// What this process is in a cluster.
#[derive(Clone, Copy)]
enum Role {
    Leader,
    Worker,
}

static ROLE: OnceLock<Role> = OnceLock::new();

/// Another process of the cluster is gone: nothing can go on here.
fn lost(why: &str) -> ! {
    static FIRST: AtomicBool = AtomicBool::new(true);
    if !FIRST.swap(false, Ordering::AcqRel) {
        // Several threads notice it; one is enough to end.
        loop {
            std::thread::park();
        }
    }
    if let Some(Role::Leader) = ROLE.get() {
        eprintln!(
            "error: {why}\n hint: nothing that was acknowledged is lost; start it again, the \
             workers wait"
        );
        std::process::exit(CLUSTER_LOST_EXIT_CODE);
    }
    eprintln!("{why}; starting anew");
    std::thread::sleep(PAUSE);
    let error = anew();
    eprintln!("error: cannot start anew: {error}");
    std::process::exit(CLUSTER_LOST_EXIT_CODE)
}

/// Has this process begin from the start: threads of timely cannot be ended in any other way.
/// Returns only if that cannot be.
fn anew() -> std::io::Error {
    // Where the binary was replaced meanwhile, the new one is wanted: the leader will be it, too.
    let program = std::env::current_exe().map(|path| {
        let text = path.display().to_string();
        text.strip_suffix(" (deleted)").map_or(path, PathBuf::from)
    });
    match program {
        Ok(program) => std::process::Command::new(program).args(std::env::args_os().skip(1)).exec(),
        Err(error) => error,
    }
}

/// Of a panic: timely ends its threads in this way when a connection to another process breaks.
pub(crate) fn end_if_lost(panic: &PanicHookInfo<'_>) {
    if ROLE.get().is_some() && panic.payload_as_str().is_some_and(|t| t.starts_with(TIMELY_LOST)) {
        lost("a connection to another process of the cluster broke");
    }
}
