//! `http`: connections that are served as requests.

use std::time::Duration;

use super::route::RouteConfig;
use super::{FromText, OrText};
use crate::config::diagnostic::{Path, Report};
use crate::config::record::{RecordInfo, choice, record};
use crate::config::value::Value;
use crate::config::yaml::{Kind, Node};
use crate::http::{CodecType, ServerHeader};

record! {
    /// Requests.
    pub struct Http("http", "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager") {
        /// The name of a route table, or one that is written here.
        route_config: RouteConfigRef, required;
        /// Names its statistics.
        stat_prefix: String, optional("the listener's name");
        /// Which versions of HTTP it speaks: `auto` goes by the first bytes.
        codec_type: CodecType, default(CodecType::Auto);
        /// Closes a connection on which no request is in flight; `0s` never does that.
        idle_timeout: Duration, default(Duration::from_secs(3600)), envoy("common_http_protocol_options.idle_timeout");
        /// Ends a request on which nothing moves with 408, or 504 once it is complete; `0s` never does that.
        stream_idle_timeout: Duration, default(Duration::from_secs(300));
        /// The whole request must have arrived by then, else 408; `0s` sets no limit.
        request_timeout: Duration, default(Duration::ZERO);
        /// The request's headers must have arrived by then, else 408; `0s` sets no limit.
        request_headers_timeout: Duration, default(Duration::ZERO);
        /// Serves HTTP/1.0 too; otherwise it is answered with 426.
        accept_http_10: bool, default(false), envoy("http_protocol_options.accept_http_10");
        /// Requests with larger headers get 431; in KiB, 1 to 8192.
        max_request_headers_kb: u32, default(60);
        /// Requests with more header fields get 431; at least 1.
        max_headers_count: u32, default(100), envoy("common_http_protocol_options.max_headers_count");
        /// Protocols to which clients may upgrade; others get 403. Envoy's default is none.
        upgrades: Vec<OrText<Upgrade>>, default(vec![OrText(Upgrade { upgrade_type: "websocket".to_owned() })]), alias("upgrade_configs"), envoy("upgrade_configs");
        /// Removes dot segments from paths and decodes unreserved characters, before routing.
        normalize_path: bool, default(false);
        /// Makes one slash of several in paths, before routing.
        merge_slashes: bool, default(false);
        /// Appends the client's address to x-forwarded-for, and sets x-forwarded-proto.
        use_remote_address: bool, default(false);
        /// Adds x-request-id where it is absent.
        generate_request_id: bool, default(true);
        /// What becomes of the `server` header of responses.
        server_header_transformation: ServerHeader, default(ServerHeader::Overwrite);
        /// The `server` header's value. Envoy's default is `envoy`.
        server_name: String, default("waylay".to_owned());
        /// Cuts the port off the host, before routing.
        strip_any_host_port: bool, default(false);
    }

    /// A protocol to upgrade to. Short: its name alone.
    pub struct Upgrade("upgrade", "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig") {
        /// Such as `websocket`; case does not matter.
        upgrade_type: String, required;
    }
}

impl FromText for Upgrade {
    fn from_text(text: &str) -> Self {
        Self { upgrade_type: text.to_owned() }
    }
}

choice!(CodecType { Auto = "auto", Http1 = "http1", Http2 = "http2" });
choice!(ServerHeader { Overwrite = "overwrite", AppendIfAbsent = "append_if_absent", PassThrough = "pass_through" });

/// The route table of an `http` filter.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteConfigRef {
    /// One of `route_configs`.
    Named(String),
    /// This one.
    Inline(Box<RouteConfig>),
}

impl Value for RouteConfigRef {
    fn type_name() -> String {
        format!("name of a route config, or {}", RouteConfig::type_name())
    }

    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
        match &node.kind {
            Kind::Mapping(_) => Self::Inline(Value::decode(node, path, report)),
            _ => Self::Named(Value::decode(node, path, report)),
        }
    }

    fn encode(&self) -> Node {
        match self {
            Self::Named(name) => name.encode(),
            Self::Inline(config) => config.encode(),
        }
    }

    fn placeholder() -> Self {
        Self::Named(String::new())
    }

    fn record() -> Option<&'static RecordInfo> {
        RouteConfig::record()
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        match crate::config::random::option(rng, Value::random) {
            Some(config) => Self::Inline(config),
            None => Self::Named(Value::random(rng)),
        }
    }
}
