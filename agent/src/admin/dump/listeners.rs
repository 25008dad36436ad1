//! Listeners as `envoy.config.listener.v3.Listener`.

use serde_json::{Value, json};

use super::hash;
use super::proto::{Object, any, cidr_ranges, duration, socket_address, timeout};
use crate::cluster::ClusterSpecifier;
use crate::http::{CodecType, HttpConnectionManager, ServerHeader};
use crate::listener::chain::{ChainMatch, FilterChain, SourceType};
use crate::listener::{
    Binding, Dispatch, HandOff, Listener, ListenerFilter, NetworkFilter, OnFiltersTimeout, ReusePort, TcpProxy,
};
use crate::snapshot::Snapshot;

/// All listeners, by name.
pub fn all(snapshot: &Snapshot) -> Vec<(&str, Value)> {
    snapshot.listeners.iter().map(|one| (&*one.name, listener(one, &snapshot.origin.source))).collect()
}

fn listener(listener: &Listener, source: &str) -> Value {
    let chains: Vec<_> =
        listener.chains.all().iter().map(|chain| filter_chain(chain, &listener.name, source)).collect();
    let default = listener.chains.default_chain().map(|chain| filter_chain(chain, &listener.name, source));
    let filters: Vec<_> = listener.listener_filters.iter().map(|filter| listener_filter(*filter)).collect();
    let object = Object::new()
        .with("@type", any("config.listener.v3.Listener"))
        .with("name", &*listener.name)
        .with("address", socket_address(listener.address))
        .maybe("metadata", dispatch(listener))
        .with("traffic_direction", listener.direction.name().to_ascii_uppercase())
        .list("filter_chains", chains)
        .maybe("default_filter_chain", default)
        .list("listener_filters", filters)
        .with("listener_filters_timeout", timeout(listener.listener_filters_timeout))
        .flag("continue_on_listener_filters_timeout", listener.on_filters_timeout == OnFiltersTimeout::Continue)
        .flag("use_original_dst", listener.hand_off == HandOff::ByOriginalDst);
    match listener.binding {
        Binding::Virtual => object.with("bind_to_port", false),
        Binding::Socket { reuse_port, backlog } => {
            object.with("enable_reuse_port", reuse_port == ReusePort::PerWorker).with("tcp_backlog_size", backlog)
        }
    }
    .done()
}

/// Envoy knows no such thing; what it does not know of a listener stands in its metadata.
fn dispatch(listener: &Listener) -> Option<Value> {
    let name = listener.dispatch.name();
    (listener.dispatch == Dispatch::Kernel).then(|| json!({"filter_metadata": {"waylay": {"dispatch": name}}}))
}

fn listener_filter(filter: ListenerFilter) -> Value {
    let (name, message) = match filter {
        ListenerFilter::TlsInspector => ("envoy.filters.listener.tls_inspector", "tls_inspector.v3.TlsInspector"),
        ListenerFilter::HttpInspector => ("envoy.filters.listener.http_inspector", "http_inspector.v3.HttpInspector"),
    };
    json!({"name": name, "typed_config": {"@type": any(&format!("extensions.filters.listener.{message}"))}})
}

fn filter_chain(chain: &FilterChain, listener: &str, source: &str) -> Value {
    let matches = chain_match(&chain.matches);
    let filter = match &chain.filter {
        NetworkFilter::Tcp(proxy) => tcp_proxy(proxy, listener),
        NetworkFilter::Http(manager) => http_connection_manager(manager, source),
    };
    Object::new()
        .maybe("filter_chain_match", matches.as_object().filter(|fields| !fields.is_empty()).cloned())
        .list("filters", vec![filter])
        .maybe("name", chain.name.as_deref())
        .done()
}

fn chain_match(matches: &ChainMatch) -> Value {
    let ranges = |nets: &Vec<ipnet::IpNet>| (!nets.is_empty()).then(|| cidr_ranges(nets));
    Object::new()
        .maybe("destination_port", matches.destination_port)
        .maybe("prefix_ranges", ranges(&matches.prefix_ranges))
        .list("server_names", matches.server_names.clone())
        .maybe("transport_protocol", matches.transport_protocol.map(|protocol| protocol.name()))
        .list("application_protocols", matches.application_protocols.clone())
        .maybe("direct_source_prefix_ranges", ranges(&matches.direct_source_prefix_ranges))
        .maybe(
            "source_type",
            match matches.source_type {
                SourceType::Any => None,
                SourceType::SameIpOrLoopback => Some("SAME_IP_OR_LOOPBACK"),
                SourceType::External => Some("EXTERNAL"),
            },
        )
        .maybe("source_prefix_ranges", ranges(&matches.source_prefix_ranges))
        .list("source_ports", matches.source_ports.clone())
        .done()
}

fn tcp_proxy(proxy: &TcpProxy, listener: &str) -> Value {
    let config = Object::new()
        .with("@type", any("extensions.filters.network.tcp_proxy.v3.TcpProxy"))
        .with("stat_prefix", listener);
    let config = cluster_specifier(config, &proxy.cluster)
        .with("idle_timeout", timeout(proxy.idle_timeout))
        .with("max_connect_attempts", proxy.max_connect_attempts)
        .maybe("max_downstream_connection_duration", proxy.max_downstream_connection_duration.map(duration))
        .list("hash_policy", hash::tcp(proxy.hash_policy));
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": config.done()})
}

/// `cluster`, `weighted_clusters` or `cluster_header`.
pub fn cluster_specifier(object: Object, specifier: &ClusterSpecifier) -> Object {
    match specifier {
        ClusterSpecifier::Cluster(cluster) => object.with("cluster", &*cluster.name),
        ClusterSpecifier::Header(name) => object.with("cluster_header", name.as_str()),
        ClusterSpecifier::Weighted(weighted) => {
            let clusters: Vec<_> = weighted
                .entries()
                .iter()
                .map(|(cluster, weight)| json!({"name": cluster.name, "weight": weight}))
                .collect();
            object.with("weighted_clusters", json!({"clusters": clusters}))
        }
    }
}

fn http_connection_manager(manager: &HttpConnectionManager, source: &str) -> Value {
    let upgrades: Vec<_> = manager.upgrades.iter().map(|kind| json!({"upgrade_type": kind})).collect();
    let config = Object::new()
        .with("@type", any("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"))
        .with(
            "codec_type",
            match manager.codec_type {
                CodecType::Auto => "AUTO",
                CodecType::Http1 => "HTTP1",
                CodecType::Http2 => "HTTP2",
            },
        )
        .with("stat_prefix", &*manager.stat_prefix)
        .with(
            "rds",
            json!({
                "route_config_name": manager.route_config.name,
                "config_source": {"path_config_source": {"path": source}},
            }),
        )
        .with(
            "common_http_protocol_options",
            json!({"idle_timeout": timeout(manager.idle_timeout), "max_headers_count": manager.max_headers_count}),
        )
        .with("http_protocol_options", json!({"accept_http_10": manager.accept_http_10}))
        .with("stream_idle_timeout", timeout(manager.stream_idle_timeout))
        .maybe("request_timeout", manager.request_timeout.map(duration))
        .maybe("request_headers_timeout", manager.request_headers_timeout.map(duration))
        .with("max_request_headers_kb", manager.max_request_headers_kb);
    let config = with_request_options(config, manager).list("upgrade_configs", upgrades).with(
        "http_filters",
        json!([{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": any("extensions.filters.http.router.v3.Router")},
        }]),
    );
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": config.done()})
}

fn with_request_options(config: Object, manager: &HttpConnectionManager) -> Object {
    config
        .with("normalize_path", manager.normalize_path)
        .flag("merge_slashes", manager.merge_slashes)
        .with("use_remote_address", manager.use_remote_address)
        .with("generate_request_id", manager.generate_request_id)
        .with(
            "server_header_transformation",
            match manager.server_header {
                ServerHeader::Overwrite => "OVERWRITE",
                ServerHeader::AppendIfAbsent => "APPEND_IF_ABSENT",
                ServerHeader::PassThrough => "PASS_THROUGH",
            },
        )
        .with("server_name", String::from_utf8_lossy(manager.server_name.as_bytes()))
        .flag("strip_any_host_port", manager.strip_any_host_port)
}
