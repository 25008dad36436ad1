//! `listeners`: what connections meet.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::Flag;
use super::http::Http;
use crate::config::record::{choice, record};
use crate::listener::chain::{SourceType, TransportProtocol};
use crate::listener::{Dispatch, ListenerFilter, TrafficDirection};

record! {
    /// What a connection meets, found by its original destination: the listener of exactly that address, else that of
    /// `0.0.0.0` (or `[::]`) with the same port, else the bound one that accepted it.
    pub struct Listener("listener", "config.listener.v3.Listener") {
        /// Unique among the listeners.
        name: String, required;
        /// What it is bound to, or the original destination by which it is found.
        address: SocketAddr, required;
        /// Whether it listens itself; `false` for one that is found by original destination only.
        bind_to_port: bool, default(true);
        /// Of which connections: those that go out, or those that arrive for a program of this host or of a pod.
        traffic_direction: TrafficDirection, default(TrafficDirection::Outbound);
        /// Its connections are served by the listener of their original destination, of the same direction. Outbound: the
        /// kernel redirects to it. On 127.0.0.1 it listens on \[::1\] as well.
        use_original_dst: bool, default(false);
        /// Who sends its connections on: the agent, or the kernel within connect(2), so that they never meet the agent. The
        /// kernel can where one `tcp_proxy` chain serves all connections to an original destination (`bind_to_port: false`),
        /// without listener filters; it keeps no idle or connect timeout and no circuit breaker.
        dispatch: Dispatch, default(Dispatch::Agent), envoy("-");
        /// What looks at the first bytes, in this order, for filter chains to match on.
        listener_filters: Vec<ListenerFilter>, default(Vec::new());
        /// How long the listener filters may wait for bytes; `0s` is for ever. Envoy's default is 15s.
        listener_filters_timeout: Duration, default(Duration::from_secs(5));
        /// After that time the connection goes on with what is known of it; `false` closes it. Envoy's default is `false`.
        continue_on_listener_filters_timeout: bool, default(true);
        /// Each worker has a listening socket of its own; `false`: all share one.
        reuse_port: bool, default(true), alias("enable_reuse_port"), envoy("enable_reuse_port");
        /// Length of the accept queue, at least 1; the kernel cuts it to net.core.somaxconn.
        tcp_backlog_size: u32, default(4096);
        /// What serves its connections: the chain whose criteria match best.
        filter_chains: Vec<FilterChain>, default(Vec::new());
        /// Serves connections that match no other chain. Without it they are closed (flag NR).
        default_filter_chain: FilterChain, optional("no such connection is served");
    }

    /// What serves a connection; exactly one of `tcp_proxy` and `http`.
    pub struct FilterChain("filter chain", "config.listener.v3.FilterChain") {
        /// Names it in messages and in records.
        name: String, optional("its index");
        /// When it is chosen; not for the default chain.
        matches as "match": ChainMatch, optional("any connection"), envoy("filter_chain_match");
        /// Bytes, both ways.
        tcp_proxy: TcpProxy, optional("see `http`"), envoy("filters");
        /// Requests.
        http: Http, optional("see `tcp_proxy`"), envoy("filters");
    }

    /// When a filter chain is chosen: every criterion that is given must hold. They are looked at in this order, each
    /// choosing the most specific chains, without going back: a chain for port 80 and TLS takes plain connections to port
    /// 80 away from a chain for any port, and then does not serve them.
    pub struct ChainMatch("filter chain match", "config.listener.v3.FilterChainMatch") {
        /// The original destination's port.
        destination_port: u16, optional("any");
        /// The original destination is in one of these networks.
        prefix_ranges: Vec<IpNet>, default(Vec::new());
        /// The TLS client's server name is one of these; `*.example.com` stands for all names below example.com.
        /// Needs `tls_inspector`.
        server_names: Vec<String>, default(Vec::new());
        /// Whether it is TLS. Needs `tls_inspector`.
        transport_protocol: TransportProtocol, optional("any");
        /// The TLS client offers one of these by ALPN (`tls_inspector`), or the plain connection speaks it: `http/1.0`,
        /// `http/1.1`, `h2c` (`http_inspector`).
        application_protocols: Vec<String>, default(Vec::new());
        /// The client's address, as the kernel reports it, is in one of these networks.
        direct_source_prefix_ranges: Vec<IpNet>, default(Vec::new());
        /// Whether the client is on this host.
        source_type: SourceType, default(SourceType::Any);
        /// The client's address is in one of these networks.
        source_prefix_ranges: Vec<IpNet>, default(Vec::new());
        /// The client's port is one of these.
        source_ports: Vec<u16>, default(Vec::new());
    }

    /// Bytes, both ways; exactly one of `cluster` and `weighted_clusters`.
    pub struct TcpProxy("tcp proxy", "extensions.filters.network.tcp_proxy.v3.TcpProxy") {
        /// Where to.
        cluster: String, optional("see `weighted_clusters`");
        /// Where to, drawn by weight for each connection.
        weighted_clusters: Vec<WeightedCluster>, optional("see `cluster`"), envoy("weighted_clusters.clusters");
        /// Closes a connection on which nothing moved either way; `0s` never does that.
        idle_timeout: Duration, default(Duration::from_secs(3600));
        /// Endpoints tried before giving up, at least 1.
        max_connect_attempts: u32, default(1);
        /// Closes a connection that lasted so long (flag DT).
        max_downstream_connection_duration: Duration, optional("no limit");
        /// What of a connection is hashed, at most one thing, so that those that are alike in it go to the same endpoint, for
        /// clusters with `lb_policy: ring_hash` or `maglev`.
        hash_policy: Vec<TcpHashPolicy>, default(Vec::new());
    }

    /// What of a connection is hashed.
    pub struct TcpHashPolicy("tcp hash policy", "type.v3.HashPolicy") {
        /// The client's address, without its port; what comes from a pod has the pod's own address.
        source_ip: Flag, required;
    }

    /// A cluster and its share.
    pub struct WeightedCluster("weighted cluster", "config.route.v3.WeightedCluster.ClusterWeight") {
        /// The cluster.
        name: String, required;
        /// Its share; the sum of all is at least 1 and at most 4294967295.
        weight: u32, required;
    }
}

choice!(TrafficDirection { Outbound = "outbound", Inbound = "inbound" });
choice!(Dispatch { Agent = "agent", Kernel = "kernel" });
choice!(ListenerFilter { TlsInspector = "tls_inspector", HttpInspector = "http_inspector" });
choice!(TransportProtocol { Tls = "tls", RawBuffer = "raw_buffer" });
choice!(SourceType { Any = "any", SameIpOrLoopback = "same_ip_or_loopback", External = "external" });
