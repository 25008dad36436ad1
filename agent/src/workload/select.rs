//! Whether a workload is enrolled, and what is taken from and for it: a pure function of what its runtime tells and of
//! the configuration.
//!
//! Before: [`super::watch`]. After: [`crate::server`], which enrols it, and `waylay pods`, which says why not.

mod annotations;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;

use super::Workload;
use crate::kernel::policy::Compiled;
use crate::kernel::{Policy, Rule};
use crate::snapshot::{FromNode, Intercept, Pods};
use annotations::Annotations;

/// The label or annotation that selects a workload where the configuration has no `select`, and whose `"false"` always
/// keeps it out.
pub const INJECT: &str = "waylay.io/inject";

/// What becomes of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is enrolled.
    Enrol {
        /// What is taken of that which it sends, by destination.
        outbound: Policy,
        /// What is taken of that which it receives, by client address and local port; `None`: nothing.
        inbound: Option<Policy>,
    },
    /// It is left alone.
    Skip {
        /// A part of a sentence: "no row of intercept.pods.select matches it".
        reason: String,
        /// Whether somebody wanted it enrolled: worth a warning.
        unexpected: bool,
    },
}

impl Decision {
    fn skip(reason: impl Into<String>) -> Self {
        Self::Skip { reason: reason.into(), unexpected: false }
    }

    fn fault(reason: impl Into<String>) -> Self {
        Self::Skip { reason: reason.into(), unexpected: true }
    }
}

/// Decides on `workload`. `node` is this node's own addresses: what comes from them is the kubelet's.
pub fn decide(workload: &Workload, pods: &Pods, intercept: &Intercept, node: &[IpAddr]) -> Decision {
    if let Some(decision) = unselected(workload, pods) {
        return decision;
    }
    let annotations = match Annotations::of(workload, pods) {
        Ok(annotations) => annotations,
        Err(reason) => return Decision::fault(reason),
    };
    if workload.host_network {
        return Decision::fault("it is in the node's network namespace (host network), which is not its own");
    }
    if workload.netns_path.is_none() && workload.pid.is_none() {
        return Decision::fault("its runtime does not tell where its network namespace is");
    }
    let policy = pods.policies.iter().find(|policy| policy.source_pod.matches(workload));
    let outbound = policy.and_then(|policy| policy.outbound.as_ref()).unwrap_or(&intercept.outbound);
    let outbound = annotations.outbound.apply(outbound.clone());
    let inbound =
        policy.and_then(|policy| policy.inbound.as_ref()).or(intercept.inbound.as_ref().map(|all| &all.policy));
    let inbound = inbound.filter(|_| !annotations.inbound_off).map(|inbound| {
        let from_node = intercept.inbound.as_ref().map(|all| all.from_node).unwrap_or_default();
        let inbound = annotations.inbound.apply(inbound.clone());
        if from_node == FromNode::Pass { without(inbound, node) } else { inbound }
    });
    for (direction, policy) in [("out", Some(&outbound)), ("in", inbound.as_ref())] {
        if let Some(Err(error)) = policy.map(Compiled::new) {
            return Decision::fault(format!("its {direction}bound rules do not fit into the kernel: {error}"));
        }
    }
    Decision::Enrol { outbound, inbound }
}

/// Why a workload is none of ours.
fn unselected(workload: &Workload, pods: &Pods) -> Option<Decision> {
    for (kind, map) in [("annotation", &workload.annotations), ("label", &workload.labels)] {
        match map.get(INJECT).map(String::as_str) {
            Some("false") => return Some(Decision::skip(format!("its {kind} {INJECT} is \"false\""))),
            None | Some("true") => {}
            Some(other) => {
                return Some(Decision::fault(format!("its {kind} {INJECT} is {other:?}: write \"true\" or \"false\"")));
            }
        }
    }
    let selected = pods.select.iter().any(|selector| selector.selects(workload));
    (!selected).then(|| Decision::skip("no row of intercept.pods.select matches it"))
}

/// `policy`, but nothing of what these clients send.
fn without(mut policy: Policy, clients: &[IpAddr]) -> Policy {
    let hosts = clients.iter().map(|client| Rule { cidr: Some(IpNet::from(client.to_canonical())), ports: Vec::new() });
    policy.exclude.extend(hosts);
    policy
}
