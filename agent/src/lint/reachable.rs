//! Which connections a listener can see: what its address lets in, and what its listener filters can find out.
//!
//! After: [`super::chains`], which tries the connections made here on the listener's own filter chains.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::addr::{ClientAddr, OrigDstAddr};
use crate::listener::TrafficDirection;
use crate::listener::chain::{ChainMatch, ConnectionFacts, TransportProtocol};
use crate::listener::dispatch::Listeners;
use crate::listener::{Binding, HandOff, Listener, ListenerFilter};

/// What `http_inspector` can find.
pub(super) const INSPECTED: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// How far a listener can see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    listeners: &'a Listeners,
    listener: &'a Listener,
    /// The port of every connection; `None` when the listener takes any.
    pub(super) port: Option<u16>,
    /// The destination of every connection, where it is always the same one.
    address: Option<IpAddr>,
    /// Whether destinations of these families arrive.
    v4: bool,
    v6: bool,
    pub(super) tls_inspector: bool,
    pub(super) http_inspector: bool,
}

/// What the listener filters make of a connection.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    transport: TransportProtocol,
    server_name: Option<String>,
    protocols: Vec<String>,
}

impl<'a> Sight<'a> {
    pub(super) fn of(listeners: &'a Listeners, listener: &'a Listener) -> Self {
        let has = |filter| listener.listener_filters.contains(&filter);
        let (tls_inspector, http_inspector) = (has(ListenerFilter::TlsInspector), has(ListenerFilter::HttpInspector));
        let everything =
            Self { listeners, listener, port: None, address: None, v4: true, v6: true, tls_inspector, http_inspector };
        // What no other listener takes stays at the one that accepted it, whatever its destination: also where none is
        // asked, at the inbound one without `use_original_dst`.
        if listener.receives() {
            return everything;
        }
        let ip = listener.address.ip();
        // A socket on [::] takes IPv4 connections as well; a virtual listener is found by family.
        let dual = ip.is_unspecified() && matches!(listener.binding, Binding::Socket { .. });
        Self {
            port: Some(listener.address.port()),
            address: (!ip.is_unspecified()).then(|| ip.to_canonical()),
            v4: ip.to_canonical().is_ipv4() || dual,
            v6: ip.to_canonical().is_ipv6(),
            ..everything
        }
    }

    /// Whether no other listener takes every connection to `destination`.
    pub(super) fn may_arrive(&self, destination: OrigDstAddr) -> bool {
        // Connections from outside, which nobody redirected, arrive at a socket whatever other listeners there are.
        self.keeps_all() || self.arrives(destination)
    }

    /// Whether it has a socket and hands nothing on.
    fn keeps_all(&self) -> bool {
        self.listener.hand_off == HandOff::Stay && self.listener.binding != Binding::Virtual
    }

    /// Whether a connection to `destination` arrives here and nowhere else.
    pub(super) fn arrives(&self, destination: OrigDstAddr) -> bool {
        if self.listener.direction == TrafficDirection::Inbound && self.keeps_all() {
            return true;
        }
        match self.listeners.find(self.listener.direction, destination) {
            Some((found, _)) => found.name == self.listener.name,
            None => self.listener.binding != Binding::Virtual,
        }
    }

    /// Destination ports: `wanted`, or else `unnamed`.
    pub(super) fn ports(&self, wanted: Option<u16>, unnamed: impl FnOnce() -> Option<u16>) -> Vec<u16> {
        match (self.port, wanted) {
            (Some(port), wanted) if wanted.is_none_or(|wanted| wanted == port) => vec![port],
            (Some(_), _) => Vec::new(),
            (None, Some(wanted)) => vec![wanted],
            (None, None) => unnamed().into_iter().collect(),
        }
    }

    /// A destination port that neither `chains` nor a listener names.
    pub(super) fn unnamed_port(&self, chains: &[&ChainMatch]) -> Option<u16> {
        let listened = self.listeners.iter().map(|listener| listener.address.port());
        let named: BTreeSet<u16> = chains.iter().filter_map(|chain| chain.destination_port).chain(listened).collect();
        (8080..=u16::MAX).find(|port| !named.contains(port))
    }

    /// Destinations that arrive, among `candidates`.
    pub(super) fn destinations(&self, candidates: Vec<IpAddr>) -> Vec<IpAddr> {
        let arrives = |ip: &IpAddr| if ip.is_ipv4() { self.v4 } else { self.v6 };
        match self.address {
            Some(address) => vec![address],
            None => candidates.into_iter().filter(arrives).collect(),
        }
    }

    /// What the listener filters can make of connections that `wanted` accepts. `names` are further server names to try.
    pub(super) fn inspected(&self, wanted: &ChainMatch, others: &Names<'_>, names: &[&str]) -> Vec<Inspected> {
        let mut all = Vec::new();
        if wanted.transport_protocol != Some(TransportProtocol::Tls) && wanted.server_names.is_empty() {
            let protocols =
                |offer: &&str| self.http_inspector && wanted.application_protocols.iter().any(|own| own == *offer);
            let offers = INSPECTED.iter().filter(|offer| protocols(offer)).map(|offer| vec![(*offer).to_owned()]);
            let silent = wanted.application_protocols.is_empty().then(Vec::new);
            let raw = |protocols| Inspected { transport: TransportProtocol::RawBuffer, server_name: None, protocols };
            all.extend(offers.chain(silent).map(raw));
        }
        if self.tls_inspector && wanted.transport_protocol != Some(TransportProtocol::RawBuffer) {
            let mut offers: Vec<Vec<String>> =
                wanted.application_protocols.iter().map(|offer| vec![offer.clone()]).collect();
            if offers.is_empty() {
                offers.push(Vec::new());
            }
            let mut server_names: Vec<Option<String>> =
                wanted.server_names.iter().map(|name| Some(an_instance(name, others))).collect();
            if server_names.is_empty() {
                server_names.push(None);
            }
            server_names.extend(names.iter().map(|name| Some(an_instance(name, others))));
            for server_name in server_names {
                let tls = |protocols: &Vec<String>| Inspected {
                    transport: TransportProtocol::Tls,
                    server_name: server_name.clone(),
                    protocols: protocols.clone(),
                };
                all.extend(offers.iter().map(tls));
            }
        }
        all
    }
}

impl Inspected {
    pub(super) fn facts(&self, destination: SocketAddr, client: SocketAddr) -> ConnectionFacts {
        ConnectionFacts {
            transport_protocol: self.transport,
            server_name: self.server_name.clone(),
            application_protocols: self.protocols.clone(),
            ..ConnectionFacts::raw(OrigDstAddr::new(destination), ClientAddr::new(client))
        }
    }
}

/// The server names that chains ask for.
#[derive(Debug, Default)]
pub(super) struct Names<'a> {
    exact: HashSet<&'a str>,
    /// Of wildcards, without the star.
    suffixes: HashSet<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn of(chains: &[&'a ChainMatch]) -> Self {
        let mut names = Self::default();
        for name in chains.iter().flat_map(|chain| &chain.server_names) {
            match name.strip_prefix('*') {
                Some(suffix) => names.suffixes.insert(suffix),
                None => names.exact.insert(name),
            };
        }
        names
    }

    /// Whether one of them is `name`, or a wildcard for it that is longer than `suffix`.
    fn know(&self, name: &str, suffix: &str) -> bool {
        let mut longer = suffixes(name).take_while(|other| other.len() > suffix.len());
        self.exact.contains(name) || longer.any(|other| self.suffixes.contains(other))
    }

    fn count(&self) -> usize {
        self.exact.len() + self.suffixes.len()
    }
}

/// What `name` ends with, from the whole of it to nothing.
pub(super) fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    name.char_indices().map(|(place, _)| &name[place..]).chain([""])
}

/// The name itself, or one that the wildcard stands for and that none of `others` names.
fn an_instance(name: &str, others: &Names<'_>) -> String {
    let Some(suffix) = name.strip_prefix('*') else { return name.to_owned() };
    // One more than there are names, so that one of them is free.
    let mut candidates = (0..=others.count()).map(|number| match number {
        0 => format!("any{suffix}"),
        _ => format!("any{number}{suffix}"),
    });
    candidates.find(|candidate| !others.know(candidate, suffix)).unwrap_or_else(|| format!("any{suffix}"))
}

/// A client port that none of `others` names.
pub(super) fn unnamed_source_port(others: &[&ChainMatch]) -> Option<u16> {
    let named: BTreeSet<u16> = others.iter().flat_map(|other| &other.source_ports).copied().collect();
    (40_000..=u16::MAX).find(|port| !named.contains(port))
}

/// Whether a connection that `general` accepts can be led by what `special` asks for: not when the first criterion in
/// which the two differ keeps them apart. May say so though none can, and never the other way round.
pub(super) fn misleads(general: &ChainMatch, special: &ChainMatch) -> bool {
    if general.destination_port != special.destination_port {
        return general.destination_port.is_none() || special.destination_port.is_none();
    }
    let prefixes = (&general.prefix_ranges, &special.prefix_ranges);
    if prefixes.0 != prefixes.1 {
        return some_meet(prefixes.0, prefixes.1, |one, other| one.contains(other) || other.contains(one));
    }
    let names = (&general.server_names, &special.server_names);
    names.0 == names.1 || some_meet(names.0, names.1, |one, other| names_meet(one, other))
}

/// Whether some of `all` and of `others` meet. None at all stand for everything.
fn some_meet<T>(all: &[T], others: &[T], meet: impl Fn(&T, &T) -> bool) -> bool {
    all.is_empty() || others.is_empty() || all.iter().any(|one| others.iter().any(|other| meet(one, other)))
}

/// Whether a server name exists that both stand for.
fn names_meet(one: &str, other: &str) -> bool {
    match (one.strip_prefix('*'), other.strip_prefix('*')) {
        (None, None) => one == other,
        (Some(suffix), None) => other.ends_with(suffix),
        (None, Some(suffix)) => one.ends_with(suffix),
        (Some(one), Some(other)) => one.ends_with(other) || other.ends_with(one),
    }
}

/// Addresses that tell all combinations of `prefixes` apart: where each begins, what follows its end, and the address
/// after each of these.
///
/// A set of addresses that is made of such prefixes by union, intersection and difference contains one of these, or
/// nothing; two of these, if it has two.
pub(super) fn boundaries(prefixes: impl Iterator<Item = IpNet>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    for prefix in prefixes {
        all.push(prefix.network());
        all.extend(next(prefix.broadcast()));
    }
    let second: Vec<IpAddr> = all.iter().filter_map(|first| next(*first)).collect();
    all.extend(second);
    all.sort_unstable();
    all.dedup();
    all
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|next| Ipv4Addr::from_bits(next).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|next| Ipv6Addr::from_bits(next).into()),
    }
}
