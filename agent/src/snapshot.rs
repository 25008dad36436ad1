//! The whole configuration as the data path sees it: immutable, every name resolved, published by one atomic swap.
//!
//! Before: [`crate::config`], which makes it. After: [`crate::pipeline`], which reads it. A connection keeps the
//! snapshot it started with.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use crate::cluster::Cluster;
use crate::cluster::endpoint::EndpointRegistry;
use crate::dns::DnsOptions;
use crate::http::route::RouteConfig;
use crate::kernel::{OnAgentLoss, Policy};
use crate::listener::dispatch::Listeners;
use crate::telemetry::stats::Registry;
use crate::workload::{RuntimeAddress, Selector, WorkloadMatch};

/// One configuration, resolved.
#[derive(Debug)]
pub struct Snapshot {
    /// Where it came from.
    pub origin: Origin,
    /// What the kernel takes; `None` when no listener uses the original destination.
    pub intercept: Option<Intercept>,
    /// How DNS questions are answered; `None`: they pass untouched.
    pub dns: Option<Arc<DnsOptions>>,
    /// Found by original destination.
    pub listeners: Listeners,
    /// By name; inline ones included.
    pub route_configs: BTreeMap<Arc<str>, Arc<RouteConfig>>,
    /// By name.
    pub clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    /// Where the agent answers for itself.
    pub admin: Admin,
    /// Where access records go.
    pub access_log: Vec<AccessLog>,
    /// How long connections in flight may take after SIGTERM. Default 30 s.
    pub drain_timeout: Duration,
}

/// Where a snapshot came from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file, or a short description when there was none.
    pub source: String,
    /// Its text, for `/config_dump`.
    pub text: Arc<str>,
    /// 1 for the first, counted up with each reload.
    pub version: u64,
    /// When it was loaded.
    pub loaded_at: SystemTime,
}

/// What the kernel takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Intercept {
    /// Below the cgroup2 mount, beginning with `/`.
    pub cgroup: PathBuf,
    /// Whether the agent's own network namespace takes part.
    pub host: bool,
    /// Whose connections; empty: those of all processes in the control group.
    pub processes: Vec<ProcessRule>,
    /// Which destinations.
    pub outbound: Policy,
    /// What of that which arrives; `None`: nothing.
    pub inbound: Option<Inbound>,
    /// Pods and containers; `None`: none.
    pub pods: Option<Pods>,
    /// Who receives them.
    pub redirect: Redirect,
    /// What connects meet when the agent hangs.
    pub on_agent_loss: OnAgentLoss,
    /// How many handshakes may be under way at once.
    pub handover_entries: u32,
}

/// Processes: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessRule {
    /// Its user id.
    pub uid: Option<u32>,
    /// Its name, at most 15 bytes.
    pub comm: Option<String>,
    /// Its id, as the agent sees it.
    pub pid: Option<u32>,
    /// The systemd unit that it belongs to.
    pub unit: Option<String>,
    /// The control group that it is in or below, below the cgroup2 mount.
    pub cgroup: Option<PathBuf>,
}

/// What is taken of that which arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// By the client's address and the local port.
    pub policy: Policy,
    /// What comes from this node itself.
    pub from_node: FromNode,
}

/// Connections from this node's own addresses, such as the kubelet's probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FromNode {
    /// They reach the application as if there were no agent.
    #[default]
    Pass,
    /// They are taken as any other.
    Intercept,
}

/// Which pods and containers are enrolled, and how they are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pods {
    /// Empty: those whose usual socket is there.
    pub runtimes: Vec<RuntimeAddress>,
    /// Between two looks, where a runtime tells of no changes itself.
    pub poll_interval: Duration,
    /// Any of these.
    pub select: Vec<Selector>,
    /// The first that matches replaces the policies of all others.
    pub policies: Vec<PodPolicy>,
}

/// What is taken from and for some pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPolicy {
    /// Which.
    pub source_pod: WorkloadMatch,
    /// In place of the general one.
    pub outbound: Option<Policy>,
    /// In place of the general one.
    pub inbound: Option<Policy>,
}

/// Who receives what is intercepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirect {
    /// The bound listeners with `use_original_dst`.
    #[default]
    Listeners,
    /// Another program, which asks the kernel for the original destination; at least one of the two.
    Proxy {
        /// Where it accepts IPv4 connections.
        v4: Option<SocketAddrV4>,
        /// Where it accepts IPv6 connections.
        v6: Option<SocketAddrV6>,
    },
}

/// Where the admin socket is unless the configuration says otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/waylay/admin.sock";

/// Where the agent answers for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The unix socket that only root may open; default `/run/waylay/admin.sock`.
    pub socket: PathBuf,
    /// Prometheus metrics; default 127.0.0.1:15090, `None` for off.
    pub prometheus: Option<SocketAddr>,
    /// Readiness; default 127.0.0.1:15021, `None` for off.
    pub readiness: Option<SocketAddr>,
}

/// One destination of access records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// `/dev/stdout`, `/dev/stderr` or a file that is appended to.
    pub path: PathBuf,
    /// How a record is written.
    pub format: AccessLogFormat,
}

/// How a record is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Envoy's default line.
    #[default]
    Text,
    /// A short line for each request, and for each connection that carried none.
    Brief,
    /// One JSON object a line.
    Json,
}

/// What outlives snapshots: state that a reload must not reset.
#[derive(Debug, Default)]
pub struct Runtime {
    /// Statistics by name.
    pub stats: Arc<Registry>,
    /// Endpoints by identity.
    pub endpoints: Arc<EndpointRegistry>,
    /// What the listening sockets are really bound to (port 0 and the second family resolved): never a destination.
    pub bound: ArcSwap<Vec<SocketAddr>>,
}
