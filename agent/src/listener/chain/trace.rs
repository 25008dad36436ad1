//! What was seen on the way to a filter chain: which branch each criterion entered, and where each chain was lost.
//!
//! The walk is the data path's own (the sibling `index`), generic over an [`Observer`]; the data path observes nothing
//! and pays nothing.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::index::EVERY_ADDRESS;
use super::{ChainMatch, ConnectionFacts, FilterChain, SourceType, TransportProtocol};

/// The criteria of `filter_chain_match`, in the order in which they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Criterion {
    /// The original destination's port.
    DestinationPort,
    /// The original destination's address.
    PrefixRanges,
    /// SNI.
    ServerNames,
    /// TLS or not.
    TransportProtocol,
    /// ALPN, or what `http_inspector` found.
    ApplicationProtocols,
    /// The peer's address.
    DirectSourcePrefixRanges,
    /// From this host or not.
    SourceType,
    /// The client's address.
    SourcePrefixRanges,
    /// The client's port.
    SourcePorts,
}

impl Criterion {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::DestinationPort,
        Self::PrefixRanges,
        Self::ServerNames,
        Self::TransportProtocol,
        Self::ApplicationProtocols,
        Self::DirectSourcePrefixRanges,
        Self::SourceType,
        Self::SourcePrefixRanges,
        Self::SourcePorts,
    ];

    /// The name by which the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DestinationPort => "destination_port",
            Self::PrefixRanges => "prefix_ranges",
            Self::ServerNames => "server_names",
            Self::TransportProtocol => "transport_protocol",
            Self::ApplicationProtocols => "application_protocols",
            Self::DirectSourcePrefixRanges => "direct_source_prefix_ranges",
            Self::SourceType => "source_type",
            Self::SourcePrefixRanges => "source_prefix_ranges",
            Self::SourcePorts => "source_ports",
        }
    }
}

/// The one branch that was entered at a criterion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Branch<'a> {
    /// Chains that name this port.
    Port(u16),
    /// Chains with this prefix; those without any are below `/0`.
    Prefix(IpNet),
    /// Chains that name this server.
    ServerName(Cow<'a, str>),
    /// Chains with this wildcard, written with its dot and without its star.
    ServerNameSuffix(Cow<'a, str>),
    /// Chains for this transport.
    TransportProtocol(TransportProtocol),
    /// Chains that name this protocol.
    ApplicationProtocol(Cow<'a, str>),
    /// Chains for clients of this kind.
    SourceType(SourceType),
    /// Chains that do not ask.
    Any,
    /// There was none to enter: the walk ends without a chain.
    Nowhere,
}

impl Branch<'_> {
    fn into_owned(self) -> Branch<'static> {
        match self {
            Self::Port(port) => Branch::Port(port),
            Self::Prefix(prefix) => Branch::Prefix(prefix),
            Self::ServerName(name) => Branch::ServerName(Cow::Owned(name.into_owned())),
            Self::ServerNameSuffix(suffix) => Branch::ServerNameSuffix(Cow::Owned(suffix.into_owned())),
            Self::TransportProtocol(protocol) => Branch::TransportProtocol(protocol),
            Self::ApplicationProtocol(name) => Branch::ApplicationProtocol(Cow::Owned(name.into_owned())),
            Self::SourceType(source) => Branch::SourceType(source),
            Self::Any => Branch::Any,
            Self::Nowhere => Branch::Nowhere,
        }
    }

    /// Whether this is the branch of the chains that do not ask.
    pub fn is_any(&self) -> bool {
        matches!(self, Self::Any) || matches!(self, Self::Prefix(prefix) if prefix.prefix_len() == 0)
    }
}

impl fmt::Display for Branch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            _ if self.is_any() => f.write_str("any"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Prefix(prefix) => write!(f, "{prefix}"),
            Self::ServerName(name) | Self::ApplicationProtocol(name) => f.write_str(name),
            Self::ServerNameSuffix(suffix) => write!(f, "*{suffix}"),
            Self::TransportProtocol(protocol) => f.write_str(protocol.name()),
            Self::SourceType(source) => f.write_str(source.name()),
            Self::Any => f.write_str("any"),
            Self::Nowhere => f.write_str("no branch"),
        }
    }
}

/// Is told of every branch that is entered.
pub trait Observer {
    /// At `criterion`, `branch` was entered.
    fn entered(&mut self, criterion: Criterion, branch: Branch<'_>);
}

/// Sees nothing: the data path.
impl Observer for () {
    fn entered(&mut self, _criterion: Criterion, _branch: Branch<'_>) {}
}

/// One branch that was entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which criterion.
    pub criterion: Criterion,
    /// Which of its branches.
    pub branch: Branch<'static>,
}

/// Records every step.
impl Observer for Vec<Step> {
    fn entered(&mut self, criterion: Criterion, branch: Branch<'_>) {
        self.push(Step { criterion, branch: branch.into_owned() });
    }
}

/// A filter chain's selection, observed.
#[derive(Debug)]
pub struct Trace<'a> {
    /// What [`super::FilterChains::find`] returns.
    pub chosen: Option<&'a Arc<FilterChain>>,
    /// The branches entered, in order; the last one may be [`Branch::Nowhere`].
    pub steps: Vec<Step>,
    /// Every chain of the listener but the chosen one, with what it was lost at.
    pub lost: Vec<Lost<'a>>,
}

/// A chain that was not chosen.
#[derive(Debug)]
pub struct Lost<'a> {
    /// Which.
    pub chain: &'a Arc<FilterChain>,
    /// At which criterion its branch was not the one entered; `None` for the default chain, which was not needed.
    pub criterion: Option<Criterion>,
    /// One sentence for people.
    pub reason: String,
}

/// Why `chain` is not the one that `steps` led to.
pub(super) fn lost<'a>(chain: &'a Arc<FilterChain>, steps: &[Step], facts: &ConnectionFacts) -> Lost<'a> {
    let step = steps.iter().find(|step| !chain.matches.is_in(step.criterion, &step.branch));
    let Some(Step { criterion, branch }) = step else {
        return Lost { chain, criterion: None, reason: "not needed".to_owned() };
    };
    let name = criterion.name();
    let reason = if chain.matches.accepts(*criterion, facts) {
        format!("{name}: the more specific {branch} was entered, and there is no way back")
    } else {
        let wanted = chain.matches.wanted(*criterion).unwrap_or_default();
        format!("{name}: wants {wanted}, the connection has {}", facts.at(*criterion))
    };
    Lost { chain, criterion: Some(*criterion), reason }
}

impl ChainMatch {
    /// Whether the chain lies below `branch` of `criterion`.
    pub fn is_in(&self, criterion: Criterion, branch: &Branch<'_>) -> bool {
        match (criterion, branch) {
            (_, Branch::Nowhere) => false,
            (Criterion::DestinationPort, Branch::Port(port)) => self.destination_port == Some(*port),
            (Criterion::SourcePorts, Branch::Port(port)) => self.source_ports.contains(port),
            (Criterion::PrefixRanges, Branch::Prefix(prefix)) => has_prefix(&self.prefix_ranges, *prefix),
            (Criterion::DirectSourcePrefixRanges, Branch::Prefix(prefix)) => {
                has_prefix(&self.direct_source_prefix_ranges, *prefix)
            }
            (Criterion::SourcePrefixRanges, Branch::Prefix(prefix)) => has_prefix(&self.source_prefix_ranges, *prefix),
            (Criterion::ServerNames, Branch::ServerName(name)) => self.server_names.iter().any(|own| own == name),
            (Criterion::ServerNames, Branch::ServerNameSuffix(suffix)) => {
                self.server_names.iter().any(|own| own.strip_prefix('*') == Some(suffix))
            }
            (Criterion::TransportProtocol, Branch::TransportProtocol(protocol)) => {
                self.transport_protocol == Some(*protocol)
            }
            (Criterion::ApplicationProtocols, Branch::ApplicationProtocol(protocol)) => {
                self.application_protocols.iter().any(|own| own == protocol)
            }
            (Criterion::SourceType, Branch::SourceType(source)) => self.source_type == *source,
            (_, Branch::Any) => self.wanted(criterion).is_none(),
            _ => false,
        }
    }

    /// Whether the criterion alone accepts `facts`; the more specific branches of other chains do not count here.
    pub fn accepts(&self, criterion: Criterion, facts: &ConnectionFacts) -> bool {
        let within = |prefixes: &[IpNet], address| prefixes.iter().any(|prefix| prefix.contains(&address));
        self.wanted(criterion).is_none()
            || match criterion {
                Criterion::DestinationPort => self.destination_port == Some(facts.destination.port()),
                Criterion::PrefixRanges => within(&self.prefix_ranges, facts.destination.ip()),
                Criterion::ServerNames => facts.server_name.as_deref().is_some_and(|name| self.serves(name)),
                Criterion::TransportProtocol => self.transport_protocol == Some(facts.transport_protocol),
                Criterion::ApplicationProtocols => {
                    facts.application_protocols.iter().any(|offer| self.application_protocols.contains(offer))
                }
                Criterion::DirectSourcePrefixRanges => within(&self.direct_source_prefix_ranges, facts.client.ip()),
                Criterion::SourceType => self.source_type == SourceType::of(facts.client.ip(), facts.destination.ip()),
                Criterion::SourcePrefixRanges => within(&self.source_prefix_ranges, facts.client.ip()),
                Criterion::SourcePorts => self.source_ports.contains(&facts.client.port()),
            }
    }

    /// Whether every criterion alone accepts `facts`.
    pub fn accepts_all(&self, facts: &ConnectionFacts) -> bool {
        Criterion::ALL.iter().all(|criterion| self.accepts(*criterion, facts))
    }

    fn serves(&self, name: &str) -> bool {
        self.server_names.iter().any(|own| match own.strip_prefix('*') {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => own == name,
        })
    }

    /// What the chain asks of `criterion`; `None` when it does not ask.
    pub fn wanted(&self, criterion: Criterion) -> Option<String> {
        match criterion {
            Criterion::DestinationPort => self.destination_port.map(|port| port.to_string()),
            Criterion::PrefixRanges => one_of(&self.prefix_ranges),
            Criterion::ServerNames => one_of(&self.server_names),
            Criterion::TransportProtocol => self.transport_protocol.map(|protocol| protocol.name().to_owned()),
            Criterion::ApplicationProtocols => one_of(&self.application_protocols),
            Criterion::DirectSourcePrefixRanges => one_of(&self.direct_source_prefix_ranges),
            Criterion::SourceType => (self.source_type != SourceType::Any).then(|| self.source_type.name().to_owned()),
            Criterion::SourcePrefixRanges => one_of(&self.source_prefix_ranges),
            Criterion::SourcePorts => one_of(&self.source_ports),
        }
    }
}

/// Whether a chain with these prefixes is indexed below exactly `prefix`.
fn has_prefix(own: &[IpNet], prefix: IpNet) -> bool {
    if own.is_empty() { EVERY_ADDRESS.contains(&prefix) } else { own.iter().any(|own| own.trunc() == prefix) }
}

fn one_of<T: fmt::Display>(values: &[T]) -> Option<String> {
    let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(" or "))
}

impl ConnectionFacts {
    /// What the connection has to offer at `criterion`, for people.
    pub fn at(&self, criterion: Criterion) -> String {
        match criterion {
            Criterion::DestinationPort => self.destination.port().to_string(),
            Criterion::PrefixRanges => self.destination.ip().to_string(),
            Criterion::ServerNames => self.server_name.clone().unwrap_or_else(|| "none".to_owned()),
            Criterion::TransportProtocol => self.transport_protocol.name().to_owned(),
            Criterion::ApplicationProtocols if self.application_protocols.is_empty() => "none".to_owned(),
            Criterion::ApplicationProtocols => self.application_protocols.join(", "),
            Criterion::SourceType => SourceType::of(self.client.ip(), self.destination.ip()).name().to_owned(),
            Criterion::DirectSourcePrefixRanges | Criterion::SourcePrefixRanges => self.client.ip().to_string(),
            Criterion::SourcePorts => self.client.port().to_string(),
        }
    }
}
