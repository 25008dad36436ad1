//! What a row does.

use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, StatusCode};

use super::matches::regex_message;
use super::{Resolver, hash_policy, headers, limit};
use crate::cluster::ClusterSpecifier;
use crate::config::diagnostic::Path;
use crate::config::raw::action as raw;
use crate::http::route::rewrite::RewriteError;
use crate::http::route::template::{PathTemplate, RewriteTemplate};
use crate::http::route::{
    DirectResponse, HostRewrite, PathRewrite, Redirect, RedirectPath, RetryOn, RetryPolicy, RouteAction,
};

/// Envoy's first and longest back-off.
const BASE_INTERVAL: Duration = Duration::from_millis(25);

/// Resolves `route`. `template` is the row's path template; `None` when the row's match is wrong itself.
pub fn forward(
    resolver: &mut Resolver<'_>,
    raw: &raw::RouteAction,
    template: Option<Option<&PathTemplate>>,
    path: &Path<'_>,
) -> Option<RouteAction> {
    let cluster = cluster(resolver, raw, path);
    let path_rewrite = path_rewrite(resolver, raw, template, path);
    let host_rewrite = host_rewrite(resolver, raw, path);
    let retry_policy = resolver.maybe(raw.retry_policy.as_ref(), &path.field("retry_policy"), retry_policy);
    let not_found = match raw.cluster_not_found_response_code {
        503 => Some(StatusCode::SERVICE_UNAVAILABLE),
        404 => Some(StatusCode::NOT_FOUND),
        500 => Some(StatusCode::INTERNAL_SERVER_ERROR),
        other => {
            let message = format!("must be 503, 404 or 500, found {other}");
            resolver.error(&path.field("cluster_not_found_response_code"), message);
            None
        }
    };
    let hash_policy = hash_policy::http(resolver, &raw.hash_policy, &path.field("hash_policy"));
    Some(RouteAction {
        cluster: cluster?,
        cluster_not_found_response_code: not_found?,
        path_rewrite: path_rewrite?,
        host_rewrite: host_rewrite?,
        append_x_forwarded_host: raw.append_x_forwarded_host,
        timeout: limit(raw.timeout),
        idle_timeout: raw.idle_timeout.map(limit),
        retry_policy: retry_policy?.map(Arc::new),
        hash_policy: hash_policy?,
    })
}

fn cluster(resolver: &mut Resolver<'_>, raw: &raw::RouteAction, path: &Path<'_>) -> Option<ClusterSpecifier> {
    let choices = [
        ("cluster", raw.cluster.is_some()),
        ("weighted_clusters", raw.weighted_clusters.is_some()),
        ("cluster_header", raw.cluster_header.is_some()),
    ];
    let one = resolver.exactly_one(path, &choices);
    let fixed = resolver.fixed_cluster(path, raw.cluster.as_ref(), raw.weighted_clusters.as_ref());
    let header = resolver.maybe(raw.cluster_header.as_ref(), &path.field("cluster_header"), |resolver, raw, path| {
        headers::header_name(resolver, raw, path).map(ClusterSpecifier::Header)
    });
    one?;
    fixed?.or(header?)
}

fn path_rewrite(
    resolver: &mut Resolver<'_>,
    raw: &raw::RouteAction,
    template: Option<Option<&PathTemplate>>,
    path: &Path<'_>,
) -> Option<Option<PathRewrite>> {
    let choices = [
        ("prefix_rewrite", raw.prefix_rewrite.is_some()),
        ("regex_rewrite", raw.regex_rewrite.is_some()),
        ("path_template_rewrite", raw.path_template_rewrite.is_some()),
    ];
    let one = resolver.at_most_one(path, &choices);
    let prefix = raw.prefix_rewrite.clone().map(PathRewrite::Prefix);
    let regex = resolver.maybe(raw.regex_rewrite.as_ref(), &path.field("regex_rewrite"), regex_rewrite);
    let rewrite = path.field("path_template_rewrite");
    let by_template = resolver.maybe(raw.path_template_rewrite.as_ref(), &rewrite, |resolver, raw, path| {
        let Some(template) = template? else {
            resolver.error(path, "needs `path_template` in the row's match, whose variables it uses");
            return None;
        };
        resolver.check(path, RewriteTemplate::new(raw, template)).map(PathRewrite::Template)
    });
    one?;
    Some(prefix.or(regex?).or(by_template?))
}

fn regex_rewrite(resolver: &mut Resolver<'_>, raw: &raw::RegexRewrite, path: &Path<'_>) -> Option<PathRewrite> {
    let source = &raw.pattern.0.regex;
    match PathRewrite::regex(source, &raw.substitution) {
        Err(RewriteError::Pattern(error)) => {
            resolver.error(&path.field("pattern"), regex_message(source, &error));
            None
        }
        rewrite => resolver.check(&path.field("substitution"), rewrite),
    }
}

fn host_rewrite(resolver: &mut Resolver<'_>, raw: &raw::RouteAction, path: &Path<'_>) -> Option<Option<HostRewrite>> {
    let choices = [
        ("host_rewrite_literal", raw.host_rewrite_literal.is_some()),
        ("auto_host_rewrite", raw.auto_host_rewrite),
        ("host_rewrite_header", raw.host_rewrite_header.is_some()),
    ];
    let one = resolver.at_most_one(path, &choices);
    let literal_path = path.field("host_rewrite_literal");
    let literal = resolver.maybe(raw.host_rewrite_literal.as_ref(), &literal_path, |resolver, raw, path| {
        authority(resolver, raw, path)?;
        HeaderValue::from_str(raw).ok().map(HostRewrite::Literal)
    });
    let header_path = path.field("host_rewrite_header");
    let header = resolver.maybe(raw.host_rewrite_header.as_ref(), &header_path, |resolver, raw, path| {
        headers::header_name(resolver, raw, path).map(HostRewrite::Header)
    });
    one?;
    Some(literal?.or(header?).or(raw.auto_host_rewrite.then_some(HostRewrite::Auto)))
}

/// A host, perhaps with a port.
fn authority(resolver: &mut Resolver<'_>, raw: &str, path: &Path<'_>) -> Option<Authority> {
    let host = raw.parse::<Authority>().ok().filter(|authority| !authority.as_str().contains('@'));
    if host.is_none() {
        resolver.error(path, format!("expected a host, perhaps with a port, found `{raw}`"));
    }
    host
}

/// Resolves a retry policy.
pub fn retry_policy(resolver: &mut Resolver<'_>, raw: &raw::RetryPolicy, path: &Path<'_>) -> Option<RetryPolicy> {
    let retry_on = &raw.retry_on.0;
    if retry_on.is_empty() {
        resolver.warn(path, "without `retry_on` nothing is tried again");
    }
    let codes_path = path.field("retriable_status_codes");
    let codes = resolver.each(&raw.retriable_status_codes, &codes_path, |resolver, code, path| {
        resolver.within(path, u32::from(*code), 100..=599)?;
        StatusCode::from_u16(*code).ok()
    });
    if retry_on.contains(&RetryOn::RetriableStatusCodes) == raw.retriable_status_codes.is_empty() {
        let message =
            "`retriable-status-codes` in `retry_on` and `retriable_status_codes` have an effect only together";
        resolver.warn(path, message);
    }
    let back_off_path = path.field("retry_back_off");
    let back_off = resolver.maybe(raw.retry_back_off.as_ref(), &back_off_path, |resolver, raw, path| {
        let base = resolver.positive(&path.field("base_interval"), raw.base_interval)?;
        let max = raw.max_interval.unwrap_or(base * 10);
        if max < base {
            resolver.error(&path.field("max_interval"), "must not be shorter than `base_interval`");
            return None;
        }
        Some((base, max))
    });
    let (base_interval, max_interval) = back_off?.unwrap_or((BASE_INTERVAL, BASE_INTERVAL * 10));
    Some(RetryPolicy {
        retry_on: retry_on.clone(),
        num_retries: raw.num_retries,
        per_try_timeout: raw.per_try_timeout.and_then(limit),
        retriable_status_codes: codes?,
        base_interval,
        max_interval,
    })
}

/// Resolves `redirect`.
pub fn redirect(resolver: &mut Resolver<'_>, raw: &raw::Redirect, path: &Path<'_>) -> Option<Redirect> {
    let schemes = [("https_redirect", raw.https_redirect), ("scheme_redirect", raw.scheme_redirect.is_some())];
    let one_scheme = resolver.at_most_one(path, &schemes);
    let paths = [
        ("path_redirect", raw.path_redirect.is_some()),
        ("prefix_rewrite", raw.prefix_rewrite.is_some()),
        ("regex_rewrite", raw.regex_rewrite.is_some()),
    ];
    let one_path = resolver.at_most_one(path, &paths);
    let scheme = resolver.maybe(raw.scheme_redirect.as_ref(), &path.field("scheme_redirect"), |resolver, raw, path| {
        let scheme = raw.parse::<Scheme>().map_err(|_| format!("`{raw}` is no scheme such as http or https"));
        resolver.check(path, scheme).map(|scheme| scheme.to_string())
    });
    let host = resolver.maybe(raw.host_redirect.as_ref(), &path.field("host_redirect"), |resolver, raw, path| {
        authority(resolver, raw, path).map(|_| raw.clone())
    });
    let port = resolver.maybe(raw.port_redirect.as_ref(), &path.field("port_redirect"), |resolver, raw, path| {
        resolver.within(path, u32::from(*raw), 1..=65535).map(|_| *raw)
    });
    let replace = resolver.maybe(raw.path_redirect.as_ref(), &path.field("path_redirect"), |resolver, raw, path| {
        if HeaderValue::from_str(raw).is_err() {
            resolver.error(path, format!("{raw:?} holds characters that a location cannot carry"));
            return None;
        }
        Some(RedirectPath::Replace(raw.clone()))
    });
    let prefix = raw.prefix_rewrite.clone().map(|prefix| RedirectPath::Rewrite(PathRewrite::Prefix(prefix)));
    let regex = resolver.maybe(raw.regex_rewrite.as_ref(), &path.field("regex_rewrite"), regex_rewrite);
    let to_itself = schemes.iter().chain(&paths).all(|(_, given)| !given)
        && raw.host_redirect.is_none()
        && raw.port_redirect.is_none()
        && !raw.strip_query;
    if to_itself {
        resolver.warn(path, "redirects to the very same location: nothing of it is changed");
    }
    one_scheme.and(one_path)?;
    Some(Redirect {
        scheme_redirect: scheme?.or(raw.https_redirect.then(|| "https".to_owned())),
        host_redirect: host?,
        port_redirect: port?,
        path: replace?.or(prefix).or(regex?.map(RedirectPath::Rewrite)),
        response_code: StatusCode::from_u16(raw.response_code.0).ok()?,
        strip_query: raw.strip_query,
    })
}

/// Resolves `direct_response`.
pub fn direct_response(
    resolver: &mut Resolver<'_>,
    raw: &raw::DirectResponse,
    max_body_bytes: u32,
    path: &Path<'_>,
) -> Option<DirectResponse> {
    let status = resolver.within(&path.field("status"), u32::from(raw.status), 200..=599);
    let (length, longest) = (raw.body.len(), usize::try_from(max_body_bytes).unwrap_or(usize::MAX));
    if length > longest {
        let message = format!(
            "response body size is {length} bytes; maximum is {longest} (max_direct_response_body_size_bytes of the route config)"
        );
        resolver.error(&path.field("body"), message);
        return None;
    }
    status?;
    let body = bytes::Bytes::from(raw.body.clone());
    Some(DirectResponse { status: StatusCode::from_u16(raw.status).ok()?, body })
}
