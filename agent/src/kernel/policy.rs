//! The interception policy as the user writes it, and its compilation into trie nodes.
//!
//! Before it: the configuration. After it: `maps` writes the nodes; the hooks ask `waylay_common::policy`. Pure code.
//!
//! The kernel's trie answers with the longest prefix only, while rules add up: a rule for 10.0.0.0/8 still holds within
//! 10.1.0.0/16. So every node carries the union of the port ranges of all prefixes that contain it.

use std::{collections::BTreeMap, fmt, net::IpAddr, ops::RangeInclusive};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use thiserror::Error;
use waylay_common::{
    addr::Ip,
    limits::{POLICY_NODES, PORT_RANGES},
    policy::{PortRange, PortRules},
};

/// What is intercepted: everything that an include rule matches and no exclude rule does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Empty: everything.
    pub include: Vec<Rule>,
    pub exclude: Vec<Rule>,
}

impl Policy {
    /// Takes no connection at all.
    #[must_use]
    pub fn nothing() -> Self {
        let all = |net: IpNet| Rule { cidr: Some(net), ports: Vec::new() };
        let all = [all(Ipv4Net::default().into()), all(Ipv6Net::default().into())];
        Self { include: Vec::new(), exclude: all.into() }
    }
}

/// Destinations: addresses within `cidr` (none: any of either family) on one of `ports` (empty: any).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    pub cidr: Option<IpNet>,
    pub ports: Vec<RangeInclusive<u16>>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    #[error(
        "{direction} rules give {prefix} {found} separate port ranges, at most {PORT_RANGES} are possible: merge some"
    )]
    TooManyRanges { direction: &'static str, prefix: String, found: usize },
    #[error("the rules name {found} different prefixes, at most {} are possible: merge some", POLICY_NODES - 2)]
    TooManyPrefixes { found: usize },
}

/// One node of the trie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub prefix: Prefix,
    pub rules: PortRules,
}

/// A prefix in the form of the trie: IPv4 below `::ffff:0:0/96`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    bits: u128,
    len: u32,
}

const V4_ROOT: Prefix = Prefix { bits: 0xffff_0000_0000, len: 96 };
const V6_ROOT: Prefix = Prefix { bits: 0, len: 0 };

impl Prefix {
    /// Bits of the address that count, 0 to 128.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn ip(&self) -> Ip {
        Ip::from_octets(self.bits.to_be_bytes())
    }

    /// From a node read back out of the kernel.
    pub(super) fn from_parts(ip: Ip, len: u32) -> Self {
        Self { bits: u128::from_be_bytes(ip.octets()), len }
    }

    fn is_v4(&self) -> bool {
        V4_ROOT.contains(self)
    }

    fn shortened(&self, len: u32) -> Self {
        let bits = if len == 0 { 0 } else { self.bits >> (128 - len) << (128 - len) };
        Self { bits, len }
    }

    fn contains(&self, other: &Self) -> bool {
        self.len <= other.len && (self.len == 0 || (self.bits ^ other.bits) >> (128 - self.len) == 0)
    }
}

impl From<IpNet> for Prefix {
    /// An IPv4-mapped network is the IPv4 network.
    fn from(net: IpNet) -> Self {
        let net = net.trunc();
        let bits = u128::from_be_bytes(Ip::from(net.addr()).octets());
        let len = u32::from(net.prefix_len());
        match net {
            IpNet::V4(_) => Self { bits, len: len + V4_ROOT.len },
            IpNet::V6(_) => Self { bits, len },
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = if self.is_v4() { self.len - V4_ROOT.len } else { self.len };
        write!(f, "{}/{len}", IpAddr::from(self.ip()))
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A compiled policy, ready for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    nodes: Vec<Node>,
}

impl Compiled {
    /// # Errors
    /// More prefixes or port ranges than the maps hold.
    pub fn new(policy: &Policy) -> Result<Self, PolicyError> {
        let mut said = BTreeMap::from([(V4_ROOT, Ports::default()), (V6_ROOT, Ports::default())]);
        let everything = [Rule::default()];
        let include = if policy.include.is_empty() { &everything[..] } else { &policy.include };
        for rule in include {
            for prefix in prefixes(rule) {
                said.entry(prefix).or_default().include.extend(ranges(rule));
            }
        }
        for rule in &policy.exclude {
            for prefix in prefixes(rule) {
                said.entry(prefix).or_default().exclude.extend(ranges(rule));
            }
        }
        if said.len() > POLICY_NODES as usize {
            return Err(PolicyError::TooManyPrefixes { found: said.len() - 2 });
        }
        let (v4, v6): (Vec<_>, Vec<_>) = said.into_iter().partition(|(prefix, _)| prefix.is_v4());
        let mut nodes = inherit(v6)?;
        nodes.extend(inherit(v4)?);
        Ok(Self { nodes })
    }

    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What the kernel finds for `ip`: the rules at the longest prefix that contains it, and nothing else.
    #[must_use]
    pub fn rules_at(&self, ip: IpAddr) -> Option<&PortRules> {
        let host = Prefix { bits: u128::from_be_bytes(Ip::from(ip).octets()), len: 128 };
        let around = self.nodes.iter().filter(|node| node.prefix.contains(&host));
        around.max_by_key(|node| node.prefix.len).map(|node| &node.rules)
    }

    /// Would any IPv4 connection be redirected?
    #[must_use]
    pub fn intercepts_v4(&self) -> bool {
        self.nodes.iter().any(|node| node.prefix.is_v4() && intercepts(&node.rules))
    }

    /// Would any IPv6 connection be redirected?
    #[must_use]
    pub fn intercepts_v6(&self) -> bool {
        self.nodes.iter().any(|node| !node.prefix.is_v4() && intercepts(&node.rules))
    }
}

/// What the rules say at one prefix.
#[derive(Clone, Debug, Default)]
struct Ports {
    include: Vec<RangeInclusive<u16>>,
    exclude: Vec<RangeInclusive<u16>>,
}

fn prefixes(rule: &Rule) -> Vec<Prefix> {
    rule.cidr.map_or_else(|| vec![V4_ROOT, V6_ROOT], |net| vec![net.into()])
}

fn ranges(rule: &Rule) -> Vec<RangeInclusive<u16>> {
    if rule.ports.is_empty() { vec![0..=u16::MAX] } else { rule.ports.clone() }
}

/// Gives every prefix of one family what the prefixes around it say. Sorted by address, then length, a prefix comes
/// after all that contain it, and those still open form a stack.
fn inherit(said: Vec<(Prefix, Ports)>) -> Result<Vec<Node>, PolicyError> {
    let mut open: Vec<(Prefix, Ports)> = Vec::new();
    let mut nodes = Vec::with_capacity(said.len());
    for (prefix, mut ports) in said {
        while open.last().is_some_and(|(around, _)| !around.contains(&prefix)) {
            open.pop();
        }
        if let Some((_, around)) = open.last() {
            ports.include.extend(around.include.iter().cloned());
            ports.exclude.extend(around.exclude.iter().cloned());
        }
        let ports = Ports { include: merge(ports.include), exclude: merge(ports.exclude) };
        nodes.push(Node {
            prefix,
            rules: PortRules {
                include: slots("include", prefix, &ports.include)?,
                exclude: slots("exclude", prefix, &ports.exclude)?,
            },
        });
        open.push((prefix, ports));
    }
    Ok(nodes)
}

/// Sorted, without overlaps and without gaps of nothing between two ranges.
fn merge(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

fn slots(
    direction: &'static str,
    prefix: Prefix,
    ranges: &[RangeInclusive<u16>],
) -> Result<[PortRange; PORT_RANGES], PolicyError> {
    if ranges.len() > PORT_RANGES {
        return Err(PolicyError::TooManyRanges { direction, prefix: prefix.to_string(), found: ranges.len() });
    }
    let mut slots = [PortRange::EMPTY; PORT_RANGES];
    for (slot, range) in slots.iter_mut().zip(ranges) {
        *slot = PortRange { first: *range.start(), last: *range.end() };
    }
    Ok(slots)
}

/// Is there a destination that both policies would redirect?
pub(super) fn overlap(ours: &[Node], theirs: &[Node]) -> bool {
    meets_within(ours, theirs) || meets_within(theirs, ours)
}

/// Where a node of `some` meets what `others` say of the same addresses: the longest prefix of them around it.
fn meets_within(some: &[Node], others: &[Node]) -> bool {
    let others: BTreeMap<_, _> = others.iter().map(|node| (node.prefix, &node.rules)).collect();
    some.iter().any(|node| {
        let mut around = (0..=node.prefix.len).rev().map(|len| node.prefix.shortened(len));
        around.find_map(|prefix| others.get(&prefix)).is_some_and(|rules| meet(&node.rules, rules))
    })
}

fn meet(a: &PortRules, b: &PortRules) -> bool {
    let starts = a.include.iter().chain(&b.include).map(|range| range.first);
    let after = a.exclude.iter().chain(&b.exclude).filter_map(|range| range.last.checked_add(1));
    starts.chain(after).any(|port| [a, b].iter().all(|rules| rules.includes(port) && !rules.excludes(port)))
}

/// Is there a port that is included and not excluded? It is enough to look where a range begins or just after one ends.
fn intercepts(rules: &PortRules) -> bool {
    let starts = rules.include.iter().map(|range| range.first);
    let after = rules.exclude.iter().filter_map(|range| range.last.checked_add(1));
    starts.chain(after).any(|port| rules.includes(port) && !rules.excludes(port))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
