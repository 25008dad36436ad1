//! `/config_dump`: the configuration in force, in the shape of Envoy's (`envoy.admin.v3.ConfigDump`), so that tools made
//! for Envoy's, `istioctl proxy-config --file` among them, read it.
//!
//! Before: the snapshot. After: JSON under the names of Envoy's protobufs, one file for each kind of resource. Where
//! Envoy has no field for something, it is left out, or lies in the node's metadata.

mod clusters;
mod hash;
mod listeners;
pub mod proto;
pub mod routes;

use regex::Regex;
use serde_json::{Value, json};

use super::query::Query;
use super::reply::{self, Reply};
use super::{State, info};
use crate::kernel::{OnAgentLoss, Policy, Rule};
use crate::snapshot::{Intercept, PodPolicy, Pods, Snapshot};
use crate::telemetry::text::timestamp;

/// The page.
pub fn page(state: &State, query: &Query) -> Result<Reply, String> {
    if query.has("mask") {
        return Err("mask is not supported: use resource= or name_regex=".to_owned());
    }
    let filter: Option<Regex> = query.parsed("name_regex")?;
    let named = |name: &str| filter.as_ref().is_none_or(|filter| filter.is_match(name));
    let snapshot = state.shared.snapshot.load();
    let sections = sections(&snapshot, &named, query.has("include_eds"));
    let Some(resource) = query.value("resource") else {
        return Ok(reply::json(&json!({"configs": sections})));
    };
    let entries = sections.iter().find_map(|section| section.get(resource)?.as_array().cloned());
    let configs = entries.ok_or_else(|| format!("there is no resource '{resource}' here"))?;
    Ok(reply::json(&json!({"configs": configs})))
}

/// All sections of the dump.
pub fn sections(snapshot: &Snapshot, named: &dyn Fn(&str) -> bool, include_eds: bool) -> Vec<Value> {
    let updated = timestamp(snapshot.origin.loaded_at);
    let version = snapshot.origin.version.to_string();
    let entries = |key: &str, all: Vec<(&str, Value)>| -> Vec<Value> {
        let all = all.into_iter().filter(|(name, _)| named(name));
        all.map(|(_, entry)| json!({key: entry, "last_updated": updated})).collect()
    };
    let mut sections = vec![
        json!({
            "@type": proto::any("admin.v3.BootstrapConfigDump"),
            "bootstrap": bootstrap(snapshot),
            "last_updated": updated,
        }),
        json!({
            "@type": proto::any("admin.v3.ClustersConfigDump"),
            "version_info": version,
            "static_clusters": entries("cluster", clusters::all(snapshot)),
        }),
    ];
    if include_eds {
        sections.push(json!({
            "@type": proto::any("admin.v3.EndpointsConfigDump"),
            "static_endpoint_configs": entries("endpoint_config", clusters::endpoints(snapshot)),
        }));
    }
    sections.push(json!({
        "@type": proto::any("admin.v3.ListenersConfigDump"),
        "version_info": version,
        "static_listeners": entries("listener", listeners::all(snapshot)),
    }));
    sections.push(json!({
        "@type": proto::any("admin.v3.RoutesConfigDump"),
        "static_route_configs": entries("route_config", routes::all(snapshot)),
    }));
    sections
}

fn bootstrap(snapshot: &Snapshot) -> Value {
    let admin = &snapshot.admin;
    json!({
        "node": {
            "id": format!("waylay~{}", std::process::id()),
            "user_agent_name": "waylay",
            "user_agent_version": env!("CARGO_PKG_VERSION"),
            "metadata": {
                "waylay": {
                    "version": info::version(),
                    "source": snapshot.origin.source,
                    "configuration_version": snapshot.origin.version,
                    "intercept": snapshot.intercept.as_ref().map(intercept),
                    "prometheus": admin.prometheus,
                    "readiness": admin.readiness,
                    "drain_timeout": proto::duration(snapshot.drain_timeout),
                    "access_log": snapshot.access_log.iter().map(|log| log.path.display().to_string())
                        .collect::<Vec<_>>(),
                },
            },
        },
        "admin": {"address": {"pipe": {"path": admin.socket.display().to_string(), "mode": 0o600}}},
    })
}

fn intercept(intercept: &Intercept) -> Value {
    json!({
        "cgroup": intercept.cgroup.display().to_string(),
        "host": intercept.host,
        "processes": intercept.processes.len(),
        "outbound": policy(&intercept.outbound),
        "inbound": intercept.inbound.as_ref().map(|inbound| policy(&inbound.policy)),
        "pods": intercept.pods.as_ref().map(pods),
        "on_agent_loss": match intercept.on_agent_loss {
            OnAgentLoss::Allow => "allow",
            OnAgentLoss::Refuse => "refuse",
        },
        "handover_entries": intercept.handover_entries,
    })
}

fn pods(pods: &Pods) -> Value {
    let row = |row: &PodPolicy| {
        json!({
            "source_pod": row.source_pod.to_string(),
            "outbound": row.outbound.as_ref().map(policy),
            "inbound": row.inbound.as_ref().map(policy),
        })
    };
    json!({
        "runtimes": pods.runtimes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "poll_interval": proto::duration(pods.poll_interval),
        "policies": pods.policies.iter().map(row).collect::<Vec<_>>(),
    })
}

fn policy(policy: &Policy) -> Value {
    let rules = |rules: &[Rule]| rules.iter().map(rule).collect::<Vec<_>>();
    json!({"include": rules(&policy.include), "exclude": rules(&policy.exclude)})
}

fn rule(rule: &Rule) -> Value {
    let ports: Vec<_> = rule.ports.iter().map(|ports| format!("{}-{}", ports.start(), ports.end())).collect();
    json!({"cidr": rule.cidr.map(|cidr| cidr.to_string()), "ports": ports})
}
