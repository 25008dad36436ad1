//! HTTP: connections that are served as requests.
//!
//! Before: the filter chain match. After: an endpoint of the cluster that the route named.

pub mod check;
mod chunk;
mod codec_body;
pub mod connection;
mod date;
mod exchange;
mod field;
mod gate;
pub mod h1;
pub mod headers;
mod http2;
mod meter;
mod path;
pub mod pool;
mod refusal;
mod reply;
mod request_body;
pub mod request_id;
mod response_body;
mod retry;
pub mod route;
mod router;
mod service;
mod spare;
mod tunnel;
mod upstream;
mod upstream_io;

use std::sync::Arc;
use std::time::Duration;

use crate::listener::filter::Detected;
use crate::place::Behalf;
use crate::snapshot::Snapshot;
use crate::telemetry::ResponseFlags;
use crate::telemetry::record::ConnectionInfo;
use crate::telemetry::stats::HttpStats;

use route::RouteConfig;

/// What is known of a connection that is served as HTTP.
#[derive(Clone, Debug)]
pub struct ConnectionContext {
    /// Who, where to, and by which filter chain.
    pub info: ConnectionInfo,
    /// On whose behalf the agent connects to endpoints.
    pub behalf: Behalf,
    /// The configuration that the connection keeps.
    pub snapshot: Arc<Snapshot>,
    /// What the listener filters saw.
    pub detected: Option<Detected>,
}

/// How a connection ended, for its record.
#[derive(Clone, Debug, Default)]
pub struct ConnectionEnd {
    /// Why, when not well.
    pub flags: ResponseFlags,
    /// The same in words.
    pub details: Option<String>,
    /// Requests served.
    pub requests: u64,
    /// From the client.
    pub bytes_received: u64,
    /// To the client.
    pub bytes_sent: u64,
}

/// Envoy's `HttpConnectionManager`, every name resolved.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// Names its statistics; the listener's name by default.
    pub stat_prefix: Arc<str>,
    /// The route table.
    pub route_config: Arc<RouteConfig>,
    /// Which HTTP versions it speaks.
    pub codec_type: CodecType,
    /// Closes a connection on which no request is in flight. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Ends a request on which nothing moves. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// The whole request must have arrived by then. Off by default.
    pub request_timeout: Option<Duration>,
    /// The request's headers must have arrived by then. Off by default.
    pub request_headers_timeout: Option<Duration>,
    /// Accepts HTTP/1.0 requests; otherwise they are answered with 426.
    pub accept_http_10: bool,
    /// Above it, 431. Default 60 KiB.
    pub max_request_headers_kb: u32,
    /// Above it, 431. Default 100.
    pub max_headers_count: u32,
    /// Upgrade types that are let through, lower-cased. Default `websocket`.
    pub upgrades: Vec<String>,
    /// Removes dot segments and decodes unreserved characters. Off by default.
    pub normalize_path: bool,
    /// Makes one slash of several. Off by default.
    pub merge_slashes: bool,
    /// Appends the client to x-forwarded-for and sets x-forwarded-proto. Off by default.
    pub use_remote_address: bool,
    /// Adds x-request-id where it is absent. On by default.
    pub generate_request_id: bool,
    /// What happens to the `server` header of responses.
    pub server_header: ServerHeader,
    /// The value that it gets. Default `waylay`.
    pub server_name: http::HeaderValue,
    /// The port is cut off the host before routing.
    pub strip_any_host_port: bool,
    /// Kept across reloads by `stat_prefix`.
    pub stats: Arc<HttpStats>,
}

/// Envoy's `codec_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodecType {
    /// By the first bytes.
    #[default]
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only, by prior knowledge.
    Http2,
}

/// Envoy's `server_header_transformation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerHeader {
    /// Always replaced.
    #[default]
    Overwrite,
    /// Set where absent.
    AppendIfAbsent,
    /// Left alone.
    PassThrough,
}
