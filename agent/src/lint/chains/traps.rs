//! Connections that a filter chain accepts, and that get none because a more specific one was entered first.
//!
//! Each chain is tried with each other that can mislead a connection, so the tries are bounded for each listener; when
//! they are used up, that is a finding too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Lint, SOMEBODY, first_of, product};
use crate::lint::{Finding, Kind};
use crate::listener::chain::trace::Criterion;
use crate::listener::chain::{ChainMatch, ConnectionFacts, FilterChain, SourceType, TransportProtocol};

/// So many connections are tried for one listener: beyond that, nobody would wait for the answer.
pub(super) const MAX_TRIES: usize = 500_000;

impl Lint<'_> {
    /// A connection that `chain` accepts, and that gets no chain because of a more specific one.
    pub(super) fn trap(&self, index: usize, chain: &FilterChain) -> Option<Finding> {
        let mut tries_left = super::MAX_TRIES;
        let mut spend = || {
            tries_left = tries_left.checked_sub(1)?;
            self.tries_left.set(self.tries_left.get().checked_sub(1)?);
            Some(())
        };
        for other in self.neighbours.of(index) {
            let other = &self.chains()[other];
            for facts in self.between(&chain.matches, &other.matches) {
                if spend().is_none() {
                    self.undecided.update(|chains| chains + 1);
                    return None;
                }
                if let Some(trapped) = self.trapped_with(index, chain, &facts) {
                    return Some(trapped);
                }
            }
        }
        None
    }

    /// Whether `facts` are accepted by `chain` and led elsewhere by another.
    fn trapped_with(&self, index: usize, chain: &FilterChain, facts: &ConnectionFacts) -> Option<Finding> {
        if !self.sight.arrives(facts.destination) || !chain.matches.accepts_all(facts) {
            return None;
        }
        let found = self.listener.chains.find(facts);
        if found.is_some_and(|found| found.index.is_some()) {
            return None;
        }
        let (reason, culprit) = self.taken_from(index, facts)?;
        Some(self.trapped(index, facts, &reason, culprit, found.is_some()))
    }

    /// That not all traps were looked for, if so.
    pub(super) fn undecided(&self) -> Option<Finding> {
        let chains = self.undecided.get();
        (chains > 0).then(|| Finding {
            path: self.path.to_owned(),
            other: None,
            message: format!(
                "listener '{}' has {} filter chains, too many to try each with each other: for {chains} of them it is \
                 not known whether a connection that they accept gets no filter chain because of a more specific one",
                self.listener.name,
                self.chains().len(),
            ),
            kind: Kind::FilterChainsUndecided,
        })
    }

    /// Connections that `general` may accept and that go, as far as they can, where `special` leads.
    fn between(&self, general: &ChainMatch, special: &ChainMatch) -> impl Iterator<Item = ConnectionFacts> + use<'_> {
        let others = &self.names;
        let mut ports = self.ports(special.destination_port);
        ports.extend(self.ports(general.destination_port));
        ports.dedup();
        let mut destinations = SOMEBODY.to_vec();
        destinations.extend(first_of(&special.prefix_ranges).chain(first_of(&general.prefix_ranges)));
        let destinations = self.sight.destinations(destinations);
        let mut clients = SOMEBODY.to_vec();
        clients.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        for chain in [special, general] {
            clients.extend(first_of(&chain.direct_source_prefix_ranges).chain(first_of(&chain.source_prefix_ranges)));
        }
        let source_ports: Vec<_> = self
            .source_port
            .into_iter()
            .chain(special.source_ports.first().copied())
            .chain(general.source_ports.first().copied())
            .collect();
        let names: Vec<_> = special.server_names.iter().take(1).map(String::as_str).collect();
        let mut inspected = self.sight.inspected(general, others, &names);
        let narrowed = ChainMatch { application_protocols: special.application_protocols.clone(), ..general.clone() };
        inspected.extend(self.sight.inspected(&narrowed, others, &names));
        product(ports, destinations, inspected, clients, source_ports)
    }

    fn trapped(
        &self,
        index: usize,
        facts: &ConnectionFacts,
        reason: &str,
        culprit: &FilterChain,
        default: bool,
    ) -> Finding {
        let label = self.chains()[index].label();
        let (kind, instead) = match default {
            true => (Kind::FilterChainDefault, "the default filter chain"),
            false => (Kind::FilterChainTrap, "no filter chain"),
        };
        let message = format!(
            "filter chain '{label}' of listener '{}' accepts {}, but such a connection gets {instead}, because filter \
             chain '{}' asks for something more specific ({reason})",
            self.listener.name,
            described(facts, &self.chains()[index].matches, &culprit.matches),
            culprit.label(),
        );
        Finding {
            path: self.chain_path(index),
            other: culprit.index.map(|index| self.chain_path(index)),
            message,
            kind,
        }
    }
}

/// What of `facts` the two chains care about, in words.
fn described(facts: &ConnectionFacts, chain: &ChainMatch, other: &ChainMatch) -> String {
    let asked = |criterion: Criterion| chain.wanted(criterion).is_some() || other.wanted(criterion).is_some();
    let mut parts = vec![match facts.transport_protocol {
        TransportProtocol::Tls => "a TLS connection".to_owned(),
        TransportProtocol::RawBuffer => "a plaintext connection".to_owned(),
    }];
    if asked(Criterion::DestinationPort) {
        parts.push(format!("to port {}", facts.destination.port()));
    }
    if asked(Criterion::PrefixRanges) {
        parts.push(format!("to {}", facts.destination.ip()));
    }
    if let Some(name) = facts.server_name.as_ref().filter(|_| asked(Criterion::ServerNames)) {
        parts.push(format!("with server name {name}"));
    }
    if asked(Criterion::ApplicationProtocols) {
        parts.push(format!("with application protocols {}", facts.at(Criterion::ApplicationProtocols)));
    }
    if asked(Criterion::DirectSourcePrefixRanges) || asked(Criterion::SourcePrefixRanges) {
        parts.push(format!("from {}", facts.client.ip()));
    } else if asked(Criterion::SourceType) {
        let local = SourceType::of(facts.client.ip(), facts.destination.ip()) == SourceType::SameIpOrLoopback;
        parts.push(if local { "from this host" } else { "from another host" }.to_owned());
    }
    if asked(Criterion::SourcePorts) {
        parts.push(format!("from port {}", facts.client.port()));
    }
    parts.join(" ")
}
