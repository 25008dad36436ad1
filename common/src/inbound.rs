//! The decision on what arrives: a pure function of what the inbound hook of a network namespace has looked up.
//!
//! Before it: the hook offers [`InboundFacts`]. After it: the hook gives the connection to the agent's listener, or leaves
//! it to the socket that the kernel would have found. Nothing is ever refused here: whatever is wrong with the agent, the
//! application's own listening socket takes over.

use crate::{addr::Endpoint, counter::Counter, policy::PortRules};

/// What the hook looks up to decide, each only when it comes to matter.
pub trait InboundFacts {
    /// The network namespace has a policy for what arrives.
    fn is_enrolled(&self) -> bool;
    /// The connection is one that the agent itself makes to an application.
    fn is_own_flow(&self) -> bool;
    fn is_redirecting(&self) -> bool;
    /// The address that the client dialled.
    fn local(&self) -> Endpoint;
    /// `local`, or the wildcard address with its port, is in the exempt map.
    fn is_exempt(&self) -> bool;
    fn is_agent_lost(&self) -> bool;
    /// The policy's node for the client's address.
    fn rules(&self) -> Option<&PortRules>;
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
pub fn decide_inbound(facts: &impl InboundFacts) -> InboundVerdict {
    match reason_to_pass(facts) {
        Some(counter) => InboundVerdict::Pass(counter),
        None => InboundVerdict::Take,
    }
}

#[inline(always)]
fn reason_to_pass(facts: &impl InboundFacts) -> Option<Counter> {
    if !facts.is_enrolled() {
        return Some(Counter::InboundPassedNetns);
    }
    // Before everything else: what the agent sends to the application must get there.
    if facts.is_own_flow() {
        return Some(Counter::InboundPassedOwnFlow);
    }
    if !facts.is_redirecting() {
        return Some(Counter::InboundPassedDraining);
    }
    let local = facts.local();
    if local.ip().is_v6_link_local() {
        return Some(Counter::InboundPassedLinkLocal);
    }
    if facts.is_exempt() {
        return Some(Counter::InboundPassedOwnListener);
    }
    let Some(rules) = facts.rules() else {
        return Some(Counter::InboundPassedUnconfigured);
    };
    if rules.excludes(local.port()) {
        return Some(Counter::InboundPassedExcluded);
    }
    if !rules.includes(local.port()) {
        return Some(Counter::InboundPassedNotIncluded);
    }
    if facts.is_agent_lost() {
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

    #[derive(Clone, Copy)]
    struct Given {
        enrolled: bool,
        own_flow: bool,
        redirecting: bool,
        local: Endpoint,
        exempt: bool,
        lost: bool,
        rules: Option<PortRules>,
    }

    impl InboundFacts for Given {
        fn is_enrolled(&self) -> bool {
            self.enrolled
        }

        fn is_own_flow(&self) -> bool {
            self.own_flow
        }

        fn is_redirecting(&self) -> bool {
            self.redirecting
        }

        fn local(&self) -> Endpoint {
            self.local
        }

        fn is_exempt(&self) -> bool {
            self.exempt
        }

        fn is_agent_lost(&self) -> bool {
            self.lost
        }

        fn rules(&self) -> Option<&PortRules> {
            self.rules.as_ref()
        }
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    /// An arrival that is taken, but for what a case changes.
    fn check(name: &str, change: impl FnOnce(&mut Given), expected: InboundVerdict) {
        let mut given = Given {
            enrolled: true,
            own_flow: false,
            redirecting: true,
            local: endpoint("10.0.0.1:8080"),
            exempt: false,
            lost: false,
            rules: Some(rules((0, u16::MAX), (1, 0))),
        };
        change(&mut given);
        assert_eq!(decide_inbound(&given), expected, "{name}");
    }

    fn rules(include: (u16, u16), exclude: (u16, u16)) -> PortRules {
        let mut rules = PortRules::EMPTY;
        rules.include[3] = PortRange { first: include.0, last: include.1 };
        rules.exclude[15] = PortRange { first: exclude.0, last: exclude.1 };
        rules
    }

    #[test]
    fn the_verdict_is_the_first_reason_that_holds() {
        use Counter::*;
        use InboundVerdict::{Pass, Take};
        check("plain", |_| {}, Take);
        check("IPv6", |given| given.local = endpoint("[2001:db8::1]:8080"), Take);
        check("not enrolled", |given| given.enrolled = false, Pass(InboundPassedNetns));
        check("own flow", |given| given.own_flow = true, Pass(InboundPassedOwnFlow));
        check(
            "own flow while draining and lost",
            |given| (given.own_flow, given.redirecting, given.lost) = (true, false, true),
            Pass(InboundPassedOwnFlow),
        );
        check("draining", |given| given.redirecting = false, Pass(InboundPassedDraining));
        check("link-local", |given| given.local = endpoint("[fe80::1]:8080"), Pass(InboundPassedLinkLocal));
        check("own listener", |given| given.exempt = true, Pass(InboundPassedOwnListener));
        check("no policy", |given| given.rules = None, Pass(InboundPassedUnconfigured));
        check("excluded", |given| given.rules = Some(rules((0, 9999), (8080, 8080))), Pass(InboundPassedExcluded));
        check("beside the excluded", |given| given.rules = Some(rules((8080, 8080), (8081, 9000))), Take);
        check("not included", |given| given.rules = Some(PortRules::EMPTY), Pass(InboundPassedNotIncluded));
        check("lost", |given| given.lost = true, Pass(InboundPassedAgentLost));
    }

    proptest! {
        /// Whatever the hook looks up: it takes nothing of the agent's own and nothing that the policy leaves out, and
        /// nothing at all for an agent that is lost or drains.
        #[test]
        fn nothing_is_taken_by_accident(
            local: SocketAddr,
            flags: [bool; 5],
            include: (u16, u16),
            exclude: (u16, u16),
        ) {
            let rules = rules(include, exclude);
            let [enrolled, own_flow, redirecting, exempt, lost] = flags;
            let local = Endpoint::from(local);
            let given = Given { enrolled, own_flow, redirecting, local, exempt, lost, rules: Some(rules) };
            let ours = enrolled && !own_flow && redirecting && !exempt && !lost
                && !local.ip().is_v6_link_local()
                && rules.includes(local.port())
                && !rules.excludes(local.port());
            prop_assert_eq!(decide_inbound(&given) == InboundVerdict::Take, ours);
        }
    }
}
