//! One choice: a bounded walk over the endpoints that take traffic.
//!
//! Pure: the hash, the random numbers and the schedule are given.

use super::Schedule;
use crate::addr::EndpointAddr;
use crate::cluster::LbPolicy;
use crate::cluster::endpoint::{Endpoint, EndpointSet, WeightedEndpoint, Weights};
use std::sync::Arc;

/// What a choice hangs on, beside the endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    /// Of the connection or request; policies that do not go by it ignore it.
    pub hash: Option<u64>,
    /// Two numbers that have nothing to do with each other.
    pub random: [u64; 2],
}

impl From<[u64; 2]> for Chance {
    /// Without a hash.
    fn from(random: [u64; 2]) -> Self {
        Self { hash: None, random }
    }
}

/// Chooses one of the endpoints of `set` that take traffic, not one of `tried` unless there is no other. `None` when
/// none takes traffic.
pub fn pick<'a>(
    policy: LbPolicy,
    set: &'a EndpointSet,
    schedule: &mut Schedule,
    chance: impl Into<Chance>,
    tried: &[EndpointAddr],
) -> Option<&'a Arc<Endpoint>> {
    let Chance { hash, random } = chance.into();
    // Without a hash the choice is random.
    let policy = if hash.is_none() && policy.hashes() { LbPolicy::Random } else { policy };
    let random = hash.filter(|_| policy.hashes()).map_or(random, |hash| [hash, random[1]]);
    let untried = |member: &WeightedEndpoint| !tried.contains(&member.endpoint.address);
    let index = if tried.is_empty() || !set.usable().iter().any(untried) {
        among_all(policy, set, schedule, random)
    } else {
        among(policy, set, schedule, random, untried)
    };
    set.usable().get(index?).map(|member| &member.endpoint)
}

/// As [`among`] with all of them: what the first try of each request asks. Does not walk over the endpoints.
fn among_all(policy: LbPolicy, set: &EndpointSet, schedule: &mut Schedule, random: [u64; 2]) -> Option<usize> {
    match (policy, set.weights()) {
        (LbPolicy::LeastRequest, Weights::Equal) => {
            let usable = set.usable();
            let [first, second] = two_of(usable.len() as u64, random)?.map(|place| usize::try_from(place).ok());
            let (first, second) = (first?, second?);
            let load = |place: usize| usable.get(place).map(|member| member.endpoint.load());
            Some(if load(second)? < load(first)? { second } else { first })
        }
        (LbPolicy::Random, _) => set.by_weight(random[0]),
        _ => among(policy, set, schedule, random, |_| true),
    }
}

/// Two different places below `count`, drawn with `random`; the same one twice when there is one only.
fn two_of(count: u64, random: [u64; 2]) -> Option<[u64; 2]> {
    let first = random[0].checked_rem(count)?;
    let second = match random[1].checked_rem(count - 1) {
        Some(step) => (first + 1 + step) % count,
        None => first,
    };
    Some([first, second])
}

/// The index of one endpoint that `wanted` accepts.
fn among(
    policy: LbPolicy,
    set: &EndpointSet,
    schedule: &mut Schedule,
    random: [u64; 2],
    wanted: impl Fn(&WeightedEndpoint) -> bool,
) -> Option<usize> {
    match (policy, set.weights()) {
        (LbPolicy::RoundRobin, Weights::Equal) => schedule.rotate(set.usable(), wanted),
        (LbPolicy::RoundRobin, Weights::Unequal) => schedule.take_turn(set, wanted, |_| 1),
        (LbPolicy::LeastRequest, Weights::Equal) => less_busy_of_two(set.usable(), random, wanted),
        // Envoy's weight / (active + 1): the busier, the later its next turn.
        (LbPolicy::LeastRequest, Weights::Unequal) => {
            schedule.take_turn(set, wanted, |member| member.endpoint.load().saturating_add(1))
        }
        (LbPolicy::Random, _) => by_weight(set.usable(), random[0], wanted),
        (LbPolicy::Consistent(_), _) => {
            let usable = set.usable();
            set.table()?.pick(random[0], |index| usable.get(index).is_some_and(&wanted))
        }
    }
}

/// Draws two different endpoints and takes the one with less to do; the first drawn when they are even.
fn less_busy_of_two(
    usable: &[WeightedEndpoint],
    random: [u64; 2],
    wanted: impl Fn(&WeightedEndpoint) -> bool,
) -> Option<usize> {
    let count = usable.iter().filter(|member| wanted(member)).count() as u64;
    let [first, second] = two_of(count, random)?;
    let mut candidates = usable.iter().enumerate().filter(|(_, member)| wanted(member));
    let nth = |position: u64, candidates: &mut dyn Iterator<Item = (usize, &WeightedEndpoint)>| {
        candidates.nth(usize::try_from(position).ok()?).map(|(index, member)| (index, member.endpoint.load()))
    };
    // One walk finds both: the earlier one, then as many steps further as they are apart.
    let (low, high) = (first.min(second), first.max(second));
    let low_found = nth(low, &mut candidates)?;
    let high_found = if high > low { nth(high - low - 1, &mut candidates)? } else { low_found };
    let (first, second) = if first == low { (low_found, high_found) } else { (high_found, low_found) };
    Some(if second.1 < first.1 { second.0 } else { first.0 })
}

/// The first endpoint whose cumulative weight exceeds `random` modulo the sum of the weights.
fn by_weight(usable: &[WeightedEndpoint], random: u64, wanted: impl Fn(&WeightedEndpoint) -> bool) -> Option<usize> {
    let candidates = || usable.iter().enumerate().filter(|(_, member)| wanted(member));
    let weight = |member: &WeightedEndpoint| u64::from(member.weight.max(1));
    let total: u64 = candidates().map(|(_, member)| weight(member)).sum();
    let mut point = random.checked_rem(total)?;
    for (index, member) in candidates() {
        match point.checked_sub(weight(member)) {
            Some(rest) => point = rest,
            None => return Some(index),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::endpoint::Health;
    use crate::cluster::fixture::{address, members};
    use proptest::prelude::*;

    const POLICIES: [LbPolicy; 3] = [LbPolicy::RoundRobin, LbPolicy::LeastRequest, LbPolicy::Random];

    /// The indexes of `picks` choices in a row.
    fn sequence(policy: LbPolicy, set: &EndpointSet, schedule: &mut Schedule, picks: usize) -> Vec<u16> {
        let choose = |n| pick(policy, set, schedule, [n as u64; 2], &[]).expect("an endpoint");
        (0..picks).map(choose).map(|endpoint| endpoint.address.port() - address(0).port()).collect()
    }

    #[test]
    fn equal_weights_take_turns_from_the_start_that_is_given() {
        let set = EndpointSet::new(members(&[5, 5, 5]), 0);
        let from = |start| sequence(LbPolicy::RoundRobin, &set, &mut Schedule::starting_at(start), 4);
        assert_eq!(from(0), [0, 1, 2, 0]);
        assert_eq!(from(1), [1, 2, 0, 1]);
        assert_eq!(from(7), [1, 2, 0, 1]);
    }

    #[test]
    fn unequal_weights_are_spread_out_and_not_served_in_a_row() {
        let set = EndpointSet::new(members(&[2, 1]), 0);
        assert_eq!(sequence(LbPolicy::RoundRobin, &set, &mut Schedule::default(), 6), [0, 0, 1, 0, 0, 1]);
        let set = EndpointSet::new(members(&[1, 4]), 0);
        assert_eq!(sequence(LbPolicy::RoundRobin, &set, &mut Schedule::default(), 5), [1, 1, 1, 0, 1]);
    }

    #[test]
    fn of_two_drawn_the_one_with_fewer_requests_is_taken() {
        for (loads, random, taken) in [
            ([0, 0, 0], [0, 0], 0),
            ([5, 1, 9], [0, 0], 1),
            ([5, 9, 1], [0, 1], 2),
            ([5, 9, 1], [1, 1], 0),
            ([5, 9, 1], [1, 0], 2),
            ([3, 9, 3], [2, 0], 2),
        ] {
            let members = members(&[1, 1, 1]);
            for (member, load) in members.iter().zip(loads) {
                member.endpoint.stats.rq_total.add(100);
                member.endpoint.stats.rq_active.set(load);
            }
            let set = EndpointSet::new(members, 0);
            let endpoint = pick(LbPolicy::LeastRequest, &set, &mut Schedule::default(), random, &[]).expect("endpoint");
            assert_eq!(endpoint.address, address(taken), "loads {loads:?}, drawn with {random:?}");
        }
    }

    #[test]
    fn a_tcp_connection_counts_as_one_request() {
        let members = members(&[1, 1]);
        members[0].endpoint.stats.cx_active.set(3);
        let set = EndpointSet::new(members, 0);
        let endpoint = pick(LbPolicy::LeastRequest, &set, &mut Schedule::default(), [0, 0], &[]).expect("endpoint");
        assert_eq!(endpoint.address, address(1));
    }

    #[test]
    fn a_busy_endpoint_waits_longer_for_its_next_turn() {
        let members = members(&[2, 1]);
        members[0].endpoint.stats.rq_total.inc();
        members[0].endpoint.stats.rq_active.set(9);
        let set = EndpointSet::new(members, 0);
        // Weight 2 with 9 requests in flight: a turn each 10/2, against 1/1 of the idle one.
        assert_eq!(sequence(LbPolicy::LeastRequest, &set, &mut Schedule::default(), 8), [0, 1, 1, 1, 1, 1, 0, 1]);
    }

    #[test]
    fn a_change_of_health_keeps_the_place_in_the_rotation() {
        let members = members(&[1, 1, 1]);
        let mut schedule = Schedule::default();
        let set = EndpointSet::new(members.clone(), 0);
        assert_eq!(sequence(LbPolicy::RoundRobin, &set, &mut schedule, 1), [0]);
        members[0].endpoint.set_health(Health::Unhealthy);
        let set = EndpointSet::new(members, 0);
        schedule.follow(&set);
        assert_eq!(sequence(LbPolicy::RoundRobin, &set, &mut schedule, 3), [2, 1, 2]);
    }

    #[test]
    fn a_cluster_without_usable_endpoints_gives_none() {
        for policy in POLICIES {
            let set = EndpointSet::default();
            assert!(pick(policy, &set, &mut Schedule::default(), [1, 2], &[]).is_none());
        }
    }

    #[test]
    fn a_hash_leads_to_the_same_endpoint_and_to_another_one_when_that_was_tried() {
        use crate::cluster::ConsistentHash;
        for hash_policy in
            [ConsistentHash::Ring { minimum: 64, maximum: 64 }, ConsistentHash::Maglev { table_size: 61 }]
        {
            let policy = LbPolicy::Consistent(hash_policy);
            let set = EndpointSet::balanced(members(&[1, 2, 1]), 0, policy);
            let choose = |hash, random, tried: &[EndpointAddr]| {
                let chance = Chance { hash, random };
                pick(policy, &set, &mut Schedule::default(), chance, tried).expect("an endpoint").address
            };
            for hash in [0, 1, 1 << 40, u64::MAX] {
                let first = choose(Some(hash), [0, 0], &[]);
                assert_eq!(choose(Some(hash), [9, 9], &[]), first, "the random numbers make no difference");
                let second = choose(Some(hash), [0, 0], &[first]);
                assert_ne!(second, first);
                assert_eq!(choose(Some(hash), [5, 5], &[first]), second);
                let third = choose(Some(hash), [0, 0], &[first, second]);
                assert!(third != first && third != second);
                assert_eq!(choose(Some(hash), [0, 0], &[first, second, third]), first, "all were tried");
            }
            // By weight, as the policy `random`.
            let drawn: Vec<_> = (0..4).map(|random| choose(None, [random, 0], &[])).collect();
            assert_eq!(drawn, [0, 1, 1, 2].map(address));
        }
    }

    #[test]
    fn other_policies_ignore_the_hash() {
        let set = EndpointSet::new(members(&[1, 1, 1]), 0);
        let chance = |random| Chance { hash: Some(7), random: [random, 0] };
        let choose = |policy, random| {
            pick(policy, &set, &mut Schedule::default(), chance(random), &[]).expect("an endpoint").address
        };
        assert_eq!(choose(LbPolicy::RoundRobin, 2), address(0));
        assert_eq!(choose(LbPolicy::Random, 2), address(2));
        assert_eq!(choose(LbPolicy::LeastRequest, 2), address(2));
    }

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(1..=128_u32, 1..8)
    }

    proptest! {
        #[test]
        fn over_a_cycle_each_endpoint_has_exactly_its_weight_in_turns(weights in weights(), cycles in 1..4_usize) {
            // A rotation's cycle is its length; that of unequal weights is their sum.
            let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
            let turns: Vec<usize> = weights.iter().map(|weight| if equal { 1 } else { *weight as usize }).collect();
            let set = EndpointSet::new(members(&weights), 0);
            let mut schedule = Schedule::default();
            for _ in 0..cycles {
                let mut counts = vec![0; weights.len()];
                for index in sequence(LbPolicy::RoundRobin, &set, &mut schedule, turns.iter().sum()) {
                    counts[usize::from(index)] += 1;
                }
                prop_assert_eq!(&counts, &turns);
            }
        }

        #[test]
        fn idle_endpoints_share_least_requests_by_weight(weights in weights()) {
            let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
            prop_assume!(!equal);
            let set = EndpointSet::new(members(&weights), 0);
            let total: u32 = weights.iter().sum();
            let mut counts = vec![0; weights.len()];
            for index in sequence(LbPolicy::LeastRequest, &set, &mut Schedule::default(), total as usize) {
                counts[usize::from(index)] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn each_random_number_below_the_sum_belongs_to_one_endpoint_by_weight(weights in weights()) {
            let set = EndpointSet::new(members(&weights), 0);
            let total: u32 = weights.iter().sum();
            let mut counts = vec![0; weights.len()];
            for index in sequence(LbPolicy::Random, &set, &mut Schedule::default(), total as usize) {
                counts[usize::from(index)] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn an_unhealthy_or_tried_endpoint_is_never_picked_while_there_is_another(
            shape in prop::collection::vec((1..4_u32, any::<bool>(), any::<bool>(), 0..5_i64), 1..10),
            randoms in prop::collection::vec(any::<[u64; 2]>(), 1..30),
            policy in 0..3_usize,
        ) {
            let weights: Vec<_> = shape.iter().map(|endpoint| endpoint.0).collect();
            let members = members(&weights);
            let mut tried = Vec::new();
            for (member, (_, unhealthy, is_tried, load)) in members.iter().zip(&shape) {
                member.endpoint.stats.cx_active.set(*load);
                if *unhealthy {
                    member.endpoint.set_health(Health::Unhealthy);
                }
                if *is_tried {
                    tried.push(member.endpoint.address);
                }
            }
            let another = shape.iter().any(|(_, unhealthy, is_tried, _)| !unhealthy && !is_tried);
            let all_unhealthy = shape.iter().all(|endpoint| endpoint.1);
            let set = EndpointSet::new(members, 0);
            let mut schedule = Schedule::default();
            for random in randoms {
                match pick(POLICIES[policy], &set, &mut schedule, random, &tried) {
                    Some(endpoint) => {
                        prop_assert!(endpoint.health() != Health::Unhealthy);
                        prop_assert!(!another || !tried.contains(&endpoint.address));
                    }
                    None => prop_assert!(all_unhealthy),
                }
            }
        }
    }
}
