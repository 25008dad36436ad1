//! The order in which endpoints take their turns: a plain rotation, or earliest deadline first for unequal weights.
//!
//! Pure. Only [`super::pick`](fn@super::pick) reads it.
//!
//! Earliest deadline first (Envoy's `EdfScheduler`): an endpoint of weight `w` has its turns at `1/w, 2/w, ...`, so
//! that of each `sum of weights` turns exactly `w` are its own. The deadlines are kept as fractions: nothing is
//! rounded, and nothing drifts.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::addr::EndpointAddr;
use crate::cluster::endpoint::{EndpointSet, WeightedEndpoint, Weights};

/// Whose turn it is in one cluster, for one worker.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// The place in the rotation; taken modulo the number of endpoints.
    next: usize,
    /// One turn for each endpoint when weights are unequal.
    turns: BinaryHeap<Reverse<Turn>>,
    /// What `turns` was made for.
    made_for: Vec<(EndpointAddr, u32)>,
}

/// The next turn of one endpoint, due at `numerator / weight`.
#[derive(Clone, Copy, Debug)]
struct Turn {
    numerator: u64,
    weight: u32,
    index: usize,
}

impl Schedule {
    /// A rotation that begins with the endpoint `start`.
    pub fn starting_at(start: usize) -> Self {
        Self { next: start, ..Self::default() }
    }

    /// Adapts to `set`. Turns begin anew when the endpoints that take traffic or their weights have changed; the place
    /// in the rotation is kept.
    pub fn follow(&mut self, set: &EndpointSet) {
        let wanted: Vec<_> = match set.weights() {
            Weights::Equal => Vec::new(),
            Weights::Unequal => {
                set.usable().iter().map(|member| (member.endpoint.address, member.weight.max(1))).collect()
            }
        };
        if wanted != self.made_for {
            let turn = |(index, (_, weight)): (usize, &(EndpointAddr, u32))| {
                Reverse(Turn { numerator: 1, weight: *weight, index })
            };
            self.turns = wanted.iter().enumerate().map(turn).collect();
            self.made_for = wanted;
        }
    }

    /// The next of `usable` in the rotation that `wanted` accepts.
    pub(super) fn rotate(
        &mut self,
        usable: &[WeightedEndpoint],
        wanted: impl Fn(&WeightedEndpoint) -> bool,
    ) -> Option<usize> {
        let length = usable.len();
        let first = self.next.checked_rem(length)?;
        let index = (0..length).map(|step| (first + step) % length).find(|index| wanted(&usable[*index]))?;
        self.next = (index + 1) % length;
        Some(index)
    }

    /// The endpoint of `set` whose turn is due first among those that `wanted` accepts; the others keep their turns.
    /// Its next turn comes `cost(endpoint) / weight` later.
    pub(super) fn take_turn(
        &mut self,
        set: &EndpointSet,
        wanted: impl Fn(&WeightedEndpoint) -> bool,
        cost: impl Fn(&WeightedEndpoint) -> u64,
    ) -> Option<usize> {
        let usable = set.usable();
        if self.turns.len() != usable.len() {
            self.follow(set);
        }
        let mut skipped = Vec::new();
        let mut taken = None;
        while let Some(Reverse(turn)) = self.turns.pop() {
            let Some(member) = usable.get(turn.index) else { break };
            if wanted(member) {
                let numerator = turn.numerator.saturating_add(cost(member).max(1));
                self.turns.push(Reverse(Turn { numerator, ..turn }));
                taken = Some(turn.index);
                break;
            }
            skipped.push(Reverse(turn));
        }
        self.turns.extend(skipped);
        taken
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        let cross = |a: &Self, b: &Self| u128::from(a.numerator) * u128::from(b.weight);
        cross(self, other).cmp(&cross(other, self)).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}
