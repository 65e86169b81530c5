//! Who wants which topics: a tree by topic level.
//!
//! All edges of the tree are in one hash table, keyed by parent and level, so that a device with
//! a filter of its own costs two entries and no table of its own. Finding the subscribers of a
//! topic looks at no filter that differs from it before a wildcard.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::interest::Interest;
use super::types::Subscription;

/// Quality and options of a subscription, as in a SUBSCRIBE: QoS in bits 0 and 1, no-local in
/// bit 2, retain-as-published in bit 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Options(pub(super) u8);

impl Options {
    pub(super) fn of(subscription: &Subscription) -> Self {
        let Subscription { qos, no_local, retain_as_published, .. } = subscription;
        Self(qos & 3 | u8::from(*no_local) << 2 | u8::from(*retain_as_published) << 3)
    }

    pub(super) fn qos(self) -> u8 {
        (self.0 & 3).min(2)
    }

    pub(super) fn no_local(self) -> bool {
        self.0 & 4 != 0
    }

    pub(super) fn retain_as_published(self) -> bool {
        self.0 & 8 != 0
    }
}

/// A session's subscription at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) slot: u32,
    /// Subscription identifier, 0 if none.
    pub(super) identifier: u32,
    pub(super) options: Options,
}

/// Members of a shared subscription.
#[derive(Debug, Default)]
pub(super) struct Group {
    members: Vec<Entry>,
    /// Whose turn it is.
    next: usize,
}

impl Group {
    /// The member to get a message: in turns among those with the lowest rank.
    pub(super) fn choose(&mut self, rank: impl Fn(&Entry) -> Option<u8>) -> Option<Entry> {
        let (n, mut best) = (self.members.len(), None);
        for i in 0..n {
            let at = (self.next + i) % n;
            let Some(rank) = rank(&self.members[at]) else { continue };
            if best.is_none_or(|(lowest, _)| rank < lowest) {
                best = Some((rank, at));
            }
            if rank == 0 {
                break;
            }
        }
        let (_, at) = best?;
        self.next = (at + 1) % n;
        Some(self.members[at])
    }
}

/// No node (the root is nobody's child).
const NONE: u32 = 0;

#[derive(Debug, Default)]
struct Node {
    /// Edges to children, wildcards included.
    children: u32,
    /// The child for `+`, or `NONE`.
    plus: u32,
    /// The child for `#`, or `NONE`.
    hash: u32,
    /// Sorted by slot.
    here: Vec<Entry>,
    groups: BTreeMap<Box<str>, Group>,
}

impl Node {
    fn is_unused(&self) -> bool {
        self.children == 0 && self.here.is_empty() && self.groups.is_empty()
    }
}

/// Who gets a message.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// A session is in here once for each of its filters that match.
    pub(super) entries: Vec<Entry>,
    /// Nodes with groups, for [`Tree::groups`].
    pub(super) nodes: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Tree {
    edges: HashMap<Box<[u8]>, u32>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// A key for `edges` in the making.
    key: Vec<u8>,
    interest: Arc<Interest>,
}

impl Tree {
    pub(super) fn new() -> Self {
        let nodes = vec![Node::default()];
        let interest = Arc::default();
        Self { edges: HashMap::new(), nodes, free: Vec::new(), key: Vec::new(), interest }
    }

    /// What publishers ask without the lock; kept up to date by the tree.
    pub(super) fn interest(&self) -> Arc<Interest> {
        Arc::clone(&self.interest)
    }

    /// Enters a subscription to a valid filter (without group); returns what it replaces.
    pub(super) fn insert(
        &mut self,
        group: Option<&str>,
        filter: &str,
        entry: Entry,
    ) -> Option<Entry> {
        let mut at = 0;
        for level in filter.as_bytes().split(|b| *b == b'/') {
            at = self.child_or_new(at, level);
        }
        let node = &mut self.nodes[at as usize];
        let list = match group {
            None => &mut node.here,
            Some(group) => {
                let groups = &mut node.groups;
                if !groups.contains_key(group) {
                    groups.insert(group.into(), Group::default());
                }
                &mut groups.get_mut(group).expect("it was put there").members
            }
        };
        match list.binary_search_by_key(&entry.slot, |e| e.slot) {
            Ok(i) => Some(std::mem::replace(&mut list[i], entry)),
            Err(i) => {
                if list.is_empty() {
                    // Most filters have one subscriber.
                    list.reserve_exact(1);
                }
                list.insert(i, entry);
                self.interest.add(filter);
                None
            }
        }
    }

    /// Takes a subscription out.
    pub(super) fn remove(&mut self, group: Option<&str>, filter: &str, slot: u32) -> Option<Entry> {
        let mut path = vec![(0, &b""[..])];
        for level in filter.as_bytes().split(|b| *b == b'/') {
            let at = self.child(path[path.len() - 1].0, level)?;
            path.push((at, level));
        }
        let node = &mut self.nodes[path[path.len() - 1].0 as usize];
        let removed = match group {
            None => take(&mut node.here, slot),
            Some(name) => {
                let group = node.groups.get_mut(name)?;
                let removed = take(&mut group.members, slot);
                if group.members.is_empty() {
                    node.groups.remove(name);
                }
                removed
            }
        };
        if removed.is_some() {
            self.interest.remove(filter);
        }
        while let [.., (parent, _), (at, level)] = path[..] {
            if !self.nodes[at as usize].is_unused() {
                break;
            }
            self.unlink(parent, at, level);
            path.pop();
        }
        removed
    }

    /// Collects who subscribes to a topic.
    pub(super) fn matching(&mut self, topic: &[u8], matches: &mut Matches) {
        matches.entries.clear();
        matches.nodes.clear();
        let mut key = std::mem::take(&mut self.key);
        self.walk(0, Some(topic), &mut key, matches);
        self.key = key;
    }

    /// The groups at a node.
    pub(super) fn groups(&mut self, node: u32) -> impl Iterator<Item = &mut Group> {
        self.nodes[node as usize].groups.values_mut()
    }

    /// Depth is bounded by that of the tree, which is bounded by what a valid filter is.
    fn walk(&self, at: u32, rest: Option<&[u8]>, key: &mut Vec<u8>, matches: &mut Matches) {
        let node = &self.nodes[at as usize];
        // A wildcard at the start does not match topics that begin with `$` (4.7.2-1).
        let wild = at != 0 || rest.is_none_or(|topic| topic.first() != Some(&b'$'));
        if node.hash != NONE && wild {
            // `a/#` matches `a` as well (4.7.1.2).
            self.collect(node.hash, matches);
        }
        let Some(rest) = rest else { return self.collect(at, matches) };
        let (level, rest) = match memchr::memchr(b'/', rest) {
            Some(i) => (&rest[..i], Some(&rest[i + 1..])),
            None => (rest, None),
        };
        if node.plus != NONE && wild {
            self.walk(node.plus, rest, key, matches);
        }
        let wildcards = u32::from(node.plus != NONE) + u32::from(node.hash != NONE);
        if node.children > wildcards {
            edge_key(key, at, level);
            if let Some(&child) = self.edges.get(&key[..]) {
                self.walk(child, rest, key, matches);
            }
        }
    }

    fn collect(&self, at: u32, matches: &mut Matches) {
        let node = &self.nodes[at as usize];
        matches.entries.extend_from_slice(&node.here);
        if !node.groups.is_empty() {
            matches.nodes.push(at);
        }
    }

    fn child(&mut self, at: u32, level: &[u8]) -> Option<u32> {
        let node = &self.nodes[at as usize];
        let child = match level {
            b"+" => node.plus,
            b"#" => node.hash,
            level => {
                edge_key(&mut self.key, at, level);
                self.edges.get(&self.key[..]).copied().unwrap_or(NONE)
            }
        };
        (child != NONE).then_some(child)
    }

    fn child_or_new(&mut self, at: u32, level: &[u8]) -> u32 {
        if let Some(child) = self.child(at, level) {
            return child;
        }
        let child = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            u32::try_from(self.nodes.len() - 1).expect("subscriptions are bounded far below")
        });
        let node = &mut self.nodes[at as usize];
        node.children += 1;
        match level {
            b"+" => node.plus = child,
            b"#" => node.hash = child,
            level => {
                edge_key(&mut self.key, at, level);
                self.edges.insert(self.key[..].into(), child);
            }
        }
        child
    }

    fn unlink(&mut self, parent: u32, child: u32, level: &[u8]) {
        self.nodes[child as usize] = Node::default();
        self.free.push(child);
        let node = &mut self.nodes[parent as usize];
        node.children -= 1;
        match level {
            b"+" => node.plus = NONE,
            b"#" => node.hash = NONE,
            level => {
                edge_key(&mut self.key, parent, level);
                self.edges.remove(&self.key[..]);
            }
        }
    }

    /// Nodes in use beside the root.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.nodes.len() - 1 - self.free.len()
    }
}

fn edge_key(key: &mut Vec<u8>, parent: u32, level: &[u8]) {
    key.clear();
    key.extend_from_slice(&parent.to_ne_bytes());
    key.extend_from_slice(level);
}

fn take(list: &mut Vec<Entry>, slot: u32) -> Option<Entry> {
    let i = list.binary_search_by_key(&slot, |e| e.slot).ok()?;
    Some(list.remove(i))
}
