//! Whether an instance is at work on a folder, without taking its lock: the kernel lists the locks
//! that are held. (Trying the lock would refuse an instance that starts at the same moment.)

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The process that holds the lock of `dir`, or that somebody does (0, where it cannot be told).
pub(crate) fn holder(dir: &Path) -> Option<u32> {
    let inode = std::fs::metadata(dir.join("lock")).ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| of_line(line, inode))
}

/// `7: FLOCK  ADVISORY  WRITE 4711 08:01:131090 0 EOF`. Devices are not compared: file systems in
/// layers show other numbers here than to those who ask for a file.
fn of_line(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    let (kind, _, _) = (words.next()?, words.next()?, words.next()?);
    let (process, file) = (words.next()?, words.next()?);
    let same = file.rsplit(':').next()?.parse() == Ok(inode);
    (kind == "FLOCK" && same).then(|| process.parse().unwrap_or(0))
}

/// The process that works on a data folder, and the part of it that it holds.
pub(crate) fn running(data: &Path) -> Option<(PathBuf, u32)> {
    let parts = ["journal", "checkpoints", "outbox"].into_iter().map(|part| data.join(part));
    parts.filter_map(|part| holder(&part).map(|process| (part, process))).next()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_held_lock_is_seen_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None);
        let lock = crate::journal::storage::lock_dir(dir.path()).unwrap();
        assert_eq!(holder(dir.path()), Some(std::process::id()));
        drop(lock);
        assert_eq!(holder(dir.path()), None);
    }
}
