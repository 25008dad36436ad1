//! Listeners and their filter chains.

use std::sync::Arc;

use super::{Resolver, hash_policy, http, limit, receivers};
use crate::config::diagnostic::Path;
use crate::config::raw::{Config, listener as raw};
use crate::dispatch::qualify;
use crate::listener::chain::{ChainMatch, FilterChain, FilterChains, TransportProtocol};
use crate::listener::dispatch::{ListenerConflict, Listeners};
use crate::listener::{
    Binding, Dispatch, HandOff, Listener, ListenerFilter, NetworkFilter, OnFiltersTimeout, ReusePort, TcpProxy,
};

/// Resolves all listeners.
pub fn listeners(resolver: &mut Resolver<'_>, config: &Config, path: &Path<'_>) -> Option<Listeners> {
    let listeners = &config.listeners;
    let proxy_serves = config.intercept.as_ref().is_some_and(|intercept| !intercept.redirect_to.is_empty());
    if listeners.is_empty() && !proxy_serves {
        resolver.warn(path, "there are no listeners: this configuration serves nothing");
    }
    let targets = receivers::listeners(resolver, config, path);
    let resolved = resolver.each(listeners, path, |resolver, raw, path| listener(resolver, raw, path).map(Arc::new));
    let unique = unique(resolver, listeners, path);
    targets.and(unique)?;
    Listeners::new(resolved?).ok()
}

/// Checks that no two listeners have one name, no two of a direction one address, and no two one socket's. It looks at what is written, since a listener that is wrong
/// otherwise may still be in conflict with another; the words are the model's.
fn unique(resolver: &mut Resolver<'_>, listeners: &[raw::Listener], path: &Path<'_>) -> Option<()> {
    let list = *path;
    // One whose address could not be decoded stands at a placeholder, which is in no conflict.
    let unknown: Vec<bool> = (0..listeners.len())
        .map(|index| resolver.report.is_undecoded(&list.index(index).field("address").to_string()))
        .collect();
    let earlier = |index: usize| (0..index).filter(|earlier| !unknown[*earlier]).map(|earlier| &listeners[earlier]);
    let mut ok = Some(());
    for (index, later) in listeners.iter().enumerate() {
        let path = path.index(index);
        let name: Arc<str> = Arc::from(later.name.as_str());
        let earlier: Vec<_> = earlier(index).collect();
        let clashes = |earlier: &raw::Listener| {
            earlier.address == later.address
                && (earlier.traffic_direction == later.traffic_direction || earlier.bind_to_port && later.bind_to_port)
        };
        if let Some(existing) = earlier.iter().find(|earlier| clashes(earlier)) {
            let existing = Arc::from(existing.name.as_str());
            let conflict = ListenerConflict::Address { name: name.clone(), address: later.address, existing };
            resolver.error(&path.field("address"), conflict.to_string());
            ok = None;
        }
        if earlier.iter().any(|earlier| earlier.name == later.name) {
            resolver.error(&path.field("name"), ListenerConflict::Name { name }.to_string());
            ok = None;
        }
    }
    ok
}

fn listener(resolver: &mut Resolver<'_>, raw: &raw::Listener, path: &Path<'_>) -> Option<Listener> {
    let name: Arc<str> = Arc::from(raw.name.as_str());
    let mut ok = Some(());
    if name.is_empty() {
        resolver.error(&path.field("name"), "a listener needs a name");
        ok = None;
    }
    if !raw.bind_to_port && raw.address.port() == 0 {
        resolver
            .error(&path.field("address"), "no connection goes to port 0: give the port of the original destination");
        ok = None;
    }
    if !raw.bind_to_port && raw.use_original_dst {
        let message =
            "has no effect without a socket: a connection is handed on once, by the listener that accepted it";
        resolver.warn(&path.field("use_original_dst"), message);
    }
    let backlog = resolver.within(&path.field("tcp_backlog_size"), raw.tcp_backlog_size, 1..=i32::MAX.unsigned_abs());
    let filters = listener_filters(resolver, raw, path);
    let chains = chains(resolver, raw, path);
    let binding = match raw.bind_to_port {
        true => Binding::Socket {
            reuse_port: if raw.reuse_port { ReusePort::PerWorker } else { ReusePort::Shared },
            backlog: backlog?,
        },
        false => Binding::Virtual,
    };
    ok?;
    let listener = Listener {
        address: crate::addr::canonical(raw.address),
        direction: raw.traffic_direction,
        binding,
        dispatch: raw.dispatch,
        hand_off: if raw.use_original_dst { HandOff::ByOriginalDst } else { HandOff::Stay },
        listener_filters: filters?,
        listener_filters_timeout: limit(raw.listener_filters_timeout),
        on_filters_timeout: match raw.continue_on_listener_filters_timeout {
            true => OnFiltersTimeout::Continue,
            false => OnFiltersTimeout::Close,
        },
        chains: chains?,
        stats: resolver.runtime.stats.listener(&name),
        name,
    };
    can_dispatch(resolver, &listener, path)?;
    Some(listener)
}

/// The kernel can do what `dispatch` asks of it.
fn can_dispatch(resolver: &mut Resolver<'_>, listener: &Listener, path: &Path<'_>) -> Option<()> {
    let asked = listener.dispatch == Dispatch::Kernel;
    let obstacles = if asked { qualify::obstacles(listener) } else { Vec::new() };
    for obstacle in &obstacles {
        let message = format!("the kernel cannot dispatch this listener: {obstacle}");
        resolver.error(&path.field("dispatch"), message);
    }
    obstacles.is_empty().then_some(())
}

fn listener_filters(resolver: &mut Resolver<'_>, raw: &raw::Listener, path: &Path<'_>) -> Option<Vec<ListenerFilter>> {
    let path = path.field("listener_filters");
    let filters = resolver.each(&raw.listener_filters, &path, |_, filter, _| Some(*filter))?;
    for (index, filter) in filters.iter().enumerate() {
        if filters[..index].contains(filter) {
            resolver.error(&path.index(index), format!("`{}` is listed twice", filter.name()));
            return None;
        }
    }
    if let [ListenerFilter::HttpInspector, ListenerFilter::TlsInspector] = filters[..] {
        let message = "`http_inspector` waits for plain text before TLS is looked for: put `tls_inspector` first";
        resolver.warn(&path, message);
    }
    Some(filters)
}

fn chains(resolver: &mut Resolver<'_>, raw: &raw::Listener, path: &Path<'_>) -> Option<FilterChains> {
    if raw.filter_chains.is_empty() && raw.default_filter_chain.is_none() {
        resolver.error(
            path,
            "a listener needs `filter_chains` or a `default_filter_chain`: it would close every connection",
        );
        return None;
    }
    let list = path.field("filter_chains");
    let mut index = 0;
    let all = resolver.each(&raw.filter_chains, &list, |resolver, chain, path| {
        let chain = filter_chain(resolver, raw, chain, Some(index), path);
        index += 1;
        chain.map(Arc::new)
    });
    let default = path.field("default_filter_chain");
    let default = resolver.maybe(raw.default_filter_chain.as_ref(), &default, |resolver, chain, path| {
        if chain.matches.is_some() {
            resolver.error(
                &path.field("match"),
                "the default filter chain has no criteria: it serves what no other chain does",
            );
        }
        filter_chain(resolver, raw, chain, None, path).map(Arc::new)
    });
    let (all, default) = (all?, default?);
    let labels: Vec<_> = all.iter().map(|chain| chain.label()).collect();
    match FilterChains::new(all, default) {
        Ok(chains) => Some(chains),
        Err(conflicts) => {
            for conflict in conflicts {
                let later = conflict.later();
                let index = labels.iter().rposition(|label| label == later).unwrap_or_default();
                resolver.error(&list.index(index), conflict.to_string());
            }
            None
        }
    }
}

fn filter_chain(
    resolver: &mut Resolver<'_>,
    listener: &raw::Listener,
    raw: &raw::FilterChain,
    index: Option<usize>,
    path: &Path<'_>,
) -> Option<FilterChain> {
    let one = resolver.exactly_one(path, &[("tcp_proxy", raw.tcp_proxy.is_some()), ("http", raw.http.is_some())]);
    let matches = match &raw.matches {
        Some(matches) => chain_match(resolver, listener, matches, &path.field("match")),
        None => Some(ChainMatch::default()),
    };
    let tcp = resolver.maybe(raw.tcp_proxy.as_ref(), &path.field("tcp_proxy"), tcp_proxy);
    let label = raw.name.clone().or(index.map(|index| index.to_string())).unwrap_or_else(|| "default".to_owned());
    let http = resolver.maybe(raw.http.as_ref(), &path.field("http"), |resolver, raw, path| {
        http::manager(resolver, raw, &listener.name, &label, path)
    });
    one?;
    let (tcp, http) = (tcp?.map(NetworkFilter::Tcp), http?.map(|http| NetworkFilter::Http(Arc::new(http))));
    Some(FilterChain { name: raw.name.as_deref().map(Arc::from), index, matches: matches?, filter: tcp.or(http)? })
}

fn chain_match(
    resolver: &mut Resolver<'_>,
    listener: &raw::Listener,
    raw: &raw::ChainMatch,
    path: &Path<'_>,
) -> Option<ChainMatch> {
    let mut ok = Some(());
    if raw.destination_port == Some(0) {
        resolver.error(&path.field("destination_port"), "must be 1 to 65535, found 0");
        ok = None;
    }
    let server_names = resolver.each(&raw.server_names, &path.field("server_names"), server_name);
    let protocols = &path.field("application_protocols");
    let application_protocols = resolver.each(&raw.application_protocols, protocols, |resolver, protocol, path| {
        if protocol.is_empty() {
            resolver.error(path, "an application protocol needs a name, such as http/1.1 or h2");
            return None;
        }
        Some(protocol.clone())
    });
    let source_ports = resolver.each(&raw.source_ports, &path.field("source_ports"), |resolver, port, path| {
        resolver.within(path, u32::from(*port), 1..=65535).map(|_| *port)
    });
    warn_of_missing_inspectors(resolver, listener, raw, path);
    ok?;
    Some(ChainMatch {
        destination_port: raw.destination_port,
        prefix_ranges: raw.prefix_ranges.clone(),
        server_names: server_names?,
        transport_protocol: raw.transport_protocol,
        application_protocols: application_protocols?,
        direct_source_prefix_ranges: raw.direct_source_prefix_ranges.clone(),
        source_type: raw.source_type,
        source_prefix_ranges: raw.source_prefix_ranges.clone(),
        source_ports: source_ports?,
    })
}

/// Lower-cased; Envoy refuses the same.
fn server_name(resolver: &mut Resolver<'_>, raw: &String, path: &Path<'_>) -> Option<String> {
    let rest = raw.strip_prefix("*.").unwrap_or(raw);
    if rest.is_empty() || rest.contains('*') {
        let message = format!(
            "partial wildcards are not supported in server_names, found `{raw}`: write a whole name, or `*.` and the end of one"
        );
        resolver.error(path, message);
        return None;
    }
    Some(raw.to_ascii_lowercase())
}

fn warn_of_missing_inspectors(
    resolver: &mut Resolver<'_>,
    listener: &raw::Listener,
    raw: &raw::ChainMatch,
    path: &Path<'_>,
) {
    let tls = listener.listener_filters.contains(&ListenerFilter::TlsInspector);
    let http = listener.listener_filters.contains(&ListenerFilter::HttpInspector);
    let never = |field: &str, filter: &str| format!("`{field}` never matches without `listener_filters: [{filter}]`");
    if !tls && !raw.server_names.is_empty() {
        resolver.warn(&path.field("server_names"), never("server_names", "tls_inspector"));
    }
    if !tls && raw.transport_protocol == Some(TransportProtocol::Tls) {
        resolver.warn(&path.field("transport_protocol"), never("transport_protocol: tls", "tls_inspector"));
    }
    if !tls && !http && !raw.application_protocols.is_empty() {
        let message = never("application_protocols", "tls_inspector, http_inspector");
        resolver.warn(&path.field("application_protocols"), message);
    }
}

fn tcp_proxy(resolver: &mut Resolver<'_>, raw: &raw::TcpProxy, path: &Path<'_>) -> Option<TcpProxy> {
    let choices = [("cluster", raw.cluster.is_some()), ("weighted_clusters", raw.weighted_clusters.is_some())];
    let one = resolver.exactly_one(path, &choices);
    let cluster = resolver.fixed_cluster(path, raw.cluster.as_ref(), raw.weighted_clusters.as_ref());
    let attempts = resolver.within(&path.field("max_connect_attempts"), raw.max_connect_attempts, 1..=u32::MAX);
    let longest = path.field("max_downstream_connection_duration");
    let longest = resolver.maybe(raw.max_downstream_connection_duration.as_ref(), &longest, |resolver, raw, path| {
        resolver.positive(path, *raw)
    });
    let hash_policy = hash_policy::tcp(resolver, &raw.hash_policy, &path.field("hash_policy"));
    one?;
    Some(TcpProxy {
        cluster: cluster??,
        idle_timeout: limit(raw.idle_timeout),
        max_connect_attempts: attempts?,
        max_downstream_connection_duration: longest?,
        hash_policy: hash_policy?,
    })
}
