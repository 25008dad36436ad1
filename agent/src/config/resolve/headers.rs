//! Changes of headers, at every scope.

use http::{HeaderName, HeaderValue};
use regex::Regex;

use super::Resolver;
use crate::config::diagnostic::Path;
use crate::config::raw::action::HeaderAddition as RawAddition;
use crate::http::route::{HeaderAddition, HeaderMutation, HeaderMutations};

/// What is added to and removed from headers of one direction.
type Raw<'a> = (&'a [RawAddition], &'a [String]);

/// Resolves the four fields of one scope.
pub fn mutations(
    resolver: &mut Resolver<'_>,
    path: &Path<'_>,
    request: Raw<'_>,
    response: Raw<'_>,
) -> Option<HeaderMutations> {
    let request = mutation(resolver, path, request, ["request_headers_to_add", "request_headers_to_remove"]);
    let response = mutation(resolver, path, response, ["response_headers_to_add", "response_headers_to_remove"]);
    Some(HeaderMutations { request: request?, response: response? })
}

fn mutation(resolver: &mut Resolver<'_>, path: &Path<'_>, raw: Raw<'_>, fields: [&str; 2]) -> Option<HeaderMutation> {
    let add = resolver.each(raw.0, &path.field(fields[0]), addition);
    let remove =
        resolver.each(raw.1, &path.field(fields[1]), |resolver, name, path| mutable_name(resolver, name, path));
    Some(HeaderMutation { add: add?, remove: remove? })
}

fn addition(resolver: &mut Resolver<'_>, raw: &RawAddition, path: &Path<'_>) -> Option<HeaderAddition> {
    let short = raw.key.is_some() || raw.value.is_some();
    resolver.at_most_one(path, &[("header", raw.header.is_some()), ("key` and `value", short)])?;
    let header = path.field("header");
    let (key, value, path) = match &raw.header {
        Some(long) => (Some(&long.key), long.value.as_str(), &header),
        None => (raw.key.as_ref(), raw.value.as_deref().unwrap_or_default(), path),
    };
    let Some(key) = key else {
        resolver.error(path, "the header's name is missing: write {key: NAME, value: VALUE}");
        return None;
    };
    let name = mutable_name(resolver, key, &path.field("key"));
    let value = header_value(resolver, value, &path.field("value"));
    Some(HeaderAddition { name: name?, value: value?, append_action: raw.append_action })
}

/// The name of a header that may be changed.
fn mutable_name(resolver: &mut Resolver<'_>, raw: &str, path: &Path<'_>) -> Option<HeaderName> {
    if raw.starts_with(':') || raw.eq_ignore_ascii_case("host") {
        resolver.error(path, format!(":-prefixed or host headers may not be modified, found `{raw}`: see `host_rewrite_literal` and the path rewrites"));
        return None;
    }
    header_name(resolver, raw, path)
}

/// The name of a header.
pub fn header_name(resolver: &mut Resolver<'_>, raw: &str, path: &Path<'_>) -> Option<HeaderName> {
    resolver.check(path, HeaderName::from_bytes(raw.as_bytes()).map_err(|_| format!("`{raw}` is no header name")))
}

/// A header's value. Envoy would fill in variables; here they are refused, rather than sent as they stand.
fn header_value(resolver: &mut Resolver<'_>, raw: &str, path: &Path<'_>) -> Option<HeaderValue> {
    let variable = Regex::new(r"%[A-Z][A-Z0-9_]*(\([^)]*\))?(:[0-9]+)?%").ok()?;
    if let Some(found) = variable.find(raw) {
        resolver.error(path, format!("variables are not supported, found {}", found.as_str()));
        return None;
    }
    let value = HeaderValue::from_str(raw).map_err(|_| format!("{raw:?} holds characters that a header cannot carry"));
    resolver.check(path, value)
}
