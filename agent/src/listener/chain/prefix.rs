//! Longest-prefix lookup of IP addresses: of all prefixes that contain an address, the longest one alone counts.
//!
//! A lookup tries one hash per prefix *length* in use, however many prefixes there are.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Values by prefix.
#[derive(Debug)]
pub(super) struct Prefixes<T> {
    by_prefix: HashMap<IpNet, T>,
    /// Longest first.
    v4_lengths: Vec<u8>,
    /// Longest first.
    v6_lengths: Vec<u8>,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { by_prefix: HashMap::new(), v4_lengths: Vec::new(), v6_lengths: Vec::new() }
    }
}

impl<T> Prefixes<T> {
    /// The value of the longest prefix that contains `address`, with that prefix.
    pub(super) fn longest(&self, address: IpAddr) -> Option<(IpNet, &T)> {
        let lengths = if address.is_ipv4() { &self.v4_lengths } else { &self.v6_lengths };
        lengths.iter().find_map(|length| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            self.by_prefix.get(&prefix).map(|value| (prefix, value))
        })
    }
}

impl<T: Default> Prefixes<T> {
    /// The value of exactly `prefix`, made when it is not there yet.
    pub(super) fn entry(&mut self, prefix: IpNet) -> &mut T {
        let prefix = prefix.trunc();
        let lengths = if prefix.addr().is_ipv4() { &mut self.v4_lengths } else { &mut self.v6_lengths };
        if let Err(place) = lengths.binary_search_by(|length| prefix.prefix_len().cmp(length)) {
            lengths.insert(place, prefix.prefix_len());
        }
        self.by_prefix.entry(prefix).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_that_contains_the_address_wins() {
        let mut prefixes = Prefixes::<&str>::default();
        for (prefix, name) in [("0.0.0.0/0", "any"), ("10.0.0.0/8", "ten"), ("10.1.0.0/16", "ten-one"), ("::/0", "six")]
        {
            *prefixes.entry(prefix.parse().expect("prefix")) = name;
        }
        for (address, name) in [("10.1.2.3", "ten-one"), ("10.2.2.3", "ten"), ("11.0.0.1", "any"), ("::1", "six")] {
            let found = prefixes.longest(address.parse().expect("address")).map(|(_, value)| *value);
            assert_eq!(found, Some(name), "{address}");
        }
    }

    #[test]
    fn a_prefix_with_host_bits_is_the_prefix_without_them() {
        let mut prefixes = Prefixes::<u8>::default();
        *prefixes.entry("10.1.2.3/8".parse().expect("prefix")) = 1;
        assert_eq!(prefixes.longest("10.9.9.9".parse().expect("address")).map(|(_, value)| *value), Some(1));
        assert!(prefixes.longest("11.9.9.9".parse().expect("address")).is_none());
    }
}
