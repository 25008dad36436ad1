//! What the maps say of a network namespace: which policies hold in it, and who listens there for the agent.

/// Value of the map of network namespaces: the policy of each direction, 0 for a direction that is left alone.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct NetnsEntry {
    /// For connections that processes in the namespace make; rules speak of the destination.
    pub outbound: u32,
    /// For connections that arrive in the namespace; rules speak of the client's address and the local port.
    pub inbound: u32,
}

const _: () = assert!(size_of::<NetnsEntry>() == 8);

impl NetnsEntry {
    /// Nothing is taken.
    pub const NONE: Self = Self { outbound: 0, inbound: 0 };

    /// As one word.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.outbound as u64 | (self.inbound as u64) << 32
    }

    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self { outbound: bits as u32, inbound: (bits >> 32) as u32 }
    }
}

/// Key of the map of inbound listeners: the agent's listening socket of one address family in one network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ListenerKey {
    netns_cookie: u64,
    family: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<ListenerKey>() == 16);

impl ListenerKey {
    #[inline(always)]
    #[must_use]
    pub const fn new(netns_cookie: u64, is_v4: bool) -> Self {
        Self { netns_cookie, family: if is_v4 { 4 } else { 6 }, reserved: 0 }
    }

    #[must_use]
    pub const fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.family == 4
    }
}
