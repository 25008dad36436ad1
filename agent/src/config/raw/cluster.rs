//! `clusters`: where connections and requests go.

use std::time::Duration;

use super::{FromText, Hex, OrText};
use crate::cluster::{DnsLookupFamily, MAGLEV_SIZE, RING_SIZE_MAX, RING_SIZE_MIN, UpstreamProtocol};
use crate::config::record::{choice, record};
use crate::config::value::Value;

record! {
    /// A named group of endpoints.
    pub struct Cluster("cluster", "config.cluster.v3.Cluster") {
        /// Unique among the clusters.
        name: String, required;
        /// Where its endpoints come from: the list below, names to be resolved, or where the client wanted to go.
        kind as "type": ClusterType, default(ClusterType::Static);
        /// How one endpoint is chosen. `ring_hash` and `maglev` go by the `hash_policy` of the route or TCP proxy, and choose
        /// at random without. `cluster_provided` is for `original_dst`, and the only choice there.
        lb_policy: LbPolicy, optional("`round_robin`; `cluster_provided` for `original_dst`");
        /// `ring_hash` only.
        ring_hash_lb_config: RingHashLbConfig, optional("its defaults");
        /// `maglev` only.
        maglev_lb_config: MaglevLbConfig, optional("its defaults");
        /// How long opening a connection to an endpoint may take.
        connect_timeout: Duration, default(Duration::from_secs(5));
        /// `IP:PORT` each (`HOST:PORT` for `strict_dns`), or a mapping with a weight.
        endpoints: Vec<OrText<Endpoint>>, default(Vec::new()), envoy("load_assignment");
        /// What the endpoints speak, for requests: HTTP/1.1, HTTP/2 by prior knowledge, or what the client spoke.
        protocol: UpstreamProtocol, default(UpstreamProtocol::Http1), envoy("typed_extension_protocol_options");
        /// All must pass for an endpoint to count as healthy; unhealthy ones get no traffic.
        health_checks: Vec<HealthCheck>, default(Vec::new());
        /// Below this percentage of healthy endpoints all are used; 0 never does that.
        healthy_panic_threshold: u8, default(0), envoy("common_lb_config.healthy_panic_threshold");
        /// Limits on what is open or in flight at once.
        circuit_breakers: CircuitBreakers, default(CircuitBreakers::placeholder()), envoy("circuit_breakers.thresholds");
        /// Pooled connections are closed after being idle so long; `0s` never does that.
        idle_timeout: Duration, default(Duration::from_secs(3600)), envoy("common_http_protocol_options.idle_timeout");
        /// A pooled connection is retired after so many requests.
        max_requests_per_connection: u32, optional("no limit"), envoy("common_http_protocol_options.max_requests_per_connection");
        /// `strict_dns` only: time between two resolutions of a name.
        dns_refresh_rate: Duration, optional("5s");
        /// `strict_dns` only: the records' own time to live replaces `dns_refresh_rate`.
        respect_dns_ttl: bool, optional("`false`");
        /// `strict_dns` only: which addresses are asked for.
        dns_lookup_family: DnsLookupFamily, optional("`auto`");
    }

    /// `lb_policy: ring_hash`: each endpoint has places on a ring, by its weight, and a hash leads to the next place. What an
    /// endpoint had goes to the others when it fails, and nothing else moves. A place takes 9 to 12 bytes.
    pub struct RingHashLbConfig("ring hash", "config.cluster.v3.Cluster.RingHashLbConfig") {
        /// Places of all endpoints together, at least: more share hashes more evenly. At most `maximum_ring_size`.
        minimum_ring_size: u32, default(RING_SIZE_MIN);
        /// Places of all endpoints together, at most; up to 8388608.
        maximum_ring_size: u32, default(RING_SIZE_MAX);
    }

    /// `lb_policy: maglev`: endpoints take turns, by their weights, in taking the places of a table. Hashes are shared more
    /// evenly and the table is smaller than a ring, but some of the others' hashes move too when an endpoint fails. A place
    /// takes 1 byte, 2 from 257 endpoints on.
    pub struct MaglevLbConfig("maglev", "config.cluster.v3.Cluster.MaglevLbConfig") {
        /// Its places, a prime number up to 5000011; a hundred for each endpoint or more.
        table_size: u32, default(MAGLEV_SIZE);
    }

    /// An endpoint. Short: its address alone, as text.
    pub struct Endpoint("endpoint", "config.endpoint.v3.LbEndpoint") {
        /// `IP:PORT`, or `HOST:PORT` for `strict_dns`.
        address: String, required;
        /// Its share of the traffic beside the other endpoints', 1 to 128.
        weight: u32, default(1), envoy("load_balancing_weight");
    }

    /// A periodic check of each endpoint; exactly one of `tcp` and `http`.
    pub struct HealthCheck("health check", "config.core.v3.HealthCheck") {
        /// How long one check may take.
        timeout: Duration, default(Duration::from_secs(1));
        /// Time between two checks of one endpoint.
        interval: Duration, default(Duration::from_secs(5));
        /// Up to this much is added to each interval, at random.
        interval_jitter: Duration, default(Duration::ZERO);
        /// Failures in a row that make an endpoint unhealthy, at least 1. An unexpected HTTP status does it at once.
        unhealthy_threshold: u32, default(3);
        /// Successes in a row that make it healthy again, at least 1. The first check of all counts at once.
        healthy_threshold: u32, default(2);
        /// A connection that opens, and perhaps an exchange of bytes.
        tcp: TcpHealthCheck, optional("not checked so"), alias("tcp_health_check");
        /// A GET request.
        http: HttpHealthCheck, optional("not checked so"), alias("http_health_check");
    }

    /// A connection that opens, and perhaps an exchange of bytes.
    pub struct TcpHealthCheck("tcp health check", "config.core.v3.HealthCheck.TcpHealthCheck") {
        /// Sent after connecting.
        send: Hex, optional("nothing is sent");
        /// What must come back, in this order, other bytes between them.
        receive: Vec<Hex>, default(Vec::new());
    }

    /// A GET request.
    pub struct HttpHealthCheck("http health check", "config.core.v3.HealthCheck.HttpHealthCheck") {
        /// Its path, beginning with `/`.
        path: String, required;
        /// Its Host header.
        host: String, optional("the cluster's name");
        /// Statuses that pass.
        expected_statuses: Vec<Int64Range>, default(vec![Int64Range { start: 200, end: 201 }]);
        /// Failing statuses that count towards `unhealthy_threshold` instead of at once.
        retriable_statuses: Vec<Int64Range>, default(Vec::new());
    }

    /// A range of numbers.
    pub struct Int64Range("range", "type.v3.Int64Range") {
        /// The first.
        start: i64, required;
        /// The first that is beyond.
        end: i64, required;
    }

    /// Limits on what is open or in flight at once; beyond them requests get 503 (flag UO) and connections are closed.
    pub struct CircuitBreakers("circuit breakers", "config.cluster.v3.CircuitBreakers.Thresholds") {
        /// Connections open.
        max_connections: u32, default(1024);
        /// Requests waiting for a connection.
        max_pending_requests: u32, default(1024);
        /// Requests in flight.
        max_requests: u32, default(1024);
        /// Retries in flight.
        max_retries: u32, default(3);
    }
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterType {
    /// The configuration.
    Static,
    /// DNS.
    StrictDns,
    /// The client.
    OriginalDst,
}

/// As the model's policy, with the one that Envoy wants to see in `original_dst` clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbPolicy {
    /// In turn.
    RoundRobin,
    /// The less busy of two.
    LeastRequest,
    /// At random.
    Random,
    /// By hash, on a ring.
    RingHash,
    /// By hash, in a table.
    Maglev,
    /// The cluster knows.
    ClusterProvided,
}

choice!(ClusterType { Static = "static", StrictDns = "strict_dns", OriginalDst = "original_dst" });
choice!(LbPolicy {
    RoundRobin = "round_robin",
    LeastRequest = "least_request",
    Random = "random",
    RingHash = "ring_hash",
    Maglev = "maglev",
    ClusterProvided = "cluster_provided",
});
choice!(UpstreamProtocol { Http1 = "http1", Http2 = "http2", Downstream = "downstream" });
choice!(DnsLookupFamily { Auto = "auto", V4Only = "v4_only", V6Only = "v6_only", All = "all" });

impl FromText for Endpoint {
    fn from_text(text: &str) -> Self {
        Self { address: text.to_owned(), ..Self::placeholder() }
    }
}
