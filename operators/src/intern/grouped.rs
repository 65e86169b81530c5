//! Ids of keys by key group, and sorted by key within one.
//!
//! The keys of a large fleet lie all over memory. So those of a group are brought together before
//! they are compared, which fits into a core's cache, and mostly eight bytes of each are enough:
//! those behind what all of them begin with.

use std::ops::Range;

use super::names::Names;
use crate::key::KEY_GROUPS;

/// The ids of keys by key group.
pub(super) struct Grouped {
    ids: Vec<u32>,
    /// Where the ids of each group end.
    ends: Vec<usize>,
}

impl Grouped {
    pub(super) fn of(names: &Names) -> Self {
        let mut ends = vec![0; usize::from(KEY_GROUPS)];
        names.ids().for_each(|id| ends[usize::from(names.group(id))] += 1);
        let mut all = 0;
        for end in &mut ends {
            // For now, where they begin.
            all += std::mem::replace(end, all);
        }
        let mut ids = vec![0; all];
        for id in names.ids() {
            let end = &mut ends[usize::from(names.group(id))];
            ids[*end] = id;
            *end += 1;
        }
        Self { ids, ends }
    }

    fn range(&self, group: u16) -> Range<usize> {
        let group = usize::from(group);
        group.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[group]
    }

    /// Appends the ids of a group in the order of their keys.
    pub(super) fn sort_into(&self, names: &Names, group: u16, sorted: &mut Vec<u32>) {
        let ids = &self.ids[self.range(group)];
        let mut arena = Vec::new();
        let mut keys = Vec::with_capacity(ids.len());
        for id in ids {
            let from = arena.len();
            arena.extend_from_slice(names.bytes(*id));
            keys.push(Key { head: 0, from, to: arena.len(), id: *id });
        }
        let Some(first) = keys.first() else { return };
        let first = first.from..first.to;
        let common = keys.iter().fold(first.len(), |common, key| {
            let same = arena[first.clone()].iter().zip(&arena[key.from..key.to]);
            same.take(common).take_while(|(a, b)| a == b).count()
        });
        for key in &mut keys {
            key.from += common;
            key.head = head(&arena[key.from..key.to]);
        }
        keys.sort_unstable_by(|a, b| {
            let rest = |key: &Key| &arena[key.from..key.to];
            a.head.cmp(&b.head).then_with(|| rest(a).cmp(rest(b)))
        });
        sorted.extend(keys.iter().map(|key| key.id));
    }
}

/// A key among those of its group.
struct Key {
    /// The first bytes of what is not common to all.
    head: u64,
    from: usize,
    to: usize,
    id: u32,
}

/// The first bytes as a number, which is in the order of bytes.
fn head(bytes: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = bytes.len().min(8);
    head[..len].copy_from_slice(&bytes[..len]);
    u64::from_be_bytes(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::names::NameStore;
    use super::*;

    proptest! {
        #[test]
        fn ids_come_by_group_and_key(
            keys in prop::collection::btree_set(
                (
                    prop::sample::select(vec!["", "a", "site/dev-", "site/dev-000"]),
                    "[ab\0\u{ff}]{0,11}",
                ),
                0..60,
            ),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let mut names = NameStore::default();
            let keys: std::collections::BTreeSet<String> =
                keys.into_iter().map(|(head, tail)| format!("{head}{tail}")).collect();
            let group = |key: &str| (key.len() % 3) as u16 * 100;
            let mut known: Vec<(u16, String, u32)> = keys
                .into_iter()
                .map(|key| (group(&key), key.clone(), names.put(key.as_bytes(), group(&key))))
                .collect();
            for at in removed {
                if !known.is_empty() {
                    let (_, _, id) = known.swap_remove(at.index(known.len()));
                    names.remove(id);
                }
            }
            known.sort();
            let grouped = Grouped::of(&names.names);
            for of in 0..KEY_GROUPS {
                let mut sorted = Vec::new();
                grouped.sort_into(&names.names, of, &mut sorted);
                let expected: Vec<u32> =
                    known.iter().filter(|k| k.0 == of).map(|k| k.2).collect();
                prop_assert_eq!(sorted, expected);
            }
        }
    }
}
