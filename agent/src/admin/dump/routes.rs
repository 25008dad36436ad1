//! Route tables as `envoy.config.route.v3.RouteConfiguration`.

use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use super::hash;
use super::listeners::cluster_specifier;
use super::proto::{Object, any, duration, timeout};
use crate::http::route::{
    Action, AppendAction, DirectResponse, HeaderMatch, HeaderMutation, HeaderMutations, HeaderValueMatch, HostRewrite,
    PathMatch, PathRewrite, QueryMatch, QueryValueMatch, Redirect, RedirectPath, RequireTls, RetryOn, RetryPolicy,
    Route, RouteAction, RouteConfig, RouteMatch, StringMatch, StringMatchKind, VirtualHost,
};
use crate::snapshot::Snapshot;
use crate::workload::WorkloadMatch;

/// All route tables, by name.
pub fn all(snapshot: &Snapshot) -> Vec<(&str, Value)> {
    snapshot.route_configs.values().map(|one| (&*one.name, route_config(one))).collect()
}

fn route_config(config: &RouteConfig) -> Value {
    let object = Object::new()
        .with("@type", any("config.route.v3.RouteConfiguration"))
        .with("name", &*config.name)
        .list("virtual_hosts", config.virtual_hosts.iter().map(virtual_host).collect())
        .flag("ignore_port_in_host_matching", config.ignore_port_in_host_matching)
        .flag("most_specific_header_mutations_wins", config.most_specific_header_mutations_wins);
    with_mutations(object, &config.headers).done()
}

fn virtual_host(host: &VirtualHost) -> Value {
    let object = Object::new()
        .with("name", &*host.name)
        .list("domains", host.domains.clone())
        .list("routes", host.routes.iter().map(route).collect())
        .maybe(
            "require_tls",
            match host.require_tls {
                RequireTls::None => None,
                RequireTls::ExternalOnly => Some("EXTERNAL_ONLY"),
                RequireTls::All => Some("ALL"),
            },
        )
        .maybe("retry_policy", host.retry_policy.as_deref().map(retry_policy));
    with_mutations(object, &host.headers).done()
}

/// One row.
pub fn route(route: &Route) -> Value {
    let object = Object::new()
        .maybe("name", route.name.as_deref())
        .with("match", route_match(&route.matches))
        .maybe("metadata", route.matches.source_pod.as_ref().map(only_from));
    let object = match &route.action {
        Action::Route(action) => object.with("route", route_action(action)),
        Action::Redirect(action) => object.with("redirect", redirect(action)),
        Action::DirectResponse(action) => object.with("direct_response", direct_response(action)),
    };
    with_mutations(object, &route.headers).done()
}

fn route_match(matches: &RouteMatch) -> Value {
    let object = Object::new();
    let object = match &matches.path {
        PathMatch::Prefix(prefix) => object.with("prefix", prefix.as_str()),
        PathMatch::Exact(path) => object.with("path", path.as_str()),
        PathMatch::SafeRegex(regex) => object.with("safe_regex", json!({"regex": regex.source()})),
        PathMatch::PathSeparatedPrefix(prefix) => object.with("path_separated_prefix", prefix.as_str()),
        PathMatch::Template(template) => object.with(
            "path_match_policy",
            json!({
                "name": "envoy.path.match.uri_template.uri_template_matcher",
                "typed_config": {
                    "@type": any("extensions.path.match.uri_template.v3.UriTemplateMatchConfig"),
                    "path_template": template.source(),
                },
            }),
        ),
        PathMatch::Connect => object.with("connect_matcher", json!({})),
    };
    let headers = method_match(&matches.methods).into_iter().chain(matches.headers.iter().map(header_match));
    object
        .maybe("case_sensitive", (!matches.case_sensitive).then_some(false))
        .list("headers", headers.collect())
        .list("query_parameters", matches.query_parameters.iter().map(query_match).collect())
        .maybe("grpc", matches.grpc.then(|| json!({})))
        .maybe(
            "runtime_fraction",
            matches
                .runtime_fraction_per_million
                .map(|numerator| json!({"default_value": {"numerator": numerator, "denominator": "MILLION"}})),
        )
        .done()
}

/// Envoy has no such condition: its metadata has room for what others know.
fn only_from(pod: &WorkloadMatch) -> Value {
    let source_pod = Object::new()
        .maybe("namespace", pod.namespace.as_deref())
        .maybe("name", pod.name.as_deref())
        .maybe("labels", (!pod.labels.is_empty()).then(|| json!(pod.labels)))
        .done();
    json!({"filter_metadata": {"waylay": {"source_pod": source_pod}}})
}

/// Envoy has no field for methods: they are a condition on `:method`.
fn method_match(methods: &[Method]) -> Option<Value> {
    let names: Vec<_> = methods.iter().map(Method::as_str).collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(json!({"name": ":method", "string_match": {"exact": one}})),
        several => Some(json!({"name": ":method", "string_match": {"safe_regex": {"regex": several.join("|")}}})),
    }
}

fn header_match(header: &HeaderMatch) -> Value {
    let object = Object::new().with("name", header.name.as_str());
    match &header.value {
        HeaderValueMatch::Present(present) => object.with("present_match", *present),
        // 64-bit numbers are strings in protobuf's JSON.
        HeaderValueMatch::Range { start, end } => {
            object.with("range_match", json!({"start": start.to_string(), "end": end.to_string()}))
        }
        HeaderValueMatch::String(text) => object.with("string_match", string_match(text)),
    }
    .flag("invert_match", header.invert)
    .flag("treat_missing_header_as_empty", header.treat_missing_header_as_empty)
    .done()
}

fn query_match(query: &QueryMatch) -> Value {
    let object = Object::new().with("name", query.name.as_str());
    match &query.value {
        QueryValueMatch::Present(present) => object.with("present_match", *present),
        QueryValueMatch::String(text) => object.with("string_match", string_match(text)),
    }
    .done()
}

fn string_match(text: &StringMatch) -> Value {
    let object = Object::new();
    match &text.kind {
        StringMatchKind::Exact(text) => object.with("exact", text.as_str()),
        StringMatchKind::Prefix(text) => object.with("prefix", text.as_str()),
        StringMatchKind::Suffix(text) => object.with("suffix", text.as_str()),
        StringMatchKind::Contains(text) => object.with("contains", text.as_str()),
        StringMatchKind::SafeRegex(regex) => object.with("safe_regex", json!({"regex": regex.source()})),
    }
    .flag("ignore_case", text.ignore_case)
    .done()
}

fn route_action(action: &RouteAction) -> Value {
    let not_found = match action.cluster_not_found_response_code {
        StatusCode::NOT_FOUND => Some("NOT_FOUND"),
        StatusCode::INTERNAL_SERVER_ERROR => Some("INTERNAL_SERVER_ERROR"),
        _ => None,
    };
    let object = cluster_specifier(Object::new(), &action.cluster).maybe("cluster_not_found_response_code", not_found);
    let object = match &action.path_rewrite {
        Some(rewrite) => with_path_rewrite(object, rewrite),
        None => object,
    };
    let object = match &action.host_rewrite {
        Some(HostRewrite::Literal(host)) => object.with("host_rewrite_literal", value(host)),
        Some(HostRewrite::Auto) => object.with("auto_host_rewrite", true),
        Some(HostRewrite::Header(name)) => object.with("host_rewrite_header", name.as_str()),
        None => object,
    };
    object
        .flag("append_x_forwarded_host", action.append_x_forwarded_host)
        .with("timeout", timeout(action.timeout))
        .maybe("idle_timeout", action.idle_timeout.map(timeout))
        .maybe("retry_policy", action.retry_policy.as_deref().map(retry_policy))
        .list("hash_policy", hash::http(&action.hash_policy))
        .done()
}

fn with_path_rewrite(object: Object, rewrite: &PathRewrite) -> Object {
    match rewrite {
        PathRewrite::Prefix(prefix) => object.with("prefix_rewrite", prefix.as_str()),
        PathRewrite::Regex { pattern, substitution } => object.with(
            "regex_rewrite",
            json!({"pattern": {"regex": pattern.as_str()}, "substitution": envoy_substitution(substitution)}),
        ),
        PathRewrite::Template(template) => object.with(
            "path_rewrite_policy",
            json!({
                "name": "envoy.path.rewrite.uri_template.uri_template_rewriter",
                "typed_config": {
                    "@type": any("extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig"),
                    "path_template_rewrite": template.source(),
                },
            }),
        ),
    }
}

/// From the regex crate's `${1}` and `$$` back to Envoy's `\1` and `$`.
fn envoy_substitution(substitution: &str) -> String {
    let mut envoy = String::with_capacity(substitution.len());
    let mut rest = substitution;
    while let Some(at) = rest.find('$') {
        envoy.push_str(&rest[..at].replace('\\', "\\\\"));
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            envoy.push('$');
            rest = after;
        } else if let Some((group, after)) = rest.strip_prefix('{').and_then(|group| group.split_once('}')) {
            envoy.push('\\');
            envoy.push_str(group);
            rest = after;
        } else {
            envoy.push('$');
        }
    }
    envoy + &rest.replace('\\', "\\\\")
}

fn redirect(redirect: &Redirect) -> Value {
    let object = Object::new()
        .maybe("scheme_redirect", redirect.scheme_redirect.as_deref())
        .maybe("host_redirect", redirect.host_redirect.as_deref())
        .maybe("port_redirect", redirect.port_redirect);
    let object = match &redirect.path {
        Some(RedirectPath::Replace(path)) => object.with("path_redirect", path.as_str()),
        Some(RedirectPath::Rewrite(rewrite)) => with_path_rewrite(object, rewrite),
        None => object,
    };
    object
        .with(
            "response_code",
            match redirect.response_code.as_u16() {
                302 => "FOUND",
                303 => "SEE_OTHER",
                307 => "TEMPORARY_REDIRECT",
                308 => "PERMANENT_REDIRECT",
                _ => "MOVED_PERMANENTLY",
            },
        )
        .flag("strip_query", redirect.strip_query)
        .done()
}

fn direct_response(response: &DirectResponse) -> Value {
    let body = (!response.body.is_empty()).then(|| json!({"inline_string": String::from_utf8_lossy(&response.body)}));
    Object::new().with("status", response.status.as_u16()).maybe("body", body).done()
}

fn retry_policy(policy: &RetryPolicy) -> Value {
    let retry_on: Vec<_> = policy.retry_on.iter().map(|on| retry_on(*on)).collect();
    let codes: Vec<_> = policy.retriable_status_codes.iter().map(|code| code.as_u16()).collect();
    Object::new()
        .with("retry_on", retry_on.join(","))
        .with("num_retries", policy.num_retries)
        .maybe("per_try_timeout", policy.per_try_timeout.map(duration))
        .list("retriable_status_codes", codes)
        .with(
            "retry_back_off",
            json!({"base_interval": duration(policy.base_interval), "max_interval": duration(policy.max_interval)}),
        )
        .done()
}

fn retry_on(on: RetryOn) -> &'static str {
    match on {
        RetryOn::FiveXx => "5xx",
        RetryOn::GatewayError => "gateway-error",
        RetryOn::Reset => "reset",
        RetryOn::ResetBeforeRequest => "reset-before-request",
        RetryOn::ConnectFailure => "connect-failure",
        RetryOn::RefusedStream => "refused-stream",
        RetryOn::Retriable4xx => "retriable-4xx",
        RetryOn::RetriableStatusCodes => "retriable-status-codes",
        RetryOn::GrpcCancelled => "cancelled",
        RetryOn::GrpcDeadlineExceeded => "deadline-exceeded",
        RetryOn::GrpcInternal => "internal",
        RetryOn::GrpcResourceExhausted => "resource-exhausted",
        RetryOn::GrpcUnavailable => "unavailable",
    }
}

fn with_mutations(object: Object, mutations: &HeaderMutations) -> Object {
    let names = |mutation: &HeaderMutation| -> Vec<String> {
        mutation.remove.iter().map(|name| name.as_str().to_owned()).collect()
    };
    object
        .list("request_headers_to_add", additions(&mutations.request))
        .list("request_headers_to_remove", names(&mutations.request))
        .list("response_headers_to_add", additions(&mutations.response))
        .list("response_headers_to_remove", names(&mutations.response))
}

fn additions(mutation: &HeaderMutation) -> Vec<Value> {
    let additions = mutation.add.iter();
    additions
        .map(|addition| {
            json!({
                "header": {"key": addition.name.as_str(), "value": value(&addition.value)},
                "append_action": match addition.append_action {
                    AppendAction::AppendIfExistsOrAdd => "APPEND_IF_EXISTS_OR_ADD",
                    AppendAction::AddIfAbsent => "ADD_IF_ABSENT",
                    AppendAction::OverwriteIfExistsOrAdd => "OVERWRITE_IF_EXISTS_OR_ADD",
                    AppendAction::OverwriteIfExists => "OVERWRITE_IF_EXISTS",
                },
            })
        })
        .collect()
}

fn value(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substitutions_are_translated_back() {
        for (ours, envoys) in [("/x${1}/${2}", r"/x\1/\2"), ("$$5", "$5"), ("plain", "plain")] {
            assert_eq!(envoy_substitution(ours), envoys);
        }
    }
}
