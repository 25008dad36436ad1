//! How questions to DNS resolvers reach the agent without losing whom they were meant for.
//!
//! Before it: the hooks of UDP sockets gather [`Facts`]. After it: they give the resolver a slot of its own, and the agent
//! reads from the address that a question arrived at which slot that is. A client may ask several resolvers over one
//! socket, and takes an answer only from the address that it asked, so one address for all of them would not do.
//!
//! An IPv4 resolver's slot is an address of 127.53.0.0/16, all of which reaches the agent's one socket. IPv6 has a single
//! loopback address, so that there the slot is a port of `::1`.

use crate::{
    addr::{Endpoint, Ip},
    counter::Counter,
    flow::Role,
    limits,
};

/// The port of DNS.
pub const PORT: u16 = 53;

const IPPROTO_UDP: u32 = 17;

/// 127.53.0.0, in host order.
const V4_NETWORK: u32 = 0x7f35_0000;

/// Resolver slots of a network namespace: one for each address of 127.53.0.0/16.
pub const V4_SLOTS: u32 = 1 << 16;

/// Slots of IPv6 resolvers: a port, and so a socket of the agent, for each. `resolv.conf` names at most three.
pub const V6_SLOTS: u32 = 8;

/// Slots that are looked at for a resolver. The map is full long before an eighth of the addresses is taken, so that
/// eight taken ones in a row are next to impossible.
pub const PROBES: u32 = 8;

const _: () = assert!(limits::RESOLVER_ENTRIES <= V4_SLOTS / 8, "probing finds a free slot");
const _: () = assert!(PROBES >= V6_SLOTS, "probing sees every IPv6 slot");

/// Where a resolver's slot is looked up: within one network namespace and family.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    netns_cookie: u64,
    slot: u32,
    family: u32,
}

const _: () = assert!(size_of::<SlotKey>() == 16);

impl SlotKey {
    #[inline(always)]
    #[must_use]
    pub const fn new(netns_cookie: u64, slot: Slot) -> Self {
        match slot {
            Slot::V4(slot) => Self { netns_cookie, slot, family: 4 },
            Slot::V6(slot) => Self { netns_cookie, slot, family: 6 },
        }
    }

    #[must_use]
    pub const fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    #[must_use]
    pub const fn slot(&self) -> Slot {
        if self.family == 4 { Slot::V4(self.slot) } else { Slot::V6(self.slot) }
    }
}

/// A network namespace whose questions the agent answers.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DnsPlace {
    port: u16,
    has_v6: u16,
}

const _: () = assert!(size_of::<DnsPlace>() == 4);

impl DnsPlace {
    /// One where it answers none.
    pub const NONE: Self = Self { port: 0, has_v6: 0 };

    /// The agent's sockets there begin with `port`; `has_v6`: there are those for IPv6 resolvers as well.
    #[must_use]
    pub const fn new(port: u16, has_v6: bool) -> Self {
        Self { port, has_v6: has_v6 as u16 }
    }

    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether questions to `resolver` are answered.
    #[inline(always)]
    #[must_use]
    pub const fn answers_for(&self, resolver: Ip) -> bool {
        self.port != 0 && (self.has_v6 != 0 || resolver.is_v4())
    }
}

/// One resolver's place: the low half of an address of 127.53.0.0/16, or the distance of a port from the first one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Slot {
    V4(u32),
    V6(u32),
}

impl Slot {
    /// The slot at which the search for `resolver` begins, `step` slots further.
    #[inline(always)]
    #[must_use]
    pub const fn of_resolver(resolver: Ip, step: u32) -> Self {
        let words = resolver.words();
        // The multiplier is 2^32 divided by the golden ratio: the upper bits of the product depend on all lower ones.
        let hash = (words[0] ^ words[1].rotate_left(8) ^ words[2].rotate_left(16) ^ words[3]).wrapping_mul(0x9e37_79b9);
        let slot = (hash >> 16).wrapping_add(step);
        if resolver.is_v4() { Self::V4(slot % V4_SLOTS) } else { Self::V6(slot % V6_SLOTS) }
    }

    /// Where questions for this slot are sent, when the agent's first port is `port`.
    #[inline(always)]
    #[must_use]
    pub const fn address(self, port: u16) -> Endpoint {
        match self {
            Self::V4(slot) => Endpoint::new(Ip::from_v4_word((V4_NETWORK | (slot % V4_SLOTS)).to_be()), port),
            Self::V6(slot) => Endpoint::new(Ip::from_words([0, 0, 0, 1_u32.to_be()]), port.wrapping_add(slot as u16)),
        }
    }

    /// The slot whose address this is; `None` for any other address, and for all while there is no first port.
    #[inline(always)]
    #[must_use]
    pub const fn at(address: Endpoint, port: u16) -> Option<Self> {
        if port == 0 {
            return None;
        }
        let ip = address.ip();
        let distance = address.port().wrapping_sub(port) as u32;
        if ip.is_v4() {
            let host = u32::from_be(ip.v4_word());
            return if host & 0xffff_0000 == V4_NETWORK && distance == 0 {
                Some(Self::V4(host & 0xffff))
            } else {
                None
            };
        }
        if ip.is_loopback() && distance < V6_SLOTS { Some(Self::V6(distance)) } else { None }
    }

    /// Whether an address could be a slot's, whatever its port: a quick answer for datagrams that are not.
    #[inline(always)]
    #[must_use]
    pub const fn is_possible(ip: Ip) -> bool {
        (ip.is_v4() && u32::from_be(ip.v4_word()) & 0xffff_0000 == V4_NETWORK) || (!ip.is_v4() && ip.is_loopback())
    }
}

/// Whether a datagram or a connect is a question to a resolver at all.
#[inline(always)]
#[must_use]
pub const fn is_question(protocol: u32, port: u16) -> bool {
    protocol == IPPROTO_UDP && port == PORT
}

/// What a hook knows of a question.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The role found on the socket.
    pub role: Option<Role>,
    /// Whom the application asks.
    pub resolver: Ip,
    /// `SO_BINDTODEVICE` is set.
    pub bound_to_device: bool,
    pub redirecting: bool,
    /// The agent answers questions of this network namespace.
    pub netns_enrolled: bool,
    /// The caller is one of the processes whose connections are taken.
    pub chosen: bool,
    /// An exclude rule of the outbound policy names the resolver.
    pub excluded: bool,
    pub heartbeat_age_ns: u64,
    pub heartbeat_loss_ns: u64,
}

/// Why this question goes to its resolver directly; `None`: the agent answers it. Never refuses, also where
/// `on_agent_loss` does so with connections: without names nothing works, and a name is no destination.
#[inline(always)]
#[must_use]
pub const fn reason_to_pass(facts: &Facts) -> Option<Counter> {
    if matches!(facts.role, Some(Role::Bypass)) {
        Some(Counter::DnsPassedBypass)
    } else if !facts.netns_enrolled {
        Some(Counter::DnsPassedNetns)
    } else if !facts.redirecting {
        Some(Counter::DnsPassedDraining)
    } else if !facts.chosen {
        Some(Counter::DnsPassedNotChosen)
    } else if facts.bound_to_device {
        Some(Counter::DnsPassedBoundDevice)
    } else if facts.resolver.is_v6_link_local() {
        Some(Counter::DnsPassedLinkLocal)
    } else if facts.excluded {
        Some(Counter::DnsPassedExcluded)
    } else if facts.heartbeat_age_ns > facts.heartbeat_loss_ns {
        Some(Counter::DnsPassedAgentLost)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, SocketAddr};

    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn slots_are_found_again_at_their_address() {
        let check = |address: &str, expected: Option<Slot>| {
            assert_eq!(Slot::at(endpoint(address), 15053), expected, "{address}");
            if let Some(slot) = expected {
                assert_eq!(slot.address(15053), endpoint(address), "{address}");
            }
        };
        check("127.53.1.2:15053", Some(Slot::V4(0x0102)));
        check("127.53.255.255:15053", Some(Slot::V4(0xffff)));
        check("127.53.1.2:15054", None);
        check("127.0.0.1:15053", None);
        check("10.53.1.2:15053", None);
        check("[::1]:15053", Some(Slot::V6(0)));
        check("[::1]:15060", Some(Slot::V6(7)));
        check("[::1]:15061", None);
        check("[::1]:15052", None);
        check("[::2]:15053", None);
    }

    #[test]
    fn the_first_reason_to_leave_a_question_alone_is_the_one_that_counts() {
        let taken = Facts {
            role: None,
            resolver: ip("10.96.0.10"),
            bound_to_device: false,
            redirecting: true,
            netns_enrolled: true,
            chosen: true,
            excluded: false,
            heartbeat_age_ns: 5,
            heartbeat_loss_ns: 5,
        };
        let check = |facts: Facts, expected| assert_eq!(reason_to_pass(&facts), expected, "{facts:?}");
        check(taken, None);
        check(Facts { role: Some(Role::Client), ..taken }, None);
        check(Facts { role: Some(Role::Bypass), ..taken }, Some(Counter::DnsPassedBypass));
        check(Facts { netns_enrolled: false, redirecting: false, ..taken }, Some(Counter::DnsPassedNetns));
        check(Facts { redirecting: false, ..taken }, Some(Counter::DnsPassedDraining));
        check(Facts { chosen: false, bound_to_device: true, ..taken }, Some(Counter::DnsPassedNotChosen));
        check(Facts { bound_to_device: true, ..taken }, Some(Counter::DnsPassedBoundDevice));
        check(Facts { resolver: ip("fe80::1"), ..taken }, Some(Counter::DnsPassedLinkLocal));
        check(Facts { excluded: true, ..taken }, Some(Counter::DnsPassedExcluded));
        check(Facts { heartbeat_age_ns: 6, ..taken }, Some(Counter::DnsPassedAgentLost));
    }

    #[test]
    fn only_datagrams_to_port_53_are_questions() {
        assert!(is_question(17, 53));
        assert!(!is_question(6, 53) && !is_question(17, 5353));
    }

    proptest! {
        #[test]
        fn probing_stays_within_the_family_and_never_tries_a_slot_twice(resolver: IpAddr) {
            let resolver = Ip::from(resolver);
            let mut seen: Vec<_> = (0..PROBES).map(|step| Slot::of_resolver(resolver, step)).collect();
            for slot in &seen {
                prop_assert_eq!(matches!(slot, Slot::V4(_)), resolver.is_v4());
                prop_assert!(Slot::is_possible(slot.address(15053).ip()));
                prop_assert_eq!(Slot::at(slot.address(15053), 15053), Some(*slot));
            }
            seen.sort();
            seen.dedup();
            prop_assert_eq!(seen.len(), PROBES as usize);
        }
    }
}
