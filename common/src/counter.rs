//! Every way out of a hook has a counter: what the kernel side did, and why.
//!
//! The hooks add to a per-CPU array indexed by [`Counter`]; the agent sums it for its metrics and for `waylay maps`.

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident = $text:literal,)+) => {
        /// One reason for which a hook returned. The discriminant is the index into the counter map.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[doc = $help])+ $name,)+
        }

        impl Counter {
            /// All counters, in the order of the map.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name in metrics and in `waylay maps`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// One line for people.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($help,)+).trim_ascii(),)+ }
            }
        }
    };
}

counters! {
    /// IPv4 connections sent to the agent.
    RedirectedV4 = "redirected_v4",
    /// IPv6 connections sent to the agent.
    RedirectedV6 = "redirected_v6",
    /// Connections of IPv6 sockets to IPv4-mapped addresses sent to the IPv4 listener of the agent.
    RedirectedV4Mapped = "redirected_v4_mapped",
    /// IPv4 connections that the kernel itself sent to an endpoint.
    DispatchedV4 = "dispatched_v4",
    /// IPv6 connections that the kernel itself sent to an endpoint.
    DispatchedV6 = "dispatched_v6",
    /// Connections of IPv6 sockets to IPv4-mapped addresses that the kernel itself sent to an IPv4 endpoint.
    DispatchedV4Mapped = "dispatched_v4_mapped",
    /// Connections to an original_dst cluster that the kernel itself let go where they were going.
    DispatchedOriginalDst = "dispatched_original_dst",
    /// Connects of sockets other than TCP, left alone.
    PassedNotTcp = "passed_not_tcp",
    /// Connections of the agent itself to endpoints, left alone.
    PassedBypass = "passed_bypass",
    /// Left alone because the agent is draining.
    PassedDraining = "passed_draining",
    /// Left alone because the network namespace is not enrolled.
    PassedNetns = "passed_netns",
    /// Left alone because the process is none of those that intercept.processes names.
    PassedNotChosen = "passed_not_chosen",
    /// Left alone because the socket is bound to a device, from which the listener of the agent cannot be reached.
    PassedBoundDevice = "passed_bound_device",
    /// IPv6 link-local destinations, left alone: the hook is not told their interface.
    PassedLinkLocal = "passed_link_local",
    /// Left alone because the destination is a listener of this agent or of another instance.
    PassedOwnListener = "passed_own_listener",
    /// Left alone because an exclude rule matches.
    PassedExcluded = "passed_excluded",
    /// Left alone because no include rule matches.
    PassedNotIncluded = "passed_not_included",
    /// Left alone because the agent is lost and on_agent_loss is allow.
    PassedAgentLost = "passed_agent_lost",
    /// Left alone because the agent has no listener of this address family.
    PassedNoListener = "passed_no_listener",
    /// Left alone because the kernel had no memory to remember the original destination.
    PassedNoStorage = "passed_no_storage",
    /// Left alone because the maps hold no policy or no settings: an error of the agent.
    PassedUnconfigured = "passed_unconfigured",
    /// Left alone because another program has already refused the connect.
    PassedRefusedByOther = "passed_refused_by_other",
    /// Refused because the agent is lost and on_agent_loss is refuse.
    RefusedAgentLost = "refused_agent_lost",
    /// Connections to an application that were given to the agent over IPv4; a repeated SYN counts again.
    InboundRedirectedV4 = "inbound_redirected_v4",
    /// Connections to an application that were given to the agent over IPv6; a repeated SYN counts again.
    InboundRedirectedV6 = "inbound_redirected_v6",
    /// Connections of the agent to applications on the inbound side, passed on to them.
    InboundPassedOwnFlow = "inbound_passed_own_flow",
    /// Arrivals left alone because the network namespace is not enrolled for them, or no longer.
    InboundPassedNetns = "inbound_passed_netns",
    /// Arrivals left alone because the agent is draining.
    InboundPassedDraining = "inbound_passed_draining",
    /// Arrivals at an IPv6 link-local address, left alone: it means nothing without its interface.
    InboundPassedLinkLocal = "inbound_passed_link_local",
    /// Arrivals at a listener of this agent or of another instance, left alone.
    InboundPassedOwnListener = "inbound_passed_own_listener",
    /// Arrivals left alone because an exclude rule matches.
    InboundPassedExcluded = "inbound_passed_excluded",
    /// Arrivals left alone because no include rule matches.
    InboundPassedNotIncluded = "inbound_passed_not_included",
    /// Arrivals left to the application because the agent is lost.
    InboundPassedAgentLost = "inbound_passed_agent_lost",
    /// Arrivals left to the application because the agent has no listener of this address family there.
    InboundPassedNoListener = "inbound_passed_no_listener",
    /// Arrivals that another program has already given to a socket of its choice.
    InboundPassedTakenByOther = "inbound_passed_taken_by_other",
    /// Arrivals left alone because the maps hold no policy or no settings: an error of the agent.
    InboundPassedUnconfigured = "inbound_passed_unconfigured",
    /// Connections of the agent to applications that were made known to the inbound hook.
    FlowsPublished = "flows_published",
    /// Connections of the agent to applications that could not be made known, and so were refused.
    FlowsFull = "flows_full",
    /// Original destinations published for a handshake.
    HandoverPublished = "handover_published",
    /// Original destinations that found no room in the handover map: the agent refuses these connections.
    HandoverFull = "handover_full",
    /// Original destinations moved onto the accepted socket of the agent.
    HandoverTaken = "handover_taken",
    /// Original destinations that the accepted socket had no memory for: the agent refuses these connections.
    HandoverNoStorage = "handover_no_storage",
    /// Original destinations taken back because the connection was closed before the agent had it.
    HandoverAbandoned = "handover_abandoned",
    /// getpeername answered with the original destination.
    PeernameAnswered = "peername_answered",
    /// SO_ORIGINAL_DST answered with the original destination.
    OriginalDstAnswered = "original_dst_answered",
    /// Questions to IPv4 resolvers sent to the agent; a connected socket counts once.
    DnsRedirectedV4 = "dns_redirected_v4",
    /// Questions to IPv6 resolvers sent to the agent; a connected socket counts once.
    DnsRedirectedV6 = "dns_redirected_v6",
    /// Questions of the agent itself to resolvers, left alone.
    DnsPassedBypass = "dns_passed_bypass",
    /// Questions left alone because the agent answers none of their network namespace.
    DnsPassedNetns = "dns_passed_netns",
    /// Questions left alone because the process is none of those that intercept.processes names.
    DnsPassedNotChosen = "dns_passed_not_chosen",
    /// Questions left alone because the agent is draining.
    DnsPassedDraining = "dns_passed_draining",
    /// Questions left alone because the socket is bound to a device, from which the agent cannot be reached.
    DnsPassedBoundDevice = "dns_passed_bound_device",
    /// Questions to IPv6 link-local resolvers, left alone: the hook is not told their interface.
    DnsPassedLinkLocal = "dns_passed_link_local",
    /// Questions left alone because an exclude rule matches the resolver.
    DnsPassedExcluded = "dns_passed_excluded",
    /// Questions left alone because the agent is lost.
    DnsPassedAgentLost = "dns_passed_agent_lost",
    /// Questions left alone because there is no room to remember another resolver.
    DnsPassedFull = "dns_passed_full",
    /// Senders of answers and peers of sockets shown as the resolver that was asked.
    DnsRestored = "dns_restored",
    /// Connections sent to the agent although their listener is dispatched in the kernel: no endpoint takes traffic.
    DispatchNoEndpoint = "dispatch_no_endpoint",
    /// Connections sent to the agent although their listener is dispatched in the kernel: the endpoint has another address family.
    DispatchOtherFamily = "dispatch_other_family",
    /// Connections sent to the agent although their listener is dispatched in the kernel: multipath TCP.
    DispatchMultipath = "dispatch_multipath",
    /// Beginnings of dispatched connections that did not fit into the ring: the connection is not counted as open.
    DispatchOpenLost = "dispatch_open_lost",
    /// Ends of dispatched connections that did not fit into the ring: their records have no bytes.
    DispatchEndLost = "dispatch_end_lost",
    /// Decision events that did not fit into the ring.
    EventsLost = "events_lost",
}

impl Counter {
    pub const COUNT: u32 = Self::ALL.len() as u32;

    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        if raw < Self::COUNT { Some(Self::ALL[raw as usize]) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_counter_is_its_place_in_the_list() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert_eq!(Counter::from_raw(index as u32), Some(*counter));
        }
        assert_eq!(Counter::from_raw(Counter::COUNT), None);
    }

    #[test]
    fn every_counter_has_a_name_of_its_own_and_a_line_of_help() {
        let mut names: Vec<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counter::ALL.len());
        for counter in Counter::ALL {
            assert!(counter.help().ends_with('.') && !counter.help().starts_with(' '), "{counter:?}");
            // The compiler escapes quotes in what it hands to a macro as documentation.
            assert!(!counter.help().contains(['\\', '\'']), "{counter:?}");
        }
    }
}
