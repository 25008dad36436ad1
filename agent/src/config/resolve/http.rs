//! HTTP connection managers.

use std::sync::Arc;

use http::HeaderValue;

use super::{Resolver, limit, route};
use crate::config::diagnostic::Path;
use crate::config::raw::OrText;
use crate::config::raw::http::{Http, RouteConfigRef, Upgrade};
use crate::config::suggest;
use crate::http::HttpConnectionManager;
use crate::http::route::RouteConfig;

/// Envoy's bound of `max_request_headers_kb`.
const MAX_REQUEST_HEADERS_KB: u32 = 8192;

/// Resolves the HTTP filter of the filter chain called `chain` of the listener called `listener`.
pub fn manager(
    resolver: &mut Resolver<'_>,
    raw: &Http,
    listener: &str,
    chain: &str,
    path: &Path<'_>,
) -> Option<HttpConnectionManager> {
    let route_config = route_config(resolver, &raw.route_config, listener, chain, &path.field("route_config"));
    let kb = path.field("max_request_headers_kb");
    let max_request_headers_kb = resolver.within(&kb, raw.max_request_headers_kb, 1..=MAX_REQUEST_HEADERS_KB);
    let max_headers_count = resolver.within(&path.field("max_headers_count"), raw.max_headers_count, 1..=u32::MAX);
    let upgrades = resolver.each(&raw.upgrades, &path.field("upgrades"), upgrade);
    let server_name = HeaderValue::from_str(&raw.server_name);
    let server_name = resolver
        .check(&path.field("server_name"), server_name.map_err(|_| "holds characters that a header cannot carry"));
    let stat_prefix: Arc<str> = Arc::from(raw.stat_prefix.as_deref().unwrap_or(listener));
    Some(HttpConnectionManager {
        route_config: route_config?,
        codec_type: raw.codec_type,
        idle_timeout: limit(raw.idle_timeout),
        stream_idle_timeout: limit(raw.stream_idle_timeout),
        request_timeout: limit(raw.request_timeout),
        request_headers_timeout: limit(raw.request_headers_timeout),
        accept_http_10: raw.accept_http_10,
        max_request_headers_kb: max_request_headers_kb?,
        max_headers_count: max_headers_count?,
        upgrades: upgrades?,
        normalize_path: raw.normalize_path,
        merge_slashes: raw.merge_slashes,
        use_remote_address: raw.use_remote_address,
        generate_request_id: raw.generate_request_id,
        server_header: raw.server_header_transformation,
        server_name: server_name?,
        strip_any_host_port: raw.strip_any_host_port,
        stats: resolver.runtime.stats.http(&stat_prefix),
        stat_prefix,
    })
}

fn route_config(
    resolver: &mut Resolver<'_>,
    raw: &RouteConfigRef,
    listener: &str,
    chain: &str,
    path: &Path<'_>,
) -> Option<Arc<RouteConfig>> {
    let known = &resolver.route_configs.all;
    match raw {
        RouteConfigRef::Inline(config) => {
            let name = config.name.clone().unwrap_or_else(|| match known.contains_key(listener) {
                true => format!("{listener}/{chain}"),
                false => listener.to_owned(),
            });
            route::add(resolver, config, &name, path)
        }
        RouteConfigRef::Named(name) => {
            if let Some(config) = known.get(name.as_str()) {
                return config.clone();
            }
            if !resolver.report.is_undecoded_field("route_configs", "name") {
                let meant = suggest::did_you_mean(name, known.keys().map(|name| &**name));
                resolver.error(path, format!("there is no route config `{name}`{meant}"));
            }
            None
        }
    }
}

fn upgrade(resolver: &mut Resolver<'_>, OrText(raw): &OrText<Upgrade>, path: &Path<'_>) -> Option<String> {
    let name = raw.upgrade_type.to_ascii_lowercase();
    match name.as_str() {
        "" => resolver.error(path, "an upgrade needs a name, such as websocket"),
        "connect" => resolver.error(path, "CONNECT is no upgrade here: a route with `connect_matcher: true` takes it"),
        _ => return Some(name),
    }
    None
}
