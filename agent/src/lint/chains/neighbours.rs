//! Which filter chains can mislead the connections of which others, without comparing each with each: of ten thousand
//! chains, hardly any two have a connection in common.
//!
//! Before: the chains of one listener. After: [`super::traps`], which tries connections between two. What is found is
//! exactly what [`misleads`] says of all pairs; a property test holds it to that.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::reachable::{misleads, suffixes};
use crate::listener::chain::ChainMatch;

/// The chains of a listener, by the criteria that keep them apart first.
pub(super) struct Neighbours<'a> {
    matches: Vec<&'a ChainMatch>,
    ports: HashMap<Option<u16>, OfPort<'a>>,
}

/// Those with the same `destination_port`.
#[derive(Default)]
struct OfPort<'a> {
    all: Vec<usize>,
    lists: HashMap<&'a [IpNet], OfPrefixes<'a>>,
    /// The lists that name a network, by its first address and the length of its prefix.
    networks: BTreeMap<(IpAddr, u8), Vec<&'a [IpNet]>>,
}

/// Of these, those with the same `prefix_ranges`.
#[derive(Default)]
struct OfPrefixes<'a> {
    all: Vec<usize>,
    /// Those that ask for no server name.
    unnamed: Vec<usize>,
    /// By each server name that they ask for.
    named: HashMap<&'a str, Vec<usize>>,
    /// By each wildcard, without the star.
    wildcards: HashMap<&'a str, Vec<usize>>,
    /// By both, without stars and read from the end: those that a wildcard stands for lie next to each other.
    backwards: BTreeMap<Vec<u8>, Vec<usize>>,
}

impl<'a> Neighbours<'a> {
    pub(super) fn new(matches: Vec<&'a ChainMatch>) -> Self {
        let mut ports: HashMap<_, OfPort<'a>> = HashMap::new();
        for (index, chain) in matches.iter().copied().enumerate() {
            ports.entry(chain.destination_port).or_default().insert(index, chain);
        }
        Self { matches, ports }
    }

    /// The chains that can mislead a connection of chain `index`, in order.
    pub(super) fn of(&self, index: usize) -> Vec<usize> {
        let chain = self.matches[index];
        let mut found = Vec::new();
        match chain.destination_port {
            None => {
                let others = self.ports.iter().filter(|(port, _)| port.is_some());
                others.for_each(|(_, group)| found.extend(&group.all));
            }
            Some(_) => found.extend(self.ports.get(&None).into_iter().flat_map(|group| &group.all)),
        }
        if let Some(group) = self.ports.get(&chain.destination_port) {
            group.collect(chain, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found.retain(|other| *other != index && misleads(chain, self.matches[*other]));
        found
    }
}

impl<'a> OfPort<'a> {
    fn insert(&mut self, index: usize, chain: &'a ChainMatch) {
        self.all.push(index);
        let list = chain.prefix_ranges.as_slice();
        let same = self.lists.entry(list).or_insert_with(|| {
            for net in list {
                self.networks.entry((net.network(), net.prefix_len())).or_default().push(list);
            }
            OfPrefixes::default()
        });
        same.all.push(index);
        if chain.server_names.is_empty() {
            same.unnamed.push(index);
        }
        for name in &chain.server_names {
            let text = match name.strip_prefix('*') {
                Some(suffix) => {
                    same.wildcards.entry(suffix).or_default().push(index);
                    suffix
                }
                None => {
                    same.named.entry(name.as_str()).or_default().push(index);
                    name
                }
            };
            same.backwards.entry(backwards(text)).or_default().push(index);
        }
    }

    /// Adds all that can mislead a connection of `chain`, and some that cannot.
    fn collect(&self, chain: &ChainMatch, found: &mut Vec<usize>) {
        let own = chain.prefix_ranges.as_slice();
        if own.is_empty() {
            let others = self.lists.iter().filter(|(list, _)| !list.is_empty());
            others.for_each(|(_, group)| found.extend(&group.all));
        } else {
            let empty: &[IpNet] = &[];
            let meeting = own.iter().flat_map(|net| self.meeting(*net)).filter(|list| *list != own);
            for list in meeting.chain([empty]) {
                found.extend(self.lists.get(list).into_iter().flat_map(|group| &group.all));
            }
        }
        if let Some(same) = self.lists.get(own) {
            same.collect(&chain.server_names, found);
        }
    }

    /// The lists with a network that contains `net`, or that it contains.
    fn meeting(&self, net: IpNet) -> Vec<&'a [IpNet]> {
        let length = net.prefix_len();
        let within = self.networks.range((net.network(), length)..=(net.broadcast(), u8::MAX));
        let within = within.filter(|((_, other), _)| *other >= length).map(|(_, lists)| lists);
        let around = (0..length).filter_map(|length| {
            let around = IpNet::new(net.network(), length).ok()?.trunc();
            self.networks.get(&(around.network(), length))
        });
        within.chain(around).flatten().copied().collect()
    }
}

impl OfPrefixes<'_> {
    /// Adds the chains of whose server names some are in `names` or stand for the same; all, when there are none.
    fn collect(&self, names: &[String], found: &mut Vec<usize>) {
        if names.is_empty() {
            found.extend(&self.all);
            return;
        }
        found.extend(&self.unnamed);
        for name in names {
            let text = match name.strip_prefix('*') {
                Some(suffix) => {
                    let ending = backwards(suffix);
                    let stood_for = self.backwards.range(ending.clone()..);
                    let stood_for = stood_for.take_while(|(text, _)| text.starts_with(&ending));
                    found.extend(stood_for.flat_map(|(_, chains)| chains));
                    suffix
                }
                None => {
                    found.extend(self.named.get(name.as_str()).into_iter().flatten());
                    name
                }
            };
            found.extend(suffixes(text).filter_map(|suffix| self.wildcards.get(suffix)).flatten());
        }
    }
}

fn backwards(text: &str) -> Vec<u8> {
    text.bytes().rev().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::listener::chain::tests::any_match;

    proptest! {
        #[test]
        fn it_finds_what_comparing_each_with_each_finds(
            chains in proptest::collection::vec(any_match(), 0..40),
        ) {
            let matches: Vec<&ChainMatch> = chains.iter().collect();
            let neighbours = Neighbours::new(matches.clone());
            for (index, chain) in matches.iter().enumerate() {
                let compared: Vec<usize> = (0..matches.len())
                    .filter(|other| *other != index && misleads(chain, matches[*other]))
                    .collect();
                prop_assert_eq!(neighbours.of(index), compared, "{:?}", chain);
            }
        }
    }
}
