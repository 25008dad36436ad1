//! Two agents that intercept each other: the one's connections would go to the other, and the other's back to the first,
//! for ever.
//!
//! Used by `interception`, before it attaches and whenever it enrols a network namespace. One agent above another is no
//! such pair: only the upper one takes the lower one's connections.

use super::{
    KernelError,
    cgroup::Cgroup,
    inspect::{self, Instance},
    namespaces::Wanted,
    policy::{Compiled, overlap},
};

/// Who asks: what it intercepts, and where it is itself.
pub(super) struct Place {
    pub(super) instance: u32,
    /// Whose processes' connections it takes.
    pub(super) cgroup: Cgroup,
    /// Its own.
    pub(super) own: Cgroup,
}

impl Place {
    /// Refuses to go on in the network namespace `netns_cookie` when there is an agent
    ///
    /// - whose hooks would run for this process, and whose own connections the hooks on `cgroup` would take, by outbound
    ///   policies that have destinations in common;
    /// - or that takes what arrives in that namespace, by an inbound policy that has clients and ports in common with ours:
    ///   neither knows the other's connections to the applications.
    ///
    /// Instances that start at the same moment may both be refused, but never both go on: each has its settings, or its
    /// entry for the namespace, in the kernel before it looks.
    pub(super) fn check(&self, netns_cookie: u64, wanted: Wanted<'_>) -> Result<(), KernelError> {
        for other in inspect::instances()? {
            if other.id() == self.instance || !other.is_held() {
                continue;
            }
            if let Some(policy) = wanted.outbound
                && self.own.is_covered_by(other.cgroup_id())
                && self.covers_agent_of(&other)
                && takes_too(&other, policy, netns_cookie)
            {
                return Err(KernelError::Rival { pid: other.agent_pid(), cgroup: self.cgroup.path().to_owned() });
            }
            if let Some(policy) = wanted.inbound
                && receives_too(&other, policy, netns_cookie)
            {
                return Err(KernelError::InboundRival { pid: other.agent_pid(), netns_cookie });
            }
        }
        Ok(())
    }

    /// A process that is gone or of another pid namespace cannot be told.
    fn covers_agent_of(&self, other: &Instance) -> bool {
        Cgroup::of_process(&other.agent_pid().to_string()).is_ok_and(|theirs| self.cgroup.covers(&theirs))
    }
}

/// Whether its hooks take what ours take in this network namespace, or may be about to. One that drains leaves the field
/// to its successor.
fn takes_too(other: &Instance, policy: &Compiled, netns_cookie: u64) -> bool {
    other.is_starting().unwrap_or(false)
        || other.redirects_by(netns_cookie, |entry| entry.outbound).is_ok_and(|theirs| overlap(policy.nodes(), &theirs))
}

fn receives_too(other: &Instance, policy: &Compiled, netns_cookie: u64) -> bool {
    other.redirects_by(netns_cookie, |entry| entry.inbound).is_ok_and(|theirs| overlap(policy.nodes(), &theirs))
}
