//! Whether a workload is enrolled, and what is taken of it: the configuration's and the workload's own word, and the
//! agent's ports, which are never taken.
//!
//! Before: [`super`], and `waylay explain`, which asks the same. After: [`crate::workload::select`], which knows the rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::addr::of_interfaces;
use crate::kernel::{Policy, Rule};
use crate::snapshot::{Admin, Intercept, Pods};
use crate::workload::{Decision, Selector, Workload, select};

/// Nothing is configured for pods.
pub(crate) const ENROLS_NO_PODS: &str = "this agent enrols no pods";

/// What is known of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// All that its runtime tells.
    Whole,
    /// What the network plugin tells: no labels, and annotations perhaps.
    Part {
        /// They are.
        annotations: bool,
    },
}

/// Decides on `workload`; what is not known of it yet selects it for the time being.
pub(crate) fn decide(
    (workload, known): (&Workload, Known),
    (intercept, pods): (&Intercept, &Pods),
    node: &[IpAddr],
    own_ports: &[u16],
) -> Decision {
    let decision = match known {
        Known::Whole => select::decide(workload, pods, intercept, node),
        Known::Part { annotations } => {
            let relaxed = |row: &Selector| Selector {
                labels: BTreeMap::new(),
                annotations: if annotations { row.annotations.clone() } else { BTreeMap::new() },
                ..row.clone()
            };
            let pods = Pods { select: pods.select.iter().map(relaxed).collect(), ..pods.clone() };
            select::decide(workload, &pods, intercept, node)
        }
    };
    match decision {
        Decision::Enrol { outbound, inbound } => Decision::Enrol {
            outbound: without_loopback(outbound),
            inbound: inbound.map(|policy| without_own_ports(without_loopback(policy), own_ports)),
        },
        skip @ Decision::Skip { .. } => skip,
    }
}

/// All addresses of this machine, which probes of its pods come from.
pub(crate) fn node_addresses() -> Vec<IpAddr> {
    let Ok(all) = of_interfaces() else { return Vec::new() };
    let mut addresses: Vec<IpAddr> = all.filter(|address| !address.is_loopback() && !is_link_local(*address)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Each end of a veth pair has one, and no probe comes from it.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Ports at which the agent answers for itself: those of the listeners that are `bound`, and of `admin`.
pub(crate) fn own_ports(admin: &Admin, bound: impl Iterator<Item = SocketAddr>) -> Vec<u16> {
    let admin = admin.prometheus.into_iter().chain(admin.readiness);
    let mut ports: Vec<u16> = bound.chain(admin).map(|address| address.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// What arrives at the agent's own ports is for the agent.
pub(in crate::server) fn without_own_ports(mut policy: Policy, own_ports: &[u16]) -> Policy {
    let ports: Vec<_> = own_ports.iter().map(|&port| port..=port).collect();
    if !ports.is_empty() {
        policy.exclude.push(Rule { cidr: None, ports });
    }
    policy
}

/// What a workload says to itself by way of loopback is its own matter, as it is in Istio, unless a rule names it.
pub(super) fn without_loopback(mut policy: Policy) -> Policy {
    let loopback: [IpNet; 2] =
        [Ipv4Net::new_assert([127, 0, 0, 0].into(), 8).into(), Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128).into()];
    let is_named = |net: &IpNet| policy.include.iter().filter_map(|rule| rule.cidr).any(|cidr| net.contains(&cidr));
    let excluded: Vec<IpNet> = loopback.into_iter().filter(|net| !is_named(net)).collect();
    policy.exclude.extend(excluded.into_iter().map(|net| Rule { cidr: Some(net), ports: Vec::new() }));
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(include: &[&str]) -> Vec<String> {
        let include = include.iter().map(|cidr| Rule { cidr: Some(cidr.parse().expect("cidr")), ports: Vec::new() });
        let policy = without_loopback(Policy { include: include.collect(), exclude: Vec::new() });
        policy.exclude.iter().filter_map(|rule| rule.cidr).map(|cidr| cidr.to_string()).collect()
    }

    #[test]
    fn loopback_is_left_alone_unless_a_rule_names_it() {
        assert_eq!(excluded(&[]), ["127.0.0.0/8", "::1/128"]);
        assert_eq!(excluded(&["0.0.0.0/0"]), ["127.0.0.0/8", "::1/128"]);
        assert_eq!(excluded(&["127.0.0.0/8"]), ["::1/128"]);
        assert_eq!(excluded(&["127.1.0.0/16", "::1/128"]), [""; 0]);
    }

    #[test]
    fn the_agents_ports_are_excluded() {
        let policy = without_own_ports(Policy::default(), &[15001, 15006]);
        assert_eq!(policy.exclude, [Rule { cidr: None, ports: vec![15001..=15001, 15006..=15006] }]);
        assert_eq!(without_own_ports(Policy::default(), &[]), Policy::default());
    }
}
