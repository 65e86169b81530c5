//! How much memory there is to be had: what was asked for, else a share of what the control group
//! allows or the machine has.

use std::path::Path;

use crate::summary::bytes as in_words;

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Most memory of the process, see [`used_bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes; 0 without a budget.
    pub bytes_max: u64,
    /// Where that comes from, for people.
    pub why: String,
}

impl Budget {
    /// What was asked for; else three quarters of what there is: the rest is for the kernel's own
    /// buffers, which a control group counts as well, and for others.
    pub fn of(asked: Option<u64>) -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let machine = std::fs::read_to_string("/proc/meminfo").ok();
        let machine = machine.and_then(|text| kib_of(&text, "MemTotal:"));
        Self::from(asked, group_limit(Path::new(CGROUPS), &own), machine)
    }

    fn from(asked: Option<u64>, group: Option<u64>, machine: Option<u64>) -> Self {
        let share = |bytes: u64| bytes / 4 * 3;
        let (bytes_max, why) = match (asked, group, machine) {
            (Some(0), ..) => (0, "no budget, as asked for"),
            (Some(bytes), ..) => (bytes, "as asked for"),
            (None, Some(group), machine) if machine.is_none_or(|machine| group < machine) => {
                (share(group), "three quarters of what its control group allows")
            }
            (None, _, Some(machine)) => (share(machine), "three quarters of the machine's memory"),
            (None, ..) => (0, "no budget, the system does not say how much there is"),
        };
        Self { bytes_max, why: why.to_owned() }
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bytes_max {
            0 => f.write_str(&self.why),
            bytes => write!(f, "at most {}, {}", in_words(bytes), self.why),
        }
    }
}

/// Resident memory of this process, where `/proc` says it.
pub fn resident_bytes() -> Option<u64> {
    kib_of(&status()?, "VmRSS:")
}

/// What counts against the budget, where `/proc` says it: what is resident, and what is swapped
/// out. What was put out of the way is not free: it comes back as soon as it is asked for.
pub fn used_bytes() -> Option<u64> {
    used_of(&status()?)
}

fn status() -> Option<String> {
    std::fs::read_to_string("/proc/self/status").ok()
}

/// Of the text of `/proc/self/status`. A kernel without swap says nothing of it.
fn used_of(status: &str) -> Option<u64> {
    Some(kib_of(status, "VmRSS:")? + kib_of(status, "VmSwap:").unwrap_or(0))
}

/// The bytes of a line such as `MemTotal: 5 kB`.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The lowest limit of the control groups that a process is in, as `/proc/self/cgroup` names them:
/// those of version 2, and the memory controller of version 1. Above `memory.high` the kernel slows
/// a group down and swaps it out, long before `memory.max` ends it: that is a limit as well.
fn group_limit(root: &Path, own: &str) -> Option<u64> {
    let of = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (mount, files): (_, &[&str]) = match controllers.split(',').any(|c| c == "memory") {
            true => (root.join("memory"), &["memory.limit_in_bytes"]),
            false if controllers.is_empty() => (root.to_owned(), &["memory.max", "memory.high"]),
            false => return None,
        };
        // In a container the path may be that of the host: what is there is its own group.
        let inside = mount.join(path.trim_start_matches('/'));
        let folders = inside.ancestors().take_while(|folder| folder.starts_with(&mount));
        let limits = folders.flat_map(|folder| files.iter().map(|file| folder.join(file)));
        // Nothing at all is no limit to live by: it is set for a moment to have memory given back.
        limits.filter_map(|path| number(&path)).filter(|bytes| *bytes > 0).min()
    };
    own.lines().filter_map(of).min()
}

/// A file with a number; `max` is none.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_asked_for_counts_and_else_a_share_of_what_there_is() {
        let bytes = |asked, group, machine| Budget::from(asked, group, machine).bytes_max;
        assert_eq!(bytes(Some(5), Some(100), Some(100)), 5);
        assert_eq!(bytes(Some(0), Some(100), Some(100)), 0);
        assert_eq!(bytes(None, Some(100), Some(1000)), 75);
        assert_eq!(bytes(None, Some(1 << 60), Some(1000)), 750, "no limit in version 1");
        assert_eq!([bytes(None, None, Some(1000)), bytes(None, None, None)], [750, 0]);
        let said = Budget::from(None, None, Some(4 << 30)).to_string();
        assert_eq!(said, "at most 3.0 GiB, three quarters of the machine's memory");
    }

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/memory.max", "700\n");
        write("a/b/memory.max", "max\n");
        write("memory/c/memory.limit_in_bytes", "900\n");
        let limit = |own: &str| group_limit(root.path(), own);
        assert_eq!(limit("0::/a/b\n"), Some(700));
        assert_eq!(limit("0::/a/b/not-there\n"), Some(700));
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("5:cpu,memory:/c\n4:pids:/a\n0::/\n"), Some(900));
        assert_eq!(limit("5:memory:/c\n0::/a\n"), Some(700));
        write("a/memory.high", "max\n");
        assert_eq!(limit("0::/a/b\n"), Some(700));
        write("a/b/memory.high", "600\n");
        assert_eq!(limit("0::/a/b\n"), Some(600), "slowed down there, long before it is ended");
        assert_eq!(limit("0::/a\n"), Some(700));
        write("a/b/memory.high", "0\n");
        assert_eq!(limit("0::/a/b\n"), Some(700));
    }

    #[test]
    fn what_is_swapped_out_is_not_free() {
        let status = "Name:\ttidegate\nVmRSS:\t  100 kB\nRssAnon:\t 90 kB\nVmSwap:\t   40 kB\n";
        assert_eq!(used_of(status), Some(140 * 1024));
        assert_eq!(used_of("VmRSS:\t  100 kB\n"), Some(100 * 1024), "a kernel without swap");
        assert_eq!(used_of("VmSwap:\t  40 kB\n"), None, "a system that does not say it");
    }

    #[test]
    fn this_process_is_of_a_plausible_size() {
        let bytes = resident_bytes().unwrap();
        assert!((1 << 20..1 << 40).contains(&bytes), "{bytes}");
        assert!(used_bytes().unwrap() >= 1 << 20);
    }
}
