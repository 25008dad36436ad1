//! Whether an address is one of the agent's own listening sockets: the fence against loops behind the BYPASS stamp.
//!
//! Before: [`super::select`], for `original_dst` clusters alone (a configured endpoint is the operator's word).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::addr::{EndpointAddr, of_interfaces};
use crate::listener::Binding;
use crate::snapshot::Snapshot;

/// The addresses of the listeners in `snapshot` that have a socket.
pub(super) fn listening(snapshot: &Snapshot) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for listener in snapshot.listeners.iter().filter(|listener| matches!(listener.binding, Binding::Socket { .. })) {
        addresses.push(listener.address);
        // A loopback listener for redirected connections listens in the other family at the same port as well.
        if listener.receives() && listener.address.ip().is_loopback() {
            let other: IpAddr = match listener.address {
                SocketAddr::V4(_) => Ipv6Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
            };
            addresses.push(SocketAddr::new(other, listener.address.port()));
        }
    }
    addresses
}

/// Whether a connection to `destination` would arrive at one of the `listening` sockets. `is_local` tells whether an
/// address is one of this host's; it is asked only when a wildcard socket has the destination's port.
pub(super) fn arrives_at(
    listening: &[SocketAddr],
    destination: EndpointAddr,
    is_local: impl FnOnce(IpAddr) -> bool,
) -> bool {
    let mut wildcard = false;
    for socket in listening.iter().filter(|socket| socket.port() == destination.port()) {
        let ip = socket.ip().to_canonical();
        // `connect(2)` to the unspecified address means this host.
        if ip == destination.ip() || destination.ip().is_unspecified() {
            return true;
        }
        // [::] takes IPv4 connections as well, unless it is told not to: then this refuses one address too many.
        wildcard |= ip.is_unspecified() && (ip.is_ipv6() || destination.ip().is_ipv4());
    }
    wildcard && is_local(destination.ip())
}

/// Whether `address` belongs to this host: loopback, or of one of its interfaces. When the interfaces cannot be read
/// it counts as local, because a loop is worse than a refusal.
pub(super) fn is_local(address: IpAddr) -> bool {
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    of_interfaces().map_or(true, |mut own| own.any(|own| own == address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_refused_when_it_arrives_at_a_listening_socket() {
        let local = |ip: IpAddr| ip.is_loopback() || ip.to_string() == "10.0.0.9";
        for (sockets, destination, refused) in [
            ("127.0.0.1:15001", "127.0.0.1:15001", true),
            ("127.0.0.1:15001", "127.0.0.1:15002", false),
            ("127.0.0.1:15001", "127.0.0.2:15001", false),
            ("127.0.0.1:15001", "0.0.0.0:15001", true),
            ("127.0.0.1:15001", "[::ffff:127.0.0.1]:15001", true),
            ("0.0.0.0:15001", "10.0.0.9:15001", true),
            ("0.0.0.0:15001", "127.9.9.9:15001", true),
            ("0.0.0.0:15001", "10.0.0.8:15001", false),
            ("0.0.0.0:15001", "[::1]:15001", false),
            ("[::]:15001", "[::1]:15001", true),
            ("[::]:15001", "10.0.0.9:15001", true),
            ("[::]:15001", "10.0.0.8:15001", false),
        ] {
            let destination = EndpointAddr::new(destination.parse().expect("address"));
            let sockets = [sockets.parse().expect("address")];
            assert_eq!(arrives_at(&sockets, destination, local), refused, "{destination} with {sockets:?} bound");
        }
    }

    #[test]
    fn loopback_is_local_and_a_documentation_address_is_not() {
        assert!(is_local("127.1.2.3".parse().expect("address")));
        assert!(is_local("::1".parse().expect("address")));
        assert!(!is_local("203.0.113.77".parse().expect("address")));
    }
}
