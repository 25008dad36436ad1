//! `route_configs`: virtual hosts and their ordered rows, up to what a row matches.

use super::action::{DirectResponse, HeaderAddition, Redirect, RetryPolicy, RouteAction};
use super::pods::SourcePod;
use super::{Flag, FromText, OrText};
use crate::config::record::{choice, record};
use crate::http::route::RequireTls;

record! {
    /// A route table.
    pub struct RouteConfig("route config", "config.route.v3.RouteConfiguration") {
        /// Unique among the route tables.
        name: String, optional("required in `route_configs`; the listener's name for one that is written in a listener");
        /// One is chosen by the request's host: exact domain, longest `*.suffix`, longest `prefix.*`, `*`.
        virtual_hosts: Vec<VirtualHost>, default(Vec::new());
        /// Cuts the port off the host before virtual hosts are searched.
        ignore_port_in_host_matching: bool, default(false);
        /// Set on requests, after the virtual host's.
        request_headers_to_add: Vec<HeaderAddition>, default(Vec::new());
        /// Taken off requests.
        request_headers_to_remove: Vec<String>, default(Vec::new());
        /// Set on responses, after the virtual host's.
        response_headers_to_add: Vec<HeaderAddition>, default(Vec::new());
        /// Taken off responses.
        response_headers_to_remove: Vec<String>, default(Vec::new());
        /// Header changes go from here to the route instead, so that the route has the last word.
        most_specific_header_mutations_wins: bool, default(false);
        /// The largest body of a `direct_response`, in bytes.
        max_direct_response_body_size_bytes: u32, default(4096);
    }

    /// The rows of some hosts. Once it is chosen there is no way to another: no row that matches is a 404 (flag NR).
    pub struct VirtualHost("virtual host", "config.route.v3.VirtualHost") {
        /// Unique in its route table.
        name: String, required;
        /// At least one; each at most once in a route table. Case does not matter.
        domains: Vec<String>, required;
        /// The first that matches is taken.
        routes: Vec<Route>, default(Vec::new());
        /// Which plain-text requests get a redirect to https.
        require_tls: RequireTls, default(RequireTls::None);
        /// Set on requests, after the route's.
        request_headers_to_add: Vec<HeaderAddition>, default(Vec::new());
        /// Taken off requests.
        request_headers_to_remove: Vec<String>, default(Vec::new());
        /// Set on responses, after the route's.
        response_headers_to_add: Vec<HeaderAddition>, default(Vec::new());
        /// Taken off responses.
        response_headers_to_remove: Vec<String>, default(Vec::new());
        /// For rows that have none.
        retry_policy: RetryPolicy, optional("no retries");
    }

    /// A row; exactly one of `route`, `redirect` and `direct_response`.
    pub struct Route("route", "config.route.v3.Route") {
        /// Names it in records and statistics.
        name: String, optional("its index");
        /// When it is taken.
        matches as "match": RouteMatch, required;
        /// Sends the request on.
        route: RouteAction, optional("see `redirect`, `direct_response`");
        /// Answers with another location.
        redirect: Redirect, optional("see `route`, `direct_response`");
        /// Answers by itself.
        direct_response: DirectResponse, optional("see `route`, `redirect`");
        /// Set on requests, after removals; neither Host nor names with a colon.
        request_headers_to_add: Vec<HeaderAddition>, default(Vec::new());
        /// Taken off requests; neither Host nor names with a colon.
        request_headers_to_remove: Vec<String>, default(Vec::new());
        /// Set on responses, after removals.
        response_headers_to_add: Vec<HeaderAddition>, default(Vec::new());
        /// Taken off responses.
        response_headers_to_remove: Vec<String>, default(Vec::new());
    }

    /// When a row is taken: everything that is given must hold. Exactly one condition on the path, which is compared
    /// without query and fragment.
    pub struct RouteMatch("route match", "config.route.v3.RouteMatch") {
        /// The path begins with this text: `/foo` matches `/foobar`.
        prefix: String, optional("no condition");
        /// The path is this.
        path: String, optional("no condition");
        /// The whole path matches this regular expression.
        safe_regex: OrText<Regex>, optional("no condition");
        /// The path is this, or continues with `/`. No trailing slash.
        path_separated_prefix: String, optional("no condition");
        /// The path fits this URI template: `*` is one segment, `**` any number, `{name}` and `{name=pattern}` variables.
        path_template: String, optional("no condition"), envoy("path_match_policy");
        /// The request is a CONNECT.
        connect_matcher: Flag, optional("no condition");
        /// `false` ignores case in the path; a regular expression has flags of its own.
        case_sensitive: bool, default(true);
        /// The method is one of these, in upper case.
        methods: Vec<String>, default(Vec::new()), envoy("headers, on `:method`");
        /// All must hold.
        headers: Vec<HeaderMatch>, default(Vec::new());
        /// All must hold.
        query_parameters: Vec<QueryMatch>, default(Vec::new());
        /// The request is gRPC.
        grpc: Flag, default(Flag(false));
        /// Holds for this fraction of requests, drawn at random.
        runtime_fraction: Fraction, optional("all"), envoy("runtime_fraction.default_value");
        /// The request comes from such a pod; never holds where the pod is not known.
        source_pod: SourcePod, optional("no condition"), envoy("-");
    }

    /// A regular expression in Rust's syntax, which is RE2's. Short: the expression alone.
    pub struct Regex("regex", "type.matcher.v3.RegexMatcher") {
        /// The expression.
        regex: String, required;
    }

    /// A condition on one header; at most one kind, and without one the header must be there. Repeated headers are joined
    /// with a comma. A header that is not there matches nothing, `invert` or not, but `present`.
    pub struct HeaderMatch("header match", "config.route.v3.HeaderMatcher") {
        /// The header; case does not matter. `:method`, `:authority`, `:path` and `:scheme` are the request line.
        name: String, required;
        /// It is this.
        exact: String, optional("no condition"), envoy("string_match.exact");
        /// It begins with this.
        prefix: String, optional("no condition"), envoy("string_match.prefix");
        /// It ends with this.
        suffix: String, optional("no condition"), envoy("string_match.suffix");
        /// It contains this.
        contains: String, optional("no condition"), envoy("string_match.contains");
        /// The whole value matches this regular expression.
        safe_regex: OrText<Regex>, optional("no condition"), envoy("string_match.safe_regex");
        /// It is a whole number from `start` to below `end`.
        range: super::cluster::Int64Range, optional("no condition"), alias("range_match"), envoy("range_match");
        /// It is there, or (`false`) it is not.
        present: bool, optional("no condition"), alias("present_match"), envoy("present_match");
        /// The opposite must hold.
        invert: bool, default(false), alias("invert_match"), envoy("invert_match");
        /// Case does not matter; has no meaning for `safe_regex`.
        ignore_case: bool, default(false), envoy("string_match.ignore_case");
        /// A header that is not there is taken for an empty one.
        treat_missing_header_as_empty: bool, default(false);
    }

    /// A condition on the first query parameter of a name, not percent-decoded; at most one kind, and without one it
    /// must be there.
    pub struct QueryMatch("query match", "config.route.v3.QueryParameterMatcher") {
        /// The parameter; case matters.
        name: String, required;
        /// It is this.
        exact: String, optional("no condition"), envoy("string_match.exact");
        /// It begins with this.
        prefix: String, optional("no condition"), envoy("string_match.prefix");
        /// It ends with this.
        suffix: String, optional("no condition"), envoy("string_match.suffix");
        /// It contains this.
        contains: String, optional("no condition"), envoy("string_match.contains");
        /// The whole value matches this regular expression.
        safe_regex: OrText<Regex>, optional("no condition"), envoy("string_match.safe_regex");
        /// It is there, or (`false`) it is not.
        present: bool, optional("no condition"), alias("present_match"), envoy("present_match");
        /// Case does not matter; has no meaning for `safe_regex`.
        ignore_case: bool, default(false), envoy("string_match.ignore_case");
    }

    /// A part of all requests, at most all of them.
    pub struct Fraction("fraction", "type.v3.FractionalPercent") {
        /// So many.
        numerator: u32, required;
        /// Of so many.
        denominator: Denominator, default(Denominator::Hundred);
    }
}

/// What a fraction is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denominator {
    /// Percent.
    Hundred,
    /// Hundredths of a percent.
    TenThousand,
    /// Parts per million.
    Million,
}

choice!(Denominator { Hundred = "hundred", TenThousand = "ten_thousand", Million = "million" });
choice!(RequireTls { None = "none", ExternalOnly = "external_only", All = "all" });

impl FromText for Regex {
    fn from_text(text: &str) -> Self {
        Self { regex: text.to_owned() }
    }
}
