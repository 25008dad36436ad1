//! `/listeners`: names and addresses, as Envoy lists them.

use http::StatusCode;
use serde_json::json;

use super::dump::proto::socket_address;
use super::query::Query;
use super::reply::{self, Reply};
use crate::snapshot::Snapshot;

/// The page.
pub fn page(snapshot: &Snapshot, query: &Query) -> Result<Reply, String> {
    let listeners = snapshot.listeners.iter();
    match query.value("format").unwrap_or("text") {
        "text" | "" => {
            let lines = listeners.map(|listener| format!("{}::{}\n", listener.name, listener.address));
            Ok(reply::text(StatusCode::OK, lines.collect::<String>()))
        }
        "json" => {
            let statuses: Vec<_> = listeners
                .map(|listener| json!({"name": listener.name, "local_address": socket_address(listener.address)}))
                .collect();
            Ok(reply::json(&json!({"listener_statuses": statuses})))
        }
        other => Err(format!("format '{other}' is not known: use text or json")),
    }
}
