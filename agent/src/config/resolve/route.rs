//! Route tables, virtual hosts and rows.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Resolver, action, headers, matches};
use crate::config::diagnostic::Path;
use crate::config::raw::route as raw;
use crate::http::route::vhost::HostIndex;
use crate::http::route::{Action, Route, RouteConfig, VirtualHost};

/// Resolves `route_configs` into `resolver.route_configs`.
pub fn route_configs(resolver: &mut Resolver<'_>, configs: &[raw::RouteConfig], path: &Path<'_>) {
    for (index, config) in configs.iter().enumerate() {
        let path = path.index(index);
        if config.name.as_deref().unwrap_or_default().is_empty() {
            resolver.error(&path, "a route config needs a `name`, by which listeners call it");
        }
        add(resolver, config, config.name.as_deref().unwrap_or_default(), &path);
    }
}

/// Resolves one route table and makes it known as `name`.
pub fn add(
    resolver: &mut Resolver<'_>,
    raw: &raw::RouteConfig,
    name: &str,
    path: &Path<'_>,
) -> Option<Arc<RouteConfig>> {
    let name: Arc<str> = Arc::from(name);
    let mut config = route_config(resolver, raw, &name, path).map(Arc::new);
    if resolver.route_configs.all.contains_key(&name) {
        resolver.error(&path.field("name"), format!("there is another route config `{name}` before this one"));
        config = None;
    }
    resolver.route_configs.all.insert(name, config.clone());
    config
}

fn route_config(
    resolver: &mut Resolver<'_>,
    raw: &raw::RouteConfig,
    name: &Arc<str>,
    path: &Path<'_>,
) -> Option<RouteConfig> {
    let hosts_path = path.field("virtual_hosts");
    if raw.virtual_hosts.is_empty() {
        resolver.warn(path, format!("route config `{name}` has no virtual hosts: every request gets 404 (flag NR)"));
    }
    let scope = Scope { config: name, max_body_bytes: raw.max_direct_response_body_size_bytes };
    let virtual_hosts = resolver
        .each(&raw.virtual_hosts, &hosts_path, |resolver, host, path| virtual_host(resolver, &scope, host, path));
    let unique = unique_names(resolver, &raw.virtual_hosts, &hosts_path);
    let headers = headers::mutations(
        resolver,
        path,
        (&raw.request_headers_to_add, &raw.request_headers_to_remove),
        (&raw.response_headers_to_add, &raw.response_headers_to_remove),
    );
    let virtual_hosts = virtual_hosts?;
    let hosts = host_index(resolver, &virtual_hosts, &hosts_path);
    unique?;
    Some(RouteConfig {
        name: name.clone(),
        field_path: path.to_string(),
        hosts: hosts?,
        virtual_hosts,
        ignore_port_in_host_matching: raw.ignore_port_in_host_matching,
        headers: headers?,
        most_specific_header_mutations_wins: raw.most_specific_header_mutations_wins,
    })
}

fn unique_names(resolver: &mut Resolver<'_>, hosts: &[raw::VirtualHost], path: &Path<'_>) -> Option<()> {
    let mut seen = HashSet::new();
    let mut ok = Some(());
    for (index, host) in hosts.iter().enumerate() {
        if !seen.insert(&host.name) {
            let message = format!("Only unique names for virtual hosts are permitted: `{}` is taken", host.name);
            resolver.error(&path.index(index).field("name"), message);
            ok = None;
        }
    }
    ok
}

fn host_index(resolver: &mut Resolver<'_>, hosts: &[VirtualHost], path: &Path<'_>) -> Option<HostIndex> {
    let conflicts = match HostIndex::new(hosts) {
        Ok(index) => return Some(index),
        Err(conflicts) => conflicts,
    };
    for conflict in conflicts {
        let (domain, later) = (conflict.domain(), conflict.later());
        let claims = |host: &VirtualHost| &*host.name == later && host.domains.iter().any(|own| own == domain);
        let host = hosts.iter().rposition(claims).unwrap_or_default();
        let place = hosts.get(host).and_then(|host| host.domains.iter().rposition(|other| other == domain));
        let (host, field) = (path.index(host), "domains");
        resolver.error(&host.field(field).index(place.unwrap_or_default()), conflict.to_string());
    }
    None
}

/// What a virtual host takes from the route table around it.
struct Scope<'a> {
    config: &'a Arc<str>,
    max_body_bytes: u32,
}

fn virtual_host(
    resolver: &mut Resolver<'_>,
    scope: &Scope<'_>,
    raw: &raw::VirtualHost,
    path: &Path<'_>,
) -> Option<VirtualHost> {
    let name: Arc<str> = Arc::from(raw.name.as_str());
    let mut ok = Some(());
    if name.is_empty() {
        resolver.error(&path.field("name"), "a virtual host needs a name");
        ok = None;
    }
    if raw.domains.is_empty() {
        resolver.error(
            &path.field("domains"),
            "a virtual host needs at least one domain; `domains: [\"*\"]` takes every host",
        );
        ok = None;
    }
    let domains = resolver.each(&raw.domains, &path.field("domains"), domain);
    let mut index = 0;
    let routes = resolver.each(&raw.routes, &path.field("routes"), |resolver, row, path| {
        let row = route(resolver, scope, &name, row, index, path);
        index += 1;
        row
    });
    let headers = headers::mutations(
        resolver,
        path,
        (&raw.request_headers_to_add, &raw.request_headers_to_remove),
        (&raw.response_headers_to_add, &raw.response_headers_to_remove),
    );
    let retry_policy = resolver.maybe(raw.retry_policy.as_ref(), &path.field("retry_policy"), action::retry_policy);
    ok?;
    Some(VirtualHost {
        name,
        domains: domains?,
        routes: routes?,
        require_tls: raw.require_tls,
        headers: headers?,
        retry_policy: retry_policy?.map(Arc::new),
    })
}

/// Lower-cased; a `*` may only begin or end it.
fn domain(resolver: &mut Resolver<'_>, raw: &String, path: &Path<'_>) -> Option<String> {
    let inner = raw.strip_prefix('*').or_else(|| raw.strip_suffix('*')).unwrap_or(raw);
    let message = if raw.is_empty() {
        "a domain must not be empty".to_owned()
    } else if inner.contains('*') {
        format!("a `*` can begin or end a domain, once, found `{raw}`")
    } else if raw.contains(['/', ' ']) {
        format!("a domain is a host name, perhaps with a port, found `{raw}`")
    } else {
        return Some(raw.to_ascii_lowercase());
    };
    resolver.error(path, message);
    None
}

fn route(
    resolver: &mut Resolver<'_>,
    scope: &Scope<'_>,
    host: &Arc<str>,
    raw: &raw::Route,
    index: usize,
    path: &Path<'_>,
) -> Option<Route> {
    let one = resolver.exactly_one(
        path,
        &[
            ("route", raw.route.is_some()),
            ("redirect", raw.redirect.is_some()),
            ("direct_response", raw.direct_response.is_some()),
        ],
    );
    let matches = matches::route_match(resolver, &raw.matches, &path.field("match"));
    let template = matches.as_ref().map(matches::template);
    let forward = resolver.maybe(raw.route.as_ref(), &path.field("route"), |resolver, raw, path| {
        action::forward(resolver, raw, template, path).map(|forward| Action::Route(Box::new(forward)))
    });
    let redirect = resolver.maybe(raw.redirect.as_ref(), &path.field("redirect"), |resolver, raw, path| {
        action::redirect(resolver, raw, path).map(Action::Redirect)
    });
    let direct_path = path.field("direct_response");
    let direct = resolver.maybe(raw.direct_response.as_ref(), &direct_path, |resolver, raw, path| {
        action::direct_response(resolver, raw, scope.max_body_bytes, path).map(Action::DirectResponse)
    });
    let headers = headers::mutations(
        resolver,
        path,
        (&raw.request_headers_to_add, &raw.request_headers_to_remove),
        (&raw.response_headers_to_add, &raw.response_headers_to_remove),
    );
    one?;
    let action = forward?.or(redirect?).or(direct?)?;
    let name: Option<Arc<str>> = raw.name.as_deref().filter(|name| !name.is_empty()).map(Arc::from);
    let key = name.clone().unwrap_or_else(|| Arc::from(index.to_string()));
    let stats = resolver.runtime.stats.route((scope.config.clone(), host.clone(), key));
    Some(Route { index, name, matches: matches?, action, headers: headers?, stats })
}
