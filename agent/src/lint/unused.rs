//! What nothing leads to: virtual listeners, virtual hosts, route configurations, clusters.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Finding, Kind};
use crate::cluster::ClusterSpecifier;
use crate::http::route::{Action, RouteConfig, VirtualHost};
use crate::listener::chain::FilterChain;
use crate::listener::dispatch::Listeners;
use crate::listener::{Binding, HandOff, Listener, NetworkFilter, TrafficDirection};
use crate::snapshot::Snapshot;

/// Virtual listeners that no bound listener hands connections to.
pub(super) fn listeners(listeners: &Listeners) -> Vec<Finding> {
    let hands_off = |listener: &&Arc<Listener>| listener.receives() && listener.hand_off == HandOff::ByOriginalDst;
    let directions: Vec<_> = listeners.iter().filter(hands_off).map(|listener| listener.direction).collect();
    let handed = |direction| directions.contains(&direction);
    let alone = listeners
        .iter()
        .enumerate()
        .filter(|(_, listener)| listener.binding == Binding::Virtual && !handed(listener.direction));
    let finding = |(index, listener): (usize, &Arc<Listener>)| Finding {
        path: format!("listeners[{index}]"),
        other: None,
        message: format!(
            "nothing reaches listener '{}': it has no socket (bind_to_port: false), and no bound listener{} has \
             use_original_dst to hand connections to it",
            listener.name,
            match listener.direction {
                TrafficDirection::Outbound => "",
                TrafficDirection::Inbound => " with traffic_direction inbound",
            }
        ),
        kind: Kind::UnreachableListener,
    };
    alone.map(finding).collect()
}

/// A virtual host none of whose domains is a host name that can be looked up.
pub(super) fn virtual_host(path: &str, config: &RouteConfig, virtual_host: &VirtualHost) -> Option<Finding> {
    let mut reasons: Vec<String> =
        virtual_host.domains.iter().map(|domain| impossible(config, domain)).collect::<Option<_>>()?;
    if reasons.is_empty() {
        reasons.push("it has no domains".to_owned());
    }
    Some(Finding {
        path: path.to_owned(),
        other: None,
        message: format!("nothing reaches virtual host '{}': {}", virtual_host.name, reasons.join("; ")),
        kind: Kind::UnreachableVirtualHost,
    })
}

/// Why no host name is `domain`.
fn impossible(config: &RouteConfig, domain: &str) -> Option<String> {
    if let Some(character) = domain.chars().find(|character| character.is_whitespace() || "/?#@".contains(*character)) {
        return Some(format!("domain '{domain}' contains {character:?}, which no host name does"));
    }
    let has_port = !domain.contains('*') && config.host_of(domain) != domain;
    has_port.then(|| format!("domain '{domain}' has a port, and ignore_port_in_host_matching cuts it off the host"))
}

/// Route configurations that no listener names.
pub(super) fn route_configs(snapshot: &Snapshot) -> Vec<Finding> {
    let used: BTreeSet<_> = chains(snapshot)
        .filter_map(|chain| match &chain.filter {
            NetworkFilter::Http(manager) => Some(manager.route_config.name.clone()),
            NetworkFilter::Tcp(_) => None,
        })
        .collect();
    let unused = snapshot.route_configs.values().filter(|config| !used.contains(&config.name));
    let finding = |config: &std::sync::Arc<RouteConfig>| Finding {
        path: config.field_path.clone(),
        other: None,
        message: format!("route configuration '{}' is used by no listener", config.name),
        kind: Kind::UnusedRouteConfig,
    };
    unused.map(finding).collect()
}

/// Clusters that nothing names. A `cluster_header` can name any.
pub(super) fn clusters(snapshot: &Snapshot) -> Vec<Finding> {
    let mut used = BTreeSet::new();
    let tcp = chains(snapshot).filter_map(|chain| match &chain.filter {
        NetworkFilter::Tcp(proxy) => Some(&proxy.cluster),
        NetworkFilter::Http(_) => None,
    });
    let rows = snapshot.route_configs.values().flat_map(|config| &config.virtual_hosts).flat_map(|host| &host.routes);
    let http = rows.filter_map(|route| match &route.action {
        Action::Route(action) => Some(&action.cluster),
        Action::Redirect(_) | Action::DirectResponse(_) => None,
    });
    for specifier in tcp.chain(http) {
        match specifier {
            ClusterSpecifier::Cluster(cluster) => {
                used.insert(cluster.name.clone());
            }
            ClusterSpecifier::Weighted(weighted) => {
                used.extend(weighted.entries().iter().map(|(cluster, _)| cluster.name.clone()));
            }
            ClusterSpecifier::Header(_) => return Vec::new(),
        }
    }
    let finding = |name: &std::sync::Arc<str>| Finding {
        path: format!("clusters[\"{name}\"]"),
        other: None,
        message: format!("cluster '{name}' is used by no filter chain and no route"),
        kind: Kind::UnusedCluster,
    };
    snapshot.clusters.keys().filter(|name| !used.contains(*name)).map(finding).collect()
}

fn chains(snapshot: &Snapshot) -> impl Iterator<Item = &FilterChain> {
    let chains = snapshot.listeners.iter().map(|listener| &listener.chains);
    chains.flat_map(|chains| chains.all().iter().chain(chains.default_chain())).map(|chain| &**chain)
}
