//! `route_configs`, continued: what a row does.

use std::time::Duration;

use super::listener::WeightedCluster;
use super::route::Regex;
use super::{FromText, OrText, RedirectStatus, RetryConditions};
use crate::config::record::{choice, record};
use crate::config::value::Value;
use crate::http::route::AppendAction;

record! {
    /// Sends the request on; exactly one of `cluster`, `weighted_clusters` and `cluster_header`, at most one rewrite of
    /// the path and at most one of the host.
    pub struct RouteAction("route action", "config.route.v3.RouteAction") {
        /// Where to.
        cluster: String, optional("see `weighted_clusters`, `cluster_header`");
        /// Where to, drawn by weight for each request.
        weighted_clusters: Vec<WeightedCluster>, optional("see `cluster`, `cluster_header`"), envoy("weighted_clusters.clusters");
        /// The request header that names the cluster.
        cluster_header: String, optional("see `cluster`, `weighted_clusters`");
        /// The status when `cluster_header` is absent or names no cluster: 503, 404 or 500.
        cluster_not_found_response_code: u16, default(503);
        /// Replaces exactly what the path condition matched: `/foo` by `/` makes `//x` of `/foo/x`.
        prefix_rewrite: String, optional("the path stays");
        /// Replaces every match in the path.
        regex_rewrite: RegexRewrite, optional("the path stays");
        /// The new path, with the variables of `path_template`.
        path_template_rewrite: String, optional("the path stays"), envoy("path_rewrite_policy");
        /// The new host.
        host_rewrite_literal: String, optional("the host stays"), alias("host_rewrite");
        /// The new host is the endpoint's name (`strict_dns` only).
        auto_host_rewrite: bool, default(false);
        /// The new host is this request header's value, if it is there.
        host_rewrite_header: String, optional("the host stays");
        /// Keeps the host that is rewritten in x-forwarded-host.
        append_x_forwarded_host: bool, default(false);
        /// From the end of the request to the end of the response, retries included, else 504; `0s` sets no limit.
        timeout: Duration, default(Duration::from_secs(15));
        /// Replaces `stream_idle_timeout`; `0s` sets no limit.
        idle_timeout: Duration, optional("`stream_idle_timeout`");
        /// Replaces the virtual host's.
        retry_policy: RetryPolicy, optional("the virtual host's");
        /// What of a request is hashed, so that those that are alike in it go to the same endpoint, for clusters with
        /// `lb_policy: ring_hash` or `maglev`. What is absent is left out; the hashes of what is there are combined, in order.
        hash_policy: Vec<HashPolicy>, default(Vec::new());
    }

    /// One thing to hash; exactly one of the first four.
    pub struct HashPolicy("hash policy", "config.route.v3.RouteAction.HashPolicy") {
        /// The values of this request header, in any order. `:authority`, `:path`, `:method` and `:scheme` address the request
        /// line.
        header: OrText<HashHeader>, optional("see the others");
        /// This cookie's value. Short: its name.
        cookie: OrText<HashCookie>, optional("see the others");
        /// The client's address.
        connection_properties: ConnectionProperties, optional("see the others");
        /// The first value of this query parameter, as it is written.
        query_parameter: OrText<HashQueryParameter>, optional("see the others");
        /// The rest of the list is left out once there is a hash.
        terminal: bool, default(false);
    }

    /// A header that is hashed. Short: its name alone, as text.
    pub struct HashHeader("hash header", "config.route.v3.RouteAction.HashPolicy.Header") {
        /// Its name.
        header_name: String, required, alias("name");
    }

    /// A cookie that is hashed. Short: its name alone, as text.
    pub struct HashCookie("hash cookie", "config.route.v3.RouteAction.HashPolicy.Cookie") {
        /// Its name.
        name: String, required;
        /// A request without it gets one, by `set-cookie` in the response, that lasts so long, in whole seconds; `0s`: as long
        /// as the client likes.
        ttl: Duration, optional("none is made");
        /// The path of the cookie that is made.
        path: String, default(String::new());
    }

    /// What of the connection is hashed.
    pub struct ConnectionProperties("connection properties", "config.route.v3.RouteAction.HashPolicy.ConnectionProperties") {
        /// The client's address, without its port: the last in x-forwarded-for if there is one and `use_remote_address` is not
        /// set, else that of the connection; what comes from a pod has the pod's own address.
        source_ip: bool, default(false);
    }

    /// A query parameter that is hashed. Short: its name alone, as text.
    pub struct HashQueryParameter("hash query parameter", "config.route.v3.RouteAction.HashPolicy.QueryParameter") {
        /// Its name.
        name: String, required;
    }

    /// Replaces every match of a regular expression.
    pub struct RegexRewrite("regex rewrite", "type.matcher.v3.RegexMatchAndSubstitute") {
        /// What is replaced.
        pattern: OrText<Regex>, required;
        /// By what: `\1` is the first group, `\0` the whole match, `\\` a backslash.
        substitution: String, default(String::new());
    }

    /// When and how often a request is tried again.
    pub struct RetryPolicy("retry policy", "config.route.v3.RetryPolicy") {
        /// Any of these.
        retry_on: RetryConditions, default(RetryConditions(Vec::new()));
        /// Tries after the first.
        num_retries: u32, default(1);
        /// How long one try may take, at most the route's `timeout`; `0s` sets no limit of its own.
        per_try_timeout: Duration, optional("the route's `timeout`");
        /// For `retriable-status-codes`.
        retriable_status_codes: Vec<u16>, default(Vec::new());
        /// The pause before a retry.
        retry_back_off: RetryBackOff, optional("25ms, at most 250ms");
    }

    /// The pause before a retry: random, up to an interval that doubles each time.
    pub struct RetryBackOff("retry back-off", "config.route.v3.RetryPolicy.RetryBackOff") {
        /// The first interval.
        base_interval: Duration, required;
        /// The longest one.
        max_interval: Duration, optional("ten times `base_interval`");
    }

    /// Answers with another location; at most one change of scheme, and of path.
    pub struct Redirect("redirect", "config.route.v3.RedirectAction") {
        /// To https.
        https_redirect: bool, default(false);
        /// To this scheme.
        scheme_redirect: String, optional("the request's");
        /// To this host.
        host_redirect: String, optional("the request's");
        /// To this port.
        port_redirect: u16, optional("the request's; none when the scheme changes and it was the old one's default");
        /// To this path; with a `?` of its own, the request's query is not appended.
        path_redirect: String, optional("the request's");
        /// To the request's path, with what the path condition matched replaced.
        prefix_rewrite: String, optional("the path stays");
        /// To the request's path, with every match replaced.
        regex_rewrite: RegexRewrite, optional("the path stays");
        /// The status.
        response_code: RedirectStatus, default(RedirectStatus(301));
        /// Drops the query.
        strip_query: bool, default(false);
    }

    /// Answers by itself.
    pub struct DirectResponse("direct response", "config.route.v3.DirectResponseAction") {
        /// 200 to 599.
        status: u16, required;
        /// At most `max_direct_response_body_size_bytes`.
        body: String, default(String::new()), envoy("body.inline_string");
    }

    /// A header to set. Short: `key` and `value` without `header`.
    pub struct HeaderAddition("header addition", "config.core.v3.HeaderValueOption") {
        /// The header.
        header: HeaderValue, optional("see `key`, `value`");
        /// The header's name.
        key: String, optional("see `header`"), alias("name"), envoy("header.key");
        /// Its value, as it is: variables such as %PROTOCOL% are refused.
        value: String, optional("see `header`"), envoy("header.value");
        /// What happens when the header is there already.
        append_action: AppendAction, default(AppendAction::AppendIfExistsOrAdd);
    }

    /// Name and value of a header.
    pub struct HeaderValue("header value", "config.core.v3.HeaderValue") {
        /// Its name.
        key: String, required, alias("name");
        /// Its value.
        value: String, default(String::new());
    }
}

impl FromText for HashHeader {
    fn from_text(text: &str) -> Self {
        Self { header_name: text.to_owned() }
    }
}

impl FromText for HashCookie {
    fn from_text(text: &str) -> Self {
        Self { name: text.to_owned(), ..Self::placeholder() }
    }
}

impl FromText for HashQueryParameter {
    fn from_text(text: &str) -> Self {
        Self { name: text.to_owned() }
    }
}

choice!(AppendAction {
    AppendIfExistsOrAdd = "append_if_exists_or_add",
    AddIfAbsent = "add_if_absent",
    OverwriteIfExistsOrAdd = "overwrite_if_exists_or_add",
    OverwriteIfExists = "overwrite_if_exists",
});
