//! Which file holds the newest state of which key group: what makes checkpoints incremental.
//!
//! Invariant ([`Holdings::parts`]): every group of every operator is counted in exactly one file,
//! that of the newest cut in which it changed. Cuts must be applied in order of their epochs and
//! none may be left out, because the next one leaves out what did not change since.

use std::collections::BTreeMap;

use tidegate_operators::GroupSet;
use tidegate_operators::key::KEY_GROUPS;

use super::manifest::{PartRef, runs};

/// Files of one operator beyond which it is worth to write all of its state again.
const FILES_MAX: usize = 24;

/// Bytes that may lie unused beside those in use, whatever the share.
const WASTE_BYTES_FREE: u64 = 1 << 20;

/// The files of all operators.
#[derive(Clone, Debug, Default)]
pub struct Holdings(BTreeMap<String, Vec<Held>>);

#[derive(Clone, Debug)]
struct Held {
    part: PartRef,
    groups: GroupSet,
}

impl Holdings {
    /// What a manifest says.
    pub fn of(parts: &[PartRef]) -> Self {
        let mut holdings = Self::default();
        for part in parts {
            let held = Held { groups: part.group_set(), part: part.clone() };
            holdings.0.entry(part.operator.clone()).or_default().push(held);
        }
        holdings
    }

    /// Takes a file of a newer cut: its groups count there from now on.
    pub fn apply(&mut self, part: PartRef) {
        let groups = part.group_set();
        let files = self.0.entry(part.operator.clone()).or_default();
        for held in files.iter_mut() {
            let mut left = GroupSet::default();
            left.extend(held.groups.iter().filter(|group| !groups.contains(*group)));
            held.groups = left;
        }
        files.retain(|held| !held.groups.is_empty());
        if !groups.is_empty() {
            files.push(Held { part, groups });
        }
    }

    /// Keeps the operators for which `keep` says so.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|operator, _| keep(operator));
    }

    /// The files for a manifest, each with the groups that count.
    pub fn parts(&self) -> Vec<PartRef> {
        let held = self.0.values().flatten();
        held.map(|h| PartRef { groups: runs(&h.groups), ..h.part.clone() }).collect()
    }

    /// Whether so much of the files is out of date that the next cut should be a whole one.
    pub fn is_scattered(&self) -> bool {
        let (mut all_bytes, mut used_bytes) = (0, 0);
        for held in self.0.values().flatten() {
            let used = held.groups.iter().count() as u64;
            let written = u64::from(held.part.written.clamp(1, KEY_GROUPS));
            all_bytes += held.part.bytes;
            used_bytes += held.part.bytes * used / written;
        }
        all_bytes > 2 * used_bytes + WASTE_BYTES_FREE
            || self.0.values().any(|files| files.len() > FILES_MAX)
    }

    /// Rows in the files; those out of date are counted in proportion.
    pub fn rows(&self) -> u64 {
        let rows = |held: &Held| {
            let written = u64::from(held.part.written.clamp(1, KEY_GROUPS));
            held.part.rows * held.groups.iter().count() as u64 / written
        };
        self.0.values().flatten().map(rows).sum()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.0.values().flatten().map(|held| held.part.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn part(operator: &str, number: usize, groups: &[u16]) -> PartRef {
        let mut set = GroupSet::default();
        set.extend(groups.iter().copied());
        PartRef {
            operator: operator.into(),
            file: format!("{number}"),
            bytes: 1000,
            crc32: 0,
            rows: 10,
            written: groups.len() as u16,
            groups: runs(&set),
        }
    }

    proptest! {
        #[test]
        fn every_group_counts_in_the_file_of_its_newest_cut(
            cuts in prop::collection::vec(
                (0usize..3, prop::collection::btree_set(0u16..KEY_GROUPS, 1..200)), 0..40),
        ) {
            let mut holdings = Holdings::default();
            let mut newest = BTreeMap::new();
            for (number, (operator, groups)) in cuts.iter().enumerate() {
                let operator = format!("o{operator}");
                let groups: Vec<u16> = groups.iter().copied().collect();
                holdings.apply(part(&operator, number, &groups));
                for group in groups {
                    newest.insert((operator.clone(), group), format!("{number}"));
                }
                let mut told = BTreeMap::new();
                for part in holdings.parts() {
                    for group in part.group_set().iter() {
                        let before = told.insert((part.operator.clone(), group), part.file.clone());
                        prop_assert_eq!(before, None);
                    }
                }
                prop_assert_eq!(&told, &newest);
                let again = Holdings::of(&holdings.parts());
                prop_assert_eq!(again.parts(), holdings.parts());
            }
        }
    }

    #[test]
    fn files_of_little_use_are_noticed() {
        let mut holdings = Holdings::default();
        let all: Vec<u16> = (0..KEY_GROUPS).collect();
        holdings.apply(PartRef { bytes: 8 << 20, ..part("o", 0, &all) });
        assert!(!holdings.is_scattered());
        holdings.apply(PartRef { bytes: 8 << 20, ..part("o", 1, &all[1..]) });
        assert!(!holdings.is_scattered(), "twice as much is borne");
        holdings.apply(PartRef { bytes: 8 << 20, ..part("o", 2, &all[2..]) });
        assert!(holdings.is_scattered());
        holdings.apply(PartRef { bytes: 8 << 20, ..part("o", 3, &all) });
        assert!(!holdings.is_scattered() && holdings.parts().len() == 1);
    }
}
