//! What ties requests and connections to endpoints.

use http::{HeaderName, HeaderValue};

use super::{Resolver, headers};
use crate::config::diagnostic::Path;
use crate::config::raw::OrText;
use crate::config::raw::action as raw;
use crate::config::raw::listener::TcpHashPolicy as RawTcpHashPolicy;
use crate::http::route::hash_policy::{HashCookie, HashOn, HashPolicy, HashRule};
use crate::listener::TcpHashPolicy;

const PSEUDO_HEADERS: [&str; 4] = [":authority", ":path", ":method", ":scheme"];

/// Resolves `hash_policy` of a route.
pub fn http(resolver: &mut Resolver<'_>, raw: &[raw::HashPolicy], path: &Path<'_>) -> Option<HashPolicy> {
    resolver.each(raw, path, rule).map(HashPolicy)
}

fn rule(resolver: &mut Resolver<'_>, raw: &raw::HashPolicy, path: &Path<'_>) -> Option<HashRule> {
    let choices = [
        ("header", raw.header.is_some()),
        ("cookie", raw.cookie.is_some()),
        ("connection_properties", raw.connection_properties.is_some()),
        ("query_parameter", raw.query_parameter.is_some()),
    ];
    let one = resolver.exactly_one(path, &choices);
    let header = resolver.maybe(raw.header.as_ref(), &path.field("header"), header);
    let cookie = resolver.maybe(raw.cookie.as_ref(), &path.field("cookie"), cookie);
    let properties = &path.field("connection_properties");
    let source_ip = resolver.maybe(raw.connection_properties.as_ref(), properties, |resolver, raw, path| {
        if !raw.source_ip {
            resolver.error(path, "`source_ip: true` is all that there is to hash of a connection");
            return None;
        }
        Some(HashOn::SourceIp)
    });
    let parameter = &path.field("query_parameter");
    let parameter = resolver.maybe(raw.query_parameter.as_ref(), parameter, |resolver, OrText(raw), path| {
        if raw.name.is_empty() {
            resolver.error(path, "a query parameter needs a name");
            return None;
        }
        Some(HashOn::QueryParameter(raw.name.clone()))
    });
    one?;
    let on = header?.or(cookie?).or(source_ip?).or(parameter?)?;
    Some(HashRule { on, terminal: raw.terminal })
}

fn header(resolver: &mut Resolver<'_>, OrText(raw): &OrText<raw::HashHeader>, path: &Path<'_>) -> Option<HashOn> {
    let name = raw.header_name.as_str();
    if PSEUDO_HEADERS.contains(&name) {
        return Some(HashOn::Header(name.to_owned()));
    }
    headers::header_name(resolver, name, path).map(|name| HashOn::Header(name.as_str().to_owned()))
}

fn cookie(resolver: &mut Resolver<'_>, OrText(raw): &OrText<raw::HashCookie>, path: &Path<'_>) -> Option<HashOn> {
    // A cookie's name is a token (RFC 6265 section 4.1.1), as a header's is, whose case counts.
    let name = match HeaderName::from_bytes(raw.name.as_bytes()) {
        Ok(_) => Some(()),
        Err(_) => {
            resolver.error(path, format!("`{}` is no name of a cookie", raw.name));
            None
        }
    };
    let place = path.field("path");
    if raw.path.contains(';') || HeaderValue::from_str(&raw.path).is_err() {
        resolver.error(&place, format!("{:?} holds characters that the path of a cookie cannot", raw.path));
        return None;
    }
    if raw.ttl.is_none() && !raw.path.is_empty() {
        resolver.warn(&place, "without `ttl` no cookie is made, and nothing has this path");
    }
    name?;
    Some(HashOn::Cookie(HashCookie { name: raw.name.clone(), ttl: raw.ttl, path: raw.path.clone() }))
}

/// Resolves `hash_policy` of a TCP proxy; the inner `None` when there is none.
pub fn tcp(resolver: &mut Resolver<'_>, raw: &[RawTcpHashPolicy], path: &Path<'_>) -> Option<Option<TcpHashPolicy>> {
    let policies = resolver.each(raw, path, |resolver, raw, path| {
        if !raw.source_ip.0 {
            resolver.error(&path.field("source_ip"), "must be true (or `{}`): there is nothing else to hash");
            return None;
        }
        Some(TcpHashPolicy::SourceIp)
    });
    if raw.len() > 1 {
        resolver.error(&path.index(1), "a TCP proxy hashes one thing: the first");
        return None;
    }
    policies.map(|policies| policies.first().copied())
}
