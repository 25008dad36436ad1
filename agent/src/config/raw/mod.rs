//! The configuration as it is written: records of values, every name still a name. These types never leave
//! [`super`].
//!
//! Before: the tree of [`super::yaml`]. After: [`super::resolve`], which checks what a single value cannot know and
//! makes the snapshot. The doc comments of the fields are the text of the reference.

pub mod action;
pub mod cluster;
pub mod dns;
pub mod http;
pub mod intercept;
mod labels;
pub mod listener;
pub mod pods;
pub mod route;
mod scalars;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::record::{choice, record};
use super::value::Value;
use crate::snapshot::{AccessLogFormat, DEFAULT_ADMIN_SOCKET};

pub use labels::Labels;
pub use scalars::{AddressOrOff, Flag, FromText, Hex, OrText, RedirectStatus, RetryConditions};

/// `port` of this host alone.
const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

record! {
    /// The whole file.
    pub struct Config("configuration") {
        /// What the kernel redirects to the agent.
        intercept: intercept::Intercept, optional("everything, if a bound listener has `use_original_dst`; else nothing"), envoy("-");
        /// How DNS questions over UDP are answered.
        dns: dns::Dns, optional("they pass untouched"), envoy("-");
        /// What connections meet, by original destination.
        listeners: Vec<listener::Listener>, default(Vec::new()), envoy("static_resources.listeners");
        /// Route tables that listeners name.
        route_configs: Vec<route::RouteConfig>, default(Vec::new()), envoy("RDS");
        /// Where connections and requests go.
        clusters: Vec<cluster::Cluster>, default(Vec::new()), envoy("static_resources.clusters");
        /// Where the agent answers for itself.
        admin: Admin, default(Admin::placeholder());
        /// Where access records go. An empty list writes none.
        access_log: Vec<AccessLog>, default(vec![AccessLog { path: "/dev/stdout".to_owned(), format: AccessLogFormat::Text }]);
        /// How long connections and requests in flight may take after SIGTERM; `0s` ends them at once.
        drain_timeout: Duration, default(Duration::from_secs(30)), envoy("--drain-time-s");
    }

    /// Where the agent answers for itself.
    pub struct Admin("admin", "config.bootstrap.v3.Admin") {
        /// The unix socket of the command line; only root may open it. At most 107 bytes.
        socket: String, default(DEFAULT_ADMIN_SOCKET.to_owned()), envoy("address");
        /// Where Prometheus metrics are served, at `/stats/prometheus` and `/metrics`.
        prometheus: AddressOrOff, default(AddressOrOff(Some(local(15090)))), envoy("-");
        /// Where readiness is served, at `/ready` and `/healthz/ready`, and liveness, at `/live` and `/healthz/live`.
        readiness: AddressOrOff, default(AddressOrOff(Some(local(15021)))), envoy("-");
    }

    /// One destination of access records.
    pub struct AccessLog("access log", "extensions.access_loggers.file.v3.FileAccessLog") {
        /// `/dev/stdout`, `/dev/stderr` or a file that is appended to.
        path: String, required;
        /// Envoy's default line and what it has no place for, a short line for people, or one JSON object a line.
        format: AccessLogFormat, default(AccessLogFormat::Text), envoy("log_format");
    }
}

choice!(AccessLogFormat { Text = "text", Brief = "brief", Json = "json" });
