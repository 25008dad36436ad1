//! The JSON form of an access record: one object a line, named after Envoy's command operators in snake case.
//!
//! Before: a finished record. After: a line in a sink, or an event of the live trace. Durations are whole
//! milliseconds, sizes bytes; what does not apply is null.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::addr::{ClientAddr, EndpointAddr, OrigDstAddr};

use super::ResponseFlags;
use super::escape::harden_json;
use super::record::{ConnectionInfo, ConnectionRecord, Record, RequestRecord};
use super::text::timestamp;

/// Appends the object of `record`, with a line feed, to `line`.
pub fn write_line(line: &mut String, record: &Record) {
    line.push_str(&object(record));
    line.push('\n');
}

/// The object of `record`, on one line.
pub fn object(record: &Record) -> String {
    let json = match record {
        Record::Connection(connection) => serde_json::to_string(&ConnectionView::of(connection)),
        Record::Request(request) => serde_json::to_string(&RequestView::of(request)),
    };
    // The views hold strings and numbers only, which always serialise.
    harden_json(json.unwrap_or_default())
}

#[derive(Serialize)]
struct InfoView<'a> {
    connection_id: u64,
    pid: Option<u32>,
    uid: Option<u32>,
    comm: Option<&'a str>,
    cgroup_id: Option<u64>,
    netns_cookie: Option<u64>,
    direction: &'static str,
    pod: Option<String>,
    source_pod: Option<String>,
    downstream_remote_address: ClientAddr,
    downstream_local_address: SocketAddr,
    original_dst: Option<OrigDstAddr>,
    listener: Option<&'a str>,
    filter_chain: Option<&'a str>,
    requested_server_name: Option<&'a str>,
}

impl<'a> InfoView<'a> {
    fn of(info: &'a ConnectionInfo) -> Self {
        let process = info.process.as_deref();
        Self {
            connection_id: info.connection_id,
            pid: process.map(|process| process.pid),
            uid: process.map(|process| process.uid),
            comm: process.map(|process| process.comm.as_str()),
            cgroup_id: process.map(|process| process.cgroup_id),
            netns_cookie: process.map(|process| process.netns_cookie),
            direction: info.direction.name(),
            pod: info.pod.as_ref().map(ToString::to_string),
            source_pod: info.source_pod.as_ref().map(ToString::to_string),
            downstream_remote_address: info.client,
            downstream_local_address: info.local,
            original_dst: info.original_dst,
            listener: info.listener.as_deref(),
            filter_chain: info.filter_chain.as_deref(),
            requested_server_name: info.server_name.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct ConnectionView<'a> {
    kind: &'static str,
    start_time: String,
    duration: u64,
    bytes_received: u64,
    bytes_sent: u64,
    response_flags: ResponseFlags,
    connection_termination_details: Option<&'a str>,
    upstream_cluster: Option<&'a str>,
    upstream_host: Option<EndpointAddr>,
    detected: Option<&'static str>,
    server_first: bool,
    requests: u64,
    dispatch: &'static str,
    upstream_rtt_us: Option<u64>,
    #[serde(flatten)]
    info: InfoView<'a>,
}

impl<'a> ConnectionView<'a> {
    fn of(record: &'a ConnectionRecord) -> Self {
        Self {
            kind: "connection",
            start_time: timestamp(record.start),
            duration: milliseconds(record.duration),
            bytes_received: record.bytes_received,
            bytes_sent: record.bytes_sent,
            response_flags: record.flags,
            connection_termination_details: record.details.as_deref(),
            upstream_cluster: record.cluster.as_deref(),
            upstream_host: record.endpoint,
            detected: record.detected,
            server_first: record.server_first,
            requests: record.requests,
            dispatch: record.dispatch.name(),
            upstream_rtt_us: record.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            info: InfoView::of(&record.info),
        }
    }
}

#[derive(Serialize)]
struct RequestView<'a> {
    kind: &'static str,
    start_time: String,
    method: Option<&'a str>,
    path: Option<&'a str>,
    protocol: Option<&'static str>,
    response_code: u16,
    response_flags: ResponseFlags,
    response_code_details: Option<&'static str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u64,
    upstream_service_time: Option<u64>,
    x_forwarded_for: Option<&'a str>,
    user_agent: Option<&'a str>,
    request_id: Option<&'a str>,
    authority: Option<&'a str>,
    route_config: Option<&'a str>,
    virtual_host: Option<&'a str>,
    route: Option<usize>,
    route_name: Option<&'a str>,
    upstream_cluster: Option<&'a str>,
    upstream_host: Option<EndpointAddr>,
    upstream_path: Option<&'a str>,
    upstream_request_attempt_count: u32,
    #[serde(flatten)]
    info: InfoView<'a>,
}

impl<'a> RequestView<'a> {
    fn of(record: &'a RequestRecord) -> Self {
        Self {
            kind: "request",
            start_time: timestamp(record.start),
            method: filled(&record.method),
            path: filled(&record.path),
            protocol: filled(record.protocol),
            response_code: record.status,
            response_flags: record.flags,
            response_code_details: filled(record.details),
            bytes_received: record.bytes_received,
            bytes_sent: record.bytes_sent,
            duration: milliseconds(record.duration),
            upstream_service_time: record.upstream_service_time.map(milliseconds),
            x_forwarded_for: record.forwarded_for.as_deref(),
            user_agent: record.user_agent.as_deref(),
            request_id: record.request_id.as_deref(),
            authority: record.authority.as_deref(),
            route_config: record.route_config.as_deref(),
            virtual_host: record.virtual_host.as_deref(),
            route: record.route,
            route_name: record.route_name.as_deref(),
            upstream_cluster: record.cluster.as_deref(),
            upstream_host: record.endpoint,
            upstream_path: record.upstream_path.as_deref(),
            upstream_request_attempt_count: record.attempts,
            info: InfoView::of(&record.info),
        }
    }
}

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::listener::TrafficDirection;

    fn value(record: Record) -> serde_json::Value {
        serde_json::from_str(&object(&record)).expect("an object")
    }

    #[test]
    fn a_request_has_everything_under_envoys_names() {
        let request = value(Record::Request(Box::new(samples::request())));
        let expected = serde_json::json!({
            "kind": "request", "start_time": "2026-01-02T03:04:05.678Z", "method": "GET",
            "path": "/checkout/cart?x=1", "protocol": "HTTP/1.1", "response_code": 200, "response_flags": "-",
            "response_code_details": "via_upstream", "bytes_received": 3, "bytes_sent": 12, "duration": 15,
            "upstream_service_time": 11, "x_forwarded_for": null, "user_agent": "curl/8.0", "request_id": null,
            "authority": "shop.example:8080", "route_config": "8080", "virtual_host": "shop", "route": 1,
            "route_name": null, "upstream_cluster": "checkout-v1", "upstream_host": "127.0.0.1:9001",
            "upstream_path": null, "upstream_request_attempt_count": 1, "connection_id": 7, "pid": 123,
            "uid": 1000, "comm": "curl", "cgroup_id": 42, "netns_cookie": 1,
            "direction": "outbound", "pod": null, "source_pod": null,
            "downstream_remote_address": "127.0.0.1:40000", "downstream_local_address": "127.0.0.1:15001",
            "original_dst": "10.0.0.9:8080", "listener": "0.0.0.0_8080", "filter_chain": "default",
            "requested_server_name": null,
        });
        assert_eq!(request, expected);
    }

    #[test]
    fn a_connection_says_that_it_is_one() {
        let mut record = samples::connection();
        record.info.process = None;
        record.info.direction = TrafficDirection::Inbound;
        record.info.pod = Some(samples::pod("api-1"));
        record.info.source_pod = Some(samples::pod("web-1"));
        let connection = value(Record::Connection(Box::new(record)));
        assert_eq!(connection["kind"], "connection");
        assert_eq!(connection["response_flags"], "UF,URX");
        assert_eq!(connection["upstream_host"], "10.0.0.9:8080");
        assert_eq!(connection["duration"], 2500);
        assert!(connection["pid"].is_null());
        assert_eq!((&connection["direction"], &connection["pod"]), (&"inbound".into(), &"shop/api-1".into()));
        assert_eq!(connection["source_pod"], "shop/web-1");
    }

    #[test]
    fn what_a_client_sends_stays_on_its_line() {
        let mut request = samples::request();
        request.user_agent = Some("a\n{\"kind\":\"request\"}\u{2028}\u{85}".into());
        let line = object(&Record::Request(Box::new(request)));
        assert!(!line.contains(super::super::escape::is_hidden), "{line}");
    }
}
