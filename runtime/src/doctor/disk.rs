//! `tidegate doctor disk`: how long a sync takes, whether it can be believed, how much room there
//! is, and what kind of file system it is. It writes a file of its own and removes it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::lines::{FileText, change};
use super::report::{Report, Verdicts};
use super::{OnProgress, bytes_text};
use crate::journal::{Disk, Storage};
use crate::open_files;

const VERDICTS: Verdicts = [
    "this disk is fit for a journal",
    "usable; see the warnings",
    "not fit for a journal as it is",
];

/// Group commits that are tried, each of this size: what a busy second of messages makes.
const COMMITS: usize = 200;
const COMMIT_BYTES: usize = 16 << 10;
/// No more time than this is spent on them.
const TIME_MAX: Duration = Duration::from_secs(5);
/// No disk, and no battery-backed cache, is faster than this: then nothing was written.
const BELIEVABLE: Duration = Duration::from_micros(20);
/// Each acknowledgement waits for a sync: beyond this, devices notice.
const SLOW: Duration = Duration::from_millis(50);
/// Descriptors below which an endpoint cannot serve many devices.
const FILES_MIN: u64 = 4096;

/// Where syncs mean something else than on a local disk, and what.
const NETWORK: [&str; 10] =
    ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "fuse.sshfs", "glusterfs", "afs"];
const MEMORY: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];

/// What a run wants of the disk.
#[derive(Clone, Debug)]
pub struct Room {
    /// How large the journal may become, bytes.
    pub journal_bytes_max: u64,
    /// With less free than this nothing is acknowledged, bytes.
    pub disk_reserve_bytes: u64,
    /// The file of settings that says so, if there is one.
    pub settings: Option<FileText>,
}

/// Examines the disk under `dir`, given what a run wants of it. Blocks.
pub fn examine(dir: &Path, wanted: &Room, progress: OnProgress<'_>) -> Report {
    let mut report = Report::new(&format!("disk of {}", dir.display()), VERDICTS);
    if !dir.is_dir() {
        report.fail("folder", "there is no such folder", &["tidegate doctor disk DIR"]);
        return report;
    }
    file_system(&mut report, dir);
    match sync_times(dir, progress) {
        Ok(times) => judge(&mut report, times),
        Err(error) => {
            report.fail(
                "sync",
                &format!("cannot write a test file: {error}"),
                &["let this user write into the folder, or choose another with --data"],
            );
        }
    }
    room(&mut report, dir, wanted);
    descriptors(&mut report);
    report
}

/// Removes the test file, however the examination ends.
struct TestFile(PathBuf);

impl Drop for TestFile {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn sync_times(dir: &Path, progress: OnProgress<'_>) -> std::io::Result<Vec<Duration>> {
    let path = dir.join(format!("doctor-{}.tmp", std::process::id()));
    let test = TestFile(path);
    let mut file = Disk.create(&test.0)?;
    let bytes = vec![0xa5; COMMIT_BYTES];
    let began = Instant::now();
    let mut times = Vec::with_capacity(COMMITS);
    while times.len() < COMMITS && began.elapsed() < TIME_MAX {
        file.append(&bytes)?;
        let begin = Instant::now();
        file.sync()?;
        times.push(begin.elapsed());
        progress("disk", times.len() as u64, COMMITS as u64);
    }
    times.sort_unstable();
    Ok(times)
}

fn judge(report: &mut Report, times: Vec<Duration>) {
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let (median, p99, max) = (at(0.5), at(0.99), at(1.0));
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let text = format!(
        "{} group commits of {} KiB: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        times.len(),
        COMMIT_BYTES >> 10,
        ms(median),
        ms(p99),
        ms(max)
    );
    if median < BELIEVABLE {
        report.warn("sync", &text, &["keep the journal on a disk that honours fsync"]);
        report.means(
            "too fast to be true: a power loss would lose what was acknowledged (a disk in memory, \
             eatmydata, or a virtual disk with cache=unsafe)",
        );
    } else if p99 > SLOW {
        let change = ["a disk with power-loss protection, or one that is not shared"];
        report.warn("sync", &text, &change);
        report.means("every acknowledgement waits for a sync: devices wait as long");
    } else {
        report.ok("sync", &text);
    }
}

fn file_system(report: &mut Report, dir: &Path) {
    let Some(kind) = kind_of(dir) else {
        report.check("file system", "its kind cannot be told here", &[]);
        return;
    };
    let local = ["use a local disk for --data; tables may lie elsewhere with --tables"];
    if MEMORY.contains(&kind.as_str()) {
        report.warn("file system", &format!("{kind}: it is in memory"), &local);
        report.means("a restart of the machine loses the journal, acknowledged or not");
    } else if NETWORK.contains(&kind.as_str()) {
        report.warn("file system", &format!("{kind}: it is on a network"), &local);
        report.means("locks and syncs may not hold there: two instances could run on one folder");
    } else {
        report.ok("file system", &kind);
    }
}

/// The kind of file system that `dir` lies on, by the longest mount point above it.
fn kind_of(dir: &Path) -> Option<String> {
    let dir = std::fs::canonicalize(dir).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    kind_in(&mounts, &dir)
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw`
fn kind_in(mounts: &str, dir: &Path) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for line in mounts.lines() {
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let Some(point) = head.split_whitespace().nth(4) else { continue };
        let point = PathBuf::from(point.replace("\\040", " "));
        let Some(kind) = tail.split_whitespace().next() else { continue };
        let depth = point.components().count();
        // A later mount at the same place hides the earlier one.
        if dir.starts_with(&point) && best.as_ref().is_none_or(|(known, _)| depth >= *known) {
            best = Some((depth, kind.to_owned()));
        }
    }
    best.map(|(_, kind)| kind)
}

fn room(report: &mut Report, dir: &Path, run: &Room) {
    let Some(free) = Disk.free_bytes(dir) else {
        report.check("room", "the system does not tell how much is free", &[]);
        return;
    };
    let used: u64 = std::fs::read_dir(dir.join("journal"))
        .map(|entries| entries.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum())
        .unwrap_or(0);
    let wanted = run.journal_bytes_max.saturating_sub(used);
    let text =
        format!("{} free; the journal may grow by {} more", bytes_text(free), bytes_text(wanted));
    let space = "free some space, or use a larger disk for --data";
    if free < run.disk_reserve_bytes {
        let reserve = bytes_text(run.disk_reserve_bytes);
        report.fail("room", &format!("{text}; disk_reserve is {reserve}"), &[space]);
        report.means("nothing is acknowledged while less than that is free");
    } else if free < wanted.saturating_add(run.disk_reserve_bytes) {
        let fits_mib = (free + used - run.disk_reserve_bytes) >> 20;
        let smaller = format!("journal_max = \"{fits_mib}MiB\"");
        let smaller = settings_line(run, "journal_max", &smaller);
        let changes = [space, smaller.as_str()];
        report.warn("room", &text, &changes[..if fits_mib > 0 { 2 } else { 1 }]);
        report
            .means("if the tables cannot be written for long, the disk is full before the budget");
    } else {
        report.ok("room", &text);
    }
}

/// The line of the settings to change, or what a file of them would say.
fn settings_line(run: &Room, key: &str, new: &str) -> String {
    match &run.settings {
        Some(file) => change(Some(file), "process", key, new),
        None => format!("tidegate.toml, below `[process]`: {new}"),
    }
}

fn descriptors(report: &mut Report) {
    let room = open_files::room();
    let (files, connections) = (room.files(), room.connections());
    let text = format!("{files} at most: room for {connections} connections");
    if files < FILES_MIN {
        let change = ["ulimit -Hn 65536; with systemd: LimitNOFILE=65536"];
        report.warn("open files", &text, &change);
        report.means("each connection of a device needs one; more are refused");
    } else {
        report.ok("open files", &text);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::report::Status;
    use super::*;

    #[test]
    fn the_longest_mount_point_tells_the_kind() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 22 0:40 / /data rw shared:1 - nfs4 nas:/x rw\n\
            31 30 0:41 / /data/my\\040disk rw - tmpfs tmpfs rw\n";
        let kind = |dir: &str| kind_in(mounts, Path::new(dir)).unwrap();
        assert_eq!((kind("/database"), kind("/data/x")), ("ext4".into(), "nfs4".into()));
        assert_eq!(kind("/data/my disk"), "tmpfs");
    }

    #[test]
    fn it_measures_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let room = |journal_bytes_max, disk_reserve_bytes, settings| Room {
            journal_bytes_max,
            disk_reserve_bytes,
            settings,
        };
        let report = examine(dir.path(), &room(1 << 20, 1 << 20, None), &|_, _, _| {});
        assert!(report.passed(), "{}", report.table());
        assert!(report.rows.iter().any(|r| r.measured.contains("p99")), "{}", report.table());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let line = |report: &Report| {
            let row = report.rows.iter().find(|r| r.check == "room").unwrap();
            (row.status, row.change.last().cloned().unwrap_or_default())
        };
        let (status, change) = line(&examine(dir.path(), &room(u64::MAX, 1, None), &|_, _, _| {}));
        assert_eq!(status, Status::Warn);
        assert!(change.starts_with("tidegate.toml, below `[process]`: journal_max = "), "{change}");
        let text = "[process]\nworkers = 1\njournal_max = \"9TiB\"\n".to_owned();
        let file = FileText { path: "etc/tidegate.toml".into(), text };
        let settings = room(u64::MAX, 1, Some(file));
        let (_, change) = line(&examine(dir.path(), &settings, &|_, _, _| {}));
        let at = "etc/tidegate.toml:3: instead of `journal_max = \"9TiB\"`: journal_max = ";
        assert!(change.starts_with(at), "{change}");
        let (status, _) = line(&examine(dir.path(), &room(0, u64::MAX, None), &|_, _, _| {}));
        assert_eq!(status, Status::Fail);
        assert!(!examine(&dir.path().join("none"), &room(0, 0, None), &|_, _, _| {}).passed());
    }

    #[test]
    fn slow_and_unbelievable_syncs_are_told() {
        for (us, word) in [(5, "too fast to be true"), (80_000, "devices wait"), (900, "")] {
            let mut report = Report::new("d", VERDICTS);
            judge(&mut report, vec![Duration::from_micros(us); 10]);
            assert!(report.rows[0].means.contains(word), "{us}");
            assert_eq!(report.rows[0].means.is_empty(), word.is_empty(), "{us}");
        }
    }
}
