//! From weights to slots: how often, and in which order, each endpoint stands in a slice of the kernel's table.
//!
//! Before: the clusters and their endpoints that take traffic. After: [`super::Dispatcher`], which writes the slots. Pure.
//!
//! A share is exact wherever the slots that it takes are at most [`SLOTS_MAX`]; else it is rounded to one of so many, and
//! nobody's share to nothing. The slots of an endpoint are spread evenly, so that in turns nobody is served in a row.

use std::cmp::Reverse;
use std::sync::Arc;

use super::is_original_dst;
use crate::cluster::Cluster;
use crate::cluster::endpoint::{Endpoint, EndpointSet};

/// Slots of one slice, unless there are more endpoints.
pub const SLOTS_MAX: usize = 1024;

/// Where a share of the connections goes.
#[derive(Clone, Debug)]
pub enum Way {
    /// To this endpoint.
    Endpoint(Arc<Endpoint>),
    /// Where they were going anyway.
    OriginalDst,
    /// No endpoint of the cluster takes traffic.
    Nowhere,
}

/// One endpoint's share of the connections of a listener: `weight` of the cluster, times `of` its own weights.
#[derive(Clone, Debug)]
pub struct Share {
    /// Whose it is.
    pub cluster: Arc<Cluster>,
    /// Where it goes.
    pub way: Way,
    /// The cluster's weight among the listener's clusters.
    pub cluster_weight: u32,
    /// The endpoint's weight, and the sum of those in its cluster.
    pub of: (u32, u32),
}

/// The shares of the endpoints of `cluster`, whose own weight among others is `weight`.
pub fn shares(cluster: &Arc<Cluster>, set: &EndpointSet, weight: u32) -> Vec<Share> {
    let share = |way, of| Share { cluster: cluster.clone(), way, cluster_weight: weight, of };
    if is_original_dst(cluster) {
        return vec![share(Way::OriginalDst, (1, 1))];
    }
    if set.usable().is_empty() {
        return vec![share(Way::Nowhere, (1, 1))];
    }
    let sum = set.usable().iter().map(|member| member.weight.max(1)).sum();
    let member = |member: &crate::cluster::endpoint::WeightedEndpoint| {
        share(Way::Endpoint(member.endpoint.clone()), (member.weight.max(1), sum))
    };
    set.usable().iter().map(member).collect()
}

/// Which share each slot belongs to, by index.
pub fn slots(shares: &[Share]) -> Vec<usize> {
    let parts: Vec<_> = shares.iter().map(|share| (share.cluster_weight, share.of.0, share.of.1)).collect();
    interleaved(&counts(&parts, SLOTS_MAX))
}

/// How many slots each part gets: `(w, e, s)` is the share `w * e / s`.
fn counts(parts: &[(u32, u32, u32)], at_most: usize) -> Vec<usize> {
    let whole = numerators(parts);
    let divisor = whole.iter().copied().fold(0, gcd).max(1);
    let exact: Vec<u128> = whole.iter().map(|number| number / divisor).collect();
    let total: u128 = exact.iter().sum();
    if total <= at_most as u128 {
        return exact.into_iter().map(|count| usize::try_from(count).unwrap_or_default()).collect();
    }
    let used = exact.iter().filter(|count| **count > 0).count();
    rounded(&exact, total, at_most.max(used))
}

/// The shares on one denominator; where that would not fit a word, in 2^-32.
fn numerators(parts: &[(u32, u32, u32)]) -> Vec<u128> {
    let denominator = parts.iter().try_fold(1_u64, |all, (_, _, sum)| lcm(all, u64::from((*sum).max(1))));
    let denominator = denominator.unwrap_or(1 << 32);
    let number = |(weight, of, sum): &(u32, u32, u32)| {
        u128::from(*weight) * u128::from(*of) * u128::from(denominator) / u128::from((*sum).max(1))
    };
    parts.iter().map(number).collect()
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u64, b: u64) -> Option<u64> {
    let common = u64::try_from(gcd(a.into(), b.into())).ok()?;
    (a / common).checked_mul(b).filter(|product| *product <= u64::from(u32::MAX))
}

/// `slots` slots by the largest remainders (Hamilton), with at least one for each share that is not nothing.
fn rounded(exact: &[u128], total: u128, slots: usize) -> Vec<usize> {
    let quota = |number: &u128| (number * slots as u128 / total, number * slots as u128 % total);
    let mut counts: Vec<usize> = exact
        .iter()
        .map(|number| usize::try_from(quota(number).0).unwrap_or_default().max(usize::from(*number > 0)))
        .collect();
    let mut by_remainder: Vec<usize> = (0..exact.len()).filter(|index| exact[*index] > 0).collect();
    by_remainder.sort_by_key(|index| Reverse(quota(&exact[*index]).1));
    let mut given: usize = counts.iter().sum();
    for index in by_remainder.iter().cycle().take(slots.saturating_sub(given)) {
        counts[*index] += 1;
        given += 1;
    }
    // Those that were rounded up to one have taken it from the largest.
    while given > slots {
        let Some(largest) = counts.iter_mut().max().filter(|largest| **largest > 1) else { break };
        *largest -= 1;
        given -= 1;
    }
    counts
}

/// Each index as often as its count says, spread evenly: the k-th turn of one with n of them is due at (2k + 1) / 2n.
fn interleaved(counts: &[usize]) -> Vec<usize> {
    let mut turns: Vec<(usize, usize, usize)> = Vec::with_capacity(counts.iter().sum());
    for (index, &count) in counts.iter().enumerate() {
        turns.extend((0..count).map(|turn| (2 * turn + 1, 2 * count, index)));
    }
    turns.sort_by(|(a, of_a, index_a), (b, of_b, index_b)| (a * of_b).cmp(&(b * of_a)).then(index_a.cmp(index_b)));
    turns.into_iter().map(|(_, _, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_weights_are_a_rotation_and_unequal_ones_are_spread_out() {
        for (parts, slots) in [
            (vec![(1, 5, 15), (1, 5, 15), (1, 5, 15)], vec![0, 1, 2]),
            (vec![(1, 2, 3), (1, 1, 3)], vec![0, 1, 0]),
            (vec![(1, 1, 5), (1, 4, 5)], vec![1, 0, 1, 1, 1]),
            (vec![(9, 1, 1)], vec![0]),
            (vec![(0, 1, 1), (3, 1, 1)], vec![1]),
            (vec![], vec![]),
        ] {
            let mut turns = interleaved(&counts(&parts, SLOTS_MAX));
            if parts.len() == 2 && turns.len() == 5 {
                // Where in the cycle the one of five stands does not matter.
                assert_eq!(turns.iter().filter(|index| **index == 0).count(), 1);
                turns.clone_from(&slots);
            }
            assert_eq!(turns, slots, "{parts:?}");
        }
    }

    #[test]
    fn clusters_share_by_their_own_weights_whatever_those_of_their_endpoints() {
        // 90 % to a cluster with one endpoint, 10 % to one with two of unequal weight.
        assert_eq!(counts(&[(90, 7, 7), (10, 3, 4), (10, 1, 4)], SLOTS_MAX), [36, 3, 1]);
    }

    #[test]
    fn a_tiny_share_is_not_rounded_to_nothing() {
        let counts = counts(&[(1_000_000, 1, 1), (1, 1, 1)], SLOTS_MAX);
        assert_eq!(counts, [SLOTS_MAX - 1, 1]);
    }

    fn parts() -> impl Strategy<Value = Vec<(u32, u32, u32)>> {
        let cluster = (1..=100_000_u32, prop::collection::vec(1..=128_u32, 1..6));
        prop::collection::vec(cluster, 1..6).prop_map(|clusters| {
            let parts = |(weight, endpoints): (u32, Vec<u32>)| {
                let sum = endpoints.iter().sum();
                endpoints.into_iter().map(move |of| (weight, of, sum)).collect::<Vec<_>>()
            };
            clusters.into_iter().flat_map(parts).collect()
        })
    }

    proptest! {
        /// Each share is met within one slot beside that which a tiny share may have taken, and nobody has none.
        #[test]
        fn every_endpoint_has_its_share(parts in parts()) {
            let slots = interleaved(&counts(&parts, SLOTS_MAX));
            prop_assert!(slots.len() <= SLOTS_MAX);
            let weights: f64 = {
                let total: f64 = parts.iter().map(|(w, e, s)| f64::from(*w) * f64::from(*e) / f64::from(*s)).sum();
                total
            };
            let tiny = parts.len() as f64;
            for (index, (weight, of, sum)) in parts.iter().enumerate() {
                let count = slots.iter().filter(|slot| **slot == index).count() as f64;
                let share = f64::from(*weight) * f64::from(*of) / f64::from(*sum) / weights * slots.len() as f64;
                prop_assert!(count >= 1.0);
                prop_assert!((count - share).abs() <= tiny, "{count} for {share} of {}", slots.len());
            }
        }

        #[test]
        fn turns_of_one_endpoint_are_apart(counts in prop::collection::vec(1..40_usize, 1..6)) {
            let turns = interleaved(&counts);
            prop_assert_eq!(turns.len(), counts.iter().sum::<usize>());
            for (index, count) in counts.iter().enumerate() {
                let at: Vec<_> = (0..turns.len()).filter(|turn| turns[*turn] == index).collect();
                prop_assert_eq!(at.len(), *count);
                // Never twice as long as it would be if all turns were alike, and a turn of each other for the rounding.
                let longest = at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
                prop_assert!(longest <= turns.len() / count + counts.len() + 1);
            }
        }
    }
}
