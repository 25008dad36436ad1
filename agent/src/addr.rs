//! Addresses as types: handing over the wrong one does not compile.
//!
//! A connection has up to four addresses. The client's and the original destination come with the accepted socket,
//! the listener's is the lookup key that the original destination resolved to, and the endpoint's is where the
//! connection goes next.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use serde::Serialize;

/// The addresses of this host's interfaces, in the network namespace of the process.
///
/// # Errors
/// The kernel does not list them.
pub fn of_interfaces() -> io::Result<impl Iterator<Item = IpAddr>> {
    Ok(getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    }))
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Wraps `address`; an IPv4-mapped IPv6 address becomes the IPv4 address it stands for.
            pub fn new(address: SocketAddr) -> Self {
                Self(canonical(address))
            }

            /// The plain socket address.
            pub fn socket(self) -> SocketAddr {
                self.0
            }

            /// The address without its port.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port, in host byte order.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address!(
    /// The peer of an accepted connection.
    ClientAddr
);
address!(
    /// Where the client wanted to go when it called `connect(2)`.
    OrigDstAddr
);
address!(
    /// The address of an endpoint: where the agent connects to.
    EndpointAddr
);

/// `::ffff:a.b.c.d` is `a.b.c.d`: dual-stack clients dial the former and mean the latter.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v4_mapped_destination_is_the_v4_destination() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().expect("address");
        assert_eq!(OrigDstAddr::new(mapped).to_string(), "10.0.0.1:80");
    }
}
