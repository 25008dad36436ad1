//! Health checks that ask another place than the one where requests go: they run in the agent's own network namespace,
//! and loopback is another one in each.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Finding, Kind};
use crate::cluster::{Cluster, ClusterSpecifier, Discovery};
use crate::http::route::Action;
use crate::listener::chain::FilterChain;
use crate::listener::{Binding, Listener, NetworkFilter};
use crate::snapshot::Snapshot;

/// Clusters with health checks and loopback endpoints, where all that is served comes from pods.
pub(super) fn findings(snapshot: &Snapshot) -> Vec<Finding> {
    let only_pods = snapshot.intercept.as_ref().is_some_and(|intercept| intercept.pods.is_some() && !intercept.host);
    if !only_pods {
        return Vec::new();
    }
    // A listener that clients of the host address directly has endpoints in the agent's own namespace.
    let direct = |listener: &&Arc<Listener>| listener.binding != Binding::Virtual && !listener.receives();
    let mut own = BTreeSet::new();
    for specifier in snapshot.listeners.iter().filter(direct).flat_map(|listener| specifiers(listener)) {
        match specifier {
            ClusterSpecifier::Cluster(cluster) => _ = own.insert(cluster.name.clone()),
            ClusterSpecifier::Weighted(all) => own.extend(all.entries().iter().map(|(one, _)| one.name.clone())),
            ClusterSpecifier::Header(_) => return Vec::new(),
        }
    }
    let elsewhere = |cluster: &&Arc<Cluster>| checks_loopback(cluster) && !own.contains(&cluster.name);
    let finding = |cluster: &Arc<Cluster>| Finding {
        path: format!("clusters[\"{}\"]", cluster.name),
        other: Some("intercept.pods".to_owned()),
        message: format!(
            "the health checks of cluster '{}' ask loopback in the agent's own network namespace, while connections go to \
             loopback in that of each pod: leave them out",
            cluster.name
        ),
        kind: Kind::HealthCheckElsewhere,
    };
    snapshot.clusters.values().filter(elsewhere).map(finding).collect()
}

fn checks_loopback(cluster: &Cluster) -> bool {
    let loopback = || cluster.endpoints.load().all().iter().any(|member| member.endpoint.address.ip().is_loopback());
    cluster.discovery == Discovery::Static && !cluster.health_checks.is_empty() && loopback()
}

fn specifiers(listener: &Listener) -> impl Iterator<Item = &ClusterSpecifier> {
    let chains = listener.chains.all().iter().chain(listener.chains.default_chain());
    chains.flat_map(|chain: &Arc<FilterChain>| match &chain.filter {
        NetworkFilter::Tcp(proxy) => vec![&proxy.cluster],
        NetworkFilter::Http(manager) => {
            let routes = manager.route_config.virtual_hosts.iter().flat_map(|host| &host.routes);
            let clusters = routes.filter_map(|route| match &route.action {
                Action::Route(action) => Some(&action.cluster),
                Action::Redirect(_) | Action::DirectResponse(_) => None,
            });
            clusters.collect()
        }
    })
}
