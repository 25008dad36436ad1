//! Clusters: where their endpoints come from, and whether they are in good health.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::{Resolver, lb_policy, limit};
use crate::addr::EndpointAddr;
use crate::cluster::endpoint::{EndpointSet, WeightedEndpoint};
use crate::cluster::{CircuitBreakers, Cluster, Discovery, DnsName, HealthCheck, HealthCheckKind};
use crate::config::diagnostic::Path;
use crate::config::raw::cluster as raw;
use crate::config::raw::{Hex, OrText};
use crate::config::value::Scalar;

/// Resolves all clusters into `resolver.clusters`.
pub fn clusters(resolver: &mut Resolver<'_>, clusters: &[raw::Cluster], path: &Path<'_>) {
    for (index, raw) in clusters.iter().enumerate() {
        let path = path.index(index);
        let cluster = cluster(resolver, raw, &path).map(Arc::new);
        let name: Arc<str> = Arc::from(raw.name.as_str());
        if resolver.clusters.all.contains_key(&name) {
            resolver.error(&path.field("name"), format!("there is another cluster `{name}` before this one"));
        }
        resolver.clusters.all.insert(name, cluster);
    }
}

fn cluster(resolver: &mut Resolver<'_>, raw: &raw::Cluster, path: &Path<'_>) -> Option<Cluster> {
    let name: Arc<str> = Arc::from(raw.name.as_str());
    if name.is_empty() {
        resolver.error(&path.field("name"), "a cluster needs a name");
    }
    let lb_policy = lb_policy::lb_policy(resolver, raw, path);
    let endpoints = discovery(resolver, raw, &name, path);
    let connect_timeout = resolver.positive(&path.field("connect_timeout"), raw.connect_timeout);
    let health_checks = resolver.each(&raw.health_checks, &path.field("health_checks"), health_check);
    let panic_path = path.field("healthy_panic_threshold");
    let panic = resolver.within(&panic_path, raw.healthy_panic_threshold.into(), 0..=100);
    let max_requests = resolver.maybe(
        raw.max_requests_per_connection.as_ref(),
        &path.field("max_requests_per_connection"),
        |r, n, p| r.within(p, *n, 1..=u32::MAX),
    );
    if raw.kind == raw::ClusterType::OriginalDst && !raw.health_checks.is_empty() {
        resolver.error(&path.field("health_checks"), "a cluster of type original_dst has no endpoints to check");
    }
    panic?;
    let (discovery, endpoints) = endpoints?;
    let lb_policy = lb_policy?;
    Some(Cluster {
        discovery,
        lb_policy,
        connect_timeout: connect_timeout?,
        protocol: raw.protocol,
        health_checks: health_checks?,
        healthy_panic_threshold: raw.healthy_panic_threshold,
        circuit_breakers: circuit_breakers(&raw.circuit_breakers),
        idle_timeout: limit(raw.idle_timeout),
        max_requests_per_connection: max_requests?,
        endpoints: ArcSwap::from_pointee(EndpointSet::balanced(endpoints, raw.healthy_panic_threshold, lb_policy)),
        stats: resolver.runtime.stats.cluster(&name),
        name,
    })
}

/// Where the endpoints come from, and those that are known already.
fn discovery(
    resolver: &mut Resolver<'_>,
    raw: &raw::Cluster,
    name: &Arc<str>,
    path: &Path<'_>,
) -> Option<(Discovery, Vec<WeightedEndpoint>)> {
    if resolver.report.is_undecoded(&path.field("type").to_string()) {
        return None;
    }
    let endpoints = path.field("endpoints");
    let dns_only = only_for_strict_dns(resolver, raw, path);
    match raw.kind {
        raw::ClusterType::OriginalDst => {
            if !raw.endpoints.is_empty() {
                let message = "a cluster of type original_dst goes where the client wanted to go: it has no endpoints";
                resolver.error(&endpoints, message);
            }
            dns_only.map(|()| (Discovery::OriginalDst, Vec::new()))
        }
        raw::ClusterType::Static => {
            let members = resolver.each(&raw.endpoints, &endpoints, |resolver, OrText(raw), path| {
                let address = static_address(resolver, raw, path);
                let weight = weight(resolver, raw, path);
                let (address, weight) = (EndpointAddr::new(address?), weight?);
                Some(WeightedEndpoint { endpoint: resolver.runtime.endpoints.endpoint(name, address, None), weight })
            });
            warn_of_odd_lists(resolver, raw, path);
            dns_only.and(members).map(|members| (Discovery::Static, members))
        }
        raw::ClusterType::StrictDns => {
            let names = resolver.each(&raw.endpoints, &endpoints, dns_name);
            let refresh_rate = raw.dns_refresh_rate.unwrap_or(Duration::from_secs(5));
            let refresh_rate = resolver.positive(&path.field("dns_refresh_rate"), refresh_rate);
            warn_of_odd_lists(resolver, raw, path);
            let discovery = Discovery::StrictDns {
                names: names?,
                refresh_rate: refresh_rate?,
                respect_dns_ttl: raw.respect_dns_ttl.unwrap_or_default(),
                lookup_family: raw.dns_lookup_family.unwrap_or_default(),
            };
            Some((discovery, Vec::new()))
        }
    }
}

/// Refuses DNS settings where nothing is resolved.
fn only_for_strict_dns(resolver: &mut Resolver<'_>, raw: &raw::Cluster, path: &Path<'_>) -> Option<()> {
    if raw.kind == raw::ClusterType::StrictDns {
        return Some(());
    }
    let given = [
        ("dns_refresh_rate", raw.dns_refresh_rate.is_some()),
        ("respect_dns_ttl", raw.respect_dns_ttl.is_some()),
        ("dns_lookup_family", raw.dns_lookup_family.is_some()),
    ];
    let mut ok = Some(());
    for (field, _) in given.iter().filter(|(_, given)| *given) {
        resolver.error(&path.field(field), format!("`{field}` has a meaning for `type: strict_dns` only"));
        ok = None;
    }
    ok
}

fn warn_of_odd_lists(resolver: &mut Resolver<'_>, raw: &raw::Cluster, path: &Path<'_>) {
    let path = path.field("endpoints");
    if raw.endpoints.is_empty() {
        resolver.warn(
            &path,
            format!(
                "cluster `{}` has no endpoints: requests that go there get 503, connections are reset (flag UH)",
                raw.name
            ),
        );
    }
    let mut seen = HashSet::new();
    for (index, OrText(endpoint)) in raw.endpoints.iter().enumerate() {
        if !seen.insert(&endpoint.address) {
            resolver.warn(&path.index(index), format!("{} is listed twice", endpoint.address));
        }
    }
}

fn weight(resolver: &mut Resolver<'_>, raw: &raw::Endpoint, path: &Path<'_>) -> Option<u32> {
    resolver.within(&path.field("weight"), raw.weight, 1..=128)
}

fn static_address(resolver: &mut Resolver<'_>, raw: &raw::Endpoint, path: &Path<'_>) -> Option<SocketAddr> {
    let text = &raw.address;
    let message = match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => return Some(address),
        Ok(_) => format!("the port of `{text}` must be 1 to 65535"),
        Err(_) => match host_and_port(text) {
            Ok(_) => format!(
                "`{text}` is a name, and the endpoints of a static cluster are IP addresses: did you mean `type: strict_dns`?"
            ),
            Err(_) => <SocketAddr as Scalar>::parse(text).err().unwrap_or_default(),
        },
    };
    resolver.error(path, message);
    None
}

fn dns_name(resolver: &mut Resolver<'_>, OrText(raw): &OrText<raw::Endpoint>, path: &Path<'_>) -> Option<DnsName> {
    let weight = weight(resolver, raw, path);
    let (host, port) = resolver.check(path, host_and_port(&raw.address))?;
    Some(DnsName { host, port, weight: weight? })
}

/// Splits `HOST:PORT`; the host is a name (RFC 1123, and underscores) or an IP address.
fn host_and_port(text: &str) -> Result<(String, u16), String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip().to_string(), address.port())).and_then(|found: (String, u16)| match found.1 {
            0 => Err(format!("the port of `{text}` must be 1 to 65535")),
            _ => Ok(found),
        });
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("the port of `{text}` is missing"));
    }
    let wrong = |what: &str| format!("expected HOST:PORT such as shop.internal:8080, found `{text}`: {what}");
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("the port must be 1 to 65535"))?;
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(wrong("this is no host name"));
    }
    Ok((host.to_owned(), port))
}

fn health_check(resolver: &mut Resolver<'_>, raw: &raw::HealthCheck, path: &Path<'_>) -> Option<HealthCheck> {
    let one = resolver.exactly_one(path, &[("tcp", raw.tcp.is_some()), ("http", raw.http.is_some())]);
    let timeout = resolver.positive(&path.field("timeout"), raw.timeout);
    let interval = resolver.positive(&path.field("interval"), raw.interval);
    let unhealthy_threshold =
        resolver.within(&path.field("unhealthy_threshold"), raw.unhealthy_threshold, 1..=u32::MAX);
    let healthy_threshold = resolver.within(&path.field("healthy_threshold"), raw.healthy_threshold, 1..=u32::MAX);
    let tcp = raw.tcp.as_ref().map(|tcp| HealthCheckKind::Tcp {
        send: tcp.send.as_ref().map(|Hex(bytes)| bytes.clone()),
        receive: tcp.receive.iter().map(|Hex(bytes)| bytes.clone()).collect(),
    });
    let http = resolver.maybe(raw.http.as_ref(), &path.field("http"), http_check);
    one?;
    Some(HealthCheck {
        timeout: timeout?,
        interval: interval?,
        interval_jitter: raw.interval_jitter,
        unhealthy_threshold: unhealthy_threshold?,
        healthy_threshold: healthy_threshold?,
        kind: http?.or(tcp)?,
    })
}

fn http_check(resolver: &mut Resolver<'_>, raw: &raw::HttpHealthCheck, path: &Path<'_>) -> Option<HealthCheckKind> {
    let uri = match raw.path.parse::<http::uri::PathAndQuery>() {
        Ok(_) if raw.path.starts_with('/') => Some(()),
        _ => {
            resolver.error(&path.field("path"), format!("must be a path beginning with `/`, found `{}`", raw.path));
            None
        }
    };
    let host = match raw.host.as_deref().map(http::HeaderValue::from_str) {
        Some(Err(_)) => {
            resolver.error(&path.field("host"), "holds characters that a header cannot carry");
            None
        }
        _ => Some(()),
    };
    let expected = resolver.each(&raw.expected_statuses, &path.field("expected_statuses"), status_range);
    let retriable = resolver.each(&raw.retriable_statuses, &path.field("retriable_statuses"), status_range);
    uri.and(host)?;
    Some(HealthCheckKind::Http {
        path: raw.path.clone(),
        host: raw.host.clone(),
        expected_statuses: expected?,
        retriable_statuses: retriable?,
    })
}

fn status_range(resolver: &mut Resolver<'_>, raw: &raw::Int64Range, path: &Path<'_>) -> Option<(u16, u16)> {
    let status = |number: i64| u16::try_from(number).ok().filter(|status| (100..=600).contains(status));
    match (status(raw.start), status(raw.end)) {
        (Some(start), Some(end)) if start < end => Some((start, end)),
        _ => {
            let message = format!(
                "must be a range of statuses with 100 <= start < end <= 600 (end is beyond it), found {} to {}",
                raw.start, raw.end
            );
            resolver.error(path, message);
            None
        }
    }
}

fn circuit_breakers(raw: &raw::CircuitBreakers) -> CircuitBreakers {
    CircuitBreakers {
        max_connections: raw.max_connections,
        max_pending_requests: raw.max_pending_requests,
        max_requests: raw.max_requests,
        max_retries: raw.max_retries,
    }
}
