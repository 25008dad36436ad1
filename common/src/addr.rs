//! Addresses whose byte order is part of their type.
//!
//! The kernel hands addresses over as words in network order; the agent thinks in `SocketAddr`. [`Ip`] holds both
//! families in one form, IPv4 as `::ffff:a.b.c.d`, so that maps have one key layout and an IPv4-mapped destination is
//! an IPv4 destination by construction.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// `0:0:ffff` of an IPv4-mapped address, third word, in network order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// An IP address: four words in network byte order, IPv4 in its mapped form.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ip {
    words: [u32; 4],
}

const _: () = assert!(size_of::<Ip>() == 16);

impl Ip {
    /// From `user_ip4` and its like: one word in network order.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// From `user_ip6` and its like: four words in network order.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The four words in network order; IPv4 in its mapped form, as an IPv6 socket wants it.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The IPv4 address as one word in network order; meaningless unless [`Self::is_v4`].
    #[inline(always)]
    #[must_use]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return self.words[3] & 0xff00_0000_u32.to_be() == 0x7f00_0000_u32.to_be();
        }
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && self.words[3] == 1_u32.to_be()
    }

    /// 0.0.0.0 or `::`.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        self.words[3] == 0 && (self.is_v4() || (self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0))
    }

    /// `fe80::/10`: only meaningful together with an interface, which a connect hook is not told.
    #[inline(always)]
    #[must_use]
    pub const fn is_v6_link_local(&self) -> bool {
        self.words[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    /// The wildcard address of the same family: the key under which a wildcard listener is looked up.
    #[inline(always)]
    #[must_use]
    pub const fn wildcard(&self) -> Self {
        if self.is_v4() { Self::from_v4_word(0) } else { Self { words: [0; 4] } }
    }

    /// 127.0.0.1 or `::1`, by the family of `self`.
    #[inline(always)]
    #[must_use]
    pub const fn loopback(&self) -> Self {
        if self.is_v4() {
            Self::from_v4_word(0x7f00_0001_u32.to_be())
        } else {
            Self { words: [0, 0, 0, 1_u32.to_be()] }
        }
    }

    /// The sixteen bytes as they stand on the wire.
    #[inline(always)]
    #[must_use]
    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (four, word) in octets.chunks_exact_mut(4).zip(self.words) {
            four.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }

    #[must_use]
    pub fn from_octets(octets: [u8; 16]) -> Self {
        let mut words = [0; 4];
        for (word, four) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
        }
        Self { words }
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(ip: Ipv6Addr) -> Self {
        Self::from_octets(ip.octets())
    }
}

impl From<IpAddr> for Ip {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

/// An IPv4-mapped address comes back as `IpAddr::V4`.
impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        if ip.is_v4() { Self::V4(Ipv4Addr::from(ip.words[3].to_ne_bytes())) } else { Self::V6(ip.octets().into()) }
    }
}

impl fmt::Debug for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// An address and a port; the port in host order. Port 0 stands for "none".
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    ip: Ip,
    port: u32,
}

const _: () = assert!(size_of::<Endpoint>() == 20 && align_of::<Endpoint>() == 4);

impl Endpoint {
    /// No address at all.
    pub const NONE: Self = Self { ip: Ip { words: [0; 4] }, port: 0 };

    #[inline(always)]
    #[must_use]
    pub const fn new(ip: Ip, port: u16) -> Self {
        Self { ip, port: port as u32 }
    }

    #[inline(always)]
    #[must_use]
    pub const fn ip(&self) -> Ip {
        self.ip
    }

    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port as u16
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.port == 0
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip().into(), addr.port())
    }
}

/// An IPv4-mapped address comes back as `SocketAddr::V4`.
impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(endpoint.ip.into(), endpoint.port())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ipv4_mapped_address_is_the_ipv4_address() {
        let mapped: Ipv6Addr = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(Ip::from(mapped), Ip::from(Ipv4Addr::new(10, 1, 2, 3)));
        assert_eq!(IpAddr::from(Ip::from(mapped)), "10.1.2.3".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn address_classes_are_recognised() {
        let check = |text: &str, loopback: bool, unspecified: bool, link_local: bool| {
            let ip = Ip::from(text.parse::<IpAddr>().unwrap());
            assert_eq!(
                (ip.is_loopback(), ip.is_unspecified(), ip.is_v6_link_local()),
                (loopback, unspecified, link_local),
                "{text}"
            );
        };
        check("127.0.0.1", true, false, false);
        check("127.255.0.9", true, false, false);
        check("128.0.0.1", false, false, false);
        check("::1", true, false, false);
        check("::2", false, false, false);
        check("0.0.0.0", false, true, false);
        check("::", false, true, false);
        check("::ffff:0.0.0.0", false, true, false);
        check("fe80::1", false, false, true);
        check("febf::1", false, false, true);
        check("fec0::1", false, false, false);
        check("169.254.1.1", false, false, false);
    }

    #[test]
    fn the_wildcard_and_the_loopback_keep_the_family() {
        let v4 = Ip::from(Ipv4Addr::new(10, 0, 0, 1));
        let v6 = Ip::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        assert_eq!(IpAddr::from(v4.wildcard()), "0.0.0.0".parse::<IpAddr>().unwrap());
        assert_eq!(IpAddr::from(v6.wildcard()), "::".parse::<IpAddr>().unwrap());
        assert_eq!(IpAddr::from(v4.loopback()), "127.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(IpAddr::from(v6.loopback()), "::1".parse::<IpAddr>().unwrap());
    }

    proptest! {
        #[test]
        fn a_socket_address_survives_the_round_trip(ip: IpAddr, port: u16) {
            let back = SocketAddr::from(Endpoint::from(SocketAddr::new(ip, port)));
            prop_assert_eq!(back, SocketAddr::new(ip.to_canonical(), port));
        }
    }
}
