//! Where hashes lead: to endpoints that stay the same for as long as they take traffic, whoever else comes and goes.
//!
//! Before: [`EndpointSet`](crate::cluster::endpoint::EndpointSet), which has a [`Table`] made of those that take traffic.
//! After: [`super::pick`](fn@super::pick), which asks it. `ring` and [`maglev`] are Envoy's two ways, and lead where
//! Envoy's lead: the same endpoints, weights and hash give the same endpoint. Pure.

pub mod maglev;
mod owners;
mod ring;

use std::io::Write as _;
use std::net::IpAddr;

use twox_hash::XxHash64;

use crate::addr::EndpointAddr;
use crate::cluster::ConsistentHash;
use crate::cluster::endpoint::WeightedEndpoint;

use maglev::Maglev;
use ring::Ring;

/// XX_HASH of `bytes`, 64 bits, seed 0: what Envoy hashes with throughout.
pub fn xx_hash(bytes: &[u8]) -> u64 {
    xx_hash_seeded(0, bytes)
}

/// XX_HASH of `bytes` with another seed: the hash of what stands before them, where several are hashed to one.
pub fn xx_hash_seeded(seed: u64, bytes: &[u8]) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// The hash of a client's address, without its port.
pub fn source_ip(ip: IpAddr) -> u64 {
    let mut text = [0_u8; 40];
    let mut rest = &mut text[..];
    // The longest address has 39 characters.
    let _ = write!(rest, "{ip}");
    let left = rest.len();
    xx_hash(&text[..text.len() - left])
}

/// The table of one set of endpoints. Its size depends on the policy, and not on how much traffic there is.
#[derive(Debug)]
pub struct Table {
    policy: ConsistentHash,
    /// The endpoints that take traffic with their weights, whose indexes the table holds.
    made_for: Vec<(EndpointAddr, u32)>,
    places: Places,
}

#[derive(Debug)]
enum Places {
    Ring(Ring),
    Maglev(Maglev),
}

impl Table {
    /// The table for those that take traffic.
    pub fn new(policy: ConsistentHash, usable: &[WeightedEndpoint]) -> Self {
        let made_for: Vec<_> = identities(usable).collect();
        let places = match policy {
            ConsistentHash::Ring { minimum, maximum } => Places::Ring(Ring::new(&made_for, minimum, maximum)),
            ConsistentHash::Maglev { table_size } => Places::Maglev(Maglev::new(&made_for, table_size)),
        };
        Self { policy, made_for, places }
    }

    /// Whether [`Self::new`] would make the same of these.
    pub fn is_for(&self, policy: ConsistentHash, usable: &[WeightedEndpoint]) -> bool {
        self.policy == policy && identities(usable).eq(self.made_for.iter().copied())
    }

    /// The index of the endpoint that `hash` leads to. Where `wanted` refuses it, the table is followed from there, so
    /// that the next one is always the same too. `None` when all are refused.
    pub fn pick(&self, hash: u64, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let (start, owners) = match &self.places {
            Places::Ring(ring) => (ring.place(hash), ring.owners()),
            Places::Maglev(maglev) => (maglev.place(hash), maglev.owners()),
        };
        let in_table = owners.from(start?).find(|index| wanted(*index));
        // A table smaller than the number of endpoints does not have them all.
        in_table.or_else(|| (0..self.made_for.len()).find(|index| wanted(*index)))
    }
}

/// What makes one endpoint of a table another one.
fn identities(usable: &[WeightedEndpoint]) -> impl Iterator<Item = (EndpointAddr, u32)> {
    usable.iter().map(|member| (member.endpoint.address, member.weight.max(1)))
}

/// The weights as shares of 1. The same arithmetic as Envoy's: rounding decides who has the last place.
fn shares(members: &[(EndpointAddr, u32)]) -> Vec<f64> {
    let sum: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
    members.iter().map(|(_, weight)| f64::from(*weight) / sum as f64).collect()
}

#[cfg(test)]
mod tests;
