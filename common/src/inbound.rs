//! The decision on what arrives: a pure function of what the inbound hook of a network namespace has looked up.
//!
//! Before it: the hook gathers [`InboundFacts`]. After it: the hook gives the connection to the agent's listener, or leaves
//! it to the socket that the kernel would have found. Nothing is ever refused here: whatever is wrong with the agent, the
//! application's own listening socket takes over.

use crate::{addr::Endpoint, counter::Counter, policy::PortRules};

/// What the hook knows when it decides.
#[derive(Clone, Copy, Debug)]
pub struct InboundFacts<'a> {
    /// The network namespace has a policy for what arrives.
    pub enrolled: bool,
    /// The connection is one that the agent itself makes to an application.
    pub own_flow: bool,
    pub redirecting: bool,
    /// The address that the client dialled.
    pub local: Endpoint,
    /// `local`, or the wildcard address with its port, is in the exempt map.
    pub exempt: bool,
    /// The policy's node for the client's address.
    pub rules: Option<&'a PortRules>,
    pub heartbeat_age_ns: u64,
    pub heartbeat_loss_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InboundVerdict {
    /// Give it to the agent's listener, if there is one.
    Take,
    /// Leave it to the kernel's own lookup.
    Pass(Counter),
}

/// Is this connection ours? The first reason to leave it alone wins.
#[inline(always)]
#[must_use]
pub fn decide_inbound(facts: &InboundFacts<'_>) -> InboundVerdict {
    match reason_to_pass(facts) {
        Some(counter) => InboundVerdict::Pass(counter),
        None => InboundVerdict::Take,
    }
}

#[inline(always)]
fn reason_to_pass(facts: &InboundFacts<'_>) -> Option<Counter> {
    if !facts.enrolled {
        return Some(Counter::InboundPassedNetns);
    }
    // Before everything else: what the agent sends to the application must get there.
    if facts.own_flow {
        return Some(Counter::InboundPassedOwnFlow);
    }
    if !facts.redirecting {
        return Some(Counter::InboundPassedDraining);
    }
    if facts.local.ip().is_v6_link_local() {
        return Some(Counter::InboundPassedLinkLocal);
    }
    if facts.exempt {
        return Some(Counter::InboundPassedOwnListener);
    }
    let Some(rules) = facts.rules else {
        return Some(Counter::InboundPassedUnconfigured);
    };
    if rules.excludes(facts.local.port()) {
        return Some(Counter::InboundPassedExcluded);
    }
    if !rules.includes(facts.local.port()) {
        return Some(Counter::InboundPassedNotIncluded);
    }
    if facts.heartbeat_age_ns > facts.heartbeat_loss_ns {
        return Some(Counter::InboundPassedAgentLost);
    }
    None
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::PortRange;

    const LOSS_NS: u64 = 2_000_000_000;

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    /// An arrival that is taken, but for what a case changes.
    fn check(name: &str, change: impl FnOnce(&mut InboundFacts<'_>, &mut PortRules), expected: InboundVerdict) {
        let everything = PortRules { include: [PortRange::ALL; 16], ..PortRules::EMPTY };
        let mut rules = everything;
        let mut facts = InboundFacts {
            enrolled: true,
            own_flow: false,
            redirecting: true,
            local: endpoint("10.0.0.1:8080"),
            exempt: false,
            rules: Some(&everything),
            heartbeat_age_ns: 0,
            heartbeat_loss_ns: LOSS_NS,
        };
        change(&mut facts, &mut rules);
        let facts = InboundFacts { rules: facts.rules.and(Some(&rules)), ..facts };
        assert_eq!(decide_inbound(&facts), expected, "{name}");
    }

    #[test]
    fn the_verdict_is_the_first_reason_that_holds() {
        use Counter::*;
        use InboundVerdict::{Pass, Take};
        check("plain", |_, _| {}, Take);
        check("IPv6", |f, _| f.local = endpoint("[2001:db8::1]:8080"), Take);
        check("not enrolled", |f, _| f.enrolled = false, Pass(InboundPassedNetns));
        check("own flow", |f, _| f.own_flow = true, Pass(InboundPassedOwnFlow));
        check(
            "own flow while draining and lost",
            |f, _| (f.own_flow, f.redirecting, f.heartbeat_age_ns) = (true, false, u64::MAX),
            Pass(InboundPassedOwnFlow),
        );
        check("draining", |f, _| f.redirecting = false, Pass(InboundPassedDraining));
        check("link-local", |f, _| f.local = endpoint("[fe80::1]:8080"), Pass(InboundPassedLinkLocal));
        check("own listener", |f, _| f.exempt = true, Pass(InboundPassedOwnListener));
        check("no policy", |f, _| f.rules = None, Pass(InboundPassedUnconfigured));
        check("excluded", |_, r| r.exclude[7] = PortRange { first: 8080, last: 8080 }, Pass(InboundPassedExcluded));
        check("beside the excluded", |_, r| r.exclude[7] = PortRange { first: 8081, last: 9000 }, Take);
        check("not included", |_, r| *r = PortRules::EMPTY, Pass(InboundPassedNotIncluded));
        check("just alive", |f, _| f.heartbeat_age_ns = LOSS_NS, Take);
        check("lost", |f, _| f.heartbeat_age_ns = LOSS_NS + 1, Pass(InboundPassedAgentLost));
    }

    proptest! {
        /// Whatever the hook has looked up: it takes nothing of the agent's own and nothing that the policy leaves out,
        /// and nothing at all for an agent that is lost or drains.
        #[test]
        fn nothing_is_taken_by_accident(
            local: SocketAddr,
            flags: [bool; 4],
            include: (u16, u16),
            exclude: (u16, u16),
            heartbeat_age_ns in prop_oneof![Just(0), Just(LOSS_NS), Just(LOSS_NS + 1), any::<u64>()],
        ) {
            let mut rules = PortRules::EMPTY;
            rules.include[3] = PortRange { first: include.0, last: include.1 };
            rules.exclude[4] = PortRange { first: exclude.0, last: exclude.1 };
            let facts = InboundFacts {
                enrolled: flags[0],
                own_flow: flags[1],
                redirecting: flags[2],
                local: local.into(),
                exempt: flags[3],
                rules: Some(&rules),
                heartbeat_age_ns,
                heartbeat_loss_ns: LOSS_NS,
            };
            let ours = flags == [true, false, true, false]
                && !facts.local.ip().is_v6_link_local()
                && rules.includes(local.port())
                && !rules.excludes(local.port())
                && heartbeat_age_ns <= LOSS_NS;
            prop_assert_eq!(decide_inbound(&facts) == InboundVerdict::Take, ours);
        }
    }
}
