//! What the tests of routing build on: rows, tables, requests, and strategies that make random ones which often meet.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::decide::RequestFacts;
use super::template::PathTemplate;
use super::vhost::HostIndex;
use super::{
    Action, DirectResponse, FullRegex, HeaderMatch, HeaderMutations, HeaderValueMatch, PathMatch, QueryMatch,
    QueryValueMatch, RequireTls, Route, RouteConfig, RouteMatch, StringMatch, StringMatchKind, VirtualHost,
};
use crate::workload::{Workload, WorkloadMatch};

/// A row that asks for this path alone.
pub fn on(path: PathMatch) -> RouteMatch {
    RouteMatch {
        path,
        case_sensitive: true,
        methods: Vec::new(),
        headers: Vec::new(),
        query_parameters: Vec::new(),
        grpc: false,
        runtime_fraction_per_million: None,
        source_pod: None,
    }
}

/// A row that asks for this prefix alone.
pub fn prefix(prefix: &str) -> RouteMatch {
    on(PathMatch::Prefix(prefix.to_owned()))
}

/// A header that must have exactly this value.
pub fn header(name: &str, exact: &str) -> HeaderMatch {
    let kind = StringMatchKind::Exact(exact.to_owned());
    HeaderMatch {
        name: name.to_owned(),
        value: HeaderValueMatch::String(StringMatch { kind, ignore_case: false }),
        invert: false,
        treat_missing_header_as_empty: false,
    }
}

/// An action that needs no cluster.
pub fn ok() -> Action {
    Action::DirectResponse(DirectResponse { status: StatusCode::OK, body: bytes::Bytes::new() })
}

/// Rows with these conditions.
pub fn rows(matches: Vec<RouteMatch>) -> Vec<Route> {
    let row = |(index, matches)| Route {
        index,
        name: None,
        matches,
        action: ok(),
        headers: HeaderMutations::default(),
        stats: Arc::default(),
    };
    matches.into_iter().enumerate().map(row).collect()
}

/// A virtual host.
pub fn virtual_host(name: &str, domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: name.into(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        routes,
        require_tls: RequireTls::None,
        headers: HeaderMutations::default(),
        retry_policy: None,
    }
}

/// A route configuration.
pub fn config(virtual_hosts: Vec<VirtualHost>) -> RouteConfig {
    RouteConfig {
        name: "table".into(),
        field_path: "route_configs[0]".to_owned(),
        hosts: HostIndex::new(&virtual_hosts).expect("no conflict"),
        virtual_hosts,
        ignore_port_in_host_matching: false,
        headers: HeaderMutations::default(),
        most_specific_header_mutations_wins: false,
    }
}

/// A request that owns its parts.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub authority: String,
    pub path_and_query: String,
    pub headers: HeaderMap,
    pub random: u64,
    pub source_pod: Option<Workload>,
}

impl Request {
    /// A GET request for `path_and_query` at shop.example.
    pub fn get(path_and_query: &str) -> Self {
        Self {
            method: Method::GET,
            authority: "shop.example".to_owned(),
            path_and_query: path_and_query.to_owned(),
            headers: HeaderMap::new(),
            random: 0,
            source_pod: None,
        }
    }

    /// With another header.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("value"));
        self
    }

    pub fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            method: &self.method,
            scheme: "http",
            authority: &self.authority,
            path_and_query: &self.path_and_query,
            headers: &self.headers,
            random: self.random,
            source_pod: self.source_pod.as_ref(),
        }
    }
}

const METHODS: [Method; 4] = [Method::GET, Method::POST, Method::PUT, Method::CONNECT];
const TEXTS: [&str; 9] = ["a", "A", "ab", "aB", "abc", "b", "5", "12", "a,b"];
const NAMES: [&str; 4] = ["x-a", "x-b", ":method", "content-type"];

fn text() -> impl Strategy<Value = String> {
    select(TEXTS.to_vec()).prop_map(str::to_owned)
}

fn regex(pool: &[&'static str]) -> impl Strategy<Value = FullRegex> + use<> {
    select(pool.to_vec()).prop_map(|source| FullRegex::new(source).expect("regex"))
}

fn path() -> impl Strategy<Value = String> {
    let parts = vec!["/", "/a", "/A", "/b", "/a/b", "/ab", "/a/B"];
    (select(parts.clone()), select(vec!["", "", "/", "/b", "b", "/B/c"])).prop_map(|(first, second)| {
        let joined = format!("{first}{second}").replace("//", "/");
        if joined.is_empty() { "/".to_owned() } else { joined }
    })
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    let below =
        path().prop_map(|path| path.trim_end_matches('/').to_owned()).prop_filter("empty", |path| !path.is_empty());
    let templates = vec!["/a/*", "/a/**", "/{v}", "/{v=a/*}/b", "/**", "/*/b"];
    prop_oneof![
        3 => path().prop_map(PathMatch::Prefix),
        3 => path().prop_map(PathMatch::Exact),
        2 => below.prop_map(PathMatch::PathSeparatedPrefix),
        2 => regex(&["/a.*", ".*", "/a|/b", "(?i)/a/b", "/.*"]).prop_map(PathMatch::SafeRegex),
        1 => select(templates).prop_map(|source| PathMatch::Template(PathTemplate::new(source).expect("template"))),
        1 => Just(PathMatch::Connect),
    ]
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    let kind = prop_oneof![
        3 => text().prop_map(StringMatchKind::Exact),
        1 => text().prop_map(StringMatchKind::Prefix),
        1 => text().prop_map(StringMatchKind::Suffix),
        1 => text().prop_map(StringMatchKind::Contains),
        1 => regex(&["a.*", ".*", "a|b", "[0-9]+", "(?i)ab"]).prop_map(StringMatchKind::SafeRegex),
    ];
    (kind, any::<bool>()).prop_map(|(kind, ignore_case)| StringMatch {
        kind: match kind {
            StringMatchKind::Exact(text) if ignore_case => StringMatchKind::Exact(text.to_ascii_lowercase()),
            StringMatchKind::Prefix(text) if ignore_case => StringMatchKind::Prefix(text.to_ascii_lowercase()),
            StringMatchKind::Suffix(text) if ignore_case => StringMatchKind::Suffix(text.to_ascii_lowercase()),
            StringMatchKind::Contains(text) if ignore_case => StringMatchKind::Contains(text.to_ascii_lowercase()),
            other => other,
        },
        ignore_case,
    })
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    let value = prop_oneof![
        1 => any::<bool>().prop_map(HeaderValueMatch::Present),
        1 => (0..14_i64, 0..14_i64).prop_map(|(start, end)| HeaderValueMatch::Range { start, end }),
        4 => string_match().prop_map(HeaderValueMatch::String),
    ];
    (select(NAMES.to_vec()), value, proptest::bool::weighted(0.2), proptest::bool::weighted(0.2)).prop_map(
        |(name, value, invert, treat_missing_header_as_empty)| HeaderMatch {
            name: name.to_owned(),
            value: if name == ":method" { header(name, "GET").value } else { value },
            invert,
            treat_missing_header_as_empty,
        },
    )
}

fn query_match() -> impl Strategy<Value = QueryMatch> {
    let value = prop_oneof![
        any::<bool>().prop_map(QueryValueMatch::Present),
        string_match().prop_map(QueryValueMatch::String),
    ];
    (select(vec!["q", "r"]), value).prop_map(|(name, value)| QueryMatch { name: name.to_owned(), value })
}

const PODS: [&str; 4] = ["web-1", "web-2", "web", "db"];

fn pod_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let label = (select(vec!["app", "tier"]), select(vec!["a", "b"]));
    proptest::collection::btree_map(label.0.prop_map(str::to_owned), label.1.prop_map(str::to_owned), 0..2)
}

fn pod() -> impl Strategy<Value = Workload> {
    (select(vec!["shop", "bank"]), select(PODS.to_vec()), pod_labels()).prop_map(|(namespace, name, labels)| Workload {
        namespace: namespace.into(),
        name: name.into(),
        labels,
        ..Workload::default()
    })
}

fn pod_match() -> impl Strategy<Value = WorkloadMatch> {
    let namespace = select(vec![None, None, Some("shop"), Some("bank")]);
    let name = select(vec![None, Some("web-1"), Some("web-*"), Some("web*"), Some("*"), Some("db")]);
    (namespace, name, pod_labels()).prop_map(|(namespace, name, labels)| WorkloadMatch {
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        labels,
    })
}

/// Any conditions.
pub fn any_match() -> impl Strategy<Value = RouteMatch> {
    (
        path_match(),
        proptest::bool::weighted(0.8),
        subsequence(METHODS.to_vec(), 0..3),
        proptest::collection::vec(header_match(), 0..3),
        proptest::collection::vec(query_match(), 0..2),
        proptest::bool::weighted(0.1),
        proptest::option::weighted(0.1, select(vec![0_u32, 500_000, 1_000_000])),
        proptest::option::weighted(0.3, pod_match()),
    )
        .prop_map(
            |(
                path,
                case_sensitive,
                methods,
                headers,
                query_parameters,
                grpc,
                runtime_fraction_per_million,
                source_pod,
            )| {
                RouteMatch {
                    path,
                    case_sensitive,
                    methods,
                    headers,
                    query_parameters,
                    grpc,
                    runtime_fraction_per_million,
                    source_pod,
                }
            },
        )
}

/// Any request that the connection manager lets through: a path begins with `/`, only CONNECT has none.
pub fn any_request() -> impl Strategy<Value = Request> {
    let values = || {
        select(vec![None, Some("a"), Some("ab"), Some("5"), Some("12"), Some(""), Some("AB"), Some("b"), Some("abc")])
    };
    let content_type = select(vec![None, Some("application/grpc"), Some("application/grpc+proto"), Some("a")]);
    let query = select(vec!["", "?", "?q=a", "?q=a&q=ab", "?r=5&q", "?r=abc#q=a", "#f"]);
    let headers = (values(), values(), values(), content_type);
    let source_pod = proptest::option::weighted(0.7, pod());
    (select(METHODS.to_vec()), path(), query, headers, any::<u64>(), source_pod).prop_map(
        |(method, path, query, (a, second_a, b, content_type), random, source_pod)| {
            let pathless = method == Method::CONNECT && random % 2 == 0;
            let mut request = Request {
                path_and_query: if pathless { String::new() } else { format!("{path}{query}") },
                method,
                random,
                source_pod,
                ..Request::get("/")
            };
            for (name, value) in [("x-a", a), ("x-a", second_a), ("x-b", b), ("content-type", content_type)] {
                request = value.into_iter().fold(request, |request, value| request.with(name, value));
            }
            request
        },
    )
}
