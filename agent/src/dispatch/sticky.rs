//! Clients that stay with an endpoint, in the kernel: the table that a client's hash looks into, and what stands for the client.
//!
//! Before: a TCP proxy with a hash policy, and the endpoints of its cluster. After: [`super::Dispatcher`], which writes the
//! slots, and `explain`, which draws one. Pure.
//!
//! Whether the cluster balances by ring or by table, the kernel has a table, made as `maglev` makes it: an index is all that
//! a hook has to compute. Its choices are its own, others than the agent's for the same address.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::balance::hash::maglev;
use crate::cluster::endpoint::{Endpoint, EndpointSet};
use crate::cluster::{Cluster, ClusterSpecifier};
use crate::kernel::dispatch::client_hash;
use crate::listener::TcpProxy;

/// Slots of a table for as many endpoints or fewer, prime numbers. A table of another size moves most clients, so that it must
/// not hang on who is healthy, and seldom change.
const SIZES: [(usize, u32); 3] = [(128, 1_021), (512, 4_093), (usize::MAX, 16_381)];

/// The cluster to whose endpoints the clients of `proxy` stick; `None`: they do not, or a hash would have to be drawn from
/// among several.
pub fn cluster(proxy: &TcpProxy) -> Option<&Arc<Cluster>> {
    match &proxy.cluster {
        ClusterSpecifier::Cluster(cluster) if proxy.hash_policy.is_some() && cluster.lb_policy.hashes() => {
            Some(cluster)
        }
        _ => None,
    }
}

/// Which of those that take traffic each slot belongs to, by index. Without any, one slot of the index 0, which stands for
/// nowhere.
pub fn slots(set: &EndpointSet) -> Vec<usize> {
    if set.usable().is_empty() {
        return vec![0];
    }
    let keys: Vec<_> = set.usable().iter().map(|member| member.endpoint.address.to_string()).collect();
    let weights = set.usable().iter().map(|member| f64::from(member.weight.max(1)));
    let entries: Vec<_> = keys.iter().map(String::as_str).zip(weights).collect();
    let size = SIZES.iter().find(|(most, _)| set.all().len() <= *most).map_or(1, |(_, size)| *size);
    maglev::fill(&entries, size)
}

/// The endpoint that a socket bound to `ip` is sent to: drawn as the hook does. `None` when no endpoint takes traffic.
pub fn endpoint(set: &EndpointSet, ip: IpAddr) -> Option<&Arc<Endpoint>> {
    let slots = slots(set);
    let place = client_hash(ip.into(), 0) as usize % slots.len();
    set.usable().get(*slots.get(place)?).map(|member| &member.endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::endpoint::Health;
    use crate::cluster::fixture::members;

    #[test]
    fn a_table_has_a_size_that_health_does_not_change() {
        for (endpoints, size) in [(1, 1_021), (128, 1_021), (129, 4_093), (513, 16_381)] {
            let members = members(&vec![1; endpoints]);
            members[0].endpoint.set_health(Health::Unhealthy);
            let usable = endpoints > 1;
            let set = EndpointSet::new(members, 0);
            assert_eq!(slots(&set).len(), if usable { size } else { 1 }, "{endpoints}");
        }
    }

    #[test]
    fn clients_of_an_endpoint_that_fails_move_and_most_others_stay() {
        let members = members(&[1; 5]);
        let before = EndpointSet::new(members.clone(), 0);
        let clients: Vec<IpAddr> = (1..=200_u8).map(|last| [10, 0, 0, last].into()).collect();
        let of = |set: &EndpointSet| -> Vec<_> {
            clients.iter().map(|ip| endpoint(set, *ip).expect("an endpoint").address).collect()
        };
        let first = of(&before);
        members[2].endpoint.set_health(Health::Unhealthy);
        let second = of(&EndpointSet::new(members.clone(), 0));
        let failed = members[2].endpoint.address;
        assert!(first.contains(&failed) && !second.contains(&failed));
        let moved = first.iter().zip(&second).filter(|(one, two)| one != two && **one != failed).count();
        assert!(moved <= 20, "{moved} of 200 moved that need not");
        members[2].endpoint.set_health(Health::Healthy);
        assert_eq!(of(&EndpointSet::new(members, 0)), first);
    }
}
