//! `/server_info`: what the agent is and how it is doing.

use std::time::Duration;

use serde_json::json;

use super::State;
use super::dump::proto::duration;
use super::reply::{self, Reply};
use crate::telemetry::log;
use crate::telemetry::text::timestamp;

/// The page.
pub fn page(state: &State) -> Reply {
    let snapshot = state.shared.snapshot.load();
    let failure = state.shared.reload_failure.load();
    // Whole seconds, as Envoy has it.
    let uptime = duration(Duration::from_secs(state.started.elapsed().as_secs()));
    reply::json(&json!({
        "version": version(),
        "state": state.state_name(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": {
            "concurrency": state.shared.runtime.stats.server.concurrency.value(),
            "config_path": snapshot.origin.source,
            "log_level": log::level(),
        },
        "pid": std::process::id(),
        "configuration": {
            "version": snapshot.origin.version,
            "loaded_at": timestamp(snapshot.origin.loaded_at),
            "error_state": failure.as_ref().map(|failure| json!({
                "last_update_attempt": timestamp(failure.at),
                "details": failure.message,
            })),
        },
        "intercepting": state.shared.kernel().is_some(),
    }))
}

/// Name and version, as in `waylay --version`.
pub fn version() -> &'static str {
    concat!("waylay/", env!("CARGO_PKG_VERSION"))
}
