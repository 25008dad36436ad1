//! Clusters: named groups of endpoints, and the choice of one.
//!
//! Before: a TCP proxy or a route that names a cluster. After: a connection to the endpoint.
//!
//! On a worker, [`select`] chooses an endpoint (by [`balance`]) and [`connect`] opens a connection to it, within the
//! limits of [`breaker`]. On the main thread, [`manager`] finds the endpoints and checks their health.

pub mod balance;
pub mod breaker;
pub mod connect;
mod discover;
pub mod endpoint;
#[cfg(test)]
pub(crate) mod fixture;
mod health;
pub mod manager;
mod membership;
pub mod on_demand;
mod own;
pub mod select;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderName;

use crate::telemetry::stats::ClusterStats;

use endpoint::EndpointSet;

/// One cluster, validated.
#[derive(Debug)]
pub struct Cluster {
    /// Unique among the clusters.
    pub name: Arc<str>,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How one of them is chosen.
    pub lb_policy: LbPolicy,
    /// Default 5 s.
    pub connect_timeout: Duration,
    /// What the endpoints speak; meaningless for TCP.
    pub protocol: UpstreamProtocol,
    /// Active health checks.
    pub health_checks: Vec<HealthCheck>,
    /// Below this percentage of healthy endpoints all of them are used; 0 (the default) never does that.
    pub healthy_panic_threshold: u8,
    /// Limits on what is open or in flight at once.
    pub circuit_breakers: CircuitBreakers,
    /// Idle pooled connections are closed after it. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// A pooled connection is retired after so many requests.
    pub max_requests_per_connection: Option<u32>,
    /// The endpoints now. Replaced as a whole when discovery or health changes it; the agent's main thread is the only
    /// writer.
    pub endpoints: ArcSwap<EndpointSet>,
    /// Kept across reloads by name.
    pub stats: Arc<ClusterStats>,
}

/// Envoy's cluster `type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// The endpoints of the configuration, IP addresses all.
    Static,
    /// Where the client wanted to go.
    OriginalDst,
    /// Every address of every name is an endpoint.
    StrictDns {
        /// The names, each with its port and weight.
        names: Vec<DnsName>,
        /// Default 5 s.
        refresh_rate: Duration,
        /// The records' own time to live replaces `refresh_rate`.
        respect_dns_ttl: bool,
        /// Which families are asked for.
        lookup_family: DnsLookupFamily,
    },
}

/// One name of a `strict_dns` cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsName {
    /// Host name or IP address.
    pub host: String,
    /// Of all its addresses.
    pub port: u16,
    /// Of each of its addresses, 1 to 128.
    pub weight: u32,
}

/// Envoy's `dns_lookup_family`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsLookupFamily {
    /// IPv6 addresses; IPv4 when there are none.
    #[default]
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// Both.
    All,
}

/// Envoy's `lb_policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LbPolicy {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The one with fewest requests of two drawn at random; by weight when weights differ.
    LeastRequest,
    /// At random, by weight.
    Random,
    /// By the hash of a connection or request, so that equal ones stay together; at random, by weight, where there is none.
    Consistent(ConsistentHash),
}

/// How a hash leads to an endpoint, so that few hashes move when an endpoint comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsistentHash {
    /// Envoy's `RING_HASH` (ketama): the next endpoint on a ring.
    Ring {
        /// Places on the ring, at least; 1 to `maximum`.
        minimum: u32,
        /// Places on the ring, at most, unless there are more endpoints; up to [`RING_SIZE_MAX`].
        maximum: u32,
    },
    /// Envoy's `MAGLEV`: a table of turns.
    Maglev {
        /// Its places: a prime number up to [`MAGLEV_SIZE_MAX`].
        table_size: u32,
    },
}

/// Envoy's upper bound of both ring sizes, and the default of the larger one: 8 Mi.
pub const RING_SIZE_MAX: u32 = 8 * 1024 * 1024;
/// Envoy's default of the smaller one.
pub const RING_SIZE_MIN: u32 = 1024;
/// Envoy's upper bound of the table's size.
pub const MAGLEV_SIZE_MAX: u32 = 5_000_011;
/// Envoy's default of the table's size.
pub const MAGLEV_SIZE: u32 = 65_537;

impl LbPolicy {
    /// The name by which the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastRequest => "least_request",
            Self::Random => "random",
            Self::Consistent(ConsistentHash::Ring { .. }) => "ring_hash",
            Self::Consistent(ConsistentHash::Maglev { .. }) => "maglev",
        }
    }

    /// Whether a hash makes a difference.
    pub fn hashes(self) -> bool {
        matches!(self, Self::Consistent(_))
    }
}

/// What an HTTP cluster's endpoints speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// What the client spoke (`use_downstream_protocol`).
    Downstream,
}

/// Envoy's `HealthCheck`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Of one check.
    pub timeout: Duration,
    /// Between two checks of one endpoint.
    pub interval: Duration,
    /// Up to this much is added to the interval, at random.
    pub interval_jitter: Duration,
    /// Failures in a row that make an endpoint unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again; the first check of all counts at once.
    pub healthy_threshold: u32,
    /// What is asked.
    pub kind: HealthCheckKind,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheckKind {
    /// A connection; optionally bytes to send and bytes that must come back.
    Tcp {
        /// Sent after connecting.
        send: Option<Vec<u8>>,
        /// Must occur in what comes back, in this order.
        receive: Vec<Vec<u8>>,
    },
    /// A GET request.
    Http {
        /// Its path.
        path: String,
        /// Its Host header; the cluster's name by default.
        host: Option<String>,
        /// Ranges `[start, end)` of good statuses; 200 by default.
        expected_statuses: Vec<(u16, u16)>,
        /// Ranges whose failures count towards the threshold instead of at once.
        retriable_statuses: Vec<(u16, u16)>,
    },
}

/// Envoy's `circuit_breakers`, default priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreakers {
    /// Connections open at once. Default 1024.
    pub max_connections: u32,
    /// Requests waiting for a connection at once. Default 1024.
    pub max_pending_requests: u32,
    /// Requests in flight at once. Default 1024.
    pub max_requests: u32,
    /// Retries in flight at once. Default 3.
    pub max_retries: u32,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self { max_connections: 1024, max_pending_requests: 1024, max_requests: 1024, max_retries: 3 }
    }
}

/// Which cluster a connection or request goes to.
#[derive(Clone, Debug)]
pub enum ClusterSpecifier {
    /// This one.
    Cluster(Arc<Cluster>),
    /// One of these, drawn by weight.
    Weighted(WeightedClusters),
    /// The one that this request header names (HTTP only).
    Header(HeaderName),
}

/// Clusters with their weights; the sum is at least 1 and fits an u32.
#[derive(Clone, Debug)]
pub struct WeightedClusters {
    entries: Vec<(Arc<Cluster>, u32)>,
    /// The sum of the weights up to and with each entry.
    ends: Vec<u32>,
    total: u32,
}

impl WeightedClusters {
    /// `None` when the weights sum to 0 or to more than `u32::MAX`.
    pub fn new(entries: Vec<(Arc<Cluster>, u32)>) -> Option<Self> {
        let mut total = 0_u32;
        let mut ends = Vec::with_capacity(entries.len());
        for (_, weight) in &entries {
            total = total.checked_add(*weight)?;
            ends.push(total);
        }
        (total > 0).then_some(Self { entries, ends, total })
    }

    /// Draws with `random`: the first cluster whose cumulative weight exceeds `random % total`.
    pub fn pick(&self, random: u64) -> &Arc<Cluster> {
        let point = random % u64::from(self.total);
        // The point is below the last end, so that there always is such an entry.
        &self.entries[self.ends.partition_point(|end| u64::from(*end) <= point)].0
    }

    /// All of them, as configured.
    pub fn entries(&self) -> &[(Arc<Cluster>, u32)] {
        &self.entries
    }
}
