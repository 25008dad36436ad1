//! The endpoint that the balancer would choose first.

use std::net::SocketAddr;

use crate::addr::{EndpointAddr, OrigDstAddr};
use crate::cluster::balance::{Chance, Schedule, pick};
use crate::cluster::{Cluster, Discovery, LbPolicy, WeightedClusters};
use crate::dispatch::sticky;
use crate::snapshot::Snapshot;

/// An endpoint, as far as it is known before anything is sent.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) address: Option<EndpointAddr>,
    /// What `host_rewrite: auto` makes of it.
    pub(super) hostname: Option<String>,
    pub(super) text: String,
}

/// The first choice among the endpoints of `cluster`.
///
/// # Errors
/// Why there is none.
pub(super) fn choose(
    snapshot: &Snapshot,
    cluster: &Cluster,
    destination: Option<OrigDstAddr>,
    chance: Chance,
) -> Result<Choice, String> {
    match &cluster.discovery {
        Discovery::OriginalDst => at_destination(snapshot, destination),
        Discovery::StrictDns { names, .. } if cluster.endpoints.load().all().is_empty() => {
            let names: Vec<_> = names.iter().map(|name| format!("{}:{}", name.host, name.port)).collect();
            let text = format!("one of the addresses of {}, which are looked up when the agent runs", names.join(", "));
            Ok(Choice { address: None, hostname: None, text })
        }
        Discovery::Static | Discovery::StrictDns { .. } => balanced(cluster, chance),
    }
}

fn at_destination(snapshot: &Snapshot, destination: Option<OrigDstAddr>) -> Result<Choice, String> {
    let Some(destination) = destination else {
        let text = "the address that the client dials: --dst IP:PORT says which".to_owned();
        return Ok(Choice { address: None, hostname: None, text });
    };
    match snapshot.listeners.bound_at(destination.socket()) {
        Some(listener) => Err(format!(
            "{destination} is the agent's own listener '{}', connecting to it would be a loop",
            listener.name
        )),
        None => Ok(Choice {
            address: Some(EndpointAddr::new(destination.socket())),
            hostname: None,
            text: format!("{destination}, the original destination"),
        }),
    }
}

fn balanced(cluster: &Cluster, chance: Chance) -> Result<Choice, String> {
    let set = cluster.endpoints.load();
    let mut schedule = Schedule::starting_at(0);
    schedule.follow(&set);
    let Some(endpoint) = pick(cluster.lb_policy, &set, &mut schedule, chance, &[]) else {
        let (all, usable) = (set.all().len(), set.usable().len());
        return Err(format!("{usable} of the {all} endpoints of cluster {} take traffic", cluster.name));
    };
    let (of, random) = (set.usable().len(), chance.random[0]);
    let how = match cluster.lb_policy {
        _ if of == 1 => "the only one".to_owned(),
        LbPolicy::Consistent(_) if chance.hash.is_some() => format!("where the hash leads among {of}"),
        LbPolicy::Consistent(_) => format!("drawn from {of} with --random {random}, as there is no hash"),
        LbPolicy::RoundRobin => format!("the first of {of} in turn"),
        LbPolicy::LeastRequest => format!("the least busy of two drawn from {of}; none is busy yet"),
        LbPolicy::Random => format!("drawn from {of} with --random {random}"),
    };
    Ok(Choice {
        address: Some(endpoint.address),
        hostname: endpoint.hostname.as_ref().map(ToString::to_string),
        text: format!("{}, {how}", endpoint.address),
    })
}

/// The endpoint to which the kernel sends a client: by the address `src` that its socket is bound to, which no question can
/// stand in for; `None` when none takes traffic.
pub(super) fn stuck(cluster: &Cluster, src: Option<SocketAddr>) -> Option<Choice> {
    let set = cluster.endpoints.load();
    let of = set.usable().len();
    let Some(src) = src else {
        let text = format!(
            "one of {of}, always the same for one network namespace; --src IP:PORT says which for a socket bound to an address"
        );
        return (of > 0).then_some(Choice { address: None, hostname: None, text });
    };
    let endpoint = sticky::endpoint(&set, src.ip())?;
    let text = format!("{}, where the hash of a socket bound to {} leads among {of}", endpoint.address, src.ip());
    Some(Choice { address: Some(endpoint.address), hostname: None, text })
}

/// A cluster in one line.
pub(super) fn described(cluster: &Cluster) -> String {
    let policy = cluster.lb_policy.name();
    match cluster.discovery {
        Discovery::OriginalDst => format!("{} (original_dst)", cluster.name),
        Discovery::Static => format!("{} (static, {policy})", cluster.name),
        Discovery::StrictDns { .. } => format!("{} (strict_dns, {policy})", cluster.name),
    }
}

/// How the weights led to a cluster.
pub(super) fn weights(weighted: &WeightedClusters, random: u64) -> Vec<String> {
    let total: u64 = weighted.entries().iter().map(|(_, weight)| u64::from(*weight)).sum();
    let shares = weighted.entries().iter().map(|(cluster, weight)| format!("{} {weight}", cluster.name));
    let shares: Vec<_> = shares.collect();
    vec![format!(
        "weights {} of {total}: --random {random} draws {}",
        shares.join(", "),
        random.checked_rem(total).unwrap_or_default()
    )]
}
