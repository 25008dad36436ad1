//! A radix tree over bytes that is built once and never changed: one walk down meets every key that the path begins
//! with, however many keys there are.
//!
//! Each node knows the smallest row below it, so that a walk ends where nothing better can follow.

use std::collections::VecDeque;

use super::{NONE, Row};

/// How the bytes of a path are compared with those of the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Case {
    /// As they are.
    #[default]
    Sensitive,
    /// The keys are lower-cased, and so is each byte of a path (ASCII).
    Ignored,
}

/// Keys with the place of each.
#[derive(Debug, Default)]
pub(super) struct Tree {
    case: Case,
    /// The root comes first, the children of a node next to each other and behind it.
    nodes: Vec<Node>,
    /// The first byte of each node's label, by node: siblings are found without touching them.
    firsts: Vec<u8>,
    /// Of all nodes, one after the other.
    labels: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// Where its part of the key begins in `labels`.
    label: u32,
    label_bytes: u32,
    first_child: u32,
    children: u16,
    /// The smallest row here or below.
    smallest: Row,
    /// What the key that ends here leads to; [`NONE`] when none does.
    place: u32,
}

/// A key, the place it leads to, and the smallest row there.
pub(super) type Key<'k> = (&'k [u8], u32, Row);

/// A node whose children are still to be made: those of the `keys` from `from` to before `to`, which have their first
/// `depth` bytes in common.
struct Pending {
    node: usize,
    from: usize,
    to: usize,
    depth: usize,
}

impl Tree {
    /// Of `keys`, which are sorted and unique, and lower-cased where case is ignored.
    pub(super) fn new(case: Case, keys: &[Key<'_>]) -> Self {
        let mut tree = Self { case, ..Self::default() };
        if keys.is_empty() {
            return tree;
        }
        tree.push(&[]);
        // A queue and no recursion: keys may be nested as deep as there are rows.
        let mut queue = VecDeque::from([Pending { node: 0, from: 0, to: keys.len(), depth: 0 }]);
        while let Some(pending) = queue.pop_front() {
            tree.grow(keys, pending, &mut queue);
        }
        for parent in (0..tree.nodes.len()).rev() {
            let node = tree.nodes[parent];
            let first = node.first_child as usize;
            let below = tree.nodes[first..first + usize::from(node.children)].iter().map(|child| child.smallest).min();
            tree.nodes[parent].smallest = node.smallest.min(below.unwrap_or(NONE));
        }
        tree
    }

    fn push(&mut self, label: &[u8]) -> usize {
        let place = self.nodes.len();
        let node = Node {
            label: offset(self.labels.len()),
            label_bytes: offset(label.len()),
            first_child: 0,
            children: 0,
            smallest: NONE,
            place: NONE,
        };
        self.nodes.push(node);
        self.firsts.push(label.first().copied().unwrap_or_default());
        self.labels.extend_from_slice(label);
        place
    }

    fn grow(&mut self, keys: &[Key<'_>], pending: Pending, queue: &mut VecDeque<Pending>) {
        let Pending { node, mut from, to, depth } = pending;
        // Sorted: the key that ends here is the first one.
        if let Some((key, place, smallest)) = keys[from..to].first()
            && key.len() == depth
        {
            (self.nodes[node].place, self.nodes[node].smallest) = (*place, *smallest);
            from += 1;
        }
        self.nodes[node].first_child = offset(self.nodes.len());
        while from < to {
            let byte = keys[from].0[depth];
            let end = from + keys[from..to].partition_point(|(key, ..)| key[depth] == byte);
            let (first, last) = (&keys[from].0[depth..], &keys[end - 1].0[depth..]);
            let common = first.iter().zip(last).take_while(|(first, last)| first == last).count();
            let child = self.push(&first[..common]);
            self.nodes[node].children += 1;
            queue.push_back(Pending { node: child, from, to: end, depth: depth + common });
            from = end;
        }
    }

    /// Shows to `visit` the place of each key that `path` begins with, from the shortest to the longest, and how long
    /// the key is. Stops where no row is smaller than what `visit` said last, at first `bound`.
    pub(super) fn walk(&self, path: &[u8], mut bound: Row, mut visit: impl FnMut(u32, usize) -> Row) {
        let Some(mut node) = self.nodes.first() else { return };
        let mut at = 0;
        loop {
            if node.smallest >= bound {
                return;
            }
            if node.place != NONE {
                bound = visit(node.place, at);
            }
            let Some(child) = self.child(node, &path[at..]) else { return };
            at += child.label_bytes as usize;
            node = child;
        }
    }

    /// The child whose whole label `rest` begins with.
    fn child(&self, node: &Node, rest: &[u8]) -> Option<&Node> {
        let first = match self.case {
            Case::Sensitive => *rest.first()?,
            Case::Ignored => rest.first()?.to_ascii_lowercase(),
        };
        let start = node.first_child as usize;
        let siblings = &self.firsts[start..start + usize::from(node.children)];
        let child = &self.nodes[start + siblings.iter().position(|byte| *byte == first)?];
        let label = child.label as usize;
        let label = &self.labels[label..label + child.label_bytes as usize];
        let part = rest.get(..label.len())?;
        let same = match self.case {
            Case::Sensitive => part == label,
            Case::Ignored => part.eq_ignore_ascii_case(label),
        };
        same.then_some(child)
    }
}

/// Nodes and labels are counted in 32 bits: 4 GB of paths do not fit into a configuration file.
fn offset(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
