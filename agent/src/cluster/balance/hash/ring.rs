//! Envoy's `RING_HASH`, which is ketama: each endpoint has places on a ring of 64-bit numbers, and a hash leads to the
//! next place. An endpoint that goes leaves its places to those that follow; all other hashes stay.

use std::fmt::Write as _;

use super::owners::Owners;
use super::{shares, xx_hash};
use crate::addr::EndpointAddr;

/// A ring, 9 to 12 bytes a place.
#[derive(Debug)]
pub struct Ring {
    /// Ascending.
    hashes: Box<[u64]>,
    owners: Owners,
}

impl Ring {
    /// The ring of these endpoints with their weights. It has as few places, from `minimum` on, as give the lightest
    /// endpoint a whole number of them, but no more than `maximum`.
    pub fn new(members: &[(EndpointAddr, u32)], minimum: u32, maximum: u32) -> Self {
        let shares = shares(members);
        let least = shares.iter().copied().fold(1.0, f64::min);
        let places = ((least * f64::from(minimum)).ceil() / least).min(f64::from(maximum));
        let mut ring: Vec<(u64, usize)> = Vec::with_capacity(places.ceil() as usize);
        // Counted over all endpoints: what one of them has too little in whole places, the next one has more.
        let (mut made, mut wanted) = (0.0, 0.0);
        let mut key = String::new();
        for (index, ((address, _), share)) in members.iter().zip(shares).enumerate() {
            wanted += places * share;
            for place in 0_u32.. {
                if made >= wanted {
                    break;
                }
                key.clear();
                // Writing to a String cannot fail.
                let _ = write!(key, "{address}_{place}");
                ring.push((xx_hash(key.as_bytes()), index));
                made += 1.0;
            }
        }
        ring.sort_unstable();
        let owners = Owners::new(ring.iter().map(|(_, owner)| *owner), members.len());
        Self { hashes: ring.into_iter().map(|(hash, _)| hash).collect(), owners }
    }

    /// The place that `hash` leads to: the first that is not before it, else the first of all.
    pub fn place(&self, hash: u64) -> Option<usize> {
        let place = self.hashes.partition_point(|own| *own < hash);
        (!self.hashes.is_empty()).then_some(if place == self.hashes.len() { 0 } else { place })
    }

    /// Whose the places are.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }
}
