//! `/routes`: every row of every route table in the order in which it is tried, with all its conditions and how often
//! it was chosen. Envoy has no such page; `waylay proxy-config route -o wide` reads it.

use std::fmt::Write;

use http::StatusCode;
use serde_json::{Value, json};

use super::query::Query;
use super::reply::{self, Reply};
use crate::http::route::{Action, RouteConfig, VirtualHost};
use crate::snapshot::Snapshot;

use super::dump::routes::route;

/// The page.
pub fn page(snapshot: &Snapshot, query: &Query) -> Result<Reply, String> {
    let configs = snapshot.route_configs.values();
    match query.value("format").unwrap_or("text") {
        "text" | "" => {
            let mut text = String::new();
            for config in configs {
                // Writing to a string cannot fail.
                let _ = write_config(&mut text, config);
            }
            Ok(reply::text(StatusCode::OK, text))
        }
        "json" => Ok(reply::json(&json!({
            "route_configs": configs.map(|config| config_json(config)).collect::<Vec<_>>()
        }))),
        other => Err(format!("format '{other}' is not known: use text or json")),
    }
}

fn write_config(text: &mut String, config: &RouteConfig) -> std::fmt::Result {
    for host in &config.virtual_hosts {
        for row in &host.routes {
            let hits = row.stats.rq_total.value();
            writeln!(text, "{}::{}::{}::rq_total::{hits}", config.name, host.name, row.index)?;
        }
    }
    Ok(())
}

fn config_json(config: &RouteConfig) -> Value {
    json!({
        "name": config.name,
        "virtual_hosts": config.virtual_hosts.iter().map(host_json).collect::<Vec<_>>(),
    })
}

fn host_json(host: &VirtualHost) -> Value {
    let rows: Vec<_> = host
        .routes
        .iter()
        .map(|row| {
            json!({
                "index": row.index,
                "name": row.name,
                "action": match row.action {
                    Action::Route(_) => "route",
                    Action::Redirect(_) => "redirect",
                    Action::DirectResponse(_) => "direct_response",
                },
                "hits": row.stats.rq_total.value(),
                "route": route(row),
            })
        })
        .collect();
    json!({"name": host.name, "domains": host.domains, "routes": rows})
}
