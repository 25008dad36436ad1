//! Two agents that intercept each other: the one's connections to endpoints would go to the other, and the other's back
//! to the first, for ever.
//!
//! Used by `interception`, before it attaches. One agent above another is no such pair: only the upper one takes the
//! lower one's connections.

use super::{
    KernelError,
    cgroup::Cgroup,
    inspect::{self, Instance},
    policy::{Compiled, overlap},
};

/// Refuses to go on when there is an agent whose hooks would run for this process, and whose own connections the hooks
/// on `cgroup` would take, by policies that have destinations in common. Instances that start at the same moment may both
/// be refused, but never both go on: each has its settings in the kernel before it looks.
pub(super) fn check(
    cgroup: &Cgroup,
    own: &Cgroup,
    policy: &Compiled,
    (instance, netns_cookie): (u32, u64),
) -> Result<(), KernelError> {
    for other in inspect::instances()? {
        if other.id() == instance || !other.is_held() || !own.is_covered_by(other.cgroup_id()) {
            continue;
        }
        // A process that is gone or of another pid namespace cannot be told.
        let theirs = Cgroup::of_process(&other.agent_pid().to_string());
        if theirs.is_ok_and(|theirs| cgroup.covers(&theirs)) && takes_too(&other, policy, netns_cookie) {
            return Err(KernelError::Rival { pid: other.agent_pid(), cgroup: cgroup.path().to_owned() });
        }
    }
    Ok(())
}

/// Whether its hooks take what ours take in this network namespace, or may be about to. One that drains leaves the field
/// to its successor.
fn takes_too(other: &Instance, policy: &Compiled, netns_cookie: u64) -> bool {
    let Ok(status) = other.status() else { return false };
    if status.policy_generation == 0 {
        return true;
    }
    status.redirecting
        && other.netns().is_ok_and(|cookies| cookies.contains(&netns_cookie))
        && other.policy_nodes().is_ok_and(|theirs| overlap(policy.nodes(), &theirs))
}
