//! Envoy's `MAGLEV`: a table in which each endpoint has taken, in turn, the first free place of its own permutation
//! (Eisenbud and others, "Maglev", NSDI 2016, section 3.4). Shares are met almost exactly; an endpoint that goes moves a
//! few of the others' hashes too.

use super::owners::Owners;
use super::{shares, xx_hash, xx_hash_seeded};
use crate::addr::EndpointAddr;

/// A table, 1 to 4 bytes a place.
#[derive(Debug)]
pub struct Maglev(Owners);

impl Maglev {
    /// The table of these endpoints with their weights; `size` is a prime number.
    pub fn new(members: &[(EndpointAddr, u32)], size: u32) -> Self {
        let keys: Vec<_> = members.iter().map(|(address, _)| address.to_string()).collect();
        let entries: Vec<_> = keys.iter().map(String::as_str).zip(shares(members)).collect();
        Self(Owners::new(fill(&entries, size).into_iter(), members.len()))
    }

    /// The place that `hash` leads to.
    pub fn place(&self, hash: u64) -> Option<usize> {
        let place = hash.checked_rem(self.0.len() as u64)?;
        usize::try_from(place).ok()
    }

    /// Whose the places are.
    pub fn owners(&self) -> &Owners {
        &self.0
    }
}

/// One that takes places.
struct Taker {
    /// In the caller's list.
    index: usize,
    share: f64,
    /// The share times the turns that it has had its due of.
    due: f64,
    offset: u64,
    skip: u64,
    next: u64,
}

/// Whose each of `size` places is, by index into `entries`: keys, and shares whose proportions alone matter. Empty
/// without entries. `size` is a prime number, or the permutations would not reach every place.
pub fn fill(entries: &[(&str, f64)], size: u32) -> Vec<usize> {
    let size = u64::from(size);
    let mut takers: Vec<Taker> = entries
        .iter()
        .enumerate()
        .map(|(index, (key, share))| Taker {
            index,
            share: *share,
            due: 0.0,
            offset: xx_hash(key.as_bytes()) % size,
            skip: xx_hash_seeded(1, key.as_bytes()) % (size - 1).max(1) + 1,
            next: 0,
        })
        .collect();
    let most = takers.iter().map(|taker| taker.share).fold(0.0, f64::max);
    if most <= 0.0 {
        return Vec::new();
    }
    // The order in which they take must not depend on the order in which they are listed.
    takers.sort_by(|a, b| entries[a.index].0.cmp(entries[b.index].0));
    let mut table: Vec<Option<usize>> = vec![None; usize::try_from(size).unwrap_or_default()];
    let mut free = table.len();
    let mut turn = 0.0;
    while free > 0 {
        turn += 1.0;
        for taker in &mut takers {
            // Whoever has the largest share takes at each turn, one with half of it at every other.
            if free == 0 || turn * taker.share < taker.due || taker.share <= 0.0 {
                continue;
            }
            taker.due += most;
            taker.take(&mut table, size);
            free -= 1;
        }
    }
    table.into_iter().flatten().collect()
}

impl Taker {
    /// Takes the first free place of its permutation; there has to be one.
    fn take(&mut self, table: &mut [Option<usize>], size: u64) {
        loop {
            let place = (self.offset + self.skip * self.next) % size;
            self.next += 1;
            let Some(place) = usize::try_from(place).ok().and_then(|place| table.get_mut(place)) else { return };
            if place.is_none() {
                *place = Some(self.index);
                return;
            }
        }
    }
}
