use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::cluster::fixture::{address, members};
use crate::cluster::{MAGLEV_SIZE, RING_SIZE_MAX, RING_SIZE_MIN};

const RING: ConsistentHash = ConsistentHash::Ring { minimum: RING_SIZE_MIN, maximum: RING_SIZE_MAX };
const MAGLEV: ConsistentHash = ConsistentHash::Maglev { table_size: MAGLEV_SIZE };

/// Whom each of `hashes` leads to, by port.
fn led(table: &Table, usable: &[WeightedEndpoint], hashes: impl Iterator<Item = u64>) -> Vec<u16> {
    hashes.map(|hash| usable[table.pick(hash, |_| true).expect("an endpoint")].endpoint.address.port()).collect()
}

/// Numbers that have nothing to do with each other, and are the same each time.
fn hashes(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|number| xx_hash(&number.to_le_bytes()))
}

#[test]
fn the_hash_is_xxh64() {
    // From the algorithm's own specification: the empty input, and one that is longer than a stripe.
    assert_eq!(xx_hash(b""), 0xEF46_DB37_51D8_E999);
    assert_eq!(xx_hash(b"Nobody inspects the spammish repetition"), 0xFBCE_A83C_8A37_8BF1);
}

#[test]
fn an_address_is_hashed_as_text() {
    for text in ["10.0.0.1", "::1", "2001:db8:1111:2222:3333:4444:5555:6666", "255.255.255.255"] {
        assert_eq!(source_ip(text.parse().expect("an address")), xx_hash(text.as_bytes()));
    }
}

#[test]
fn a_ring_has_as_many_places_as_give_the_lightest_a_whole_number() {
    for (weights, minimum, maximum, places) in [
        (&[1, 1, 1][..], 1024, RING_SIZE_MAX, vec![342, 342, 342]),
        (&[1, 2], 12, RING_SIZE_MAX, vec![4, 8]),
        (&[1, 1], 1, RING_SIZE_MAX, vec![1, 1]),
        (&[1, 1, 1, 1], 6, 6, vec![2, 1, 2, 1]),
        (&[1, 127], 1024, RING_SIZE_MAX, vec![8, 1016]),
    ] {
        let usable = members(weights);
        let table = Table::new(ConsistentHash::Ring { minimum, maximum }, &usable);
        let Places::Ring(ring) = &table.places else { panic!("a ring") };
        let mut counts = vec![0; weights.len()];
        ring.owners().from(0).for_each(|owner| counts[owner] += 1);
        assert_eq!(counts, places, "{weights:?} from {minimum} to {maximum}");
    }
}

#[test]
fn a_table_is_shared_exactly_by_weight() {
    for (weights, size) in [(&[1, 1, 1][..], 65_537_u32), (&[3, 1], 1021), (&[128, 1, 64], 65_537)] {
        let usable = members(weights);
        let table = Table::new(ConsistentHash::Maglev { table_size: size }, &usable);
        let mut counts = vec![0_u32; weights.len()];
        for place in 0..u64::from(size) {
            counts[table.pick(place, |_| true).expect("an endpoint")] += 1;
        }
        let sum: u32 = weights.iter().sum();
        for (weight, count) in weights.iter().zip(&counts) {
            let share = f64::from(size) * f64::from(*weight) / f64::from(sum);
            assert!((f64::from(*count) - share).abs() <= 2.0, "{count} of {size} for {weight} of {sum}");
        }
    }
}

#[test]
fn hashes_are_shared_by_weight() {
    for (policy, tolerance) in [(RING, 0.35), (MAGLEV, 0.1)] {
        let weights = [1, 2, 4, 1];
        let usable = members(&weights);
        let mut counts: BTreeMap<u16, u32> = BTreeMap::new();
        led(&Table::new(policy, &usable), &usable, hashes(20_000)).iter().for_each(|port| {
            *counts.entry(*port).or_default() += 1;
        });
        for (member, weight) in usable.iter().zip(weights) {
            let share = f64::from(20_000 * weight / 8);
            let count = f64::from(counts[&member.endpoint.address.port()]);
            assert!((count - share).abs() <= share * tolerance, "{policy:?}: {count} for {share}");
        }
    }
}

#[test]
fn without_endpoints_no_hash_leads_anywhere() {
    for policy in [RING, MAGLEV] {
        assert_eq!(Table::new(policy, &[]).pick(7, |_| true), None);
    }
}

#[test]
fn endpoints_without_a_place_are_found_when_no_other_is_left() {
    for policy in [ConsistentHash::Ring { minimum: 1, maximum: 2 }, ConsistentHash::Maglev { table_size: 2 }] {
        let usable = members(&[1; 5]);
        let table = Table::new(policy, &usable);
        for index in 0..usable.len() {
            assert_eq!(table.pick(9, |other| other == index), Some(index), "{policy:?}");
        }
    }
}

fn policies() -> impl Strategy<Value = ConsistentHash> {
    prop_oneof![
        Just(RING),
        Just(ConsistentHash::Ring { minimum: 64, maximum: 500 }),
        Just(ConsistentHash::Maglev { table_size: 1021 }),
        Just(ConsistentHash::Maglev { table_size: 251 }),
    ]
}

/// Weights of endpoints, and the index of one of them.
fn with_one() -> impl Strategy<Value = (Vec<u32>, usize)> {
    prop::collection::vec(1..=8_u32, 2..9).prop_flat_map(|weights| {
        let one = 0..weights.len();
        (Just(weights), one)
    })
}

proptest! {
    #[test]
    fn of_equal_weights_a_ring_moves_only_what_the_removed_endpoint_had(count in 2..9_usize, gone in any::<prop::sample::Index>()) {
        let all = members(&vec![1; count]);
        let gone = gone.index(count);
        let rest: Vec<_> = all.iter().enumerate().filter(|(index, _)| *index != gone).map(|(_, one)| one.clone()).collect();
        // As many places for each, however many there are.
        let policy = |count: usize| ConsistentHash::Ring { minimum: 100 * count as u32, maximum: RING_SIZE_MAX };
        let before = led(&Table::new(policy(count), &all), &all, hashes(300));
        let after = led(&Table::new(policy(count - 1), &rest), &rest, hashes(300));
        for (before, after) in before.iter().zip(&after) {
            prop_assert!(before == after || *before == address(gone as u16).port());
        }
    }

    #[test]
    fn few_others_move_when_an_endpoint_goes((weights, gone) in with_one(), policy in prop_oneof![Just(RING), Just(MAGLEV)]) {
        let all = members(&weights);
        let rest: Vec<_> = all.iter().enumerate().filter(|(index, _)| *index != gone).map(|(_, one)| one.clone()).collect();
        let before = led(&Table::new(policy, &all), &all, hashes(2_000));
        let after = led(&Table::new(policy, &rest), &rest, hashes(2_000));
        let own = address(gone as u16).port();
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after && **before != own).count();
        // A modulo would move most of them. On a ring, other weights mean another number of places for each.
        prop_assert!(moved <= if policy == RING { 600 } else { 300 }, "{moved} of 2000 moved that need not, {weights:?} without {gone}");
    }

    #[test]
    fn a_refused_endpoint_is_passed_over_always_in_the_same_way((weights, refused) in with_one(), policy in policies(), hash: u64) {
        let usable = members(&weights);
        let table = Table::new(policy, &usable);
        let first = table.pick(hash, |index| index != refused).expect("another one");
        prop_assert_ne!(first, refused);
        prop_assert_eq!(table.pick(hash, |index| index != refused), Some(first));
        if table.pick(hash, |_| true) != Some(refused) {
            prop_assert_eq!(table.pick(hash, |_| true), Some(first), "whoever was not refused stays");
        }
        prop_assert_eq!(table.pick(hash, |_| false), None);
    }

    #[test]
    fn the_order_in_which_endpoints_are_listed_makes_no_difference((weights, _) in with_one(), policy in prop_oneof![Just(MAGLEV), Just(RING)]) {
        // On a ring a fraction of a place goes to whoever comes next: equal weights have none.
        let weights = if policy == RING { vec![1; weights.len()] } else { weights };
        let usable = members(&weights);
        let mut turned = usable.clone();
        turned.reverse();
        let one = led(&Table::new(policy, &usable), &usable, hashes(100));
        prop_assert_eq!(one, led(&Table::new(policy, &turned), &turned, hashes(100)));
    }
}
