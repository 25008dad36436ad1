//! Records for the tests of the formats and of the sinks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::addr::{ClientAddr, EndpointAddr, OrigDstAddr};
use crate::kernel::Process;
use crate::listener::TrafficDirection;
use crate::workload::Workload;

use super::ResponseFlags;
use super::record::{ConnectionInfo, ConnectionRecord, RequestRecord};

fn start() -> SystemTime {
    // 2026-01-02T03:04:05.678Z
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678)
}

pub fn pod(name: &str) -> Arc<Workload> {
    Arc::new(Workload { namespace: "shop".into(), name: name.into(), ..Workload::default() })
}

pub fn info() -> ConnectionInfo {
    ConnectionInfo {
        connection_id: 7,
        client: ClientAddr::new(([127, 0, 0, 1], 40_000).into()),
        local: ([127, 0, 0, 1], 15_001).into(),
        original_dst: Some(OrigDstAddr::new(([10, 0, 0, 9], 8080).into())),
        direction: TrafficDirection::Outbound,
        pod: None,
        source_pod: None,
        process: Some(Arc::new(Process {
            pid: 123,
            uid: 1000,
            comm: "curl".to_owned(),
            cgroup_id: 42,
            netns_cookie: 1,
        })),
        listener: Some("0.0.0.0_8080".into()),
        filter_chain: Some("default".into()),
        server_name: None,
    }
}

pub fn request() -> RequestRecord {
    RequestRecord {
        info: Arc::new(info()),
        start: start(),
        method: "GET".into(),
        path: "/checkout/cart?x=1".into(),
        protocol: "HTTP/1.1",
        authority: Some("shop.example:8080".into()),
        user_agent: Some("curl/8.0".into()),
        forwarded_for: None,
        request_id: None,
        route_config: Some("8080".into()),
        virtual_host: Some("shop".into()),
        route: Some(1),
        route_name: None,
        cluster: Some("checkout-v1".into()),
        endpoint: Some(EndpointAddr::new(([127, 0, 0, 1], 9001).into())),
        upstream_path: None,
        attempts: 1,
        status: 200,
        flags: ResponseFlags::NONE,
        details: "via_upstream",
        bytes_received: 3,
        bytes_sent: 12,
        upstream_service_time: Some(Duration::from_micros(11_900)),
        duration: Duration::from_millis(15),
    }
}

pub fn connection() -> ConnectionRecord {
    let mut flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
    flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT);
    ConnectionRecord {
        info: info(),
        start: start(),
        dispatch: crate::listener::Dispatch::Agent,
        rtt: None,
        detected: Some("tls"),
        server_first: true,
        cluster: Some("passthrough".into()),
        endpoint: Some(EndpointAddr::new(([10, 0, 0, 9], 8080).into())),
        bytes_received: 10,
        bytes_sent: 0,
        requests: 0,
        flags,
        details: Some("connecting to 10.0.0.9:8080".to_owned()),
        duration: Duration::from_millis(2500),
    }
}
