//! The interception decision: a pure function of what a connect hook has looked up.
//!
//! Before it: the hook gathers [`Facts`]. After it: the hook carries out the [`Verdict`]. This file knows no map and no
//! clock; the same code runs in the kernel and in the tests.

use crate::{
    addr::{Endpoint, Ip},
    counter::Counter,
    flow::Role,
    limits::PORT_RANGES,
    settings::{OnAgentLoss, Settings},
};

const IPPROTO_TCP: u32 = 6;
/// What `ctx.protocol` says of a multipath socket, should a kernel run the hook on it and not on its subflow.
const IPPROTO_MPTCP: u32 = 262;

/// Ports `first..=last`. A range whose `first` is greater matches nothing.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub const EMPTY: Self = Self { first: 1, last: 0 };
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Data of the policy trie's key: an address within one policy. IPv4 stands below `::ffff:0:0/96`, so one trie holds
/// both families. Which policy is in force where is told by [`crate::netns::NetnsEntry`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PolicyKey {
    /// Never 0; given out by the agent.
    pub policy: u32,
    pub ip: Ip,
}

const _: () = assert!(size_of::<PolicyKey>() == 20);

impl PolicyKey {
    /// Bits of the key before the address begins.
    pub const POLICY_BITS: u32 = 32;
    /// Bits of a lookup: the policy and the whole address.
    pub const LOOKUP_BITS: u32 = Self::POLICY_BITS + 128;
}

/// Value of the policy trie. The kernel finds only the longest prefix, so a node carries what all shorter prefixes
/// above it say as well; the agent compiles it that way.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRules {
    pub include: [PortRange; PORT_RANGES],
    pub exclude: [PortRange; PORT_RANGES],
}

const _: () = assert!(size_of::<PortRules>() == 2 * PORT_RANGES * 4);

impl PortRules {
    /// Intercepts nothing.
    pub const EMPTY: Self = Self { include: [PortRange::EMPTY; PORT_RANGES], exclude: [PortRange::EMPTY; PORT_RANGES] };

    #[inline(always)]
    #[must_use]
    pub fn includes(&self, port: u16) -> bool {
        any_contains(&self.include, port)
    }

    #[inline(always)]
    #[must_use]
    pub fn excludes(&self, port: u16) -> bool {
        any_contains(&self.exclude, port)
    }
}

/// One comparison for all ranges, instead of two for each: the verifier would follow both ways of every one of them.
/// A difference is negative where a port lies outside, and `none` stays negative as long as it lies outside of all.
#[inline(always)]
fn any_contains(ranges: &[PortRange; PORT_RANGES], port: u16) -> bool {
    let port = i32::from(port);
    let mut none = -1_i32;
    for range in ranges {
        none &= (port - i32::from(range.first)) | (i32::from(range.last) - port);
    }
    none >= 0
}

/// What a connect hook knows when it decides.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// IP protocol of the socket.
    pub protocol: u32,
    /// The role found on the socket, from before this connect.
    pub role: Option<Role>,
    /// Where the application wants to go.
    pub destination: Endpoint,
    /// The hook runs for an IPv6 socket (the destination may still be IPv4-mapped).
    pub socket_is_v6: bool,
    /// A program that ran before this hook has already refused the connect.
    pub refused_by_other: bool,
    /// `SO_BINDTODEVICE` is set.
    pub bound_to_device: bool,
    pub redirecting: bool,
    /// The network namespace has a policy for what its processes connect to.
    pub netns_enrolled: bool,
    /// The caller is one of the processes whose connections are taken.
    pub chosen: bool,
    /// The destination itself is in the exempt map.
    pub exempt: bool,
    /// The wildcard address with the destination's port is in the exempt map.
    pub wildcard_exempt: bool,
    /// The policy's node for the destination.
    pub rules: Option<&'a PortRules>,
    pub heartbeat_age_ns: u64,
    pub settings: &'a Settings,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Remember the destination and send the connection to `to`.
    Redirect { to: Endpoint, counter: Counter },
    /// Leave the connect as it is.
    Pass(Counter),
    /// Fail the connect.
    Refuse(Counter),
}

/// Is this connect ours? The first reason to leave it alone wins; only a lost agent under `refuse` denies, and only
/// what would have been redirected.
#[inline(always)]
#[must_use]
pub fn decide(facts: &Facts<'_>) -> Verdict {
    let mut known = *facts;
    decide_with(&mut known, |_| ())
}

/// As [`decide`], for somebody to whom every fact costs something: those that `complete` fills in (`exempt`,
/// `wildcard_exempt` and `heartbeat_age_ns`) are asked for only when all others say that the connection is taken.
#[inline(always)]
#[must_use]
pub fn decide_with<'a>(facts: &mut Facts<'a>, complete: impl FnOnce(&mut Facts<'a>)) -> Verdict {
    if let Some(counter) = socket_out_of_scope(facts) {
        return Verdict::Pass(counter);
    }
    if let Some(counter) = destination_out_of_scope(facts) {
        return Verdict::Pass(counter);
    }
    complete(facts);
    if is_own_listener(facts) {
        return Verdict::Pass(Counter::PassedOwnListener);
    }
    if facts.heartbeat_age_ns > facts.settings.heartbeat_loss_ns {
        return match facts.settings.on_agent_loss() {
            OnAgentLoss::Allow => Verdict::Pass(Counter::PassedAgentLost),
            OnAgentLoss::Refuse => Verdict::Refuse(Counter::RefusedAgentLost),
        };
    }
    let (to, counter) = if !facts.destination.ip().is_v4() {
        (facts.settings.redirect_v6, Counter::RedirectedV6)
    } else if facts.socket_is_v6 {
        (facts.settings.redirect_v4, Counter::RedirectedV4Mapped)
    } else {
        (facts.settings.redirect_v4, Counter::RedirectedV4)
    };
    if to.is_none() {
        return Verdict::Pass(Counter::PassedNoListener);
    }
    Verdict::Redirect { to, counter }
}

/// Is it the agent that connects, by the number of its process in the first pid namespace (`caller`, and what
/// [`crate::settings::Switch::Agent`] says)? Only while the agent shows signs of life: the number of one that is gone may be
/// anybody's. What it connects passes, like a socket that carries [`Role::Bypass`].
#[inline(always)]
#[must_use]
pub fn is_agents_own(
    (protocol, caller): (u32, u32),
    agent: u64,
    settings: &Settings,
    heartbeat_age_ns: impl FnOnce() -> u64,
) -> bool {
    agent != 0 && caller as u64 == agent && is_tcp(protocol) && heartbeat_age_ns() <= settings.heartbeat_loss_ns
}

#[inline(always)]
const fn is_tcp(protocol: u32) -> bool {
    protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP
}

#[inline(always)]
fn socket_out_of_scope(facts: &Facts<'_>) -> Option<Counter> {
    if !is_tcp(facts.protocol) {
        return Some(Counter::PassedNotTcp);
    }
    if matches!(facts.role, Some(Role::Bypass | Role::Inbound)) {
        return Some(Counter::PassedBypass);
    }
    if facts.refused_by_other {
        return Some(Counter::PassedRefusedByOther);
    }
    if !facts.redirecting {
        return Some(Counter::PassedDraining);
    }
    if !facts.netns_enrolled {
        return Some(Counter::PassedNetns);
    }
    if !facts.chosen {
        return Some(Counter::PassedNotChosen);
    }
    if facts.bound_to_device {
        return Some(Counter::PassedBoundDevice);
    }
    None
}

#[inline(always)]
fn destination_out_of_scope(facts: &Facts<'_>) -> Option<Counter> {
    let ip = facts.destination.ip();
    if ip.is_v6_link_local() {
        return Some(Counter::PassedLinkLocal);
    }
    let Some(rules) = facts.rules else {
        return Some(Counter::PassedUnconfigured);
    };
    if rules.excludes(facts.destination.port()) {
        return Some(Counter::PassedExcluded);
    }
    if !rules.includes(facts.destination.port()) {
        return Some(Counter::PassedNotIncluded);
    }
    None
}

/// Behind a wildcard stand all addresses of this machine, but not the same port of another: the agent enters the
/// machine's addresses one by one, and 127.0.0.0/8, which cannot be entered, is asked for here.
#[inline(always)]
fn is_own_listener(facts: &Facts<'_>) -> bool {
    facts.exempt || (facts.wildcard_exempt && facts.destination.ip().is_loopback())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
