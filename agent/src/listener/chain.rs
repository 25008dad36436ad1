//! Which filter chain of a listener serves a connection (Envoy's `filter_chain_match`).
//!
//! Before: the listener filters, which found out what they could. After: the chain's network filter. Pure: no I/O, no
//! clock.
//!
//! The criteria are nested maps that are walked in a fixed order without ever turning back (`index`); [`trace`] tells
//! what was seen on the way.

mod index;
mod prefix;
pub mod trace;

#[cfg(test)]
pub(crate) mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::NetworkFilter;
use crate::addr::{ClientAddr, OrigDstAddr};

use index::{ChainIndex, Index, Level};
use trace::{Lost, Trace};

/// What is known of a connection when its filter chain is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// The original destination, or the local address of a connection that was not redirected.
    pub destination: OrigDstAddr,
    /// The peer.
    pub client: ClientAddr,
    /// Set by the listener filters; `RawBuffer` when none said otherwise.
    pub transport_protocol: TransportProtocol,
    /// SNI, lower-cased.
    pub server_name: Option<String>,
    /// All protocols of the ALPN offer, or the one that `http_inspector` found (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<String>,
}

impl ConnectionFacts {
    /// A connection of which nothing but its addresses is known.
    pub fn raw(destination: OrigDstAddr, client: ClientAddr) -> Self {
        Self {
            destination,
            client,
            transport_protocol: TransportProtocol::RawBuffer,
            server_name: None,
            application_protocols: Vec::new(),
        }
    }
}

/// Envoy's `transport_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransportProtocol {
    /// TLS, by its ClientHello.
    Tls,
    /// Anything else.
    RawBuffer,
}

impl TransportProtocol {
    /// The name by which the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::RawBuffer => "raw_buffer",
        }
    }
}

/// The criteria of one filter chain as configured; an empty one matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// 1. The original destination's port.
    pub destination_port: Option<u16>,
    /// 2. The original destination's address.
    pub prefix_ranges: Vec<IpNet>,
    /// 3. SNI: exact names or `*.suffix`, lower-cased.
    pub server_names: Vec<String>,
    /// 4. `tls` or `raw_buffer`.
    pub transport_protocol: Option<TransportProtocol>,
    /// 5. ALPN, or what `http_inspector` found.
    pub application_protocols: Vec<String>,
    /// 6. The peer's address as the kernel reports it.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// 7. From this host or not.
    pub source_type: SourceType,
    /// 8. The client's address.
    pub source_prefix_ranges: Vec<IpNet>,
    /// 9. The client's port.
    pub source_ports: Vec<u16>,
}

/// Envoy's `source_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceType {
    /// Either.
    #[default]
    Any,
    /// From loopback, or from the destination's own address.
    SameIpOrLoopback,
    /// From anywhere else.
    External,
}

impl SourceType {
    /// The name by which the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::SameIpOrLoopback => "same_ip_or_loopback",
            Self::External => "external",
        }
    }

    /// Whether a client at `client` that goes to `destination` counts as local.
    pub fn of(client: IpAddr, destination: IpAddr) -> Self {
        if client.is_loopback() || client == destination { Self::SameIpOrLoopback } else { Self::External }
    }
}

/// One filter chain.
#[derive(Debug)]
pub struct FilterChain {
    /// The configured name.
    pub name: Option<Arc<str>>,
    /// Its place among the listener's `filter_chains`; `None` for the default one.
    pub index: Option<usize>,
    /// When it is chosen.
    pub matches: ChainMatch,
    /// What it does.
    pub filter: NetworkFilter,
}

impl FilterChain {
    /// The configured name, else the index, else `default`.
    pub fn label(&self) -> String {
        match (&self.name, self.index) {
            (Some(name), _) => name.to_string(),
            (None, Some(index)) => index.to_string(),
            (None, None) => "default".to_owned(),
        }
    }
}

/// The filter chains of one listener, indexed by their criteria.
#[derive(Debug)]
pub struct FilterChains {
    all: Vec<Arc<FilterChain>>,
    default: Option<Arc<FilterChain>>,
    /// Of `all`, and then of the default one. Every connection's record names its chain.
    labels: Vec<Arc<str>>,
    index: Index,
}

/// Two filter chains that cannot be told apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainConflict {
    /// All criteria are the same.
    #[error("filter chain '{later}' has the same matching rules defined as '{earlier}'")]
    Duplicate {
        /// Label of the one that came first.
        earlier: String,
        /// Label of the other.
        later: String,
    },
    /// Some combination of their criteria is the same.
    #[error("multiple filter chains with overlapping matching rules are defined: '{earlier}' and '{later}'")]
    Overlap {
        /// Label of the one that came first.
        earlier: String,
        /// Label of the other.
        later: String,
    },
}

impl FilterChains {
    /// Indexes `all` (in configured order).
    ///
    /// # Errors
    /// All pairs of chains that share a combination of criteria.
    pub fn new(all: Vec<Arc<FilterChain>>, default: Option<Arc<FilterChain>>) -> Result<Self, Vec<ChainConflict>> {
        let mut index = Index::default();
        let mut conflicts = Vec::new();
        for (place, chain) in all.iter().enumerate() {
            let mut taken: Vec<ChainIndex> = Vec::new();
            index.insert(&chain.matches, place, &mut taken);
            taken.sort_unstable();
            taken.dedup();
            conflicts.extend(taken.into_iter().map(|first| ChainConflict::between(&all[first], chain)));
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let labels = all.iter().chain(&default).map(|chain| chain.label().into()).collect();
        Ok(Self { all, default, labels, index })
    }

    /// As configured, without the default one.
    pub fn all(&self) -> &[Arc<FilterChain>] {
        &self.all
    }

    /// The default one.
    pub fn default_chain(&self) -> Option<&Arc<FilterChain>> {
        self.default.as_ref()
    }

    /// The chain that serves a connection, the default one included; `None` closes it (flag NR).
    pub fn find(&self, facts: &ConnectionFacts) -> Option<&Arc<FilterChain>> {
        self.find_labelled(facts).map(|(chain, _)| chain)
    }

    /// As [`Self::find`], with the chain's label.
    pub fn find_labelled(&self, facts: &ConnectionFacts) -> Option<(&Arc<FilterChain>, &Arc<str>)> {
        match self.index.find(facts, &mut ()) {
            Some(place) => Some((&self.all[place], &self.labels[place])),
            None => self.default.as_ref().zip(self.labels.last()),
        }
    }

    /// As [`Self::find`], by the same code, with all that was seen on the way.
    pub fn trace(&self, facts: &ConnectionFacts) -> Trace<'_> {
        let mut steps = Vec::new();
        let found = self.index.find(facts, &mut steps);
        let chosen = found.map(|place| &self.all[place]).or(self.default.as_ref());
        let others = self.all.iter().enumerate().filter(|(place, _)| Some(*place) != found);
        let mut lost: Vec<Lost<'_>> = others.map(|(_, chain)| trace::lost(chain, &steps, facts)).collect();
        if let (Some(default), Some(_)) = (&self.default, found) {
            let reason = "only for connections that no other chain takes".to_owned();
            lost.push(Lost { chain: default, criterion: None, reason });
        }
        Trace { chosen, steps, lost }
    }
}

impl ChainConflict {
    /// Label of the chain that has to change.
    pub fn later(&self) -> &str {
        match self {
            Self::Duplicate { later, .. } | Self::Overlap { later, .. } => later,
        }
    }

    fn between(earlier: &FilterChain, later: &FilterChain) -> Self {
        let duplicate = earlier.matches == later.matches;
        let (earlier, later) = (earlier.label(), later.label());
        if duplicate { Self::Duplicate { earlier, later } } else { Self::Overlap { earlier, later } }
    }
}
