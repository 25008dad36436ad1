//! Route tables: virtual hosts and their ordered rows, every name resolved.
//!
//! Before: a request's head, already checked by the connection manager. After: the action of the first row that
//! matches. Pure: no I/O, no clock, no dice.

pub mod decide;
#[cfg(test)]
pub(crate) mod fixture;
pub mod hash_policy;
pub mod matching;
pub mod mismatch;
mod mutate;
mod redirect;
pub mod rewrite;
pub mod rows;
mod strings;
pub mod template;
#[cfg(test)]
mod tests;
pub mod vhost;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

use crate::cluster::ClusterSpecifier;
use crate::telemetry::stats::RouteStats;
use crate::workload::WorkloadMatch;

use hash_policy::HashPolicy;

/// Envoy's `RouteConfiguration`.
#[derive(Debug)]
pub struct RouteConfig {
    /// Unique among the route configurations; inline ones are named after their listener.
    pub name: Arc<str>,
    /// Where it is written: `route_configs[0]`, or below its listener when it is inline.
    pub field_path: String,
    /// As configured; [`vhost`] knows in which order they are searched.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Cuts `:port` off the host before virtual hosts are searched.
    pub ignore_port_in_host_matching: bool,
    /// Finds the virtual host of a host name, and the row of a request in it; made of `virtual_hosts`.
    pub hosts: vhost::HostIndex,
    /// Applied last unless `most_specific_header_mutations_wins`.
    pub headers: HeaderMutations,
    /// Reverses the order of the three scopes.
    pub most_specific_header_mutations_wins: bool,
}

/// Envoy's `VirtualHost`.
#[derive(Debug)]
pub struct VirtualHost {
    /// Unique in its route configuration.
    pub name: Arc<str>,
    /// Lower-cased: exact, `*.suffix`, `prefix.*` or `*`.
    pub domains: Vec<String>,
    /// First match wins.
    pub routes: Vec<Route>,
    /// Answers plain-text requests with a redirect.
    pub require_tls: RequireTls,
    /// Applied after the route's.
    pub headers: HeaderMutations,
    /// For rows that have none of their own.
    pub retry_policy: Option<Arc<RetryPolicy>>,
}

/// Envoy's `require_tls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequireTls {
    /// Plain text is fine.
    #[default]
    None,
    /// Plain text from other hosts is redirected.
    ExternalOnly,
    /// All plain text is redirected.
    All,
}

/// One row.
#[derive(Debug)]
pub struct Route {
    /// Its place in the virtual host, from 0.
    pub index: usize,
    /// The configured name.
    pub name: Option<Arc<str>>,
    /// When it is chosen.
    pub matches: RouteMatch,
    /// What it does.
    pub action: Action,
    /// Applied first.
    pub headers: HeaderMutations,
    /// How often it was chosen.
    pub stats: Arc<RouteStats>,
}

/// All of a row's conditions; every one must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteMatch {
    /// Exactly one path condition.
    pub path: PathMatch,
    /// Default true; a regex carries its own flags.
    pub case_sensitive: bool,
    /// The request's method is one of these; empty is any.
    pub methods: Vec<Method>,
    /// In configured order.
    pub headers: Vec<HeaderMatch>,
    /// In configured order.
    pub query_parameters: Vec<QueryMatch>,
    /// Only requests whose content-type is gRPC's.
    pub grpc: bool,
    /// Holds for `numerator` of 1,000,000 requests; `None` for all.
    pub runtime_fraction_per_million: Option<u32>,
    /// On the workload that the request comes from.
    pub source_pod: Option<WorkloadMatch>,
}

/// The path condition, on the path without query and fragment.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// Plain string prefix: `/foo` matches `/foobar`.
    Prefix(String),
    /// Equality.
    Exact(String),
    /// A match of the whole path.
    SafeRegex(FullRegex),
    /// Equal, or followed by `/`.
    PathSeparatedPrefix(String),
    /// URI template.
    Template(template::PathTemplate),
    /// CONNECT requests.
    Connect,
}

/// A regular expression that must match the whole of its input, as RE2's `FullMatch`.
#[derive(Clone, Debug)]
pub struct FullRegex {
    source: String,
    anchored: Regex,
}

impl FullRegex {
    /// Compiles `source`.
    ///
    /// # Errors
    /// The expression is no valid regular expression, or too large.
    pub fn new(source: &str) -> Result<Self, regex::Error> {
        // Parsed alone first: `a)(b` must not become valid by being wrapped.
        if regex_syntax::parse(source).is_err() {
            Regex::new(source)?;
        }
        Ok(Self { source: source.to_owned(), anchored: Regex::new(&format!(r"\A(?:{source})\z"))? })
    }

    /// As configured.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it matches the whole of `input`.
    pub fn is_match(&self, input: &str) -> bool {
        self.anchored.is_match(input)
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// A condition on one header.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Lower-cased; `:method`, `:authority`, `:path` and `:scheme` address the request line.
    pub name: String,
    /// What its value (several joined with a comma) must be.
    pub value: HeaderValueMatch,
    /// Turns the result round; a missing header still does not match, `Present` excepted.
    pub invert: bool,
    /// A missing header is matched as an empty value.
    pub treat_missing_header_as_empty: bool,
}

/// The condition on a header's value.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderValueMatch {
    /// `present: true` or `present: false`.
    Present(bool),
    /// A base-10 i64 in `[start, end)`.
    Range {
        /// Included.
        start: i64,
        /// Excluded.
        end: i64,
    },
    /// On the text.
    String(StringMatch),
}

/// Envoy's `StringMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct StringMatch {
    /// How the text is compared; lower-cased at load when `ignore_case`.
    pub kind: StringMatchKind,
    /// ASCII case is ignored; has no meaning for a regex.
    pub ignore_case: bool,
}

/// How [`StringMatch`] compares.
#[derive(Clone, Debug, PartialEq)]
pub enum StringMatchKind {
    /// Equality.
    Exact(String),
    /// Begins with; never empty.
    Prefix(String),
    /// Ends with; never empty.
    Suffix(String),
    /// Contains; never empty.
    Contains(String),
    /// A match of the whole text.
    SafeRegex(FullRegex),
}

/// A condition on the first occurrence of a query parameter, not percent-decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    /// Case-sensitive.
    pub name: String,
    /// What its value must be.
    pub value: QueryValueMatch,
}

/// The condition on a query parameter's value.
#[derive(Clone, Debug, PartialEq)]
pub enum QueryValueMatch {
    /// `present: true` or `present: false`.
    Present(bool),
    /// On the text.
    String(StringMatch),
}

/// What a row does.
#[derive(Debug)]
pub enum Action {
    /// Forwards to a cluster.
    Route(Box<RouteAction>),
    /// Answers with another location.
    Redirect(Redirect),
    /// Answers by itself.
    DirectResponse(DirectResponse),
}

/// Envoy's `RouteAction`.
#[derive(Debug)]
pub struct RouteAction {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// The status when a `cluster_header` names no known cluster: 503, 404 or 500.
    pub cluster_not_found_response_code: StatusCode,
    /// At most one rewrite of the path.
    pub path_rewrite: Option<PathRewrite>,
    /// At most one rewrite of the host.
    pub host_rewrite: Option<HostRewrite>,
    /// Keeps the original host in `x-forwarded-host` when it is rewritten.
    pub append_x_forwarded_host: bool,
    /// From the end of the request to the end of the response, retries included; `None` is never. Default 15 s.
    pub timeout: Option<Duration>,
    /// Replaces the connection manager's stream idle timeout; `Some(None)` switches it off.
    pub idle_timeout: Option<Option<Duration>>,
    /// Replaces (does not merge with) the virtual host's.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// What ties requests to endpoints, for clusters that balance by hash.
    pub hash_policy: HashPolicy,
}

/// How the path is rewritten; the query is kept.
#[derive(Debug)]
pub enum PathRewrite {
    /// Replaces exactly what the path condition matched.
    Prefix(String),
    /// Replaces every match; `substitution` in the regex crate's syntax (translated from `\1` at load).
    Regex {
        /// Not anchored.
        pattern: Regex,
        /// With `${1}` for the first group.
        substitution: String,
    },
    /// Fills in the variables of the path template.
    Template(template::RewriteTemplate),
}

/// How the host is rewritten.
#[derive(Clone, Debug, PartialEq)]
pub enum HostRewrite {
    /// This one.
    Literal(HeaderValue),
    /// The chosen endpoint's host name (only `strict_dns` endpoints have one).
    Auto,
    /// The value of this request header, if it is there.
    Header(HeaderName),
}

/// When and how often a request is tried again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetryPolicy {
    /// Any of these.
    pub retry_on: Vec<RetryOn>,
    /// Default 1.
    pub num_retries: u32,
    /// Of one try; `None` is the route's.
    pub per_try_timeout: Option<Duration>,
    /// For [`RetryOn::RetriableStatusCodes`].
    pub retriable_status_codes: Vec<StatusCode>,
    /// First back-off; full jitter, doubled each time. Default 25 ms.
    pub base_interval: Duration,
    /// Longest back-off. Default ten times the base.
    pub max_interval: Duration,
}

/// Envoy's `retry_on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    /// Any 5xx, a reset or no answer.
    FiveXx,
    /// 502, 503, 504.
    GatewayError,
    /// No response at all.
    Reset,
    /// No response and nothing of the request was sent.
    ResetBeforeRequest,
    /// The connection could not be opened.
    ConnectFailure,
    /// The endpoint refused the stream.
    RefusedStream,
    /// 409.
    Retriable4xx,
    /// See `retriable_status_codes`.
    RetriableStatusCodes,
    /// gRPC status 1.
    GrpcCancelled,
    /// gRPC status 4.
    GrpcDeadlineExceeded,
    /// gRPC status 13.
    GrpcInternal,
    /// gRPC status 8.
    GrpcResourceExhausted,
    /// gRPC status 14.
    GrpcUnavailable,
}

/// Envoy's `RedirectAction`.
#[derive(Debug)]
pub struct Redirect {
    /// `https_redirect` is `https`.
    pub scheme_redirect: Option<String>,
    /// Replaces the host.
    pub host_redirect: Option<String>,
    /// Replaces the port.
    pub port_redirect: Option<u16>,
    /// At most one change of the path.
    pub path: Option<RedirectPath>,
    /// 301, 302, 303, 307 or 308. Default 301.
    pub response_code: StatusCode,
    /// Drops the query.
    pub strip_query: bool,
}

/// How a redirect changes the path.
#[derive(Debug)]
pub enum RedirectPath {
    /// This one; with a `?` of its own, the request's query is not appended.
    Replace(String),
    /// As a route action's rewrite.
    Rewrite(PathRewrite),
}

/// Envoy's `DirectResponseAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: StatusCode,
    /// At most `max_direct_response_body_size_bytes`.
    pub body: bytes::Bytes,
}

/// Changes of request and response headers at one scope.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderMutations {
    /// On the way to the endpoint.
    pub request: HeaderMutation,
    /// On the way to the client.
    pub response: HeaderMutation,
}

/// Changes of one direction: removals first, then `add` in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderMutation {
    /// Set, appended or replaced.
    pub add: Vec<HeaderAddition>,
    /// Taken away.
    pub remove: Vec<HeaderName>,
}

/// One header to set.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderAddition {
    /// Never `host` nor a pseudo-header.
    pub name: HeaderName,
    /// As it is: no variables.
    pub value: HeaderValue,
    /// What happens when it is there already.
    pub append_action: AppendAction,
}

/// Envoy's `HeaderAppendAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppendAction {
    /// `APPEND_IF_EXISTS_OR_ADD`
    #[default]
    AppendIfExistsOrAdd,
    /// `ADD_IF_ABSENT`
    AddIfAbsent,
    /// `OVERWRITE_IF_EXISTS_OR_ADD`
    OverwriteIfExistsOrAdd,
    /// `OVERWRITE_IF_EXISTS`
    OverwriteIfExists,
}
