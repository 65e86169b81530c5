//! Which files the lost entries of a log named, by the epochs in the files' names.
//!
//! Every commit of an application begins with the epoch after the one that its commit before ended
//! with, and all its files bear that first epoch and numbers from 0 on. So files that no entry
//! names are those of a lost one if they begin where a known commit ended and no number is missing
//! or there twice (as where a commit that crashed was done again with other files).

use std::collections::{BTreeMap, BTreeSet};

/// What the name of a file of ours says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which file, of whoever asks.
    pub(super) file: usize,
    /// First epoch of its commit.
    pub(super) first: u64,
    /// Its last epoch.
    pub(super) through: u64,
    /// Its place among the files of the commit.
    pub(super) number: u64,
}

/// What is known of one application's commits.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Epochs with which commits ended.
    pub(super) ends: BTreeSet<u64>,
    /// First and last epochs of files that are named, or were.
    pub(super) named: Vec<(u64, u64)>,
    /// Nothing is asked about epochs up to this one.
    pub(super) floor: u64,
    /// Epochs up to this one are committed.
    pub(super) committed: u64,
    /// The newest entry is lost, so what follows the newest known end is too.
    pub(super) newest_lost: bool,
}

/// What was made of the files that no entry names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Closed {
    /// Files of lost entries.
    pub(super) files: Vec<usize>,
    /// The newest epoch that they reach.
    pub(super) through: u64,
    /// Epochs whose entry is lost and whose files could not be told: first and last.
    pub(super) open: Vec<(u64, u64)>,
}

/// Finds the files of lost entries among `parts`, which no entry names.
pub(super) fn close(known: &Known, parts: Vec<Part>) -> Closed {
    let mut commits: BTreeMap<u64, Vec<Part>> = BTreeMap::new();
    for part in parts.into_iter().filter(|part| part.through <= known.committed) {
        commits.entry(part.first).or_default().push(part);
    }
    let mut closed = Closed::default();
    let mut ends = known.ends.clone();
    ends.insert(0);
    let mut starts: BTreeSet<u64> = known.named.iter().map(|named| named.0).collect();
    for (first, mut parts) in commits {
        parts.sort_by_key(|part| part.number);
        let whole = parts.iter().enumerate().all(|(i, part)| part.number == i as u64);
        let through = parts.iter().map(|part| part.through).max().unwrap_or(0);
        let overlaps = known.named.iter().any(|named| named.0 <= through && first <= named.1);
        if whole && !overlaps && first > 0 && ends.contains(&(first - 1)) {
            closed.files.extend(parts.iter().map(|part| part.file));
            closed.through = closed.through.max(through);
            ends.insert(through);
            starts.insert(first);
        }
    }
    let newest = ends.last().copied().unwrap_or(0);
    if known.newest_lost && newest < known.committed {
        starts.insert(known.committed + 1);
    }
    for start in starts.into_iter().filter(|start| *start > known.floor + 1) {
        let before = ends.range(..start).next_back().copied().unwrap_or(0).max(known.floor);
        if before + 1 < start {
            closed.open.push((before + 1, start - 1));
        }
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(file: usize, (first, through): (u64, u64), number: u64) -> Part {
        Part { file, first, through, number }
    }

    /// Commits 1-4, 5-8, 9-12 and 13-16 were made; the entries of `lost` are gone.
    fn known(lost: &[u64]) -> Known {
        let all = [(1, 4), (5, 8), (9, 12), (13, 16)];
        let named: Vec<_> = all.into_iter().filter(|c| !lost.contains(&c.0)).collect();
        Known {
            ends: named.iter().map(|c| c.1).collect(),
            named,
            committed: 16,
            newest_lost: lost.contains(&13),
            ..Known::default()
        }
    }

    #[test]
    fn one_or_several_lost_entries_are_closed_by_their_files() {
        let closed = close(&known(&[5]), vec![part(0, (5, 8), 0)]);
        assert_eq!(closed, Closed { files: vec![0], through: 8, open: vec![] });
        let files = vec![part(0, (9, 12), 0), part(1, (5, 8), 0)];
        let closed = close(&known(&[5, 9]), files);
        assert_eq!(closed, Closed { files: vec![1, 0], through: 12, open: vec![] });
        // The newest, if no replay reaches it.
        let closed = close(&known(&[13]), vec![part(0, (13, 16), 0)]);
        assert_eq!((closed.files, closed.open), (vec![0], vec![]));
    }

    #[test]
    fn all_files_of_a_commit_come_back_or_none() {
        let spilled = vec![part(0, (5, 6), 0), part(1, (5, 8), 1)];
        assert_eq!(close(&known(&[5]), spilled.clone()).files, [0, 1]);
        // The first is gone: numbers tell.
        let closed = close(&known(&[5]), spilled[1..].to_vec());
        assert_eq!((closed.files, closed.open), (vec![], vec![(5, 8)]));
        // The last is gone: the next commit does not follow.
        assert_eq!(close(&known(&[5]), spilled[..1].to_vec()).open, [(7, 8)]);
        // A commit that crashed left a file behind: which of them counts cannot be told.
        let twice = vec![part(0, (5, 6), 0), part(1, (5, 8), 0)];
        let closed = close(&known(&[5]), twice);
        assert_eq!((closed.files, closed.open), (vec![], vec![(5, 8)]));
    }

    #[test]
    fn what_was_never_committed_stays_out() {
        assert_eq!(close(&known(&[]), vec![part(0, (17, 20), 0)]), Closed::default());
        // Left over from a crash, inside of what is named.
        assert_eq!(close(&known(&[]), vec![part(0, (5, 6), 0)]), Closed::default());
    }

    #[test]
    fn a_commit_may_end_after_its_last_file() {
        let mut known = known(&[]);
        known.named[1] = (5, 7);
        assert_eq!(close(&known, Vec::new()).open, []);
        // Without the entry that says so, it cannot be known.
        known.ends.remove(&8);
        assert_eq!(close(&known, Vec::new()).open, [(5, 8)]);
        known.floor = 8;
        assert_eq!(close(&known, Vec::new()).open, []);
    }
}
