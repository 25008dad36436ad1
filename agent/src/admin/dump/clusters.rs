//! Clusters as `envoy.config.cluster.v3.Cluster`, and their endpoints as `ClusterLoadAssignment`.

use serde_json::{Value, json};

use super::proto::{Object, any, duration, socket_address};
use crate::cluster::endpoint::Health;
use crate::cluster::{
    Cluster, ConsistentHash, Discovery, DnsLookupFamily, DnsName, HealthCheck, HealthCheckKind, LbPolicy,
    UpstreamProtocol,
};
use crate::snapshot::Snapshot;

/// All clusters, by name.
pub fn all(snapshot: &Snapshot) -> Vec<(&str, Value)> {
    snapshot.clusters.values().map(|one| (&*one.name, cluster(one))).collect()
}

/// The endpoints that all clusters have now, by cluster.
pub fn endpoints(snapshot: &Snapshot) -> Vec<(&str, Value)> {
    let clusters = snapshot.clusters.values();
    clusters
        .map(|cluster| {
            let mut assignment = load_assignment(cluster);
            assignment["@type"] = json!(any("config.endpoint.v3.ClusterLoadAssignment"));
            (&*cluster.name, assignment)
        })
        .collect()
}

fn cluster(cluster: &Cluster) -> Value {
    let limits = cluster.circuit_breakers;
    let object = Object::new()
        .with("@type", any("config.cluster.v3.Cluster"))
        .with("name", &*cluster.name)
        .with("type", discovery_type(&cluster.discovery))
        .with("connect_timeout", duration(cluster.connect_timeout))
        .with(
            "lb_policy",
            match (&cluster.discovery, cluster.lb_policy) {
                (Discovery::OriginalDst, _) => "CLUSTER_PROVIDED",
                (_, LbPolicy::RoundRobin) => "ROUND_ROBIN",
                (_, LbPolicy::LeastRequest) => "LEAST_REQUEST",
                (_, LbPolicy::Random) => "RANDOM",
                (_, LbPolicy::Consistent(ConsistentHash::Ring { .. })) => "RING_HASH",
                (_, LbPolicy::Consistent(ConsistentHash::Maglev { .. })) => "MAGLEV",
            },
        )
        .with(
            "circuit_breakers",
            json!({"thresholds": [{
                "max_connections": limits.max_connections,
                "max_pending_requests": limits.max_pending_requests,
                "max_requests": limits.max_requests,
                "max_retries": limits.max_retries,
            }]}),
        )
        .with("common_lb_config", json!({"healthy_panic_threshold": {"value": cluster.healthy_panic_threshold}}))
        .list("health_checks", cluster.health_checks.iter().map(health_check).collect())
        .with(
            "typed_extension_protocol_options",
            json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http_protocol_options(cluster)}),
        );
    with_discovery(with_lb_config(object, cluster.lb_policy), cluster).done()
}

/// The policy's own settings. 64-bit numbers are strings in protobuf's JSON.
fn with_lb_config(object: Object, policy: LbPolicy) -> Object {
    match policy {
        LbPolicy::Consistent(ConsistentHash::Ring { minimum, maximum }) => object.with(
            "ring_hash_lb_config",
            json!({"minimum_ring_size": minimum.to_string(), "maximum_ring_size": maximum.to_string()}),
        ),
        LbPolicy::Consistent(ConsistentHash::Maglev { table_size }) => {
            object.with("maglev_lb_config", json!({"table_size": table_size.to_string()}))
        }
        LbPolicy::RoundRobin | LbPolicy::LeastRequest | LbPolicy::Random => object,
    }
}

fn discovery_type(discovery: &Discovery) -> &'static str {
    match discovery {
        Discovery::Static => "STATIC",
        Discovery::OriginalDst => "ORIGINAL_DST",
        Discovery::StrictDns { .. } => "STRICT_DNS",
    }
}

fn with_discovery(object: Object, cluster: &Cluster) -> Object {
    match &cluster.discovery {
        Discovery::OriginalDst => object,
        Discovery::Static => object.with("load_assignment", load_assignment(cluster)),
        Discovery::StrictDns { names, refresh_rate, respect_dns_ttl, lookup_family } => object
            .with("load_assignment", names_assignment(&cluster.name, names))
            .with("dns_refresh_rate", duration(*refresh_rate))
            .flag("respect_dns_ttl", *respect_dns_ttl)
            .with(
                "dns_lookup_family",
                match lookup_family {
                    DnsLookupFamily::Auto => "AUTO",
                    DnsLookupFamily::V4Only => "V4_ONLY",
                    DnsLookupFamily::V6Only => "V6_ONLY",
                    DnsLookupFamily::All => "ALL",
                },
            ),
    }
}

fn load_assignment(cluster: &Cluster) -> Value {
    let endpoints: Vec<_> = cluster
        .endpoints
        .load()
        .all()
        .iter()
        .map(|member| {
            json!({
                "endpoint": {"address": socket_address(member.endpoint.address.socket())},
                "health_status": match member.endpoint.health() {
                    Health::Unhealthy => "UNHEALTHY",
                    Health::Healthy | Health::Unknown => "HEALTHY",
                },
                "load_balancing_weight": member.weight,
            })
        })
        .collect();
    json!({"cluster_name": cluster.name, "endpoints": [{"lb_endpoints": endpoints}]})
}

fn names_assignment(cluster: &str, names: &[DnsName]) -> Value {
    let endpoints: Vec<_> = names
        .iter()
        .map(|name| {
            let address = json!({"socket_address": {"address": name.host, "port_value": name.port}});
            json!({"endpoint": {"address": address}, "load_balancing_weight": name.weight})
        })
        .collect();
    json!({"cluster_name": cluster, "endpoints": [{"lb_endpoints": endpoints}]})
}

fn http_protocol_options(cluster: &Cluster) -> Value {
    let common = Object::new()
        .maybe("idle_timeout", cluster.idle_timeout.map(duration))
        .maybe("max_requests_per_connection", cluster.max_requests_per_connection)
        .done();
    let object = Object::new()
        .with("@type", any("extensions.upstreams.http.v3.HttpProtocolOptions"))
        .with("common_http_protocol_options", common);
    match cluster.protocol {
        UpstreamProtocol::Http1 => object.with("explicit_http_config", json!({"http_protocol_options": {}})),
        UpstreamProtocol::Http2 => object.with("explicit_http_config", json!({"http2_protocol_options": {}})),
        UpstreamProtocol::Downstream => object
            .with("use_downstream_protocol_config", json!({"http_protocol_options": {}, "http2_protocol_options": {}})),
    }
    .done()
}

fn health_check(check: &HealthCheck) -> Value {
    let object = Object::new()
        .with("timeout", duration(check.timeout))
        .with("interval", duration(check.interval))
        .with("interval_jitter", duration(check.interval_jitter))
        .with("unhealthy_threshold", check.unhealthy_threshold)
        .with("healthy_threshold", check.healthy_threshold);
    match &check.kind {
        HealthCheckKind::Tcp { send, receive } => {
            let send = send.as_ref().map(|bytes| json!({"text": hex(bytes)}));
            let receive: Vec<_> = receive.iter().map(|bytes| json!({"text": hex(bytes)})).collect();
            object.with("tcp_health_check", Object::new().maybe("send", send).list("receive", receive).done())
        }
        HealthCheckKind::Http { path, host, expected_statuses, retriable_statuses } => object.with(
            "http_health_check",
            Object::new()
                .with("path", path.as_str())
                .maybe("host", host.as_deref())
                .list("expected_statuses", ranges(expected_statuses))
                .list("retriable_statuses", ranges(retriable_statuses))
                .done(),
        ),
    }
    .done()
}

/// `Int64Range`s, whose numbers are strings in protobuf's JSON.
fn ranges(ranges: &[(u16, u16)]) -> Vec<Value> {
    ranges.iter().map(|(start, end)| json!({"start": start.to_string(), "end": end.to_string()})).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
