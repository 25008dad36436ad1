//! Decisions: tables of the rules, and route matching against a naive reference.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use proptest::prelude::*;

use super::decide::{Decision, ForwardHost, Outcome, RequestFacts, decide, decide_observed};
use super::fixture::{Request, any_match, any_request, config, header, on, prefix, rows, virtual_host};
use super::matching::RequestView;
use super::mismatch::Mismatch;
use super::*;

fn table(matches: Vec<RouteMatch>) -> RouteConfig {
    config(vec![virtual_host("shop", &["*"], rows(matches))])
}

fn decided<'a>(config: &'a RouteConfig, request: &Request) -> Decision<'a> {
    decide(config, &request.facts(), &|_| None)
}

/// The rows that were looked at, with why they did not match.
fn reasons(config: &RouteConfig, request: &Request) -> Vec<String> {
    let mut rows: Vec<(usize, Result<(), Mismatch>)> = Vec::new();
    decide_observed(config, &request.facts(), &|_| None, &mut rows);
    let text = |result: Result<(), Mismatch>| result.err().map_or("matches".to_owned(), |why| why.to_string());
    rows.into_iter().map(|(_, result)| text(result)).collect()
}

#[test]
fn the_first_row_that_matches_wins() {
    let canary = || RouteMatch { headers: vec![header("x-canary", "true")], ..prefix("/") };
    let request = Request::get("/checkout/cart").with("x-canary", "true");
    let orders = [
        vec![prefix("/"), prefix("/checkout"), canary()],
        vec![prefix("/checkout"), canary(), prefix("/")],
        vec![canary(), prefix("/checkout"), prefix("/")],
    ];
    for order in orders {
        assert_eq!(decided(&table(order), &request).route.map(|route| route.index), Some(0));
    }
}

#[test]
fn each_row_says_why_it_does_not_match() {
    let request = Request {
        method: Method::PUT,
        ..Request::get("/catalog?a=1").with("x-v", "1").with("x-v", "2").with("content-type", "text/plain")
    };
    let cases = [
        (prefix("/checkout"), "path /catalog does not begin with /checkout"),
        (on(PathMatch::Exact("/c".into())), "path /catalog is not /c"),
        (on(PathMatch::PathSeparatedPrefix("/cat".into())), "path /catalog is neither /cat nor below it"),
        (
            on(PathMatch::SafeRegex(FullRegex::new("/[a-b]+").expect("regex"))),
            "path /catalog does not match the regex /[a-b]+",
        ),
        (on(PathMatch::Connect), "method PUT is not CONNECT"),
        (RouteMatch { methods: vec![Method::GET, Method::POST], ..prefix("/") }, "method PUT is not one of GET, POST"),
        (RouteMatch { methods: vec![Method::GET], ..prefix("/") }, "method PUT is not GET"),
        (
            RouteMatch { headers: vec![header("x-canary", "true")], ..prefix("/") },
            "header x-canary is absent, wants \"true\"",
        ),
        (RouteMatch { headers: vec![header("x-v", "1")], ..prefix("/") }, "header x-v is \"1,2\", wants \"1\""),
        (
            RouteMatch { headers: vec![HeaderMatch { invert: true, ..header("x-v", "1,2") }], ..prefix("/") },
            "header x-v is \"1,2\", wants anything but \"1,2\"",
        ),
        (
            RouteMatch {
                query_parameters: vec![QueryMatch { name: "b".into(), value: QueryValueMatch::Present(true) }],
                ..prefix("/")
            },
            "query parameter b is absent, wants it present",
        ),
        (RouteMatch { grpc: true, ..prefix("/") }, "content-type \"text/plain\" is not gRPC's"),
        (
            RouteMatch { runtime_fraction_per_million: Some(0), ..prefix("/") },
            "random 0 of 1000000 is not below runtime_fraction 0",
        ),
    ];
    for (matches, expected) in cases {
        assert_eq!(reasons(&table(vec![matches, prefix("/")]), &request), [expected, "matches"]);
    }
}

#[test]
fn a_connect_request_without_a_path_matches_connect_rows_alone() {
    let connect = Request { method: Method::CONNECT, ..Request::get("") };
    let config = table(vec![
        prefix("/"),
        on(PathMatch::SafeRegex(FullRegex::new(".*").expect("regex"))),
        on(PathMatch::Connect),
    ]);
    assert_eq!(decided(&config, &connect).route.map(|route| route.index), Some(2));
    assert_eq!(decided(&config, &Request::get("/")).route.map(|route| route.index), Some(0));
}

#[test]
fn case_is_ignored_where_the_row_says_so() {
    let any_case = |path| RouteMatch { case_sensitive: false, ..on(path) };
    let cases = [
        (any_case(PathMatch::Prefix("/Foo".into())), true),
        (any_case(PathMatch::Exact("/FOO/bar".into())), true),
        (any_case(PathMatch::PathSeparatedPrefix("/FOO".into())), true),
        (on(PathMatch::Prefix("/Foo".into())), false),
        (any_case(PathMatch::SafeRegex(FullRegex::new("/FOO.*").expect("regex"))), false),
    ];
    for (matches, expected) in cases {
        let config = table(vec![matches]);
        assert_eq!(decided(&config, &Request::get("/foo/bar?x")).route.is_some(), expected, "{config:?}");
    }
}

#[test]
fn nothing_falls_through_from_one_virtual_host_to_another() {
    let shop = virtual_host("shop", &["shop.example"], rows(vec![prefix("/only")]));
    let any = virtual_host("any", &["*"], rows(vec![prefix("/")]));
    let config = config(vec![shop, any]);
    let decision = decided(&config, &Request::get("/other"));
    assert_eq!(decision.virtual_host.map(|found| &*found.name), Some("shop"));
    assert!(matches!(decision.outcome, Outcome::NotFound));
    let elsewhere = Request { authority: "shop.example:8080".into(), ..Request::get("/other") };
    assert_eq!(decided(&config, &elsewhere).virtual_host.map(|found| &*found.name), Some("any"));
    let ignoring = RouteConfig { ignore_port_in_host_matching: true, ..config };
    assert_eq!(decided(&ignoring, &elsewhere).virtual_host.map(|found| &*found.name), Some("shop"));
}

#[test]
fn plain_text_is_redirected_where_tls_is_required() {
    let host = |require_tls| VirtualHost { require_tls, ..virtual_host("shop", &["*"], rows(vec![prefix("/")])) };
    let plain = Request::get("/x?y");
    let cases = [
        (RequireTls::All, plain.clone(), Some("https://shop.example/x?y")),
        (RequireTls::All, plain.clone().with("x-forwarded-proto", "https"), None),
        (RequireTls::ExternalOnly, plain.clone(), Some("https://shop.example/x?y")),
        (RequireTls::ExternalOnly, plain.clone().with("x-envoy-internal", "true"), None),
        (RequireTls::None, plain, None),
    ];
    for (require_tls, request, expected) in cases {
        let config = config(vec![host(require_tls)]);
        let location = match decided(&config, &request).outcome {
            Outcome::Redirect { status: StatusCode::MOVED_PERMANENTLY, location } => Some(location),
            _ => None,
        };
        assert_eq!(location.as_deref(), expected);
    }
}

fn add(value: &'static str, append_action: AppendAction) -> HeaderMutations {
    let addition = HeaderAddition {
        name: HeaderName::from_static("x-scope"),
        value: HeaderValue::from_static(value),
        append_action,
    };
    let mutation = HeaderMutation { add: vec![addition], remove: Vec::new() };
    HeaderMutations { request: mutation.clone(), response: mutation }
}

fn forwarding(host_rewrite: Option<HostRewrite>, path_rewrite: Option<PathRewrite>) -> RouteConfig {
    let action = RouteAction {
        cluster: crate::cluster::ClusterSpecifier::Header(HeaderName::from_static("x-cluster")),
        cluster_not_found_response_code: StatusCode::SERVICE_UNAVAILABLE,
        path_rewrite,
        host_rewrite,
        append_x_forwarded_host: true,
        timeout: None,
        idle_timeout: None,
        retry_policy: None,
        hash_policy: HashPolicy::default(),
    };
    let mut rows = rows(vec![prefix("/old")]);
    rows[0].action = Action::Route(Box::new(action));
    rows[0].headers = add("route", AppendAction::OverwriteIfExistsOrAdd);
    let mut host = virtual_host("shop", &["*"], rows);
    host.headers = add("host", AppendAction::OverwriteIfExistsOrAdd);
    let mut config = config(vec![host]);
    config.headers = add("table", AppendAction::OverwriteIfExistsOrAdd);
    config
}

#[test]
fn the_scopes_apply_in_order_and_the_last_wins() {
    for (most_specific, expected) in [(false, "table"), (true, "route")] {
        let mut config = forwarding(None, None);
        config.most_specific_header_mutations_wins = most_specific;
        let request = Request::get("/old/x");
        let decision = decided(&config, &request);
        let mut headers = request.headers.clone();
        decision.forward_head("shop.example", "/old/x", &mut headers);
        assert_eq!(headers["x-scope"], expected);
        let mut response = http::HeaderMap::new();
        decision.mutate_response(&mut response);
        assert_eq!(response["x-scope"], expected);
    }
}

#[test]
fn a_rewritten_request_keeps_what_it_was() {
    let rewrite = || Some(PathRewrite::Prefix("/new".into()));
    let from_header = HostRewrite::Header(HeaderName::from_static("x-scope"));
    let literal = HostRewrite::Literal(HeaderValue::from_static("other.example"));
    let cases = [
        (None, None, ForwardHost::Unchanged),
        (Some(literal), rewrite(), ForwardHost::Rewritten(HeaderValue::from_static("other.example"))),
        (Some(from_header), None, ForwardHost::Rewritten(HeaderValue::from_static("table"))),
        (Some(HostRewrite::Auto), rewrite(), ForwardHost::OfEndpoint),
        (None, Some(PathRewrite::Prefix("/old".into())), ForwardHost::Unchanged),
    ];
    for (host, path, expected) in cases {
        let changed = matches!(&path, Some(PathRewrite::Prefix(replacement)) if replacement == "/new");
        let config = forwarding(host, path);
        let request = Request::get("/old/x?q");
        let mut headers = request.headers.clone();
        let head = decided(&config, &request).forward_head("shop.example", "/old/x?q", &mut headers);
        assert_eq!(head.path_and_query.as_deref(), changed.then_some("/new/x?q"));
        assert_eq!(headers.get("x-envoy-original-path").is_some_and(|path| path == "/old/x?q"), changed);
        let kept = headers.get("x-forwarded-host").is_some_and(|host| host == "shop.example");
        assert_eq!(kept, matches!(expected, ForwardHost::Rewritten(_)));
        assert_eq!(head.host, expected);
    }
}

#[test]
fn a_cluster_header_that_names_no_cluster_leads_nowhere() {
    let config = forwarding(None, None);
    for request in [Request::get("/old"), Request::get("/old").with("x-cluster", "unknown")] {
        assert!(matches!(decided(&config, &request).outcome, Outcome::Forward { cluster: None, .. }));
    }
}

#[test]
fn a_row_that_matches_says_why() {
    let matches = RouteMatch { methods: vec![Method::GET], headers: vec![header("x-a", "b")], ..prefix("/a") };
    let request = Request::get("/a/b").with("x-a", "b");
    let facts = request.facts();
    assert_eq!(
        matches.because(&RequestView::new(&facts)),
        "path /a/b begins with /a, method is GET, header x-a is \"b\""
    );
    assert_eq!(matches.summary(), "prefix /a, methods GET, header x-a \"b\"");
}

/// The rules read literally, with no thought of cost: everything becomes a regular expression or a text comparison.
fn naive(row: &RouteMatch, facts: &RequestFacts<'_>) -> bool {
    let cut = |text: &str, at: char| text.split(at).next().unwrap_or_default().to_owned();
    let path = cut(&cut(facts.path_and_query, '#'), '?');
    let query = facts.path_and_query.split_once('?').map(|(_, query)| cut(query, '#')).unwrap_or_default();
    let full = |source: &str, any_case: bool, text: &str| {
        let flags = if any_case { "(?i-u)" } else { "" };
        let regex = regex::bytes::Regex::new(&format!("^{flags}(?:{source})$")).expect("regex");
        regex.is_match(text.as_bytes())
    };
    let insensitive = !row.case_sensitive;
    let path_holds = match &row.path {
        PathMatch::Connect => facts.method == Method::CONNECT,
        _ if facts.path_and_query.is_empty() => false,
        PathMatch::Prefix(own) => full(&format!("{}.*", regex::escape(own)), insensitive, &path),
        PathMatch::Exact(own) => full(&regex::escape(own), insensitive, &path),
        PathMatch::PathSeparatedPrefix(own) => full(&format!("{}(/.*)?", regex::escape(own)), insensitive, &path),
        PathMatch::SafeRegex(own) => full(own.source(), false, &path),
        PathMatch::Template(own) => own.is_match(&path),
    };
    let string_holds = |own: &StringMatch, text: &str| match &own.kind {
        StringMatchKind::Exact(own_text) => full(&regex::escape(own_text), own.ignore_case, text),
        StringMatchKind::Prefix(own_text) => full(&format!("{}.*", regex::escape(own_text)), own.ignore_case, text),
        StringMatchKind::Suffix(own_text) => full(&format!(".*{}", regex::escape(own_text)), own.ignore_case, text),
        StringMatchKind::Contains(own_text) => full(&format!(".*{}.*", regex::escape(own_text)), own.ignore_case, text),
        StringMatchKind::SafeRegex(regex) => full(regex.source(), false, text),
    };
    let header = |name: &str| -> Option<String> {
        if name == ":method" {
            return Some(facts.method.to_string());
        }
        let values: Vec<_> = facts.headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect();
        (!values.is_empty()).then(|| values.join(","))
    };
    let headers_hold = row.headers.iter().all(|own| {
        let found = header(&own.name);
        let holds = match (&own.value, &found) {
            (HeaderValueMatch::Present(present), _) => found.is_some() == *present,
            (_, None) if !own.treat_missing_header_as_empty => return false,
            (HeaderValueMatch::Range { start, end }, _) => {
                found.unwrap_or_default().parse::<i64>().is_ok_and(|number| *start <= number && number < *end)
            }
            (HeaderValueMatch::String(string), _) => string_holds(string, &found.unwrap_or_default()),
        };
        holds ^ own.invert
    });
    let queries_hold = row.query_parameters.iter().all(|own| {
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let found = pairs.filter(|(name, _)| *name == own.name).map(|(_, value)| value).next();
        match &own.value {
            QueryValueMatch::Present(present) => found.is_some() == *present,
            QueryValueMatch::String(string) => found.is_some_and(|value| string_holds(string, value)),
        }
    });
    let grpc_holds = !row.grpc
        || header("content-type")
            .is_some_and(|found| found == "application/grpc" || found.starts_with("application/grpc+"));
    let drawn = row.runtime_fraction_per_million.is_none_or(|fraction| facts.random % 1_000_000 < fraction.into());
    let method_holds = row.methods.is_empty() || row.methods.iter().any(|method| method == facts.method);
    let from = row.source_pod.as_ref().is_none_or(|own| {
        facts.source_pod.is_some_and(|pod| {
            let pattern = own.name.as_deref().unwrap_or("*").replace('*', ".*");
            own.namespace.as_deref().is_none_or(|namespace| namespace == &*pod.namespace)
                && full(&pattern, false, &pod.name)
                && own.labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        })
    });
    path_holds && method_holds && headers_hold && queries_hold && grpc_holds && drawn && from
}

proptest! {
    // The reference compiles regular expressions for every comparison.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn routing_decides_as_the_rules_read_literally(
        matches in proptest::collection::vec(any_match(), 0..8),
        requests in proptest::collection::vec(any_request(), 1..16),
    ) {
        let config = table(matches);
        for request in &requests {
            let facts = request.facts();
            let expected = config.virtual_hosts[0].routes.iter().position(|row| naive(&row.matches, &facts));
            let found = decided(&config, request).route.map(|route| route.index);
            prop_assert_eq!(found, expected, "{:?}", request);
            let seen = reasons(&config, request);
            prop_assert_eq!(seen.len(), expected.map_or(config.virtual_hosts[0].routes.len(), |index| index + 1));
        }
    }
}

#[test]
fn the_actions_share_one_random_number_with_the_fraction() {
    let half = RouteMatch { runtime_fraction_per_million: Some(500_000), ..prefix("/") };
    let config = table(vec![half, prefix("/")]);
    for (random, expected) in [(0, 0), (499_999, 0), (500_000, 1), (999_999, 1), (1_000_000, 0)] {
        let request = Request { random, ..Request::get("/") };
        assert_eq!(decided(&config, &request).route.map(|route| route.index), Some(expected));
    }
    assert!(matches!(decided(&config, &Request::get("/")).outcome, Outcome::DirectResponse(_)));
}
