//! The nested maps of a listener's filter chains, one level per criterion, in Envoy's order.
//!
//! At each level exactly one branch is entered, and there is no way back: when a later criterion fails inside it, no
//! less specific sibling is tried (Envoy, `FilterChainManagerImpl::findFilterChain` and the functions it calls).

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::prefix::Prefixes;
use super::trace::{Branch, Criterion, Observer};
use super::{ChainMatch, ConnectionFacts, SourceType, TransportProtocol};

/// The outermost level.
pub(super) type Index = DestinationPorts;

/// The place of a filter chain in the configured order.
pub(super) type ChainIndex = usize;

/// One criterion's map.
pub(super) trait Level: Default {
    /// Enters `chain` under all of its keys; those that some other chain holds already go into `taken`.
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>);

    /// Enters the branch of `facts`, and goes on inside it.
    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex>;
}

/// Values by key, and the one of the chains that do not ask.
#[derive(Debug)]
struct Keyed<K, V> {
    by_key: HashMap<K, V>,
    any: Option<V>,
}

impl<K, V> Default for Keyed<K, V> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), any: None }
    }
}

impl<K: Eq + Hash, V: Level> Keyed<K, V> {
    fn insert(
        &mut self,
        keys: impl ExactSizeIterator<Item = K>,
        matches: &ChainMatch,
        chain: ChainIndex,
        taken: &mut Vec<ChainIndex>,
    ) {
        if keys.len() == 0 {
            self.any.get_or_insert_default().insert(matches, chain, taken);
        }
        for key in keys {
            self.by_key.entry(key).or_default().insert(matches, chain, taken);
        }
    }

    /// Goes on in `named`, else in the branch of the chains that do not ask.
    fn enter<'a, O: Observer>(
        &'a self,
        criterion: Criterion,
        named: Option<(Branch<'_>, &'a V)>,
        facts: &ConnectionFacts,
        observer: &mut O,
    ) -> Option<ChainIndex> {
        enter(criterion, named.or(self.any.as_ref().map(|any| (Branch::Any, any))), facts, observer)
    }
}

/// Tells `observer` which branch is taken, and takes it.
fn enter<V: Level, O: Observer>(
    criterion: Criterion,
    branch: Option<(Branch<'_>, &V)>,
    facts: &ConnectionFacts,
    observer: &mut O,
) -> Option<ChainIndex> {
    match branch {
        Some((branch, level)) => {
            observer.entered(criterion, branch);
            level.find(facts, observer)
        }
        None => {
            observer.entered(criterion, Branch::Nowhere);
            None
        }
    }
}

/// What a chain without prefixes stands for.
pub(super) const EVERY_ADDRESS: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

impl<V: Level> Prefixes<V> {
    fn insert(&mut self, prefixes: &[IpNet], matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        let prefixes = if prefixes.is_empty() { &EVERY_ADDRESS } else { prefixes };
        for prefix in prefixes {
            self.entry(*prefix).insert(matches, chain, taken);
        }
    }

    fn enter<O: Observer>(
        &self,
        criterion: Criterion,
        address: IpAddr,
        facts: &ConnectionFacts,
        observer: &mut O,
    ) -> Option<ChainIndex> {
        let branch = self.longest(address).map(|(prefix, level)| (Branch::Prefix(prefix), level));
        enter(criterion, branch, facts, observer)
    }
}

/// 1. `destination_port`.
#[derive(Debug, Default)]
pub(super) struct DestinationPorts(Keyed<u16, DestinationPrefixes>);

impl Level for DestinationPorts {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        self.0.insert(matches.destination_port.into_iter(), matches, chain, taken);
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        let port = facts.destination.port();
        let named = self.0.by_key.get(&port).map(|level| (Branch::Port(port), level));
        self.0.enter(Criterion::DestinationPort, named, facts, observer)
    }
}

/// 2. `prefix_ranges`.
#[derive(Debug, Default)]
struct DestinationPrefixes(Prefixes<ServerNames>);

impl Level for DestinationPrefixes {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        self.0.insert(&matches.prefix_ranges, matches, chain, taken);
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        self.0.enter(Criterion::PrefixRanges, facts.destination.ip(), facts, observer)
    }
}

/// 3. `server_names`: exact ones, and wildcards by their suffix with the dot (`.example.com`).
#[derive(Debug, Default)]
struct ServerNames {
    exact: Keyed<String, TransportProtocols>,
    wildcard: HashMap<String, TransportProtocols>,
}

impl ServerNames {
    /// The exact name, else the longest wildcard: each dot but a leading or a final one begins a suffix.
    fn named<'a, 'f>(&'a self, name: &'f str) -> Option<(Branch<'f>, &'a TransportProtocols)> {
        if let Some(level) = self.exact.by_key.get(name) {
            return Some((Branch::ServerName(Cow::Borrowed(name)), level));
        }
        let dots =
            name.bytes().enumerate().filter(|(place, byte)| *byte == b'.' && *place > 0 && *place + 1 < name.len());
        dots.map(|(place, _)| &name[place..])
            .find_map(|suffix| Some((Branch::ServerNameSuffix(Cow::Borrowed(suffix)), self.wildcard.get(suffix)?)))
    }
}

impl Level for ServerNames {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        if matches.server_names.is_empty() {
            self.exact.any.get_or_insert_default().insert(matches, chain, taken);
        }
        for name in &matches.server_names {
            let level = match name.strip_prefix('*') {
                Some(suffix) => self.wildcard.entry(suffix.to_owned()).or_default(),
                None => self.exact.by_key.entry(name.clone()).or_default(),
            };
            level.insert(matches, chain, taken);
        }
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        let named = facts.server_name.as_deref().and_then(|name| self.named(name));
        self.exact.enter(Criterion::ServerNames, named, facts, observer)
    }
}

/// 4. `transport_protocol`.
#[derive(Debug, Default)]
struct TransportProtocols(Keyed<TransportProtocol, ApplicationProtocols>);

impl Level for TransportProtocols {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        self.0.insert(matches.transport_protocol.into_iter(), matches, chain, taken);
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        let protocol = facts.transport_protocol;
        let named = self.0.by_key.get(&protocol).map(|level| (Branch::TransportProtocol(protocol), level));
        self.0.enter(Criterion::TransportProtocol, named, facts, observer)
    }
}

/// 5. `application_protocols`: the first of the client's list that any chain names.
#[derive(Debug, Default)]
struct ApplicationProtocols(Keyed<String, DirectSourcePrefixes>);

impl Level for ApplicationProtocols {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        self.0.insert(matches.application_protocols.iter().cloned(), matches, chain, taken);
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        let named = facts.application_protocols.iter().find_map(|protocol| {
            let level = self.0.by_key.get(protocol)?;
            Some((Branch::ApplicationProtocol(Cow::Borrowed(protocol.as_str())), level))
        });
        self.0.enter(Criterion::ApplicationProtocols, named, facts, observer)
    }
}

/// 6. `direct_source_prefix_ranges`.
#[derive(Debug, Default)]
struct DirectSourcePrefixes(Prefixes<SourceTypes>);

impl Level for DirectSourcePrefixes {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        self.0.insert(&matches.direct_source_prefix_ranges, matches, chain, taken);
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        self.0.enter(Criterion::DirectSourcePrefixRanges, facts.client.ip(), facts, observer)
    }
}

/// 7. `source_type`.
#[derive(Debug, Default)]
struct SourceTypes(Keyed<SourceType, SourcePrefixes>);

impl Level for SourceTypes {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        let key = (matches.source_type != SourceType::Any).then_some(matches.source_type);
        self.0.insert(key.into_iter(), matches, chain, taken);
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        let of = SourceType::of(facts.client.ip(), facts.destination.ip());
        let named = self.0.by_key.get(&of).map(|level| (Branch::SourceType(of), level));
        self.0.enter(Criterion::SourceType, named, facts, observer)
    }
}

/// 8. `source_prefix_ranges`.
#[derive(Debug, Default)]
struct SourcePrefixes(Prefixes<SourcePorts>);

impl Level for SourcePrefixes {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        self.0.insert(&matches.source_prefix_ranges, matches, chain, taken);
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        self.0.enter(Criterion::SourcePrefixRanges, facts.client.ip(), facts, observer)
    }
}

/// 9. `source_ports`.
#[derive(Debug, Default)]
struct SourcePorts(Keyed<u16, Leaf>);

impl Level for SourcePorts {
    fn insert(&mut self, matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        self.0.insert(matches.source_ports.iter().copied(), matches, chain, taken);
    }

    fn find<O: Observer>(&self, facts: &ConnectionFacts, observer: &mut O) -> Option<ChainIndex> {
        let port = facts.client.port();
        let named = self.0.by_key.get(&port).map(|level| (Branch::Port(port), level));
        self.0.enter(Criterion::SourcePorts, named, facts, observer)
    }
}

/// The end of every path: one chain.
#[derive(Debug, Default)]
struct Leaf(Option<ChainIndex>);

impl Level for Leaf {
    fn insert(&mut self, _matches: &ChainMatch, chain: ChainIndex, taken: &mut Vec<ChainIndex>) {
        match self.0 {
            // A chain that names one key twice overlaps with nobody.
            Some(first) if first != chain => taken.push(first),
            _ => self.0 = Some(chain),
        }
    }

    fn find<O: Observer>(&self, _facts: &ConnectionFacts, _observer: &mut O) -> Option<ChainIndex> {
        self.0
    }
}
