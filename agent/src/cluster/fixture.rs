//! What the tests of this folder build on: addresses, endpoints, clusters, a configuration around them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use super::endpoint::{Endpoint, EndpointSet, WeightedEndpoint};
use super::{CircuitBreakers, Cluster, Discovery, LbPolicy, UpstreamProtocol};
use crate::addr::EndpointAddr;
use crate::listener::chain::FilterChains;
use crate::listener::dispatch::Listeners;
use crate::listener::{Binding, HandOff, Listener, OnFiltersTimeout, ReusePort};
use crate::snapshot::{Admin, Origin, Runtime, Snapshot};
use crate::telemetry::record::{Record, RecordSink};
use crate::worker::Shared;

/// The address of the endpoint number `index`.
pub fn address(index: u16) -> EndpointAddr {
    EndpointAddr::new(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_000 + index))
}

/// Endpoints with these weights, at `address(0)` and so on.
pub fn members(weights: &[u32]) -> Vec<WeightedEndpoint> {
    let member = |(index, weight)| WeightedEndpoint { endpoint: Arc::new(Endpoint::new(address(index), None)), weight };
    (0..).zip(weights.iter().copied()).map(member).collect()
}

/// A static cluster without endpoints.
pub fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        discovery: Discovery::Static,
        lb_policy: LbPolicy::RoundRobin,
        connect_timeout: Duration::from_secs(5),
        protocol: UpstreamProtocol::Http1,
        health_checks: Vec::new(),
        healthy_panic_threshold: 0,
        circuit_breakers: CircuitBreakers::default(),
        idle_timeout: None,
        max_requests_per_connection: None,
        endpoints: ArcSwap::default(),
        stats: Arc::default(),
    }
}

/// A static cluster.
pub fn cluster_of(name: &str, members: Vec<WeightedEndpoint>) -> Cluster {
    Cluster { endpoints: ArcSwap::from_pointee(EndpointSet::new(members, 0)), ..cluster(name) }
}

/// A configuration with these clusters and one listener, bound to 127.0.0.1:15001, for redirected connections.
pub fn snapshot(version: u64, clusters: Vec<Arc<Cluster>>) -> Snapshot {
    let listener = Listener {
        name: "outbound".into(),
        address: "127.0.0.1:15001".parse().expect("address"),
        direction: crate::listener::TrafficDirection::Outbound,
        binding: Binding::Socket { reuse_port: ReusePort::PerWorker, backlog: 128 },
        hand_off: HandOff::ByOriginalDst,
        listener_filters: Vec::new(),
        dispatch: crate::listener::Dispatch::Agent,
        listener_filters_timeout: None,
        on_filters_timeout: OnFiltersTimeout::Continue,
        chains: FilterChains::new(Vec::new(), None).expect("no chains"),
        stats: Arc::default(),
    };
    Snapshot {
        origin: Origin { source: "test".to_owned(), text: "".into(), version, loaded_at: SystemTime::UNIX_EPOCH },
        intercept: None,
        dns: None,
        listeners: Listeners::new(vec![Arc::new(listener)]).expect("one listener"),
        route_configs: BTreeMap::new(),
        clusters: clusters.into_iter().map(|cluster| (cluster.name.clone(), cluster)).collect(),
        admin: Admin { socket: "/nonexistent".into(), prometheus: None, readiness: None },
        access_log: Vec::new(),
        drain_timeout: Duration::from_secs(30),
    }
}

struct NoRecords;

impl RecordSink for NoRecords {
    fn write(&self, _record: Record) {}
}

/// What workers share, with these clusters.
pub fn shared(clusters: Vec<Arc<Cluster>>) -> Arc<Shared> {
    let snapshot = Arc::new(snapshot(1, clusters));
    let drain = crate::drain::channel().1;
    let shared = Shared::new(snapshot, Runtime::default(), Arc::new(NoRecords), drain, 2);
    shared.set_kernel(None);
    Arc::new(shared)
}

/// Waits until `condition` holds; fails after 10 s.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never happened: {what}");
}
