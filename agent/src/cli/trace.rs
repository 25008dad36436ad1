//! `waylay trace`: what happens, as it happens.

use serde_json::Value;

use super::client::{AdminClient, Socket, encode};
use super::output::{self, Format};
use crate::telemetry::escape::Shown;
use crate::telemetry::trace::Destination;

/// Watch interception decisions, requests and connections as they happen
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  waylay trace --comm curl
  waylay trace --dst 10.0.0.0/8
  waylay trace --pod shop/web-1
  waylay trace --dst :443 -o json | jq .verdict

The kernel records decisions only while somebody watches. A watcher that is too slow loses
events and is told how many.")]
pub struct Args {
    /// Only of this process
    #[arg(long)]
    pid: Option<u32>,

    /// Only of processes with this name (at most 15 characters, as in /proc/PID/comm)
    #[arg(long, value_name = "NAME")]
    comm: Option<String>,

    /// Only to this destination: ADDRESS, CIDR, ADDRESS:PORT or :PORT
    #[arg(long, value_parser = destination)]
    dst: Option<String>,

    /// Only of this pod, or from it
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Option<String>,

    /// A line for people, or one JSON object a line
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    #[command(flatten)]
    socket: Socket,
}

fn destination(text: &str) -> Result<String, String> {
    text.parse::<Destination>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl Args {
    /// Prints until it is interrupted, or the agent ends.
    ///
    /// # Errors
    /// No agent answers.
    pub fn run(&self) -> anyhow::Result<()> {
        AdminClient::new(&self.socket)?.lines(&self.path(), |line| match self.output {
            Format::Json => output::print(&format!("{line}\n")),
            Format::Table => output::print(&format!("{}\n", human(&serde_json::from_str(line)?))),
        })
    }

    fn path(&self) -> String {
        let pid = self.pid.map(|pid| format!("pid={pid}"));
        let comm = self.comm.as_deref().map(|comm| format!("comm={}", encode(comm)));
        let dst = self.dst.as_deref().map(|dst| format!("dst={}", encode(dst)));
        let pod = self.pod.as_deref().map(|pod| format!("pod={}", encode(pod)));
        let parameters: Vec<_> = [pid, comm, dst, pod].into_iter().flatten().collect();
        format!("/trace?{}", parameters.join("&"))
    }
}

/// One line for people: time, process, what.
fn human(event: &Value) -> String {
    let text = |key: &str| match &event[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => Shown(text).to_string(),
        other => other.to_string(),
    };
    let process = match event["pid"].as_u64() {
        Some(pid) => format!("{}[{pid}]", text("comm")),
        None => text("downstream_remote_address"),
    };
    let named = |key: &str| event[key].as_str().map(|pod| format!("{} ", Shown(pod))).unwrap_or_default();
    let process = match event["direction"].as_str() {
        Some("inbound") => format!("{}{process} inbound {}", named("source_pod"), named("pod")).trim_end().to_owned(),
        _ => format!("{}{process}", named("pod")),
    };
    let to = || match &event["upstream_cluster"] {
        Value::Null => text("original_dst"),
        _ => format!("{} -> {} ({})", text("original_dst"), text("upstream_cluster"), text("upstream_host")),
    };
    match event["kind"].as_str() {
        Some("decision") if event["direction"] == "inbound" => {
            format!(
                "{} {}{} arrives at {}{} {}: {}",
                text("time"),
                named("source_pod"),
                text("source"),
                named("pod"),
                text("destination"),
                text("verdict"),
                text("reason")
            )
        }
        Some("decision") => {
            format!(
                "{} {process} connect {} {}: {}",
                text("time"),
                text("destination"),
                text("verdict"),
                text("reason")
            )
        }
        Some("request") => format!(
            "{} {process} {} {} {} {} {} row {} {} {}ms",
            text("start_time"),
            text("method"),
            text("path"),
            text("response_code"),
            text("response_flags"),
            to(),
            text("route"),
            text("response_code_details"),
            text("duration"),
        ),
        Some("connection") => format!(
            "{} {process} closed {} {} {}+{} bytes {}ms",
            text("start_time"),
            text("response_flags"),
            to(),
            text("bytes_received"),
            text("bytes_sent"),
            text("duration"),
        ),
        Some("lost") => format!("({} events lost: this watcher is too slow)", text("events")),
        _ => event.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_event_is_a_line() {
        for (event, expected) in [
            (
                json!({"kind": "decision", "time": "T", "pid": 1, "comm": "curl", "destination": "10.0.0.1:80",
                       "verdict": "passed", "reason": "passed_excluded"}),
                "T curl[1] connect 10.0.0.1:80 passed: passed_excluded",
            ),
            (
                json!({"kind": "decision", "time": "T", "direction": "inbound", "source": "10.0.0.9:5", "pid": null,
                       "destination": "10.0.0.1:80", "verdict": "redirected", "reason": "inbound_redirected_v4"}),
                "T 10.0.0.9:5 arrives at 10.0.0.1:80 redirected: inbound_redirected_v4",
            ),
            (
                json!({"kind": "decision", "time": "T", "direction": "inbound", "source": "10.42.0.5:4", "pid": null,
                       "pod": "shop/api-1", "source_pod": "shop/web-1", "destination": "10.42.0.9:80",
                       "verdict": "redirected", "reason": "inbound_redirected_v4"}),
                "T shop/web-1 10.42.0.5:4 arrives at shop/api-1 10.42.0.9:80 redirected: inbound_redirected_v4",
            ),
            (
                json!({"kind": "request", "start_time": "T", "pid": 1, "comm": "a\nb", "method": "GET", "path": "/",
                       "response_code": 200, "response_flags": "-", "original_dst": "10.0.0.1:80", "route": 2,
                       "upstream_cluster": "c", "upstream_host": "127.0.0.1:9", "response_code_details": "via_upstream",
                       "duration": 3}),
                "T a\\u000ab[1] GET / 200 - 10.0.0.1:80 -> c (127.0.0.1:9) row 2 via_upstream 3ms",
            ),
            (
                json!({"kind": "connection", "start_time": "T", "downstream_remote_address": "127.0.0.1:4",
                       "response_flags": "UF", "bytes_received": 1, "bytes_sent": 2, "duration": 3}),
                "T 127.0.0.1:4 closed UF - 1+2 bytes 3ms",
            ),
            (
                json!({"kind": "decision", "time": "T", "pid": 1, "comm": "curl", "pod": "shop/web-1",
                       "destination": "10.0.0.1:80", "verdict": "redirected", "reason": "redirected_v4"}),
                "T shop/web-1 curl[1] connect 10.0.0.1:80 redirected: redirected_v4",
            ),
            (
                json!({"kind": "connection", "start_time": "T", "downstream_remote_address": "10.42.0.5:4",
                       "direction": "inbound", "pod": "shop/api-1", "source_pod": "shop/web-1",
                       "response_flags": "-", "bytes_received": 1, "bytes_sent": 2, "duration": 3}),
                "T shop/web-1 10.42.0.5:4 inbound shop/api-1 closed - - 1+2 bytes 3ms",
            ),
            (json!({"kind": "lost", "events": 7}), "(7 events lost: this watcher is too slow)"),
        ] {
            assert_eq!(human(&event), expected);
        }
    }
}
