//! Filter chains that no connection gets, and connections that get no filter chain though one accepts them.
//!
//! Both are found by trying connections on the listener's own [`FilterChains`]: a trap is reported with a connection
//! that fell into it. That a chain is unreachable is said only when all connections that could tell were tried.
//!
//! [`FilterChains`]: crate::listener::chain::FilterChains

mod neighbours;
mod traps;

use std::cell::{Cell, OnceCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::reachable::{INSPECTED, Inspected, Names, Sight, boundaries, unnamed_source_port};
use super::{Finding, Kind};
use crate::listener::Listener;
use crate::listener::chain::{ChainMatch, ConnectionFacts, FilterChain, TransportProtocol};
use crate::listener::dispatch::Listeners;

use neighbours::Neighbours;

/// So many connections are tried for one question; without an answer until then, nothing is said.
const MAX_TRIES: usize = 20_000;
/// Connections that are tried before those are made that tell all chains apart.
const LIKELY_TRIES: usize = 64;
/// In messages, a client or destination that no chain cares about looks like this (RFC 5737, RFC 3849).
const SOMEBODY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// All findings about the filter chains of `listener`, which is written at `path`.
pub(super) fn findings(path: &str, listeners: &Listeners, listener: &Listener) -> Vec<Finding> {
    let matches: Vec<_> = listener.chains.all().iter().map(|chain| &chain.matches).collect();
    let lint = Lint {
        path,
        listeners,
        listener,
        sight: Sight::of(listeners, listener),
        source_port: unnamed_source_port(&matches),
        names: Names::of(&matches),
        neighbours: Neighbours::new(matches.clone()),
        matches,
        unnamed_port: OnceCell::new(),
        addresses: OnceCell::new(),
        tries_left: Cell::new(traps::MAX_TRIES),
        undecided: Cell::new(0),
    };
    let mut findings = Vec::new();
    for (index, chain) in listener.chains.all().iter().enumerate() {
        match lint.reach(index, chain) {
            Reach::Never(reason) => findings.push(lint.unreachable(index, chain, &reason)),
            Reach::Reached | Reach::Unknown => findings.extend(lint.trap(index, chain)),
        }
    }
    findings.extend(lint.undecided());
    findings
}

struct Lint<'a> {
    path: &'a str,
    listeners: &'a Listeners,
    listener: &'a Listener,
    sight: Sight<'a>,
    /// Of all chains.
    matches: Vec<&'a ChainMatch>,
    /// Of all chains.
    names: Names<'a>,
    neighbours: Neighbours<'a>,
    /// A client port that no chain names.
    source_port: Option<u16>,
    /// A destination port that no chain and no listener names, once it is asked for.
    unnamed_port: OnceCell<Option<u16>>,
    /// Those that tell the chains apart, once they are asked for.
    addresses: OnceCell<Vec<IpAddr>>,
    /// Of [`traps::MAX_TRIES`].
    tries_left: Cell<usize>,
    /// Chains whose traps were not all looked for.
    undecided: Cell<usize>,
}

/// Whether some connection gets a chain.
enum Reach {
    Reached,
    /// With the reason.
    Never(String),
    Unknown,
}

impl Lint<'_> {
    fn chains(&self) -> &[Arc<FilterChain>] {
        self.listener.chains.all()
    }

    fn chain_path(&self, index: usize) -> String {
        format!("{}.filter_chains[{index}]", self.path)
    }

    fn reach(&self, index: usize, chain: &FilterChain) -> Reach {
        if let Some(reason) = self.blind(&chain.matches) {
            return Reach::Never(reason);
        }
        let gets_it = |facts: &ConnectionFacts| {
            self.sight.may_arrive(facts.destination)
                && self.listener.chains.find(facts).and_then(|found| found.index) == Some(index)
        };
        // Most chains are reached by anybody who fulfils their criteria.
        let likely = self.connections_between(&chain.matches, likely_addresses(&chain.matches));
        if likely.take(LIKELY_TRIES).any(|facts| gets_it(&facts)) {
            return Reach::Reached;
        }
        let mut accepted = None;
        for (tried, facts) in self.connections(&chain.matches).enumerate() {
            if tried >= MAX_TRIES {
                return Reach::Unknown;
            }
            if !self.sight.may_arrive(facts.destination) {
                continue;
            }
            if gets_it(&facts) {
                return Reach::Reached;
            }
            if accepted.is_none() && chain.matches.accepts_all(&facts) {
                accepted = Some(facts);
            }
        }
        Reach::Never(match accepted {
            None => "no connection that arrives here meets all of its criteria at once".to_owned(),
            Some(facts) => match self.taken_from(index, &facts) {
                Some((reason, other)) => format!("{reason} (filter chain '{}')", other.label()),
                None => return Reach::Unknown,
            },
        })
    }

    /// What `matches` asks for and no listener filter finds out.
    fn blind(&self, matches: &ChainMatch) -> Option<String> {
        let Sight { tls_inspector, http_inspector, port, .. } = self.sight;
        if !tls_inspector && !matches.server_names.is_empty() {
            return Some("server_names needs tls_inspector among the listener_filters".to_owned());
        }
        if !tls_inspector && matches.transport_protocol == Some(TransportProtocol::Tls) {
            return Some("transport_protocol tls needs tls_inspector among the listener_filters".to_owned());
        }
        let protocols = &matches.application_protocols;
        if !protocols.is_empty() && !tls_inspector && !http_inspector {
            return Some(
                "application_protocols needs http_inspector (http/1.0, http/1.1, h2c) or tls_inspector (ALPN) among \
                 the listener_filters"
                    .to_owned(),
            );
        }
        let alpn_possible = tls_inspector && matches.transport_protocol != Some(TransportProtocol::RawBuffer);
        let inspected = http_inspector && protocols.iter().any(|own| INSPECTED.contains(&own.as_str()));
        if !protocols.is_empty() && !alpn_possible && !inspected {
            return Some(format!("of plain connections, {} is never found out", protocols.join(" or ")));
        }
        if !matches.server_names.is_empty() && matches.transport_protocol == Some(TransportProtocol::RawBuffer) {
            return Some("a connection with transport_protocol raw_buffer has no server name".to_owned());
        }
        match (port, matches.destination_port) {
            (Some(port), Some(wanted)) if port != wanted => {
                Some(format!("it asks for destination_port {wanted}, and the listener's connections go to {port}"))
            }
            _ => None,
        }
    }

    /// Connections that `matches` may accept: enough of them that one gets the chain if any does.
    fn connections(&self, matches: &ChainMatch) -> impl Iterator<Item = ConnectionFacts> + use<'_> {
        let addresses = SOMEBODY.into_iter().chain(self.addresses().iter().copied()).collect();
        self.connections_between(matches, addresses)
    }

    /// Connections that `matches` may accept, with these addresses at both ends.
    fn connections_between(
        &self,
        matches: &ChainMatch,
        addresses: Vec<IpAddr>,
    ) -> impl Iterator<Item = ConnectionFacts> + use<'_> {
        let ports = self.ports(matches.destination_port);
        let within =
            |prefixes: &[IpNet], ip: &IpAddr| prefixes.is_empty() || prefixes.iter().any(|net| net.contains(ip));
        let destinations = self.sight.destinations(addresses.clone());
        let destinations: Vec<_> = destinations.into_iter().filter(|ip| within(&matches.prefix_ranges, ip)).collect();
        let mut clients = addresses;
        clients.extend(&destinations);
        clients
            .retain(|ip| within(&matches.direct_source_prefix_ranges, ip) && within(&matches.source_prefix_ranges, ip));
        let source_ports = match matches.source_ports.as_slice() {
            [] => self.source_port.into_iter().collect(),
            ports => ports.to_vec(),
        };
        product(ports, destinations, self.sight.inspected(matches, &self.names, &[]), clients, source_ports)
    }

    /// Destination ports: `wanted`, or else one that nobody names.
    fn ports(&self, wanted: Option<u16>) -> Vec<u16> {
        let unnamed = || *self.unnamed_port.get_or_init(|| self.sight.unnamed_port(&self.matches));
        self.sight.ports(wanted, unnamed)
    }

    /// Addresses that tell the chains apart.
    fn addresses(&self) -> &[IpAddr] {
        self.addresses.get_or_init(|| self.boundaries())
    }

    fn boundaries(&self) -> Vec<IpAddr> {
        let loopback = [
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
            IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        let own = self.listeners.iter().map(|listener| IpNet::from(listener.address.ip().to_canonical()));
        let of = |chain: &ChainMatch| {
            let lists = [&chain.prefix_ranges, &chain.direct_source_prefix_ranges, &chain.source_prefix_ranges];
            lists.into_iter().flatten().copied().collect::<Vec<_>>()
        };
        boundaries(self.matches.iter().copied().flat_map(of).chain(loopback).chain(own))
    }

    fn unreachable(&self, index: usize, chain: &FilterChain, reason: &str) -> Finding {
        Finding {
            path: self.chain_path(index),
            other: None,
            message: format!(
                "no connection gets filter chain '{}' of listener '{}': {reason}",
                chain.label(),
                self.listener.name
            ),
            kind: Kind::UnreachableFilterChain,
        }
    }

    /// Why `facts`, which chain `index` accepts, was led elsewhere, and by which chain.
    fn taken_from(&self, index: usize, facts: &ConnectionFacts) -> Option<(String, &Arc<FilterChain>)> {
        let trace = self.listener.chains.trace(facts);
        let lost = trace.lost.iter().find(|lost| lost.chain.index == Some(index))?;
        let step = trace.steps.iter().find(|step| Some(step.criterion) == lost.criterion)?;
        let culprit = self.chains().iter().find(|other| other.matches.is_in(step.criterion, &step.branch))?;
        Some((lost.reason.clone(), culprit))
    }
}

/// Somebody, and who is named first.
fn likely_addresses(matches: &ChainMatch) -> Vec<IpAddr> {
    let lists = [&matches.prefix_ranges, &matches.direct_source_prefix_ranges, &matches.source_prefix_ranges];
    SOMEBODY.into_iter().chain(lists.into_iter().flat_map(|prefixes| first_of(prefixes))).collect()
}

fn first_of(prefixes: &[IpNet]) -> impl Iterator<Item = IpAddr> {
    prefixes.iter().take(1).map(|prefix| prefix.hosts().next().unwrap_or(prefix.network()))
}

fn product(
    ports: Vec<u16>,
    destinations: Vec<IpAddr>,
    inspected: Vec<Inspected>,
    clients: Vec<IpAddr>,
    source_ports: Vec<u16>,
) -> impl Iterator<Item = ConnectionFacts> {
    let total = ports.len() * destinations.len() * inspected.len() * clients.len() * source_ports.len();
    let all = (0..total).map(move |number| {
        let mut number = number;
        let mut place = |length: usize| {
            let place = number % length;
            number /= length;
            place
        };
        let inspected = &inspected[place(inspected.len())];
        let destination = SocketAddr::new(destinations[place(destinations.len())], ports[place(ports.len())]);
        let client = SocketAddr::new(clients[place(clients.len())], source_ports[place(source_ports.len())]);
        inspected.facts(destination, client)
    });
    all.filter(|facts| facts.destination.ip().is_ipv4() == facts.client.ip().is_ipv4())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::listener::chain::tests::{any_facts, any_match, chains, compatible};
    use crate::listener::{Binding, HandOff, ListenerFilter, OnFiltersTimeout, ReusePort};

    fn accepting(matches: Vec<ChainMatch>) -> Listeners {
        let listener = Listener {
            name: "out".into(),
            address: "127.0.0.1:15001".parse().expect("address"),
            direction: crate::listener::TrafficDirection::Outbound,
            binding: Binding::Socket { reuse_port: ReusePort::PerWorker, backlog: 1 },
            hand_off: HandOff::ByOriginalDst,
            listener_filters: vec![ListenerFilter::TlsInspector, ListenerFilter::HttpInspector],
            dispatch: crate::listener::Dispatch::Agent,
            listener_filters_timeout: None,
            on_filters_timeout: OnFiltersTimeout::Continue,
            chains: chains(matches).expect("compatible"),
            stats: Arc::default(),
        };
        Listeners::new(vec![Arc::new(listener)]).expect("one listener")
    }

    /// What the listener filters could have made of it.
    fn possible(mut facts: ConnectionFacts) -> ConnectionFacts {
        if facts.transport_protocol == TransportProtocol::RawBuffer {
            facts.server_name = None;
            facts.application_protocols.retain(|offer| INSPECTED.contains(&offer.as_str()));
            facts.application_protocols.truncate(1);
        }
        facts
    }

    proptest! {
        #[test]
        fn no_connection_ever_gets_a_chain_that_is_called_unreachable_and_every_trap_catches_one(
            candidates in proptest::collection::vec(any_match(), 1..6),
            connections in proptest::collection::vec(any_facts().prop_map(possible), 64),
        ) {
            let listeners = accepting(compatible(candidates));
            let listener = listeners.named("out").expect("listener");
            let found = findings("l", &listeners, listener);
            for facts in connections.iter().filter(|facts| facts.destination.ip().is_ipv4() == facts.client.ip().is_ipv4()) {
                if let Some(index) = listener.chains.find(facts).and_then(|chain| chain.index) {
                    let path = format!("l.filter_chains[{index}]");
                    let wrong = found.iter().find(|finding| {
                        finding.path == path && finding.kind == Kind::UnreachableFilterChain
                    });
                    prop_assert!(wrong.is_none(), "{wrong:?} {facts:?}");
                }
            }
            for trap in found.iter().filter(|finding| finding.kind == Kind::FilterChainTrap) {
                prop_assert!(trap.other.as_ref().is_some_and(|other| *other != trap.path), "{trap:?}");
            }
        }
    }
}
