//! Which listeners the kernel can dispatch, and what stands in the way of the others.
//!
//! Before: a listener, resolved. After: the configuration's errors, `explain` and `check`, which tell it, and
//! [`super::Dispatcher`]. Pure.
//!
//! What the agent does by default and the kernel cannot (the idle timeout of an hour, the circuit breaker at 1024
//! connections, the connect timeout of 5 s) does not stand in the way: nobody asked for it. What is written and is not that
//! default does.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{CircuitBreakers, Cluster, ClusterSpecifier, LbPolicy};
use crate::listener::chain::{ChainMatch, FilterChain};
use crate::listener::{Binding, HandOff, Listener, NetworkFilter, TcpProxy, TrafficDirection};

/// Envoy's default, which the kernel does not keep.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// As [`IDLE_TIMEOUT`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What stands in the way of dispatching the connections of `listener` in the kernel, a clause each; nothing when it can.
pub fn obstacles(listener: &Listener) -> Vec<String> {
    let mut obstacles = Vec::new();
    let mut add = |stands: bool, what: &str| {
        if stands {
            obstacles.push(what.to_owned());
        }
    };
    add(
        listener.direction == TrafficDirection::Inbound,
        "`traffic_direction` is inbound: what arrives is not connected here",
    );
    add(
        listener.binding != Binding::Virtual || listener.hand_off == HandOff::ByOriginalDst,
        "it has a socket: the kernel dispatches by original destination, with `bind_to_port: false`",
    );
    add(!listener.listener_filters.is_empty(), "`listener_filters` look at the first bytes");
    match sole_chain(listener) {
        None => obstacles.push(not_sole(listener).to_owned()),
        Some((_, proxy)) => of_proxy(proxy, &mut obstacles),
    }
    obstacles
}

/// The one filter chain that serves all connections of `listener`, with its proxy.
pub fn sole_chain(listener: &Listener) -> Option<(&Arc<FilterChain>, &TcpProxy)> {
    let chain = match (listener.chains.all(), listener.chains.default_chain()) {
        ([], Some(chain)) => chain,
        // One that takes everything leaves nothing to the default chain.
        ([chain], _) if chain.matches == ChainMatch::default() => chain,
        _ => return None,
    };
    match &chain.filter {
        NetworkFilter::Tcp(proxy) => Some((chain, proxy)),
        NetworkFilter::Http(_) => None,
    }
}

fn not_sole(listener: &Listener) -> &'static str {
    let http = |chain: &Arc<FilterChain>| matches!(chain.filter, NetworkFilter::Http(_));
    if listener.chains.all().iter().chain(listener.chains.default_chain()).any(http) {
        return "a filter chain serves requests (`http`): only bytes (`tcp_proxy`) can do without the agent";
    }
    "which filter chain serves a connection depends on the connection: one chain without `match` is needed"
}

fn of_proxy(proxy: &TcpProxy, obstacles: &mut Vec<String>) {
    if proxy.max_connect_attempts > 1 {
        obstacles.push("`max_connect_attempts` is above 1: the kernel tries one endpoint".to_owned());
    }
    if proxy.idle_timeout.is_some_and(|timeout| timeout != IDLE_TIMEOUT) {
        obstacles.push("`idle_timeout` is given: the kernel closes no connection".to_owned());
    }
    if proxy.max_downstream_connection_duration.is_some() {
        obstacles.push("`max_downstream_connection_duration` is given: the kernel closes no connection".to_owned());
    }
    match &proxy.cluster {
        ClusterSpecifier::Cluster(cluster) => of_cluster(cluster, obstacles),
        ClusterSpecifier::Weighted(weighted) => {
            for (cluster, _) in weighted.entries() {
                of_cluster(cluster, obstacles);
            }
            if proxy.hash_policy.is_some() && weighted.entries().iter().any(|(cluster, _)| cluster.lb_policy.hashes()) {
                let why = "the kernel draws once, and here the cluster is drawn before the endpoint";
                obstacles.push(format!("`hash_policy` stands beside `weighted_clusters`: {why}"));
            }
        }
        ClusterSpecifier::Header(_) => {
            obstacles.push("the cluster is named by a header, and bytes have none".to_owned())
        }
    }
}

fn of_cluster(cluster: &Cluster, obstacles: &mut Vec<String>) {
    let name = &cluster.name;
    if cluster.lb_policy == LbPolicy::LeastRequest {
        let why = "the kernel does not compare how busy endpoints are: use another";
        obstacles.push(format!("`lb_policy` of cluster '{name}' is least_request: {why}"));
    }
    if cluster.circuit_breakers.max_connections != CircuitBreakers::default().max_connections {
        let why = "the kernel refuses no connection";
        obstacles.push(format!("`circuit_breakers.max_connections` of cluster '{name}' is given: {why}"));
    }
    if cluster.connect_timeout != CONNECT_TIMEOUT {
        let why = "how long to wait is the application's own choice there";
        obstacles.push(format!("`connect_timeout` of cluster '{name}' is given: {why}"));
    }
}
