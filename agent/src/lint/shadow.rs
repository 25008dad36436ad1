//! The shadow proof: a row that no request can reach, because an earlier row takes all that it matches.
//!
//! "Row A covers row B" is proven condition by condition: whatever satisfies all of B's conditions satisfies each of
//! A's. No proof, no warning: [`covers`] may miss a shadow, it never invents one. Several rows that shadow a row only
//! together are not looked for.

use http::Method;

use super::beginnings::Beginnings;
use super::values::{comparable, has_letters, header_implies, query_implies};
use super::{Finding, Kind};
use crate::http::route::{HeaderMatch, HeaderValueMatch, PathMatch, Route, RouteMatch, StringMatch, StringMatchKind};
use crate::workload::WorkloadMatch;

/// As [`RouteMatch::runtime_fraction_per_million`] counts: every request.
const ALL_PER_MILLION: u32 = 1_000_000;

/// The shadowed rows among `routes`, which are written at `path`.
pub(super) fn shadowed(path: &str, routes: &[Route]) -> Vec<Finding> {
    let mut rows = Beginnings::default();
    let finding = |(later, route): (usize, &Route)| {
        let covering = |earlier: &usize| covers(&routes[*earlier].matches, &route.matches);
        let earlier = rows.candidates(&route.matches.path).filter(covering).min();
        rows.add(later, &route.matches.path);
        let earlier = earlier?;
        Some(Finding {
            path: format!("{path}.routes[{later}]"),
            other: Some(format!("{path}.routes[{earlier}]")),
            message: format!("{} is shadowed by {}", named(route), named(&routes[earlier])),
            kind: Kind::ShadowedRoute,
        })
    };
    routes.iter().enumerate().filter_map(finding).collect()
}

/// `row 2 (prefix /checkout)`, with the configured name where there is one.
fn named(route: &Route) -> String {
    let name = route.name.as_ref().map(|name| format!(" '{name}'")).unwrap_or_default();
    format!("row {}{name} ({})", route.index, route.matches.summary())
}

/// Whether `earlier` matches every request that `later` matches.
pub fn covers(earlier: &RouteMatch, later: &RouteMatch) -> bool {
    earlier.runtime_fraction_per_million.is_none_or(|fraction| fraction >= ALL_PER_MILLION)
        && path_covers(earlier, later)
        && methods_cover(earlier, later)
        && earlier.headers.iter().all(|header| header_covers(header, later))
        && earlier
            .query_parameters
            .iter()
            .all(|earlier| later.query_parameters.iter().any(|later| query_implies(later, earlier)))
        && (!earlier.grpc || later.grpc)
        && source_covers(earlier.source_pod.as_ref(), later.source_pod.as_ref())
}

fn path_covers(earlier: &RouteMatch, later: &RouteMatch) -> bool {
    // A template is case-sensitive whatever the row says.
    let own_ignores = !later.case_sensitive && !matches!(later.path, PathMatch::Template(_));
    let other_ignores = !earlier.case_sensitive;
    match (&earlier.path, &later.path) {
        (PathMatch::Connect, PathMatch::Connect) => true,
        // A CONNECT request may name no path, and then only a CONNECT row matches.
        (PathMatch::Connect, _) | (_, PathMatch::Connect) => false,
        (path, PathMatch::Exact(exact)) if later.case_sensitive || !has_letters(exact) => {
            path.matches(exact, earlier.case_sensitive)
        }
        (path, _) if takes_every_path(path) => true,
        (PathMatch::Exact(other), PathMatch::Exact(own)) => {
            comparable((own, own_ignores), (other, other_ignores)).is_some_and(|(own, other)| own == other)
        }
        (PathMatch::Prefix(other), path) => beginning(path).is_some_and(|(own, _)| {
            comparable((own, own_ignores), (other, other_ignores)).is_some_and(|(own, other)| own.starts_with(&*other))
        }),
        (PathMatch::PathSeparatedPrefix(other), path) => beginning(path).is_some_and(|(own, whole)| {
            comparable((own, own_ignores), (other, other_ignores)).is_some_and(|(own, other)| {
                match own.strip_prefix(&*other) {
                    Some(rest) => rest.starts_with('/') || (rest.is_empty() && whole),
                    None => false,
                }
            })
        }),
        (PathMatch::SafeRegex(other), PathMatch::SafeRegex(own)) => own == other,
        (PathMatch::Template(other), PathMatch::Template(own)) => own == other,
        _ => false,
    }
}

/// What every matching path begins with, and whether it is a whole segment there: followed by `/` or by nothing.
fn beginning(path: &PathMatch) -> Option<(&str, bool)> {
    match path {
        PathMatch::Prefix(prefix) => Some((prefix, false)),
        PathMatch::Exact(exact) => Some((exact, true)),
        PathMatch::PathSeparatedPrefix(prefix) => Some((prefix, true)),
        PathMatch::Template(template) => Some((template.literal_prefix(), false)),
        PathMatch::SafeRegex(_) | PathMatch::Connect => None,
    }
}

/// Whether every pod that `later` accepts fulfils `earlier`: without a condition requests of no pod come too.
fn source_covers(earlier: Option<&WorkloadMatch>, later: Option<&WorkloadMatch>) -> bool {
    let Some(earlier) = earlier else { return true };
    let Some(later) = later else { return false };
    let namespace = earlier.namespace.is_none() || earlier.namespace == later.namespace;
    let name = match (&earlier.name, &later.name) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(earlier), Some(later)) => match earlier.strip_suffix('*') {
            Some(beginning) => later.strip_suffix('*').unwrap_or(later).starts_with(beginning),
            None => earlier == later,
        },
    };
    namespace && name && earlier.labels.iter().all(|(key, value)| later.labels.get(key) == Some(value))
}

/// The connection manager lets only paths through that begin with `/`.
pub(super) fn takes_every_path(path: &PathMatch) -> bool {
    match path {
        PathMatch::Prefix(prefix) => prefix.is_empty() || prefix == "/",
        PathMatch::SafeRegex(regex) => [".*", "/.*", "^.*$", "^/.*$", "^/.*"].contains(&regex.source()),
        _ => false,
    }
}

fn methods_cover(earlier: &RouteMatch, later: &RouteMatch) -> bool {
    if earlier.methods.is_empty() {
        return true;
    }
    if !later.methods.is_empty() {
        return later.methods.iter().all(|method| earlier.methods.contains(method));
    }
    let only = later.headers.iter().find_map(only_method);
    only.is_some_and(|only| earlier.methods.iter().any(|method| method.as_str() == only))
}

/// The one method that a condition on `:method` leaves.
fn only_method(header: &HeaderMatch) -> Option<&str> {
    match &header.value {
        HeaderValueMatch::String(StringMatch { kind: StringMatchKind::Exact(method), ignore_case: false })
            if header.name == ":method" && !header.invert =>
        {
            Some(method)
        }
        _ => None,
    }
}

/// Whether all that `later` matches satisfies the condition `earlier`.
fn header_covers(earlier: &HeaderMatch, later: &RouteMatch) -> bool {
    let by_methods = || {
        let holds = |method: &Method| earlier.matches(Some(method.as_str().as_bytes()));
        earlier.name == ":method" && !later.methods.is_empty() && later.methods.iter().all(holds)
    };
    later.headers.iter().any(|later| header_implies(later, earlier)) || by_methods()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::route::fixture::{any_match, any_request, config, header, on, prefix, rows, virtual_host};
    use crate::http::route::template::PathTemplate;
    use crate::http::route::{FullRegex, QueryMatch, QueryValueMatch, RouteMatch, decide};

    fn exact(path: &str) -> RouteMatch {
        on(PathMatch::Exact(path.to_owned()))
    }

    fn separated(path: &str) -> RouteMatch {
        on(PathMatch::PathSeparatedPrefix(path.to_owned()))
    }

    fn regex(source: &str) -> RouteMatch {
        on(PathMatch::SafeRegex(FullRegex::new(source).expect("regex")))
    }

    fn template(source: &str) -> RouteMatch {
        on(PathMatch::Template(PathTemplate::new(source).expect("template")))
    }

    fn any_case(row: RouteMatch) -> RouteMatch {
        RouteMatch { case_sensitive: false, ..row }
    }

    fn with(headers: Vec<HeaderMatch>) -> RouteMatch {
        RouteMatch { headers, ..prefix("/") }
    }

    fn value(kind: StringMatchKind) -> HeaderMatch {
        HeaderMatch { value: HeaderValueMatch::String(StringMatch { kind, ignore_case: false }), ..header("x-a", "") }
    }

    fn range(start: i64, end: i64) -> HeaderMatch {
        HeaderMatch { value: HeaderValueMatch::Range { start, end }, ..header("x-a", "") }
    }

    fn present(present: bool) -> HeaderMatch {
        HeaderMatch { value: HeaderValueMatch::Present(present), ..header("x-a", "") }
    }

    fn not(header: HeaderMatch) -> HeaderMatch {
        HeaderMatch { invert: true, ..header }
    }

    fn methods(methods: &[Method]) -> RouteMatch {
        RouteMatch { methods: methods.to_vec(), ..prefix("/") }
    }

    fn from(namespace: Option<&str>, name: Option<&str>, labels: &[(&str, &str)]) -> RouteMatch {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let [namespace, name] = [namespace, name].map(|text| text.map(str::to_owned));
        RouteMatch { source_pod: Some(WorkloadMatch { namespace, name, labels }), ..prefix("/") }
    }

    fn query(value: QueryValueMatch) -> RouteMatch {
        RouteMatch { query_parameters: vec![QueryMatch { name: "q".into(), value }], ..prefix("/") }
    }

    #[track_caller]
    fn check(expected: bool, cases: Vec<(RouteMatch, RouteMatch)>) {
        for (earlier, later) in cases {
            assert_eq!(covers(&earlier, &later), expected, "{} / {}", earlier.summary(), later.summary());
        }
    }

    #[test]
    fn shadows_of_paths_are_found() {
        check(
            true,
            vec![
                (prefix("/"), prefix("/")),
                (prefix("/"), regex("/x[0-9]+")),
                (prefix("/"), template("/x/*")),
                (prefix("/a"), prefix("/ab")),
                (prefix("/a"), exact("/abc")),
                (prefix("/a"), separated("/a")),
                (prefix("/a"), template("/a/*")),
                (separated("/a"), separated("/a/b")),
                (separated("/a"), exact("/a")),
                (separated("/a"), exact("/a/b")),
                (separated("/a"), prefix("/a/")),
                (separated("/a"), template("/a/*")),
                (exact("/a"), exact("/a")),
                (any_case(exact("/a")), exact("/A")),
                (any_case(prefix("/a")), any_case(prefix("/AB"))),
                (prefix("/1"), any_case(prefix("/1a"))),
                (regex("/a.*"), regex("/a.*")),
                (regex(".*"), prefix("/a")),
                (regex("/[ab]"), exact("/a")),
                (template("/a/*"), exact("/a/b")),
                (template("/a/*"), template("/a/*")),
                (on(PathMatch::Connect), on(PathMatch::Connect)),
            ],
        );
    }

    #[test]
    fn what_is_no_shadow_of_a_path_is_not_taken_for_one() {
        check(
            false,
            vec![
                (prefix("/ab"), prefix("/a")),
                (prefix("/a"), any_case(prefix("/ab"))),
                (separated("/a"), prefix("/a")),
                (separated("/a"), exact("/ab")),
                (separated("/a"), prefix("/ab")),
                (separated("/ab"), template("/a*")),
                (exact("/a"), any_case(exact("/a"))),
                (exact("/a"), prefix("/a")),
                (regex("/a.*"), regex("/ab.*")),
                (regex("/a"), any_case(exact("/a"))),
                (prefix("/"), on(PathMatch::Connect)),
                (on(PathMatch::Connect), prefix("/")),
                (RouteMatch { runtime_fraction_per_million: Some(999_999), ..prefix("/") }, prefix("/a")),
            ],
        );
    }

    #[test]
    fn shadows_of_conditions_are_found() {
        use StringMatchKind::{Contains, Exact, Prefix, SafeRegex, Suffix};
        let regex = |source| value(SafeRegex(FullRegex::new(source).expect("regex")));
        let a_text = || QueryValueMatch::String(StringMatch { kind: Exact("a".into()), ignore_case: false });
        check(
            true,
            vec![
                (prefix("/"), with(vec![header("x-a", "b")])),
                (with(vec![header("x-a", "b")]), with(vec![header("x-b", "c"), header("x-a", "b")])),
                (with(vec![present(true)]), with(vec![header("x-a", "b")])),
                (with(vec![present(true)]), with(vec![not(header("x-a", "b"))])),
                (with(vec![not(present(true))]), with(vec![present(false)])),
                (with(vec![value(Prefix("a".into()))]), with(vec![header("x-a", "ab")])),
                (with(vec![value(Prefix("a".into()))]), with(vec![value(Prefix("ab".into()))])),
                (with(vec![value(Suffix("b".into()))]), with(vec![value(Suffix("ab".into()))])),
                (with(vec![value(Contains("b".into()))]), with(vec![value(Prefix("abc".into()))])),
                (with(vec![regex("a|b")]), with(vec![header("x-a", "b")])),
                (with(vec![regex(".*")]), with(vec![regex("a+")])),
                (with(vec![range(0, 10)]), with(vec![range(1, 10)])),
                (with(vec![range(0, 10)]), with(vec![header("x-a", "5")])),
                (with(vec![not(header("x-a", "b"))]), with(vec![header("x-a", "c")])),
                (with(vec![not(range(1, 5))]), with(vec![not(range(0, 9))])),
                (methods(&[Method::GET, Method::POST]), methods(&[Method::GET])),
                (methods(&[Method::GET]), with(vec![header(":method", "GET")])),
                (with(vec![header(":method", "GET")]), methods(&[Method::GET])),
                (query(QueryValueMatch::Present(true)), query(a_text())),
                (query(a_text()), query(a_text())),
                (prefix("/"), RouteMatch { grpc: true, ..prefix("/") }),
                (RouteMatch { runtime_fraction_per_million: Some(1_000_000), ..prefix("/") }, prefix("/a")),
                (prefix("/"), RouteMatch { runtime_fraction_per_million: Some(1), ..prefix("/") }),
            ],
        );
    }

    #[test]
    fn what_is_no_shadow_of_a_condition_is_not_taken_for_one() {
        use StringMatchKind::{Prefix, SafeRegex};
        let empty = || HeaderMatch { treat_missing_header_as_empty: true, ..header("x-a", "") };
        check(
            false,
            vec![
                (with(vec![header("x-a", "b")]), prefix("/")),
                (with(vec![header("x-a", "b"), header("x-b", "c")]), with(vec![header("x-a", "b")])),
                (with(vec![header("x-a", "")]), with(vec![empty()])),
                (with(vec![present(true)]), with(vec![empty()])),
                (with(vec![present(true)]), with(vec![not(present(true))])),
                (with(vec![not(header("x-a", "b"))]), with(vec![present(false)])),
                (with(vec![not(header("x-a", "b"))]), with(vec![value(Prefix("b".into()))])),
                (with(vec![range(0, 10)]), with(vec![range(0, 11)])),
                (
                    with(vec![value(SafeRegex(FullRegex::new(".*").expect("regex")))]),
                    with(vec![value(Prefix("b".into()))]),
                ),
                (methods(&[Method::GET]), prefix("/")),
                (methods(&[Method::GET]), methods(&[Method::GET, Method::POST])),
                (RouteMatch { grpc: true, ..prefix("/") }, prefix("/")),
            ],
        );
    }

    #[test]
    fn shadows_of_source_pods_are_found() {
        let shop = || from(Some("shop"), None, &[]);
        let web = |name| from(None, Some(name), &[]);
        let app = [("app", "web")];
        check(
            true,
            vec![
                (prefix("/"), shop()),
                (from(None, None, &[]), shop()),
                (shop(), from(Some("shop"), Some("web-1"), &app)),
                (web("web-*"), web("web-1")),
                (web("web-*"), web("web-1*")),
                (from(None, None, &app), from(None, None, &[("app", "web"), ("tier", "a")])),
            ],
        );
        check(
            false,
            vec![
                // What comes from no known pod has no condition that it fails.
                (from(None, None, &[]), prefix("/")),
                (shop(), web("web-1")),
                (shop(), from(Some("bank"), None, &[])),
                (web("web-1"), web("web-1*")),
                (web("web-*"), web("web*")),
                (from(None, None, &app), shop()),
            ],
        );
    }

    #[test]
    fn a_finding_names_both_rows_and_where_they_are_written() {
        let found = shadowed("route_configs[0].virtual_hosts[1]", &rows(vec![prefix("/"), exact("/x"), prefix("/y")]));
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].path, "route_configs[0].virtual_hosts[1].routes[2]");
        assert_eq!(found[1].other.as_deref(), Some("route_configs[0].virtual_hosts[1].routes[0]"));
        assert_eq!(found[1].message, "row 2 (prefix /y) is shadowed by row 0 (prefix /)");
    }

    proptest! {
        #[test]
        fn no_shadow_is_overlooked_for_how_paths_begin(matches in proptest::collection::vec(any_match(), 2..24)) {
            let rows = rows(matches);
            let all = rows.iter().enumerate().filter_map(|(later, row)| {
                let earlier = rows[..later].iter().position(|earlier| covers(&earlier.matches, &row.matches))?;
                Some((format!(".routes[{later}]"), Some(format!(".routes[{earlier}]"))))
            });
            let found = shadowed("", &rows).into_iter().map(|finding| (finding.path, finding.other));
            prop_assert_eq!(found.collect::<Vec<_>>(), all.collect::<Vec<_>>());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_request_is_ever_matched_by_a_shadowed_row(
            matches in proptest::collection::vec(any_match(), 2..10),
            requests in proptest::collection::vec(any_request(), 60),
        ) {
            let config = config(vec![virtual_host("shop", &["*"], rows(matches))]);
            let rows = &config.virtual_hosts[0].routes;
            let shadowed: Vec<_> = shadowed("", rows).into_iter().map(|finding| finding.path).collect();
            for request in &requests {
                let decision = decide::decide(&config, &request.facts(), &|_| None);
                if let Some(route) = decision.route {
                    let path = format!(".routes[{}]", route.index);
                    prop_assert!(!shadowed.contains(&path), "row {} takes {:?}", route.index, request);
                }
            }
        }
    }
}
