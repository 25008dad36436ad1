//! What arrives at this machine itself: the inbound side of the agent's own network namespace.
//!
//! Before: [`super`], whose inbound listener is bound. After: [`crate::kernel`], which hands connections to it.

use std::net::TcpListener;
use std::os::fd::AsFd;

use super::interception::Attached;
use super::pods::decide;
use crate::kernel::{Enrolment, InboundEnrolment, KernelError};
use crate::netns::Netns;
use crate::snapshot::Intercept;

/// Takes what arrives here, by the sockets of the inbound listener.
pub(super) fn take_inbound(
    attached: &Attached,
    intercept: &Intercept,
    sockets: &[TcpListener],
    own_ports: &[u16],
) -> Result<(), KernelError> {
    let netns = Netns::own().map_err(|source| KernelError::io("opening the agent's own network namespace", source))?;
    let socket = |v4: bool| {
        let is_it = |socket: &&TcpListener| socket.local_addr().is_ok_and(|address| address.is_ipv4() == v4);
        sockets.iter().find(is_it).map(AsFd::as_fd)
    };
    let policy = intercept.inbound.as_ref().filter(|_| intercept.host && !sockets.is_empty()).map(|inbound| {
        // `from_node` is about pods: here it is what a developer's own client sends.
        decide::without_own_ports(inbound.policy.clone(), own_ports)
    });
    let inbound = policy.as_ref().map(|policy| InboundEnrolment {
        policy,
        listener_v4: socket(true),
        listener_v6: socket(false),
    });
    let outbound = intercept.host.then_some(&intercept.outbound);
    attached.enrol(&netns, &Enrolment { outbound, inbound, listeners: &[] })
}
