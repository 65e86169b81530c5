//! The built binary as a child process: started on a free port, asked by SQL, stopped or killed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tempfile::TempDir;

use super::{ColdChain, Receiver, START_MS, WindowRow, eventually};

/// One row of an answer, by column.
pub(crate) type Row = Map<String, Value>;

/// The part of the ready line after which the address stands.
const LISTENING: &str = "endpoint listening on ";
/// The same for HTTP.
const HTTP_LISTENING: &str = "http listening on ";

/// The command under test.
pub(crate) fn tidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.stdin(Stdio::null());
    command
}

/// A folder for one test: `pipelines/*.toml` and `data`. Removed at the end.
pub(crate) struct Home {
    dir: TempDir,
}

impl Home {
    /// With one pipeline file.
    pub(crate) fn with(pipeline: &str) -> Self {
        let home = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        std::fs::create_dir(home.pipelines()).unwrap();
        home.write("pipelines/one.toml", pipeline);
        home
    }

    /// With the [`ColdChain`] on the endpoint, whose alerts go to `receiver`.
    pub(crate) fn notifying(receiver: &Receiver) -> Self {
        let home = Self::with("");
        let secret = home.write("webhook-secret", &Receiver::secret());
        let pipeline = ColdChain::on_endpoint().notifying(&receiver.url, &secret);
        home.write("pipelines/one.toml", &pipeline.text());
        home
    }

    /// The same, and the engine's own alerts go there, too.
    pub(crate) fn notifying_of_the_engine(receiver: &Receiver) -> Self {
        let home = Self::notifying(receiver);
        let path = home.pipelines().join("one.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("[notify.ops]\n", "[notify.ops]\nengine = true\n"))
            .unwrap();
        home
    }

    /// Writes a file below this folder and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn pipelines(&self) -> PathBuf {
        self.dir.path().join("pipelines")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `tidegate run` on the pipelines of this folder, not started yet.
    pub(crate) fn run_command(&self, workers: usize) -> Command {
        let mut command = tidegate();
        command.arg("run").arg(self.pipelines()).arg("--data").arg(self.data());
        command.args(["--workers", &workers.to_string()]);
        command
    }

    /// Starts `tidegate run` and waits until its endpoint listens.
    pub(crate) fn start(&self) -> Instance {
        self.start_with(2)
    }

    pub(crate) fn start_with(&self, workers: usize) -> Instance {
        self.start_command(&mut self.run_command(workers))
    }

    /// Starts a [`Home::run_command`] that has got more options.
    pub(crate) fn start_command(&self, command: &mut Command) -> Instance {
        self.start_until(command, Instance::address)
    }

    /// Starts a [`Home::run_command`] of a pipeline that takes HTTP.
    pub(crate) fn start_http(&self, command: &mut Command) -> Instance {
        self.start_until(command, |instance| instance.listening(HTTP_LISTENING))
    }

    fn start_until(
        &self,
        command: &mut Command,
        ready: impl Fn(&Instance) -> Option<SocketAddr>,
    ) -> Instance {
        let mut instance = Instance::spawn(command);
        eventually("the ready line", || {
            let ended = instance.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?} before it was ready");
            ready(&instance).ok_or_else(|| instance.said())
        });
        instance
    }

    /// The rows of a query, or what went wrong.
    pub(crate) fn try_rows(&self, query: &str) -> Result<Vec<Row>, String> {
        let output = self.sql("json", query);
        if !output.status.success() {
            return Err(format!("{query}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        rows_of(&text).map_err(|e| format!("{query}: {e} in {text:?}"))
    }

    pub(crate) fn rows(&self, query: &str) -> Vec<Row> {
        self.try_rows(query).unwrap_or_else(|e| panic!("{e}"))
    }

    /// `tidegate sql` with an output format.
    pub(crate) fn sql(&self, format: &str, query: &str) -> Output {
        let mut command = tidegate();
        command.arg("sql").arg("--data").arg(self.data()).args(["-o", format, query]);
        command.output().expect("the binary starts")
    }

    /// The single integer that a query answers with.
    pub(crate) fn count(&self, query: &str) -> i64 {
        let rows = self.rows(query);
        single_integer(&rows).unwrap_or_else(|| panic!("{query} answered {rows:?}"))
    }

    /// All rows of `cold_chain.per_minute` that end within the first `minutes` minutes, in order.
    pub(crate) fn windows(&self, minutes: i64) -> Result<Vec<WindowRow>, String> {
        let rows = self.try_rows(&format!(
            "SELECT site, device, (to_unixtime(window_start) - {}) / 60 AS minute, n, t_sum, t_max \
             FROM cold_chain.per_minute WHERE to_unixtime(window_end) <= {} \
             ORDER BY site, device, minute, revision",
            START_MS / 1000,
            START_MS / 1000 + minutes * 60
        ))?;
        let text = |r: &Row, c: &str| r[c].as_str().expect("text").to_owned();
        let int = |r: &Row, c: &str| r[c].as_i64().expect("an integer");
        let float = |r: &Row, c: &str| r[c].as_f64().expect("a number");
        let row = |r: &Row| {
            let (minute, n) = (int(r, "minute"), int(r, "n"));
            (text(r, "site"), text(r, "device"), minute, n, float(r, "t_sum"), float(r, "t_max"))
        };
        Ok(rows.iter().map(row).collect())
    }

    /// Asks until the windows of the first `minutes` minutes are exactly the expected ones.
    pub(crate) fn wait_for_windows(&self, minutes: i64, expected: &[WindowRow]) {
        eventually("the windows", || {
            let windows = self.windows(minutes)?;
            if windows == expected { Ok(()) } else { Err(difference(&windows, expected)) }
        });
    }

    /// Asks until the single integer is the expected one.
    pub(crate) fn wait_for_count(&self, query: &str, expected: i64) {
        eventually(&format!("{query} = {expected}"), || {
            match single_integer(&self.try_rows(query)?) {
                Some(n) if n == expected => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

/// The first rows that differ, so that a failure can be read.
fn difference(found: &[WindowRow], expected: &[WindowRow]) -> String {
    let missing: Vec<_> = expected.iter().filter(|r| !found.contains(r)).take(3).collect();
    let surplus: Vec<_> = found.iter().filter(|r| !expected.contains(r)).take(3).collect();
    let (f, e) = (found.len(), expected.len());
    format!("{f} rows instead of {e}; missing {missing:?}, not expected {surplus:?}")
}

fn single_integer(rows: &[Row]) -> Option<i64> {
    match rows {
        [row] if row.len() == 1 => row.values().next()?.as_i64(),
        _ => None,
    }
}

/// An array of objects, or one object per line.
fn rows_of(text: &str) -> Result<Vec<Row>, serde_json::Error> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text);
    }
    text.lines().filter(|l| !l.trim().is_empty()).map(serde_json::from_str).collect()
}

/// A running process; killed when the test ends, however it ends.
pub(crate) struct Instance {
    child: Child,
    stderr: Arc<Mutex<Vec<String>>>,
}

impl Instance {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let pipe = BufReader::new(child.stderr.take().expect("piped above"));
        let lines = Arc::clone(&stderr);
        std::thread::spawn(move || {
            for line in pipe.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, stderr }
    }

    /// Where the endpoint listens, once it has said so.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listening(LISTENING)
    }

    /// Where HTTP is taken, of an instance that is known to be ready.
    pub(crate) fn http(&self) -> SocketAddr {
        self.listening(HTTP_LISTENING).expect("`Home::start_http` waited for it")
    }

    /// Where questions are answered, of an instance that was started with `--metrics`.
    pub(crate) fn metrics(&self) -> Option<SocketAddr> {
        let lines = self.stderr.lock().unwrap();
        let line = lines.iter().find_map(|l| l.strip_prefix("metrics on http://"))?;
        line.strip_suffix("/metrics")?.parse().ok()
    }

    fn listening(&self, what: &str) -> Option<SocketAddr> {
        let lines = self.stderr.lock().unwrap();
        lines.iter().filter(|l| l.contains("ready")).find_map(|line| {
            let (_, after) = line.split_once(what)?;
            after.split_whitespace().next()?.trim_end_matches(',').parse().ok()
        })
    }

    /// The address of an instance that is known to be ready.
    pub(crate) fn endpoint(&self) -> SocketAddr {
        self.address().expect("`Home::start` waited for it")
    }

    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything on standard error so far.
    pub(crate) fn said(&self) -> String {
        self.stderr.lock().unwrap().join("\n")
    }

    /// Sends a signal, such as `INT`.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Ctrl-C, and a clean end.
    pub(crate) fn stop(mut self) {
        self.signal("INT");
        let status = eventually("the end after Ctrl-C", || {
            self.child.try_wait().unwrap().ok_or_else(|| self.said())
        });
        assert!(status.success(), "ended with {status} after Ctrl-C:\n{}", self.said());
    }

    /// How it ended, if it has ended.
    pub(crate) fn try_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the process ends by itself.
    pub(crate) fn ended(mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still runs after {within:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL: nothing is flushed, nothing is said.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it still runs");
        self.child.wait().expect("it was ours");
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Both fail if the process is gone already, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of tidegate ---\n{}", self.said());
        }
    }
}
