//! `/clusters`: every endpoint of every cluster and how it is doing, as Envoy lists them (`cluster::endpoint::key::value`
//! lines, or `envoy.admin.v3.Clusters`).

use std::fmt::Write;

use http::StatusCode;
use serde_json::{Value, json};

use super::dump::proto::socket_address;
use super::query::Query;
use super::reply::{self, Reply};
use crate::cluster::Cluster;
use crate::cluster::endpoint::{Health, WeightedEndpoint};
use crate::snapshot::Snapshot;

/// The page.
pub fn page(snapshot: &Snapshot, query: &Query) -> Result<Reply, String> {
    let clusters = snapshot.clusters.values();
    match query.value("format").unwrap_or("text") {
        "text" | "" => {
            let mut text = String::new();
            for cluster in clusters {
                // Writing to a string cannot fail.
                let _ = write_cluster(&mut text, cluster);
            }
            Ok(reply::text(StatusCode::OK, text))
        }
        "json" => {
            let statuses: Vec<_> = clusters.map(|cluster| cluster_status(cluster)).collect();
            Ok(reply::json(&json!({"cluster_statuses": statuses})))
        }
        other => Err(format!("format '{other}' is not known: use text or json")),
    }
}

fn write_cluster(text: &mut String, cluster: &Cluster) -> std::fmt::Result {
    let name = &cluster.name;
    writeln!(text, "{name}::observability_name::{name}")?;
    let limits = cluster.circuit_breakers;
    for (key, value) in [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending_requests),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ] {
        writeln!(text, "{name}::default_priority::{key}::{value}")?;
    }
    writeln!(text, "{name}::added_via_api::false")?;
    for member in cluster.endpoints.load().all() {
        write_endpoint(text, name, member)?;
    }
    Ok(())
}

fn write_endpoint(text: &mut String, cluster: &str, member: &WeightedEndpoint) -> std::fmt::Result {
    let endpoint = &member.endpoint;
    let address = endpoint.address;
    for (key, _, value) in counts(member) {
        writeln!(text, "{cluster}::{address}::{key}::{value}")?;
    }
    let hostname = endpoint.hostname.as_deref().unwrap_or_default();
    writeln!(text, "{cluster}::{address}::hostname::{hostname}")?;
    let flags = match endpoint.health() {
        Health::Unhealthy => "/failed_active_hc",
        Health::Healthy | Health::Unknown => "healthy",
    };
    writeln!(text, "{cluster}::{address}::health_flags::{flags}")?;
    writeln!(text, "{cluster}::{address}::weight::{}", member.weight)?;
    writeln!(text, "{cluster}::{address}::priority::0")
}

/// Envoy's names of an endpoint's statistics, with their kinds.
fn counts(member: &WeightedEndpoint) -> [(&'static str, &'static str, String); 8] {
    let stats = &member.endpoint.stats;
    [
        ("cx_active", "GAUGE", stats.cx_active.value().to_string()),
        ("cx_connect_fail", "COUNTER", stats.cx_connect_fail.value().to_string()),
        ("cx_total", "COUNTER", stats.cx_total.value().to_string()),
        ("rq_active", "GAUGE", stats.rq_active.value().to_string()),
        ("rq_error", "COUNTER", stats.rq_error.value().to_string()),
        ("rq_success", "COUNTER", stats.rq_success.value().to_string()),
        ("rq_timeout", "COUNTER", stats.rq_timeout.value().to_string()),
        ("rq_total", "COUNTER", stats.rq_total.value().to_string()),
    ]
}

fn cluster_status(cluster: &Cluster) -> Value {
    let limits = cluster.circuit_breakers;
    json!({
        "name": cluster.name,
        "observability_name": cluster.name,
        "added_via_api": false,
        "circuit_breakers": {"thresholds": [{
            "max_connections": limits.max_connections,
            "max_pending_requests": limits.max_pending_requests,
            "max_requests": limits.max_requests,
            "max_retries": limits.max_retries,
        }]},
        "host_statuses": cluster.endpoints.load().all().iter().map(host_status).collect::<Vec<_>>(),
    })
}

fn host_status(member: &WeightedEndpoint) -> Value {
    let endpoint = &member.endpoint;
    let stats: Vec<_> = counts(member)
        .into_iter()
        .map(|(name, kind, value)| json!({"name": name, "type": kind, "value": value}))
        .collect();
    let mut status = json!({
        "address": socket_address(endpoint.address.socket()),
        "stats": stats,
        "health_status": health_status(endpoint.health()),
        "weight": member.weight,
    });
    if let Some(hostname) = &endpoint.hostname {
        status["hostname"] = json!(hostname);
    }
    status
}

/// An endpoint that failed its checks is called unhealthy in the field that `istioctl` prints, too.
fn health_status(health: Health) -> Value {
    match health {
        Health::Unhealthy => json!({"failed_active_health_check": true, "eds_health_status": "UNHEALTHY"}),
        Health::Healthy | Health::Unknown => json!({"eds_health_status": "HEALTHY"}),
    }
}
