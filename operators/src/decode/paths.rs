//! The members that a pipeline wants from a document, as a tree, so that one pass finds all.

/// Index of a node of [`Paths`].
pub(super) type NodeId = usize;

/// What is wanted at one place of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Members to follow.
    pub(super) members: Vec<(String, NodeId)>,
    /// Where the value at this place goes.
    pub(super) slot: Option<usize>,
    /// Every slot at or below this place.
    pub(super) below: Vec<usize>,
    /// The array to explode is at this place.
    pub(super) explode: bool,
    /// The array to explode is at or below this place.
    pub(super) explode_below: bool,
}

/// The tree; node 0 is the document (or element) itself.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    nodes: Vec<Node>,
    slots: usize,
}

/// The node of the document itself.
pub(super) const ROOT: NodeId = 0;

impl Paths {
    /// A tree in which nothing is wanted.
    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::default()], slots: 0 }
    }

    /// Wants the value at `path`; the slot that it goes to, the same for the same path.
    pub(super) fn want(&mut self, path: &[String]) -> usize {
        let line = self.line(path);
        let last = line[line.len() - 1];
        if let Some(slot) = self.nodes[last].slot {
            return slot;
        }
        let slot = self.slots;
        self.slots += 1;
        self.nodes[last].slot = Some(slot);
        for node in line {
            self.nodes[node].below.push(slot);
        }
        slot
    }

    /// Wants the elements of the array at `path`.
    pub(super) fn want_elements(&mut self, path: &[String]) {
        let line = self.line(path);
        self.nodes[line[line.len() - 1]].explode = true;
        for node in line {
            self.nodes[node].explode_below = true;
        }
    }

    /// The nodes from the root along `path`, made where they are not there yet.
    fn line(&mut self, path: &[String]) -> Vec<NodeId> {
        let mut line = vec![ROOT];
        let mut node = ROOT;
        for key in path {
            let known = self.nodes[node].members.iter().find(|(k, _)| k == key);
            node = match known {
                Some((_, next)) => *next,
                None => {
                    let next = self.nodes.len();
                    self.nodes.push(Node::default());
                    self.nodes[node].members.push((key.clone(), next));
                    next
                }
            };
            line.push(node);
        }
        line
    }

    /// A node.
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The member `key` of a node, if anything is wanted from it.
    pub(super) fn member(&self, id: NodeId, key: &[u8]) -> Option<NodeId> {
        self.nodes[id].members.iter().find(|(k, _)| k.as_bytes() == key).map(|(_, next)| *next)
    }

    /// Number of nodes.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Number of slots.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }
}
