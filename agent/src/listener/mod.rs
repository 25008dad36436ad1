//! Listeners: what a connection meets first.
//!
//! Before: the accepted socket and its original destination. After: the network filter of the chosen filter chain,
//! [`crate::tcp`] or [`crate::http`]. Nothing here does I/O but [`filter`], which looks at the first bytes.

pub mod chain;
pub mod dispatch;
pub mod filter;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::ClusterSpecifier;
use crate::cluster::balance::hash::source_ip;
use crate::http::HttpConnectionManager;
use crate::telemetry::stats::ListenerStats;
use crate::workload::Workload;

use chain::FilterChains;

/// One listener, every name in it resolved.
#[derive(Debug)]
pub struct Listener {
    /// Unique among the listeners.
    pub name: Arc<str>,
    /// What it is bound to, or the original destination by which it is found.
    pub address: SocketAddr,
    /// Of the connections that it serves.
    pub direction: TrafficDirection,
    /// Whether it has a socket of its own.
    pub binding: Binding,
    /// Whether its connections are handed to the listener of their original destination.
    pub hand_off: HandOff,
    /// Who dispatches its connections.
    pub dispatch: Dispatch,
    /// In the order in which they run.
    pub listener_filters: Vec<ListenerFilter>,
    /// How long the listener filters may wait for bytes; `None` is for ever.
    pub listener_filters_timeout: Option<Duration>,
    /// What follows when they waited in vain.
    pub on_filters_timeout: OnFiltersTimeout,
    /// Its filter chains, with the default one.
    pub chains: FilterChains,
    /// Kept across reloads by name.
    pub stats: Arc<ListenerStats>,
}

impl Listener {
    /// Whether the kernel hands connections to its socket: those that it redirects, or those that arrive.
    pub fn receives(&self) -> bool {
        let handed = self.hand_off == HandOff::ByOriginalDst || self.direction == TrafficDirection::Inbound;
        self.binding != Binding::Virtual && handed
    }
}

/// Envoy's `traffic_direction`, seen from the workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficDirection {
    /// What the workload sends.
    #[default]
    Outbound,
    /// What arrives at the workload.
    Inbound,
}

impl TrafficDirection {
    /// The name by which the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Whether a listener has a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// It listens: one SO_REUSEPORT socket per worker, or one socket that all share.
    Socket {
        /// Envoy's `enable_reuse_port`.
        reuse_port: ReusePort,
        /// The length of the accept queue.
        backlog: u32,
    },
    /// `bind_to_port: false`: reached only by original destination.
    Virtual,
}

/// How workers share a listening address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReusePort {
    /// A socket per worker; the kernel spreads connections.
    PerWorker,
    /// One socket; whichever worker is free accepts.
    Shared,
}

/// Envoy's `use_original_dst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOff {
    /// Only connections that the kernel redirected are served, each by the listener of its original destination.
    ByOriginalDst,
    /// Connections stay here; the destination is the accepted socket's local address.
    Stay,
}

/// Who sends connections on to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dispatch {
    /// The agent, which accepts them.
    #[default]
    Agent,
    /// The kernel, within connect(2): the agent never meets them.
    Kernel,
}

impl Dispatch {
    /// The name by which the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Kernel => "kernel",
        }
    }
}

/// What happens to a connection whose listener filters ran out of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFiltersTimeout {
    /// Go on with what is known (usually: raw bytes).
    Continue,
    /// Close the connection.
    Close,
}

/// Looks at the first bytes of a connection without consuming them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerFilter {
    /// ClientHello: transport protocol, server name, ALPN.
    TlsInspector,
    /// Request line or HTTP/2 preface.
    HttpInspector,
}

impl ListenerFilter {
    /// The name by which the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TlsInspector => "tls_inspector",
            Self::HttpInspector => "http_inspector",
        }
    }
}

/// What serves the connection in the end.
#[derive(Debug)]
pub enum NetworkFilter {
    /// Bytes.
    Tcp(TcpProxy),
    /// Requests.
    Http(Arc<HttpConnectionManager>),
}

/// Envoy's `tcp_proxy`.
#[derive(Debug)]
pub struct TcpProxy {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// Closes a connection on which nothing moved either way; `None` is never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Endpoints tried before giving up. Default 1.
    pub max_connect_attempts: u32,
    /// Closes a connection that lasted so long (flag DT).
    pub max_downstream_connection_duration: Option<Duration>,
    /// What ties connections to endpoints, for clusters that balance by hash.
    pub hash_policy: Option<TcpHashPolicy>,
}

/// Envoy's `TcpProxy.hash_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpHashPolicy {
    /// The client's address, without its port.
    SourceIp,
}

impl TcpProxy {
    /// The hash of a connection from `client`, which is `pod` if it is one and known; see [`Workload::address_of`].
    pub fn hash(&self, client: IpAddr, pod: Option<&Workload>) -> Option<u64> {
        self.hash_policy.map(|policy| match policy {
            TcpHashPolicy::SourceIp => source_ip(Workload::address_of(client, pod)),
        })
    }
}
