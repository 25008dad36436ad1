//! What arrives at this machine itself: the inbound side of the agent's own network namespace.
//!
//! Before: [`super`], whose inbound listener is bound. After: [`crate::kernel`], which hands connections to it.

use super::bind::InboundSockets;
use super::interception::Attached;
use super::pods::decide;
use crate::kernel::{Enrolment, KernelError};
use crate::netns::Netns;
use crate::snapshot::Intercept;

/// Takes what arrives here, by the sockets of the inbound listener.
pub(super) fn take_inbound(
    attached: &Attached,
    intercept: &Intercept,
    sockets: &InboundSockets,
    own_ports: &[u16],
) -> Result<(), KernelError> {
    let netns = Netns::own().map_err(|source| KernelError::io("opening the agent's own network namespace", source))?;
    let policy = intercept.inbound.as_ref().filter(|_| intercept.host).map(|inbound| {
        // `from_node` is about pods: here it is what a developer's own client sends.
        decide::without_own_ports(inbound.policy.clone(), own_ports)
    });
    let inbound = policy.as_ref().and_then(|policy| sockets.enrolment(policy));
    let outbound = intercept.host.then_some(&intercept.outbound);
    attached.enrol(&netns, &Enrolment { outbound, inbound, listeners: &[] })
}
