//! Every statistic the agent keeps, by the thing it is about. Names are Envoy's
//! (docs: configuration/{listeners/stats, http/http_conn_man/stats, upstream/cluster_manager/cluster_stats}).
//!
//! A group outlives the configuration it came from: [`Registry`] hands the same group to the next snapshot when the
//! name is unchanged, so that a reload resets nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::metric::{Counter, Gauge, Histogram, Metric};
use crate::listener::TrafficDirection;

/// Declares a group of statistics: a struct with a public field each, and a visitor over all of them.
macro_rules! stats {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ident = $help:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl $name {
            /// Calls `visit` with the name, the help text and the value of each statistic.
            pub fn for_each(&self, visit: &mut dyn FnMut(&'static str, &'static str, Metric<'_>)) {
                $(visit(stringify!($field), $help, Metric::from(&self.$field));)*
            }
        }
    };
}

stats!(
    /// Statistics of one listener, `listener.<name>.`
    ListenerStats {
        downstream_cx_total: Counter = "Connections handled by this listener",
        downstream_cx_active: Gauge = "Connections open now",
        downstream_cx_length: Histogram = "How long connections lasted",
        downstream_cx_overflow: Counter = "Connections refused because of a connection limit",
        downstream_cx_rx_bytes_total: Counter = "Bytes received from clients",
        downstream_cx_tx_bytes_total: Counter = "Bytes sent to clients",
        downstream_cx_no_original_dst: Counter = "Connections refused because the kernel had not redirected them",
        downstream_cx_self_connect: Counter = "Connections refused because they were destined to the agent itself",
        downstream_pre_cx_active: Gauge = "Connections whose protocol is being detected",
        downstream_pre_cx_timeout: Counter = "Protocol detections that ran into the timeout",
        downstream_listener_filter_remote_close: Counter = "Clients that closed during protocol detection",
        downstream_listener_filter_error: Counter = "Connections that failed during protocol detection",
        no_filter_chain_match: Counter = "Connections closed because no filter chain matched",
        detection_time: Histogram = "How long protocol detection took",
        detection_tls: Counter = "Connections detected as TLS",
        detection_http10: Counter = "Connections detected as HTTP/1.0",
        detection_http11: Counter = "Connections detected as HTTP/1.1",
        detection_http2: Counter = "Connections detected as cleartext HTTP/2",
        detection_opaque: Counter = "Connections whose protocol was not recognised",
        detection_server_first: Counter = "Connections in which the server spoke first",
        detection_early_cx_total: Counter = "Endpoints connected to while the client was silent",
        detection_early_cx_unused: Counter = "Endpoints connected to early that the connection did not go to",
        downstream_cx_accept_error: Counter = "Failed accept calls (out of file descriptors or memory)",
        tls_client_hello_too_large: Counter = "Connections closed because the ClientHello exceeded the limit",
    }
);

stats!(
    /// Statistics of one HTTP connection manager, `http.<stat_prefix>.`
    HttpStats {
        downstream_cx_http1_total: Counter = "HTTP/1 connections",
        downstream_cx_http2_total: Counter = "HTTP/2 connections",
        downstream_cx_upgrades_total: Counter = "Upgraded connections (WebSocket)",
        downstream_cx_protocol_error: Counter = "Connections that ended with a protocol error",
        downstream_rq_total: Counter = "Requests",
        downstream_rq_active: Gauge = "Requests in flight",
        downstream_rq_http1_total: Counter = "HTTP/1 requests",
        downstream_rq_http2_total: Counter = "HTTP/2 requests",
        downstream_rq_1xx: Counter = "Responses with status 1xx",
        downstream_rq_2xx: Counter = "Responses with status 2xx",
        downstream_rq_3xx: Counter = "Responses with status 3xx",
        downstream_rq_4xx: Counter = "Responses with status 4xx",
        downstream_rq_5xx: Counter = "Responses with status 5xx",
        downstream_rq_rx_reset: Counter = "Requests that the client gave up",
        downstream_rq_tx_reset: Counter = "Requests that the agent had to reset",
        downstream_rq_idle_timeout: Counter = "Requests ended by the stream idle timeout",
        downstream_rq_timeout: Counter = "Requests ended by request_timeout",
        downstream_rq_header_timeout: Counter = "Requests ended by request_headers_timeout",
        downstream_rq_too_large: Counter = "Requests whose headers exceeded the limit",
        downstream_rq_time: Histogram = "From the request's headers to the end of the response",
        no_route: Counter = "Requests that no route matched",
        no_cluster: Counter = "Requests whose route names no known cluster",
        rq_direct_response: Counter = "Requests answered by a direct_response row",
        rq_redirect: Counter = "Requests answered by a redirect row",
    }
);

stats!(
    /// Statistics of one route, `route.<route config>.<virtual host>.<row>.`
    RouteStats {
        rq_total: Counter = "Requests that this row matched",
    }
);

stats!(
    /// Statistics of one cluster, `cluster.<name>.`
    ClusterStats {
        upstream_cx_total: Counter = "Connections opened to the cluster's endpoints",
        upstream_cx_active: Gauge = "Connections open now",
        upstream_cx_http1_total: Counter = "HTTP/1 connections opened",
        upstream_cx_http2_total: Counter = "HTTP/2 connections opened",
        upstream_cx_connect_fail: Counter = "Connections that could not be opened",
        upstream_cx_connect_timeout: Counter = "Connections that were not open in time",
        upstream_cx_connect_time: Histogram = "How long opening a connection took",
        upstream_cx_overflow: Counter = "Connections refused by the circuit breaker",
        upstream_cx_idle_timeout: Counter = "Pooled connections closed because they were idle",
        upstream_cx_rx_bytes_total: Counter = "Bytes received from endpoints",
        upstream_cx_tx_bytes_total: Counter = "Bytes sent to endpoints",
        upstream_cx_none_healthy: Counter = "Connections and requests refused because no endpoint was healthy",
        upstream_rq_total: Counter = "Requests sent",
        upstream_rq_active: Gauge = "Requests in flight",
        upstream_rq_1xx: Counter = "Responses with status 1xx",
        upstream_rq_2xx: Counter = "Responses with status 2xx",
        upstream_rq_3xx: Counter = "Responses with status 3xx",
        upstream_rq_4xx: Counter = "Responses with status 4xx",
        upstream_rq_5xx: Counter = "Responses with status 5xx",
        upstream_rq_timeout: Counter = "Requests that ran into the route's timeout",
        upstream_rq_per_try_timeout: Counter = "Tries that ran into the per-try timeout",
        upstream_rq_retry: Counter = "Retries",
        upstream_rq_retry_success: Counter = "Retries that succeeded",
        upstream_rq_retry_limit_exceeded: Counter = "Requests that failed with all their retries used",
        upstream_rq_retry_active: Gauge = "Retries in flight",
        upstream_rq_retry_overflow: Counter = "Retries refused by the circuit breaker",
        upstream_rq_pending_active: Gauge = "Requests that wait for a connection",
        upstream_rq_pending_overflow: Counter = "Requests refused by the circuit breaker",
        upstream_rq_rx_reset: Counter = "Requests that an endpoint reset",
        upstream_rq_tx_reset: Counter = "Requests that the agent reset",
        upstream_rq_time: Histogram = "From the request to the end of the response",
        membership_total: Gauge = "Endpoints",
        membership_healthy: Gauge = "Endpoints that take traffic",
        membership_change: Counter = "Changes of the set of endpoints",
        health_check_attempt: Counter = "Health checks made",
        health_check_success: Counter = "Health checks passed",
        health_check_failure: Counter = "Health checks failed",
        health_check_network_failure: Counter = "Health checks failed by the network",
        update_attempt: Counter = "DNS resolutions tried",
        update_success: Counter = "DNS resolutions that succeeded",
        update_failure: Counter = "DNS resolutions that failed",
    }
);

stats!(
    /// Statistics of one endpoint, `cluster.<name>.endpoint.<address>.`
    EndpointStats {
        cx_total: Counter = "Connections opened",
        cx_active: Gauge = "Connections open now",
        cx_connect_fail: Counter = "Connections that could not be opened",
        rq_total: Counter = "Requests sent",
        rq_active: Gauge = "Requests in flight",
        rq_success: Counter = "Requests answered with a status below 500",
        rq_error: Counter = "Requests answered with a status of 500 and above, or not at all",
        rq_timeout: Counter = "Requests that were not answered in time",
    }
);

stats!(
    /// Statistics of the agent as a whole, `server.`
    ServerStats {
        concurrency: Gauge = "Workers",
        pods_enrolled: Gauge = "Pods and containers that are enrolled",
        pod_enrolment_failure: Counter = "Enrolments of pods that failed",
        config_reload_success: Counter = "Configurations taken over after the start",
        config_reload_failure: Counter = "Configurations refused after the start",
        access_log_dropped: Counter = "Access records that could not be written",
        total_connections: Gauge = "Downstream connections open now",
        worker_stalled: Counter = "Times at which a worker's loop did not turn in time",
    }
);

stats!(
    /// Statistics of DNS, `dns.`
    DnsStats {
        queries_total: Counter = "Datagrams with DNS questions that arrived",
        queries_malformed: Counter = "Questions that could not be read",
        queries_not_redirected: Counter = "Questions that the kernel had not redirected, dropped or refused",
        queries_passed_on: Counter = "Questions passed on byte for byte: updates, transfers, signed ones, those without recursion",
        queries_unanswered: Counter = "Questions that no resolver answered in time",
        cache_hits: Counter = "Questions answered from the cache",
        cache_misses: Counter = "Questions that the cache had no answer to",
        cache_entries: Gauge = "Answers in the cache",
        pending_overflow: Counter = "Questions answered SERVFAIL because too many of their place waited",
        upstream_queries_total: Counter = "Questions put to resolvers, retries not counted",
        upstream_timeout: Counter = "Tries that a resolver did not answer in time",
        upstream_error: Counter = "Tries that failed: a resolver was not there or not to be reached",
        upstream_malformed: Counter = "Answers of resolvers that could not be read",
        answers_lost: Counter = "Answers that could not be sent to their client",
        upstream_time: Histogram = "How long resolvers took, retries included",
        query_time: Histogram = "From the arrival of a question to its answer",
    }
);

stats!(
    /// Statistics of one direction of one enrolled pod, `pod.<namespace>/<name>.<direction>.`
    PodStats {
        downstream_cx_total: Counter = "Connections of this pod that were served",
        downstream_cx_active: Gauge = "Connections of this pod that are open now",
        downstream_cx_rx_bytes_total: Counter = "Bytes received from the clients of this pod's connections",
        downstream_cx_tx_bytes_total: Counter = "Bytes sent to the clients of this pod's connections",
        downstream_rq_total: Counter = "Requests on this pod's connections",
        downstream_rq_1xx: Counter = "Responses with status 1xx",
        downstream_rq_2xx: Counter = "Responses with status 2xx",
        downstream_rq_3xx: Counter = "Responses with status 3xx",
        downstream_rq_4xx: Counter = "Responses with status 4xx",
        downstream_rq_5xx: Counter = "Responses with status 5xx",
    }
);

impl PodStats {
    /// A request has ended; `status` is 0 when it was not answered.
    pub fn count_response(&self, status: u16) {
        match status / 100 {
            1 => self.downstream_rq_1xx.inc(),
            2 => self.downstream_rq_2xx.inc(),
            3 => self.downstream_rq_3xx.inc(),
            4 => self.downstream_rq_4xx.inc(),
            5 => self.downstream_rq_5xx.inc(),
            _ => {}
        }
    }
}

/// Statistics of one enrolled pod. They belong to its enrolment and go with it: see [`crate::place::Place`].
#[derive(Debug, Default)]
pub struct PodTraffic {
    /// Of what it sends.
    pub outbound: PodStats,
    /// Of what it receives.
    pub inbound: PodStats,
}

impl PodTraffic {
    /// Of one direction.
    pub fn of(&self, direction: TrafficDirection) -> &PodStats {
        match direction {
            TrafficDirection::Outbound => &self.outbound,
            TrafficDirection::Inbound => &self.inbound,
        }
    }
}

/// What the statistics of one kind are filed under.
type Group<K, T> = Mutex<BTreeMap<K, Arc<T>>>;

/// The statistics of everything that has a name, kept across reloads.
#[derive(Debug, Default)]
pub struct Registry {
    /// The agent itself.
    pub server: ServerStats,
    /// Questions of clients to resolvers.
    pub dns: DnsStats,
    listeners: Group<Arc<str>, ListenerStats>,
    http: Group<Arc<str>, HttpStats>,
    routes: Group<RouteKey, RouteStats>,
    clusters: Group<Arc<str>, ClusterStats>,
}

/// Route config, virtual host, and the row's name or index.
pub type RouteKey = (Arc<str>, Arc<str>, Arc<str>);

impl Registry {
    /// The statistics of the listener called `name`, made on first use.
    pub fn listener(&self, name: &Arc<str>) -> Arc<ListenerStats> {
        entry(&self.listeners, name.clone())
    }

    /// The statistics of the HTTP connection manager with this `stat_prefix`, made on first use.
    pub fn http(&self, stat_prefix: &Arc<str>) -> Arc<HttpStats> {
        entry(&self.http, stat_prefix.clone())
    }

    /// The statistics of one row of a route table, made on first use.
    pub fn route(&self, key: RouteKey) -> Arc<RouteStats> {
        entry(&self.routes, key)
    }

    /// The statistics of the cluster called `name`, made on first use.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterStats> {
        entry(&self.clusters, name.clone())
    }
}

impl Registry {
    /// All listeners in use, by name.
    pub fn listeners(&self) -> Vec<(Arc<str>, Arc<ListenerStats>)> {
        in_use(&self.listeners)
    }

    /// All HTTP connection managers in use, by `stat_prefix`.
    pub fn http_managers(&self) -> Vec<(Arc<str>, Arc<HttpStats>)> {
        in_use(&self.http)
    }

    /// All rows of all route tables in use.
    pub fn routes(&self) -> Vec<(RouteKey, Arc<RouteStats>)> {
        in_use(&self.routes)
    }

    /// All clusters in use, by name.
    pub fn clusters(&self) -> Vec<(Arc<str>, Arc<ClusterStats>)> {
        in_use(&self.clusters)
    }
}

/// Forgets what no snapshot and no connection holds any more, so that reloads do not add up, and returns the rest.
fn in_use<K: Ord + Clone, T>(group: &Group<K, T>) -> Vec<(K, Arc<T>)> {
    let mut group = group.lock().unwrap_or_else(PoisonError::into_inner);
    group.retain(|_, stats| Arc::strong_count(stats) > 1);
    group.iter().map(|(key, stats)| (key.clone(), stats.clone())).collect()
}

fn entry<K: Ord, T: Default>(group: &Group<K, T>, key: K) -> Arc<T> {
    group.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_holds_any_more_is_forgotten() {
        let registry = Registry::default();
        let kept = registry.cluster(&"kept".into());
        registry.cluster(&"gone".into()).upstream_rq_total.inc();
        kept.upstream_rq_total.inc();
        let names: Vec<_> = registry.clusters().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["kept".into()]);
        assert_eq!(registry.cluster(&"kept".into()).upstream_rq_total.value(), 1);
        assert_eq!(registry.cluster(&"gone".into()).upstream_rq_total.value(), 0);
    }
}
