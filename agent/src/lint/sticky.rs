//! Hashes without a table, and tables without a hash: both are valid, and nothing sticks.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Finding, Kind};
use crate::cluster::{Cluster, ClusterSpecifier};
use crate::http::route::Action;
use crate::listener::NetworkFilter;
use crate::listener::chain::FilterChain;
use crate::snapshot::Snapshot;

/// Something that goes to clusters.
struct Way<'a> {
    /// Of its hash policy, if it has one.
    path: String,
    has_hash_policy: bool,
    clusters: &'a ClusterSpecifier,
}

/// Hash policies that no cluster goes by, and clusters that go by a hash which nothing makes.
pub(super) fn findings(snapshot: &Snapshot) -> Vec<Finding> {
    let ways: Vec<_> = connections(snapshot).chain(requests(snapshot)).collect();
    let mut findings: Vec<_> = ways.iter().filter(|way| way.has_hash_policy).filter_map(ignored).collect();
    findings.extend(without_hash(snapshot, &ways));
    findings
}

fn ignored(way: &Way<'_>) -> Option<Finding> {
    let clusters = named(way.clusters)?;
    if clusters.iter().any(|cluster| cluster.lb_policy.hashes()) {
        return None;
    }
    let names: Vec<_> = clusters.iter().map(|cluster| format!("'{}'", cluster.name)).collect();
    Some(Finding {
        path: way.path.clone(),
        other: None,
        message: format!(
            "nothing goes by this hash: `lb_policy` of cluster {} is neither ring_hash nor maglev",
            names.join(", ")
        ),
        kind: Kind::HashPolicyIgnored,
    })
}

/// Clusters that choose by hash, and to which only what has none goes.
fn without_hash(snapshot: &Snapshot, ways: &[Way<'_>]) -> Vec<Finding> {
    let (mut used, mut hashed) = (BTreeSet::new(), BTreeSet::new());
    for way in ways {
        match named(way.clusters) {
            // Any, with a hash.
            None if way.has_hash_policy => return Vec::new(),
            None => {}
            Some(clusters) => {
                let names = || clusters.iter().map(|cluster| &cluster.name);
                used.extend(names());
                hashed.extend(names().filter(|_| way.has_hash_policy));
            }
        }
    }
    let random = |cluster: &&Arc<Cluster>| {
        cluster.lb_policy.hashes() && used.contains(&cluster.name) && !hashed.contains(&cluster.name)
    };
    let finding = |cluster: &Arc<Cluster>| Finding {
        path: format!("clusters[\"{}\"]", cluster.name),
        other: None,
        message: format!(
            "cluster '{}' chooses by hash (`lb_policy: {}`), and nothing that goes to it has a `hash_policy`: it chooses \
             at random",
            cluster.name,
            cluster.lb_policy.name()
        ),
        kind: Kind::HashPolicyMissing,
    };
    snapshot.clusters.values().filter(random).map(finding).collect()
}

/// The clusters that are named; `None`: a request names it.
fn named(clusters: &ClusterSpecifier) -> Option<Vec<&Arc<Cluster>>> {
    match clusters {
        ClusterSpecifier::Cluster(cluster) => Some(vec![cluster]),
        ClusterSpecifier::Weighted(weighted) => Some(weighted.entries().iter().map(|(cluster, _)| cluster).collect()),
        ClusterSpecifier::Header(_) => None,
    }
}

fn connections(snapshot: &Snapshot) -> impl Iterator<Item = Way<'_>> {
    snapshot.listeners.iter().enumerate().flat_map(|(index, listener)| {
        let numbered = listener.chains.all().iter().enumerate();
        let numbered = numbered.map(|(number, chain)| (format!("filter_chains[{number}]"), chain));
        let default = listener.chains.default_chain().map(|chain| ("default_filter_chain".to_owned(), chain));
        let ways = numbered.chain(default).filter_map(move |(place, chain): (String, &Arc<FilterChain>)| {
            let NetworkFilter::Tcp(proxy) = &chain.filter else { return None };
            Some(Way {
                path: format!("listeners[{index}].{place}.tcp_proxy.hash_policy"),
                has_hash_policy: proxy.hash_policy.is_some(),
                clusters: &proxy.cluster,
            })
        });
        ways.collect::<Vec<_>>()
    })
}

fn requests(snapshot: &Snapshot) -> impl Iterator<Item = Way<'_>> {
    snapshot.route_configs.values().flat_map(|config| {
        let hosts = config.virtual_hosts.iter().enumerate();
        let rows = hosts.flat_map(|(host, virtual_host)| virtual_host.routes.iter().map(move |route| (host, route)));
        let ways = rows.filter_map(|(host, route)| {
            let Action::Route(action) = &route.action else { return None };
            let row = format!("{}.virtual_hosts[{host}].routes[{}]", config.field_path, route.index);
            Some(Way {
                path: format!("{row}.route.hash_policy"),
                has_hash_policy: !action.hash_policy.is_empty(),
                clusters: &action.cluster,
            })
        });
        ways.collect::<Vec<_>>()
    })
}
