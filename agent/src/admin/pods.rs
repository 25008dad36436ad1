//! `/pods`: the pods and containers of this node, and what became of each.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;

use super::query::Query;
use super::reply::{self, Reply};
use crate::telemetry::escape::Shown;
use crate::workload::status::EnrolmentStatus;

/// The page.
pub fn page(enrolments: &[EnrolmentStatus], query: &Query) -> Result<Reply, String> {
    let mut pods: Vec<_> = enrolments.iter().collect();
    let key = |pod: &EnrolmentStatus| (Arc::clone(&pod.workload.namespace), Arc::clone(&pod.workload.name));
    pods.sort_by_cached_key(|pod| key(pod));
    match query.value("format").unwrap_or("text") {
        "text" | "" => Ok(reply::text(StatusCode::OK, pods.into_iter().map(line).collect::<String>())),
        "json" => Ok(reply::json(&json!({"pods": pods}))),
        other => Err(format!("format '{other}' is not known: use text or json")),
    }
}

fn line(pod: &EnrolmentStatus) -> String {
    let reason = pod.reason.as_deref().map(|reason| format!("::{}", Shown(reason))).unwrap_or_default();
    format!("{}::{}{reason}\n", Shown(&pod.workload.to_string()), pod.state.name())
}
